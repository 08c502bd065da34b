"""One request as it comes from a caller: head, content, and the way back. Knows nothing of routing."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from proxy.errors import ProxyError
from proxy.http1 import RequestHead
from proxy.server.body import RequestBody, Source
from proxy.server.facts import Facts


class WritingPeer(Protocol):
    """The source of what is written to a caller; it is slowed down when the caller is slow."""

    def pause(self) -> None:
        """Bring no more bytes for now."""

    def resume(self) -> None:
        """Go on."""


class Exchange(Protocol):
    """What a handler does about a request that it didn't answer at once."""

    def abandon(self) -> None:
        """The caller has left: end it, and tell nobody."""


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
        """Of the answer; 0 until there is one."""
        self.answer_bytes = 0
        """Of the answer's content, so far."""
        self.exchange: Exchange | None = None
        """The handler's; None before and after."""
        self.facts = Facts()

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
