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
from rich.console import Console
from rich.text import Text

from adakv_model.command_line import HELP_NAMES, Exit, command
from adakv_model.errors import UserError
from adakv_model.terminal import make_console, print_note
from device_tests.bench.comparing import Comparison, compare, pairs
from device_tests.bench.rows import read
from device_tests.bench.summary import Group, failures, groups
from device_tests.bench.table import Column, table_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = make_console()

STYLES = {"faster": "green", "slower": "red"}


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
        show(found, make_console(stderr=False))
    if not any_verdict(found):
        raise typer.Exit(Exit.CHECK)


def any_verdict(found: Sequence[Comparison]) -> bool:
    """Whether something could be compared; if not, that is exit code 3 here and in device_tests.bench."""
    return any(comparison.ratio is not None for comparison in found)


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


def show(found: Sequence[Comparison], console: Console) -> None:
    """One line a comparison, within the console's width; what all share in the title, reasons and notes below."""
    devices, threads = {_place(one) for one in found}, {one.a.threads for one in found}
    console.print("time of A over B, 95 % interval; below 1: A is faster")
    shared = [*devices] if len(devices) == 1 else []
    shared += [f"{count} threads" for count in threads] if len(threads) == 1 else []
    if shared:
        console.print(", ".join(shared), soft_wrap=True)
    ratios = [one.ratio for one in found]
    columns = [
        Column("device", [_place(one) if len(devices) > 1 else "" for one in found], fold=True),
        Column("test", [one.a.test.name for one in found]),
        Column("threads", [str(one.a.threads) if len(threads) > 1 else "" for one in found], right=True),
        Column("A", [one.a.artifact["name"] for one in found], fold=True),
        Column("B", [one.b.artifact["name"] for one in found], fold=True),
        Column("A ms", [f"{one.a.interval[0]:.3g}" for one in found], right=True),
        Column("B ms", [f"{one.b.interval[0]:.3g}" for one in found], right=True),
        Column("A / B", [f"{r.value:.3f}\n[{r.low:.3f}, {r.high:.3f}]" if r else "" for r in ratios]),
        Column("verdict", [Text(one.verdict, style=STYLES.get(one.verdict, "dim")) for one in found], fold=True),
    ]
    console.print(table_of(columns))
    said: dict[str, list[str]] = {}
    for one in found:
        for text in (*one.reasons, *one.notes):
            said.setdefault(text, []).append(one.a.test.name)
    for text, tests in said.items():
        console.print(text if len(tests) == len(found) else f"{', '.join(tests)}: {text}", soft_wrap=True)


def _place(one: Comparison) -> str:
    device = one.a.device
    return str(device["selector"]) + (" (no phone)" if device["emulated"] else "")


if __name__ == "__main__":
    app()
