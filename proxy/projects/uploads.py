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
    """The places of one project. Each content that may `enter` has to `leave`, in any case."""

    def __init__(self) -> None:
        self._inside: set[Content] = set()
        self._waiting: OrderedDict[asyncio.Future[None], Content] = OrderedDict()

    @property
    def running(self) -> int:
        """How many requests hold a place."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many requests wait for a place or for the end of their content."""
        return len(self._waiting)

    async def enter(self, content: Content, limit: int, wait_s: float) -> None:
        """Take one of ``limit`` places until `leave` or the end of the content, or wait for one.

        Where the content has ended, none is needed. Raises TimeoutError after ``wait_s`` seconds.
        """
        if content.complete or content.broken is not None:
            return
        if len(self._inside) < limit:
            self._let_in(content)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = content
        content.on_end = lambda: self._settle(turn)
        try:
            async with asyncio.timeout(wait_s):
                await turn
        except BaseException:
            self._waiting.pop(turn, None)
            content.on_end = None
            self.leave(content)
            raise

    def leave(self, content: Content) -> None:
        """Give the content's place back, if it has one; the request that has waited longest gets it."""
        if content not in self._inside:
            return
        self._inside.remove(content)
        content.on_end = None
        while self._waiting:
            turn, first = self._waiting.popitem(last=False)
            if not turn.done():  # a cancelled turn is done
                self._let_in(first)
                turn.set_result(None)
                return

    def _let_in(self, content: Content) -> None:
        self._inside.add(content)
        content.on_end = lambda: self.leave(content)

    def _settle(self, turn: asyncio.Future[None]) -> None:
        content = self._waiting.pop(turn, None)
        if content is not None:
            content.on_end = None
            if not turn.done():
                turn.set_result(None)
