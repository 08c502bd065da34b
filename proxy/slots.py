"""A Contentsquare project's concurrency: so many requests at once, the others wait their turn.

Hides the queue: first come, first served within a caller; round-robin between callers, so that
one dashboard's 60 queries can't starve another's one; a deadline for each. Has no tasks of its
own and knows nothing of HTTP. Invariant: while anyone waits, every slot is taken.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Hashable

from proxy.errors import QueueTimeout

RETRY_AFTER_CAP_S = 120
"""Callers that honour ``Retry-After`` at all (Power Query) honour no more than this."""

_Queue = OrderedDict[asyncio.Future[None], None]  # ordered, and anyone can leave it in O(1)


class Slots:
    """``limit`` slots; who takes one (`try_acquire`, `acquire`) gives it back by `release`, once."""

    def __init__(self, limit: int) -> None:
        self.in_use = 0
        self.waiting = 0
        self._limit = 0
        self._queues: OrderedDict[Hashable, _Queue] = OrderedDict()  # the caller whose turn is next, first
        self._release_every_s: float | None = None  # smoothed, and only counted while someone waits
        self._released_at = 0.0
        self.limit = limit

    @property
    def limit(self) -> int:
        """How many may be in use at once; a smaller one takes effect as slots are released."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        self._limit = limit
        self._grant()

    def resize(self, limit: int) -> None:
        """Set `limit`."""
        self.limit = limit

    def try_acquire(self, caller: Hashable) -> bool:  # noqa: ARG002 - takes what `acquire` takes
        """Take a slot if one is free and nobody waits; never blocks."""
        if self.waiting or self.in_use >= self._limit:
            return False
        self.in_use += 1
        return True

    async def acquire(self, caller: Hashable, timeout_s: float) -> None:
        """Take a slot, waiting for at most ``timeout_s`` seconds.

        Raises `QueueTimeout` with the time after which a retry has a chance. Cancelled, it holds
        nothing: a slot that was granted in the same moment goes to the next one.
        """
        if self.try_acquire(caller):
            return
        turn = self._enqueue(caller)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            if _was_granted(turn):
                return
            self._leave(caller, turn)
            raise self._timed_out(timeout_s) from None
        except BaseException:
            if _was_granted(turn):
                self.release()
            else:
                self._leave(caller, turn)
            raise

    def release(self) -> None:
        """Give a slot back; it goes to whoever is next."""
        if self.in_use < 1:
            raise RuntimeError("a slot was released that nobody held")
        self.in_use -= 1
        if self.waiting:
            self._measure()
            self._grant()

    def _enqueue(self, caller: Hashable) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if not self.waiting:
            self._released_at = loop.time()
        turn: asyncio.Future[None] = loop.create_future()
        self._queues.setdefault(caller, OrderedDict())[turn] = None
        self.waiting += 1
        return turn

    def _leave(self, caller: Hashable, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(caller)
        if queue is None or turn not in queue:
            return  # `_grant` met it first, and passed it over
        del queue[turn]
        self.waiting -= 1
        if not queue:
            del self._queues[caller]

    def _grant(self) -> None:
        while self.waiting and self.in_use < self._limit:
            turn = self._next_turn()
            if not turn.done():  # done: cancelled, and about to leave
                self.in_use += 1
                turn.set_result(None)

    def _next_turn(self) -> asyncio.Future[None]:
        caller, queue = next(iter(self._queues.items()))
        turn, _ = queue.popitem(last=False)
        self.waiting -= 1
        if queue:
            self._queues.move_to_end(caller)
        else:
            del self._queues[caller]
        return turn

    def _measure(self) -> None:
        now = asyncio.get_running_loop().time()
        took_s = now - self._released_at
        before = self._release_every_s
        self._release_every_s = took_s if before is None else before + (took_s - before) / 8
        self._released_at = now

    def _timed_out(self, timeout_s: float) -> QueueTimeout:
        others = f", and {self.waiting} more wait" if self.waiting else ""
        return QueueTimeout(
            f"all {self._limit} slots of this Contentsquare project were busy for {timeout_s:g} s{others};"
            " send fewer requests at once, or raise contentsquare.queue_timeout",
            retry_after_s=self._retry_after_s(),
        )

    def _retry_after_s(self) -> int:
        """When the queue as it is now would be through, at the pace seen of late."""
        silent_s = asyncio.get_running_loop().time() - self._released_at
        every_s = max(self._release_every_s or 0.0, silent_s)
        return max(1, min(RETRY_AFTER_CAP_S, math.ceil(every_s * (self.waiting + 1))))


def _was_granted(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled()
