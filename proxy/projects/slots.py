"""A Contentsquare project's concurrency: so many requests at once, the others wait their turn.

Hides the queue: first come, first served within a caller; round-robin between callers, so that
one dashboard's 60 queries can't starve another's one; a deadline for each. Hides, too, how the
project is shared with programs that we can't see: each refusal of the cloud shrinks our
`allowance`, answers let it grow again, as TCP's congestion window does (RFC 5681). Has no tasks
of its own and knows nothing of HTTP. Invariant: while anyone waits, the allowance is used up, or
a pause after a refusal is on.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Hashable
from weakref import WeakSet, WeakValueDictionary

from proxy.errors import QueueTimeout
from proxy.projects.uploads import Uploads

RETRY_AFTER_CAP_S = 120
"""Callers that honour ``Retry-After`` at all (Power Query) honour no more than this."""

SHRINK = 0.7
"""What a refusal leaves of the allowance."""
PAUSE_S = (0.05, 2.0)
"""No new request goes out for so long after a refusal: at first, and at most after several in a row."""
COOL_DOWN_S = (1.0, 30.0)
"""The allowance doesn't grow for so long after it shrank: at first, and at most if growing keeps failing."""
ANSWERS_PER_GROWTH = 2
"""The allowance grows by one after so many answers for each slot of it."""

_Queue = OrderedDict[asyncio.Future[None], None]  # ordered, and anyone can leave it in O(1)


class Slots:
    """``limit`` slots; who takes one (`try_acquire`, `acquire`) gives it back by `release`, once."""

    def __init__(self, limit: int) -> None:
        self.in_use = 0
        self.waiting = 0
        self._limit = 0
        self._allowance = 0
        self._open = 0  # the allowance, or 0 during a pause
        self.round = 0
        """Grows with each shrinking; tell `refused` which one a request began in."""
        self._answers = 0
        self._refusals_in_a_row = 0
        self._cool_down_s = COOL_DOWN_S[0]
        self._shrunk_at = -math.inf
        self._queues: OrderedDict[Hashable, _Queue] = OrderedDict()  # the caller whose turn is next, first
        self._release_every_s: float | None = None  # smoothed, and only counted while someone waits
        self._released_at = 0.0
        self._successor: Slots | None = None
        self.uploads = Uploads()
        """The room for those whose content is still coming."""
        self.limit = limit

    def move_to(self, successor: Slots) -> None:
        """Two names turned out to be one project: who holds or waits for a slot here does so there.

        What was taken here is given back here as before, and passed on. Over the limit, as many may
        run as ran before, but none is added.
        """
        if successor is self:
            return
        self._successor = successor
        successor.in_use += self.in_use
        for caller, queue in self._queues.items():
            successor._queues.setdefault(caller, OrderedDict()).update(queue)
        if self.waiting and not successor.waiting:
            successor._released_at = self._released_at
        successor.waiting += self.waiting
        self._queues.clear()
        self.in_use = self.waiting = 0
        successor._grant()

    @property
    def limit(self) -> int:
        """How many may be in use at once; a smaller one takes effect as slots are released."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        was_whole = self._allowance == self._limit
        self._limit = limit
        self._allowance = limit if was_whole else min(self._allowance, limit)
        if self._open or was_whole:
            self._open = self._allowance
        self._grant()

    @property
    def allowance(self) -> int:
        """How many of the `limit` are ours at present: fewer while the cloud refuses for others' sake."""
        return self._allowance

    def refused(self, began_in: int) -> None:
        """The cloud refused a request because too many run at once; call it before `release`.

        ``began_in`` is the `round` in which that request went out: several refusals of one round
        are one sign, not several.
        """
        self._answers = 0
        if began_in != self.round:
            return
        self.round += 1
        if self._successor is not None:
            self._successor.refused(self._successor.round)
            return
        self._refusals_in_a_row += 1
        now = asyncio.get_running_loop().time()
        first_s, last_s = COOL_DOWN_S
        again = now - self._shrunk_at < 4 * self._cool_down_s
        self._cool_down_s = min(last_s, 2 * self._cool_down_s) if again else first_s
        self._shrunk_at = now
        self._allowance = max(1, int(min(self._allowance, self.in_use) * SHRINK))
        self._pause()

    def _pause(self) -> None:
        first_s, last_s = PAUSE_S
        pause_s = min(last_s, first_s * 2 ** min(self._refusals_in_a_row - 1, 16))
        self._open = 0
        pause_s *= random.uniform(0.75, 1.25)  # noqa: S311 - so that several proxies don't come back together
        asyncio.get_running_loop().call_later(pause_s, self._resume, self.round)

    def _resume(self, paused_in: int) -> None:
        if paused_in == self.round:
            self._open = self._allowance
            self._grant()

    def answered(self) -> None:
        """The cloud answered a request with anything but such a refusal; call it before `release`."""
        if self._successor is not None:
            self._successor.answered()
            return
        self._refusals_in_a_row = 0
        if self._allowance == self._limit:
            return
        self._answers += 1
        if self._answers >= ANSWERS_PER_GROWTH * self._allowance:
            self._grow()

    def _grow(self) -> None:
        if asyncio.get_running_loop().time() - self._shrunk_at < self._cool_down_s:
            return
        self._answers = 0
        self._allowance += 1
        if self._open:
            self._open = self._allowance

    def try_acquire(self, caller: Hashable) -> bool:
        """Take a slot if one is free and nobody waits; never blocks."""
        if self._successor is not None:
            return self._successor.try_acquire(caller)
        if self.waiting or self.in_use >= self._open:
            return False
        self.in_use += 1
        return True

    async def acquire(self, caller: Hashable, timeout_s: float, *, first: bool = False) -> None:
        """Take a slot, waiting for at most ``timeout_s`` seconds; ``first`` goes before all who wait.

        Raises `QueueTimeout` with the time after which a retry has a chance. Cancelled, it holds
        nothing: a slot that was granted in the same moment goes to the next one.
        """
        if self._successor is not None:
            await self._successor.acquire(caller, timeout_s, first=first)
            return
        if self.try_acquire(caller):
            return
        turn = self._enqueue(caller, first=first)
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
        if self._successor is not None:
            self._successor.release()
            return
        if self.in_use < 1:
            raise RuntimeError("a slot was released that nobody held")
        self.in_use -= 1
        if self.waiting:
            self._measure()
            self._grant()

    def _enqueue(self, caller: Hashable, *, first: bool) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if not self.waiting:
            self._released_at = loop.time()
        turn: asyncio.Future[None] = loop.create_future()
        queue = self._queues.setdefault(caller, OrderedDict())
        queue[turn] = None
        if first:
            queue.move_to_end(turn, last=False)
            self._queues.move_to_end(caller, last=False)
        self.waiting += 1
        return turn

    def _leave(self, caller: Hashable, turn: asyncio.Future[None]) -> None:
        if self._successor is not None:
            self._successor._leave(caller, turn)  # noqa: SLF001 - of its own kind
            return
        queue = self._queues.get(caller)
        if queue is None or turn not in queue:
            return  # `_grant` met it first, and passed it over
        del queue[turn]
        self.waiting -= 1
        if not queue:
            del self._queues[caller]

    def _grant(self) -> None:
        while self.waiting and self.in_use < self._open:
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
        if self._successor is not None:
            return self._successor._timed_out(timeout_s)  # noqa: SLF001 - of its own kind
        others = f", and {self.waiting} more wait" if self.waiting else ""
        return QueueTimeout(
            f"all {self._limit} slots of this Contentsquare project were busy for {timeout_s:g} s{others};"
            f"{self._shared()} send fewer requests at once, or raise contentsquare.queue_timeout",
            retry_after_s=self._retry_after_s(),
        )

    def _shared(self) -> str:
        if self._allowance == self._limit:
            return ""
        return f" other programs use the project too, and leave about {self._allowance} of them;"

    def _retry_after_s(self) -> int:
        """When the queue as it is now would be through, at the pace seen of late."""
        silent_s = asyncio.get_running_loop().time() - self._released_at
        every_s = max(self._release_every_s or 0.0, silent_s)
        return max(1, min(RETRY_AFTER_CAP_S, math.ceil(every_s * (self.waiting + 1))))


def _was_granted(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled()


class SharedSlots:
    """The slots of all Contentsquare projects, each for as long as a `Project` uses them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_id: WeakValueDictionary[int, Slots] = WeakValueDictionary()
        self._without_id: WeakSet[Slots] = WeakSet()

    @property
    def limit(self) -> int:
        """How many slots each project has; a new limit holds for the slots in use, too."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        for slots in (*self._by_id.values(), *self._without_id):
            slots.limit = limit

    def of(self, project_id: int | None) -> Slots:
        """The slots of one Contentsquare project; new ones if its id is not known (None)."""
        slots = None if project_id is None else self._by_id.get(project_id)
        if slots is None:
            slots = Slots(self._limit)
            if project_id is None:
                self._without_id.add(slots)
            else:
                self._by_id[project_id] = slots
        return slots
