"""Connections to a cloud for tests: a pool of them, and one exchange on one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from support.harness import WAIT_S

from proxy.errors import ConnectFailed, UpstreamError
from proxy.http1 import Field, ResponseHead
from proxy.origin import Origin
from proxy.upstream.connection import CloudConnection
from proxy.upstream.dial import Dialer
from proxy.upstream.pool import Pool
from proxy.upstream.tls import tls_context

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Sink:
    """Collects an answer; ``done`` has its content, or raises what ended it."""

    done: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    status: int = 0
    content: bytes = b""
    interim: list[int] = field(default_factory=list)
    trailers: list[bytes] = field(default_factory=list)

    def on_informational(self, head: ResponseHead) -> None:
        self.interim.append(head.status)

    def on_head(self, head: ResponseHead) -> None:
        self.status = head.status

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_end(self, trailers: list[Field]) -> None:
        self.trailers = [field.line for field in trailers]
        self.done.set_result(self.content)

    def on_failure(self, error: UpstreamError) -> None:
        self.done.set_exception(error)

    def on_flush(self) -> None: ...

    def on_writable(self, *, writable: bool) -> None: ...


async def exchange(connection: CloudConnection, *, is_head_request: bool = False) -> Sink:
    """One request on a connection, until its answer is complete. Raises what ended it otherwise."""
    sink = Sink()
    connection.start(sink, GET, is_head_request=is_head_request, request_done=True)
    await asyncio.wait_for(sink.done, WAIT_S)
    return sink


def direct(_origin: Origin) -> None:
    """No HTTP proxy."""


def dialer(
    context: ssl.SSLContext | None = None,
    *,
    timeout_s: float = WAIT_S,
    find_proxy: Callable[[Origin], str | None] = direct,
) -> Dialer:
    return Dialer(context or tls_context(), connect_timeout_s=timeout_s, find_proxy=find_proxy)


def pool_of(url: str, using: Dialer | None = None) -> Pool:
    return Pool(Origin.parse(url), using or dialer())


@contextlib.asynccontextmanager
async def closing(pool: Pool) -> AsyncIterator[Pool]:
    """The pool; all its connections are closed at the end."""
    try:
        yield pool
    finally:
        pool.close()
        await asyncio.sleep(0)


async def refusal(pool: Pool) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as caught:
        await pool.connect()
    assert pool.is_unused
    return caught.value


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
