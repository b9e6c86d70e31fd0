"""python -m device_tests.bench: time exported artifacts on this machine, an emulator, phones or a Mac.

Every run is a process of its own on the device, artifacts take turns, and each artifact must pass a parity probe first.
Exit code 3: a probe, a run or a device failed (the others are in the results), or no two of several artifacts could
be compared; the rest as every command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adakv_model.command_line import HELP_NAMES, Exit, command
from adakv_model.terminal import make_console, print_error, working
from device_tests.devices.registry import TRANSPORTS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = make_console()


@app.command(context_settings=HELP_NAMES)
@command
def main(
    device: Annotated[
        list[str], typer.Option(help=f"{', '.join(TRANSPORTS)}; :NAME chooses one of several. Again for more.")
    ],
    artifact: Annotated[
        list[Path], typer.Option(help="Folder written by adakv export. Again for more: they take turns.")
    ],
    json_path: Annotated[Path, typer.Option("--json", help="Results, JSON lines (docs/bench-schema.md).")],
    pp: Annotated[str, typer.Option(help="Tokens to prefill, of each test.")] = "512",
    tg: Annotated[str, typer.Option(help="Tokens to decode, of each test.")] = "64",
    depth: Annotated[str, typer.Option(help="Tokens in the cache before each test.")] = "0",
    reps: Annotated[int, typer.Option(min=1, help="Repetitions of everything; a verdict needs 3.")] = 5,
    threads: Annotated[str, typer.Option(help="Of the runtime.", show_default="one a fast core, at most 4")] = "",
    cpu_mask: Annotated[str | None, typer.Option(help="Cores, hexadecimal.", show_default="the fastest ones")] = None,
    delay: Annotated[float, typer.Option(min=0.0, help="Seconds between runs.")] = 0.0,
    cool_to: Annotated[
        float | None,
        typer.Option(
            help="Wait before each run until the device has this temperature.",
            show_default="start + 3 C",
        ),
    ] = None,
    cool_limit: Annotated[float, typer.Option(min=0.0, help="Seconds that such a wait may take.")] = 300.0,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that a run may take.")] = 600.0,
    text: Annotated[
        Path | None,
        typer.Option(help="Text to feed, repeated where it is short.", show_default="English prose"),
    ] = None,
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
    """Time artifacts on devices.

    For example: adakv bench --device host --artifact artifacts/mine --artifact artifacts/fp16 --json out.jsonl
    """
    with working("loading torch"):  # seconds that --help need not take
        from device_tests.bench.command import Request, execute
        from device_tests.bench.cooling import Cooling

    request = Request(
        devices=device,
        artifacts=artifact,
        results=json_path,
        pp=pp,
        tg=tg,
        depth=depth,
        reps=reps,
        threads=threads,
        cpu_mask=cpu_mask,
        delay=delay,
        cooling=Cooling(cool_to, cool_limit),
        timeout=timeout,
        text=text,
        resume=resume,
        plot=plot,
        trace=trace_path,
        dashboard=dashboard_path,
    )
    problems = execute(request)
    for problem in problems:
        print_error(errors, problem)
    if problems:
        raise typer.Exit(Exit.CHECK)
