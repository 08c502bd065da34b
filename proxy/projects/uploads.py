"""Room for requests whose content is still coming: they may hold half of a project's slots, no more.

Whoever sends a content a byte at a time would hold a slot meanwhile, and ten of them would keep
everybody else out. So of those that are still coming only half may go on at once; the others go on
once their content is here, whole or as a place becomes free. Knows nothing of HTTP or slots' queues.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol


class Content(Protocol):
    """What is still coming. ``on_end`` is called once it is complete, or ``broken`` and never will be."""

    complete: bool
    on_end: Callable[[], None] | None

    @property
    def broken(self) -> object:
        """Why it never will be complete; None otherwise."""
        ...


class Uploads:
    """Of one project. Who got True from `enter` gives the place back by `leave`, once."""

    def __init__(self) -> None:
        self.running = 0
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a place or for their end."""
        return len(self._waiting)

    async def enter(self, content: Content, limit: int, wait_s: float) -> bool:
        """Wait for a place among ``limit``; False where none is needed any more: no content is to come.

        Raises TimeoutError after ``wait_s`` seconds.
        """
        if content.complete or content.broken is not None:
            return False
        if self.running < limit:
            self.running += 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        content.on_end = lambda: self._settle(turn)
        try:
            async with asyncio.timeout(wait_s):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave()
            raise
        finally:
            content.on_end = None
            self._waiting.pop(turn, None)

    def leave(self) -> None:
        """Give a place back; who waits longest takes it."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():  # who waited may have left a moment ago
                turn.set_result(True)
                return
        self.running -= 1

    def _settle(self, turn: asyncio.Future[bool]) -> None:
        if self._waiting.pop(turn, turn) is None and not turn.done():
            turn.set_result(False)
