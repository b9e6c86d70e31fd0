"""A folder that goes onto an Android device as it is: the runner with all that it needs, programs, hashes.

There are two ways to a runner. With its own loader: built here by Debian's cross compiler against ExecuTorch's arm64
wheel, glibc's loader and libraries beside it, started through that loader; it needs no NDK, and of the device only its
kernel. With the NDK: the folder that the NDK build installed (android/README.md), started directly, as an app would be.

The folder has the layout that device_tests.devices.bundle describes, and more: bundle.json (command, ABI, files with
hashes), SHA256SUMS (for `sha256sum -c` on the device) and run.sh (starts the runner from any working folder).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from adakv_model.digest import ID_DIGITS
from adakv_model.errors import UserError
from adakv_model.runtime.artifact import Artifact
from export.artifact import describe
from export.folder import atomic_folder

ROOT = Path(__file__).parents[1]
RUNNER, LOADER = "adakv_runner", "ld-linux-aarch64.so.1"
LOADER_COMMAND = (f"./{LOADER}", "--library-path", ".", f"./{RUNNER}")
NDK_COMMAND = (f"./{RUNNER}",)
PACKAGE = ROOT / "build" / "arm64" / "package"
ABI, EM_AARCH64 = "arm64-v8a", 183
BUILD_TIMEOUT = 1200.0  # seconds

FORMAT = "adakv-bundle-1"
DESCRIPTION, SUMS, START = "bundle.json", "SHA256SUMS", "run.sh"


def write_device_bundle(artifacts: Sequence[Path], out: Path, runner: Path | None = None) -> dict[str, object]:
    """Write the folder `out` (replacing an earlier one) for these artifacts; its description, as in bundle.json.

    runner: a folder of the NDK build, instead of the runner with its own loader. Raises UserError with the remedy.
    """
    source, command = runner_folder(runner)
    with atomic_folder(out, DESCRIPTION) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        programs = {}
        for one in artifacts:
            artifact = Artifact(one)
            digest = str(describe(artifact.program)["sha256"])
            place = folder / "artifacts" / digest[:ID_DIGITS]
            place.mkdir(parents=True)
            shutil.copyfile(artifact.program, place / artifact.program.name)
            programs[digest[:ID_DIGITS]] = {"model": artifact.manifest["model"]["name"], "sha256": digest}
        (folder / START).write_text(
            f"#!/system/bin/sh\n# sh {START} OPTIONS: the runner with these options, from its own folder.\n"
            f'case $0 in */*) cd "${{0%/*}}" ;; esac\nexec {shlex.join(command)} "$@"\n',
            encoding="utf-8",
        )
        (folder / START).chmod(0o755)
        files = {
            path.relative_to(folder).as_posix(): {**describe(path), "executable": bool(path.stat().st_mode & 0o100)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        description: dict[str, object] = {
            "format": FORMAT,
            "abi": ABI,
            "command": list(command),
            "artifacts": programs,
            "files": files,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        (folder / SUMS).write_text(
            "".join(f"{file['sha256']}  {name}\n" for name, file in files.items()), encoding="utf-8"
        )
    return description


def runner_folder(ndk: Path | None = None) -> tuple[Path, tuple[str, ...]]:
    """Where the runner and its libraries are, and how it starts there. Raises UserError with the remedy."""
    if ndk is None:
        return loader_package(), LOADER_COMMAND
    program = ndk / RUNNER
    try:
        with program.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise UserError(
            f"cannot read {program} ({error.strerror}): name the folder that `cmake --install` wrote"
            " (android/README.md)"
        ) from error
    if head[:4] != b"\x7fELF" or struct.unpack_from("<H", head, 18)[0] != EM_AARCH64:
        raise UserError(f"{program} is not for arm64: build it with -DANDROID_ABI={ABI} (android/README.md)")
    return ndk, LOADER_COMMAND if (ndk / LOADER).is_file() else NDK_COMMAND


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
            stdin=subprocess.DEVNULL,
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
