"""The C++ programs of csrc/tests that time and trace kernels: built when needed, and run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adakv_model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "adakv_model" / "csrc" / "tests"
TOOLCHAIN = ROOT / "android" / "arm64-linux.cmake"


def require(tool: str, remedy: str) -> str:
    """Path of a command. Raises UserError with the remedy if there is none."""
    path = shutil.which(tool)
    if path is None:
        raise UserError(f"{tool} is missing: {remedy}")
    return path


def build(target: str, folder: Path, *options: str) -> Path:
    """The program `target` of csrc/tests, compiled in release mode in `folder`. Raises UserError with the compiler's
    last lines."""
    cmake = require("cmake", "apt-get install cmake g++")
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", str(SOURCE), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *options]
    for command in (configure, [cmake, "--build", str(folder), "--target", target, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            raise UserError(f"{target} cannot be built in {folder}: {lines[0].strip() if lines else 'cmake failed'}")
    return folder / target


def run_benchmark(program: Path, **options: Sequence[object] | int) -> list[dict[str, Any]]:
    """Cells of kernel_benchmark. Raises UserError if it fails."""
    words = [
        f"{name}={','.join(map(str, value)) if isinstance(value, Sequence) else value}"
        for name, value in options.items()
    ]
    done = subprocess.run([str(program), *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{program.name} failed: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return [json.loads(line) for line in done.stdout.splitlines()]
