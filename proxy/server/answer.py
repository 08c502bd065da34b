"""The proxy's own answers on the wire: JSON, text, and errors in Contentsquare's shape.

Writes to a `Request`'s transport; must not know projects or upstreams.
Sources: RFC 9110 (fields), RFC 9209 (Proxy-Status).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from proxy.errors import ProxyError
from proxy.http1 import BODYLESS, date_now
from proxy.server.facts import Cut
from proxy.server.request import KEPT, Request
from proxy.server.request_id import request_id

PSEUDONYM = b"csq-proxy"
"""The proxy's name in Proxy-Status: never a host name."""

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_REASONS[421] = b"Misdirected Request"
PIECE = 65_536
"""Bytes of a long answer that are written at once."""
STALL_S = 30.0
"""How long a caller may take for a piece; then the answer is cut."""
Fields = tuple[tuple[bytes, bytes], ...]


def write_answer(
    request: Request,
    status: int,
    content: bytes,
    *,
    content_type: bytes = b"application/json",
    fields: Fields = (),
) -> bool:
    """Answer with short content of the proxy's own; returns whether the connection can be kept."""
    keep, head = _head(request, status, len(content), content_type, fields=fields)
    if request.head.method == b"HEAD":
        content = b""
    request.write(head + content)
    request.answer_bytes = len(content)
    return keep


def begin_answer(
    request: Request,
    status: int,
    length: int | None,
    content_type: bytes,
    *,
    fields: Fields,
    cache: bytes,
) -> bool:
    """Send the head of an answer whose content follows; returns whether the connection can be kept.

    ``length`` None: the content is chunked, or for HTTP/1.0 ends with the connection. ``cache`` is the value
    of Cache-Control.
    """
    keep, head = _head(request, status, length, content_type, fields=fields, cache=cache)
    request.write(head)
    return keep


def _head(
    request: Request,
    status: int,
    length: int | None,
    content_type: bytes,
    *,
    fields: Fields,
    cache: bytes = b"no-store",
) -> tuple[bool, bytes]:
    """Whether the connection can be kept, and the answer's head, which is about to be written."""
    keep = request.may_keep and request.body.complete and request.error is None
    lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b""))]
    if status not in BODYLESS:
        lines.append(b"Content-Type: " + content_type)
        if length is not None:
            lines.append(b"Content-Length: %d" % length)
        elif request.head.minor:
            lines.append(b"Transfer-Encoding: chunked")
        else:
            keep = False
    lines += [
        b"Date: " + date_now(),  # RFC 9110, section 6.6.1
        b"Cache-Control: " + cache,
        b"X-Content-Type-Options: nosniff",
        *(name + b": " + value for name, value in fields),
    ]
    lines.append(KEPT if keep else b"Connection: close")
    request.head_sent = True
    request.status = status
    return keep, b"\r\n".join(lines) + b"\r\n\r\n"


async def send_answer(
    request: Request,
    status: int,
    content: bytes,
    *,
    content_type: bytes = b"application/json",
    fields: Fields = (),
) -> bool:
    """As `write_answer`, for content that may be long: each piece waits until the caller took the one before.

    Returns when the caller has taken most of the content, or was too slow: then its connection is reset.
    """
    if len(content) <= PIECE or request.head.method == b"HEAD":
        return write_answer(request, status, content, content_type=content_type, fields=fields)
    keep, head = _head(request, status, len(content), content_type, fields=fields)
    request.write(head)
    try:
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            request.write(piece)
            request.answer_bytes += len(piece)
            async with asyncio.timeout(STALL_S):
                await request.connection.drained()
    except TimeoutError:
        request.facts.cut = Cut(f"the caller did not take a piece of it in {STALL_S:g} s", "caller")
        request.connection.abort()
        return False
    return keep


def write_json(request: Request, status: int, value: object, *, fields: Fields = ()) -> bool:
    """Answer with JSON."""
    return write_answer(request, status, json.dumps(value, indent=2).encode() + b"\n", fields=fields)


def write_error(
    request: Request,
    error: ProxyError,
    *,
    members: Mapping[str, str] = MappingProxyType({}),
    fields: Fields = (),
) -> bool:
    """Answer with an error of the proxy's own, in Contentsquare's shape, so that its clients can read it.

    ``members`` come first, for clients that know another shape.
    """
    shown = {**members, "success": False, "errorCode": error.code, "errorMessage": error.message}
    request.facts.error_code = error.code
    fields = (
        (b"Proxy-Status", PSEUDONYM + b"; error=" + error.proxy_status.encode()),
        (b"X-Request-Id", request_id(request).encode()),
        *fields,
        *error.fields,
    )
    if error.retry_after_s is not None:
        fields += ((b"Retry-After", b"%d" % max(1, error.retry_after_s)),)
    return write_answer(request, error.status, json.dumps(shown).encode() + b"\n", fields=fields)
