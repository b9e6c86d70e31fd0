"""The runtime's log stays off the terminal unless someone is debugging."""

from __future__ import annotations

import os

import pytest

from adakv_model.errors import DEBUG
from adakv_model.runtime.log import RuntimeLog, why

LOG = b"I 00:00 executorch:cpuinfo\n[method.cpp:746] Missing operator: [0] adakv::attend.out\n[method.cpp:1001] then\n"


def test_what_the_runtime_writes_is_kept_and_its_error_found(capfd: pytest.CaptureFixture[str]) -> None:
    log = RuntimeLog()
    with log.captured():
        os.write(2, LOG)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    assert log.reason() == "Missing operator: [0] adakv::attend.out"
    with log.captured():
        pass
    assert log.reason() == "", "every capture starts empty"
    assert why(log, RuntimeError("0x12\nmore")).startswith("0x12; ")


def test_the_terminal_comes_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with RuntimeLog().captured():
            os.write(2, LOG)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_with_debug_all_of_it_is_shown(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "1")
    with RuntimeLog().captured():
        os.write(2, LOG)
    assert capfd.readouterr().err.encode() == LOG
