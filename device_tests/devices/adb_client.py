"""The `adb` command, one device, and an end to every call.

Plain `adb` rather than a Python client of its server (adbutils and others): the tool of the Android SDK is what a
person with a phone has installed and has authorised on it, it is kept in step with the devices by those who make both,
and a call that hangs is a process that can be ended. Its weakness is that old versions report success when the
connection breaks during a command, so `shell` asks for a mark at the end of the output and believes nothing without it.
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass

from adakv_model.errors import UserError
from device_tests.devices.device import Completed, DeviceLost, RunTimeout
from device_tests.devices.processes import last_line, run_command

ANSWER = 60.0  # seconds for anything that is quick on a working device
READY = "device"
REMEDIES = {
    "unauthorized": "unlock it and accept the question about USB debugging",
    "authorizing": "unlock it and accept the question about USB debugging",
    "offline": "reconnect its cable, or run `adb reconnect offline`",
    "connecting": "wait until `adb devices` lists it as `device`",
    "no permissions": "install the udev rules (apt-get install android-sdk-platform-tools-common) and reconnect it",
    "recovery": "start Android on it",
    "sideload": "start Android on it",
    "bootloader": "start Android on it",
}
_GONE = re.compile(
    r"device '?.*'? not found|device offline|no devices/emulators found|device unauthorized|protocol fault|"
    r"closed|\bEOF\b|connection reset|device still|failed to read copy response|couldn't read from device",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Listed:
    """One line of `adb devices`."""

    serial: str
    state: str

    @property
    def problem(self) -> str:
        """Why it cannot be used, with the remedy."""
        words = next((word for word in REMEDIES if self.state.startswith(word)), "")
        return f"{self.serial} is {words or self.state}: {REMEDIES.get(words, 'reconnect it')}"


def adb_command() -> str:
    """Raises UserError where adb is not installed."""
    found = shutil.which("adb")
    if found is None:
        raise UserError("adb is missing: apt-get install adb, or put Android's platform-tools on the PATH")
    return found


def list_devices(timeout: float = ANSWER) -> list[Listed]:
    """What the adb server sees; it is started where none runs. Raises UserError."""
    done = run_command([adb_command(), "devices"], timeout)
    if done.status:
        raise UserError(f"`adb devices` failed ({last_line(done)}): try `adb kill-server` and again")
    lines = (line.rsplit("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    return [Listed(serial, state.strip()) for serial, state in lines]


class AdbClient:
    """Calls to one device, by its serial."""

    def __init__(self, serial: str, answer: float = ANSWER) -> None:
        """answer: seconds after which a device that says nothing to a quick call is lost."""
        self.serial, self.answer = serial, answer

    def command(self, *words: str, timeout: float) -> Completed:
        """`adb -s SERIAL words`. Raises RunTimeout, UserError without adb; a failure is a status."""
        return run_command([adb_command(), "-s", self.serial, *words], timeout)

    def state(self) -> str:
        """As `adb devices` has it; "gone" where it is not listed, "silent" where the server does not answer."""
        try:
            return {one.serial: one.state for one in list_devices(self.answer)}.get(self.serial, "gone")
        except UserError:
            return "silent"

    def shell(self, script: str, timeout: float | None = None) -> Completed:
        """Run a script on the device, in its shell. It must not exit by itself: its status is its last command's.

        Raises DeviceLost where the end of it never came, or it took more than `timeout` seconds without one given;
        RunTimeout where one was.
        """
        mark = f"done-{secrets.token_hex(8)}"
        try:
            done = self.command(
                "shell", "-n", "-T", f"{script}\nprintf '\\n%s %s\\n' {mark} $?", timeout=timeout or self.answer
            )
        except RunTimeout:
            if timeout is not None:
                raise
            raise DeviceLost(f"{self.serial} did not answer within {self.answer:g} s: reconnect it") from None
        text, found, status = done.stdout.rpartition(f"\n{mark} ")
        if not found:
            raise self.lost(done)
        return Completed(int(status), text, done.stderr)

    def lost(self, done: Completed) -> UserError:
        """What a failed call means: the device is gone, or did what it says."""
        state = self.state()
        if state != READY:
            listed = Listed(self.serial, state)
            return DeviceLost(f"the connection to {self.serial} was lost; {listed.problem}")
        if not done.status or _GONE.search(done.stderr + done.stdout):
            return DeviceLost(f"the connection to {self.serial} was lost; it is back: run again, with --resume")
        return UserError(f"{self.serial}: {last_line(done)}")
