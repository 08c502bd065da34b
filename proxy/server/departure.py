"""Notices that a caller has left while the event loop doesn't read from its connection.

The event loop reports a caller that leaves only while the loop reads from the connection. The loop doesn't
read after the caller's FIN, and while the caller's bytes are held back. Then this module looks from time to
time:

- A reset connection has an error pending on its socket; on Windows, a read says it.
- A FIN says only that the caller sends no more. The caller may have left, or wait for its answer (RFC 9112,
  section 9.6). The caller gets the answer if its head comes in time.

Must not know HTTP's syntax, or what other requests wait for.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Protocol

from proxy.server.request import Request

LOOK_S = 0.2
"""From one look to the next."""
PATIENCE_S = 10.0
"""How long a request may wait for its answer's head after the caller's FIN."""
HURRIED_PATIENCE_S = 1.0
"""The same, while other requests wait for this one to end."""
READ_TELLS = sys.platform == "win32"
"""Whether a socket that was reset tells so only to a read. There, the unread bytes are gone after a reset."""


class Watched(Protocol):
    """The part of a caller's connection that `DepartureWatch` needs."""

    socket: socket.socket
    current: Request | None
    is_half_closed: bool
    idle_since: float

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the connection lives on."""
        ...

    @property
    def is_reading_held(self) -> bool:
        """Whether nothing is read from the caller for now."""
        ...

    def abort(self) -> None:
        """End the connection, and the work for its caller."""


class DepartureWatch:
    """Looks at one connection from `start` on, while nothing is read from it and a request waits."""

    __slots__ = ("_connection", "_half_closed_at", "_timer")

    def __init__(self, connection: Watched) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._half_closed_at: float | None = None

    def start(self) -> None:
        """Begin to look: nothing is read from the caller any more, or for now."""
        if self._connection.is_half_closed and self._half_closed_at is None:
            self._half_closed_at = self._connection.loop.time()
        if self._timer is None:
            self._timer = self._connection.loop.call_later(LOOK_S, self._look)

    def stop(self) -> None:
        """Stop looking: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        connection = self._connection
        request = connection.current
        if request is None or not (connection.is_half_closed or connection.is_reading_held):
            return
        if _is_reset(connection.socket) or self._is_overdue(request):
            connection.abort()
        else:
            self.start()

    def _is_overdue(self, request: Request) -> bool:
        if self._half_closed_at is None or request.head_sent:
            return False
        holds_others_up = request.exchange is not None and request.exchange.others_wait
        patience_s = HURRIED_PATIENCE_S if holds_others_up else PATIENCE_S
        since = max(self._half_closed_at, self._connection.idle_since)
        return self._connection.loop.time() - since >= patience_s


def _is_reset(sock: socket.socket) -> bool:
    try:
        if READ_TELLS:
            sock.recv(1, socket.MSG_PEEK)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except BlockingIOError:
        return False
    except OSError:
        return True
