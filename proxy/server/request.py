"""One request as it comes from a caller: head, content, and the way back. Must not know routing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol, cast

from proxy.errors import ProxyError
from proxy.http1 import RequestHead
from proxy.server.body import RequestBody, Source
from proxy.server.facts import Facts

KEEP_ALIVE_S = 75.0
"""How long a connection without a request stays open."""
KEPT: Final = b"Connection: keep-alive\r\nKeep-Alive: timeout=%d" % (KEEP_ALIVE_S - 5)
"""The field lines that tell callers that time, less 5 s: so a caller's next request doesn't cross the end."""

CALLER_LEFT: Final = "the caller left before the end of the answer"
UNIX = "unix:"
"""The scheme of a Unix socket's URL, before its path."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One port that callers connect to, or a Unix socket; the ``index``-th.

    ``port`` is the port in Host (80 for a Unix socket). ``url`` is a URL that a caller on this computer can
    use. ``project`` is the name of the listener's own project; None where the target or a field names one.
    ``addresses`` has its IP addresses, each with the port; none for a Unix socket.
    """

    index: int
    url: str
    port: int
    project: str | None
    addresses: tuple[tuple[str, int], ...] = ()

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.url.startswith(UNIX)

    @property
    def path(self) -> str:
        """The path of the Unix socket."""
        return self.url.removeprefix(UNIX)


class WritingPeer(Protocol):
    """The source of the bytes for a caller; a slow caller slows the source down."""

    def pause(self) -> None:
        """Bring no more bytes for now."""

    def resume(self) -> None:
        """Go on."""


class PendingAnswer(Protocol):
    """The handler's work on a request that it didn't answer at once."""

    @property
    def others_wait(self) -> bool:
        """Whether other requests wait for what this one holds."""
        ...

    def abandon(self) -> None:
        """The caller has left: end the exchange."""


class Connection(Source, Protocol):
    """A caller's connection, as a request and the parser know it."""

    transport: asyncio.Transport | None
    listener: Listener
    peer: WritingPeer | None
    """The source of the answer that is being written; None between two answers."""
    is_ending: bool
    """Whether the connection closes after the current answer, which has to say so."""
    writing_paused: bool
    """Whether the caller reads more slowly than the answer comes."""
    is_known: bool
    """Whether the caller is no stranger any more."""

    def admit(self, *, whole: bool) -> bool:
        """The caller is no stranger any more; False: there is no room among the known ones now."""
        ...

    async def room(self) -> None:
        """Wait until there may be room for this connection among the known ones."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the connection lives on."""
        ...

    @property
    def untaken(self) -> int:
        """The written bytes that the caller's system has not taken, as far as our system tells."""
        ...

    @property
    def unanswered(self) -> int:
        """How many requests have a complete head, and an answer that isn't written yet."""
        ...

    @property
    def is_reading_held(self) -> bool:
        """Whether nothing is read from the caller for now."""
        ...

    def serve(self) -> None:
        """Begin to answer the next request in the queue, if none is being answered."""

    def done(self, request: Request, keep: bool) -> None:
        """The current request's answer is written; ``keep``: the connection can be used again."""

    def interrupted(self) -> None:
        """`Handler.run` has to go on with the current request, because something must be waited for."""

    def cancel(self) -> None:
        """Cancel `Handler.run`, if it is at work."""

    def abort(self) -> None:
        """Reset the connection, so that the part of an answer that was sent doesn't look whole."""

    async def drained(self) -> None:
        """Wait until the caller has taken most of the written bytes. A caller that stalls is reset."""


class Request:
    """One request: its head, its content, and the way back to the caller.

    ``error`` is set when the request can't be understood; the connection is closed after its answer.
    """

    __slots__ = (
        "answer_bytes",
        "body",
        "connection",
        "error",
        "exchange",
        "facts",
        "head",
        "head_sent",
        "status",
        "transport",
    )

    def __init__(self, head: RequestHead, body: RequestBody, connection: Connection) -> None:
        self.head = head
        self.body = body
        self.connection = connection
        self.transport: asyncio.Transport = cast(asyncio.Transport, connection.transport)
        self.error: ProxyError | None = None
        self.head_sent = False
        self.status = 0
        """The answer's status; 0 until there is an answer."""
        self.answer_bytes = 0
        """The bytes of the answer's content, so far."""
        self.exchange: PendingAnswer | None = None
        """The handler's work on the request; None before and after."""
        self.facts = Facts()

    def field(self, name: bytes) -> bytes | None:
        """The value of the first field with this lower-case name, None where there is none."""
        for field in self.head.fields:
            if field.name == name:
                return field.value
        return None

    @property
    def cut_reason(self) -> str | None:
        """Why the request or its answer ended too early; None if it didn't, or its caller left before."""
        if self.facts.cut is not None:
            return self.facts.cut.why
        return CALLER_LEFT if self.status and self.transport.is_closing() else None

    @property
    def may_keep(self) -> bool:
        """Whether the request and the proxy let the connection go on after the answer."""
        return self.head.keep_alive and not self.connection.is_ending

    def write(self, data: bytes) -> None:
        """Send a part of the answer, unless the connection is ending already."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def abandon(self) -> None:
        """The caller has left: end the work for it that has no task."""
        if self.exchange is not None:
            self.exchange.abandon()
