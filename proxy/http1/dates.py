"""Dates of HTTP (RFC 9110, section 5.6.7): read in its three forms, written in the first of them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Final

_MONTHS: Final = b"jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH: Final = rb"(?P<month>" + b"|".join(_MONTHS) + rb")"
_TIME: Final = rb"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS: Final = tuple(
    re.compile(form + rb"\Z", re.IGNORECASE)  # RFC 9111, section 4.2: a cache ignores the case
    for form in (
        rb"(?:mon|tue|wed|thu|fri|sat|sun), (?P<day>[0-9]{2}) %b (?P<year>[0-9]{4}) %b gmt" % (_MONTH, _TIME),
        rb"(?:mon|tues|wednes|thurs|fri|satur|sun)day, (?P<day>[0-9]{2})-%b-(?P<year>[0-9]{2}) %b gmt"
        % (_MONTH, _TIME),
        rb"(?:mon|tue|wed|thu|fri|sat|sun) %b (?P<day>[0-9]{2}| [0-9]) %b (?P<year>[0-9]{4})"
        % (_MONTH, _TIME),
    )
)


def parse_date(value: bytes) -> float | None:
    """A date as seconds since 1970; None if the value is no date, or a date in a zone other than GMT."""
    for form in _FORMS:
        if found := form.match(value):
            break
    else:
        return None
    year, second = int(found["year"]), int(found["second"])
    if len(found["year"]) == 2:
        year = _full_year(year)
    try:
        start_of_minute = datetime(
            year,
            _MONTHS.index(found["month"].lower()) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return start_of_minute.timestamp() + second if second <= 60 else None  # 60: a leap second


def _full_year(two_digits: int) -> int:
    """The last year with these digits that is at most 50 years in the future."""
    latest = datetime.now(UTC).year + 50
    return latest - (latest - two_digits) % 100


def date_now() -> bytes:
    """The present date, for the field ``Date``."""
    return _date(int(time.time()))


@lru_cache(1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
