"""`adakv parity`: the parity suite of an artifact, as `pytest device_tests/parity --artifact DIR` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer

from adakv.commands import CHECKOUT
from adakv_model.command_line import HELP_NAMES, Exit, command
from adakv_model.errors import UserError
from adakv_model.runtime.manifest import read_manifest, require_all_logits

SUITES = {"android": "device_tests/parity", "coreml": "device_tests/coreml/test_parity.py"}
FAILED_TESTS = 1  # pytest's exit code; above it: it could not run them

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=HELP_NAMES)
@command
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by adakv export; android: with --logits all.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of pytest's output.")] = False,
) -> None:
    """Compare an artifact with the eager model: logits, tiers, slots and text. Exit code 3: they differ.

    For example: adakv export --logits all --out artifacts/check && adakv parity --artifact artifacts/check
    """
    manifest = read_manifest(artifact)
    kind = "coreml" if "core_ml_states" in manifest else "android"
    if kind == "android":
        require_all_logits(artifact, manifest)
    suite = CHECKOUT / SUITES[kind]
    if not suite.exists():
        raise UserError("adakv parity runs from a checkout: clone the repository and run `make venv` there")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-s", f"--artifact={artifact.resolve()}", f"--junit-xml={report}"]
        words = [sys.executable, "-m", "pytest", str(suite), *options]
        done = subprocess.run(words, cwd=CHECKOUT, stdout=sys.stderr if as_json else None, check=False)
        if as_json and report.is_file():
            print(json.dumps(_results(report)))
    if done.returncode:
        raise typer.Exit(Exit.CHECK if done.returncode == FAILED_TESTS else Exit.USER)


def _results(report: Path) -> dict[str, object]:
    """passed, failed, skipped: names of the tests; seconds."""
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    root = ElementTree.parse(report).getroot()
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[outcome].append(case.get("name", ""))
    return {**found, "seconds": sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))}
