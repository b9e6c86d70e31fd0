"""A folder that goes onto an Android device as it is: the runner and all that it needs, programs, hashes.

Two ways to get a runner. "loader": built here with Debian's cross compiler against ExecuTorch's arm64 wheel, with
glibc's loader and libraries beside it, started through that loader; needs no NDK and of the device only its kernel.
"ndk": a folder installed by the NDK build (android/README.md), started directly; how an app would be built.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from adakv_model.errors import UserError

ROOT = Path(__file__).parents[1]
RUNNER, LOADER = "adakv_runner", "ld-linux-aarch64.so.1"
PACKAGE = ROOT / "build" / "arm64" / "package"
LOADER_COMMAND = (f"./{LOADER}", "--library-path", ".", f"./{RUNNER}")
ABI = "arm64-v8a"
BUILD_TIMEOUT = 1200.0  # seconds


def loader_package(folder: Path = PACKAGE) -> Path:
    """The runner with its loader and libraries, built where sources changed. Raises UserError with the remedy."""
    script = ROOT / "scripts" / "build_arm64.sh"
    if not script.is_file():
        raise UserError("the arm64 runner is built from a checkout of this project: run this from one")
    try:
        done = subprocess.run(
            [script, folder],
            cwd=ROOT,
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"the arm64 runner took more than {BUILD_TIMEOUT:.0f} s to build") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
        raise UserError(f"the arm64 runner cannot be built: {lines[-1]}")
    return folder
