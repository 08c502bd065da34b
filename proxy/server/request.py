"""One request as it comes from a caller, and the parser that cuts a caller's bytes into requests.

The parser stands where aiohttp's `RequestHandler` has its own; what it can't understand becomes a
`Request` with an ``error``, so that it is answered in its turn. Knows nothing of routing or upstreams.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Hashable
from typing import Any, Final, Protocol, cast

from proxy.errors import BadRequest, ProtocolViolation, ProxyError, RequestTimeout
from proxy.http1.chunked import ChunkedDecoder
from proxy.http1.heads import (
    Field,
    FieldSection,
    RequestHead,
    ResponseHead,
    check_request_start,
    parse_repeated_head,
    parse_request_head,
)
from proxy.server.body import RequestBody, Source

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)+")
MAX_PIPELINED: Final = 8
"""Requests of one connection that may wait for their turn; reading pauses beyond."""
HEAD_TIMEOUT_S = 10.0
"""From the first byte of a request head to its last."""


class WritingPeer(Protocol):
    """The source of what is written to a caller; it is slowed down when the caller is slow."""

    def pause(self) -> None:
        """Bring no more bytes for now."""

    def resume(self) -> None:
        """Go on."""


class Recorder(Protocol):
    """Is told of the answer as it comes, try by try, where the proxy shares answers."""

    def on_start(self, source: WritingPeer) -> WritingPeer:
        """The request goes out; gives back who is to be slowed down when the caller is slow."""
        ...

    def on_head(self, head: ResponseHead) -> bytes:
        """An answer's head; gives back the field line to add to it for the caller."""
        ...

    def on_body(self, data: bytes) -> None:
        """Content."""

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is complete."""

    def on_over(self) -> None:
        """Nothing more will come: it was answered, or its caller has left."""


class Connection(Source, Protocol):
    """A caller's connection, as a request and the parser know it."""

    transport: asyncio.Transport | None
    listener: Any
    """What the listener that it came through stands for."""
    peer: WritingPeer | None
    """Who is told when the caller's side can't take more, or can again."""
    unanswered: int
    """Requests whose heads have come and whose answers aren't written yet."""
    is_ending: bool
    """Whether it is closed after the answer that is on its way, which has to say so."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on."""
        ...

    @property
    def writing_paused(self) -> bool:
        """Whether the caller reads more slowly than is written to it."""
        ...

    @property
    def is_reading_held(self) -> bool:
        """Whether nothing is read from the caller for now."""
        ...

    def data_received(self, data: bytes) -> None:
        """Bytes from the caller; none: look again at what is there."""

    def done(self, request: Request, *, keep: bool) -> None:
        """The answer to a request that was begun is written; ``keep``: the connection can be used again."""

    def interrupted(self) -> None:
        """What was begun needs the connection's task, to wait for something."""

    def abort(self) -> None:
        """Reset it: what was sent so far must not look whole."""

    async def drained(self) -> None:
        """Wait until the caller has taken most of what was written; one that never does is aborted."""


class Request:
    """One request: its head, its body, and the way back to the caller.

    ``error`` is set when the request can't be understood; it is then answered and the connection closed.
    """

    __slots__ = (
        "answer_bytes",
        "began_at",
        "body",
        "caller",
        "connection",
        "cut_because",
        "error",
        "error_code",
        "exchange",
        "head",
        "head_sent",
        "recorder",
        "replays",
        "request_id",
        "sent_at",
        "shared",
        "status",
        "transport",
        "waited_s",
    )

    def __init__(self, head: RequestHead, body: RequestBody, connection: Connection) -> None:
        self.head = head
        self.body = body
        self.connection = connection
        self.caller: Hashable = id(connection)
        """Who shares slots fairly with others: the connection, or the caller where it is known."""
        self.transport: asyncio.Transport = cast(asyncio.Transport, connection.transport)
        self.error: ProxyError | None = None
        self.error_code: str | None = None
        """Of our own answer, where it is an error."""
        self.request_id: str | None = None
        """As `proxy.server.request_id` gives it, once somebody asked for it."""
        self.sent_at = 0.0
        """When its head last went upstream, by `time.perf_counter`; 0 where it didn't."""
        self.cut_because: str | None = None
        """Why the answer was cut after its head had gone out, for the log."""
        self.head_sent = False
        self.status = 0
        self.answer_bytes = 0
        self.waited_s = 0.0
        """For a slot, in seconds."""
        self.began_at = 0.0
        """When it was begun on, by `time.perf_counter`."""
        self.exchange: Any = None
        """What it is on its way as, with a method ``abandon``: called if the caller leaves. The handler's."""
        self.replays: tuple[str, ...] = ()
        """Why it was sent once more, each time: "token", "stale" or "concurrency"."""
        self.recorder: Recorder | None = None
        self.shared: str | None = None
        """Where the answer is another request's: "hit" for a stored one, "collapsed" for a running one's."""

    def field(self, name: bytes) -> bytes | None:
        """The value of the first field with this lower-case name, None where there is none."""
        for field in self.head.fields:
            if field.name == name:
                return field.value
        return None

    @property
    def may_keep(self) -> bool:
        """Whether the connection can go on after the answer, for all that the request and we want."""
        return self.head.keep_alive and not self.connection.is_ending

    def write(self, data: bytes) -> None:
        """Send a part of the answer, unless the connection is ending already."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def _cancel(self, _exc: BaseException) -> None:
        """RequestHandler's word that the connection is lost; the handler's task is cancelled as well."""
        if self.exchange is not None:
            self.exchange.abandon()


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
        elif self._begin_again(data, requests):
            return requests
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

    def _begin_again(self, data: bytes, requests: list[Request]) -> bool:
        """Whether ``data`` is one more request with the fields of the last one, and nothing else."""
        section = self._section
        if section is None or not self._may_begin():
            return False
        try:
            parsed = parse_repeated_head(data, section)
        except ProxyError as exc:
            self._refuse(exc, requests)
            return True
        if parsed is None:
            return False
        self._take(parsed, requests)
        return True

    def _begin(self, head: bytes, requests: list[Request]) -> None:
        if self._head_timer is not None:
            self.stop_timer()
        try:
            parsed = parse_request_head(head, self._section)
        except ProxyError as exc:
            self._refuse(exc, requests)
            return
        self._take(parsed, requests)

    def _take(self, parsed: RequestHead, requests: list[Request]) -> None:
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
