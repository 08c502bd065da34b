"""The runs that callers are reading now: a program that reads a file in several requests gets one run's.

Some programs read an export in five requests and compare no validator. So the run that a caller's first
request found is kept for the requests after it, with the contents that were made of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

from proxy.gateway.exports.content import Content, Spool, Spools
from proxy.gateway.exports.runs import Known, Run
from proxy.projects import Project

PINNED_S: Final = 60.0
"""A run is kept for this time after its last use."""
LONGEST_S: Final = 900.0
"""And no longer than this time in all, so that a caller that asks every minute gets newer runs, too."""
MOST: Final = 256
"""Runs that are kept at once; the one whose last use is the longest ago has to go."""
SWEEP_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class PinKey:
    """``caller`` "": no callers are defined. ``run_id`` None: the newest run."""

    caller: str
    project: Project
    job_id: str
    run_id: str | None


class Making:
    """A content on its way to the disk, for all requests that wait for it."""

    def __init__(self, work: Coroutine[object, object, None]) -> None:
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait
        self._waiting = 0

    async def wait(self, limit_s: float | None) -> None:
        """Wait for the end, or for so many seconds. Raises what the work does.

        The work goes on after that time. It ends where the last request that waits is given up.
        """
        self._waiting += 1
        try:
            await asyncio.wait((self._task,), timeout=limit_s)
        except asyncio.CancelledError:
            if self._waiting == 1:
                self.end()
            raise
        finally:
            self._waiting -= 1
        if self._task.done():
            self._task.result()

    def end(self) -> None:
        """Give the work up."""
        self._task.cancel()

    @property
    def has_ended(self) -> bool:
        """Whether a further request has to begin anew."""
        return self._task.done() or self._task.cancelling() > 0


@dataclass(eq=False, slots=True)
class Pin:
    """A run that is kept. ``users``: how many requests use it now. Times are the event loop's."""

    found_at: float
    used_at: float
    users: int = 0
    run: Run | None = None
    known: Known = field(default_factory=Known)
    spools: dict[bool, Spool | None] = field(default_factory=dict)
    """The contents that were made, by whether they are packed; None: one that has no room."""
    making: dict[bool, Making] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def close(self) -> None:
        """Delete the contents that were made. No request uses the pin."""
        for making in self.making.values():
            making.end()
        for spool in self.spools.values():
            if spool is not None:
                spool.close()
        self.spools.clear()


class Pins:
    """The kept runs, by caller and URL."""

    def __init__(self) -> None:
        self.spools = Spools()
        self._pins: dict[PinKey, Pin] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def using(self, key: PinKey) -> AsyncIterator[Pin]:
        """The pin of a key, which is kept as long as a request uses it."""
        now = asyncio.get_running_loop().time()
        pin = self._pins.get(key)
        if pin is None or self._is_over(pin, now):
            self._drop(key)
            pin = self._pins[key] = Pin(now, now)
            self._make_room()
        if self._timer is None:
            self._sweep_later()
        pin.users += 1
        try:
            yield pin
        finally:
            pin.users -= 1
            pin.used_at = asyncio.get_running_loop().time()
            if not pin.users and self._pins.get(key) is not pin:  # it was dropped meanwhile
                pin.close()

    async def run(self, pin: Pin, find: Callable[[], Awaitable[Run]]) -> Run:
        """The pin's run; ``find`` gets it where none is known. Requests that come meanwhile wait for it."""
        if pin.run is not None:
            return pin.run
        async with pin.lock:
            if pin.run is None:
                pin.run = await find()
                pin.found_at = asyncio.get_running_loop().time()
            return pin.run

    async def made(
        self, pin: Pin, content: Content, *, is_gzip: bool, limit_s: float | None = None
    ) -> Content:
        """The content in a temporary file; the content itself where it has no room, or isn't made in time."""
        if is_gzip not in pin.spools:
            making = pin.making.get(is_gzip)
            if making is None or making.has_ended:
                self._make_room_on_disk()
                making = pin.making[is_gzip] = Making(self._make(pin, content, is_gzip))
            await making.wait(limit_s)
        return pin.spools.get(is_gzip) or content

    async def _make(self, pin: Pin, content: Content, is_gzip: bool) -> None:
        pin.spools[is_gzip] = await self.spools.make(content)

    def forget(self, key: PinKey, pin: Pin) -> None:
        """The pin's files can't be had any more: later requests look for a run again."""
        if self._pins.get(key) is pin:
            self._drop(key)

    def close(self) -> None:
        """Forget all."""
        for key in tuple(self._pins):
            self._drop(key)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_over(self, pin: Pin, now: float) -> bool:
        is_unused = not pin.users and now - pin.used_at >= PINNED_S
        return is_unused or now - pin.found_at >= LONGEST_S

    def _drop(self, key: PinKey) -> None:
        if (pin := self._pins.pop(key, None)) is not None and not pin.users:
            pin.close()

    def _unused(self) -> list[PinKey]:
        """The keys of pins that no request uses, the longest unused first."""
        unused = [key for key, pin in self._pins.items() if not pin.users]
        return sorted(unused, key=lambda key: self._pins[key].used_at)

    def _make_room(self) -> None:
        for key in self._unused()[: max(0, len(self._pins) - MOST)]:
            self._drop(key)

    def _make_room_on_disk(self) -> None:
        """Delete made contents that no request uses, until half of the room is free."""
        for key in self._unused():
            if self.spools.used <= self.spools.limit // 2:
                return
            self._pins[key].close()

    def _sweep_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for key in self._unused():
            if self._is_over(self._pins[key], now):
                self._drop(key)
        if self._pins:
            self._sweep_later()
