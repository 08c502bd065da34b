"""Cuts a caller's bytes into requests, and puts them into the connection's queue.

A request that can't be understood is queued with an ``error``, so that it is answered in its turn. Must not
know routing or clouds. Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Final

from proxy.errors import BadRequest, ProtocolViolation, ProxyError, RequestTimeout
from proxy.http1 import (
    ChunkedDecoder,
    Field,
    FieldSection,
    RequestHead,
    check_request_start,
    parse_request_head,
)
from proxy.logs import redactor
from proxy.server.body import NO_CONTENT, RequestBody
from proxy.server.request import Connection, Request

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
MAX_PIPELINED: Final = 8
"""Requests of one connection that may wait for their turn. Bytes of further requests stay in the parser."""
HEAD_TIMEOUT_S = 10.0
"""The longest time from the first byte of a request head to its last."""


class RequestParser:
    """The parser of one connection. `feed` appends requests to ``queue``, at most `MAX_PIPELINED`.

    A request is queued as soon as its head is complete. Its content goes to its `RequestBody`.
    """

    __slots__ = (
        "_body",
        "_body_left",
        "_buffer",
        "_connection",
        "_decoder",
        "_head_timer",
        "_is_stopped",
        "_queue",
        "_section",
        "_seen",
    )

    def __init__(self, connection: Connection, queue: deque[Request]) -> None:
        self._connection = connection
        self._queue = queue
        self._buffer = b""
        self._seen = 0
        """How many bytes of an incomplete head were checked already."""
        self._body: RequestBody | None = None
        self._body_left = 0
        self._decoder: ChunkedDecoder | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._section: FieldSection | None = None
        """The fields of the last request: the next request of the same caller mostly has the same ones."""
        self._is_stopped = False

    @property
    def in_body(self) -> bool:
        """Whether the content of the last request is incomplete."""
        return self._body is not None

    @property
    def in_head(self) -> bool:
        """Whether a part of a request head has come."""
        return self._head_timer is not None

    def feed(self, data: bytes) -> None:
        """Take bytes from the caller; with no bytes, look again at those that are held."""
        if self._is_stopped:
            return
        if self._body is not None:
            data = self._feed_body(self._body, data)
        elif self._buffer:
            data = self._buffer + data
        self._buffer = b""
        queue = self._queue
        while data and self._body is None and len(queue) < MAX_PIPELINED and not self._is_stopped:
            if data[0] == 0x0D and (blank := _EMPTY_LINES.match(data)):  # RFC 9112, section 2.2
                data, self._seen = data[blank.end() :], 0
                self._stop_timer()
                continue
            end = data.find(b"\r\n\r\n", self._seen - 3 if self._seen > 3 else 0)
            if end < 0:
                self._check_part(data)
                break
            self._seen = 0
            head, data = data[:end], data[end + 4 :]
            body = self._queue_request(head)
            if body is not None:
                data = self._feed_body(body, data)
        self._buffer = data

    def stop(self) -> None:
        """Read nothing any more: the connection has ended, or the caller has sent its last byte."""
        self._is_stopped = True
        self._buffer = b""
        self._stop_timer()

    def _queue_request(self, head: bytes) -> RequestBody | None:
        """Queue the request with this head; returns its content, None where it has none."""
        if self._head_timer is not None:
            self._stop_timer()
        try:
            parsed = parse_request_head(head, self._section)
        except ProxyError as exc:
            self._refuse(exc)
            return None
        self._section = parsed.section
        if not parsed.chunked and not parsed.content_length:
            self._queue.append(Request(parsed, NO_CONTENT, self._connection))
            return None
        self._body = body = RequestBody(self._connection)
        self._queue.append(Request(parsed, body, self._connection))
        if parsed.content_length is None:
            self._decoder = ChunkedDecoder()
        else:
            self._body_left = parsed.content_length
        return body

    def _check_part(self, part: bytes) -> None:
        """Refuse an incomplete head that can't become a valid one; its rest must come in time."""
        try:
            if part != b"\r":
                check_request_start(part, self._seen)
        except ProxyError as exc:
            self._refuse(exc)
            return
        self._seen = len(part)
        if self._head_timer is None:
            self._head_timer = self._connection.loop.call_later(HEAD_TIMEOUT_S, self._on_late)

    def _on_late(self) -> None:
        self._head_timer = None
        if self._connection.is_reading_held:  # the delay is ours, not the caller's
            self._head_timer = self._connection.loop.call_later(HEAD_TIMEOUT_S, self._on_late)
            return
        self._refuse(RequestTimeout("The request head did not come in time; send it again."))
        self._connection.serve()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _feed_body(self, body: RequestBody, data: bytes) -> bytes:
        """Hand the content in ``data`` to the request that it belongs to; returns the bytes after its end."""
        if self._decoder is not None:
            return self._feed_chunks(body, self._decoder, data)
        if not data:
            return b""
        content, rest = data, b""
        if len(data) > self._body_left:
            content, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(content)
        if self._body_left:
            body.feed(content)
            return b""
        self._body = None
        body.feed(content)
        body.finish([])
        return rest

    def _feed_chunks(self, body: RequestBody, decoder: ChunkedDecoder, data: bytes) -> bytes:
        try:
            content = decoder.feed(data)
            _check_secrets(decoder.trailers)
        except ProtocolViolation as exc:
            self._is_stopped, self._body, self._decoder = True, None, None
            body.fail(BadRequest(f"The request's content can't be read: {exc}."))
            return b""
        if content:
            body.feed(content)
        if not decoder.done:
            return b""
        self._body = self._decoder = None
        body.finish(decoder.trailers)
        return decoder.rest

    def _refuse(self, error: ProxyError) -> None:
        """Queue a request that is answered with ``error``; read nothing after it."""
        self.stop()
        request = Request(RequestHead.unreadable(), RequestBody(self._connection), self._connection)
        request.error = error
        self._queue.append(request)


def _check_secrets(trailers: list[Field]) -> None:
    """Raise ProtocolViolation if a key or secret of this proxy stands in a trailer field."""
    if trailers and redactor.leaks.is_in_fields(b"\r\n".join([field.line for field in trailers])):
        raise ProtocolViolation("its trailer section holds a key or a secret of this proxy")
