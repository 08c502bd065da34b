"""A Contentsquare project's slots: a request holds one while it is at the cloud; the others wait for one.

Hides the queue: first come, first served within a caller; round-robin between callers, so that the 60
queries of one dashboard can't starve the single query of another; a deadline for each request. Also
hides how the project is shared with other programs, which we can't see: each refusal of the cloud
shrinks our `allowance`, and answers let it grow again, as TCP's congestion window does (RFC 5681). Has
no tasks and knows nothing of HTTP. Invariant: while a request waits, either all slots of the allowance
are in use, or a pause after a refusal is running.
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
"""The longest ``Retry-After`` in seconds that callers obey, if they obey any (Power Query)."""

SHRINK = 0.7
"""A refusal multiplies the allowance by this."""
PAUSE_S = (0.05, 2.0)
"""How long no new request goes out after a refusal: after the first, and at most after several in a row."""
COOL_DOWN_S = (1.0, 30.0)
"""How long a shrunk allowance doesn't grow: at first, and at most if each growth is followed by a refusal."""
ANSWERS_PER_GROWTH = 2
"""The allowance grows by one after so many answers for each slot of it."""

_Queue = OrderedDict[asyncio.Future[None], None]  # in order, and each waiter can leave it in O(1)


class Slots:
    """``limit`` slots. Each `acquire`, or `try_acquire` that returned True, needs one `release`."""

    def __init__(self, limit: int) -> None:
        self.in_use = 0
        self.waiting = 0
        self._limit = 0
        self._allowance = 0
        self._open = 0  # the allowance; 0 during a pause
        self.round = 0
        """The number of times that the allowance shrank: an argument of `note_refusal`."""
        self._answers = 0
        self._refusals_in_a_row = 0
        self._cool_down_s = COOL_DOWN_S[0]
        self._shrunk_at = -math.inf
        self._queues: OrderedDict[Hashable, _Queue] = OrderedDict()  # the caller with the next turn is first
        self._release_every_s: float | None = None  # smoothed, and measured only while a request waits
        self._released_at = 0.0
        self._successor: Slots | None = None
        self.uploads = Uploads()
        """The places for requests whose content is still coming."""
        self.limit = limit

    def move_to(self, successor: Slots) -> None:
        """Two names turned out to be one project: move slots in use and waiting requests to ``successor``.

        From now on each method of this object calls that of ``successor``. If more slots are in use than
        the limit allows, the requests that hold them go on, but no further request gets one.
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
        """How many slots may be in use at once; a smaller limit takes effect as slots are released."""
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
        """How many of the `limit` slots we may use now; fewer while other programs use it, too."""
        return self._allowance

    def note_refusal(self, began_in: int) -> None:
        """The cloud refused a request because too many run at once. Call this before `release`.

        ``began_in`` is the `round` in which that request went out: several refusals in one round shrink
        the allowance only once.
        """
        self._answers = 0
        if began_in != self.round:
            return
        self.round += 1
        if self._successor is not None:
            self._successor.note_refusal(self._successor.round)
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
        pause_s *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter, so that several proxies don't come back together
        asyncio.get_running_loop().call_later(pause_s, self._resume, self.round)

    def _resume(self, paused_in: int) -> None:
        if paused_in == self.round:
            self._open = self._allowance
            self._grant()

    def note_answer(self) -> None:
        """The cloud's answer to a request was no such refusal. Call this before `release`."""
        if self._successor is not None:
            self._successor.note_answer()
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
        """Take a slot if one is free and no request waits; returns whether it did."""
        if self._successor is not None:
            return self._successor.try_acquire(caller)
        if self.waiting or self.in_use >= self._open:
            return False
        self.in_use += 1
        return True

    async def acquire(self, caller: Hashable, timeout_s: float, *, first: bool = False) -> None:
        """Take a slot, or wait for one for at most ``timeout_s`` seconds; ``first``: before all others.

        Raises `QueueTimeout`, with the time after which a retry may succeed. A cancelled call holds no
        slot: one that was granted in the same moment goes to the next request.
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
        """Give a slot back; the next request in the queue gets it."""
        if self._successor is not None:
            self._successor.release()
            return
        if self.in_use < 1:
            raise RuntimeError("a slot was released, but none was in use")
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
            self._successor._leave(caller, turn)  # noqa: SLF001 - the same class
            return
        queue = self._queues.get(caller)
        if queue is None or turn not in queue:
            return  # `_grant` has removed it already
        del queue[turn]
        self.waiting -= 1
        if not queue:
            del self._queues[caller]

    def _grant(self) -> None:
        while self.waiting and self.in_use < self._open:
            turn = self._next_turn()
            if not turn.done():  # a cancelled turn is done
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
            return self._successor._timed_out(timeout_s)  # noqa: SLF001 - the same class
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
        """Seconds until each request that waits now would have a slot, at the pace of the last releases."""
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
