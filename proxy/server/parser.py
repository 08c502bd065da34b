"""Cuts a caller's bytes into requests.

A request that can't be understood becomes a `Request` with an ``error``, so that it is answered in its
turn. Knows nothing of routing or upstreams. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, cast

from proxy.errors import BadRequest, ProtocolViolation, ProxyError, RequestTimeout
from proxy.http1 import (
    ChunkedDecoder,
    FieldSection,
    RequestHead,
    check_request_start,
    parse_request_head,
)
from proxy.server.body import RequestBody
from proxy.server.request import Connection, Request

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
MAX_PIPELINED: Final = 8
"""Requests of one connection that may wait for their turn; reading pauses beyond."""
HEAD_TIMEOUT_S = 10.0
"""From the first byte of a request head to its last."""


class RequestParser:
    """Cuts a caller's bytes into requests; stands where RequestHandler has aiohttp's parser."""

    __slots__ = (
        "_body",
        "_body_left",
        "_buffer",
        "_closed",
        "_connection",
        "_decoder",
        "_head_timer",
        "_in_flight",
        "_is_late",
        "_section",
        "_seen",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = b""
        self._seen = 0
        self._body: RequestBody | None = None
        self._body_left = 0
        self._decoder: ChunkedDecoder | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self._in_flight = 0
        self._section: FieldSection | None = None
        """Of the last request: a caller's requests mostly have the same."""
        self._closed = False

    @property
    def in_body(self) -> bool:
        """Whether the end of a request is still to come."""
        return self._body is not None

    @property
    def in_head(self) -> bool:
        """Whether a part of a request head has come."""
        return self._head_timer is not None

    def feed_data(self, data: bytes) -> list[Request]:
        """Requests whose heads are complete now; bodies go to their `RequestBody`."""
        requests: list[Request] = []
        if not self._is_listening():
            return requests
        if type(data) is not bytes:
            data = bytes(data)
        if self._body is not None:
            data = self._feed_body(data)
        elif self._buffer:
            data = self._buffer + data
        self._buffer = b""
        while data and self._may_begin():
            if data[0] == 0x0D and (blank := _EMPTY_LINES.match(data)):  # RFC 9112, section 2.2
                data, self._seen = data[blank.end() :], 0
                self.stop_timer()
                continue
            end = data.find(b"\r\n\r\n", max(0, self._seen - 3))
            if end < 0:
                self._begin_late(data, requests)
                break
            self._seen = 0
            head, data = data[:end], data[end + 4 :]
            self._begin(head, requests)
            if self.in_body:
                data = self._feed_body(data)
        self._buffer = data if self._is_listening() else b""
        return requests

    def _is_listening(self) -> bool:
        return not self._closed

    def _may_begin(self) -> bool:
        return self._body is None and not self._closed and self._in_flight < MAX_PIPELINED

    def _begin(self, head: bytes, requests: list[Request]) -> None:
        if self._head_timer is not None:
            self.stop_timer()
        try:
            parsed = parse_request_head(head, self._section)
        except ProxyError as exc:
            self._refuse(exc, requests)
            return
        self._section = parsed.section
        body = RequestBody(self._connection)
        self._add(Request(parsed, body, self._connection), requests)
        if parsed.chunked:
            self._body, self._decoder = body, ChunkedDecoder()
        elif parsed.content_length:
            self._body, self._body_left = body, parsed.content_length
        else:
            body.complete = True

    def _add(self, request: Request, requests: list[Request]) -> None:
        self._in_flight += 1
        self._connection.unanswered += 1
        requests.append(request)

    def _begin_late(self, part: bytes, requests: list[Request]) -> None:
        """Only a part of a head is here: it must be a possible one, and the rest must come in time."""
        if self._is_late:
            self._refuse(RequestTimeout("The request head did not come in time; send it again."), requests)
            return
        try:
            if part != b"\r":
                check_request_start(part, self._seen)
        except ProxyError as exc:
            self._refuse(exc, requests)
            return
        self._seen = len(part)
        if self._head_timer is None:
            self._head_timer = self._connection.loop.call_later(HEAD_TIMEOUT_S, self._on_late)

    def _on_late(self) -> None:
        self._head_timer = None
        if self._connection.is_reading_held:  # the caller can't be blamed
            self._head_timer = self._connection.loop.call_later(HEAD_TIMEOUT_S, self._on_late)
            return
        self._is_late = True
        self._connection.data_received(b"")

    def stop_timer(self) -> None:
        """The head is complete, or will never be."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _feed_body(self, data: bytes) -> bytes:
        """Give ``data`` to the current body; what is beyond its end comes back."""
        body = cast(RequestBody, self._body)
        if self._decoder is not None:
            try:
                content = self._decoder.feed(data)
            except ProtocolViolation as exc:
                self._closed, self._body, self._decoder = True, None, None
                body.fail(BadRequest(f"The request's content can't be read: {exc}."))
                return b""
            if content:
                body.feed(content)
            if not self._decoder.done:
                return b""
            rest, trailers = self._decoder.rest, self._decoder.trailers
            self._body = self._decoder = None
            body.finish(trailers)
            return rest
        if not data:
            return b""
        content, rest = (
            (data, b"")
            if len(data) <= self._body_left
            else (data[: self._body_left], data[self._body_left :])
        )
        self._body_left -= len(content)
        done = not self._body_left
        if done:
            self._body = None
        body.feed(content)
        if done:
            body.finish([])
        return rest

    def _refuse(self, error: ProxyError, requests: list[Request]) -> None:
        """Queue an answer to what can't be understood; nothing after it is read."""
        self._closed = True
        self.stop_timer()
        head = RequestHead.unreadable()
        body = RequestBody(self._connection)
        request = Request(head, body, self._connection)
        request.error = error
        self._add(request, requests)

    # The rest of what BaseProtocol and RequestHandler ask of a parser.

    def message_consumed(self) -> None:
        self._in_flight -= 1

    def pause_reading(self) -> None: ...

    def set_upgraded(self, upgraded: object) -> None: ...
