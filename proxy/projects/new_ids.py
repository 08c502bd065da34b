"""How many ids of accounts' projects each caller may name that never got a token.

A caller can invent ids, and each costs requests to the token endpoint. An id that gets a token is forgiven at
once, so a caller with real ids is never held up for long; the others are forgiven slowly. Knows nothing of
projects.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from proxy.errors import TokenUnavailable

MOST_UNPROVEN = 64
"""Ids of one caller at once that got no token yet."""
FORGIVEN_PER_S = 2.0
"""So many of them are forgiven in a second."""


class NewIds:
    """The counts by caller; "" stands for all callers where none are defined. ``now`` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counts: dict[str, tuple[float, float]] = {}  # how many, and when

    def add(self, caller: str) -> None:
        """Count a new id. Raises `TokenUnavailable` where the caller has named too many."""
        count = self._count(caller)
        if count + 1 > MOST_UNPROVEN:
            raise TokenUnavailable(
                f"{MOST_UNPROVEN} new projects of accounts are waiting for their first token, or got none:"
                " check their ids, and try again in a moment",
                retry_after_s=math.ceil((count + 1 - MOST_UNPROVEN) / FORGIVEN_PER_S),
            )
        self._counts[caller] = count + 1, self._now()

    def forgive(self, caller: str) -> None:
        """An id of this caller has got its token."""
        self._counts[caller] = max(0.0, self._count(caller) - 1), self._now()

    def _count(self, caller: str) -> float:
        count, at = self._counts.get(caller, (0.0, 0.0))
        return max(0.0, count - (self._now() - at) * FORGIVEN_PER_S)
