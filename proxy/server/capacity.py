"""How many connections there are at once, and which of them end when there are too many.

A listener has places for known callers; strangers have places of their own (`proxy.server.strangers`), so a
request for ``/-/healthy`` is answered while known callers have taken all of theirs. A full listener closes
connections without a request, the ones that are idle longest first; further callers wait. So file descriptors
are always left for tokens and for the clouds. Must not know requests.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.server.connection import CallerConnection
from proxy.server.strangers import MOST_STRANGERS

MAX_CONNECTIONS = 1024
"""Of one listener's known callers."""
FEWEST_CONNECTIONS = 8
IDLE_S = 1.0
"""A connection that was accepted or answered later than this time ago may be about to send a request."""
_OTHER_DESCRIPTORS = 32


def _of_callers(descriptors: int) -> int:
    """All connections of callers: a quarter of the descriptors is for the clouds, and for files."""
    return (descriptors - _OTHER_DESCRIPTORS) * 3 // 4


def most_strangers(descriptors: int | None, *, is_tls: bool = False) -> int:
    """How many strangers there may be, if the process may open so many descriptors; None: any number.

    TLS takes some 100 KiB for each, beside a part of a head, so there are fewer.
    """
    most = MOST_STRANGERS * 3 // 8 if is_tls else MOST_STRANGERS
    if descriptors is None:
        return most
    return max(FEWEST_CONNECTIONS, min(most, _of_callers(descriptors) // 3))


def most_connections(descriptors: int | None, listeners: int) -> int:
    """How many known connections each listener may have, as `most_strangers`."""
    if descriptors is None:
        return MAX_CONNECTIONS
    share = (_of_callers(descriptors) - most_strangers(descriptors)) // max(1, listeners)
    return max(FEWEST_CONNECTIONS, min(MAX_CONNECTIONS, share))


def make_room(connections: Iterable[CallerConnection], limit: int, now: float) -> None:
    """Close some idle connections; last those whose callers have not taken all of an answer yet.

    ``now`` is the event loop's clock.
    """
    idle = [one for one in connections if one.is_idle and one.idle_since <= now - IDLE_S]
    idle.sort(key=lambda one: (one.has_unsent, one.idle_since))
    for one in idle[: max(1, limit // 8)]:
        one.make_way()
