"""What an export shows while it runs."""

from __future__ import annotations

import io

import pytest

from adakv_model.terminal import make_console
from export import run


def test_a_log_names_a_stage_when_it_starts_and_its_time_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(run, "console", make_console(file=log))
    with run.stages(2) as stage:
        with stage("quantize weights"):
            assert log.getvalue() == "  quantize weights ...\n"
        assert log.getvalue().splitlines()[1].startswith("  quantize weights  ")
        with pytest.raises(ValueError, match="no"), stage("trace"):
            raise ValueError("no")
    assert log.getvalue().endswith("  trace ...\n")
