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
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from aiohttp import web

from proxy.errors import BadRequest, FieldsTooLarge, ProtocolViolation, ProxyError, TargetTooLong
from proxy.http1 import MAX_HEAD_BYTES, MAX_LINE_BYTES, ChunkedDecoder, Field, RequestHead, parse_request_head

_LINGER_NONE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
BUFFER_BYTES = 64 * 1024
"""Of a request body (or of pipelined requests) that nobody takes yet, before reading pauses."""
MAX_PIPELINED = 8
KEEP_ALIVE_S = 75.0
HALF_CLOSE_GRACE_S = 0.8
"""A caller that sent FIN either left or waits for its answer; TCP can't tell. After this it has left."""
LINGER_S = 5.0
"""How long the rest of an upload is read and dropped after an early answer, so that the answer arrives."""


class BodySink(Protocol):
    """Takes a request body as it arrives."""

    def on_request_body(self, data: bytes) -> None:
        """The next bytes of the content."""

    def on_request_end(self, trailers: list[Field]) -> None:
        """The content is complete."""

    def on_request_broken(self, error: ProxyError) -> None:
        """The body's framing is malformed; nothing more will come."""


class RequestBody:
    """One request's content: buffered until a sink takes it, then handed on as it arrives.

    The first ``replay_bytes`` are kept so that the request can be sent again: see `rewind`.
    """

    __slots__ = (
        "_buffered",
        "_connection",
        "_held",
        "_kept",
        "_kept_bytes",
        "_sink",
        "_waiter",
        "broken",
        "complete",
        "received",
        "replay_bytes",
        "trailers",
    )

    def __init__(self, connection: CallerConnection) -> None:
        self._connection = connection
        self._sink: BodySink | None = None
        self._buffered: list[bytes] = []
        self._held = 0
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self.replay_bytes = BUFFER_BYTES
        self.complete = False
        self.broken: ProxyError | None = None
        self.received = 0
        self.trailers: list[Field] = []

    @property
    def replayable(self) -> bool:
        """Whether all content so far is still held, so that it can be sent from its start."""
        return self._kept is not None

    def attach(self, sink: BodySink) -> None:
        """Hand what is buffered, and all that follows, to ``sink``."""
        self._sink = sink
        buffered, self._buffered, self._held = self._buffered, [], 0
        for data in buffered:
            sink.on_request_body(data)
        if self.broken is not None:
            sink.on_request_broken(self.broken)
        elif self.complete:
            sink.on_request_end(self.trailers)
        else:
            self.resume()

    def detach(self) -> None:
        """Stop handing content on; what still comes is buffered again."""
        self._sink = None

    def rewind(self) -> None:
        """Make the next sink get the content from its start; only where `replayable`."""
        if self._kept is None:
            raise RuntimeError("the content is no longer held")
        self._sink = None
        self._buffered = list(self._kept)
        self._held = self._kept_bytes

    def pause(self) -> None:
        """Stop reading from the caller: whoever takes the body is slower."""
        self._connection.pause_body()

    def resume(self) -> None:
        """Read on."""
        self._connection.resume_body()

    def feed(self, data: bytes) -> None:
        """Bytes of content, from the parser."""
        self.received += len(data)
        if self._kept is not None:
            self._kept_bytes += len(data)
            if self._kept_bytes <= self.replay_bytes:
                self._kept.append(data)
            else:
                self._kept = None
        if self._sink is not None:
            self._sink.on_request_body(data)
            return
        self._buffered.append(data)
        self._held += len(data)
        if self._held >= BUFFER_BYTES:
            self.pause()
        self._wake()

    def finish(self, trailers: list[Field]) -> None:
        """The end of the content, from the parser."""
        self.complete = True
        self.trailers = trailers
        if self._sink is not None:
            self._sink.on_request_end(trailers)
        self._wake()

    def fail(self, error: ProxyError) -> None:
        """The framing is malformed."""
        self.broken = error
        if self._sink is not None:
            self._sink.on_request_broken(error)
        self._wake()

    async def read(self, limit: int) -> bytes:
        """The whole content, for the proxy's own resources. Raises BadRequest over ``limit`` bytes."""
        data = b""
        while True:
            taken, self._buffered, self._held = self._buffered, [], 0
            data += b"".join(taken)
            if len(data) > limit:
                raise BadRequest(f"The content is longer than {limit} bytes.")
            if self.broken is not None:
                raise self.broken
            if self.complete:
                return data
            await self._more()

    async def _more(self) -> None:
        self.resume()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What RequestHandler.start() asks of a payload: it drops what the handler left unread.

    def is_eof(self) -> bool:
        """Whether nothing more will come."""
        return self.complete or self.broken is not None

    async def readany(self) -> bytes:
        """Wait for more content and drop it."""
        self.detach()
        self._kept = None
        self._buffered, self._held = [], 0
        if not self.is_eof():
            await self._more()
            self._buffered, self._held = [], 0
        return b""

    def set_exception(self, exc: BaseException) -> None:  # noqa: ARG002 - the seam's signature
        """The handler is done: hold nothing any longer."""
        self._sink = None
        self._kept = None
        self._buffered = []


class Request:
    """One request: its head, its body, and the way back to the caller.

    ``error`` is set when the request can't be understood; it is then answered and the connection closed.
    """

    __slots__ = (
        "_task",
        "answer_bytes",
        "body",
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
        "_in_flight",
        "_scanned",
    )

    def __init__(self, connection: CallerConnection) -> None:
        self._connection = connection
        self._buffer = b""
        self._scanned = 0
        self._body: RequestBody | None = None
        self._body_left = 0
        self._decoder: ChunkedDecoder | None = None
        self._in_flight = 0
        self._closed = False

    @property
    def in_body(self) -> bool:
        """Whether the end of a request is still to come."""
        return self._body is not None

    def feed_data(self, data: bytes) -> tuple[list[tuple[Request, RequestBody]], bool, bytes]:
        """Requests whose heads are complete now; bodies go to their `RequestBody`."""
        messages: list[tuple[Request, RequestBody]] = []
        if self._closed:
            return messages, False, b""
        if type(data) is not bytes:
            data = bytes(data)
        if self._body is not None:
            data = self._feed_body(data)
        elif self._buffer:
            data = self._buffer + data
        self._buffer = b""
        while data and self._may_begin():
            end = data.find(b"\r\n\r\n", self._scanned)
            if end < 0:
                self._scanned = max(0, len(data) - 3)
                self._check_unfinished(data, messages)
                break
            self._scanned = 0
            head, data = data[:end], data[end + 4 :]
            self._begin(head, messages)
            if self.in_body:
                data = self._feed_body(data)
        self._buffer = b"" if self._closed else data
        return messages, False, b""

    def _may_begin(self) -> bool:
        return self._body is None and not self._closed and self._in_flight < MAX_PIPELINED

    def _begin(self, head: bytes, messages: list[tuple[Request, RequestBody]]) -> None:
        while head.startswith(b"\r\n"):  # RFC 9112, section 2.2
            head = head[2:]
        if not head:
            return
        try:
            parsed = parse_request_head(head)
        except ProxyError as exc:
            self._refuse(exc, messages)
            return
        body = RequestBody(self._connection)
        self._in_flight += 1
        messages.append((Request(parsed, body, self._connection), body))
        if parsed.chunked:
            self._body, self._decoder = body, ChunkedDecoder()
        elif parsed.content_length:
            self._body, self._body_left = body, parsed.content_length
        else:
            body.complete = True

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

    def _check_unfinished(self, data: bytes, messages: list[tuple[Request, RequestBody]]) -> None:
        if len(data) > MAX_LINE_BYTES and b"\r\n" not in data:
            self._refuse(TargetTooLong(f"The request line is longer than {MAX_LINE_BYTES} bytes."), messages)
        elif len(data) > MAX_HEAD_BYTES:
            self._refuse(FieldsTooLarge(f"The request head is longer than {MAX_HEAD_BYTES} bytes."), messages)

    def _refuse(self, error: ProxyError, messages: list[tuple[Request, RequestBody]]) -> None:
        """Queue an answer to what can't be understood; nothing after it is read."""
        self._closed = True
        head = RequestHead()
        head.method, head.target, head.minor = b"", b"", 1
        head.fields, head.hosts, head.steering, head.connection = [], [], [], frozenset()
        head.content_length, head.chunked, head.keep_alive = None, False, False
        head.expects_continue = head.wants_trailers = False
        body = RequestBody(self._connection)
        request = Request(head, body, self._connection)
        request.error = error
        messages.append((request, body))

    # The rest of what BaseProtocol and RequestHandler ask of a parser.

    def message_consumed(self) -> None:
        self._in_flight -= 1

    def pause_reading(self) -> None: ...

    def set_upgraded(self, upgraded: object) -> None: ...


class CallerConnection(web.RequestHandler):
    """One caller's connection. ``peer`` gets told when the caller's side can't take more, or can again."""

    __slots__ = ("answered", "is_half_closed", "listener", "peer")

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
        self.is_half_closed = False

    def pause_body(self) -> None:
        """Stop reading: a request body is taken more slowly than it comes."""
        if not self._reading_paused:
            self._reading_paused = True
            self._pause_transport_reading()

    def resume_body(self) -> None:
        """Read on, unless pipelined requests hold reading."""
        if self._reading_paused:
            self._reading_paused = False
            if not self._buffer_paused:
                self._resume_transport_reading()

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
        return True

    def _presume_gone(self, answered: int) -> None:
        """Give up on a half-closed caller that was sent nothing since: a write would show whether it's there."""
        request = cast(Request | None, self._current_request)
        if self.answered == answered and request is not None and not request.head_sent:
            self.abort()

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
        return self._request_in_progress or self.has_more

    @property
    def has_more(self) -> bool:
        """Whether another request waits for its turn."""
        return bool(self._messages)


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
        keep = await self._answer(request)
        request.connection.answered += 1
        if request.connection.is_half_closed and not request.connection.has_more:
            keep = False
        if keep:
            return KEEP
        if not request.body.is_eof() and request.transport.can_write_eof():
            # Lingering close: the answer must not be lost to a reset while the caller still sends.
            request.transport.write_eof()
        return CLOSE

    @staticmethod
    def _bind(message: Request, _body: object, _connection: object, _writer: object, task: object) -> Request:
        message._task = task  # noqa: SLF001 - a slot that RequestHandler clears
        return message
