"""What `adb forward` reaches: a TCP port of the device's loopback, or an abstract socket."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from device_tests.devices.emulated.transport import Stream, StreamClosed


async def serve_forward(stream: Stream, kind: str, name: str) -> None:
    """kind: tcp (name: a port) or localabstract. A refused connection closes the stream, which is all adb says."""
    try:
        if kind == "tcp":
            reader, writer = await asyncio.open_connection("127.0.0.1", int(name))
        else:
            reader, writer = await asyncio.open_unix_connection("\0" + name)
    except (OSError, ValueError):
        return
    out = asyncio.create_task(_to_host(stream, reader))
    try:
        with suppress(StreamClosed, ConnectionError):
            while True:
                writer.write(await stream.read())
                await writer.drain()
    finally:
        out.cancel()
        writer.close()


async def _to_host(stream: Stream, reader: asyncio.StreamReader) -> None:
    with suppress(StreamClosed):
        while data := await reader.read(64 * 1024):
            await stream.write(data)
        await stream.close()
