"""The files of a bundle on an Android device: what is there, by content, and sending what is not.

Files go first to a folder of their own, each named by its hash, where the device's own sha256sum must confirm them,
then by a rename to their places, so that a broken connection leaves nothing half there. A list on the device keeps
hash, size and time of what was confirmed; a file whose size or time changed since is hashed again on the device, and
sent only if that does not match either.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adakv_model.errors import UserError
from device_tests.devices import adb_scripts
from device_tests.devices.adb_client import READY, AdbClient
from device_tests.devices.bundle import Bundle, BundleFile
from device_tests.devices.device import Completed, DeviceLost, RunTimeout

SLOWEST = 1e6  # bytes a second; a slower link is not worth waiting for
LONG = 10  # times the client's patience with quick calls, for hashing and copying


@dataclass(frozen=True)
class Entry:
    """A file that is there. when: seconds of its last change; sha256 "" where only hashing would tell."""

    sha256: str
    size: int
    when: int


@dataclass
class Found:
    """free: bytes, None if the device does not say. files: in the list, and unchanged since if the bundle has them.
    unsure: of the bundle, there with the right size, and not as listed."""

    free: int | None
    files: dict[str, Entry]
    unsure: dict[str, Entry]

    def missing(self, bundle: Bundle) -> dict[str, BundleFile]:
        known = {name: entry.sha256 for name, entry in self.files.items()}
        return {name: file for name, file in bundle.files.items() if known.get(name) != file.sha256}


class AdbFiles:
    def __init__(self, client: AdbClient, slowest: float = SLOWEST) -> None:
        self.client, self.slowest = client, slowest

    def find(self, bundle: Bundle) -> Found:
        """Raises UserError for names that are not relative and printable."""
        for name in bundle.files:
            parts = name.split("/")
            if not name.isprintable() or name.startswith("/") or not all(parts) or {".", ".."} & set(parts):
                raise UserError(f"{name!r} is no name for a file on a device: rename it")
        done = self.must(adb_scripts.state(bundle.files))
        listed_text, _, there_text = done.stdout.partition(adb_scripts.SECTION)
        first, *lines = listed_text.splitlines() or [""]
        columns = first.split()
        free = int(columns[-3]) * 1024 if len(columns) >= 4 and columns[-3].isdigit() else None
        listed = _listed(lines)
        found = Found(free, {name: entry for name, entry in listed.items() if name not in bundle.files}, {})
        for name, (size, when) in _sizes(there_text).items():
            entry = listed.get(name)
            if entry is not None and (entry.size, entry.when) == (size, when):
                found.files[name] = entry
            elif name in bundle.files and size == bundle.files[name].size:
                found.unsure[name] = Entry("", size, when)
        return found

    def push(self, bundle: Bundle) -> list[str]:
        """Send what is missing; its names. Raises UserError, and then nothing in place has changed."""
        found = self.find(bundle)
        if found.unsure:
            hashes = self._hashes(found.unsure)
            for name, entry in found.unsure.items():
                found.files[name] = Entry(hashes.get(name, ""), entry.size, entry.when)
        wanted = found.missing(bundle)
        if wanted:
            try:
                self._send({file.sha256: file for file in wanted.values()})
                installed = self.must(adb_scripts.install({n: (f.sha256, f.executable) for n, f in wanted.items()}))
            except DeviceLost:
                raise
            except UserError:
                with suppress(UserError):  # the next push does it too
                    self.client.shell(adb_scripts.FORGET_INCOMING)
                raise
            for name, (size, when) in _sizes(installed.stdout).items():
                found.files[name] = Entry(wanted[name].sha256, size, when)
        if wanted or found.unsure:
            self.must(
                adb_scripts.record_hashes(
                    f"{entry.sha256} {entry.size} {entry.when} {name}" for name, entry in sorted(found.files.items())
                )
            )
        return list(wanted)

    def must(self, script: str, timeout: float | None = None) -> Completed:
        """A script that works on any device with room. Raises UserError with what it says where it does not."""
        try:
            done = self.client.shell(script, timeout)
        except RunTimeout:
            raise DeviceLost(f"{self.client.serial} did not answer within {timeout:g} s: reconnect it") from None
        if done.status:
            reason = (done.stderr.strip().splitlines() or [f"status {done.status}"])[-1]
            raise UserError(self.no_space() if _is_full(reason) else f"{self.client.serial}: {reason}")
        return done

    def no_space(self, needed: int | None = None, free: int | None = None) -> str:
        """The message. needed, free: bytes, where known."""
        figures = [f"{needed / 1e6:.0f} MB needed"] if needed is not None else []
        figures += [f"{free / 1e6:.0f} MB free"] if free is not None else []
        detail = f" ({', '.join(figures)})" if figures else ""
        serial = self.client.serial
        return (
            f"no space on {serial}{detail}: free some; `adb -s {shlex.quote(serial)} shell rm -r {adb_scripts.ROOT}`"
            " removes what earlier runs left"
        )

    def _send(self, files: dict[str, BundleFile]) -> None:
        """Hash -> file, to the incoming folder, each under its hash."""
        size = sum(file.size for file in files.values())
        with tempfile.TemporaryDirectory(prefix="adakv-push-") as staging:
            sources = [Path(staging) / digest for digest in files]
            for source, file in zip(sources, files.values(), strict=True):
                source.symlink_to(file.path.resolve())
            target = f"{adb_scripts.ROOT}/{adb_scripts.INCOMING}/"
            try:
                limit = self.client.answer + size / self.slowest
                done = self.client.command("push", *map(str, sources), target, timeout=limit)
            except RunTimeout:
                if self.client.state() != READY:
                    raise DeviceLost(f"the connection to {self.client.serial} was lost during a transfer") from None
                raise UserError(
                    f"the link to {self.client.serial} is slower than {self.slowest / 1e6:g} MB/s:"
                    " use another cable or port"
                ) from None
        if done.status:
            raise UserError(self.no_space(size)) if _is_full(done.stdout + done.stderr) else self.client.lost(done)
        arrived = self._hashes(files, adb_scripts.INCOMING)
        damaged = [file.path.name for digest, file in files.items() if arrived.get(digest) != digest]
        if damaged:
            raise UserError(f"{', '.join(damaged)} arrived damaged on {self.client.serial}: use another cable or port")

    def _hashes(self, names: dict[str, Entry] | dict[str, BundleFile], folder: str = "") -> dict[str, str]:
        """By the device itself: name -> SHA-256."""
        done = self.must(adb_scripts.hashes(names, folder), LONG * self.client.answer)
        return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", done.stdout, re.MULTILINE)}


def _listed(lines: list[str]) -> dict[str, Entry]:
    """From the lines of the list; what is nothing of ours is left out."""
    matches = (re.fullmatch(r"([0-9a-f]{64}) (\d{1,18}) (\d{1,18}) (.+)", line) for line in lines)
    return {m[4]: Entry(m[1], int(m[2]), int(m[3])) for m in matches if m}


def _sizes(text: str) -> dict[str, tuple[int, int]]:
    """From stat's lines: name -> bytes, time of change."""
    return {name: (int(s), int(w)) for s, w, name in re.findall(r"^(\d{1,18}) (\d{1,18}) (.+)$", text, re.MULTILINE)}


def _is_full(text: str) -> bool:
    return "no space" in text.lower() or "quota" in text.lower()
