"""SHA-256 of files, and a note of the large ones that were read whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from adakv_model.errors import UserError
from adakv_model.whole_file import write_whole

LARGE = 8 << 20  # bytes; smaller files are read again each time
ID_DIGITS = 16  # of a program's SHA-256: the name of its folder on a device


def sha256_of(path: Path) -> str:
    """Hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$ADAKV_CACHE`, or `~/.cache/adakv`."""
    configured = environment.get("ADAKV_CACHE")
    return Path(configured) if configured else Path(environment.get("HOME", "~")).expanduser() / ".cache" / "adakv"


def known_sha256(path: Path) -> str:
    """`sha256_of`, computed once for a large file as long as its path, size, inode and time of change stay the same.

    What was computed is kept in the cache folder, where that can be written. Raises OSError.
    """
    status = path.stat()
    if status.st_size < LARGE:
        return sha256_of(path)
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_ino}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
    note = default_cache_dir() / "hashes" / hashlib.sha256(os.fsencode(identity)).hexdigest()
    try:
        found = note.read_text(encoding="ascii")
        if len(found) == 64:
            return found
    except (OSError, UnicodeDecodeError):
        pass
    digest = sha256_of(path)
    _write(note, digest)
    return digest


def _write(note: Path, digest: str) -> None:
    with suppress(OSError, UserError):  # a full or read-only disk: the next command computes it again
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, digest)
