"""The Apple harness off a Mac: it says so in one line, and reads the runner's protocol."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from adakv_model.errors import UserError
from device_tests.apple import PACKAGE, parse_lines
from device_tests.exporting import ROOT


@pytest.mark.skipif(platform.system() == "Darwin", reason="this is a Mac: the harness would run")
def test_off_a_mac_it_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "device_tests.apple", "--artifact", "anywhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert "use a Mac with Xcode 16" in lines[0]


def test_lines_of_the_runner() -> None:
    lines = '{"token":12}\n{"token":7}\n{"summary":{"tier_counts":[0,1],"decode_ms_median":9.5}}\n'
    assert parse_lines(lines) == ([12, 7], {"tier_counts": [0, 1], "decode_ms_median": 9.5})
    with pytest.raises(UserError, match="ended without a summary"):
        parse_lines('{"token":12}\n')


def test_the_runner_documents_the_options_the_harness_passes() -> None:
    source = (PACKAGE / "Sources" / "adakv-run" / "main.swift").read_text(encoding="utf-8")
    for option in ("--artifact", "--max-new-tokens", "--units", "--logits"):
        assert f'case "{option}"' in source
