"""The heads that the gateway sends in both directions: the fields that are forwarded, and its own fields.

Removes fields first (hop-by-hop fields, and all that ``Connection`` names), then adds the gateway's own, so
that no caller can have one of these removed. Field lines are forwarded as the bytes that came. Pure.
Sources: RFC 9110, sections 6.6.1 (Date), 7.6 (Connection, Max-Forwards, Via) and 10.1.4 (TE); RFC 9112,
section 6.
"""

from __future__ import annotations

from typing import Final

from proxy.http1 import (
    TARGET_OVERRIDES,
    Field,
    FieldNames,
    FieldSection,
    RequestHead,
    ResponseHead,
    date_now,
)
from proxy.server.request import KEPT
from proxy.tokens import Lease
from proxy.upstream.loop import VIA_NAME

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
# Browsers send localhost's cookies to all its ports, and a Referer may hold a key; a bearer API needs none.
_NOT_TO_UPSTREAM: Final = _HOP_BY_HOP | {
    b"host",
    b"authorization",
    b"proxy-authorization",
    b"x-csq-project",
    b"x-csq-api",
    b"x-api-key",
    b"cookie",
    b"referer",
}
_NOT_TO_CALLER: Final = _HOP_BY_HOP | {b"proxy-authenticate", b"proxy-authentication-info"}
_NOT_WITHOUT_TRAILERS: Final = _NOT_TO_CALLER | {b"trailer"}
_NOT_SHARED: Final = _NOT_WITHOUT_TRAILERS | {b"age"}
_FRAMING_FIELD: Final = frozenset((b"content-length",))
"""Never dropped because ``Connection`` names it: the content would lose its bounds."""
_IN_ANY_SPELLING: Final = TARGET_OVERRIDES | {b"contentlength", b"transferencoding"}
"""Not forwarded, but for `_FRAMING_FIELD`: where ``_`` is read as ``-``, the content would end elsewhere."""
_NOT_IN_TRAILERS: Final = _IN_ANY_SPELLING | {b"contenttype"}
"""A server that takes trailers for fields of the head would take the content for a form."""
_COMMON_OPTIONS: Final = frozenset((b"close", b"keep-alive"))
"""Options of ``Connection`` that name no field, or one that is dropped anyway."""
_MOST_HOPS: Final = 999_999_999
"""The largest ``Max-Forwards`` to send; a larger one becomes this, as RFC 9110 allows."""


def _nominated(options: frozenset[bytes]) -> frozenset[bytes]:
    """The fields that ``Connection`` names (RFC 9110, section 7.6.1)."""
    return options - _FRAMING_FIELD


def request_head(head: RequestHead, target: bytes, lease: Lease) -> bytes:
    """The head to send upstream: the caller's, less hop-by-hop fields, plus the gateway's own fields."""
    section = head.section
    fields = section.to_upstream
    if fields is None:
        fields = fields_to_upstream(section)
    if head.method == b"OPTIONS":
        fields = b"\r\n".join(map(_one_hop_less, fields.split(b"\r\n")))
    host, authorization = lease.host, lease.authorization
    start = (head.method, b" ", target, b" HTTP/1.1\r\nHost: ", host, b"\r\n")
    return b"".join((*start, fields, b"Authorization: ", authorization, b"\r\n\r\n"))


def fields_to_upstream(section: FieldSection) -> bytes:
    """The field lines except Host and Authorization, each with its line end; made once for a section."""
    if section.to_upstream is not None:
        return section.to_upstream
    drop = _NOT_TO_UPSTREAM | _nominated(section.connection)
    if section.minor == 0:
        drop = drop | {b"expect"}
    if misleading := section.fields.names.spelling(_IN_ANY_SPELLING) - _FRAMING_FIELD:
        drop = drop | misleading
    lines = section.fields.without(drop)
    if section.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if section.wants_trailers:
        lines.append(b"TE: trailers\r\nConnection: TE")
    lines.append(b"Via: 1.%d %b\r\n" % (section.minor, VIA_NAME))
    section.to_upstream = b"\r\n".join(lines)
    return section.to_upstream


def _one_hop_less(line: bytes) -> bytes:
    """``Max-Forwards`` counted down (RFC 9110, section 7.6.2); a request with 0 isn't forwarded."""
    name, _, value = line.partition(b":")
    hops = value.strip(b" \t")
    if name.lower() != b"max-forwards" or not hops.isdigit():
        return line
    hops = hops.lstrip(b"0")
    return b"%b: %d" % (name, int(hops or b"1") - 1 if len(hops) < 10 else _MOST_HOPS)


def _dated_lines(head: ResponseHead, drop: frozenset[bytes]) -> list[bytes]:
    """The status line and the fields not in ``drop``; a Date is added where none is left."""
    fields = head.fields
    lines = [head.status_line, *fields.without(drop)]
    if b"date" not in fields.names.places or b"date" in drop:
        lines.append(b"Date: " + date_now())
    return lines


def response_head(head: ResponseHead, request: RequestHead, keep: bool, chunked: bool, added: bytes) -> bytes:
    """The head to send to the caller: the cloud's, less hop-by-hop fields, plus the framing and a Date.

    ``added`` is a field line of the gateway's, without its line end.
    """
    drop = _NOT_TO_CALLER if request.wants_trailers else _NOT_WITHOUT_TRAILERS
    if head.connection and not head.connection <= _COMMON_OPTIONS:
        drop = drop | _nominated(head.connection)
    if head.status == 204:
        drop = drop | _FRAMING_FIELD
    lines = _dated_lines(head, drop)
    if chunked or (head.chunked and request.method == b"HEAD" and request.minor == 1 and head.status != 204):
        lines.append(b"Transfer-Encoding: chunked")
    if added:
        lines.append(added)
    lines += (KEPT if keep else b"Connection: close", b"\r\n")
    return b"\r\n".join(lines)


def shared_head(head: ResponseHead, content_bytes: int) -> bytes:
    """The lines of an answer that may go to several callers, each with its line end.

    Without Age and hop-by-hop fields: `end_of_head` adds the last lines for each caller.
    """
    drop = _NOT_SHARED
    if not head.connection <= _COMMON_OPTIONS:
        drop = drop | _nominated(head.connection)
    lines = _dated_lines(head, drop)
    if head.content_length is None:
        lines.append(b"Content-Length: %d" % content_bytes)
    lines.append(b"")
    return b"\r\n".join(lines)


def part_head(head: bytes, part: range, content_bytes: int) -> bytes:
    """The lines of a `shared_head` for a part of its content (RFC 9110, section 15.3.7)."""
    lines = [line for line in head.split(b"\r\n")[1:] if not line.lower().startswith(b"content-length:")]
    place = b"Content-Range: bytes %d-%d/%d" % (part[0], part[-1], content_bytes)
    start = (b"HTTP/1.1 206 Partial Content", b"Content-Length: %d" % len(part), place)
    return b"\r\n".join((*start, *lines))


def end_of_head(*, keep: bool) -> bytes:
    """The last lines of a head for one caller: whether its connection is kept, and the empty one."""
    return (KEPT if keep else b"Connection: close") + b"\r\n\r\n"


def interim_head(head: ResponseHead) -> bytes:
    """The head of an interim answer (1xx) to send to the caller."""
    drop = _NOT_TO_CALLER | _FRAMING_FIELD | _nominated(head.connection)  # RFC 9110, section 8.6
    lines = head.fields.without(drop)
    return b"\r\n".join((head.status_line, *lines, b"\r\n"))


def trailers_to_upstream(trailers: list[Field], head: RequestHead) -> list[Field]:
    """The caller's trailer fields that are forwarded."""
    drop = _NOT_TO_UPSTREAM | _nominated(head.connection)
    if trailers:
        drop = drop | FieldNames([field.name for field in trailers]).spelling(_NOT_IN_TRAILERS)
    return [field for field in trailers if field.name not in drop]


def trailers_to_caller(trailers: list[Field], head: RequestHead) -> list[Field]:
    """The cloud's trailer fields that are forwarded: none, unless the caller sent ``TE: trailers``."""
    return [field for field in trailers if field.name not in _NOT_TO_CALLER] if head.wants_trailers else []
