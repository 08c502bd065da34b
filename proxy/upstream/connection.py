"""One HTTP/1.1 connection to a cloud.

Hides its socket (`dial` opens it) and whether it can carry another exchange. Must not know leases, projects
or the meaning of the bytes: it sends a ready request head, and its `ResponseParser` hands the answer to a
`ResponseSink`.

A `CloudConnection` is in one of these states, and tells its `Owner` about each change::

    idle    a byte or EOF that arrives now closes the connection
    busy    a sink is set; exactly one of sink.on_end and sink.on_failure will be called
            (both, where on_end raises)
    closed  never used again

Source: RFC 9112, section 9.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Sequence

from proxy.errors import ConnectionLost, ProtocolViolation, UpstreamError, UpstreamSilent, WayDied
from proxy.machine import is_timeout, machine_fault
from proxy.origin import Origin
from proxy.upstream.parser import ResponseParser, ResponseSink
from proxy.upstream.way import Way


class Owner:
    """The pool of a connection, as the connection knows it. Not a protocol: compiled, a class is faster.

    The connections read into ``buffer``, one at a time: the event loop fills it and calls `buffer_updated` at
    once. Without it, each read would take new memory of the same size, for a few bytes as well.
    """

    origin: Origin
    loop: asyncio.AbstractEventLoop
    buffer: memoryview

    def give_back(self, connection: CloudConnection) -> None:
        """An exchange ended well; the connection can carry another."""
        raise NotImplementedError

    def forget(self, connection: CloudConnection) -> None:
        """The connection is closed."""
        raise NotImplementedError


class CloudConnection(asyncio.BufferedProtocol):
    """One connection to an origin; carries one exchange at a time."""

    __slots__ = (
        "_is_writing_held",
        "_loop",
        "_owner",
        "_parser",
        "_paused",
        "_poll_input",
        "_request_done",
        "_sink",
        "_transport",
        "answered",
        "exchanges",
        "last_activity",
        "way",
    )

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = owner.loop
        self._transport: asyncio.Transport | None = None
        self._sink: ResponseSink | None = None
        self._parser = ResponseParser()
        self._request_done = True
        self._paused = False
        self._is_writing_held = False
        self._poll_input: Callable[[int], Sequence[object]] | None = None
        self.answered = False
        """Whether a byte of an answer to the current request has arrived."""
        self.exchanges = 0
        self.last_activity = self._loop.time()
        self.way: Way | None = None
        """None before the connection is open, and where it isn't of IPv4 or IPv6."""

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "busy" if self._sink else "idle"
        return f"<CloudConnection {self._owner.origin} {state}, {self.exchanges} exchanges>"

    def is_usable(self) -> bool:
        """Whether a request can be sent on the connection: it is open, idle, and has nothing to read.

        A system call: bytes or EOF may have arrived that the event loop has not handed over yet.
        """
        transport = self._transport
        if transport is None or self._sink is not None or transport.is_closing():
            return False
        if self._poll_input is None:
            self._poll_input = self._new_poll()
            if self._poll_input is None:
                return False
        return self._poll_input(0) == []

    def _new_poll(self) -> Callable[[int], Sequence[object]] | None:
        """A function whose result is empty unless the socket can be read; None where the socket is closed."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return None
        if not hasattr(select, "poll"):  # Windows
            fileno, transport = sock.fileno(), self._transport
            return lambda _: [fileno] if _has_read(transport) else select.select([fileno], [], [], 0)[0]
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN)
        return poller.poll

    # The exchange, as the sink's side drives it

    def start(self, sink: ResponseSink, head: bytes, is_head_request: bool, request_done: bool) -> None:
        """Send a request head (and, where ``request_done``, all the content with it)."""
        self._sink = sink
        self._parser.start(is_head_request)
        self.answered = False
        self.exchanges += 1
        self._request_done = request_done
        if self._transport is None:  # closed between its opening and this request
            self._fail(ConnectionLost("the connection was closed at once"))
        else:
            self._transport.write(head)

    def write(self, data: bytes) -> None:
        """Send request bytes."""
        self.last_activity = self._loop.time()
        if self._transport is not None:
            self._transport.write(data)

    def finish_request(self) -> None:
        """The whole request is sent; only then can the connection be used again."""
        self._request_done = True

    def pause(self) -> None:
        """Stop reading, because the caller is slower."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self.last_activity = self._loop.time()
            self._transport.resume_reading()

    def abandon(self, sink: ResponseSink) -> None:
        """Close at once if the current exchange is that of ``sink``; the sink is not called."""
        if self._sink is sink:
            self.close()

    def close(self) -> None:
        """Close at once; the sink of the current exchange is not called."""
        self._sink = None
        self._parser.stop()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._owner.forget(self)

    def fail_if_silent(self, limit_s: float) -> None:
        """Fail the exchange if no byte moved for ``limit_s`` seconds in either direction, or the way died."""
        if self._loop.time() - self.last_activity > limit_s:
            self._fail(UpstreamSilent(limit_s, "caller" if self._paused else "contentsquare"))
        elif self._is_way_dead():
            self._fail(WayDied())

    def is_lost(self) -> bool:
        """Whether the way of an idle connection died, or leads through another network now. System calls."""
        return self._is_way_dead() or (self.way is not None and self.way.has_moved())

    def _is_way_dead(self) -> bool:
        return self.way is not None and self.way.is_dead(
            is_answering=self._sink is not None and not self._parser.awaits_head,
            is_uploading=not self._request_done or self._is_writing_held,
        )

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport reads and writes
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # the peer has reset the connection: `connection_lost` follows
                self.way = Way(sock)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's interface
        """The place for the next bytes."""
        return self._owner.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have arrived."""
        self.last_activity = self._loop.time()
        sink = self._sink
        if sink is None:
            self.close()
            return
        self.answered = True
        try:
            is_complete = self._parser.feed(self._owner.buffer[:nbytes].tobytes(), sink)
        except ProtocolViolation as exc:
            self._fail(exc)
            return
        if self._sink is not sink:
            return
        if is_complete:
            self._end(sink)
        else:
            sink.on_flush()

    def eof_received(self) -> bool:
        sink = self._sink
        if sink is not None and self._parser.ends_at_close and self._is_end_authentic():
            self._end(sink)
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        transport, self._transport = self._transport, None
        if self._sink is not None and exc is not None and transport is not None:
            self._receive_unread(transport)
        if self._sink is not None:
            self._fail(_loss(exc))
        self._owner.forget(self)

    def _receive_unread(self, transport: asyncio.Transport) -> None:
        """Read the bytes that arrived before a write failed: the event loops drop them.

        A cloud that refuses an upload (413) often closes at once. Its TCP answers the content that
        the proxy still sends with a reset, so that a write fails while the 413 is unread.
        """
        sock = transport.get_extra_info("socket")
        if sock is None or transport.get_extra_info("ssl_object") is not None:
            return
        with contextlib.suppress(OSError), socket.fromfd(sock.fileno(), sock.family, sock.type) as copy:
            copy.setblocking(False)
            while self._sink is not None and (nbytes := copy.recv_into(self._owner.buffer)):
                self.buffer_updated(nbytes)

    def _is_end_authentic(self) -> bool:
        """Whether the cloud sent the end: over TLS only close_notify proves it (RFC 8446, section 6.1)."""
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

    # The end of an exchange

    def _end(self, sink: ResponseSink) -> None:
        parser = self._parser
        self._sink = None
        if (
            parser.keep_alive
            and self._request_done
            and not self._is_writing_held
            and self._transport is not None
        ):
            if self._paused:
                self.resume()
            self._owner.give_back(self)
        else:
            self.close()
        try:
            sink.on_end(parser.trailers)
        except Exception:  # a bug; without this call the sink would wait for ever
            sink.on_failure(ConnectionLost("the end of the answer could not be handled"))
            raise

    def _fail(self, error: UpstreamError) -> None:
        sink = self._sink
        self.close()
        if sink is not None:
            sink.on_failure(error)


def _has_read(transport: object) -> bool:
    """Whether Windows' event loop has read bytes or EOF that it has not handed over; by its private names.

    There, a read is always under way, so that the socket itself never has bytes to read.
    """
    plain = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    read = getattr(plain, "_read_fut", None)
    if read is None:
        return False
    overlapped = getattr(read, "_ov", None)
    return read.done() or (overlapped is not None and not overlapped.pending)


def _loss(exc: BaseException | None) -> ConnectionLost:
    """The name of a connection's end before that of its answer; ``exc`` is the event loop's reason."""
    if exc is not None and is_timeout(exc):  # the system found that the way is dead
        return WayDied()
    fault = None if exc is None else machine_fault(exc)
    if fault is not None:
        words = f"the connection was lost: {fault.words}"
        return ConnectionLost(words, proxy_status=fault.proxy_status, side=fault.side)
    return ConnectionLost("the connection was closed before the answer was complete")
