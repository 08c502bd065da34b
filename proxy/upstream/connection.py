"""One HTTP/1.1 connection to a cloud.

Hides its socket (`dial` opens it), framing, and whether it can be used again. Must not know leases,
projects or what the bytes mean: it sends a ready request head and hands what comes back to a
`ResponseSink`.

A `Connection` is in one of these states, and tells its `Home` of each change::

    idle    a byte or EOF that arrives now closes it
    busy    a sink is set; exactly one of sink.on_end and sink.on_failure will be called
            (both, where on_end raises)
    closed  never used again

Sources: RFC 9112 (sections 6, 7, 9).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from proxy.errors import (
    ConnectionLost,
    ProtocolViolation,
    UpstreamError,
    UpstreamSilent,
)
from proxy.http1.chunked import ChunkedDecoder
from proxy.http1.heads import (
    MAX_HEAD_BYTES,
    Field,
    FieldNames,
    ResponseHead,
    check_response_start,
    parse_response_head,
)
from proxy.origin import Origin

MAX_INFORMATIONAL: Final = 32
_READ_BYTES: Final = 64 * 1024


class ResponseSink(Protocol):
    """Takes an answer as it arrives. Calls come from the event loop and must not block."""

    def on_informational(self, head: ResponseHead) -> None:
        """An interim answer (1xx)."""

    def on_head(self, head: ResponseHead) -> None:
        """The final answer's head."""

    def on_body(self, data: bytes) -> None:
        """Content bytes, framing removed, codings untouched."""

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is complete."""

    def on_failure(self, error: UpstreamError) -> None:
        """The answer will never be complete."""

    def on_flush(self) -> None:
        """All that had arrived was handed over; write now."""

    def on_writable(self, *, writable: bool) -> None:
        """The upstream side can't take more request bytes, or can again."""


class Home:
    """Where connections belong: their pool, as they know it. Not a protocol: compiled, a class is quicker."""

    origin: Origin
    loop: asyncio.AbstractEventLoop

    def mark_busy(self, connection: Connection) -> None:
        """An exchange starts on it."""
        raise NotImplementedError

    def give_back(self, connection: Connection) -> None:
        """An exchange ended well; the connection can carry another."""
        raise NotImplementedError

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        raise NotImplementedError


_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_UNTIL_CLOSE: Final = 3


class Connection(asyncio.Protocol):
    """One connection to an origin; carries one exchange at a time."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_home",
        "_informational",
        "_is_head_request",
        "_is_writing_held",
        "_keep_alive",
        "_left",
        "_loop",
        "_mode",
        "_names",
        "_paused",
        "_poller",
        "_request_done",
        "_sink",
        "_transport",
        "answered",
        "exchanges",
        "last_activity",
    )

    def __init__(self, home: Home) -> None:
        self._home = home
        self._loop = home.loop
        self._transport: asyncio.Transport | None = None
        self._sink: ResponseSink | None = None
        self._buffer = b""
        self._mode = _HEAD
        self._names: FieldNames | None = None
        """Of the last answer's fields: a cloud's answers mostly have the same."""
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._is_head_request = False
        self._keep_alive = False
        self._request_done = True
        self._informational = 0
        self._paused = False
        self._is_writing_held = False
        self._poller: Callable[[int], object] | None = None
        self.answered = False
        """Whether a byte of an answer to the current request has arrived."""
        self.exchanges = 0
        self.last_activity = self._loop.time()

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "busy" if self._sink else "idle"
        return f"<Connection {self._home.origin} {state}, {self.exchanges} exchanges>"

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent on it."""
        return self._transport is not None and self._sink is None and not self._transport.is_closing()

    def has_news(self) -> bool:
        """Whether bytes or an end have arrived that the event loop hasn't told of yet. A system call."""
        if self._poller is None:
            self._poller = self._new_poller()
            if self._poller is None:
                return True
        return bool(self._poller(0))

    def _new_poller(self) -> Callable[[int], object] | None:
        """Asks for what can be read, by `select.poll.poll` where it exists; None: the socket is gone."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return None
        if not hasattr(select, "poll"):  # Windows
            fileno = sock.fileno()
            return lambda _: select.select([fileno], [], [], 0)[0]
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN)
        return poller.poll

    # The exchange, as its user drives it.

    def start(self, sink: ResponseSink, head: bytes, *, is_head_request: bool, request_done: bool) -> None:
        """Send a request head (and, where ``request_done``, with it all the content)."""
        self._sink = sink
        self._is_head_request = is_head_request
        self._mode = _HEAD
        self._informational = 0
        self.answered = False
        self.exchanges += 1
        self._home.mark_busy(self)
        self._request_done = request_done
        if self._transport is None:  # closed since it was made, and nobody was told
            self._fail(ConnectionLost("the connection was closed at once"))
        else:
            self.write(head)

    def write(self, data: bytes) -> None:
        """Send request bytes."""
        self.last_activity = self._loop.time()
        if self._transport is not None:
            self._transport.write(data)

    def finish_request(self) -> None:
        """The request is sent whole; only then can the connection be used again."""
        self._request_done = True

    def pause(self) -> None:
        """Read no more: the caller is slower."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self.last_activity = self._loop.time()
            self._transport.resume_reading()

    def abandon(self, sink: ResponseSink) -> None:
        """Close at once if it carries the exchange of ``sink``, without a word to it."""
        if self._sink is sink:
            self.close()

    def close(self) -> None:
        """Close at once and forget the exchange, without a word to its sink."""
        self._sink = None
        self._buffer = b""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._home.forget(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport reads and writes
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self.last_activity = self._loop.time()
        sink = self._sink
        if sink is None:
            self.close()
            return
        self.answered = True
        self._receive(data, sink)

    def _receive(self, data: bytes, sink: ResponseSink) -> None:
        if type(data) is not bytes:  # a bytearray, from Windows' event loop
            data = bytes(data)
        try:
            ended = self._take(data, sink)
        except ProtocolViolation as exc:
            self._fail(exc)
            return
        if not ended and self._sink is sink:
            sink.on_flush()

    def eof_received(self) -> bool:
        sink = self._sink
        if sink is not None and self._mode == _UNTIL_CLOSE and self._is_end_meant():
            self._end(sink, [])
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        transport, self._transport = self._transport, None
        if self._sink is not None and exc is not None and transport is not None:
            self._receive_rest(transport)
        if self._sink is not None:
            self._fail(ConnectionLost("the connection was closed before the answer was complete"))
        self._home.forget(self)

    def _receive_rest(self, transport: asyncio.Transport) -> None:
        """Read what came before a write failed: the event loops drop it.

        Who refuses an upload (413) often closes at once, and what we still send is answered by a reset.
        """
        sock = transport.get_extra_info("socket")
        if sock is None or transport.get_extra_info("ssl_object") is not None:
            return
        with contextlib.suppress(OSError), socket.fromfd(sock.fileno(), sock.family, sock.type) as rest:
            rest.setblocking(False)
            while self._sink is not None and (data := rest.recv(_READ_BYTES)):
                self.answered = True
                self._receive(data, self._sink)

    def _is_end_meant(self) -> bool:
        """Whether the end is the cloud's: over TLS only close_notify says so (RFC 8446, section 6.1)."""
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        if tls is None:
            return True
        try:
            return not tls.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False

    def pause_writing(self) -> None:
        self._is_writing_held = True
        if self._sink is not None:
            self._sink.on_writable(writable=False)

    def resume_writing(self) -> None:
        self._is_writing_held = False
        self.last_activity = self._loop.time()
        if self._sink is not None:
            self._sink.on_writable(writable=True)

    # Parsing

    def _take(self, data: bytes, sink: ResponseSink) -> bool:
        """Hand ``data`` to the sink in its parts; whether the answer ended."""
        while True:
            mode = self._mode
            if mode == _HEAD:
                head, data = self._take_head(data)
                if head is None:
                    return False
                if head.status < 200:
                    self._interim(head, sink)
                    continue
                self._begin_body(head)
                sink.on_head(head)
                if self._sink is not sink:
                    return True
                if self._mode == _LENGTH and not self._left:
                    return self._finish(sink, [], data)
                if not data:
                    return False
            elif mode == _LENGTH:
                size = len(data)
                if size < self._left:
                    self._left -= size
                    sink.on_body(data)
                    return False
                rest = data[self._left :] if size > self._left else b""
                sink.on_body(data[: self._left] if rest else data)
                self._left = 0
                return self._finish(sink, [], rest)
            elif mode == _CHUNKED:
                decoder = self._decoder
                assert decoder is not None  # noqa: S101 - set with the mode
                content = decoder.feed(data)
                if content:
                    sink.on_body(content)
                return decoder.done and self._finish(sink, decoder.trailers, decoder.rest)
            else:
                sink.on_body(data)
                return False

    def _take_head(self, data: bytes) -> tuple[ResponseHead | None, bytes]:
        start = max(0, len(self._buffer) - 3)
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n", start)
        if end < 0 or end > MAX_HEAD_BYTES:
            if end >= 0:
                raise ProtocolViolation(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")
            check_response_start(data, len(self._buffer))
            self._buffer = data
            return None, b""
        self._buffer = b""
        head = parse_response_head(data[:end], self._names)
        self._names = head.fields.names
        return head, data[end + 4 :]

    def _interim(self, head: ResponseHead, sink: ResponseSink) -> None:
        self._informational += 1
        if head.status == 101 or self._informational > MAX_INFORMATIONAL:
            raise ProtocolViolation("an unasked-for switch of protocols, or endless interim answers")
        sink.on_informational(head)

    def _begin_body(self, head: ResponseHead) -> None:
        """Decide the framing (RFC 9112, section 6.3)."""
        self._keep_alive = head.keep_alive
        self._left = 0
        self._mode = _LENGTH
        if self._is_head_request or head.status in (204, 304):
            return
        if head.chunked:
            self._mode, self._decoder = _CHUNKED, ChunkedDecoder()
        elif head.content_length is not None:
            self._left = head.content_length
        else:
            self._mode = _UNTIL_CLOSE

    def _finish(self, sink: ResponseSink, trailers: list[Field], rest: bytes) -> bool:
        if rest:
            raise ProtocolViolation("bytes after the end of the answer")
        self._end(sink, trailers)
        return True

    def _end(self, sink: ResponseSink, trailers: list[Field]) -> None:
        self._sink = None
        self._decoder = None
        if (
            self._keep_alive
            and self._request_done
            and not self._is_writing_held
            and self._mode != _UNTIL_CLOSE
            and self._transport is not None
        ):
            if self._paused:
                self.resume()
            self._home.give_back(self)
        else:
            self.close()
        try:
            sink.on_end(trailers)
        except Exception:  # a bug; nobody else would tell the sink that nothing more comes
            sink.on_failure(ConnectionLost("the end of the answer could not be handled"))
            raise

    def _fail(self, error: UpstreamError) -> None:
        sink = self._sink
        self.close()
        if sink is not None:
            sink.on_failure(error)

    def fail_if_silent(self, limit_s: float) -> None:
        """End a busy connection on which no byte moved for ``limit_s`` seconds, whoever stands still."""
        if self._loop.time() - self.last_activity > limit_s:
            self._fail(UpstreamSilent(f"no byte for {limit_s:g} s"))
