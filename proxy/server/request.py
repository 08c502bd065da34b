"""One request as it comes from a caller: head, content, and the way back. Knows nothing of routing."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Protocol, cast

from proxy.errors import ProxyError
from proxy.http1.heads import (
    Field,
    RequestHead,
    ResponseHead,
)
from proxy.server.body import RequestBody, Source


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
