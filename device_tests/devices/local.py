"""Devices that are processes of this machine: the host itself, and arm64 under user-mode emulation."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices import sysfs
from device_tests.devices.bundle import IN, OUT, Bundle
from device_tests.devices.conditions import Conditions
from device_tests.devices.device import Completed
from device_tests.devices.processes import run_command

EMULATOR = "qemu-aarch64-static"  # runs arm64 programs


class LocalDevice:
    """The "remote" folder is one of links, so that nothing is copied; it goes with `clean`."""

    emulated = True  # of a phone: neither a server nor an emulator says anything about its speed

    def __init__(self, selector: str, abi: str, prefix: Sequence[str] = ()) -> None:
        """prefix: words before the bundle's command, such as an emulator's."""
        self.selector, self.abi, self.prefix = selector, abi, tuple(prefix)
        self._folder: Path | None = None

    @property
    def kind(self) -> str:
        return self.selector.partition(":")[0]

    def check(self, bundle: Bundle) -> None:
        """Raises UserError for a runner of another machine."""
        if bundle.abi not in ("", self.abi):
            raise UserError(f"the bundle is for {bundle.abi} and {self.selector} runs {self.abi}: build one for it")

    def push(self, bundle: Bundle) -> str:
        """Link the files; the folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="adakv-"))
        for name in (IN, OUT):
            (self._folder / name).mkdir(exist_ok=True)
        for name, file in bundle.files.items():
            link = self._folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            self.place(file.path, link)
        return str(self._folder)

    def place(self, source: Path, target: Path) -> None:
        """Let the folder's `target` be the file `source`."""
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve())

    def run(self, bundle: Bundle, args: Sequence[str], timeout: float) -> Completed:
        return run_command([*self.prefix, *bundle.command, *args], timeout, cwd=self._pushed())

    def pull(self, remote: str, local: Path) -> None:
        copy_out(self._pushed() / remote, local, f"{self.selector} has no {remote}")

    def conditions(self) -> Conditions:
        files = sysfs.read_local()
        total, available = sysfs.memory(files)
        return Conditions(
            model=sysfs.cpu_model(files) or platform.machine(),
            soc=sysfs.cpu_model(files),
            abi=self.abi,
            os_build=platform.platform(),
            cpu_features=sysfs.cpu_features(files),
            cores=sysfs.cores(files),
            thermal=sysfs.thermal(files),
            memory_total=total,
            memory_available=available,
            load=sysfs.load(files),
        )

    def clean(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _pushed(self) -> Path:
        if self._folder is None:
            raise UserError(f"nothing was pushed to {self.selector} yet")
        return self._folder


def copy_out(source: Path, local: Path, missing: str) -> None:
    """A file, or a folder's content, to where `pull` shall put it. missing: beginning of the UserError without one."""
    if not source.exists():
        raise UserError(f"{missing}: the run wrote none")
    if source.is_dir():
        shutil.copytree(source, local, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, local)


def with_artifacts(bundle: Bundle, artifacts: Sequence[Path]) -> Bundle:
    """The bundle and the program of each artifact, which is all that the C++ runner reads."""
    for folder in artifacts:
        bundle = bundle.with_artifact(folder)
    return bundle


def parallel_jobs() -> str:
    """For builds: as many as there are cores, at most two where ADAKV_JOBS says nothing."""
    return os.environ.get("ADAKV_JOBS") or str(min(2, os.cpu_count() or 1))
