"""The callers' side: aiohttp's server with our strict parser, as one module.

Hides every seam of aiohttp that we ride on, so that a new release is met here and nowhere else
(tests/test_server_seams.py names them). aiohttp's `RequestHandler` keeps what it is good at:
connections, keep-alive, pipelining, cancellation, shutdown. Its parser is replaced, because it
refuses unknown methods, answers 400 where 414, 431 or 501 is due and rewrites what it parses; and the
answer is written by whoever handles the request, straight to the transport.
Must not know projects, leases or upstreams.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol, cast

from aiohttp import web

from proxy.body import RequestBody
from proxy.errors import BadRequest, ProtocolViolation, ProxyError, RequestTimeout
from proxy.http1 import ChunkedDecoder, RequestHead, check_request_start, parse_request_head
from proxy.peer import has_left

_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_LINGER_NONE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
MAX_PIPELINED = 8
KEEP_ALIVE_S = 75.0
HEAD_TIMEOUT_S = 10.0
"""From the first byte of a request head to its last."""
HALF_CLOSE_GRACE_S = 0.8
"""A caller that sent FIN left, or waits. Where `has_left` can't tell, it has left after this."""
LOOK_S = 0.2
"""How often it is looked whether a caller that can't be heard (after FIN, or paused) is still there."""
WRITE_STALL_S = 300.0
"""How long a caller may take for what is left of an answer before the next one is begun."""
LINGER_S = 5.0
"""How long the rest of an upload is read and dropped after an early answer, so that the answer arrives."""


class Request:
    """One request: its head, its body, and the way back to the caller.

    ``error`` is set when the request can't be understood; it is then answered and the connection closed.
    """

    __slots__ = (
        "_task",
        "answer_bytes",
        "body",
        "caller",
        "connection",
        "error",
        "head",
        "head_sent",
        "status",
        "transport",
    )

    def __init__(self, head: RequestHead, body: RequestBody, connection: CallerConnection) -> None:
        self.head = head
        self.body = body
        self.connection = connection
        self.caller: Hashable = connection
        """Who shares slots fairly with others: the connection, or the caller where it is known."""
        self.transport: asyncio.Transport = cast(asyncio.Transport, connection.transport)
        self.error: ProxyError | None = None
        self.head_sent = False
        self.status = 0
        self.answer_bytes = 0
        self._task: object = None

    def field(self, name: bytes) -> bytes | None:
        """The value of the first field with this lower-case name, None where there is none."""
        for field in self.head.fields:
            if field.name == name:
                return field.value
        return None

    # What RequestHandler asks of a request.

    def _finish(self) -> None: ...

    def _cancel(self, exc: BaseException) -> None: ...


class _Answered:
    """What a handler gives back to RequestHandler: the answer is written already."""

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: object) -> None: ...

    async def write_eof(self) -> None: ...


KEEP = _Answered(keep_alive=True)
CLOSE = _Answered(keep_alive=False)

Handler = Callable[[Request], Awaitable[bool]]
"""Answers a request; gives back whether the connection can be kept. Never raises but CancelledError."""


class _Parser:
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
        "_seen",
    )

    def __init__(self, connection: CallerConnection) -> None:
        self._connection = connection
        self._buffer = b""
        self._seen = 0
        self._body: RequestBody | None = None
        self._body_left = 0
        self._decoder: ChunkedDecoder | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_late = False
        self._in_flight = 0
        self._closed = False

    @property
    def in_body(self) -> bool:
        """Whether the end of a request is still to come."""
        return self._body is not None

    @property
    def in_head(self) -> bool:
        """Whether a part of a request head has come."""
        return self._head_timer is not None

    def feed_data(self, data: bytes) -> tuple[list[tuple[Request, RequestBody]], bool, bytes]:
        """Requests whose heads are complete now; bodies go to their `RequestBody`."""
        messages: list[tuple[Request, RequestBody]] = []
        if not self._is_listening():
            return messages, False, b""
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
                continue
            end = data.find(b"\r\n\r\n", max(0, self._seen - 3))
            if end < 0:
                self._begin_late(data, messages)
                break
            self._seen = 0
            head, data = data[:end], data[end + 4 :]
            self._begin(head, messages)
            if self.in_body:
                data = self._feed_body(data)
        self._buffer = data if self._is_listening() else b""
        return messages, False, b""

    def _is_listening(self) -> bool:
        return not self._closed

    def _may_begin(self) -> bool:
        return self._body is None and not self._closed and self._in_flight < MAX_PIPELINED

    def _begin(self, head: bytes, messages: list[tuple[Request, RequestBody]]) -> None:
        if self._head_timer is not None:
            self.stop_timer()
        try:
            parsed = parse_request_head(head)
        except ProxyError as exc:
            self._refuse(exc, messages)
            return
        body = RequestBody(self._connection)
        self._add(Request(parsed, body, self._connection), messages)
        if parsed.chunked:
            self._body, self._decoder = body, ChunkedDecoder()
        elif parsed.content_length:
            self._body, self._body_left = body, parsed.content_length
        else:
            body.complete = True

    def _add(self, request: Request, messages: list[tuple[Request, RequestBody]]) -> None:
        self._in_flight += 1
        self._connection.unanswered += 1
        messages.append((request, request.body))

    def _begin_late(self, part: bytes, messages: list[tuple[Request, RequestBody]]) -> None:
        """Only a part of a head is here: it must be a possible one, and the rest must come in time."""
        if self._is_late:
            self._refuse(RequestTimeout("The request head did not come in time; send it again."), messages)
            return
        try:
            if part != b"\r":
                check_request_start(part, self._seen)
        except ProxyError as exc:
            self._refuse(exc, messages)
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

    def _refuse(self, error: ProxyError, messages: list[tuple[Request, RequestBody]]) -> None:
        """Queue an answer to what can't be understood; nothing after it is read."""
        self._closed = True
        self.stop_timer()
        head = RequestHead()
        head.method, head.target, head.minor = b"", b"", 1
        head.fields, head.hosts, head.steering, head.connection = [], [], [], frozenset()
        head.content_length, head.chunked, head.keep_alive = None, False, False
        head.expects_continue = head.wants_trailers = False
        body = RequestBody(self._connection)
        request = Request(head, body, self._connection)
        request.error = error
        self._add(request, messages)

    # The rest of what BaseProtocol and RequestHandler ask of a parser.

    def message_consumed(self) -> None:
        self._in_flight -= 1

    def pause_reading(self) -> None: ...

    def set_upgraded(self, upgraded: object) -> None: ...


class CallerConnection(web.RequestHandler):
    """One caller's connection. ``peer`` gets told when the caller's side can't take more, or can again."""

    __slots__ = ("_holds", "_look_timer", "answered", "is_half_closed", "listener", "peer", "unanswered")

    def __init__(self, manager: CallerServer, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            cast(web.Server, manager),
            loop=loop,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=LINGER_S,
            access_log=cast(Any, None),
            auto_decompress=False,
        )
        self._parser = cast(Any, _Parser(self))
        self._max_msg_queue_size = MAX_PIPELINED
        self._msg_queue_resume_size = MAX_PIPELINED // 2
        self.peer: WritingPeer | None = None
        self.listener: Any = manager.listener
        """What the listener that this connection came through stands for."""
        self.answered = 0
        self.unanswered = 0
        """Requests whose heads have come and whose answers aren't written yet."""
        self.is_half_closed = False
        self._holds = 0
        self._look_timer: asyncio.TimerHandle | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it lives on."""
        return self._loop

    def pause_body(self) -> None:
        """Stop reading: a request's content is taken more slowly than it comes."""
        self._holds += 1
        if self._holds == 1:
            self._reading_paused = True
            self._pause_transport_reading()
            self._look_later()

    def resume_body(self) -> None:
        """Read on, unless another request's content or the queue of requests holds reading."""
        self._holds -= 1
        if not self._holds:
            self._reading_paused = False
            if not self._buffer_paused:
                self._resume_transport_reading()

    @property
    def is_reading_held(self) -> bool:
        """Whether we don't read what the caller sends."""
        return self._reading_paused or self._buffer_paused

    def pause_writing(self) -> None:
        """The caller reads more slowly than the answer comes."""
        super().pause_writing()
        if self.peer is not None:
            self.peer.pause()

    def resume_writing(self) -> None:
        """The caller has caught up."""
        super().resume_writing()
        if self.peer is not None:
            self.peer.resume()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The caller sent its last byte; a complete request is still answered (RFC 9112, section 9.6)."""
        parser = cast(_Parser | None, self._parser)
        if parser is None or parser.in_body or not self.is_answering or self.ssl_context is not None:
            return None
        self.is_half_closed = True
        self._loop.call_later(HALF_CLOSE_GRACE_S, self._presume_gone, self.answered)
        self._loop.call_later(LOOK_S / 10, self._look)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        parser = cast(_Parser | None, self._parser)
        if parser is not None:
            parser.stop_timer()
        if self._look_timer is not None:
            self._look_timer.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        """A caller that isn't read from isn't heard leaving: look, and end its requests if it has."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        if self.is_answering and (self.is_half_closed or self.is_reading_held):
            if self._has_left():
                self.abort()
            else:
                self._look_later()

    def _has_left(self) -> bool | None:
        transport = self.transport
        sock = None if transport is None else transport.get_extra_info("socket")
        if transport is None or sock is None or sock.fileno() < 0:
            return None
        return has_left(
            sock.fileno(), transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        )

    def _presume_gone(self, answered: int) -> None:
        """Give up on a half-closed caller that was sent nothing since: a write shows whether it's there."""
        request = cast(Request | None, self._current_request)
        unchanged = self.answered == answered and request is not None and not request.head_sent
        if unchanged and self._has_left() is None:
            self.abort()

    def _process_keepalive(self) -> None:
        parser = cast(_Parser | None, self._parser)
        if parser is not None and parser.in_head:  # no longer idle: HEAD_TIMEOUT_S bounds it
            self._next_keepalive_close_time = self._loop.time() + HEAD_TIMEOUT_S
        super()._process_keepalive()

    def abort(self) -> None:
        """Reset the connection: what was sent so far must not look whole, not even to who reads until EOF."""
        transport = self.transport
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        transport.abort()

    @property
    def is_answering(self) -> bool:
        """Whether a request is being handled, or waits to be."""
        return self.unanswered > 0

    async def drained(self) -> None:
        """Wait until the caller has taken most of what was written, ``WRITE_STALL_S`` at most."""
        try:
            async with asyncio.timeout(WRITE_STALL_S):
                await self._drain_helper()
        except TimeoutError:
            self.abort()


class WritingPeer(Protocol):
    """The source of what is written to a caller; it is slowed down when the caller is slow."""

    def pause(self) -> None:
        """Bring no more bytes for now."""

    def resume(self) -> None:
        """Go on."""


class CallerServer(web.Server):
    """Makes a `CallerConnection` for every accepted connection of one listener."""

    def __init__(self, handler: Handler, listener: Any) -> None:
        self._answer = handler
        self.listener = listener
        super().__init__(
            cast(Any, self._handle),
            request_factory=cast(Any, self._bind),
            handler_cancellation=True,
        )

    def __call__(self) -> CallerConnection:
        return CallerConnection(self, loop=self._loop)

    async def _handle(self, request: Request) -> _Answered:
        connection = request.connection
        try:
            keep = await self._answer(request)
            if connection.writing_paused:
                await connection.drained()
        finally:
            connection.answered += 1
            connection.unanswered -= 1
        if connection.is_half_closed and not connection.is_answering:
            keep = False
        if keep:
            return KEEP
        if not request.body.is_eof() and request.transport.can_write_eof():
            # Lingering close: the answer must not be lost to a reset while the caller still sends.
            with contextlib.suppress(OSError):  # it was reset already
                request.transport.write_eof()
        return CLOSE

    @staticmethod
    def _bind(message: Request, _body: object, _connection: object, _writer: object, task: object) -> Request:
        message._task = task  # noqa: SLF001 - a slot that RequestHandler clears
        return message
