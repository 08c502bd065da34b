"""The connections of strangers: their callers have not shown a key yet, and may be anybody.

Strangers have a number of places for the whole process, apart from the places of known callers. When all are
taken, the next stranger gets the place of the oldest one, whatever the oldest waits for: its TLS handshake,
the rest of a head or of content, a delayed answer, or the end of its connection. Must not know requests.
"""

from __future__ import annotations

from typing import Protocol

MOST_STRANGERS = 512
"""Of all listeners."""
LEAST_AGE_S = 0.05
"""The time in seconds that each stranger has for its first request, even in a flood."""


class Dropped(Protocol):
    """The part of a connection that `Strangers` needs."""

    accepted_at: float

    def abort(self) -> None:
        """End the connection at once."""


class Strangers:
    """At most so many strangers' connections."""

    __slots__ = ("_oldest_first", "most")

    def __init__(self, most: int = MOST_STRANGERS) -> None:
        self.most = most
        self._oldest_first: dict[Dropped, None] = {}

    def __len__(self) -> int:
        return len(self._oldest_first)

    def add(self, connection: Dropped) -> None:
        """A connection was accepted. The oldest stranger is dropped where there are too many."""
        self._oldest_first[connection] = None
        if len(self._oldest_first) > self.most:
            oldest = next(iter(self._oldest_first))
            del self._oldest_first[oldest]
            oldest.abort()

    def discard(self, connection: Dropped) -> None:
        """The connection's caller is known now, or the connection has ended."""
        self._oldest_first.pop(connection, None)

    def wait_s(self, now: float) -> float:
        """How long nothing may be accepted, in seconds; ``now`` is the event loop's clock."""
        if len(self._oldest_first) < self.most:
            return 0.0
        return max(0.0, next(iter(self._oldest_first)).accepted_at + LEAST_AGE_S - now)
