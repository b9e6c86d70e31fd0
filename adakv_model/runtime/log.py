"""The runtime's log: it writes to file descriptor 2 from C++, a dozen lines where one is wanted."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from adakv_model.errors import debugging


class RuntimeLog:
    """Keeps the runtime's chatter (CPU probing, error details) off the terminal, unless someone is debugging.

    One file for all steps of a program: to switch a descriptor takes microseconds, and so a step may.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the log)

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Whatever is written to descriptor 2 inside, by any thread, goes to the log, which starts empty."""
        if debugging():
            yield
            return
        sys.stderr.flush()
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(0)
            self._file.truncate()
        terminal = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)

    def reason(self) -> str:
        """The message of its last error, such as `[method.cpp:746] Missing operator: ...`; "" if there is none."""
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        lines = [line.split("] ", 1)[1] for line in text.splitlines() if line.startswith("[") and "] " in line]
        wanted = [line for line in lines if "issing" in line or "rror" in line]
        return (wanted or lines or [""])[0].strip()


def first_line(error: Exception) -> str:
    """Of an error's text, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def why(log: RuntimeLog, error: Exception) -> str:
    """The reason in one line, as the runtime or else its Python binding gives it, and where the rest is."""
    return f"{log.reason() or first_line(error)}; --debug shows the runtime's log"
