"""Files that a command writes: all of the new content or all of the old, and nothing else left. Light: no torch."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError

ELSEWHERE = "choose another place"
PICTURES = (".png", ".pdf", ".svg")


def write_whole(path: Path, content: bytes | str, remedy: str = ELSEWHERE) -> None:
    """Replace a file, following links. What is no file, such as /dev/stdout, is written into.

    Raises UserError, which ends in the remedy; then, and after a signal, the file is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.write(data)
            return
        target = path.resolve()
        temporary = target.with_name(f".adakv-new-{os.getpid()}-{threading.get_ident()}")
        with temporary.open("wb") as file:
            file.write(data)
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise UserError(f"cannot write {path} ({_reason(error)}): {remedy}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, remedy: str = ELSEWHERE) -> None:
    """An object, indented. Raises UserError."""
    write_whole(path, json.dumps(content, indent=1) + "\n", remedy)


def write_picture(path: Path, figure: Any, dpi: int) -> None:
    """A figure of matplotlib, in the format of the name's ending (`check_file`). Raises UserError."""
    import io

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format=path.suffix[1:].lower() or "png")
    write_whole(path, drawn.getvalue())


def append_line(path: Path, line: str, remedy: str = ELSEWHERE) -> None:
    """Add one line to a file, in folders that are made. Raises UserError; then the file is as it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            append_whole(file.fileno(), (line + "\n").encode(), path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({_reason(error)}): {remedy}") from error


def append_whole(descriptor: int, data: bytes, path: Path, *, sync: bool = False) -> None:
    """Add to an open file, or leave it as it was, absent if it was empty. Raises OSError. sync: to the disk itself."""
    start = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        while data:  # a write to a nearly full disk takes a part
            data = data[os.write(descriptor, data) :]
        if sync:
            os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)
        if not start:
            path.unlink(missing_ok=True)
        raise


def check_file(path: Path | None, option: str, suffixes: tuple[str, ...] = (), *, folders: bool = False) -> None:
    """Raise UserError early, rather than after the work, for a file that could not be written. None: not asked for.

    folders: those above it will be made.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it")
    standing = next((p for p in (path, *path.absolute().parents) if p.exists()), path)
    if not folders and not path.parent.is_dir():
        raise UserError(f"{option}: the folder {path.parent} does not exist: make it first")
    if not os.access(standing, os.W_OK) or (standing != path and not standing.is_dir()):
        raise UserError(f"{option}: cannot write to {standing}: {ELSEWHERE}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
