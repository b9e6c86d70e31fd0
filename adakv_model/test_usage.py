"""Help and usage errors of any typer app of ours: one line for an error, and nothing of the help is cut."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from adakv_model.command_line import HELP_NAMES, command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings=HELP_NAMES)
@command
def main(
    folder: Annotated[str, typer.Argument(help="Folder.", metavar="DIR")],
    a_flag_with_a_long_name: Annotated[int, typer.Option(min=1, help="How many words of help fit.")] = 3,
    ratio: Annotated[float | None, typer.Option(help="Ratio. [default: half]")] = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Chat.")] = True,
) -> None:
    """Words."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "DIR is missing: main --help lists what it takes"),
        (["a", "b"], "got unexpected extra argument(s) (b): main --help lists what it takes"),
        (["a", "--a-flag-with-a-long-name", "0"], "--a-flag-with-a-long-name must be at least 1: main --help lists"),
        (["a", "--a-flag-with-a-long-name", "x"], "--a-flag-with-a-long-name must be a whole number: main --help"),
        (["a", "--ratio", "x"], "--ratio must be a number: main --help lists what it takes"),
        (["a", "--ratios", "1"], "no such option: --ratios (Possible options: --ratio)"),
        (["a", "--ratio"], "option '--ratio' requires an argument"),
    ],
)
def test_usage_errors_are_one_line(words: list[str], expected: str) -> None:
    done = CliRunner().invoke(app, words, prog_name="main")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_help_cuts_nothing_and_says_what_numbers_and_defaults_are() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}, prog_name="main")
    assert done.exit_code == 0
    lines = [line.strip("│ ") for line in done.stdout.splitlines()]
    assert "--a-flag-with-a-long-name <int>" in lines, "on a line of its own"
    assert "How many words of help fit. [x>=1] [default: 3]" in lines
    assert any("Ratio. [default: half]" in line for line in lines)
    assert any(line.startswith("--chat/--no-chat ") for line in lines)
    assert "<bool>" not in done.stdout
    assert "…" not in done.stdout
