"""--device ios[:UDID]: the chat app on an iPhone or iPad, launched with a run's words. It has not run on one yet.

The app works in its Documents folder and writes what the runner prints to files there, because a phone's console is not
to be relied on. ADAKV_TEAM names the Apple developer team that signs it.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from adakv_model.errors import UserError
from device_tests.devices import apple
from device_tests.devices.bundle import ARTIFACTS, IN, OUT, Bundle
from device_tests.devices.conditions import Conditions
from device_tests.devices.device import Completed, DeviceLost, RunTimeout
from device_tests.devices.local import copy_out
from device_tests.devices.processes import last_line, run_command

APP, APP_ID = "AdaKVChat", "org.adakv.chat"
PROJECT = apple.PACKAGE / "Chat.swiftpm"
DOCUMENTS = "Documents"  # of the app's container: the remote folder
MARK = "complete"  # in an artifact's folder, pushed last
COPY_TIMEOUT, INSTALL_TIMEOUT = 900.0, 300.0  # seconds
KILLED = 137
CONNECT = "connect it with a cable, unlock it, trust this Mac, and switch on Settings > Privacy > Developer Mode"


@dataclass(frozen=True)
class Phone:
    """As devicectl lists it. identifier: devicectl's own; version: of iOS."""

    identifier: str
    udid: str
    name: str
    model: str
    soc: str | None
    version: str
    build: str | None


def devicectl(*words: str | Path, timeout: float = apple.QUERY_TIMEOUT, remedy: str = CONNECT) -> Any:
    """The "result" of a devicectl command. Raises UserError."""
    with apple.answer_file() as answer:
        apple.xcrun("devicectl", *words, "--json-output", answer, timeout=timeout, remedy=remedy)
        try:
            return json.loads(answer.read_text(encoding="utf-8"))["result"]
        except (OSError, ValueError, KeyError):
            raise UserError(f"devicectl {words[0]} gave no result: update Xcode") from None


def phones() -> list[Phone]:
    """Paired iPhones and iPads. Raises UserError if there is none."""
    found = []
    for one in devicectl("list", "devices")["devices"]:
        hardware, device = one.get("hardwareProperties", {}), one.get("deviceProperties", {})
        if hardware.get("platform") == "iOS" and one.get("connectionProperties", {}).get("pairingState") == "paired":
            found.append(
                Phone(
                    one["identifier"],
                    hardware.get("udid", one["identifier"]),
                    device.get("name", ""),
                    hardware.get("marketingName") or hardware.get("productType") or "iOS device",
                    (hardware.get("cpuType") or {}).get("name"),
                    device.get("osVersionNumber", ""),
                    device.get("osBuildUpdate"),
                )
            )
    if not found:
        raise UserError(f"no iPhone or iPad is paired with this Mac: {CONNECT}")
    return found


def find(name: str | None) -> list[IosDevice]:
    """The one with this UDID, identifier or name, else all."""
    apple.require_mac()
    known = phones()
    matching = [one for one in known if name in (None, one.udid, one.identifier, one.name)]
    if not matching:
        raise UserError(f"there is no device {name!r}: one of {', '.join(one.udid for one in known)}")
    return [IosDevice(one) for one in matching]


class IosDevice:
    kind, emulated = "ios", False

    def __init__(self, phone: Phone) -> None:
        self.phone, self.selector = phone, f"ios:{phone.udid}"
        self._app: Path | None = None

    def bundle(self, artifacts: Sequence[Path]) -> Bundle:
        """Builds and signs the app. Raises UserError with the remedy."""
        team = os.environ.get("ADAKV_TEAM")
        if not team:
            raise UserError("an app for a phone must be signed: set ADAKV_TEAM to your Apple developer team's id")
        words = ["xcodebuild", "-scheme", APP, "-configuration", "Release", "-destination", "generic/platform=iOS"]
        words += ["-derivedDataPath", str(apple.BUILD / "ios-app"), "-allowProvisioningUpdates"]
        done = run_command(["xcrun", *words, f"DEVELOPMENT_TEAM={team}", "build"], apple.BUILD_TIMEOUT, cwd=PROJECT)
        if done.status:
            errors = [line for line in (done.stdout + done.stderr).splitlines() if "error:" in line]
            reason = errors[0].strip() if errors else f"status {done.status}"
            raise UserError(f"the app cannot be built ({reason}): open {PROJECT} in Xcode to see why")
        self._app = apple.BUILD / "ios-app" / "Build" / "Products" / "Release-iphoneos" / f"{APP}.app"
        return apple.core_ml_bundle(Bundle({}, (APP_ID,), "ios-arm64"), artifacts)

    def check(self, bundle: Bundle) -> None:
        if int(self.phone.version.partition(".")[0] or 0) < apple.LEAST_IOS:
            raise UserError(
                f"{self.phone.name} has iOS {self.phone.version} and states need {apple.LEAST_IOS}: update it"
            )
        apple.check_version(self.phone.name, self.phone.version, list(bundle.artifacts))
        if self._device("info", "lockState").get("passcodeRequired"):
            raise UserError(f"{self.phone.name} is locked: unlock it, and keep it so (Auto-Lock: Never)")

    def push(self, bundle: Bundle) -> str:
        """Install the app, and copy the artifacts that are not there yet: their names are their hashes."""
        if self._app is None:
            raise UserError("the app was not built: ask for a bundle first")
        remedy = f"free some room, and trust the developer in Settings on {self.phone.name}"
        self._device("install", "app", self._app, timeout=INSTALL_TIMEOUT, remedy=remedy)
        for identity in bundle.artifacts.values():
            folder = f"{ARTIFACTS}/{identity}"
            if not self._is_there(f"{folder}/{MARK}"):
                self._push_folder(bundle, folder)
                self._push_folder(bundle, folder, mark=True)
        self._push_folder(bundle, IN)
        return DOCUMENTS

    def run(self, bundle: Bundle, args: Sequence[str], timeout: float) -> Completed:
        """Launch the app with these words and wait for its end; then fetch what it wrote."""
        identity = secrets.token_hex(6)
        request = json.dumps({"ADAKV_RUN": json.dumps({"id": identity, "arguments": list(args)})})
        words: list[str | Path] = ["xcrun", "devicectl", "device", "process", "launch"]
        words += ["--device", self.phone.identifier, "--console", "--terminate-existing"]
        done = run_command([*words, "--environment-variables", request, bundle.command[0]], timeout)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / OUT
            try:
                self.pull(OUT, out)
            except RunTimeout:
                raise DeviceLost(f"{self.phone.name} went away: {CONNECT}, then use --resume") from None
            except UserError as error:
                raise DeviceLost(f"{self.phone.name} did not start the app ({error}): {CONNECT}") from None
            if _text(out / "started") != identity:  # what is there is an earlier run's
                raise DeviceLost(f"{self.phone.name} did not start the app ({last_line(done)}): {CONNECT}")
            found, _, status = _text(out / "status").partition(" ")
            ended = int(status) if found == identity else KILLED
            return Completed(ended, _text(out / "stdout"), _text(out / "stderr") or done.stderr)

    def pull(self, remote: str, local: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / PurePosixPath(remote).name  # devicectl does not replace what is there
            self._copy("from", f"{DOCUMENTS}/{remote}", fresh)
            copy_out(fresh, local, f"{self.selector} has no {remote}")

    def conditions(self) -> Conditions:
        """What devicectl tells: neither temperatures nor clocks."""
        phone = self.phone
        return Conditions(model=phone.model, soc=phone.soc, abi="ios-arm64", os_build=phone.build or phone.version)

    def clean(self) -> None:
        """Nothing stays running: a run ends its app. What was pushed stays for the next time."""

    def _device(self, *words: str | Path, timeout: float = apple.QUERY_TIMEOUT, remedy: str = CONNECT) -> Any:
        return devicectl("device", *words, "--device", self.phone.identifier, timeout=timeout, remedy=remedy)

    def _copy(self, way: str, source: str | Path, destination: str | Path) -> None:
        container = ["--domain-type", "appDataContainer", "--domain-identifier", APP_ID]
        words = ["--source", str(source), "--destination", str(destination)]
        self._device("copy", way, *container, *words, timeout=COPY_TIMEOUT)

    def _is_there(self, name: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.pull(name, Path(folder) / MARK)
            except RunTimeout:
                raise
            except UserError:
                return False
            return True

    def _push_folder(self, bundle: Bundle, folder: str, mark: bool = False) -> None:
        """The bundle's files under a folder of the device, or the mark that they are all there."""
        with tempfile.TemporaryDirectory() as temporary:
            staging = Path(temporary) / folder
            staging.mkdir(parents=True)
            if mark:
                (staging / MARK).touch()
                self._copy("to", staging / MARK, f"{DOCUMENTS}/{folder}/{MARK}")
                return
            for name, file in bundle.files.items():
                if name.startswith(f"{folder}/"):
                    apple.put(file.path, Path(temporary) / name)
            self._copy("to", staging, f"{DOCUMENTS}/{folder}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
