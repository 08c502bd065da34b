"""The way between this machine and the peer of one TCP connection: whether it died in silence.

A network that changes (VPN, Wi-Fi, sleep) ends a way without FIN or RST. This module hides what each system's
TCP tells about that. The peer is a cloud, or the HTTP proxy in front of it. Must not know TLS or HTTP.

Linux counts what the peer leaves unanswered: data, probes of a window that is shut, and probes of a
connection that has no data on its way (keep-alive). So a peer that takes an upload slowly is told from a way
that is dead. The other systems end the connection by themselves, after a time that is set.
Source: RFC 9293, sections 3.8.3, 3.8.4 and 3.8.6.1.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import sys
import time
from typing import Final

PLATFORM: str = sys.platform
DEAD_S = 13.0
"""A way without a sign of life for this time is dead. With the second between two looks, and the time that a
new connection takes, the caller has its answer within 15 s."""
PATIENT_S = 60.0
"""The same while an answer is under way, so that the answer outlives a network that comes back."""
PROBE_AFTER_S = 4
"""The peer is probed after so many seconds without a sign of life."""
PROBE_EVERY_S = 3

_UNANSWERED: Final = 2
"""One segment without an answer may be on its way; as many as this say that the peer had its chance."""
_RETRANSMITS: Final = 2  # places in Linux's struct tcp_info
_PROBES: Final = 3
_LAST_RECEIVED: Final = struct.Struct("=52xII")  # milliseconds since data came, and since an ACK came
_INFO_BYTES: Final = 256
_CLOSED: Final = (OSError, ValueError)
"""The errors of a socket that was closed a moment ago; ValueError is uvloop's."""

_NUMBERS: Final[dict[str, tuple[int, ...]]] = {
    "linux": (4, 5, 6),
    "darwin": (0x10, 0x101, 0x102, 0x80),
    "win32": (3, 17, 16, 5),
}
"""Numbers of TCP's options: TCP_KEEPIDLE (macOS: TCP_KEEPALIVE), TCP_KEEPINTVL and TCP_KEEPCNT say when the
first probe is sent, the time between two, and how many. macOS's TCP_RXT_CONNDROPTIME and Windows' TCP_MAXRT
say how long data may stay without ACK; Linux's TCP_USER_TIMEOUT would end a slow upload, too."""


def options(platform: str, limit_s: float) -> list[tuple[int, int]]:
    """TCP's options, as numbers and values, that end a connection whose way is dead for ``limit_s`` seconds.

    An empty list for a platform whose numbers aren't known.
    """
    numbers = _NUMBERS.get(platform, ())
    probes = max(1, math.ceil((limit_s - PROBE_AFTER_S) / PROBE_EVERY_S))
    return list(zip(numbers, (PROBE_AFTER_S, PROBE_EVERY_S, probes, math.ceil(limit_s)), strict=False))


def is_silent(info: bytes, limit_s: float) -> bool:
    """Whether Linux's struct tcp_info tells of a peer that left all unanswered for ``limit_s`` seconds."""
    if len(info) < _LAST_RECEIVED.size or max(info[_RETRANSMITS], info[_PROBES]) < _UNANSWERED:
        return False
    return bool(min(_LAST_RECEIVED.unpack_from(info)) >= limit_s * 1000)


def source_for(family: int, peer: tuple[str, int]) -> str | None:
    """The address of this machine that a packet to ``peer`` would have now; None where there is no way.

    Sends nothing: a datagram socket that is connected has its addresses set, and no more.
    """
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(peer)
        return str(probe.getsockname()[0])
    return None


class Way:
    """The way of one connection over IPv4 or IPv6. Raises OSError where the peer has closed it already."""

    __slots__ = ("_limit_s", "_no_route_since", "_peer", "_socket", "source")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._peer: tuple[str, int] = sock.getpeername()
        self.source = source_for(sock.family, self._peer)
        """This machine's address towards the peer when the connection was made."""
        self._limit_s = 0.0
        self._no_route_since = math.inf
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._set_limit(PATIENT_S if PLATFORM == "linux" else DEAD_S)

    def _set_limit(self, limit_s: float) -> None:
        self._limit_s = limit_s
        for number, value in options(PLATFORM, limit_s):
            with contextlib.suppress(*_CLOSED):  # or an older system lacks the option
                self._socket.setsockopt(socket.IPPROTO_TCP, number, value)

    def is_dead(self, *, is_answering: bool, is_uploading: bool) -> bool:
        """Whether the way died; where the system ends dead connections itself, tell it the time and say no.

        ``is_answering``: an answer's head has come, but not all of the answer. ``is_uploading``: the kernel
        has not taken all of the request.
        """
        if PLATFORM == "linux":
            limit_s = PATIENT_S if is_answering else DEAD_S
            with contextlib.suppress(*_CLOSED):
                info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                return is_silent(info, limit_s) or self._lacks_route(limit_s)
            return False
        limit_s = PATIENT_S if is_answering or is_uploading else DEAD_S
        if limit_s != self._limit_s:
            self._set_limit(limit_s)
        return False

    def _lacks_route(self, limit_s: float) -> bool:
        """Whether nothing could be sent to the peer for ``limit_s`` seconds, though it may still be heard."""
        if source_for(self._socket.family, self._peer) is not None:
            self._no_route_since = math.inf
            return False
        now = time.monotonic()
        self._no_route_since = min(self._no_route_since, now)
        return now - self._no_route_since >= limit_s

    def has_moved(self) -> bool:
        """Whether this machine would use another source address now than when the connection was made."""
        source = source_for(self._socket.family, self._peer)
        return source is not None and source != self.source
