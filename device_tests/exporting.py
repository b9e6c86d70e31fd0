"""Runs export.py the way a user does, for tests; what several tests need is made once a run, whoever asks first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.folder import locked

ROOT = Path(__file__).parents[1]


def run_export(*options: str, cwd: Path = ROOT, **kwargs) -> subprocess.CompletedProcess:  # type: ignore[no-untyped-def]
    """`python export.py` with the options; output captured as text."""
    command = [sys.executable, str(ROOT / "export.py"), *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Folder `name` ("choices/folder") as `make` writes it, at most once a test run. Do not modify it: the workers of
    pytest-xdist share it, as their temporary folders have one parent."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    lock, made = folder.parent / ".lock", folder.parent / ".made"
    lock.mkdir(parents=True, exist_ok=True)
    with locked(lock):  # not its parent: an export locks that itself
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


def export_once(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Path:
    """Folder of the artifact with these options, exported at most once a test run."""

    def export(out: Path) -> None:
        done = run_export(*options, "--out", str(out))
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "_".join(("export", *options)) + "/out", export)
