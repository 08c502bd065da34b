"""A clock that tests move by hand."""

from __future__ import annotations

import asyncio


class FakeClock:
    """Stands still unless told; sleepers wake in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_800_000_000.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.longest_sleep = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0, "a keeper must never spin"
        self.longest_sleep = max(self.longest_sleep, seconds)
        entry = (self.now + seconds, asyncio.get_running_loop().create_future())
        self.sleepers.append(entry)
        try:
            await entry[1]
        finally:
            self.sleepers.remove(entry)

    async def advance(self, seconds: float) -> None:
        """Both clocks run on; each sleeper wakes at its time."""
        target = self.now + seconds
        await settle()
        while due := [entry for entry in self.sleepers if entry[0] <= target and not entry[1].done()]:
            deadline, future = min(due, key=lambda entry: entry[0])
            self._move_to(max(self.now, deadline))
            future.set_result(None)
            await settle()
        self._move_to(target)

    def suspend(self, seconds: float) -> None:
        """The laptop sleeps: only the wall clock goes on."""
        self.wall += seconds

    def _move_to(self, now: float) -> None:
        self.wall += now - self.now
        self.now = now


async def settle() -> None:
    """Let all tasks go on until they wait."""
    for _ in range(8):
        await asyncio.sleep(0)
