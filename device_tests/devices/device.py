"""The protocol that every transport implements.

An order that always works: `check(bundle)`, `push(bundle)`, `run(bundle, args, timeout)` any number of times,
`pull(...)` what a run wrote, `clean()`. Every failure a person can mend is a UserError with the remedy; every call ends
within a timeout of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adakv_model.errors import UserError
from device_tests.devices.bundle import Bundle
from device_tests.devices.conditions import Conditions


class DeviceLost(UserError):
    """The device went away (unplugged, offline, shut down). What was finished stays valid: --resume goes on."""


class RunTimeout(UserError):
    """A command ran past its timeout; its process was ended on the device, no other one was."""


@dataclass(frozen=True)
class Completed:
    """A command that ended by itself. status: its exit status; 128 + n if signal n ended it (137: out of memory)."""

    status: int
    stdout: str
    stderr: str


class Device(Protocol):
    """selector: as given to --device, complete ("host", "qemu", "adb:SERIAL", "simulator:NAME", ...);
    kind: the word before the colon; emulated: the speed says nothing about a phone (host, qemu, simulator, an emulated
    adb device)."""

    @property
    def selector(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def emulated(self) -> bool: ...

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """The runner for this device, built or found, with these artifact folders. Raises UserError with the remedy."""
        ...

    def check(self, bundle: Bundle) -> None:
        """Raises UserError where it cannot run here: wrong ABI, a missing CPU feature, no space."""
        ...

    def push(self, bundle: Bundle) -> str:
        """Copy the files that are not there yet with the same hash; the remote folder's name. Raises UserError."""
        ...

    def run(self, bundle: Bundle, args: Sequence[str], timeout: float) -> Completed:
        """`bundle.command` with args, working folder the remote one, which has an empty or old out/ in it.

        Raises DeviceLost, RunTimeout (after `timeout` seconds), UserError where it cannot be started. A runner that
        fails is no exception: see `status`.
        """
        ...

    def pull(self, remote: str, local: Path) -> None:
        """Copy one file or folder, named relative to the remote folder. Raises UserError if it is not there."""
        ...

    def conditions(self) -> Conditions:
        """Now. Raises DeviceLost."""
        ...

    def clean(self) -> None:
        """End only what this object started, remove only what runs wrote; pushed files stay for the next time."""
        ...
