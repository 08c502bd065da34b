"""One request's content, between the parser and a sink such as the connection to the cloud.

Hides buffering, back-pressure and the part that is kept to send a request again. Knows neither sockets nor
aiohttp: reading is paused and resumed through a `Source`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from proxy.errors import BadRequest, ProxyError
from proxy.http1 import Field

BUFFER_BYTES: Final = 64 * 1024
"""Bytes of content (or of pipelined requests) without a sink after which reading pauses."""


class Source(Protocol):
    """The sender of the content. Each `pause_body` needs its own `resume_body`."""

    def pause_body(self) -> None:
        """Stop reading."""

    def resume_body(self) -> None:
        """Read on, unless there is another pause."""


class BodySink(Protocol):
    """Receives a request's content as it arrives."""

    def on_request_body(self, data: bytes) -> None:
        """The next bytes of the content."""

    def on_request_end(self, trailers: list[Field]) -> None:
        """The content is complete."""

    def on_request_broken(self, error: ProxyError) -> None:
        """The content's framing is malformed; nothing more will come."""


class RequestBody:
    """One request's content: buffered until a sink takes it, then handed on as it arrives.

    The first `BUFFER_BYTES` are kept so that the request can be sent again: see `rewind`.
    """

    __slots__ = (
        "_buffered",
        "_held",
        "_kept",
        "_kept_bytes",
        "_paused",
        "_sink",
        "_source",
        "_waiter",
        "broken",
        "complete",
        "on_end",
        "received",
        "trailers",
    )

    def __init__(self, source: Source | None) -> None:
        self._source = source
        self._paused = False
        self._sink: BodySink | None = None
        self._buffered: list[bytes] = []
        self._held = 0
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self.complete = False
        self.broken: ProxyError | None = None
        self.on_end: Callable[[], None] | None = None
        """Called once, when the content is complete or its framing turns out to be malformed."""
        self.received = 0
        self.trailers: list[Field] = []

    @property
    def replayable(self) -> bool:
        """Whether all content so far is still held, so that it can be sent from its start."""
        return self._kept is not None

    def attach(self, sink: BodySink) -> None:
        """Hand the buffered bytes, and all that follow, to ``sink``."""
        self._sink = sink
        buffered, self._buffered, self._held = self._buffered, [], 0
        for data in buffered:
            sink.on_request_body(data)
        if self.broken is not None:
            sink.on_request_broken(self.broken)
        elif self.complete:
            sink.on_request_end(self.trailers)
        self.resume()

    def detach(self) -> None:
        """Stop handing content on; further content is buffered again."""
        self._sink = None
        if self._paused:
            self.resume()

    def rewind(self) -> None:
        """Make the next sink get the content from its start; only where `replayable`."""
        if self._kept is None:
            raise RuntimeError("the content is no longer held")
        self._sink = None
        self._buffered = list(self._kept)
        self._held = self._kept_bytes

    @property
    def is_paused(self) -> bool:
        """Whether reading from the caller stands still for this content."""
        return self._paused

    def pause(self) -> None:
        """Stop reading from the caller: the sink is slower."""
        if not self._paused and not self.complete and self._source is not None:
            self._paused = True
            self._source.pause_body()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._source is not None:
            self._paused = False
            self._source.resume_body()

    def feed(self, data: bytes) -> None:
        """Bytes of content, from the parser."""
        self.received += len(data)
        if self._kept is not None:
            self._kept_bytes += len(data)
            if self._kept_bytes <= BUFFER_BYTES:
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
            self.resume()
            self._sink.on_request_end(trailers)
        self._wake()
        if self.on_end is not None:
            self.on_end()

    def fail(self, error: ProxyError) -> None:
        """The framing is malformed."""
        self.broken = error
        if self._sink is not None:
            self._sink.on_request_broken(error)
        self._wake()
        if self.on_end is not None:
            self.on_end()

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

    def release(self) -> None:
        """The request is answered: forget the content."""
        self._kept = None
        self._buffered, self._held = [], 0
        self.detach()


class _NoContent(RequestBody):
    """Keeps no state, because all requests without content share one."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(None)
        self.complete = True

    def attach(self, sink: BodySink) -> None:
        """Say that this is the end."""
        sink.on_request_end([])

    def detach(self) -> None:
        """There is nothing to stop."""

    def rewind(self) -> None:
        """The end is the start."""

    def release(self) -> None:
        """There is nothing to forget."""


NO_CONTENT: Final = _NoContent()
"""The content of each request without content."""
