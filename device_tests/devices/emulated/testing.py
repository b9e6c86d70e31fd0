"""For tests: an adb server of their own, and a small arm64 program as the runner."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_tests.devices.adb_client import READY, AdbClient
from device_tests.devices.bundle import Bundle, BundleFile
from device_tests.devices.emulated.device import EmulatedDevice
from device_tests.devices.local import EMULATOR

ARM64_TOOLS = {EMULATOR: "qemu-user-static", "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu"}
ADB_TOOLS = {**ARM64_TOOLS, "adb": "adb", "aarch64-linux-gnu-gcc": "g++-aarch64-linux-gnu", "cc": "g++"}


def require_tools(needed: Mapping[str, str] = ARM64_TOOLS) -> None:
    """Skip where ADAKV_SKIP_ARM64=1 leaves arm64 out, fail where a program is missing. needed: program -> package."""
    if os.environ.get("ADAKV_SKIP_ARM64") == "1":
        pytest.skip("ADAKV_SKIP_ARM64=1")
    missing = sorted({package for tool, package in needed.items() if shutil.which(tool) is None})
    if missing:
        pytest.fail(f"apt-get install {' '.join(missing)}, or set ADAKV_SKIP_ARM64=1", pytrace=False)


@contextmanager
def adb_server(home: Path) -> Iterator[int]:
    """A private adb server: its own port and keys, deaf to USB and to emulators, so that a user's server and phones are
    not touched. It is this process's until the end, which ends it; yields its port."""
    require_tools(ADB_TOOLS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home), "TMPDIR": str(home)}
    own |= {"ADB_USB": "0", "ADB_EMU": "0", "ADB_MDNS": "0"}
    saved = {
        name: os.environ.get(name)
        for name in (*own, "ANDROID_SERIAL", "ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_ADDRESS")
    }
    for name in saved:
        os.environ.pop(name, None)
    os.environ.update(own)
    try:
        subprocess.run(["adb", "start-server"], check=True, capture_output=True, timeout=60)
        yield port
    finally:
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True, timeout=60)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def connect(device: EmulatedDevice, expected: str = READY) -> AdbClient:
    """Until the server lists it, in the expected state: one that it just lost takes a moment."""
    client, deadline = AdbClient(device.address, answer=20), time.monotonic() + 20
    while True:
        command = ["adb", "connect", device.address]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        if client.state() == expected:
            return client
        assert time.monotonic() < deadline, said.stdout
        time.sleep(0.2)


def disconnect(device: EmulatedDevice) -> None:
    """The server forgets it; otherwise it would try to connect again, and again."""
    subprocess.run(["adb", "disconnect", device.address], check=False, capture_output=True, timeout=60)


@contextmanager
def connected(device: EmulatedDevice, expected: str = READY) -> Iterator[AdbClient]:
    """Connected inside, forgotten after."""
    client = connect(device, expected)
    try:
        yield client
    finally:
        disconnect(device)


def build_probe(folder: Path) -> Path:
    """probe.c as a static arm64 program."""
    program = folder / "probe"
    source = Path(__file__).with_name("probe.c")
    command = ["aarch64-linux-gnu-gcc", "-static", "-O1", "-o", str(program), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return program


def probe_bundle(program: Path, **others: Path) -> Bundle:
    """A bundle with the probe as its runner, and other files."""
    files = {"probe": BundleFile.of(program, executable=True)}
    return Bundle(files | {name: BundleFile.of(path) for name, path in others.items()}, ("./probe",), "arm64-v8a")
