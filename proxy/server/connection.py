"""One caller's connection: its requests, one after the other.

Data flows one way: the transport hands bytes to `CallerConnection.data_received`; the parser cuts them into
requests and queues them; the handler answers one request after the other, and writes to the transport. A
task exists only while `Handler.run` answers a request. Must not know projects, tokens or clouds.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Protocol

from proxy.machine import machine_fault
from proxy.server.caller_socket import CallerSocket
from proxy.server.departure import DepartureWatch
from proxy.server.facts import Cut
from proxy.server.linger import Linger
from proxy.server.parser import HEAD_TIMEOUT_S, MAX_PIPELINED, RequestParser
from proxy.server.request import KEEP_ALIVE_S, Listener, Request


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


class Home(Protocol):
    """The listener's connections, with places for known callers and for strangers."""

    def admit(self, connection: CallerConnection) -> bool:
        """Take a place for a known caller; False: all are taken."""
        ...

    async def room(self) -> None:
        """Wait until a known caller's place may be free."""

    def forget(self, connection: CallerConnection) -> bool:
        """The connection is lost; False: it was forgotten before."""
        ...


class CallerConnection(CallerSocket):
    """One caller's connection; a stranger's until `admit`."""

    __slots__ = (
        "_handler",
        "_has_full_queue",
        "_home",
        "_idle_timer",
        "_linger",
        "_parser",
        "_queue",
        "_task",
        "_watch",
        "_written",
        "_yet_incomplete",
        "accepted_at",
        "answered",
        "current",
        "idle_since",
        "is_ending",
        "is_half_closed",
        "is_known",
        "listener",
    )
    __deletable__ = ("_parser", "_watch")  # mypyc's word

    def __init__(
        self,
        handler: Handler,
        listener: Listener,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        home: Home,
    ) -> None:
        super().__init__(sock, loop)
        self._handler = handler
        self.listener = listener
        self._home = home
        self.is_known = False
        """Whether the caller has shown a key or, where no callers are defined, sent a whole request."""
        self._yet_incomplete = False
        """Whether the caller is known as soon as its request's content is complete."""
        self._queue: deque[Request] = deque()
        self._parser = RequestParser(self, self._queue)
        self._has_full_queue = False
        self.current: Request | None = None
        """The request that is being answered."""
        self._task: asyncio.Task[None] | None = None
        """`Handler.run`, at work on the current request."""
        self._written: bool | None = None
        """Whether the connection can be kept, once the caller has taken the answer that is written."""
        self.answered = 0
        """How many requests were answered."""
        self.idle_since = self.accepted_at = loop.time()
        """When the connection was accepted, or its last answer was taken, by the loop's clock."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self.is_ending = False
        self.is_half_closed = False
        self._linger: Linger | None = None
        self._watch = DepartureWatch(self)

    @property
    def unanswered(self) -> int:
        """How many requests have a complete head, and an answer that isn't written yet."""
        return len(self._queue) + (self.current is not None)

    @property
    def is_idle(self) -> bool:
        """Whether the connection can be closed: no request waits for an answer, and no answer can be lost."""
        return not self.unanswered and self._linger is None

    @property
    def is_dispensable(self) -> bool:
        """Whether a stop need not wait for it: the caller is a stranger, or has taken all of the answer."""
        if not self.is_known and (self.current is None or self.current.exchange is None):
            return True
        return self._linger is not None or (self._is_closing and not self.untaken)

    def admit(self, *, whole: bool) -> bool:
        """The caller is no stranger any more; False: there is no room among the known ones now.

        ``whole``: only once the current request's content is complete. Until then the caller is a stranger.
        """
        if whole and self.current is not None and not self.current.body.complete:
            self._yet_incomplete = True
        elif not self.is_known:
            self.is_known = self._home.admit(self)
            return self.is_known
        return True

    async def room(self) -> None:
        """Wait until there may be room for this connection among the known ones."""
        await self._home.room()

    # From the transport to the queue

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._is_closing:  # it was dropped meanwhile
            self.abort()
            return
        self._idle_timer = self._loop.call_later(KEEP_ALIVE_S, self._on_idle)

    def data_received(self, data: bytes | bytearray) -> None:
        if self._is_closing:
            return
        # Windows' event loop hands over a bytearray.
        self._parser.feed(data if isinstance(data, bytes) else bytes(data))
        if self._yet_incomplete and not self._parser.in_body:
            self._yet_incomplete = False
            self.admit(whole=False)
        if self._queue:
            if not self._has_full_queue and len(self._queue) >= MAX_PIPELINED:
                self._has_full_queue = True
                self.pause_body()
            self.serve()

    def pause_body(self) -> None:
        super().pause_body()
        if self.transport is not None:
            self._watch.start()

    def eof_received(self) -> bool:
        """The caller has sent its last byte; complete requests are still answered (RFC 9112, section 9.6).

        Windows' event loop calls it a second time where reading was held back meanwhile.
        """
        if self.is_half_closed:
            return True
        if self._parser.in_body:
            if not self._queue:  # the content of the current request will never be complete
                return False
            self._queue.pop()
        self._parser.stop()
        if self._is_tls or not self.unanswered:
            return False
        self.is_half_closed = True
        self._watch.start()
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if not self._home.forget(self):  # its TLS handshake was given up, and ended at the same time
            return
        self._parser.stop()
        self._watch.stop()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._linger is not None:
            self._linger.stop()
            self._linger = None
        self._queue.clear()
        request, self.current = self.current, None
        if request is not None:
            if self._written is None:  # else it was counted and logged as answered
                request.facts.cut = request.facts.cut or self.cut
            if exc is not None and request.head_sent and (fault := machine_fault(exc)) is not None:
                request.facts.cut = Cut(fault.words, "proxy")
            if request.exchange is None:  # nobody will need the content
                request.body.release()
            request.abandon()
        task, self._task = self._task, None  # an ended task would keep the transport until a collection
        if task is not None:
            task.cancel()
        # Both refer to the connection: in a flood, lost ones and TLS memory would wait for a collection.
        del self._parser, self._watch

    # From the queue to the handler

    def serve(self) -> None:
        """Begin to answer the next request in the queue, if none is being answered."""
        if self.current is not None or self._is_closing or self._linger is not None:
            return
        if self._queue:
            request = self.current = self._queue.popleft()
            if self._has_full_queue and len(self._queue) <= MAX_PIPELINED // 2:
                self._refill()
            if not self._handler.try_now(request):
                self.interrupted()
        elif self.is_half_closed:
            self.close()
        elif self._idle_timer is None:
            self._idle_timer = self._loop.call_later(KEEP_ALIVE_S, self._on_idle)

    def _refill(self) -> None:
        self._parser.feed(b"")
        if len(self._queue) < MAX_PIPELINED:
            self._has_full_queue = False
            self.resume_body()

    def interrupted(self) -> None:
        """Let `Handler.run` go on with the current request."""
        if self.current is not None:
            self._task = self._loop.create_task(self._run(self.current))

    def cancel(self) -> None:
        """Cancel `Handler.run`, if it is at work; not before its first step, or it could not answer."""
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)

    async def _run(self, request: Request) -> None:
        try:
            keep = await self._handler.run(request)
        except BaseException:  # the caller has left, or a bug
            self.close()
            raise
        self._task = None
        self.done(request, keep=keep)

    # The answer is written

    def done(self, request: Request, keep: bool) -> None:
        """The current request's answer is written; ``keep``: the connection can be used again."""
        if self.current is not request:  # the caller has left
            return
        if self.writing_paused:  # the next answer waits until the caller has taken most of this one
            self._written = keep
            self._limit_stall()
            return
        self.current = self._written = None
        self.answered += 1
        self.idle_since = self._loop.time()
        body = request.body
        if body.complete or self.is_half_closed or self._is_closing or self.transport is None:
            if body.received:
                body.release()
            if not keep or self._is_closing:
                self.close()
            elif self._queue or self.is_half_closed or self._idle_timer is None:
                self.serve()
        else:
            self._linger = Linger(body, self.transport, self._loop, self.close)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._written is not None:  # later: asyncio would end a transport twice that is closed in here
            self._loop.call_soon(self._on_taken)

    def _on_taken(self) -> None:
        if self._written is not None and self.current is not None:
            self.done(self.current, keep=self._written)

    def _on_idle(self) -> None:
        self._idle_timer = None
        if not self.is_idle:
            return
        left_s = self.idle_since + KEEP_ALIVE_S - self._loop.time()
        if self._parser.in_head:  # the parser limits the time for the rest of the head
            left_s = max(left_s, HEAD_TIMEOUT_S)
        if left_s > 0:
            self._idle_timer = self._loop.call_later(left_s, self._on_idle)
        else:
            self.close()
