"""Warnings before credentials end, by the date in ``expires``.

Contentsquare's credentials live one year, and no answer tells how much of it is left. The application decides
when to look; this module decides which warnings are due.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable

from proxy.logs import OnEvent

WARN_DAYS = (7, 14, 30)
"""Days before the end on which a warning is due, once each; after the end one is due every day."""


def utc_today() -> dt.date:
    """The date in UTC."""
    return dt.datetime.now(dt.UTC).date()


def days_left(expires: dt.date, today: dt.date) -> int:
    """Whole days until ``expires``; 0 on that day, negative after it."""
    return (expires - today).days


def step_of(left: int) -> int | None:
    """The smallest of `WARN_DAYS` that is not below ``left``; 0 from the end on, None before all of them."""
    if left <= 0:
        return 0
    return next((days for days in WARN_DAYS if left <= days), None)


class ExpiryWatch:
    """Sends ``credentials_expire`` to ``on_event``, for each name at most once a day."""

    def __init__(self, on_event: OnEvent, today: Callable[[], dt.date] = utc_today) -> None:
        self._on_event = on_event
        self._today = today
        self._sent: dict[str, tuple[dt.date, int, dt.date | None]] = {}

    def look(self, ends: Iterable[tuple[str, dt.date]]) -> None:
        """Send the warnings that are due. ``ends`` are all names and dates; other names are forgotten."""
        today = self._today()
        sent, self._sent = self._sent, {}
        for name, expires in ends:
            left = days_left(expires, today)
            step = step_of(left)
            if step is None:
                continue
            self._sent[name] = (expires, step, today if step == 0 else None)
            if self._sent[name] != sent.get(name):
                self._on_event(
                    "credentials_expire", {"name": name, "expires": expires.isoformat(), "days_left": left}
                )
