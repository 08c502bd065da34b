"""How many callers' connections a listener has at once, and which of them end when it is full.

A full listener closes connections without a request, the ones that are idle longest first, and accepts no
new ones until there is room: they wait in the kernel's queue, where they cost nothing. So file descriptors
are always left for tokens and for the clouds. Must not know requests.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.server.connection import CallerConnection

MAX_CONNECTIONS = 1024
"""Of one listener."""
FEWEST_CONNECTIONS = 8
IDLE_S = 1.0
"""A connection that was accepted or answered later than this time ago may be about to send a request."""
_OTHER_DESCRIPTORS = 32


def most_connections(descriptors: int | None, listeners: int) -> int:
    """How many connections each listener may have, if the process may open so many descriptors.

    A quarter of them is for connections to the clouds, and for files. None: there is no limit.
    """
    if descriptors is None:
        return MAX_CONNECTIONS
    share = (descriptors - _OTHER_DESCRIPTORS) * 3 // 4 // max(1, listeners)
    return max(FEWEST_CONNECTIONS, min(MAX_CONNECTIONS, share))


def room(limit: int) -> int:
    """How far below ``limit`` a full listener must come before it accepts connections again."""
    return max(1, limit // 16)


def make_room(connections: Iterable[CallerConnection], limit: int, now: float) -> None:
    """Close some idle connections; last those whose callers have not taken all of an answer yet.

    ``now`` is the event loop's clock.
    """
    idle = [one for one in connections if one.is_idle and one.idle_since <= now - IDLE_S]
    idle.sort(key=lambda one: (one.has_unsent, one.idle_since))
    for one in idle[: max(1, limit // 8)]:
        one.make_way()
