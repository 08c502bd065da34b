"""Reads callers' parameters, text or JSON: whole numbers and moments; writes moments as the vendor does.

A wrong parameter raises `Fault` 400, which names it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TypeGuard

from proxy.sandbox.wire import bad_request

_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)
_DATE_ALONE = re.compile(r"\d{4}-?\d{2}-?\d{2}", re.ASCII)
_YEARS = range(1990, 2200)  # beyond these, adding days or changing the time zone may overflow


def number_in(text: str) -> int | None:
    """The whole number in ``text``; None for any other text."""
    return int(text) if _DIGITS.fullmatch(text) else None


def integer(text: str, name: str) -> int:
    """A whole number of a target. Raises Fault 400."""
    number = number_in(text)
    if number is None:
        raise bad_request(f"{name} must be an integer.")
    return number


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def moment(value: object, name: str) -> datetime:
    """An ISO 8601 date, or date and time, in UTC if it names no time zone. Raises Fault 400."""
    if not isinstance(value, str) or not value:
        raise bad_request(f"{name} is required: an ISO 8601 date.")
    try:
        # An offset's "+" that wasn't percent-encoded arrives as a space.
        found = datetime.fromisoformat(value.strip().replace(" ", "+"))
    except ValueError:
        raise bad_request(f"{name} must be an ISO 8601 date.") from None
    if found.year not in _YEARS:
        raise bad_request(f"{name} is out of range.")
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def is_date_alone(text: str) -> bool:
    """Whether a moment was given as a date without a time."""
    return _DATE_ALONE.fullmatch(text.strip()) is not None


def iso(when: datetime) -> str:
    """``2026-01-31T23:59:59.999Z``: UTC, to the millisecond."""
    utc = when.astimezone(UTC)
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03d}Z"
