"""arm64 Linux under qemu's user-mode emulation, from the package that would go onto a device: it starts with its own
loader and libraries. qemu:CPU chooses the CPU model (cortex-a53 has no dot product, max has i8mm)."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices.bundle import Bundle
from device_tests.devices.host import BUILD_TIMEOUT, ROOT, RUNNER
from device_tests.devices.local import LocalDevice, with_artifacts
from device_tests.devices.processes import last_line, run_command

EMULATOR, CPU = "qemu-aarch64-static", "cortex-a76"
PACKAGE = ROOT / "build" / "arm64" / "package"
LOADER = ("./ld-linux-aarch64.so.1", "--library-path", ".", f"./{RUNNER}")


class QemuDevice(LocalDevice):
    def __init__(self, cpu: str) -> None:
        super().__init__(f"qemu:{cpu}", "arm64-v8a", (EMULATOR, "-cpu", cpu))

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """Builds the package where its sources changed. Raises UserError with the remedy."""
        script = ROOT / "scripts" / "build_arm64.sh"
        done = run_command([script, PACKAGE], BUILD_TIMEOUT, cwd=ROOT, env={"PYTHON": sys.executable})
        if done.status:
            raise UserError(f"the arm64 package cannot be built ({last_line(done)})")
        return with_artifacts(Bundle.of_runner(PACKAGE, LOADER, self.abi), artifacts)


def find(name: str | None) -> list[QemuDevice]:
    if shutil.which(EMULATOR) is None:
        raise UserError(f"{EMULATOR} is missing: apt-get install qemu-user-static g++-aarch64-linux-gnu")
    if name is not None and not re.fullmatch(r"[a-z0-9-]+", name):
        raise UserError(f"{name!r} is no CPU model of {EMULATOR}: see `{EMULATOR} -cpu help`")
    return [QemuDevice(name or CPU)]
