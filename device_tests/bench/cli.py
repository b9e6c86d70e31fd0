"""python -m device_tests.bench: time exported artifacts on this machine, an emulator, phones or a Mac.

Every run is a process of its own on the device, artifacts take turns, and each artifact must pass a parity probe first.
Status 0 if all went well, 1 if a probe, a run or a device failed (the others are in the results), 2 for what a user can
mend before anything runs.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from device_tests.bench import dashboard, trace
from device_tests.bench.cooling import Cooling
from device_tests.bench.plan import check_contexts, matrix
from device_tests.bench.plot import plot as draw
from device_tests.bench.records import artifact_names, row
from device_tests.bench.rows import HEADER, SAMPLE, ResultsFile, Row
from device_tests.bench.session import Options, Session
from device_tests.bench.summary import failures, groups
from device_tests.bench.table import WIDTH, tables
from device_tests.bench.text import DEFAULT_TEXT, tokens_of
from device_tests.compare import comparisons
from device_tests.compare import table as comparison_table
from device_tests.devices import TRANSPORTS, Bundle, Device, find

ON_THIS_MACHINE = ("host", "qemu", "simulator", "mac")  # they would disturb each other

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False)
progress = Console(stderr=True, highlight=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    device: Annotated[
        list[str], typer.Option(help=f"{', '.join(TRANSPORTS)}; :NAME chooses one of several. Again for more.")
    ],
    artifact: Annotated[list[Path], typer.Option(help="Folder written by export.py. Again for more: they take turns.")],
    json_path: Annotated[Path, typer.Option("--json", help="Results, JSON lines (docs/bench-schema.md).")],
    pp: Annotated[str, typer.Option(help="Tokens to prefill, of each test.")] = "512",
    tg: Annotated[str, typer.Option(help="Tokens to decode, of each test.")] = "64",
    depth: Annotated[str, typer.Option(help="Tokens in the cache before each test.")] = "0",
    reps: Annotated[int, typer.Option(min=1, help="Repetitions of everything.")] = 5,
    threads: Annotated[
        str, typer.Option(help="Of the runtime. [default: one a fast core, at most 4]", show_default=False)
    ] = "",
    cpu_mask: Annotated[
        str | None, typer.Option(help="Cores, hexadecimal. [default: the fastest ones]", show_default=False)
    ] = None,
    delay: Annotated[float, typer.Option(min=0.0, help="Seconds between runs.")] = 0.0,
    cool_to: Annotated[
        float | None,
        typer.Option(
            help="Wait before each run until the device has this temperature. [default: start + 3 C]",
            show_default=False,
        ),
    ] = None,
    cool_limit: Annotated[float, typer.Option(min=0.0, help="Seconds that such a wait may take.")] = 300.0,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that a run may take.")] = 600.0,
    text: Annotated[Path, typer.Option(help="Text to feed, repeated where it is short.")] = DEFAULT_TEXT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the results file: nothing finished is run again.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the results.")] = None,
    trace_path: Annotated[
        Path | None, typer.Option("--trace", help="Also a trace of the last run, for ui.perfetto.dev.")
    ] = None,
    dashboard_path: Annotated[
        Path | None, typer.Option("--dashboard", help="Also the schema of ExecuTorch's benchmark dashboard.")
    ] = None,
) -> None:
    """Time artifacts on devices."""
    try:
        names = artifact_names(artifact)
        opened = {name: Artifact(folder) for folder, name in names.items()}
        chosen = matrix(numbers("--pp", pp), numbers("--tg", tg), numbers("--depth", depth))
        check_contexts({name: one.plan.context for name, one in opened.items()}, chosen)
        counts = numbers("--threads", threads, least=1) if threads else [0]
        if cpu_mask is not None and len(counts) > 1:
            raise UserError("--cpu-mask goes with one number of --threads")
        fed = {name: tokens_of(one, text) for name, one in opened.items()}
        devices = [found for selector in dict.fromkeys(device) for found in find(selector)]
        options = Options(chosen, reps, counts, cpu_mask, delay, Cooling(cool_to, cool_limit), timeout)
        results = ResultsFile(json_path, header(opened, fed, options, pp=pp, tg=tg, depth=depth), resume)
    except UserError as error:
        raise stop(error) from None
    problems = run_all(devices, opened, fed, options, results)
    results.close()
    try:
        show(results.rows, plot, trace_path, dashboard_path)
    except UserError as error:
        problems.append(str(error))
    for problem in problems:
        progress.print(f"error: {problem}", style="red", soft_wrap=True, markup=False)
    if problems or failures(results.rows):
        raise typer.Exit(1)


def numbers(option: str, text: str, least: int = 0) -> list[int]:
    """ "128,512" -> [128, 512]. Raises UserError."""
    try:
        values = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        values = [least - 1]
    if any(value < least for value in values):
        raise UserError(f"{option} takes numbers of at least {least}, separated by commas, not {text!r}")
    return list(dict.fromkeys(values))


def header(opened: dict[str, Artifact], fed: dict[str, list[int]], options: Options, **words: str) -> Row:
    """What must be equal for results to belong together. reps are left out: a resumed run may ask for more."""
    bundle = Bundle({}, ())
    for one in opened.values():
        bundle = bundle.with_artifact(one.folder, [one.program.name])
    identities = {name: bundle.artifacts[one.folder.resolve()] for name, one in opened.items()}
    if len(set(identities.values())) < len(opened):
        raise UserError("two artifacts are the same program: nothing can be learned from their difference")
    said = {
        **words,
        "artifacts": identities,
        "tokens_sha256": hashlib.sha256(json.dumps(fed).encode()).hexdigest()[:16],
        "threads": list(options.threads),
        "cpu_mask": options.cpu_mask,
    }
    return row(HEADER, run=secrets.token_hex(6), version=version("adakv"), options=said)


def run_all(
    devices: Sequence[Device],
    opened: dict[str, Artifact],
    fed: dict[str, list[int]],
    options: Options,
    results: ResultsFile,
) -> list[str]:
    """Phones at the same time, everything on this machine one after the other; what went wrong."""

    def run(device: Device) -> str | None:
        def say(line: str) -> None:
            progress.print(f"{device.selector}: {line}", style="dim", soft_wrap=True, markup=False)

        try:
            Session(device, opened, fed, options, results, say).run()
        except UserError as error:
            return f"{device.selector}: {error}"
        return None

    here = [device for device in devices if device.kind in ON_THIS_MACHINE]
    elsewhere = [device for device in devices if device.kind not in ON_THIS_MACHINE]
    problems = [run(device) for device in here]
    if elsewhere:
        with ThreadPoolExecutor(len(elsewhere)) as pool:
            problems += pool.map(run, elsewhere)
    return [problem for problem in problems if problem is not None]


def show(rows: list[Row], plot: Path | None, trace_path: Path | None, dashboard_path: Path | None) -> None:
    """Tables, verdicts, what failed, and the files asked for. Raises UserError."""
    found = groups(rows)
    if not console.is_terminal:
        console.width = WIDTH
    for shown in tables(found):
        console.print(shown)
    if len({group.artifact["id"] for group in found}) > 1:
        console.print(comparison_table(comparisons(found, None, None)))
    for line in failures(rows):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if plot is not None:
        draw(rows, plot)
    samples = [one for one in rows if one["kind"] == SAMPLE]
    if trace_path is not None and samples:
        trace.write(samples[-1], trace_path)
    if dashboard_path is not None:
        dashboard_path.write_text(json.dumps(dashboard.records(rows), indent=1) + "\n", encoding="utf-8")


def stop(error: UserError) -> typer.Exit:
    progress.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
    return typer.Exit(2)
