"""The emulated device: listens on a TCP port of this machine, keeps its files in a temporary folder, runs arm64 under
qemu. Connect with `adb connect 127.0.0.1:PORT`.

/data, /sys and the few files of /proc that describe hardware are folders under its root: a command line has these names
replaced before a real shell gets it (mksh, Android's, where it is installed). PATH holds the tools of toybox's names
and our own `getprop`, `dumpsys`, `df`. Programs are files as pushed; a preloaded library starts arm64 ones under qemu.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

from device_tests.devices.emulated.faults import Faults
from device_tests.devices.emulated.forward_service import serve_forward
from device_tests.devices.emulated.shell_service import serve_shell
from device_tests.devices.emulated.sync_service import SyncService
from device_tests.devices.emulated.system import Hardware
from device_tests.devices.emulated.transport import Connection, Stream
from device_tests.devices.local import EMULATOR

#: Of this machine, under the names toybox has on a phone.
TOOLS = (
    "basename cat chmod cp cut date dd dirname du echo env find grep head kill ls mkdir mv nohup nproc pidof printf "
    "ps pwd readlink rm rmdir sed setsid sha256sum sleep sort stat sync tail taskset tee test timeout touch tr true "
    "false uniq wc xargs"
)
OWN_TOOLS = {
    "getprop": 'if [ $# = 0 ]; then sed "s/^\\([^=]*\\)=\\(.*\\)/[\\1]: [\\2]/" "$EMULATED_DEVICE/device/properties"\n'
    'else sed -n "s/^$1=//p" "$EMULATED_DEVICE/device/properties"; fi',
    "dumpsys": 'cat "$EMULATED_DEVICE/device/dumpsys/$1"',
    "df": 'cat "$EMULATED_DEVICE/device/df"',
}
MAPPED = re.compile(r"/(?=data\b|sys\b|proc/(?:cpuinfo|meminfo|loadavg)\b)")


@cache
def _exec_arm64() -> bytes:
    """The library that starts arm64 programs, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        library, source = Path(folder) / "library", Path(__file__).with_name("exec_arm64.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True, timeout=60)
        return library.read_bytes()


class EmulatedDevice:
    """`with EmulatedDevice(...) as device:` listens at device.address until the end, then ends its own processes and
    removes its files. faults may be replaced while it runs."""

    def __init__(self, hardware: Hardware | None = None, faults: Faults | None = None) -> None:
        self.hardware, self.faults = hardware or Hardware(), faults or Faults()
        self.root = Path(tempfile.mkdtemp(prefix="emulated-device-"))
        self.bytes_received = 0  # of file data, since the start
        self.port = 0
        self._dropped = False
        self._runs = 0
        self._connections: set[Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> EmulatedDevice:
        self._make_root()
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def address(self) -> str:
        """What `adb connect` takes, and the serial afterwards."""
        return f"127.0.0.1:{self.port}"

    def path(self, name: str) -> Path:
        """Where a file of the device is on this machine."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ValueError(f"{name!r} leaves the device")
        return self.root.joinpath(*parts)

    def processes(self) -> list[int]:
        """Those that the device started and that are still alive, by the environment they inherited."""
        mark, found = f"EMULATED_DEVICE={self.root}".encode(), []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def unplug(self) -> None:
        """Cut every connection and take no new one."""
        self._call(self._unplug())

    def plug_in(self) -> None:
        """Listen again, on the same port."""
        self._call(self._listen())

    def _call(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _make_root(self) -> None:
        for name in ("data/local/tmp", "bin"):
            self.path(name).mkdir(parents=True)
        shell = shutil.which("mksh") or shutil.which("sh")
        for name, source in [("sh", shell), *((name, shutil.which(name)) for name in TOOLS.split())]:
            if source is not None:
                self.path(f"bin/{name}").symlink_to(source)
        for name, text in OWN_TOOLS.items():
            tool = self.path(f"bin/{name}")
            tool.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
            tool.chmod(0o755)
        self.path("exec_arm64.so").write_bytes(_exec_arm64())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _unplug(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.cut()

    async def _stop(self) -> None:
        await self._unplug()
        for _ in range(100):
            if not self._connections:
                return
            await asyncio.sleep(0.05)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.faults.answers:
            await reader.read()  # until the host gives up
            writer.close()
            return
        banner = f"device::ro.product.name=emulated;ro.product.model={self.hardware.model};features=shell_v2"
        connection = Connection(
            reader,
            writer,
            banner,
            lambda stream, name: self._serve(connection, stream, name),
            authorised=self.faults.authorised,
            bytes_per_second=lambda: self.faults.bytes_per_second,
        )
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def _serve(self, connection: Connection, stream: Stream, name: str) -> None:
        kind, _, rest = name.partition(":")
        words = kind.split(",")
        if words[0] in ("shell", "exec"):
            watch = asyncio.create_task(self._misbehave(connection))
            try:
                await serve_shell(stream, rest, self._spawn, "v2" in words, os.fsencode(self.root))
            finally:
                watch.cancel()
        elif words[0] == "sync":
            await SyncService(stream, self.path, self._room, lambda n: self._receive(connection, n)).serve()
        elif words[0] in ("tcp", "localabstract"):
            await serve_forward(stream, words[0], rest)

    async def _spawn(self, command: str, separate: bool) -> asyncio.subprocess.Process:
        self.hardware.render(self.root, self.faults.disk_bytes, self._used())
        environment = {
            "PATH": str(self.path("bin")),
            "HOME": "/",
            "EMULATED_DEVICE": str(self.root),
            "EMULATED_BY": shutil.which(EMULATOR) or EMULATOR,
            "EMULATED_CPU": self.hardware.cpu,
            "LD_PRELOAD": str(self.root / "exec_arm64.so"),
        }
        mapped = MAPPED.sub(f"{self.root}/", command)
        return await asyncio.create_subprocess_exec(
            self.path("bin/sh"),
            *((b"-c", os.fsencode(mapped)) if command else ()),
            cwd=self.root,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if separate else asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    def _used(self) -> int:
        return sum(p.stat().st_size for p in self.path("data").rglob("*") if p.is_file())

    def _room(self, count: int) -> None:
        """Raises OSError where count more bytes do not fit."""
        if self.faults.disk_bytes < 1 << 40 and self._used() + count > self.faults.disk_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _receive(self, connection: Connection, count: int) -> None:
        self.bytes_received += count
        after = self.faults.drop_push_after
        if after is not None and self.bytes_received > after:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if self._dropped:
            return
        self._dropped = True
        if not self.faults.returns and self._server is not None:
            self._server.close()
            self._server = None
        connection.cut()

    async def _misbehave(self, connection: Connection) -> None:
        """The faults that befall a running arm64 program."""
        signal_number = self.faults.kill_signal
        delay = self.faults.drop_run_after if signal_number is None else self.faults.kill_after
        if delay is None or (signal_number is None and self._dropped):
            return
        while not (programs := self._programs()):
            await asyncio.sleep(0.02)
        self._runs += 1
        if self._runs <= self.faults.healthy_runs:
            return
        await asyncio.sleep(delay)
        if signal_number is None:
            self._drop(connection)
            return
        for pid in programs:
            with suppress(ProcessLookupError):
                os.kill(pid, signal_number)

    def _programs(self) -> list[int]:
        """Processes that are emulated arm64 programs."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("qemu-"):
                    found.append(pid)
        return found
