"""The calls to Contentsquare, by project and account, of each month in UTC; and the warnings of quotas.

A call is a request that was sent to Contentsquare: also one that is sent again, and the proxy's own look-ups
for an export. Token requests, ``/v1/oauth/me`` and answers from the store are none. Contentsquare may count
otherwise.

The counts belong to a name: a renamed project begins at 0. The clock chooses the month, so a clock that was
wrong for a while changes no other month's counts. A quota refuses nothing.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.logs import OnEvent
from proxy.projects.usage import Calls

STEPS: Final = (100, 80)
"""The percentages of a quota at which a warning is due, once each."""
MOST_MONTHS: Final = 3
"""Months that are kept: clocks go wrong, and come back."""
LOOK_S: Final = 1.0
"""Seconds between two looks at the calls and the clock."""


@dataclass(slots=True)
class Month:
    """The calls of a month by the name of the project, and for an account in all.

    ``since`` is when their count began, in seconds since 1970. ``warned`` has the steps that were told.
    """

    since: float
    calls: dict[str, int] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Count:
    """The calls of one project or account in a month such as "2026-11"; ``quota`` None: not configured.

    ``since`` is when the count began, in seconds since 1970; ``is_whole``: the whole month is counted.
    """

    month: str
    calls: int
    quota: int | None
    since: float
    is_whole: bool

    @property
    def step(self) -> int:
        """The highest of `STEPS` that is reached, else 0."""
        return 0 if self.quota is None else _step(self.calls, self.quota)

    @property
    def notice(self) -> str | None:
        """A sentence for people from 80 % of the quota on."""
        if self.quota is None or not self.step:
            return None
        percent = 100 * self.calls // self.quota
        used = f"{self.calls:,} of {self.quota:,} calls of {self.month} are used ({percent} %)"
        return f"{used}; the proxy refuses none, but Contentsquare may" if self.step == STEPS[0] else used


def _ignore_event(event: str, values: Mapping[str, object]) -> None:
    pass


class MonthlyCalls:
    """The counts of all projects. ``on_event`` gets ``quota_nearly_reached`` and ``quota_reached``."""

    def __init__(
        self, on_event: OnEvent = _ignore_event, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._on_event = on_event
        self._now = wall_clock
        self._new: list[Calls] = []
        self._quotas: Mapping[str, int] = {}
        self._started_at = wall_clock()
        self._months: dict[str, Month] = {}
        self._name = ""
        self._turn_to(month_of(self._started_at))

    def of(self, name: str) -> Calls:
        """A counter for the project of that name."""
        return Calls(name, self._new)

    def set_quotas(self, quotas: Mapping[str, int]) -> None:
        """The quotas by the name of the project or account; warns of those that are reached."""
        self._quotas = quotas
        self.look()
        self._warn(quotas)

    def count(self, name: str) -> Count:
        """The calls of a project or an account in this month."""
        self.look()
        month = self._months[self._name]
        is_whole = month.since <= start_of(self._name)
        return Count(self._name, month.calls.get(name, 0), self._quotas.get(name), month.since, is_whole)

    def look(self) -> None:
        """Add the new calls to the month, and turn to the next one when it has come."""
        if self._new:
            names = self._take()
            self._warn(names)
        name = month_of(self._now())
        if name != self._name:
            self._turn_to(name)

    def _take(self) -> set[str]:
        """Add the new calls; returns the names whose counts changed."""
        calls = self._months[self._name].calls
        new, names = self._new.copy(), set()
        self._new.clear()
        for one in new:
            count = one.take()
            for name in {one.name, one.name.partition("/")[0]}:
                calls[name] = calls.get(name, 0) + count
                names.add(name)
        return names

    def _turn_to(self, name: str) -> None:
        since = max(self._started_at, start_of(name))
        month = self._months.pop(name, None) or Month(since)
        self._months[name], self._name = month, name  # the last one
        for old in [*self._months][:-MOST_MONTHS]:
            del self._months[old]

    def _warn(self, names: Mapping[str, int] | set[str]) -> None:
        month = self._months[self._name]
        for name in names:
            quota = self._quotas.get(name)
            step = 0 if quota is None else _step(month.calls.get(name, 0), quota)
            warned = month.warned.get(name, 0)
            if step != warned:  # less than before: the quota was raised
                month.warned[name] = step
            if step > warned:
                self._on_event(
                    "quota_reached" if step == STEPS[0] else "quota_nearly_reached",
                    {"name": name, "month": self._name, "calls": month.calls[name], "quota": quota},
                )


def _step(calls: int, quota: int) -> int:
    return next((step for step in STEPS if 100 * calls >= step * quota), 0)


def month_of(at: float) -> str:
    """The month in UTC of a time in seconds since 1970, such as "2026-11"."""
    return time.strftime("%Y-%m", time.gmtime(at))


def start_of(month: str) -> float:
    """The first second of a month."""
    year, _, number = month.partition("-")
    return calendar.timegm((int(year), int(number), 1, 0, 0, 0))
