"""This machine: the C++ runner built against the ExecuTorch wheel of the environment."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices.bundle import Bundle, BundleFile
from device_tests.devices.local import LocalDevice, parallel_jobs, with_artifacts
from device_tests.devices.processes import last_line, run_command
from export.device_bundle import ROOT, RUNNER
from export.folder import locked

BUILD = ROOT / "build" / "runner-host"
BUILD_TIMEOUT = 900.0  # seconds


class HostDevice(LocalDevice):
    def __init__(self) -> None:
        super().__init__("host", platform.machine())

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """Builds the runner where its sources changed. Raises UserError with the compiler's last line."""
        runner = build_runner()
        base = Bundle({RUNNER: BundleFile.of(runner, executable=True)}, (f"./{RUNNER}",), self.abi)
        return with_artifacts(base, artifacts)


def find(name: str | None) -> list[HostDevice]:
    if name is not None:
        raise UserError("there is one host: --device host")
    return [HostDevice()]


def executorch_sdk() -> str:
    """The folder of ExecuTorch's wheel, which has its headers and libraries. Raises UserError."""
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("executorch is missing from this environment: make venv")
    return spec.submodule_search_locations[0]


def build_runner() -> Path:
    """The runner of this machine, up to date; one build at a time."""
    configure = ["cmake", "-S", str(ROOT / "android"), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release"]
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(BUILD):
        for command in (
            [*configure, f"-DEXECUTORCH_ROOT={executorch_sdk()}"],
            ["cmake", "--build", str(BUILD), "--parallel", parallel_jobs()],
        ):
            done = run_command(command, BUILD_TIMEOUT)
            if done.status:
                raise UserError(f"the runner cannot be built ({last_line(done)}): see `{' '.join(command)}`")
    return BUILD / RUNNER
