"""What is printed for people: no word is cut, however narrow the terminal, and no line ends in blanks."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from adakv_model.errors import UserError
from adakv_model.terminal import Bars, make_console, print_facts, print_table, print_wrapped

PATH = "/home/somebody/a-long-folder/another/site-packages/adakv_model/lib/libadakv_ops.so"


def console_of(width: int) -> tuple[Console, io.StringIO]:
    printed = io.StringIO()
    return make_console(stderr=False, width=width, file=printed), printed


def test_a_terminal_is_told_what_takes_seconds_and_a_pipe_is_not() -> None:
    program = "import time; from adakv_model.terminal import working\nwith working('[red]'): time.sleep(0.1)"
    words = [sys.executable, "-c", program]
    assert subprocess.run(words, capture_output=True, check=True).stderr == b""
    ours, theirs = os.openpty()
    subprocess.run(words, stderr=theirs, env=os.environ | {"TERM": "xterm"}, check=True)
    shown = os.read(ours, 4096).decode()
    for handle in (ours, theirs):
        os.close(handle)
    assert "[red] ..." in shown
    assert shown.rstrip().endswith("\x1b[2K"), "the line is erased"


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_a_table_cuts_nothing(width: int) -> None:
    console, printed = console_of(width)
    table = Table("name", "options", "size", box=None, pad_edge=False)
    table.columns[2].no_wrap = True
    table.add_row("smollm2-135m-instruct", "--deployment-target iOS26 --cache-io int8", "23.9 %")
    print_table(console, table)
    shown = printed.getvalue()
    for word in ("smollm2-135m-instruct", "--deployment-target", "iOS26", "--cache-io", "int8", "23.9 %"):
        assert word in shown
    assert all(line == line.rstrip() for line in shown.splitlines())


@pytest.mark.parametrize("width", [20, 40, 80])
def test_long_words_are_whole_and_others_stay_within_the_width(width: int) -> None:
    console, printed = console_of(width)
    print_facts(console, [("library", f"{PATH}, kernels avx512vnni"), ("C++", "12.2.0")])
    print_wrapped(console, f"made of many words and {PATH}", indent=2, style="dim")
    lines = printed.getvalue().splitlines()
    assert sum(PATH in line for line in lines) == 2
    assert all(len(line) <= width for line in lines if PATH not in line)
    assert all(line == line.rstrip() for line in lines)
    assert "C++      12.2.0" in lines


@pytest.mark.parametrize("disable", [False, True])
def test_progress_bars_write_nothing_into_a_pipe(disable: bool) -> None:
    """Not even an empty line, in front of an error either."""
    pipe = io.StringIO()
    with Bars(console=make_console(file=pipe), disable=disable) as bars:
        bars.advance(bars.add_task("work", total=2))
    with pytest.raises(UserError), Bars(console=make_console(file=pipe), disable=disable):
        raise UserError("no")
    assert pipe.getvalue() == ""
