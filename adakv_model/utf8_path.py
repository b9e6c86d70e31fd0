"""File names for libraries in C++ and Rust that take UTF-8 only; a name is bytes, and need not be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """The file under a name that is UTF-8: its own, or that of a link which lasts as long as the block."""
    try:
        os.fsencode(path.absolute()).decode()
    except UnicodeDecodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path
