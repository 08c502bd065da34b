"""One caller's socket: flow control in both directions, and the end. Must not know requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import Final, cast

from proxy.server.facts import Cut
from proxy.server.request import WritingPeer
from proxy.server.tls import SHUTDOWN_TIMEOUT_S, unacknowledged

_NO_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER with a time of 0: closing the socket resets the connection."""
ABORT_SHUTS_DOWN = sys.platform == "win32"
"""Whether the event loop shuts an aborted socket down before it closes the socket, so that a FIN goes out."""
MOST_UNWRITTEN_BYTES: Final = 64 * 1024
"""How many bytes of an answer wait for the caller before writing pauses: as without TLS. The event loops' own
limit for TLS is 512 KiB, which each caller that doesn't read would take."""
_TURN_S: Final = 0.002
"""After this time uvloop has sent all written bytes: uvloop collects the writes of one turn of the loop."""
LOOK_S = 0.1
"""The time between two looks at whether the caller has taken all of an answer, before TLS ends."""
_ENOUGH_LOOKS: Final = 2
WRITE_STALL_S = 300.0
"""How long a caller may take to read the rest of an answer, before the next answer or the end."""


class CallerSocket(asyncio.Protocol):
    """The protocol behind one caller's socket, from its acceptance on."""

    __slots__ = (
        "_drained",
        "_holds",
        "_is_closing",
        "_is_tls",
        "_loop",
        "_quiet_looks",
        "_stall_timer",
        "_tls_end",
        "cut",
        "opening",
        "peer",
        "socket",
        "transport",
        "writing_paused",
    )

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.socket = sock
        self._loop = loop
        self.opening: asyncio.Task[None] | None = None
        """The task of the TLS handshake."""
        self.transport: asyncio.Transport | None = None
        """None until the TLS handshake has ended, and once the connection is lost."""
        self.peer: WritingPeer | None = None
        self.writing_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._tls_end: asyncio.TimerHandle | None = None
        """The next look whether TLS can end."""
        self.cut: Cut | None = None
        """Why the connection was reset; None where its end needs no words."""
        self._quiet_looks = 0
        """How many looks in a row found no byte that the caller's system has not taken."""
        self._holds = 0
        """How many reasons there are not to read from the caller."""
        self._is_tls = False
        self._is_closing = False
        """Whether no more bytes may be written."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the connection lives on."""
        return self._loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open; on a TLS listener, after the handshake."""
        self.transport = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        if self._is_tls:
            self.transport.set_write_buffer_limits(MOST_UNWRITTEN_BYTES)

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - asyncio's interface
        """The connection is closed."""
        self.transport = None
        self._is_closing = True
        for timer in (self._stall_timer, self._tls_end):
            if timer is not None:
                timer.cancel()

    # What the caller sends

    @property
    def is_reading_held(self) -> bool:
        """Whether nothing is read from the caller for now."""
        return self._holds > 0

    def pause_body(self) -> None:
        """Stop reading from the caller, until `resume_body` was called as often."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None:
            self.transport.pause_reading()

    def resume_body(self) -> None:
        """Read on, unless there is another reason not to."""
        self._holds -= 1
        if not self._holds and self.transport is not None:
            self.transport.resume_reading()

    # What the caller takes

    @property
    def has_unsent(self) -> bool:
        """Whether the kernel has not taken all written bytes."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    @property
    def untaken(self) -> int:
        """The written bytes that the caller's system has not taken.

        Left out are those that our system holds, where it doesn't tell (Windows), and over TLS those that are
        encrypted already and wait for our system.
        """
        transport = self.transport
        return 0 if transport is None else transport.get_write_buffer_size() + unacknowledged(self.socket)

    def pause_writing(self) -> None:
        """The caller reads more slowly than the answer comes."""
        self.writing_paused = True
        if self.peer is not None:
            self.peer.pause()

    def resume_writing(self) -> None:
        """The caller has taken most of the written bytes."""
        self.writing_paused = False
        if self._is_closing:
            return
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.peer is not None:
            self.peer.resume()

    async def drained(self) -> None:
        """Wait until the caller has taken most of the written bytes. A caller that stalls is reset."""
        if self.writing_paused:
            self._drained = self._loop.create_future()
            self._limit_stall()
            await self._drained

    def _limit_stall(self) -> None:
        if self._stall_timer is None:
            self._stall_timer = self._loop.call_later(WRITE_STALL_S, self._on_stall)

    def _on_stall(self) -> None:
        self.cut = Cut(f"its caller took no byte for {WRITE_STALL_S:g} s", "caller")
        self.abort()

    # The end

    def close(self) -> None:
        """Close once the caller has taken all written bytes; a caller that takes too long is reset."""
        self._is_closing = True
        transport = self.transport
        if transport is None:
            if self.opening is not None:
                self.opening.cancel()
        elif not self._is_tls:
            if self.has_unsent:
                self._limit_stall()
            transport.close()
        elif self._tls_end is None:
            self._tls_end = self._loop.call_later(_TURN_S, self._end_tls)

    def _end_tls(self) -> None:
        """Begin the end of TLS once the caller has taken all of the answer, and limit the time for that end.

        One look may find our system's buffer empty while encrypted bytes wait in the event loop. Before the
        next look, the event loop hands those bytes to our system.
        """
        if self.transport is None:
            return
        if self.has_unsent or unacknowledged(self.socket):
            self._quiet_looks = 0
            self._limit_stall()
        else:
            self._quiet_looks += 1
            if self._quiet_looks == _ENOUGH_LOOKS:
                self.transport.close()
            elif self._quiet_looks > _ENOUGH_LOOKS + SHUTDOWN_TIMEOUT_S / LOOK_S:
                self.transport.abort()
                return
        wait_s = _TURN_S if 0 < self._quiet_looks < _ENOUGH_LOOKS else LOOK_S
        self._tls_end = self._loop.call_later(wait_s, self._end_tls)

    def abort(self) -> None:
        """Reset the connection, so that the part of an answer that was sent doesn't look whole."""
        transport = self.transport
        if transport is None:
            self.close()
            return
        if self.socket.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
        if ABORT_SHUTS_DOWN:  # closed at once, the socket sends a reset
            self.socket.close()

    def make_way(self) -> None:
        """Close the connection now, so that there is room for others; reset it if it is closing already."""
        if self.has_unsent or self._is_closing:
            self.abort()
        else:
            self.close()
