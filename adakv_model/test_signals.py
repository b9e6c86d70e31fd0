"""Signals that end a program, whatever ran when they came."""

from __future__ import annotations

import os
import signal

import pytest

from adakv_model.signals import ENDING, ended_by_signals


def call_back(number: int) -> None:
    """As C++ code calls Python, and a signal comes."""
    try:
        os.kill(os.getpid(), number)
    except SystemExit:
        raise RuntimeError("a C++ library caught an exception") from None


@pytest.mark.parametrize("number", ENDING)
def test_an_error_made_of_a_signal_still_ends_the_program(number: int) -> None:
    with pytest.raises(SystemExit) as end, ended_by_signals(), ended_by_signals():
        call_back(number)
    assert end.value.code == 128 + number


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="own"), ended_by_signals():
        raise RuntimeError("its own")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
