"""Requests that were refused before they reached a project: all since the start, and those of late."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from proxy.projects.measures import RECENT_MINUTES


class Refusals:
    """Counts the refusals by code; ``all`` has those since the start."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self.all: Counter[str] = Counter()
        self._now = wall_clock
        self._minutes: deque[tuple[float, Counter[str]]] = deque(maxlen=RECENT_MINUTES)

    def add(self, code: str) -> None:
        """A request was refused with the error ``code``."""
        self.all[code] += 1
        minute = self._now() // 60
        if not self._minutes or self._minutes[-1][0] != minute:
            self._minutes.append((minute, Counter()))
        self._minutes[-1][1][code] += 1

    def recent(self) -> Counter[str]:
        """Those of this minute and the ones before it, `RECENT_MINUTES` together."""
        now = self._now() // 60
        found: Counter[str] = Counter()
        for minute, codes in self._minutes:
            if now - RECENT_MINUTES < minute <= now:
                found.update(codes)
        return found
