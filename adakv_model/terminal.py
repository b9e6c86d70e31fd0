"""What the command lines print with: consoles that take every text as it is, and the one form of errors and notes."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn
from rich.text import Text


def make_console(*, stderr: bool = True, **options: Any) -> Console:
    """A console without markup and emoji names: paths, templates and model names hold brackets and colons."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, **options)


def table_console(width: int) -> Console:
    """A console on standard output for wide tables: `width` columns where that is no terminal."""
    console = make_console(stderr=False)
    return console if console.is_terminal else make_console(stderr=False, width=width)


def text_column(template: str) -> TextColumn:
    """A column of a progress bar whose fields are shown as they are."""
    return TextColumn(template, markup=False)


class Bars(Progress):
    """Progress bars on standard error that leave nothing behind; where that is no terminal they print nothing."""

    def __init__(self, *columns: str | ProgressColumn, console: Console | None = None, **options: Any) -> None:
        super().__init__(*columns, console=console or make_console(), transient=True, **options)

    def stop(self) -> None:
        """rich's own ends with an empty line in a pipe, in front of an error too."""
        if self.console.is_interactive:
            super().stop()
        else:
            self.live.stop()


def print_error(console: Console, error: object) -> None:
    """`error: ...`, on one line that the terminal may wrap."""
    _labelled(console, "error:", "red", error)


def print_note(console: Console, note: object) -> None:
    """`note: ...`, likewise."""
    _labelled(console, "note:", "yellow", note)


def use_utf8() -> None:
    """Print and read UTF-8 whatever the locale: answers and prompts are. What cannot be written is replaced."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def _labelled(console: Console, label: str, colour: str, text: object) -> None:
    console.print(Text.assemble((label, colour), " ", _one_line(text)), soft_wrap=True)


def _one_line(text: object) -> str:
    return " ".join(str(text).splitlines())
