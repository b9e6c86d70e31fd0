"""A tiny checkpoint and its artifact, made once a test run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adakv_model.checkpoints.testing_checkpoints import SMALL, write_folder, write_tokenizer
from adakv_model.checkpoints.weights import draw_weights
from device_tests.exporting import made_once


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in Hugging Face form, with a tokenizer."""

    def make(folder: Path) -> None:
        write_tokenizer(write_folder(folder, draw_weights(SMALL, 0)))

    return made_once(tmp_path_factory, "front-checkpoint/small", make)


@pytest.fixture(scope="session")
def artifact(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported through optimum-cli, from a TOML file and flags."""

    def make(out: Path) -> None:
        config = out.with_suffix(".toml")
        config.write_text("context = 64\nwindow = 8\n", encoding="utf-8")
        words = ["export", "adakv", "--checkpoint", str(folder), "--config", str(config), "--out", str(out)]
        program = Path(sys.executable).parent / "optimum-cli"
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "bookkeeping" in done.stderr, "the default budget exports, and what it went to is shown"

    return made_once(tmp_path_factory, "front-artifacts/tiny", make)
