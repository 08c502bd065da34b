"""Accepts callers' connections, as a site of aiohttp's public server.

aiohttp's own sites pass no time limits to TLS, count a TLS connection only after its handshake, and can't
pause. This module and `proxy.server.connection` use none of aiohttp's private names.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, cast

from aiohttp.web_runner import BaseSite, ServerRunner
from aiohttp.web_server import Server

from proxy.logs import OnEvent
from proxy.server.caller_socket import WRITE_STALL_S
from proxy.server.capacity import make_room
from proxy.server.connection import CallerConnection, Handler
from proxy.server.facts import Cut
from proxy.server.request import Listener
from proxy.server.strangers import Strangers
from proxy.server.tls import HANDSHAKE_TIMEOUT_S, speaks_plain_http

Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]
"""Runs a coroutine as a task of the application. An error of the coroutine ends the application."""
LOOK_S = 0.1
"""How often a full listener looks for connections to close."""
GRACE_S = 0.3
"""How long a stop waits for strangers, and for callers that don't close what the proxy has closed."""
RETRY_S = 1.0
"""How long nothing is accepted after the system refused to accept. The connections that were closed meanwhile
leave their descriptors to tokens and clouds. asyncio's own server waits as long."""
UNSENT_BYTES: Final = 128 * 1024
"""The most bytes that the kernel holds for a slow caller, beside those on their way to the caller. Without
this limit, the kernel would hold megabytes for each caller."""
_NETNAME_DELETED: Final = 64
"""Windows' word for a connection that its caller reset before it was accepted."""
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class CallerServer(Server):
    """The connections of one listener: at most ``limit`` of known callers, beside the ``strangers``."""

    def __init__(
        self, handler: Handler, listener: Listener, strangers: Strangers, limit: int, spawn: Spawn
    ) -> None:
        super().__init__(cast(Any, handler.run))
        self.listener = listener
        self.strangers = strangers
        self.limit = limit
        self._handler = handler
        self._spawn = spawn
        self._open: set[CallerConnection] = set()
        self._known = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        """Known callers that wait for a place, the first one first."""
        self._letting_in: asyncio.Task[None] | None = None
        self._stopping_since: float | None = None

    def __call__(self, sock: socket.socket) -> CallerConnection:  # type: ignore[override]
        """The protocol for a socket that was accepted. The connection counts from now on."""
        connection = CallerConnection(self._handler, self.listener, sock, asyncio.get_running_loop(), self)
        self._open.add(connection)
        self.strangers.add(connection)
        return connection

    def admit(self, connection: CallerConnection) -> bool:
        """Give a stranger's connection a known caller's place; False: all are taken."""
        if self._known >= self.limit:
            return False
        if connection not in self._open:  # it was lost a moment ago
            return True
        self._known += 1
        self.strangers.discard(connection)
        return True

    async def room(self) -> None:
        """Wait until a known caller's place may be free."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if self._letting_in is None or self._letting_in.done():
            self._letting_in = self._spawn(self._let_in())
        await waiter

    async def _let_in(self) -> None:
        while self._waiting:
            free = self.limit - self._known
            if free <= 0:
                self.make_room()
            while self._waiting and (free > 0 or self._waiting[0].done()):
                waiter = self._waiting.popleft()
                if not waiter.done():  # its caller has not left
                    waiter.set_result(None)
                    free -= 1
            await asyncio.sleep(LOOK_S)

    def make_room(self) -> None:
        """Close some of the idle connections of known callers."""
        known = [one for one in self._open if one.is_known]
        make_room(known, self.limit, asyncio.get_running_loop().time())

    def forget(self, connection: CallerConnection) -> bool:
        """The connection is lost, or was never made; False: it was forgotten before."""
        if connection not in self._open:
            return False
        self._open.discard(connection)
        self.strangers.discard(connection)
        if connection.is_known:
            connection.is_known = False
            self._known -= 1
        return True

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    @property
    def connections(self) -> list[CallerConnection]:  # type: ignore[override]
        """The connections, those in their TLS handshake among them."""
        return [*self._open]

    def pre_shutdown(self) -> None:
        """Close each connection: now, or after the answers that its caller waits for."""
        now = asyncio.get_running_loop().time()
        if self._stopping_since is None:
            self._stopping_since = now
        for connection in self.connections:
            connection.is_ending = True
            if connection.is_idle:
                connection.close()
            if now - self._stopping_since >= GRACE_S and connection.is_dispensable:
                if connection.current is not None:
                    connection.current.facts.cut = Cut("the proxy stopped before its answer", "proxy")
                connection.abort()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ARG002 - aiohttp's
        """Reset the connections that are left."""
        for connection in self.connections:
            connection.abort()


class CallerSite(BaseSite):
    """The listening sockets of ``runner``'s server, whatever their family. They are closed by `stop`.

    ``on_event`` hears ``accept_failed``.
    """

    def __init__(
        self,
        runner: ServerRunner,
        server: CallerServer,
        *sockets: socket.socket,
        tls: ssl.SSLContext | None,
        spawn: Spawn,
        on_event: OnEvent,
    ) -> None:
        super().__init__(runner)
        self.server = server
        self._tls = tls
        self._spawn = spawn
        self._on_event = on_event
        self._accepting: dict[socket.socket, asyncio.Task[None] | None] = dict.fromkeys(sockets)
        self._is_stopping = False

    @property
    def name(self) -> str:
        """Where it listens, as a URL."""
        return self.server.listener.url

    async def start(self) -> None:
        """Begin to accept."""
        await super().start()
        for sock in self._accepting:
            self._accept_on(sock)

    def move_to(self, sock: socket.socket) -> None:
        """Accept on this socket from now on; those before are closed."""
        for before, accepting in self._accepting.items():
            self._spawn(_end_accepting(accepting, before))
        self._accepting.clear()
        self._accept_on(sock)

    async def stop(self) -> None:
        """Accept no more; connections stay."""
        self._is_stopping = True
        for sock, accepting in self._accepting.items():
            await _end_accepting(accepting, sock)
        await super().stop()

    def _accept_on(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._accepting[sock] = self._spawn(self._accept(sock))

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            if (wait_s := self.server.strangers.wait_s(loop.time())) > 0:
                await asyncio.sleep(wait_s)
                continue
            try:
                sock, _ = await loop.sock_accept(listening)
            except ConnectionError:  # the caller has left already
                continue
            except OSError as exc:
                if getattr(exc, "winerror", None) != _NETNAME_DELETED:
                    await self._on_accept_failed(exc)
                continue
            if _NOTSENT_LOWAT is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)
            connection = self.server(sock)
            opening = self._open(connection, self._tls)
            if self._tls is None:
                try:
                    await opening
                finally:
                    self._on_opened(connection)
            else:
                connection.opening = loop.create_task(opening)
                # A task that is cancelled before its first step would run no `finally`.
                connection.opening.add_done_callback(partial(self._on_opened, connection))
                await asyncio.sleep(0)

    async def _open(self, connection: CallerConnection, tls: ssl.SSLContext | None) -> None:
        """Give the connection its transport, after the TLS handshake."""
        loop, sock = asyncio.get_running_loop(), connection.socket
        try:
            if tls is None:
                await loop.connect_accepted_socket(lambda: connection, sock)
                return
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                is_plain = await speaks_plain_http(sock)
            if not is_plain:
                await loop.connect_accepted_socket(
                    lambda: connection,
                    sock,
                    ssl=tls,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                    ssl_shutdown_timeout=WRITE_STALL_S,  # see `CallerSocket`
                )
        except OSError:  # no TLS, no handshake in time, or the caller has left
            pass

    def _on_opened(self, connection: CallerConnection, *_: object) -> None:
        """The connection has its transport now, or gets none."""
        connection.opening = None
        if connection.transport is None:
            connection.socket.close()
            connection.connection_lost(None)

    async def _on_accept_failed(self, error: OSError) -> None:
        """The system can't accept: most likely, the process or the system has no file descriptors left."""
        cause = errno.errorcode.get(error.errno or 0, "unknown")
        values = {
            "listener": self.name,
            "cause": cause,
            "error": error.strerror,
            "connections": self.server.open,
        }
        self._on_event("accept_failed", values)
        self.server.make_room()
        await asyncio.sleep(RETRY_S)


async def _end_accepting(accepting: asyncio.Task[None] | None, sock: socket.socket) -> None:
    if sock.fileno() < 0:  # a stop that was cut short has ended it
        return
    with contextlib.suppress(NotImplementedError):
        asyncio.get_running_loop().remove_reader(sock)
    for _ in range(3):  # a connection that was accepted a moment ago is served
        await asyncio.sleep(0)
    if accepting is not None:
        accepting.cancel()
        await asyncio.wait((accepting,))
    sock.close()
