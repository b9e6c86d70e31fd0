"""Programs beside Python: compilers, emulators, Android's and Apple's tools."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adakv.doctor.finding import Finding, Machine, info, ok, silent

ADB_PORT = 5037


@dataclass(frozen=True)
class Tool:
    """Any one of the programs will do."""

    subject: str
    programs: tuple[str, ...]
    purpose: str
    install: str


TOOLS = (
    Tool("C++ compiler", ("c++", "g++", "clang++"), "builds the operator library", "apt-get install g++"),
    Tool("cmake", ("cmake",), "builds the operator library and the runners", "apt-get install cmake"),
    Tool(
        "cross compiler",
        ("aarch64-linux-gnu-g++",),
        "builds the runner for arm64 (make kernels, --device-bundle)",
        "apt-get install g++-aarch64-linux-gnu",
    ),
    Tool(
        "qemu",
        ("qemu-aarch64-static", "qemu-aarch64"),
        "runs arm64 programs here (make kernels, --device qemu)",
        "apt-get install qemu-user-static",
    ),
    Tool("adb", ("adb",), "talks to Android devices", "apt-get install adb"),
)


def tools(machine: Machine) -> Iterator[Finding]:
    for tool in TOOLS:
        path = next((found for name in tool.programs if (found := machine.which(name))), None)
        if path is None:
            yield info(tool.subject, f"not found; it {tool.purpose}", tool.install)
            continue
        status, output = machine.run([path, "--version"])
        number = re.search(r"\d+\.\d+(\.\d+)?", output)
        if status or number is None:
            first = output.splitlines()[0] if output else f"exit status {status}"
            yield silent(tool.subject, f"{path} does not start: {first}", tool.install)
        else:
            yield ok(tool.subject, f"{number[0]}, {path}")


def android(machine: Machine) -> Iterator[Finding]:
    """Devices, if adb's server runs already: asking would start one."""
    adb = machine.which("adb")
    port = int(machine.environment.get("ANDROID_ADB_SERVER_PORT", ADB_PORT))
    if adb is not None:
        if not _listens(port):
            yield info("Android devices", "adb's server is not running, so none were asked for", "adb devices")
        else:
            status, output = machine.run([adb, "devices", "-l"])
            yield from adb_devices(output if status == 0 else "")
    ndk = machine.environment.get("ANDROID_NDK_HOME") or machine.environment.get("ANDROID_NDK")
    if ndk is None:
        yield info("Android NDK", "ANDROID_NDK_HOME is not set; it builds the runner for apps", "android/README.md")
    elif not (Path(ndk) / "build" / "cmake" / "android.toolchain.cmake").is_file():
        yield silent("Android NDK", f"{ndk} holds no NDK", "point ANDROID_NDK_HOME to an unpacked NDK")
    else:
        yield ok("Android NDK", ndk)


def adb_devices(output: str) -> Iterator[Finding]:
    """Findings from what `adb devices -l` prints."""
    lines = [line.split() for line in output.splitlines()[1:] if line.strip()]
    if not lines:
        yield info("Android devices", "none connected", "plug one in and allow USB debugging")
    for serial, state, *facts in lines:
        model = next((fact.partition(":")[2] for fact in facts if fact.startswith("model:")), "")
        if state == "device":
            yield ok("Android devices", f"{serial} {model}".strip())
        elif state == "unauthorized":
            yield silent("Android devices", f"{serial} is not authorized", "accept the key on its screen")
        else:
            yield silent("Android devices", f"{serial} is {state}", "reconnect it, or adb reconnect")


def apple(machine: Machine) -> Iterator[Finding]:
    if platform.system() != "Darwin" and machine.which("xcrun") is None:
        yield info(
            "Xcode", "not a Mac: Core ML packages are exported here and run in the evaluator only", "docs/ios.md"
        )
        return
    for subject, words, remedy in (
        ("Xcode", ["xcodebuild", "-version"], "install Xcode from the App Store"),
        ("simulators", ["xcrun", "simctl", "list", "devices", "available"], "install a simulator in Xcode's settings"),
        ("iPhones", ["xcrun", "devicectl", "list", "devices"], "Xcode 15 or later; pair the phone"),
    ):
        status, output = machine.run(words, timeout=60)
        first = output.splitlines()[0] if output else f"exit status {status}"
        yield info(subject, first, remedy) if status else ok(subject, first)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
