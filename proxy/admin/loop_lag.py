"""How late the event loop is: the time by which a sleep lasts too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LAG_EVERY_S = 0.5
"""From one measurement to the next."""
SLOW_S = 0.5
"""A longer lag is worth a warning, once in `LAG_WINDOW_S`."""
LAG_WINDOW_S = 60.0


class LoopLag:
    """The event loop's lag in seconds: ``last_s`` is the last one, `max_s` the longest of the last minutes.

    ``on_slow`` is called with a lag above `SLOW_S`.
    """

    def __init__(self, on_slow: Callable[[float], None]) -> None:
        self.last_s = 0.0
        self._on_slow = on_slow
        self._longest = [0.0, 0.0]  # in the window before, and in this one

    @property
    def max_s(self) -> float:
        """The longest lag of the last one to two `LAG_WINDOW_S`."""
        return max(self._longest)

    async def run(self) -> None:
        """Measure until cancelled."""
        window_ends_at, quiet_until = time.perf_counter() + LAG_WINDOW_S, 0.0
        while True:
            began_at = time.perf_counter()
            await asyncio.sleep(LAG_EVERY_S)
            now = time.perf_counter()
            self.last_s = max(0.0, now - began_at - LAG_EVERY_S)
            if now >= window_ends_at:
                window_ends_at, self._longest = now + LAG_WINDOW_S, [self._longest[1], 0.0]
            self._longest[1] = max(self._longest[1], self.last_s)
            if self.last_s > SLOW_S and now >= quiet_until:
                quiet_until = now + LAG_WINDOW_S
                self._on_slow(self.last_s)
