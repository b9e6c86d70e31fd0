"""adb's transport on the device's side: packets, handshake, streams.

Message: six little-endian words (command, arg0, arg1, length, checksum, command ^ 0xffffffff) and the payload. Version
0x01000001 ignores checksums. Each stream has at most one WRTE without its OKAY in either direction. Source:
packages/modules/adb/protocol.txt in AOSP.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

HEADER = struct.Struct("<6I")
VERSION, MAX_DATA = 0x01000001, 1 << 20
AUTH_TOKEN = 1


def _word(name: bytes) -> int:
    return int.from_bytes(name, "little")


CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (_word(name) for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))

Service = Callable[["Stream", str], Awaitable[None]]


class StreamClosed(Exception):
    """The host closed the stream, or the connection is gone."""


class Stream:
    """One OPENed service."""

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._buffer = bytearray()
        self.closed = False

    async def read(self) -> bytes:
        """The next bytes from the host. Raises StreamClosed."""
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            return data
        if self.closed and self._incoming.empty():
            raise StreamClosed
        data = await self._incoming.get()
        if not data:
            raise StreamClosed
        await self.connection.send(OKAY, self.local, self.remote)
        return data

    async def read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            kept, self._buffer = self._buffer, bytearray()
            self._buffer = kept + await self.read()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), self.connection.max_data):
            await self._may_write.wait()
            if self.closed:
                raise StreamClosed
            self._may_write.clear()
            await self.connection.send(WRTE, self.local, self.remote, data[at : at + self.connection.max_data])

    async def close(self) -> None:
        if not self.closed:
            self.end()
            await self.connection.send(CLSE, self.local, self.remote)

    def take(self, data: bytes) -> None:
        self._incoming.put_nowait(data)

    def acknowledge(self) -> None:
        self._may_write.set()

    def end(self) -> None:
        self.closed = True
        self._incoming.put_nowait(b"")
        self._may_write.set()


class Connection:
    """One host. `serve` returns when it is gone."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        banner: str,
        service: Service,
        *,
        authorised: bool = True,
        bytes_per_second: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._banner, self._service = banner, service
        self._authorised, self._bytes_per_second = authorised, bytes_per_second
        self._streams: dict[int, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_id = 1
        self._is_cut = asyncio.Event()
        self.max_data = 4096  # until the host says more

    async def serve(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                command, arg0, arg1, length, _, _ = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                payload = await self._reader.readexactly(length)
                if speed := self._bytes_per_second():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._is_cut.wait(), length / speed)
                await self._handle(command, arg0, arg1, payload)
        for stream in self._streams.values():
            stream.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        self.cut()

    async def send(self, command: int, arg0: int, arg1: int, payload: bytes = b"") -> None:
        checksum = sum(payload) & 0xFFFFFFFF if command in (CNXN, AUTH) else 0
        header = HEADER.pack(command, arg0, arg1, len(payload), checksum, command ^ 0xFFFFFFFF)
        with suppress(ConnectionError):
            self._writer.write(header + payload)
            await self._writer.drain()

    def cut(self) -> None:
        """As a cable that is pulled: nothing more is sent."""
        self._is_cut.set()
        self._writer.transport.abort()

    async def _handle(self, command: int, arg0: int, arg1: int, payload: bytes) -> None:
        if command == CNXN:
            self.max_data = min(arg1, MAX_DATA)
            if self._authorised:
                await self.send(CNXN, VERSION, MAX_DATA, self._banner.encode())
            else:
                await self.send(AUTH, AUTH_TOKEN, 0, bytes(20))
        elif command == AUTH:  # a signature, then a public key that nobody accepts
            if arg0 == 2:
                await self.send(AUTH, AUTH_TOKEN, 0, bytes(20))
        elif command == OPEN:
            stream = Stream(self, self._next_id, arg0)
            self._next_id += 1
            self._streams[stream.local] = stream
            await self.send(OKAY, stream.local, stream.remote)
            task = asyncio.create_task(self._run(stream, payload.rstrip(b"\0").decode(errors="surrogateescape")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif (stream_or_none := self._streams.get(arg1)) is None:
            if command == WRTE:
                await self.send(CLSE, 0, arg0)
        elif command == WRTE:
            stream_or_none.take(payload)
        elif command == OKAY:
            stream_or_none.acknowledge()
        elif command == CLSE:
            stream_or_none.end()

    async def _run(self, stream: Stream, name: str) -> None:
        try:
            with suppress(StreamClosed):
                await self._service(stream, name)
        finally:
            await stream.close()
            self._streams.pop(stream.local, None)
