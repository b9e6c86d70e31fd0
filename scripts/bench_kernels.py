"""Time of single kernels: packed rows of every width and weight products, beside the memory's bandwidth.

in:  nothing; a C++ compiler and CMake
out: tables on the terminal, --json with every figure, --plot, --page: a section of docs/speed.md

    python scripts/bench_kernels.py --json kernels.json --plot kernels.png
    python scripts/bench_kernels.py --isa avx2 --slots 4096 --threads 1 --rounds 5       # seconds
    python scripts/bench_kernels.py --arm                                  # estimates for Arm cores, by llvm-mca

One run measures everything in turn, round after round: rows that come from memory and rows that stay in a core's
cache, reading, copying, and the core's clock (a chain of dependent additions, one cycle each), in which cycles are
counted. Minima are shown; the JSON has medians too.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adakv_model.command_line import HELP_NAMES, command
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.whole_file import PICTURES, check_file, write_json
from kernel_speed import arm as arm_cores
from kernel_speed import show
from kernel_speed.arm import CPUS
from kernel_speed.program import ROOT, build, run_benchmark
from kernel_speed.summary import rooflines, row_verdicts, timings
from pages import replace_section, wide_console
from peers.measure import cpu_name

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def parse_bits(text: str) -> list[int]:
    """Widths as the layout has them, from "2,3,8/4/3/2". Raises UserError."""
    from adakv_model.quantizer import BAND_BITS, SUPPORTED_BITS, join_bands  # torch: help need not wait for it

    widths = []
    for word in text.split(","):
        bands = word.strip().split("/")
        allowed = BAND_BITS if len(bands) > 1 else SUPPORTED_BITS
        if len(bands) not in (1, 4) or any(not b.isdigit() or int(b) not in allowed for b in bands):
            raise UserError(
                f"--bits takes {', '.join(map(str, SUPPORTED_BITS))} or four bands like 4/3/2/2, not {word}"
            )
        widths.append(join_bands([int(b) for b in bands]))
    return widths


@app.command(context_settings=HELP_NAMES)
@command
def main(
    slots: Annotated[str, typer.Option(help="Rows of a kv head.")] = "512,1024,2048,4096,8192",
    bits: Annotated[
        str, typer.Option(help="Widths of rows; bands are K rows', measured beside 3-bit V rows.")
    ] = "2,3,4,3/2/2/2,4/3/2/2,8/4/3/2,8,16",
    isa: Annotated[
        str, typer.Option(help="Instruction sets: scalar, avx2, ... [default: all of this CPU]", show_default=False)
    ] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Runs of every cell.", min=1)] = 15,
    weights: Annotated[bool, typer.Option(help="Weight products too.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="All figures.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG: cycles and bandwidth against context.")] = None,
    page_path: Annotated[Path | None, typer.Option("--page", help="Page whose section is rewritten.")] = None,
    arm: Annotated[bool, typer.Option("--arm", help="Estimate cycles on Arm cores instead.")] = False,
    cpus: Annotated[str, typer.Option(help="Cores of --arm, by their names in LLVM.")] = ",".join(CPUS),
    build_dir: Annotated[Path, typer.Option(help="Where the programs are compiled.")] = ROOT / "build",
) -> None:
    """Measure, then show and write what was measured."""
    check_file(json_path, "--json")
    check_file(plot, "--plot", PICTURES)
    console = wide_console()
    widths, counts = parse_bits(bits), number_list("--threads", threads, int, 1)
    if arm:
        estimate_arm(console, widths, cpus.split(","), json_path, page_path, build_dir)
        return
    lengths = number_list("--slots", slots, int, 1)
    if any(n % 16 or not 16 <= n <= 65536 for n in lengths):
        raise UserError("--slots takes multiples of 16 up to 65536: rows lie in blocks of 16")
    program = build("kernel_benchmark", build_dir / "cpp-release")
    options = {"isas": isa.split(",")} if isa else {}
    cells = run_benchmark(
        program, slots=lengths, bits=widths, threads=counts, rounds=rounds, weights=int(weights), **options
    )
    lines, verdicts, found = rooflines(cells), row_verdicts(cells), timings(cells)
    if not found:
        raise UserError(f"this CPU runs none of the instruction sets --isa names: {isa}")
    console.print(show.roofline_table(lines))
    console.print(show.row_table(verdicts))
    if weights:
        console.print(show.weight_table(found, lines))
    if json_path is not None:
        facts = {"cpu": cpu_name(), "created": datetime.now(UTC).isoformat(timespec="seconds"), "rounds": rounds}
        rows = {"timings": [asdict(t) for t in found], "verdicts": [v.to_json() for v in verdicts]}
        document = facts | {"rooflines": [asdict(line) for line in lines.values()]} | rows
        write_json(json_path, document)
    if page_path is not None:
        replace_section(page_path, "bench_kernels", show.page(verdicts, found, lines, cpu_name()))
    if plot is not None:
        show.plot(verdicts, lines, plot, f"packed rows, {min(lines)} thread, {cpu_name()}")


def estimate_arm(
    console: Console,
    widths: list[int],
    cpus: list[str],
    json_path: Path | None,
    page_path: Path | None,
    build_dir: Path,
) -> None:
    """What --arm does."""
    found = arm_cores.estimate(widths, cpus, build_dir)
    name = Path(arm_cores.Tools.find().mca).name
    console.print(arm_cores.table(found, cpus, name))
    if json_path is not None:
        write_json(json_path, arm_cores.to_json(found, name))
    if page_path is not None:
        replace_section(page_path, "bench_kernels_arm", arm_cores.page(found, cpus, name))


if __name__ == "__main__":
    app()
