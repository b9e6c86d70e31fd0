"""One export from its options, with a progress display on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TimeElapsedColumn

from adakv_model.command_line import if_interrupted
from adakv_model.terminal import Bars, make_console, text_column
from export import android, ios
from export.device_bundle import runner_folder, write_device_bundle
from export.options import ExportOptions

console = make_console()


def export_model(options: ExportOptions, command: list[str]) -> dict[str, Any]:
    """Write the artifact folder and return its manifest. command: for the manifest. Raises UserError."""
    options.check()
    unwritten = if_interrupted(lambda: f"nothing was written to {options.folder}")
    if options.target == "ios":
        with unwritten, stages(ios.STAGES[options.backend]) as stage:
            return ios.export_ios(options, command, stage)
    if options.device_bundle is not None:
        runner_folder(options.device_runner)  # fails before the export does its work
    with unwritten, stages(android.STAGES) as stage:
        manifest = android.export_android(options, command, stage)
    if options.device_bundle is not None:
        write_device_bundle([options.folder], options.device_bundle, options.device_runner)
    return manifest


@contextmanager
def stages(total: int) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """A progress display, or lines in a pipe; yields stage(name), a context manager that times one step."""
    columns = (
        SpinnerColumn(),
        text_column("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as progress:
        task = progress.add_task("", total=total)

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            progress.update(task, description=f"{name} ...")
            if not console.is_terminal:  # a log says what takes so long
                console.print(f"  {name} ...")
            started = progress.get_time()
            yield
            progress.advance(task)
            console.print(f"  {name:<22}{progress.get_time() - started:6.1f} s")

        yield stage
