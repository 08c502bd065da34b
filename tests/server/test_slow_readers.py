"""Callers that take their answers slowly, or never: when they are let go, and nothing is cut in haste."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest
from support.harness import WAIT_S, Gateway, Upstream, gateway, until

from proxy.server import caller_socket, capacity
from proxy.server import connection as server
from proxy.server.connection import CallerConnection


def answer_of(size: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


def left(connection: CallerConnection) -> int:
    transport = connection.transport
    return 0 if transport is None else transport.get_write_buffer_size()


class Reader:
    """A caller with a small receive buffer, of which so much of an answer is left that we aren't paused."""

    def __init__(self, sock: socket.socket, connection: CallerConnection, size: int) -> None:
        self.sock = sock
        self.connection = connection
        self.size = size

    async def rest(self) -> bytes:
        """All that still comes. Raises ConnectionResetError where it is cut."""
        loop, got = asyncio.get_running_loop(), b""
        async with asyncio.timeout(WAIT_S):
            while data := await loop.sock_recv(self.sock, 1 << 20):
                got += data
        return got


@contextlib.asynccontextmanager
async def reader(
    proxy: Gateway, upstream: Upstream, *lines: bytes, version: bytes = b"1.1"
) -> AsyncIterator[Reader]:
    """A caller that has got an answer, which is written, and has not read it."""
    # How much the kernel takes is its own affair: try until a part is left with us, and no pause.
    loop, size = asyncio.get_running_loop(), 45_000
    while True:
        size += 15_000
        upstream.answer = answer_of(size)
        known = set(proxy.app._listeners.connections())
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
        await until(lambda known=known: set(proxy.app._listeners.connections()) - known)  # type: ignore[misc]
        [connection] = set(proxy.app._listeners.connections()) - known
        start = b"GET /v1/x HTTP/" + version + b"\r\n"
        await loop.sock_sendall(sock, start + b"\r\n".join((b"Host: " + proxy.host, *lines, b"", b"")))
        await until(lambda: connection.answered or connection.writing_paused)  # noqa: B023
        if left(connection) and connection.answered:
            break
        sock.close()
    try:
        yield Reader(sock, connection, size)
    finally:
        sock.close()


async def test_what_is_written_is_still_sent_while_the_proxy_stops() -> None:
    for version in (b"1.1", b"1.0"):
        upstream = Upstream()
        async with gateway(upstream) as proxy, reader(proxy, upstream, version=version) as caller:
            draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
            await asyncio.sleep(0.1)
            assert not draining.done()
            assert (await caller.rest()).endswith(b"x" * caller.size)
            await asyncio.wait_for(draining, WAIT_S)


async def test_who_does_not_read_until_the_proxy_has_to_end_is_cut_visibly() -> None:
    upstream = Upstream()
    async with gateway(upstream, server={"port": 0, "drain_timeout": 0.05}) as proxy:
        stack = contextlib.AsyncExitStack()
        caller = await stack.enter_async_context(reader(proxy, upstream, version=b"1.0"))
        async with asyncio.timeout(WAIT_S):
            await proxy.app.drain(asyncio.Event())
    async with stack:
        with pytest.raises(ConnectionResetError):
            await caller.rest()


@pytest.mark.parametrize("line", [b"Connection: close", b"Accept: text/plain"])
async def test_who_never_reads_the_end_of_an_answer_is_let_go(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.8)
    monkeypatch.setattr(caller_socket, "WRITE_STALL_S", 0.2)
    upstream = Upstream()
    async with gateway(upstream) as proxy, reader(proxy, upstream, line) as caller:
        await until(lambda: not list(proxy.app._listeners.connections()))
        with pytest.raises(ConnectionResetError):
            await caller.rest()


async def test_a_stored_answer_whose_reader_stands_still_is_told_as_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caller_socket, "WRITE_STALL_S", 0.2)
    content = b'"%b"' % (b"x" * 900_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
    shop = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"], "cache": "60s"}
    async with gateway(Upstream(head + content), projects={"shop": shop}) as proxy:
        assert (await proxy.call(b"GET /v1/segments")).content == content
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
            await loop.sock_sendall(sock, proxy.request(b"GET /v1/segments"))
            [project] = proxy.app.projects()
            await until(lambda: project.measures.shared["hit"])
        [error] = project.measures.last_errors
        assert error.message == "The answer was cut: its caller took no byte for 0.2 s. Send it again."
        [_, last] = json.loads((await proxy.call(b"GET /-/requests")).content)["requests"]
        assert (last["status"], last["error"], last["source"]) == (200, "PROXY_ANSWER_CUT", "proxy")


async def test_who_reads_slowly_and_was_asked_to_close_still_gets_all() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy, reader(proxy, upstream, b"Connection: close") as caller:
        await asyncio.sleep(0.05)
        assert (await caller.rest()).endswith(b"x" * caller.size)
        await until(lambda: not list(proxy.app._listeners.connections()))


async def test_those_who_never_read_keep_nobody_else_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(capacity, "IDLE_S", 0.05)
    upstream = Upstream()
    async with gateway(upstream) as proxy, contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(reader(proxy, upstream))
        async with asyncio.timeout(WAIT_S):
            assert (await proxy.call(b"GET /-/healthy")).status == 200


async def test_a_connection_that_closes_as_its_caller_catches_up_closes_once() -> None:
    errors: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        for size in range(60_000, 2_000_000, 15_000):  # until a part is left with us
            upstream.answer = answer_of(size)
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.setblocking(False)
                known = set(proxy.app._listeners.connections())
                await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
                await until(lambda known=known: set(proxy.app._listeners.connections()) - known)  # type: ignore[misc]
                [connection] = set(proxy.app._listeners.connections()) - known
                await until(lambda: connection.transport)  # noqa: B023
                assert connection.transport is not None
                connection.transport.set_write_buffer_limits(0)  # writing goes on once nothing is left
                await loop.sock_sendall(sock, proxy.request(b"GET /v1/x", b"Connection: close"))
                await until(lambda: connection.answered or connection.writing_paused)  # noqa: B023
                if connection.current is None or connection.current.exchange is not None:
                    continue  # all was taken, or not all has come
                assert (await Reader(sock, connection, size).rest()).endswith(b"x" * size)
                break
        await until(lambda: not list(proxy.app._listeners.connections()))
    assert not errors
