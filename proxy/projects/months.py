"""The calls of some months, as values: their sums and differences. Pure.

A month is named such as "2026-11", in UTC. The one that changed last is the last of a dict.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

MOST_MONTHS: Final = 3
"""Months that are kept: clocks go wrong, and come back."""


@dataclass(slots=True)
class Month:
    """The calls of a month by the name of the project, and of the account for all its projects.

    ``since`` is when their count began, in seconds since 1970. ``warned`` has the percentage that was last
    told of each quota.
    """

    since: float
    calls: dict[str, int] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)


Months: TypeAlias = dict[str, Month]


def month_of(at: float) -> str:
    """The month of a time in seconds since 1970."""
    return time.strftime("%Y-%m", time.gmtime(at))


def start_of(month: str) -> float:
    """The first second of a month. Raises ValueError for another text."""
    year, _, number = month.partition("-")
    return calendar.timegm((int(year), int(number), 1, 0, 0, 0))


def total(months: Mapping[str, Month], more: Mapping[str, Month]) -> Months:
    """Both together; only the months that changed last are kept."""
    both = {name: Month(one.since, {**one.calls}, {**one.warned}) for name, one in months.items()}
    for name, new in more.items():
        month = both.pop(name, None) or Month(_since(name, new.since, both))
        month.since = min(month.since, new.since)
        for owner, calls in new.calls.items():
            month.calls[owner] = month.calls.get(owner, 0) + calls
        month.warned.update(new.warned)
        both[name] = month
    forget_old(both)
    return both


def _since(name: str, since: float, known: Months) -> float:
    """Calls of the month before were counted, so those of the whole month are: before, there was no proxy."""
    began = start_of(name)
    before = month_of(max(began - 1, 0.0))  # Windows knows no time before 1970
    return min(since, began) if before in known else since


def difference(months: Mapping[str, Month], known: Mapping[str, Month]) -> Months:
    """The changes that lead from ``known`` to ``months``."""
    changes = {}
    for name, month in months.items():
        old = known.get(name) or Month(month.since)
        calls = {
            owner: new for owner, count in month.calls.items() if (new := count - old.calls.get(owner, 0)) > 0
        }
        warned = {owner: step for owner, step in month.warned.items() if step != old.warned.get(owner, 0)}
        if calls or warned or name not in known:
            changes[name] = Month(month.since, calls, warned)
    return changes


def forget_old(months: Months) -> None:
    """Keep the months that changed last."""
    for name in [*months][:-MOST_MONTHS]:
        del months[name]
