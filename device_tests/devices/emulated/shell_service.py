"""adb's shell on the device's side: the command line goes to a real shell as the one string it is.

Protocol version 2 puts every piece behind a byte (0 input, 1 output, 2 errors, 3 exit status, 4 end of input) and a
length. When the host goes away the shell gets SIGHUP, as from the real daemon, and nothing else does.
"""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from device_tests.devices.emulated.transport import Stream, StreamClosed

PIECE = struct.Struct("<BI")
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)

Spawn = Callable[[str, bool], Awaitable[asyncio.subprocess.Process]]


class Renamer:
    """Replaces one word by another in output that comes in pieces."""

    def __init__(self, old: bytes, new: bytes) -> None:
        self._old, self._new, self._kept = old, new, b""

    def feed(self, data: bytes, last: bool = False) -> bytes:
        """What can be passed on; a beginning of `old` at the end waits for the next piece."""
        data = (self._kept + data).replace(self._old, self._new)
        kept = next((n for n in range(len(self._old) - 1, 0, -1) if not last and data.endswith(self._old[:n])), 0)
        self._kept = data[len(data) - kept :]
        return data[: len(data) - kept]


async def serve_shell(stream: Stream, command: str, spawn: Spawn, version_2: bool, root: bytes) -> None:
    """spawn(command, separate): starts it, errors apart from output or with it. root: what is "" on the device."""
    process = await spawn(command, version_2)
    feeding = asyncio.create_task(_feed(stream, process, version_2))
    ending = asyncio.ensure_future(_outcome(stream, process, version_2, root))
    await asyncio.wait({feeding, ending}, return_when=asyncio.FIRST_COMPLETED)
    if not ending.done():
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)
        await process.wait()
    for task in (feeding, ending):
        task.cancel()
        with suppress(asyncio.CancelledError, StreamClosed):
            await task


async def _feed(stream: Stream, process: asyncio.subprocess.Process, version_2: bool) -> None:
    """The host's input to the process, until the host closes the stream."""
    assert process.stdin is not None
    with suppress(StreamClosed):
        while True:
            kind, data = STDIN, b""
            if version_2:
                kind, length = PIECE.unpack(await stream.read_exactly(PIECE.size))
                data = await stream.read_exactly(length) if length else b""
            else:
                data = await stream.read()
            with suppress(ConnectionError):
                if kind == STDIN:
                    process.stdin.write(data)
                    await process.stdin.drain()
                elif kind == CLOSE_STDIN:
                    process.stdin.close()


async def _outcome(stream: Stream, process: asyncio.subprocess.Process, version_2: bool, root: bytes) -> None:
    """What it writes, and how it ends."""
    pumps = [_pump(stream, process.stdout, STDOUT if version_2 else None, root)]
    if process.stderr is not None:
        pumps.append(_pump(stream, process.stderr, STDERR, root))
    await asyncio.gather(*pumps)
    status = await process.wait()
    if version_2:
        status = status if status >= 0 else 128 - status
        await stream.write(PIECE.pack(EXIT, 1) + bytes([status & 0xFF]))


async def _pump(stream: Stream, source: asyncio.StreamReader | None, kind: int | None, root: bytes) -> None:
    assert source is not None
    names, data = Renamer(root + b"/", b"/"), b"more"
    while data:
        data = await source.read(64 * 1024)
        if piece := names.feed(data, last=not data):
            await stream.write(piece if kind is None else PIECE.pack(kind, len(piece)) + piece)
