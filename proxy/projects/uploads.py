"""Places for requests whose content is still coming: these may hold half of a project's slots, no more.

A caller that sends its content a byte at a time holds a slot meanwhile, and ten such callers would keep
all others out. So only half of the slots are for such requests; another one waits until a place is free
or its content is complete. Knows nothing of HTTP or of the queue for slots.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol


class Content(Protocol):
    """The content of a request. ``on_end`` is called when it is complete, or broken."""

    complete: bool
    on_end: Callable[[], None] | None

    @property
    def broken(self) -> object:
        """Why the content will never be complete; None while it may be."""
        ...


class Uploads:
    """The places of one project. Each `enter` that returned True needs one `leave`."""

    def __init__(self) -> None:
        self.running = 0
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many requests wait for a place or for the end of their content."""
        return len(self._waiting)

    async def enter(self, content: Content, limit: int, wait_s: float) -> bool:
        """Take one of ``limit`` places, or wait for one. False: no more content comes, so none is needed.

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
        """Give a place back; the request that has waited longest gets it."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():  # a cancelled turn is done
                turn.set_result(True)
                return
        self.running -= 1

    def _settle(self, turn: asyncio.Future[bool]) -> None:
        if self._waiting.pop(turn, turn) is None and not turn.done():
            turn.set_result(False)
