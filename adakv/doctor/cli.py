"""Command line of `adakv doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from adakv.doctor.checks import CHECKS
from adakv.doctor.finding import Check, Finding, Machine, Severity, fatal
from adakv_model.command_line import HELP_NAMES, Exit, command, completed
from adakv_model.errors import UserError
from adakv_model.terminal import make_console, print_wrapped, working

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

NAMES = [check.name for check in CHECKS]
INDENT = 26  # columns before what was found: severity and subject
COLOURS = {Severity.FATAL: "red", Severity.SILENT: "yellow", Severity.SLOW: "yellow", Severity.INFO: "dim"}


@app.command(context_settings=HELP_NAMES)
@command
def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Run these checks only: {', '.join(NAMES)}; repeatable.", autocompletion=completed(NAMES)),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Check this machine. Exit code 3: something is fatal.

    fatal: an export or a run fails; silent: something may differ without a word; slow: it works, slowly; info:
    something optional is missing.

    For example: adakv doctor --only tools --only android
    """
    if unknown := [name for name in only or () if name not in NAMES]:
        raise UserError(f"unknown --only {unknown[0]!r}: one of {', '.join(NAMES)}")
    checks = [check for check in CHECKS if not only or check.name in only]
    found = examine(checks, Machine())
    blind = {check.name: check.blind for check in checks if check.blind}
    if as_json:
        findings = list(found)
        print(json.dumps({"findings": [f.to_json() for f in findings], "cannot_check": blind}))
    else:
        findings = show(found, blind)
    if any(finding.severity is Severity.FATAL for finding in findings):
        raise typer.Exit(Exit.CHECK)


def examine(checks: list[Check], machine: Machine) -> Iterator[Finding]:
    """What the checks find, as they find it; one that fails itself is a finding too."""
    for check in checks:
        found: list[Finding] = []
        try:
            with working(f"checking {check.name}"):
                found += check.look(machine)
        except Exception as error:
            remedy = "report it with the output of adakv doctor --debug"
            found.append(fatal(check.name, f"the check itself failed: {type(error).__name__}: {error}", remedy))
        yield from found


def show(found: Iterable[Finding], blind: dict[str, str]) -> list[Finding]:
    """Each finding on standard output as it comes, then a summary; all of them."""
    console, findings = make_console(stderr=False), []
    for finding in found:
        findings.append(finding)
        label = f"{finding.severity:<8}{finding.subject}"
        text = finding.text + (f"\n-> {finding.remedy}" if finding.remedy else "")
        print_wrapped(console, text, label=label, indent=INDENT, style=COLOURS.get(finding.severity, "green"))
    counts = {severity: sum(f.severity is severity for f in findings) for severity in Severity}
    console.print(", ".join(f"{count} {severity}" for severity, count in counts.items() if count))
    print_wrapped(console, "not checked: " + "; ".join(blind.values()), indent=2, style="dim")
    return findings
