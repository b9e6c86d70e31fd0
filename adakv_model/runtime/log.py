"""The runtime's log: written from C++, a dozen lines where one is wanted."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from adakv_model.errors import debugging, first_line


class RuntimeLog:
    """Keeps the runtime's chatter (CPU probing, error details) off the terminal, unless someone is debugging.

    One file for all steps of a program: to switch a descriptor takes microseconds, and so a step may.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the log)
        # The binding sends some of it through sys.stderr, which need not be descriptor 2.
        self._stream = io.TextIOWrapper(self._file, encoding="utf-8", errors="replace", write_through=True)

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Whatever is written to standard error inside, by any thread, goes to the log, which starts empty."""
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
            with redirect_stderr(self._stream):
                yield
        finally:
            self._file.flush()
            os.dup2(terminal, 2)
            os.close(terminal)

    def reason(self) -> str:
        """The message of its last error, such as `[method.cpp:746] Missing operator: ...`; "" if there is none."""
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        lines = [line.split("] ", 1)[1] for line in text.splitlines() if line.startswith("[") and "] " in line]
        wanted = [line for line in lines if "issing" in line or "rror" in line]
        return (wanted or lines or [""])[0].strip()


def why(log: RuntimeLog, error: Exception) -> str:
    """The reason in one line, as the runtime or else its Python binding gives it, and where the rest is."""
    return f"{log.reason() or first_line(error)}; --debug shows the runtime's log"
