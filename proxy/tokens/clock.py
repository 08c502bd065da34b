"""The clocks that a token's life is counted by, and how they show that the machine slept.

The monotonic clock can't be set, but it may stand still while a laptop sleeps. The wall clock goes on
meanwhile, but it can be set. So a life is counted by the monotonic clock, and both are compared.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

CLOCK_JUMP_S = 10.0
"""How far the wall clock may run ahead of the monotonic clock before that counts as a suspend."""


class Clock(Protocol):
    """Both clocks and a sleep, so that tests needn't wait."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; they never go back, and may stand still during a suspend."""
        ...

    def time(self) -> float:
        """Wall clock: seconds since 1970 (UTC)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds of the monotonic clock."""
        ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = SystemClock()


class SuspendWatch:
    """Notices that the machine slept, or that its wall clock was put forward.

    ``threshold_s`` is the least jump that counts, in seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self.threshold_s = CLOCK_JUMP_S
        self._clock = clock
        self._ahead_s = self._wall_minus_monotonic()

    def restart(self) -> None:
        """Compare with this moment from now on, so that a slow drift never counts as a suspend."""
        self._ahead_s = self._wall_minus_monotonic()

    def jump_s(self) -> float:
        """The seconds that the wall clock jumped ahead; 0.0 below the threshold. Reports each jump once."""
        ahead_s = self._wall_minus_monotonic()
        jump_s = ahead_s - self._ahead_s
        if jump_s < self.threshold_s:
            self._ahead_s = min(ahead_s, self._ahead_s)  # a wall clock that was put back hides no later jump
            return 0.0
        self._ahead_s = ahead_s
        return jump_s

    def _wall_minus_monotonic(self) -> float:
        return self._clock.time() - self._clock.monotonic()
