"""adb's file transfer on the device's side: STAT, LIST, SEND, RECV, QUIT (packages/modules/adb/SYNC.TXT in AOSP).

As the real daemon does, SEND writes to the place itself, so a cut connection can leave part of a file there.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from device_tests.devices.emulated.transport import Stream

CHUNK = 64 * 1024
WORD = struct.Struct("<I")


class SyncService:
    """resolve: a path on the device -> here. room(n): raises OSError where n more bytes do not fit. received(n): told
    of file data as it comes."""

    def __init__(
        self,
        stream: Stream,
        resolve: Callable[[str], Path],
        room: Callable[[int], None],
        received: Callable[[int], None],
    ) -> None:
        self.stream, self.resolve, self.room, self.received = stream, resolve, room, received

    async def serve(self) -> None:
        actions = {b"STAT": self._stat, b"LIST": self._list, b"SEND": self._send, b"RECV": self._receive}
        while True:
            request = await self.stream.read_exactly(4)
            text = await self.stream.read_exactly(WORD.unpack(await self.stream.read_exactly(4))[0])
            if request not in actions:
                return
            await actions[request](os.fsdecode(text))

    async def _stat(self, name: str) -> None:
        try:
            found = self.resolve(name).lstat()
            numbers = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            numbers = (0, 0, 0)
        await self.stream.write(b"STAT" + struct.pack("<3I", *numbers))

    async def _list(self, name: str) -> None:
        folder = self.resolve(name)
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in entries:
            found, text = path.lstat(), os.fsencode(path.name)
            numbers = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime), len(text))
            await self.stream.write(b"DENT" + struct.pack("<4I", *numbers) + text)
        await self.stream.write(b"DONE" + bytes(16))

    async def _send(self, specification: str) -> None:
        name, _, mode = specification.rpartition(",")
        path, problem = self.resolve(name), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            file = open(path, "wb")  # noqa: SIM115
        except OSError as error:
            problem, file = error, open(os.devnull, "wb")  # noqa: SIM115
        with file:
            while True:
                kind = await self.stream.read_exactly(4)
                number = WORD.unpack(await self.stream.read_exactly(4))[0]
                if kind == b"DONE":
                    break
                data = await self.stream.read_exactly(number)
                self.received(len(data))
                try:
                    if problem is None:
                        self.room(len(data))
                        file.write(data)
                        file.flush()
                except OSError as error:  # the rest is read and dropped, or the host would hang
                    problem = error
                    path.unlink(missing_ok=True)
        if problem is not None:
            await self._fail(problem)
            return
        path.chmod(stat.S_IMODE(int(mode)) or 0o644)
        os.utime(path, (number, number))
        await self.stream.write(b"OKAY" + bytes(4))

    async def _receive(self, name: str) -> None:
        try:
            with self.resolve(name).open("rb") as file:
                while data := file.read(CHUNK):
                    await self.stream.write(b"DATA" + WORD.pack(len(data)) + data)
            await self.stream.write(b"DONE" + bytes(4))
        except OSError as error:
            await self._fail(error)

    async def _fail(self, error: OSError) -> None:
        text = (error.strerror or str(error)).encode()
        await self.stream.write(b"FAIL" + WORD.pack(len(text)) + text)
