"""One GET of a file, whose content is read piece by piece.

Hides that the connection hands its bytes over by callbacks: while the reader is slower, the connection is
not read on. Must not know the meaning of the file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from proxy.errors import ConnectionLost, UpstreamError
from proxy.http1 import Field, ResponseHead
from proxy.upstream.connection import CloudConnection
from proxy.upstream.pool import SURE_REUSE_S, Pool

HELD_BYTES: Final = 512 * 1024
"""Bytes of a file that wait for the reader at most, and one read of the socket more. With more bytes, the
download isn't faster: they leave the processor's cache before they are written."""


class Download:
    """The answer to one GET: `open` it, `read` it, and `close` it in any case. Implements `ResponseSink`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: CloudConnection | None = None
        self._head: ResponseHead | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._has_ended = False
        self._error: UpstreamError | None = None
        self._wanted: asyncio.Future[None] | None = None

    async def open(self, head: bytes) -> ResponseHead:
        """Send the request ``head``; the head of the answer. Raises UpstreamError."""
        connection = self._pool.take_idle(SURE_REUSE_S)
        if connection is not None:
            self._start(connection, head)
            answer = await self._answer_head()
            if answer is not None:
                return answer
            if not isinstance(self._error, ConnectionLost) or connection.answered:
                raise self._failure()
            self._error = None  # the connection was being closed as the request went out: take a new one
        self._start(await self._pool.connect(), head)
        answer = await self._answer_head()
        if answer is None:
            raise self._failure()
        return answer

    async def read(self) -> bytes:
        """The next bytes of the content, empty at its end. Raises UpstreamError if the content is cut."""
        while not self._pieces:
            if self._error is not None:
                raise self._failure()
            if self._has_ended:
                return b""
            await self._more()
        piece = self._pieces.popleft()
        self._held -= len(piece)
        if self._held <= HELD_BYTES // 2 and self._connection is not None:
            self._connection.resume()
        return piece

    def close(self) -> None:
        """End the download; a connection whose answer isn't complete is closed at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(self)

    def _start(self, connection: CloudConnection, head: bytes) -> None:
        self._connection = connection
        connection.start(self, head, is_head_request=False, request_done=True)

    async def _answer_head(self) -> ResponseHead | None:
        """The answer's head; None where the connection failed."""
        while self._head is None and self._error is None:
            await self._more()
        return self._head

    async def _more(self) -> None:
        self._wanted = asyncio.get_running_loop().create_future()
        await self._wanted

    def _failure(self) -> UpstreamError:
        return self._error or ConnectionLost("the connection was closed before an answer")

    # ResponseSink

    def on_informational(self, head: ResponseHead) -> None:
        """An interim answer says nothing here."""

    def on_head(self, head: ResponseHead) -> None:
        """The answer's head."""
        self._head = head
        self.on_flush()

    def on_body(self, data: bytes) -> None:
        """The next bytes of the content."""
        self._pieces.append(data)
        self._held += len(data)
        if self._held >= HELD_BYTES and self._connection is not None:
            self._connection.pause()

    def on_end(self, trailers: list[Field]) -> None:  # noqa: ARG002 - the interface's
        """The content is complete; the connection may carry another exchange already."""
        self._connection = None
        self._has_ended = True
        self.on_flush()

    def on_failure(self, error: UpstreamError) -> None:
        """The content will never be complete."""
        self._connection = None
        self._error = error
        self.on_flush()

    def on_flush(self) -> None:
        """Let the reader go on."""
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def on_writable(self, *, writable: bool) -> None:
        """A request without content is never held back."""
