"""What the command lines print with: consoles that take every text as it is, and the one form of errors and notes."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Column, Table
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


@contextmanager
def working(text: str) -> Iterator[None]:
    """A word on the terminal while something takes seconds, such as loading torch; nothing of it stays."""
    console = make_console()
    if not console.is_interactive:
        yield
        return
    with console.status(Text(f"{text} ...", style="dim")):
        yield


def print_error(console: Console, error: object) -> None:
    """`error: ...`, on one line that the terminal may wrap."""
    _labelled(console, "error:", "red", error)


def print_note(console: Console, note: object) -> None:
    """`note: ...`, likewise."""
    _labelled(console, "note:", "yellow", note)


def print_table(console: Console, table: Table) -> None:
    """A table that cuts no word, number or path, even where it gets wider than the terminal; no blanks at the end."""
    options = console.options
    for column in table.columns:
        words = [cell if column.no_wrap else max(cell.split(), key=len, default="") for cell in _texts(column)]
        column.min_width = max(column.min_width or 0, *map(cell_len, words))
    least = console.measure(table, options=options.update(width=10_000)).minimum
    wide_enough = options.update(width=max(options.max_width, least))
    for line in Segment.split_lines(console.render(table, wide_enough)):  # render_lines would crop
        text = Text.assemble(*((segment.text, segment.style or "") for segment in line if not segment.control))
        text.rstrip()
        console.print(text, soft_wrap=True)


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Label and text of each fact, the texts below each other."""
    rows = list(facts)
    indent = max((len(label) for label, _ in rows), default=0) + 2
    for label, text in rows:
        print_wrapped(console, text, label=label, indent=indent)


def print_wrapped(console: Console, text: str, *, label: str = "", indent: int = 0, style: str = "") -> None:
    """Text beside its label, wrapped between words; its own lines stay apart. A word that is longer than the room
    there, such as a path, is whole on a line of its own."""
    room = max(console.width - indent, 1)
    lines = [
        part
        for line in text.splitlines() or [""]
        for part in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
    ]
    for number, line in enumerate(lines):
        start = " " * indent if number else label and label.ljust(indent)
        console.print(Text((start + line).rstrip(), style=style), soft_wrap=True)


def prepare_streams() -> None:
    """Print and read UTF-8 whatever the locale: answers and prompts are. What cannot be written is replaced.

    A stream that was closed (`>&-`) leads nowhere; otherwise the next file to be opened would take its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")


def silence_output() -> None:
    """Drop what standard output could not take: the interpreter would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _texts(column: Column) -> list[str]:
    return [str(cell) for cell in (column.header, *column.cells) if isinstance(cell, str | Text)]


def _labelled(console: Console, label: str, colour: str, text: object) -> None:
    console.print(Text.assemble((label, colour), " ", _one_line(text)), soft_wrap=True)


def _one_line(text: object) -> str:
    return " ".join(str(text).splitlines())
