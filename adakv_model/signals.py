"""Signals that end a program: nothing that `finally` and `with` would do is left undone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
_came: list[int] = []


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, with the usual exit status; an ignored one (nohup) stays so.

    Even if the signal came while C++ code called Python, which makes an error of its own of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers can only be set in the main thread
        return

    def end(number: int, frame: FrameType | None) -> None:
        _came.append(number)
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in ENDING}
    replaced = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    except Exception as error:
        if _came:
            raise SystemExit(128 + _came[0]) from error
        raise
    finally:
        for number in replaced:
            signal.signal(number, before[number])
        if replaced:  # the outermost block
            _came.clear()
