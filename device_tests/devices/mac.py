"""--device mac: the Swift runner on this Mac. It has not run on one yet."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices import apple
from device_tests.devices.bundle import Bundle
from device_tests.devices.conditions import Conditions, Core
from device_tests.devices.local import LocalDevice
from device_tests.devices.processes import run_command

FACTS = ("machdep.cpu.brand_string", "hw.model", "hw.memsize", "hw.logicalcpu")
LEAST_MACOS = 15


def find(name: str | None) -> list[MacDevice]:
    if name is not None:
        raise UserError("there is one Mac: --device mac")
    apple.require_mac()
    return [MacDevice()]


class MacDevice(LocalDevice):
    def __init__(self) -> None:
        super().__init__("mac", f"macos-{platform.machine()}")

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """Builds the runner. Raises UserError with the compiler's last line."""
        return apple.runner_bundle(apple.build_runner(), self.abi, artifacts)

    def check(self, bundle: Bundle) -> None:
        super().check(bundle)
        version = platform.mac_ver()[0]
        if int(version.partition(".")[0] or 0) < LEAST_MACOS:
            raise UserError(f"this is macOS {version} and packages with states need {LEAST_MACOS}: update it")
        apple.check_version("this Mac", version, list(bundle.artifacts))

    def place(self, source: Path, target: Path) -> None:
        apple.put(source, target)

    def conditions(self) -> Conditions:
        facts = {name: run_command(["sysctl", "-n", name], 10.0).stdout.strip() for name in FACTS}
        cores = facts["hw.logicalcpu"]
        memory = facts["hw.memsize"]
        return Conditions(
            model=facts["hw.model"] or platform.machine(),
            soc=facts["machdep.cpu.brand_string"] or None,
            abi=self.abi,
            os_build=run_command(["sw_vers", "-buildVersion"], 10.0).stdout.strip() or None,
            cores=tuple(Core(index) for index in range(int(cores))) if cores.isdecimal() else (),
            memory_total=int(memory) if memory.isdecimal() else None,
        )
