"""arm64 Linux under qemu's user-mode emulation, from the package that would go onto a device: it starts with its own
loader and libraries. qemu:CPU chooses the CPU model (cortex-a53 has no dot product, max has i8mm)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices.bundle import Bundle
from device_tests.devices.local import EMULATOR, LocalDevice, with_artifacts
from export.device_bundle import ABI, runner_folder

CPU = "cortex-a76"


def android_runner(ndk: Path | None = None) -> Bundle:
    """The runner for arm64: with its own loader and libraries, or the folder of an NDK build. Raises UserError."""
    folder, command = runner_folder(ndk)
    return Bundle.of_runner(folder, command, ABI)


class QemuDevice(LocalDevice):
    def __init__(self, cpu: str) -> None:
        super().__init__(f"qemu:{cpu}", ABI, (EMULATOR, "-cpu", cpu))

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """Builds the package where its sources changed. Raises UserError with the remedy."""
        return with_artifacts(android_runner(), artifacts)


def find(name: str | None) -> list[QemuDevice]:
    if shutil.which(EMULATOR) is None:
        raise UserError(f"{EMULATOR} is missing: apt-get install qemu-user-static g++-aarch64-linux-gnu")
    if name is not None and not re.fullmatch(r"[a-z0-9-]+", name):
        raise UserError(f"{name!r} is no CPU model of {EMULATOR}: see `{EMULATOR} -cpu help`")
    return [QemuDevice(name or CPU)]
