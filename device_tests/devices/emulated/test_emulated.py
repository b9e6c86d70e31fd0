"""The emulated device itself, through the real adb client; and that it leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_tests.devices.emulated import EmulatedDevice
from device_tests.devices.emulated.shell_service import Renamer
from device_tests.devices.emulated.testing import connected

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    with EmulatedDevice() as device, connected(device):
        yield device


def adb(device: EmulatedDevice, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["adb", "-s", device.address, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def test_shell_is_a_shell(device: EmulatedDevice) -> None:
    done = adb(device, "shell", "cd /data/local/tmp && echo 'a  b' >'x y' && cat x\\ y; pwd; echo no >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "a  b\n/data/local/tmp\n", "no\n")
    assert adb(device, "shell", "kill -11 $$").returncode == 139
    assert adb(device, "shell", "getprop ro.product.cpu.abi").stdout == "arm64-v8a\n"
    assert "[ro.soc.model]: [cortex-a76]\n" in adb(device, "shell", "getprop").stdout
    assert adb(device, "shell", "python3").returncode == 127


def test_input_reaches_a_command(device: EmulatedDevice) -> None:
    command = ["adb", "-s", device.address, "shell", "cat"]
    done = subprocess.run(command, input=b"1\n2\n", capture_output=True, timeout=60, check=True)
    assert done.stdout == b"1\n2\n"


def test_files_of_any_name_and_size(device: EmulatedDevice, tmp_path: Path) -> None:
    for index, size in enumerate((0, 1, 65535, 65536, 65537, 3_000_000)):
        source = tmp_path / f"a 'name' {index}"
        source.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
        assert adb(device, "push", str(source), f"/data/local/tmp/é {index}").returncode == 0
        assert adb(device, "pull", f"/data/local/tmp/é {index}", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
    listed = adb(device, "ls", "/data/local/tmp").stdout
    assert all(f"é {index}\n" in listed for index in range(6))
    missing = adb(device, "pull", "/data/nothing", str(tmp_path))
    assert "does not exist" in missing.stdout + missing.stderr  # which one depends on its version


def test_forward(device: EmulatedDevice) -> None:
    class Shout(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())

    name = f"adakv-{device.port}"
    servers: list[tuple[str, socketserver.BaseServer]] = []
    tcp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Shout)
    servers.append((f"tcp:{tcp.server_address[1]}", tcp))
    servers.append((f"localabstract:{name}", socketserver.ThreadingUnixStreamServer(f"\0{name}", Shout)))
    for remote, service in servers:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        port = int(adb(device, "forward", "tcp:0", remote).stdout)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"hello\n")
            assert client.makefile("rb").readline() == b"HELLO\n"
        service.shutdown()
        service.server_close()


def test_nothing_is_left() -> None:
    with EmulatedDevice() as device, connected(device):
        adb(device, "shell", "nohup sleep 300 >/dev/null 2>&1 &")
        assert len(device.processes()) == 1
    assert device.processes() == []
    assert not device.root.exists()


@given(st.lists(st.text("/ab", max_size=6)), st.sampled_from(["/a/", "aab", "abab"]))
def test_names_are_replaced_across_pieces(pieces: list[str], old: str) -> None:
    names = Renamer(old.encode(), b"-")
    got = b"".join([*(names.feed(piece.encode()) for piece in pieces), names.feed(b"", last=True)])
    assert got == "".join(pieces).replace(old, "-").encode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_by_hand_until_interrupted(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "device_tests.devices.emulated"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        connecting = process.stdout.readline().split()
        done = subprocess.run(connecting, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.startswith("connected to 127.0.0.1:")
        subprocess.run(["adb", "disconnect", connecting[-1]], capture_output=True, timeout=60, check=True)
        process.send_signal(number)
        assert process.wait(30) == 0
