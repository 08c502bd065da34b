"""The calls to Contentsquare, by project and account, of each month in UTC; and the warnings of quotas.

A call is a request that was sent to Contentsquare: also one that is sent again, and the proxy's own look-ups
for an export. Token requests, ``/v1/oauth/me`` and answers from the store are none. Contentsquare may count
otherwise.

The counts belong to a name: a renamed project begins at 0. The clock chooses the month, so a clock that was
wrong for a while changes no other month's counts. A quota refuses nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.logs import OnEvent, ignore_event
from proxy.projects.months import Month, Months, difference, forget_old, month_of, start_of, total
from proxy.projects.usage import Calls

STEPS: Final = (100, 80)
"""The percentages of a quota at which a warning is due, once each."""


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
        return _step(self.calls, self.quota)

    @property
    def notice(self) -> str | None:
        """A sentence for people from 80 % of the quota on."""
        if self.quota is None or not self.step:
            return None
        percent = 100 * self.calls // self.quota
        used = f"{self.calls:,} of {self.quota:,} calls of {self.month} are used ({percent} %)"
        return f"{used}; the proxy refuses none, but Contentsquare may" if self.step == STEPS[0] else used


class MonthlyCalls:
    """The counts of all projects. ``on_event`` gets ``quota_nearly_reached`` and ``quota_reached``."""

    def __init__(
        self, on_event: OnEvent = ignore_event, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._on_event = on_event
        self._now = wall_clock
        self._new: list[Calls] = []
        self._quotas: Mapping[str, int] = {}
        self._started_at = wall_clock()
        self._months: Months = {}
        self._saved: Months = {}
        self._name = ""
        self._begins, self._ends = math.inf, -math.inf
        self.is_changed = True
        """Whether a count changed since `unsaved` was called."""
        self._turn()

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
        is_whole = month.since <= self._begins
        return Count(self._name, month.calls.get(name, 0), self._quotas.get(name), month.since, is_whole)

    def look(self) -> None:
        """Add the new calls to the month, and turn to the next one when it has come."""
        if self._new:
            self._warn(self._take())
        if not self._begins <= self._now() < self._ends:
            self._turn()

    def _take(self) -> set[str]:
        """Add the new calls; returns the names with quotas whose counts changed."""
        calls, changed = self._months[self._name].calls, set()
        for one in self._new:
            count = one.take()
            project, slash, _ = one.name.partition("/")
            for name in (one.name, project) if slash else (project,):
                calls[name] = calls.get(name, 0) + count
                if name in self._quotas:
                    changed.add(name)
        self._new.clear()
        self.is_changed = True
        return changed

    def _turn(self) -> None:
        now = self._now()
        self._name = name = month_of(now)
        self._begins = start_of(name)
        self._ends = start_of(month_of(self._begins + 32 * 86_400))
        self._keep_month()

    def _keep_month(self) -> None:
        """Have this month among the months, as the last one."""
        new = Month(max(self._started_at, self._begins))
        self._months[self._name] = self._months.pop(self._name, new)
        forget_old(self._months)
        self.is_changed = True

    def _warn(self, names: Iterable[str]) -> None:
        month = self._months[self._name]
        for name in names:
            quota, calls = self._quotas.get(name), month.calls.get(name, 0)
            step, warned = _step(calls, quota), month.warned.get(name, 0)
            if step != warned:  # less than before: the quota was raised
                month.warned[name] = step
                self.is_changed = True
            if step > warned:
                self._on_event(
                    "quota_reached" if step == STEPS[0] else "quota_nearly_reached",
                    {"name": name, "month": self._name, "calls": calls, "quota": quota},
                )

    # Saved counts

    @property
    def saved(self) -> Months:
        """The counts as they were saved last; nobody may change them."""
        return self._saved

    def unsaved(self) -> Months:
        """What changed since the counts were saved."""
        self.look()
        self.is_changed = False
        return difference(self._months, self._saved)

    def on_saved(self, changes: Months, saved: Months) -> None:
        """The ``changes`` are in ``saved``, which may have the calls of other processes, too."""
        self.look()
        rest = difference(difference(self._months, self._saved), changes)
        self._saved, self._months = saved, total(saved, rest)
        if self._name not in saved:
            self._keep_month()
        self._warn(self._quotas)


def _step(calls: int, quota: int | None) -> int:
    return 0 if quota is None else next((step for step in STEPS if 100 * calls >= step * quota), 0)
