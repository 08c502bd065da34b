"""How many callers' connections a listener has at once, and what happens when it is full.

Full, it closes connections that carry no request, those that are idle longest first, and accepts no new
ones until there is room: they wait in the kernel's queue, where they cost us nothing. So there are always
file descriptors left for tokens and for the clouds. Must not know requests.

An `asyncio.Server` can't pause. It is closed and made anew on the same listening socket, of which a
duplicate is kept open; where that can't be (Windows, whose event loop doesn't let go of a socket)
only the closing of idle connections is left.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from typing import Any

from proxy.server.connection import CallerConnection, CallerServer

MAX_CONNECTIONS = 1024
"""Of one listener."""
FEWEST_CONNECTIONS = 8
IDLE_S = 1.0
"""A connection that came, or was answered, less long ago may be about to send a request."""
LOOK_S = 0.1
"""Between two looks whether a full listener has idle connections by now."""
BACKLOG = 1024
_OTHER_DESCRIPTORS = 32
_CAN_PAUSE = sys.platform != "win32"
TLS_HANDSHAKE_S = 10.0


def most_connections(descriptors: int | None, listeners: int) -> int:
    """How many each of so many listeners may have where the process may open so many descriptors.

    A quarter of them is for what goes out, and for files. None: as many as it likes.
    """
    if descriptors is None:
        return MAX_CONNECTIONS
    share = (descriptors - _OTHER_DESCRIPTORS) * 3 // 4 // max(1, listeners)
    return max(FEWEST_CONNECTIONS, min(MAX_CONNECTIONS, share))


class Door:
    """One listening socket. `open` it, then `run` until cancelled; `close` accepts no more."""

    def __init__(
        self, sock: socket.socket, server: CallerServer, *, limit: int, tls: ssl.SSLContext | None
    ) -> None:
        self.server = server
        self.limit = limit
        self._tls = tls
        self._is_unix = sock.family == getattr(socket, "AF_UNIX", None)
        self._sock = sock
        self._can_pause = _CAN_PAUSE and not self._is_unix
        self._full = asyncio.Event()
        self._is_closed = False
        server.on_change = self._on_change

    async def open(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        if self._is_unix:
            await self._open_unix(loop)
            return
        sock = self._sock.dup() if self._can_pause else self._sock
        options: dict[str, Any] = {} if self._tls is None else {"ssl_handshake_timeout": TLS_HANDSHAKE_S}
        # asyncio accepts so many in one go, before it tells us of the first.
        at_once = max(1, min(BACKLOG, self.limit // 8)) if self._can_pause else BACKLOG
        self.listening = await loop.create_server(
            self.server, sock=sock, backlog=at_once, ssl=self._tls, **options
        )
        if self._can_pause:
            self._sock.listen(BACKLOG)
        if self._is_closed:
            self.listening.close()

    async def _open_unix(self, loop: asyncio.AbstractEventLoop) -> None:
        options: dict[str, Any] = {"sock": self._sock, "backlog": BACKLOG}
        stays: dict[str, Any] = {"cleanup_socket": False}
        try:  # the path stays: a service manager goes on listening there, and a leftover of ours is replaced
            self.listening = await loop.create_unix_server(self.server, **options, **stays)
        except TypeError:  # before Python 3.13, it always does
            self.listening = await loop.create_unix_server(self.server, **options)

    def _on_change(self) -> None:
        if self.server.open >= self.limit:
            self._full.set()

    async def run(self) -> None:
        """Pause accepting while the listener is full."""
        while True:
            await self._full.wait()
            if self._can_pause:
                await self._pause()
            while self.server.open > self.limit - max(1, self.limit // 16):
                self._make_room()
                await asyncio.sleep(LOOK_S)
            self._full.clear()
            while self._can_pause and not self._is_closed and not await self._reopen():
                await asyncio.sleep(LOOK_S)

    async def _reopen(self) -> bool:
        try:
            await self.open()
        except OSError:  # no descriptor is free
            return False
        return True

    async def _pause(self) -> None:
        # What asyncio has accepted is attached to its server one step later, which must be open then.
        for listening in self.listening.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self.listening.close()

    def _make_room(self) -> None:
        """Close some connections that carry no request: first those without an answer's end on its way."""
        idle_by = asyncio.get_running_loop().time() - IDLE_S
        idle = [
            connection
            for connection in self.server.connections
            if isinstance(connection, CallerConnection)
            and connection.is_idle
            and connection.idle_since <= idle_by
        ]
        idle.sort(key=lambda connection: (connection.has_unsent, connection.idle_since))
        for connection in idle[: max(1, self.limit // 8)]:
            connection.make_way()

    def close(self) -> None:
        """Accept no more; connections stay."""
        self._is_closed = True
        if hasattr(self, "listening"):
            self.listening.close()
        if self._can_pause:
            self._sock.close()
