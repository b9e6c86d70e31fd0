"""python -m device_tests.compare A.jsonl [B.jsonl]: is A faster than B, and how sure is that?

One file: its first artifact against the others, or all against --baseline. Two files: the same test of both. Ratios
of times with 95 % intervals (device_tests/bench/statistics.py); "not comparable", with the reasons, where devices,
conditions or runs differ. Exit code 3: nothing could be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from adakv_model.command_line import HELP_NAMES, Exit, command
from adakv_model.errors import UserError
from adakv_model.terminal import make_console, print_note, table_console
from device_tests.bench.comparing import Comparison, compare, pairs
from device_tests.bench.rows import read
from device_tests.bench.summary import Group, failures, groups
from device_tests.bench.table import WIDTH

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = make_console()


@app.command(context_settings=HELP_NAMES)
@command
def main(
    a: Annotated[Path, typer.Argument(help="Results of device_tests.bench.")],
    b: Annotated[Path | None, typer.Argument(help="Others.", show_default="A's own artifacts")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Name of B's artifact, with which all others are compared.")
    ] = None,
    across_runs: Annotated[
        bool, typer.Option("--across-runs", help="Also compare samples that were not taken in turn.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare measured times."""
    rows = read(a)
    for line in failures(rows):
        print_note(errors, line)
    found = comparisons(groups(rows), None if b is None else groups(read(b)), baseline, across_runs)
    if as_json:
        print(json.dumps([comparison.to_json() for comparison in found], indent=1))
    else:
        table_console(WIDTH).print(table(found))
    if all(comparison.ratio is None for comparison in found):
        raise typer.Exit(Exit.CHECK)


def comparisons(
    first: list[Group], second: list[Group] | None, baseline: str | None, across_runs: bool = False
) -> list[Comparison]:
    """All that can be asked of one or two files. Raises UserError where that is nothing."""
    others = first if second is None else second
    names = list(dict.fromkeys(group.artifact["name"] for group in others))
    if baseline is not None and baseline not in names:
        raise UserError(f"no artifact is called {baseline!r}: one of {', '.join(names) or 'none'}")
    if baseline is not None:
        others = [group for group in others if group.artifact["name"] == baseline]
    elif second is None:
        first = [group for group in first if group.artifact["name"] == names[0]]
    found = [compare(x, y, across_runs) for x, y in pairs(first, others)]
    if not found:
        raise UserError("the results share no test of two artifacts: measure several with --artifact A --artifact B")
    return found


def table(found: Sequence[Comparison]) -> Table:
    """One line a comparison."""
    shown = Table(title="time of A over B, 95 % interval; below 1: A is faster", title_justify="left")
    for name in ("device", "test", "threads", "A", "B", "A ms", "B ms", "A / B", "verdict"):
        shown.add_column(name, justify="right" if name in ("threads", "A ms", "B ms") else "left")
    for one in found:
        device, ratio = one.a.device, one.ratio
        verdict = one.verdict + "".join(f"\n{text}" for text in (*one.reasons, *one.notes))
        style = {"faster": "green", "slower": "red"}.get(one.verdict, "dim")
        cells = (
            device["selector"] + (" (no phone)" if device["emulated"] else ""),
            one.a.test.name,
            str(one.a.threads),
            one.a.artifact["name"],
            one.b.artifact["name"],
            f"{one.a.interval[0]:.3g}",
            f"{one.b.interval[0]:.3g}",
            "" if ratio is None else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        )
        shown.add_row(*cells, Text(verdict, style=style))
    return shown


if __name__ == "__main__":
    app()
