"""The way to one server of the cloud, which can be closed: connections to a closed door are refused."""

from __future__ import annotations

import asyncio
import socket
from typing import Self
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 16
CALLER_GONE_AFTER_MS = 5000


class Door:
    """A TCP relay at ``host`` in front of the server at ``base_url``, open from `open` on."""

    def __init__(self, base_url: str, host: str) -> None:
        address = urlsplit(base_url)
        self._host = host
        self._cloud = address.hostname or "", address.port or 80
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base URL by which the cloud is reached through this door."""
        return f"http://{self._host}:{self._port}"

    async def open(self) -> Self:
        """Listen, from the second time on at the same port."""
        self._server = await asyncio.start_server(self._relay, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Refuse new connections and reset the open ones."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The cloud, too, gives up a caller that is no longer there.
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CALLER_GONE_AFTER_MS)
        try:
            cloud_reader, cloud_writer = await asyncio.open_connection(*self._cloud)
            writers.append(cloud_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, cloud_writer))
                group.create_task(_copy(cloud_reader, writer))
        except* OSError:
            pass
        except* asyncio.CancelledError:
            for end in writers:
                end.transport.abort()
        finally:
            self._connections.discard(task)
            for end in writers:
                end.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the reader's end has come, then send that end."""
    while piece := await reader.read(PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    writer.close()
