"""Runs export.py the way a user does, for tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_export(*options: str, cwd: Path = ROOT, **kwargs) -> subprocess.CompletedProcess:  # type: ignore[no-untyped-def]
    """`python export.py` with the options; output captured as text."""
    command = [sys.executable, str(ROOT / "export.py"), *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)


_made: dict[tuple[str, ...], Path] = {}


def export_once(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Path:
    """Folder of the artifact with these options, exported at most once a session."""
    if options not in _made:
        out = tmp_path_factory.mktemp("artifact") / "out"
        done = run_export(*options, "--out", str(out))
        assert done.returncode == 0, done.stderr
        _made[options] = out
    return _made[options]
