"""Clouds whose answers break off, and what a caller of the proxy receives of them."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

from support.harness import WAIT_S, Script, read_message


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
    if sys.platform == "win32":  # its event loop would shut the socket down first, so that a FIN goes out
        sock._sock.close()


def cut(part: bytes, ending: str) -> Script:
    """A cloud whose answer is ``part`` and nothing more."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.004)
        if ending == "reset":
            reset(writer)
        elif ending == "stall":
            await reader.read()

    return script


async def received_until_reset(reader: asyncio.StreamReader) -> bytes:
    """The bytes that arrive until the connection is reset; a clean end is a failure."""
    received = b""
    async with asyncio.timeout(WAIT_S):
        try:
            while data := await reader.read(1 << 16):
                received += data
        except ConnectionResetError:
            return received
    raise AssertionError("a clean end")
