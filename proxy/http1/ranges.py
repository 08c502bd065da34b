"""Conditional requests and requests for a range of bytes (RFC 9110, sections 13 and 14). Pure."""

from __future__ import annotations

import re
from typing import Final

from proxy.http1.dates import parse_date
from proxy.http1.fields import FieldLines

_RANGE: Final = re.compile(rb"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*\Z", re.IGNORECASE)
_ETAGS: Final = re.compile(rb'(?:\A|,)[ \t]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")')
NOT_MODIFIED: Final = 304
PRECONDITION_FAILED: Final = 412


class NotSatisfiable(Exception):
    """The content has none of the bytes that the range names: 416 (RFC 9110, section 15.5.17)."""


def asked_range(fields: FieldLines, length: int, etag: bytes, modified: float | None) -> range | None:
    """The bytes of a content of ``length`` bytes that a GET asks for; None: all of it.

    Several ranges, other units and malformed values are ignored (section 14.2), and so is each range whose
    ``If-Range`` names another content than that of ``etag`` and ``modified``. Raises NotSatisfiable.
    """
    value = fields.only(b"range")
    match = None if value is None else _RANGE.match(value)
    if match is None or not _fits_if_range(fields, etag, modified):
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return None
    if first:
        start, stop = int(first), min(int(last) + 1 if last else length, length)
    elif last:
        start, stop = max(0, length - int(last)), length
    else:
        return None
    if start >= stop:
        raise NotSatisfiable
    return range(start, stop)


def _fits_if_range(fields: FieldLines, etag: bytes, modified: float | None) -> bool:
    """Section 13.1.5: only a strong validator counts."""
    values = fields.values(b"if-range")
    if not values:
        return True
    if values[0] == etag:
        return not etag.startswith(b"W/")
    at = parse_date(values[0])
    return at is not None and modified is not None and at == int(modified)


def failed_precondition(fields: FieldLines, etag: bytes, modified: float | None) -> int | None:
    """The status that a GET or HEAD gets in place of the content; None: the content (section 13.2.2).

    ``etag`` is the strong entity tag of the content; ``modified`` is in seconds since 1970, None: not known.
    """
    if matches := fields.values(b"if-match"):
        is_met = _names(matches, etag)
    else:
        at = _date(fields, b"if-unmodified-since")
        is_met = at is None or modified is None or int(modified) <= at
    if not is_met:
        return PRECONDITION_FAILED
    if others := fields.values(b"if-none-match"):
        weak = [value.replace(b"W/", b"") for value in others]  # section 8.8.3.2: weak comparison
        return NOT_MODIFIED if _names(weak, etag) else None
    at = _date(fields, b"if-modified-since")
    return NOT_MODIFIED if at is not None and modified is not None and int(modified) <= at else None


def _names(values: list[bytes], etag: bytes) -> bool:
    joined = b",".join(values)
    return joined.strip() == b"*" or etag in _ETAGS.findall(joined)


def _date(fields: FieldLines, name: bytes) -> float | None:
    value = fields.only(name)
    return None if value is None else parse_date(value)
