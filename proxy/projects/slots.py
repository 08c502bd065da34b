"""A Contentsquare project's slots: a request holds one while it is at the cloud; the others wait for one.

The callers take turns (see `Turns`), so that the 60 queries of one dashboard can't starve the single query of
another. Each request has a deadline.

Hides how the project is shared with programs that we can't see. The cloud tells us only that a
request was one too many, so each copy of the proxy follows three rules:

- Give up: each refused request takes one slot off our `allowance`. The first refusal in a while, if we
  did not just ask for more, leaves us at most half of the slots: another program needs some. The refused
  request is sent again when another of our requests has been answered; if none is at the cloud, after a
  short pause.
- Ask for more: a round of answers without a refusal adds one slot to the allowance. Each time that the
  cloud refuses the added slot, we wait longer before we ask again (`COOL_DOWN_S`).
- Make room: programs that use all their slots all the time would shut out a new one for ever, because
  they use a slot again before the new one can. So we leave each of our slots empty now and then, one at
  a time (`GAP_S`); the last slot of a small allowance we keep.

Has no tasks and knows nothing of HTTP. Invariant: while a request waits, either all slots of the
allowance are in use, or one slot is left empty for others, or a pause after a refusal is running.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Hashable
from weakref import WeakSet, WeakValueDictionary

from proxy.errors import QueueTimeout
from proxy.projects.slot_minutes import SlotMinutes
from proxy.projects.turns import Turn, Turns
from proxy.projects.uploads import Uploads

RETRY_AFTER_CAP_S = 120
"""The longest ``Retry-After`` in seconds that callers obey, if they obey any (Power Query)."""

PAUSE_S = (0.12, 0.5)
"""How long no request goes out after a refusal, if no other request of ours is at the cloud: after the
first refusal, and at most. The first is shorter than `GAP_S`, so that some try meets a slot left empty."""
PAUSE_GROWTH = 1.1
"""Each further refusal without an answer multiplies the pause by this."""
COOL_DOWN_S = (2.0, 10.0)
"""How long the allowance doesn't grow after a refusal: at first, and at most after several failed growths."""
GAP_S = 0.2
"""How long a slot is left empty for other programs, while all slots of the allowance are in use."""
GAP_EVERY_S = 8.0
"""How often each slot is left empty. With ten slots that is one every 0.8 s, and costs 2.5 % of the slots."""


class Slots:
    """``limit`` slots. Each `acquire`, or `try_acquire` that returned True, needs one `release`."""

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.in_use = 0
        self.waiting = 0
        self._limit = 0
        self._allowance = 0
        self._open = 0  # the allowance; one less while a slot is left empty; 0 during a pause
        self._opening: asyncio.TimerHandle | None = None  # ends the pause, or fills the empty slot
        self._gap_at: float | None = None  # when the next slot is left empty; None until all were in use once
        self._answers = 0  # since the last change of the allowance
        self._refusals_in_a_row = 0
        self._has_grown = False  # the last change of the allowance was a growth
        self._cool_down_s = COOL_DOWN_S[0]
        self._refused_at = -math.inf
        self._turns = Turns(self._end_overdue, self._loop)
        self._release_every_s: float | None = None  # smoothed, and measured only while a request waits
        self._released_at = 0.0
        self._successor: Slots | None = None
        self.minutes = SlotMinutes()
        """The last hour, for people."""
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
        self._turns.move_to(successor._turns)
        if self.waiting and not successor.waiting:
            successor._released_at = self._released_at
        successor.waiting += self.waiting
        successor.minutes.note(successor.in_use, successor.waiting)
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

    def note_refusal(self) -> None:
        """The cloud refused a request because too many run at once. Call this before `release`."""
        if self._successor is not None:
            self._successor.note_refusal()
            return
        self.minutes.refused += 1
        now = self._loop.time()
        if self.in_use <= self._allowance:  # else an earlier refusal took this request's slot off, too
            self._shrink(now)
        self._refused_at = now
        if self.in_use == 1:
            self._pause()

    def _shrink(self, now: float) -> None:
        first_s, last_s = COOL_DOWN_S
        since_s = now - self._refused_at
        left = min(self._allowance, self.in_use) - 1
        if self._has_grown:
            self._cool_down_s = (
                min(last_s, 2 * self._cool_down_s) if since_s < 4 * self._cool_down_s else first_s
            )
        elif since_s > first_s:
            left = min(left, self._limit // 2)
        self._has_grown, self._answers = False, 0
        self._allowance = max(1, left)
        if self._open:
            self._open = self._allowance

    def _pause(self) -> None:
        pause_s = min(PAUSE_S[1], PAUSE_S[0] * PAUSE_GROWTH ** min(self._refusals_in_a_row, 50))
        self._refusals_in_a_row += 1
        pause_s *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter, so that several proxies don't come back together
        self._open_after(pause_s, 0)

    def _leave_one_empty(self) -> None:
        """All slots of the allowance are in use, and one comes free: leave it empty, if that is due."""
        now = self._loop.time()
        if self._gap_at is not None:
            if now < self._gap_at:
                return
            self._open_after(GAP_S, self._allowance - 1)
        self._gap_at = now + GAP_EVERY_S / self._allowance

    def _open_after(self, wait_s: float, until_then: int) -> None:
        """Allow ``until_then`` slots for so many seconds, and then the allowance."""
        if self._opening is not None:
            self._opening.cancel()
        self._open = until_then
        self._opening = self._loop.call_later(wait_s, self._open_all)

    def _open_all(self) -> None:
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
        grow_at = self._refused_at + self._cool_down_s
        if self._answers >= self._allowance and self._loop.time() >= grow_at:
            self._answers = 0
            self._has_grown = True
            self._allowance += 1
            if self._open:
                self._open += 1

    def try_acquire(self) -> bool:
        """Take a slot if one is free and no request waits; returns whether it did."""
        if self._successor is not None:
            return self._successor.try_acquire()
        if self.waiting or self.in_use >= self._open:
            return False
        self.in_use += 1
        if self.in_use > self.minutes.in_use:  # noqa: PLR1730 - a call of max takes three times as long
            self.minutes.in_use = self.in_use
        return True

    async def acquire(self, caller: Hashable, timeout_s: float, *, first: bool = False) -> None:
        """Take a slot, or wait for one for at most ``timeout_s`` seconds; ``first``: before all others.

        Raises `QueueTimeout`, with the time after which a retry may succeed. A cancelled call holds no
        slot: one that was granted in the same moment goes to the next request.
        """
        if self.try_acquire():
            return
        over: asyncio.Future[None] = self._loop.create_future()

        def on_end(error: QueueTimeout | None) -> bool:
            if over.done():  # cancelled
                return False
            if error is None:
                over.set_result(None)
            else:
                over.set_exception(error)
            return True

        turn = self.enqueue(caller, timeout_s, on_end, first=first)
        try:
            await over
        except asyncio.CancelledError:
            if over.cancelled():
                self.leave(turn)
            elif over.exception() is None:
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back; the next request in the queue gets it."""
        if self._successor is not None:
            self._successor.release()
            return
        if self.in_use < 1:
            raise RuntimeError("a slot was released, but none was in use")
        if self.in_use == self._open == self._allowance > 1:
            self._leave_one_empty()
        self.in_use -= 1
        if self.waiting:
            self._measure()
            self._grant()

    def enqueue(
        self,
        caller: Hashable,
        timeout_s: float,
        on_end: Callable[[QueueTimeout | None], bool],
        *,
        first: bool = False,
    ) -> Turn:
        """Wait for a slot, as `acquire` does, but without a task; see `Turn`."""
        if self._successor is not None:
            return self._successor.enqueue(caller, timeout_s, on_end, first=first)
        now = self._loop.time()
        turn = Turn(caller, timeout_s, now + timeout_s, on_end)
        if not self.waiting:
            self._released_at = now
        self._turns.add(turn, first=first)
        self.waiting += 1
        self.minutes.note(self.in_use, self.waiting)
        return turn

    def leave(self, turn: Turn) -> None:
        """Take a turn out of the queue; nothing happens if it is over."""
        if self._successor is not None:
            self._successor.leave(turn)
            return
        if self._turns.remove(turn):
            self.waiting -= 1

    def _end_overdue(self, turn: Turn) -> None:
        self.waiting -= 1
        turn.on_end(_queue_timeout(self, turn.timeout_s, self._retry_after_s()))

    def _grant(self) -> None:
        while self.waiting and self.in_use < self._open:
            turn = self._turns.pop()
            self.waiting -= 1
            self.in_use += 1
            if turn.on_end(None):
                self.minutes.note(self.in_use, self.waiting)
            else:
                self.in_use -= 1

    def _measure(self) -> None:
        now = self._loop.time()
        took_s = now - self._released_at
        before = self._release_every_s
        self._release_every_s = took_s if before is None else before + (took_s - before) / 8
        self._released_at = now

    def _retry_after_s(self) -> int:
        """Seconds until each request that waits now would have a slot, at the pace of the last releases."""
        every_s = max(self._release_every_s or 0.0, self._loop.time() - self._released_at)
        return max(1, min(RETRY_AFTER_CAP_S, math.ceil(every_s * (self.waiting + 1))))


def _queue_timeout(slots: Slots, timeout_s: float, retry_after_s: int) -> QueueTimeout:
    others = f", and {slots.waiting} more wait" if slots.waiting else ""
    shared = ""
    if slots.allowance < slots.limit:
        shared = f" other programs use the project too, and leave about {slots.allowance} of them;"
    return QueueTimeout(
        f"all {slots.limit} slots of this Contentsquare project were busy for {timeout_s:g} s{others};"
        f"{shared} send fewer requests at once, or raise contentsquare.queue_timeout",
        retry_after_s=retry_after_s,
    )


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

    async def count_minutes(self) -> None:
        """Tell all slots of the end of each minute, until cancelled."""
        while True:
            began_at = int(time.time() // 60) * 60
            while time.time() // 60 * 60 == began_at:  # a sleep may end early, or its clock be put forward
                await asyncio.sleep(max(0.01, began_at + 60 - time.time()))
            for slots in (*self._by_id.values(), *self._without_id):
                slots.minutes.end(began_at, slots.in_use, slots.waiting)

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
