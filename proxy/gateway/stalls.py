"""Cuts answers that hold a slot because their callers take them too slowly, while other requests wait for it.

The cloud's answer isn't read on while its caller takes nothing, so the request keeps its slot. Time counts
against a caller only while bytes lie ready for it (its connection asked for a pause) and a request waits for
one of the same project's slots; so the time that the cloud takes never counts. The count begins anew at each
look that finds an average of ``server.min_rate`` since its beginning. From ``server.min_rate_after`` seconds
on, the answer may be cut.

The bytes in the buffers of the caller's system count as taken, and where our system tells about its own
buffers, the bytes in those don't (see `CallerSocket.untaken`). The caller's system takes bytes in steps of
up to half a MiB, though its program reads evenly; so a caller is granted some bytes (`GRANT`). If the system
holds many MiB, and the program reads at little more than the rate, the answer may be cut all the same.

Looks only while a request waits for a slot, or after that while a slow caller is known. A request that
doesn't wait costs nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from proxy.config.settings import ServerSettings
from proxy.gateway.exchange import Exchange, exchange_of
from proxy.projects import Slots
from proxy.server.facts import Cut
from proxy.server.request import Request

LOOK_S: Final = 1.0
"""The longest time between two looks."""
LOOKS: Final = 10
"""The fewest looks within ``min_rate_after``."""
GRANT: Final = 0.5
"""The share of the bytes due within ``min_rate_after`` that a caller needn't have taken. A caller with
less than half of the rate is cut after that time, and a caller with more of it later."""


class _Mark:
    """The look since which a caller has taken too little."""

    __slots__ = ("had_bytes_ready", "slow_s", "taken", "taken_before")

    def __init__(self, taken: int) -> None:
        self.taken_before = taken
        """How many bytes the caller had taken at that look."""
        self.taken = 0
        """How many it has taken since then."""
        self.slow_s = 0.0
        """The time since then that counts."""
        self.had_bytes_ready = True
        """Whether bytes lay ready for the caller at the last look."""


class StallWatch:
    """Watches the answers of ``requests``, all that are being answered, by the settings at each look."""

    def __init__(
        self, requests: Callable[[], Iterable[Request]], settings: Callable[[], ServerSettings]
    ) -> None:
        self._requests = requests
        self._settings = settings
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self._marks: dict[Exchange, _Mark] = {}

    def begin_wait(self) -> None:
        """A request begins to wait for a slot; call `end_wait` when its wait is over."""
        self._waiting += 1
        if self._timer is None:
            self._look_later()

    def end_wait(self) -> None:
        """A request has its slot, or waits no longer."""
        self._waiting -= 1

    def _look_later(self) -> None:
        settings = self._settings()
        if settings.min_rate:
            loop = asyncio.get_running_loop()
            self._looked_at = loop.time()
            self._timer = loop.call_later(min(LOOK_S, settings.min_rate_after / LOOKS), self._look)
        else:
            self._marks.clear()

    def _look(self) -> None:
        self._timer = None
        passed_s = asyncio.get_running_loop().time() - self._looked_at
        marks: dict[Exchange, _Mark] = {}
        for request in self._requests():
            exchange = exchange_of(request)
            if exchange is not None and exchange.has_slot and request.head_sent:
                mark = self._marked(exchange, passed_s)
                if mark is not None:
                    marks[exchange] = mark
        self._marks = marks  # the others are over
        self._cut_slowest()
        if self._waiting or marks:
            self._look_later()

    def _marked(self, exchange: Exchange, passed_s: float) -> _Mark | None:
        """The answer's mark, ``passed_s`` seconds after the last look; None: its caller isn't slow."""
        connection = exchange.request.connection
        mark = self._marks.get(exchange)
        if not connection.writing_paused:
            if mark is not None:
                mark.had_bytes_ready = False
            return mark
        taken = exchange.request.answer_bytes - connection.untaken
        if mark is None:
            return _Mark(taken)
        if mark.had_bytes_ready and exchange.others_wait:
            mark.slow_s += passed_s
        mark.had_bytes_ready = True
        mark.taken = taken - mark.taken_before
        return mark if mark.taken < self._settings().min_rate * mark.slow_s else _Mark(taken)

    def _cut_slowest(self) -> None:
        """Cut slow callers' answers, as many as requests wait, those first whose callers are slow longest."""
        settings = self._settings()
        after_s = settings.min_rate_after
        left: dict[Slots, int] = {}
        for exchange, mark in sorted(self._marks.items(), key=_slow_s, reverse=True):
            if mark.slow_s < after_s:
                return
            if mark.taken >= settings.min_rate * (mark.slow_s - GRANT * after_s):
                continue
            slots = exchange.project.slots
            if left.setdefault(slots, slots.waiting) > 0:
                left[slots] -= 1
                exchange.project.measures.slow_callers += 1
                exchange.request.facts.cut = Cut(
                    f"its caller took less than {settings.min_rate} bytes/s over {after_s:g} s,"
                    " while other requests waited for a slot",
                    "caller",
                )
                exchange.request.connection.abort()


def _slow_s(item: tuple[Exchange, _Mark]) -> float:
    return item[1].slow_s
