"""Where measuring commands print: a terminal, a file, and sections of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from adakv_model.errors import UserError
from adakv_model.terminal import table_console
from adakv_model.whole_file import write_whole

WIDTH = 150  # of a table that goes to a file


def wide_console() -> Console:
    """On stdout, wide enough for a table where that is no terminal."""
    return table_console(WIDTH)


def replace_section(page: Path, name: str, text: str) -> None:
    """Put text between `<!-- begin NAME -->` and `<!-- end NAME -->` of a page. Raises UserError if it lacks them."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    try:
        content = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {page} ({error.strerror}): name an existing page") from error
    before, found, rest = content.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UserError(f"{page} has no section {name}: add the lines `{begin}` and `{end}`")
    write_whole(page, f"{before}{begin}\n{text.strip()}\n{end}{after}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """The first columns are text, the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])
