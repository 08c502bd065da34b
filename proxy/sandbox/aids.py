"""Test aids below ``/v1/x-sandbox/``: no part of the vendor's API, but like it they need a token and a slot.

- ``GET bytes?size=N`` sends N bytes with Content-Length, with ``&chunked=1`` chunked; `bytes_sha256`
  says what their digest is.
- ``POST echo-digest`` reads a body of any length and answers ``{"bytes": ..., "sha256": ...}``.
- ``GET truncated?size=N&sent=M`` announces N bytes, sends M and closes the connection.
- ``GET slow?seconds=S`` answers after S seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

from aiohttp import web

from proxy.sandbox.parameters import integer
from proxy.sandbox.wire import (
    Call,
    Router,
    ask_for_body,
    bad_request,
    close,
    json_answer,
    send_pieces,
    success,
)

# Byte i is i % 251: with a prime period, pieces that got lost or swapped change the digest.
_BLOCK = memoryview(bytes(range(251)) * 1044)
_BINARY = "application/octet-stream"


def add_routes(router: Router) -> None:
    """The aids' paths."""
    router.add("GET", "/v1/x-sandbox/bytes", send_bytes)
    router.add("POST", "/v1/x-sandbox/echo-digest", echo_digest)
    router.add("GET", "/v1/x-sandbox/truncated", truncated)
    router.add("GET", "/v1/x-sandbox/slow", slow)


def bytes_sha256(size: int) -> str:
    """The hexadecimal SHA-256 of the content that ``bytes?size=...`` sends."""
    digest = hashlib.sha256()
    for piece in _pieces(size):
        digest.update(piece)
    return digest.hexdigest()


async def send_bytes(call: Call) -> web.StreamResponse:
    """``size`` bytes, always the same ones."""
    size = integer(call.query.get("size", ""), "size")
    chunked = call.query.get("chunked", "0") not in ("", "0", "false")
    return await send_pieces(
        call.request,
        _pieces(size),
        content_type=_BINARY,
        length=None if chunked else size,
        reset_in_body=call.reset_in_body,
    )


async def echo_digest(call: Call) -> web.StreamResponse:
    """The length and digest of the request's body."""
    ask_for_body(call.request)
    digest, size = hashlib.sha256(), 0
    async for piece in call.request.content.iter_any():
        digest.update(piece)
        size += len(piece)
    return json_answer({"bytes": size, "sha256": digest.hexdigest()})


async def truncated(call: Call) -> web.StreamResponse:
    """Fewer bytes than announced."""
    size = integer(call.query.get("size", ""), "size")
    sent = integer(call.query.get("sent", ""), "sent")
    if sent >= size:
        raise bad_request("sent must be less than size.")
    response = web.StreamResponse()
    response.content_type = _BINARY
    response.content_length = size
    await response.prepare(call.request)
    for piece in _pieces(sent):
        await response.write(piece)
    close(call.request)
    return response


async def slow(call: Call) -> web.StreamResponse:
    """An answer that takes its time."""
    try:
        seconds = float(call.query.get("seconds", ""))
    except ValueError:
        raise bad_request("seconds must be a number.") from None
    if not 0 <= seconds <= 24 * 3600:
        raise bad_request("seconds must be between 0 and 86400.")
    await asyncio.sleep(seconds)
    return success({"seconds": seconds})


def _pieces(size: int) -> Iterator[memoryview]:
    while size > 0:
        piece = _BLOCK[:size]
        yield piece
        size -= len(piece)
