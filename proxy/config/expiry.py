"""When configured credentials end, by the ``expires`` that somebody wrote down: says so in time.

Pure decisions about days, and what was said already; when to look is the application's business.
Contentsquare's credentials live one year, and nothing on the wire tells how much of it is left.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable

from proxy.logs.events import OnEvent

WARN_DAYS = (7, 14, 30)
"""So many days before the end it is said, once each; after the end once a day."""


def utc_today() -> dt.date:
    """The date in UTC."""
    return dt.datetime.now(dt.UTC).date()


def days_left(expires: dt.date, today: dt.date) -> int:
    """Whole days until ``expires``; 0 on that day, negative after it."""
    return (expires - today).days


def step_of(left: int) -> int | None:
    """The tightest of `WARN_DAYS` that ``left`` days are within, 0 at the end, None before them all."""
    if left <= 0:
        return 0
    return next((days for days in WARN_DAYS if left <= days), None)


class ExpiryWatch:
    """Tells ``on_event`` of ``credentials_expire``, for each name once a day at most."""

    def __init__(self, on_event: OnEvent, today: Callable[[], dt.date] = utc_today) -> None:
        self._on_event = on_event
        self._today = today
        self._said: dict[str, tuple[dt.date, int, dt.date | None]] = {}

    def look(self, ends: Iterable[tuple[str, dt.date]]) -> None:
        """Say what is due; ``ends`` are all names with their dates, others are forgotten."""
        today = self._today()
        said, self._said = self._said, {}
        for name, expires in ends:
            left = days_left(expires, today)
            step = step_of(left)
            if step is None:
                continue
            self._said[name] = (expires, step, today if step == 0 else None)
            if self._said[name] != said.get(name):
                self._on_event(
                    "credentials_expire", {"name": name, "expires": expires.isoformat(), "days_left": left}
                )
