"""Reading a text file that a user named. Light: no torch."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from adakv_model.errors import UserError


def read_text(path: Path, remedy: str = "pass a text file with --text") -> str:
    """A UTF-8 text, gzip-compressed if its name ends in .gz. Raises UserError, which ends in the remedy."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged or not UTF-8 text ({error}): {remedy}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {remedy}") from error
