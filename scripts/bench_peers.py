"""Decode and prefill time of our artifacts and of other systems: one run, one model, one text, at known loss.

in:  the default checkpoint (or a shape with random weights), a text, the peers' environment
out: a table on the terminal, --json with every sample, --plot

    make peers                                                        # once: the peers' environment (1.6 GB)
    python scripts/bench_peers.py --json peers.json --plot peers.png
    python scripts/bench_peers.py --contexts 512,2048,4096,8192 --rounds 5 --json peers.json --resume
    python scripts/bench_peers.py --systems adakv,executorch --json stock.json    # ExecuTorch's own export: 15 minutes
    python scripts/bench_peers.py --model smollm2-1.7b --contexts 1024 --json big.json         # random weights

Every measurement is a process of its own: it loads one system, warms it up, feeds context - steps tokens (prefill)
and then the last ones one by one, each step timed. The rounds go through all systems in turn. Loss is that of the
same tokens for everybody; a loss above the reference's by more than --nll-tolerance is marked, and so is the row.
"""

from __future__ import annotations

import needs_packages  # noqa: F401

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.config import DEFAULT_MODEL
from adakv_model.digest import default_cache_dir
from adakv_model.errors import UserError
from adakv_model.numbers import number_list
from adakv_model.terminal import make_console, table_console
from adakv_model.whole_file import PICTURES, check_file
from peers import show
from peers.children import SCRIPTS
from peers.store import Store
from peers.systems import CACHES, parse_systems

ROOT = SCRIPTS.parent
TEXT = ROOT / "device_tests" / "parity" / "text.txt"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=HELP_NAMES)
@command
def main(
    contexts: Annotated[str, typer.Option(help="Tokens in the cache at the last step.")] = "512,2048,4096",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Processes for every cell.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Decode steps of a process.", min=4)] = 32,
    systems: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated: {', '.join(CACHES)}, each or with a cache (llama.cpp:q8_0, adakv:fp16,"
            " adakv:adaptive-3.5). [default: all but executorch]",
            show_default=False,
        ),
    ] = "",
    kv_bits: Annotated[str, typer.Option(help="Budgets of our adaptive cache.")] = "2.75,3.25,4",
    model: Annotated[
        str, typer.Option(help="Registered model; all but the default get random weights.")
    ] = DEFAULT_MODEL,
    text: Annotated[Path, typer.Option(help="Text to feed (.txt or .gz), repeated if it is too short.")] = TEXT,
    json_path: Annotated[Path | None, typer.Option("--json", help="Results, with every sample.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of decode time against context.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the cells that --json has.")] = False,
    isa: Annotated[
        str | None, typer.Option(help="Limit the instruction set (avx2) where a system has a switch.")
    ] = None,
    nll_tolerance: Annotated[
        float, typer.Option(min=0.0, help="Nats above the reference that make a loss wrong.")
    ] = 0.25,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for one process.")] = 900.0,
    work_dir: Annotated[
        Path | None, typer.Option(help="Exports and conversions. [default: the cache folder]", show_default=False)
    ] = None,
    peers_venv: Annotated[Path, typer.Option(help="The peers' environment.")] = ROOT / ".venv-peers",
    setup: Annotated[bool, typer.Option("--setup", help="Make the peers' environment and stop.")] = False,
) -> None:
    """Measure, then show and write what was measured."""
    console = make_console()
    if setup:
        make_environment(peers_venv)
        return
    if json_path is None:
        raise UserError("name a results file with --json")
    check_file(json_path, "--json")
    check_file(plot, "--plot", PICTURES)
    from peers.bench import Bench, Settings

    settings = Settings(
        model=model,
        variants=parse_systems(systems, number_list("--kv-bits", kv_bits, float, 0)),
        contexts=number_list("--contexts", contexts, int, 1),
        threads=number_list("--threads", threads, int, 1),
        rounds=rounds,
        steps=steps,
        text=text,
        work=(work_dir or default_cache_dir() / "bench").resolve(),
        peers_venv=peers_venv.absolute(),
        isa=isa,
        timeout=timeout,
        tolerance=nll_tolerance,
    )
    if min(settings.contexts) < 2 * steps:
        raise UserError(f"--contexts must be at least twice --steps, {2 * steps}")
    bench = Bench(settings, console)
    store = Store(json_path, bench.identity(), resume)
    with if_interrupted(lambda: f"{len(store.cells)} cells are kept in {json_path}, and --resume does the rest"):
        rows = bench.run(store)
    table_console(show.WIDTH).print(show.table(rows))
    for note in bench.notes:
        console.print(note, style="dim")
    if plot is not None and rows:
        show.plot(rows, plot, f"{model}, {rows[0]['cpu']}" + (f", limited to {isa}" if isa else ""))


def make_environment(folder: Path) -> None:
    """A virtual environment with the pinned requirements of the peers; torch first, see the Makefile."""
    from peers.prepare import REQUIREMENTS

    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    commands = [[sys.executable, "-m", "venv", str(folder)]] if not python.exists() else []
    for words in (*commands, [*install, torch], [*install, "-r", str(REQUIREMENTS)]):
        if subprocess.run(words).returncode:
            raise UserError(f"the peers' environment could not be made: {' '.join(words)}")


if __name__ == "__main__":
    app()
