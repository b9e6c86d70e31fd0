"""--device simulator[:NAME]: the Swift runner inside an iOS simulator of this Mac. It has not run on one yet.

A simulator has no Neural Engine and the Mac's processor: it checks results, and says nothing about a phone's speed. Its
processes see this Mac's file system, so that nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices import apple
from device_tests.devices.bundle import Bundle
from device_tests.devices.conditions import Conditions
from device_tests.devices.device import Completed, RunTimeout
from device_tests.devices.local import LocalDevice
from device_tests.devices.processes import run_command

ABI = "arm64-ios-simulator"
TRIPLE = f"arm64-apple-ios{apple.LEAST_IOS}.0-simulator"
BOOT_TIMEOUT, SHUTDOWN_TIMEOUT = 300.0, 60.0  # seconds; the first boot of a new simulator takes minutes
INSTALL_RUNTIME = "install one with xcodebuild -downloadPlatform iOS"


@dataclass(frozen=True)
class Simulator:
    """version: of iOS, such as "18.2"."""

    name: str
    udid: str
    version: str
    booted: bool


def simulators() -> list[Simulator]:
    """Those that can be booted, best first: booted ones, then the newest system, then iPhones. Raises UserError."""
    listed = apple.xcrun_json("simctl", "list", "--json", "devices", "available", remedy="open Xcode once to set it up")
    found = []
    for runtime, devices in listed["devices"].items():
        if version := re.search(r"\.iOS-(\d+)-(\d+)", runtime):
            found += [
                Simulator(d["name"], d["udid"], ".".join(version.groups()), d["state"] == "Booted") for d in devices
            ]
    usable = [one for one in found if _numbers(one.version) >= (apple.LEAST_IOS, 0)]
    if not usable:
        oldest = f" ({', '.join(sorted({one.version for one in found}))} only)" if found else ""
        raise UserError(f"there is no simulator with iOS {apple.LEAST_IOS} or later{oldest}: {INSTALL_RUNTIME}")
    return sorted(usable, key=lambda one: (one.booted, _numbers(one.version), one.name.startswith("iPhone")))[::-1]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def find(name: str | None) -> list[SimulatorDevice]:
    """The named one (name or UDID), else the best."""
    apple.require_mac()
    known = simulators()
    matching = [one for one in known if name in (None, one.name, one.udid)]
    if not matching:
        raise UserError(f"there is no simulator {name!r}: one of {', '.join(sorted({one.name for one in known}))}")
    return [SimulatorDevice(matching[0])]


class SimulatorDevice(LocalDevice):
    def __init__(self, simulator: Simulator) -> None:
        super().__init__(f"simulator:{simulator.name}", ABI)
        self.simulator = simulator
        self._booted_here = False

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """Builds the runner for the simulator. Raises UserError with the compiler's last line."""
        sdk = apple.xcrun("--sdk", "iphonesimulator", "--show-sdk-path").stdout.strip()
        return apple.runner_bundle(apple.build_runner(("--triple", TRIPLE, "--sdk", sdk)), self.abi, artifacts)

    def check(self, bundle: Bundle) -> None:
        super().check(bundle)
        apple.check_version(self.selector, self.simulator.version, list(bundle.artifacts))

    def place(self, source: Path, target: Path) -> None:
        apple.put(source, target)

    def push(self, bundle: Bundle) -> str:
        """Boots it if need be. Raises UserError where that fails or takes too long."""
        self._boot()
        return super().push(bundle)

    def run(self, bundle: Bundle, args: Sequence[str], timeout: float) -> Completed:
        """A process inside the simulator. Past its timeout simctl is ended; what that leaves running inside ends when
        the simulator is shut down."""
        folder = self._pushed()
        words = ["xcrun", "simctl", "spawn", self.simulator.udid, str(folder / bundle.command[0]), *bundle.command[1:]]
        return run_command([*words, *args], timeout, env={"SIMCTL_CHILD_ADAKV_FOLDER": str(folder)})

    def conditions(self) -> Conditions:
        version = self.simulator.version
        return Conditions(model=f"{self.simulator.name} simulator", abi=self.abi, os_build=f"iOS {version} simulator")

    def clean(self) -> None:
        super().clean()
        if self._booted_here:
            self._booted_here = False
            run_command(["xcrun", "simctl", "shutdown", self.simulator.udid], SHUTDOWN_TIMEOUT)

    def _boot(self) -> None:
        if self.simulator.booted or self._booted_here:
            return
        udid, remedy = self.simulator.udid, "start it once in the Simulator app, or xcrun simctl erase it"
        apple.xcrun("simctl", "boot", udid, remedy=remedy)
        self._booted_here = True
        try:
            apple.xcrun("simctl", "bootstatus", udid, timeout=BOOT_TIMEOUT, remedy=remedy)
        except RunTimeout:
            self.clean()
            raise UserError(f"{self.simulator.name} did not boot within {BOOT_TIMEOUT:.0f} s: {remedy}") from None
