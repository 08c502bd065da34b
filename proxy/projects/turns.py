"""The queue for a project's slots: first come, first served within a caller; the callers take turns.

Hides the order of the turns and their deadlines, for which one timer is enough. Must not know how many slots
there are.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

from proxy.errors import QueueTimeout
from proxy.process import STALLED_S

_TICK_S = 0.001
"""uvloop's clock and timers have whole milliseconds: a deadline that is so near has passed."""
_AFTER_STALL_S = 0.1


class Turn:
    """The place of one request in a queue, for ``timeout_s`` seconds: until ``deadline`` by the loop's clock.

    ``on_end`` is called once, unless the request leaves the queue before that: with None, the request has a
    slot; with a `QueueTimeout`, it has none. ``on_end`` raises nothing, and returns False where it doesn't
    take the slot.
    """

    __slots__ = ("caller", "deadline", "on_end", "timeout_s")

    def __init__(
        self,
        caller: Hashable,
        timeout_s: float,
        deadline: float,
        on_end: Callable[[QueueTimeout | None], bool],
    ) -> None:
        self.caller = caller
        self.timeout_s = timeout_s
        self.deadline = deadline
        self.on_end = on_end


class Turns:
    """The turns of all callers. ``on_overdue`` is called with each turn that is out of time."""

    def __init__(self, on_overdue: Callable[[Turn], None], loop: asyncio.AbstractEventLoop) -> None:
        self._on_overdue = on_overdue
        self._loop = loop
        # The caller with the next turn is first. Each turn can leave in O(1).
        self._by_caller: OrderedDict[Hashable, OrderedDict[Turn, None]] = OrderedDict()
        self._next_look = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many callers have a turn in the queue."""
        return len(self._by_caller)

    def __iter__(self) -> Iterator[Turn]:
        return (turn for queue in self._by_caller.values() for turn in queue)

    def add(self, turn: Turn, *, first: bool) -> None:
        """Put a turn at the end of its caller's; ``first``: before all turns of all callers."""
        queue = self._by_caller.get(turn.caller)
        if queue is None:
            queue = self._by_caller[turn.caller] = OrderedDict()
        queue[turn] = None
        if first:
            queue.move_to_end(turn, last=False)
            self._by_caller.move_to_end(turn.caller, last=False)
        if turn.deadline < self._next_look:
            self._look_at(turn.deadline)

    def remove(self, turn: Turn) -> bool:
        """Take a turn out; whether it was in the queue."""
        queue = self._by_caller.get(turn.caller)
        if queue is None or turn not in queue:
            return False
        del queue[turn]
        if not queue:
            del self._by_caller[turn.caller]
        return True

    def pop(self) -> Turn:
        """Take out the turn that comes next; its caller is the last now. There must be one."""
        caller, queue = next(iter(self._by_caller.items()))
        turn, _ = queue.popitem(last=False)
        if queue:
            self._by_caller.move_to_end(caller)
        else:
            del self._by_caller[caller]
        return turn

    def move_to(self, other: Turns) -> None:
        """Put all turns at the end of another queue."""
        for turn in self:
            other.add(turn, first=False)
        self._by_caller.clear()

    def _look_at(self, when: float) -> None:
        """Look for turns that are out of time then."""
        if self._timer is not None:
            self._timer.cancel()
        self._next_look = when
        self._timer = self._loop.call_at(when, self._end_overdue)

    def _end_overdue(self) -> None:
        now = self._loop.time() + _TICK_S
        if now - self._next_look > STALLED_S:  # the answers that came meanwhile free slots first
            self._look_at(now + _AFTER_STALL_S)
            return
        for turn in [turn for turn in self if turn.deadline <= now]:
            if self.remove(turn):
                self._on_overdue(turn)
        self._next_look, self._timer = math.inf, None
        if self._by_caller:
            self._look_at(min(turn.deadline for turn in self))
