"""The callers' side: aiohttp's server with our strict parser, as one module.

Hides every seam of aiohttp that we ride on, so that a new release is met here and nowhere else
(tests/server/test_seams.py names them). aiohttp's `RequestHandler` keeps what it is good at:
connections, keep-alive, the queue of pipelined requests, cancellation. Its parser is replaced, because
it refuses unknown methods, answers 400 where 414, 431 or 501 is due and rewrites what it parses; and so
is its loop of requests, because answers are written straight to the transport by whoever handles one.
Must not know projects, leases or upstreams.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server  # aiohttp.web has an application around it, of 1 MiB

from proxy.server.departure import has_left
from proxy.server.parser import HEAD_TIMEOUT_S, MAX_PIPELINED, RequestParser
from proxy.server.request import Request, WritingPeer

_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_LINGER_NONE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
ABORT_SHUTS_DOWN = sys.platform == "win32"
"""Whether the event loop shuts an aborted socket down before it closes it, so that a FIN goes out."""
KEEP_ALIVE_S = 75.0
HALF_CLOSE_GRACE_S = 0.8
"""A caller that sent FIN left, or waits. Where `has_left` can't tell, it has left after this."""
LOOK_S = 0.2
"""How often it is looked whether a caller that can't be heard (after FIN, or paused) is still there."""
WRITE_STALL_S = 300.0
"""How long a caller may take for what is left of an answer before the next one is begun, or the end."""
UNSENT_BYTES = 128 * 1024
"""What the kernel holds of an answer that a slow caller doesn't take, beside what is on its way to it:
without this, megabytes for each."""
LINGER_S = 5.0
"""How long the rest of an upload is read and dropped after an early answer, so that the answer arrives."""


class Handler(Protocol):
    """Answers requests, by one of two engines: `try_now` without a task, `run` in one."""

    def try_now(self, request: Request) -> bool:
        """Send a request on, if nothing in this process has to be waited for; False: `run` must answer it.

        After True, the handler calls `CallerConnection.done` when the answer is written, or
        `CallerConnection.interrupted` when `run` has to go on. If the caller leaves before that, the
        connection abandons the request's ``exchange``.
        """
        ...

    async def run(self, request: Request) -> bool:
        """Answer a request, or go on after `try_now`; whether the connection can be kept.

        Raises nothing but CancelledError.
        """
        ...


class CallerConnection(RequestHandler):
    """One caller's connection. ``peer`` gets told when the caller's side can't take more, or can again."""

    __slots__ = (
        "_end_timer",
        "_handler",
        "_holds",
        "_is_lingering",
        "_keep",
        "_look_timer",
        "_turn",
        "_wire",
        "answered",
        "is_ending",
        "is_half_closed",
        "listener",
        "peer",
        "unanswered",
    )
    # Our own stand where aiohttp has its.
    _parser: RequestParser | None  # type: ignore[assignment]
    _messages: deque[Request]  # type: ignore[assignment]
    _current_request: Request | None  # type: ignore[assignment]

    def __init__(self, manager: CallerServer, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            cast(Server, manager),
            loop=loop,
            keepalive_timeout=KEEP_ALIVE_S,
            access_log=cast(Any, None),
            auto_decompress=False,
        )
        self._parser = RequestParser(self)
        self._max_msg_queue_size = MAX_PIPELINED
        self._msg_queue_resume_size = MAX_PIPELINED // 2
        self.peer: WritingPeer | None = None
        self.listener: Any = manager.listener
        """What the listener that this connection came through stands for."""
        self.answered = 0
        self.unanswered = 0
        """Requests whose heads have come and whose answers aren't written yet."""
        self.is_half_closed = False
        self.is_ending = False
        """Whether it is closed after the answer that is on its way, which has to say so."""
        self._handler = manager.handler
        self._turn: asyncio.Future[None] | None = None
        """What the task waits on while it isn't needed."""
        self._keep: bool | None = None
        """Of a request that was answered without the task and is the task's to finish; None: of no such."""
        self._holds = 0
        self._look_timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None
        """The transport until it is gone: aiohttp forgets it once it was asked to close."""
        self._end_timer: asyncio.TimerHandle | None = None
        self._is_lingering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if (
            _NOTSENT_LOWAT is not None
            and sock is not None
            and sock.family != getattr(socket, "AF_UNIX", None)
        ):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)

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
        parser = self._parser
        if parser is None or parser.in_body or not self.is_answering or self.ssl_context is not None:
            return None
        self.is_half_closed = True
        self._loop.call_later(HALF_CLOSE_GRACE_S, self._presume_gone, self.answered)
        self._loop.call_later(LOOK_S / 10, self._look)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        parser = self._parser
        if parser is not None:
            parser.stop_timer()
        for timer in (self._look_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        self._wire = None
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
        request = self._current_request
        unchanged = self.answered == answered and request is not None and not request.head_sent
        if unchanged and self._has_left() is None:
            self.abort()

    def _process_keepalive(self) -> None:
        parser = self._parser
        if parser is not None and parser.in_head:  # no longer idle: HEAD_TIMEOUT_S bounds it
            self._next_keepalive_close_time = self._loop.time() + HEAD_TIMEOUT_S
        super()._process_keepalive()

    def abort(self) -> None:
        """Reset the connection: what was sent so far must not look whole, not even to who reads until EOF."""
        transport = self._wire
        if transport is None:
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        transport.abort()
        if ABORT_SHUTS_DOWN and sock is not None:  # closed at once, the socket sends a reset
            sock._sock.close()  # noqa: SLF001 - asyncio's own object for it can't be closed

    @property
    def has_unsent(self) -> bool:
        """Whether a part of what was written to it has not been taken by the kernel yet."""
        return self._wire is not None and self._wire.get_write_buffer_size() > 0

    def force_close(self) -> None:
        """Close it as soon as the caller has taken what was written; one that doesn't is reset in the end."""
        self._end_in_time()
        super().force_close()

    def _end_in_time(self) -> None:
        if self.has_unsent and self._end_timer is None:
            self._end_timer = self._loop.call_later(WRITE_STALL_S, self.abort)

    def make_way(self) -> None:
        """Close it now, for others to have room."""
        if self.has_unsent:
            self.abort()
        else:
            self.force_close()

    @property
    def idle_since(self) -> float:
        """When it was made, or the last answer was written, by the loop's clock."""
        return self._next_keepalive_close_time - KEEP_ALIVE_S

    @property
    def is_answering(self) -> bool:
        """Whether a request is being handled, or waits to be."""
        return self.unanswered > 0

    @property
    def is_idle(self) -> bool:
        """Whether it can be closed: no request waits for an answer, nor an early answer to be seen."""
        return not (self.is_answering or self._is_lingering)

    # One request after the other: begun as it comes where it can be, and the task's business where not.

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._force_close or self._close or parser is None:
            return
        requests = parser.feed_data(data)
        if not requests:
            return
        if self._waiter is not None and len(requests) == 1 and not self._messages:
            parser.message_consumed()
            self._take_up(requests[0])
            return
        self._messages.extend(requests)
        if not self._buffer_paused and len(self._messages) >= self._max_msg_queue_size:
            self._pause_reading_for_buffer()
        if self._waiter is not None:
            self._take_up(self._next_message())

    def _next_message(self) -> Request:
        self._waiter = None  # whatever is read on below must not begin another
        request = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return request

    def _take_up(self, request: Request) -> None:
        """Begin on the next request; the task has to answer it where that can't be."""
        self._waiter = None
        self._request_in_progress = True
        self._current_request = request
        if not self._handler.try_now(request):
            self.interrupted()

    def interrupted(self) -> None:
        """Let the task go on with the current request."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def done(self, request: Request, *, keep: bool) -> None:
        """The answer to a request that was begun is written; ``keep``: the connection can be used again."""
        if self._manager is None:  # it is lost
            return
        is_simple = keep and request.body.complete and not (self._paused or self.is_half_closed)
        if not is_simple or self._force_close or self._close:
            self._keep = keep
            self.interrupted()
            return
        self._count_answer()
        if request.body.received:
            request.body.release()
        self._waiter = self._turn
        if self._messages:
            self._take_up(self._next_message())

    def _count_answer(self) -> None:
        self._current_request = None
        self._request_in_progress = False
        self.answered += 1
        self.unanswered -= 1
        self._next_keepalive_close_time = self._loop.time() + KEEP_ALIVE_S
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(
                self._next_keepalive_close_time, self._process_keepalive
            )

    async def start(self) -> None:
        """Answer what can't be begun without a task; aiohttp makes this the handler's one."""
        keep = True
        while keep and not (self._force_close or self._close):
            if self.is_half_closed and not self._messages:
                break
            await self._needed()
            request = cast(Request, self._current_request)
            keep = await self._answer(request)
            if not request.body.complete:
                keep = False
                await self._linger(request)
            request.body.release()
        if self.transport is not None:
            self._task_handler = None
            self._end_in_time()
            self.transport.close()

    async def _needed(self) -> None:
        """Wait until there is a request for the task: the current one."""
        self._waiter = self._turn = self._loop.create_future()
        if self._messages:
            self._take_up(self._next_message())
        try:
            await self._turn
        finally:
            self._waiter = self._turn = None

    async def _answer(self, request: Request) -> bool:
        keep, self._keep = self._keep, None
        try:
            if keep is None:
                keep = await self._handler.run(request)
            if self.writing_paused:
                await self.drained()
        except BaseException:
            self.force_close()
            raise
        finally:
            self._count_answer()
        return keep

    async def _linger(self, request: Request) -> None:
        """Read and drop what the caller still sends, so that the answer isn't lost to a reset."""
        if self._force_close or self.transport is None or self.is_half_closed:
            return
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):  # it was reset already
                self.transport.write_eof()
        self._is_lingering = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while not request.body.complete:
                        await request.body.discard()
        finally:
            self._is_lingering = False

    async def drained(self) -> None:
        """Wait until the caller has taken most of what was written, ``WRITE_STALL_S`` at most."""
        try:
            async with asyncio.timeout(WRITE_STALL_S):
                await self._drain_helper()
        except TimeoutError:
            self.abort()


class CallerServer(Server):
    """Makes a `CallerConnection` for every accepted connection of one listener."""

    def __init__(self, handler: Handler, listener: Any) -> None:
        self.handler = handler
        self.listener = listener
        self.open = 0
        """How many connections there are."""
        self.on_change: Callable[[], None] | None = None
        """Called whenever a connection came or went."""
        super().__init__(cast(Any, handler), handler_cancellation=True)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._count(1)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._count(-1)

    def _count(self, change: int) -> None:
        self.open += change
        if self.on_change is not None:
            self.on_change()

    def __call__(self) -> CallerConnection:
        return CallerConnection(self, loop=self._loop)
