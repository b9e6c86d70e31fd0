"""Android phones over adb: a transport of everything under /data/local/tmp/adakv (adb_files.py, adb_scripts.py).

One session a device: a lock file of this machine keeps a second one out, so a recorded process that still lives when a
run starts is left over from a session that lost its device, and only such a one, or that of this session, is ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO

from adakv_model.errors import UserError
from device_tests.devices import adb_scripts, android_conditions
from device_tests.devices.adb_client import READY, AdbClient, list_devices
from device_tests.devices.adb_files import LONG, SLOWEST, AdbFiles
from device_tests.devices.bundle import Bundle
from device_tests.devices.conditions import Conditions
from device_tests.devices.device import Completed, RunTimeout
from device_tests.devices.local import with_artifacts
from device_tests.devices.qemu import android_runner

log = logging.getLogger(__name__)

ROOM = 16 << 20  # bytes that runs may write
CANNOT_START = (126, 127)  # a shell's statuses for a program that it cannot execute or find
NOT_FOR_THIS_CPU = ": not executable: "  # Android's shell says that with status 1


class AdbDevice:
    kind = "adb"

    def __init__(self, client: AdbClient, slowest: float = SLOWEST) -> None:
        """slowest: bytes a second of a link that is waited for."""
        self.client, self.files = client, AdbFiles(client, slowest)
        self.sent: list[str] = []  # names of the files that the last push sent
        self._lock: IO[str] | None = None

    @property
    def serial(self) -> str:
        return self.client.serial

    @property
    def selector(self) -> str:
        return f"adb:{self.serial}"

    @property
    def emulated(self) -> bool:
        return android_conditions.is_emulated(self._first_look)

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """ADAKV_ANDROID_RUNNER names the folder of an NDK build; without it the runner brings its own loader."""
        ndk = os.environ.get("ADAKV_ANDROID_RUNNER")
        return with_artifacts(android_runner(Path(ndk) if ndk else None), artifacts)

    def check(self, bundle: Bundle) -> None:
        look = self._first_look
        abis = android_conditions.abis(look)
        if bundle.abi and bundle.abi not in abis:
            raise UserError(
                f"{self.serial} runs {', '.join(abis) or 'no known ABI'} and the runner is for {bundle.abi}:"
                " use another device, or build a runner for it (android/README.md)"
            )
        missing = sorted(set(bundle.features) - set(android_conditions.parse(look).cpu_features))
        if missing:
            raise UserError(
                f"the CPU of {self.serial} has no {', '.join(missing)}, which the runner needs:"
                " use another device, or build the runner without it (android/README.md)"
            )
        found = self.files.find(bundle)
        needed = ROOM + sum(file.size for file in found.missing(bundle).values())
        if found.free is not None and found.free < needed:
            raise UserError(self.files.no_space(needed, found.free))

    def push(self, bundle: Bundle) -> str:
        self._take()
        self.sent = self.files.push(bundle)
        return adb_scripts.ROOT

    def run(self, bundle: Bundle, args: Sequence[str], timeout: float) -> Completed:
        self._take()
        try:
            done = self.client.shell(adb_scripts.launch([*bundle.command, *args]), timeout)
        except RunTimeout:
            self.client.shell(adb_scripts.END_RECORDED)
            raise RunTimeout(f"the run on {self.serial} went past {timeout:g} s and was ended") from None
        if done.status in CANNOT_START or (done.status and NOT_FOR_THIS_CPU in done.stderr):
            reason = (done.stderr.strip().splitlines() or [f"status {done.status}"])[-1]
            raise UserError(f"the runner does not start on {self.serial} ({reason}): check its ABI, and push again")
        return done

    def pull(self, remote: str, local: Path) -> None:
        there = f"{adb_scripts.ROOT}/{remote}"
        if self.client.shell(f"[ -e {shlex.quote(there)} ]").status:
            raise UserError(f"{self.selector} has no {remote}: the run wrote none")
        local.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=local.parent) as staging:
            part = Path(staging) / "part"
            done = self.client.command("pull", there, str(part), timeout=LONG * self.client.answer)
            if done.status or not part.exists():
                raise self.client.lost(done)
            if part.is_dir():
                shutil.copytree(part, local, dirs_exist_ok=True)
            else:
                os.replace(part, local)

    def conditions(self) -> Conditions:
        return android_conditions.parse(self._look())

    def clean(self) -> None:
        if self._lock is None:
            return
        try:
            with suppress(UserError):
                self.client.shell(adb_scripts.CLEAN)
        finally:
            self._lock.close()
            self._lock = None

    def _look(self) -> dict[str, str]:
        return android_conditions.sections(self.client.shell(adb_scripts.conditions()).stdout)

    @cached_property
    def _first_look(self) -> dict[str, str]:
        """For what does not change: ABI, features, whether it is an emulator."""
        return self._look()

    def _take(self) -> None:
        """Raises UserError where another session has this device."""
        if self._lock is not None:
            return
        name = hashlib.sha256(self.serial.encode(errors="surrogateescape")).hexdigest()[:16]
        lock = (Path(tempfile.gettempdir()) / f"adakv-adb-{os.getuid()}-{name}.lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise UserError(f"{self.serial} is in use by another run on this machine: wait for it") from None
        self._lock = lock


def find(name: str | None) -> list[AdbDevice]:
    """Every phone that is ready, or the one of that serial; ANDROID_SERIAL chooses where none is named.

    Raises UserError with the remedy: none there, or none ready.
    """
    name = name or os.environ.get("ANDROID_SERIAL") or None
    listed = list_devices()
    chosen = listed if name is None else [one for one in listed if one.serial == name]
    if name is not None and not chosen:
        there = ", ".join(one.serial for one in listed) or "none"
        raise UserError(f"adb lists no device {name!r} (it lists {there}): connect it, or choose another")
    ready = [one for one in chosen if one.state == READY]
    if not chosen:
        raise UserError("no phone: connect one by cable with USB debugging on, until `adb devices` lists it")
    if not ready:
        raise UserError("; ".join(one.problem for one in chosen))
    for one in chosen:
        if one not in ready:
            log.warning("left out: %s", one.problem)
    return [AdbDevice(AdbClient(one.serial)) for one in ready]
