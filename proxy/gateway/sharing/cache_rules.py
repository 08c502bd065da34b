"""HTTP's rules for caches, for one request and for one answer: may the answer be shared, and for how long.

Pure, but for the time of day: knows heads, and nothing of projects, sockets or where answers are stored.
Each caller has its own answers, so this is a private cache: ``private`` and ``Authorization`` forbid nothing.
``s-maxage`` can still shorten an answer's life.
Sources: RFC 9111 (caching), RFC 9211 (Cache-Status), RFC 6266 (Content-Disposition).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from proxy.gateway.rewrite import fields_to_upstream
from proxy.http1 import FieldLines, FieldSection, ResponseHead, parse_date

MAX_CONTENT_BYTES = 1 << 20
"""The longest content of an answer that can be shared."""
_MOST_SECONDS = 2.0**31
"""A larger number of seconds counts as this one (RFC 9111, section 1.2.2)."""

_DIRECTIVE = re.compile(rb'([^\s,="]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s,]*))?')
_JSON = re.compile(rb"application/(?:json|[^;\s]+\+json)\s*(?:;|\Z)", re.IGNORECASE)
_OWN_TO_A_CALL = frozenset((b"x-request-id", b"traceparent", b"tracestate"))
_TO_CACHES = frozenset((b"cache-control", b"pragma"))
_OF_PARTS = frozenset((b"range",))
_APART = _OWN_TO_A_CALL | _TO_CACHES | _OF_PARTS
"""Requests that differ only in these get the same answer; an answer that varies with them is not shared."""
_NEVER = frozenset(
    (
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-range",
        b"expect",
        b"upgrade",
    )
)
"""An answer to a request with one of these is for that request alone."""
_UNSUPPORTED = frozenset((b"min-fresh", b"only-if-cached"))
"""A request that asks for one of these is forwarded, so that the cloud can obey it."""
_ASKING = _TO_CACHES | _OF_PARTS
_TELLING = frozenset(
    (
        b"age",
        b"cache-control",
        b"content-disposition",
        b"expires",
        b"set-cookie",
        b"trailer",
        b"vary",
    )
)


class Terms(NamedTuple):
    """The wishes of a request about sharing, from its fields.

    ``is_alone``: the caller wants an answer of its own; ``no_store``: it must not be stored, either.
    ``is_of_part``: the caller asks for a part of the content.
    ``max_age_s`` is how old a shared answer may be, in seconds.
    """

    is_alone: bool = False
    no_store: bool = False
    is_of_part: bool = False
    max_age_s: float = math.inf


_NO_TERMS = Terms()


class Verdict(NamedTuple):
    """Whether an answer can be shared: ``refusal`` is a word for the reason why not, None where it can.

    ``lifetime_s`` is how long the cloud calls the answer fresh (infinite if the cloud doesn't say).
    ``age_s`` is the answer's ``Age`` when it came, None without one.
    """

    refusal: bytes | None
    lifetime_s: float = math.inf
    age_s: float | None = None


_GOOD = Verdict(None)


def key_of(section: FieldSection) -> bytes | None:
    """The part of the fields that requests with the same answer share; None: the answer can't be shared."""
    fields = section.fields
    if section.chunked or section.content_length or fields.has_any(_NEVER):
        return None
    lines = fields_to_upstream(section)
    return _without(lines, _APART) if fields.has_any(_APART) else lines


def terms_of(fields: FieldLines) -> Terms:
    """The terms of a request with these fields (RFC 9111, sections 5.2.1 and 5.4)."""
    if not fields.has_any(_ASKING):
        return _NO_TERMS
    directives = _directives(fields.values(b"cache-control"))
    no_cache = b"no-cache" in directives or b"no-cache" in _directives(fields.values(b"pragma"))
    no_store = b"no-store" in directives
    max_age_s = _seconds(directives, b"max-age")
    return Terms(
        is_alone=no_cache or no_store or not max_age_s or not _UNSUPPORTED.isdisjoint(directives),
        no_store=no_store,
        is_of_part=fields.has_any(_OF_PARTS),
        max_age_s=max_age_s,
    )


def _without(lines: bytes, names: frozenset[bytes]) -> bytes:
    return b"\r\n".join(line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names)


def _directives(values: Iterable[bytes]) -> Mapping[bytes, Sequence[bytes]]:
    """Names in lower case, each with all its arguments (RFC 9111, section 5.2)."""
    joined = b",".join(values)
    return _common_directives(joined) if len(joined) <= 128 else _parse_directives(joined)


def _parse_directives(joined: bytes) -> Mapping[bytes, Sequence[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, argument in _DIRECTIVE.findall(joined):
        found.setdefault(name.lower(), []).append(argument.strip(b'"'))
    return MappingProxyType(found)


_common_directives = lru_cache(128)(_parse_directives)


def _seconds(directives: Mapping[bytes, Sequence[bytes]], name: bytes) -> float:
    """The seconds of a directive, the least of several; infinite without the directive.

    A text that is no number counts as 0, so that no answer counts as too fresh (RFC 9111, section 4.2.1).
    """
    arguments = directives.get(name, ())
    return min((_delta_seconds(argument) or 0.0 for argument in arguments), default=math.inf)


def _delta_seconds(text: bytes) -> float | None:
    """A number of seconds (RFC 9111, section 1.2.2); None for a text that is none."""
    return min(float(text), _MOST_SECONDS) if text.isdigit() else None


def verdict_of(head: ResponseHead) -> Verdict:
    """Whether an answer with this head can be shared, if its content arrives completely.

    Only JSON of status 200 can: errors, downloads, event streams and parts are never shared.
    """
    if head.status != 200:
        return Verdict(b"status")
    if head.content_length is None and not head.chunked:
        return Verdict(b"no-length")  # its end can't be told from a cut
    if (head.content_length or 0) > MAX_CONTENT_BYTES:
        return Verdict(b"too-long")
    fields = head.fields
    media_types = fields.values(b"content-type")
    if len(media_types) != 1 or not _JSON.match(media_types[0]):
        return Verdict(b"not-json")
    return _closer_verdict(fields) if fields.has_any(_TELLING) else _GOOD


def _closer_verdict(fields: FieldLines) -> Verdict:
    directives = _directives(fields.values(b"cache-control"))
    for name in (b"no-store", b"no-cache"):
        if name in directives:
            return Verdict(name)
    for name in (b"set-cookie", b"content-disposition", b"trailer"):
        if name in fields.names.places:
            return Verdict(name)
    varies = {name.strip().lower() for value in fields.values(b"vary") for name in value.split(b",")}
    if b"*" in varies or varies & _APART:
        return Verdict(b"vary")
    said = _seconds(directives, b"max-age") if b"max-age" in directives else _until_expires_s(fields)
    return Verdict(None, min(said, _seconds(directives, b"s-maxage")), _age_s(fields.values(b"age")))


def _age_s(values: list[bytes]) -> float | None:
    """The first member of ``Age``, where that is a number of seconds (RFC 9111, section 5.1)."""
    members = [member.strip(b" \t") for member in b",".join(values).split(b",")]
    return _delta_seconds(next(filter(None, members), b""))


def _until_expires_s(fields: FieldLines) -> float:
    """The seconds from ``Date`` to ``Expires`` (RFC 9111, section 4.2.1); infinite without Expires.

    The least of several. 0 if a value is no date, such as "0": the answer is stale (section 5.3). An answer
    without a Date was sent now.
    """
    expires = fields.values(b"expires")
    if not expires:
        return math.inf
    dates = fields.values(b"date")
    ends = [parsed for value in expires if (parsed := parse_date(value)) is not None]
    sent = [parsed for value in dates if (parsed := parse_date(value)) is not None]
    if len(ends) < len(expires) or len(sent) < len(dates):
        return 0.0
    return max(0.0, min(ends) - max(sent, default=time.time()))
