"""Strangers, whose connections have shown no key: they take no place of known callers, wherever they stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import pytest
import trustme
from support.certificates import tls_files
from support.harness import (
    WAIT_S,
    Gateway,
    Upstream,
    gateway,
    read_message,
    until,
)
from support.strangers import PLACES, strangers

from proxy.server.connection import CallerConnection
from proxy.server.request import Request
from proxy.server.site import CallerServer
from proxy.server.strangers import LEAST_AGE_S, Strangers

COUNT = 300
FEW = 20
MOST = 64
LIMIT_S = 9.5
"""For twenty calls, and for the end: less than any limit of time by which a stranger ends on its own."""
KEY = b"X-API-Key: the-key-of-the-caller"
CALLERS = {"me": {"key": "the-key-of-the-caller"}}


@contextlib.asynccontextmanager
async def small(
    monkeypatch: pytest.MonkeyPatch, callers: Mapping[str, object], **server: object
) -> AsyncIterator[Gateway]:
    """A proxy with few places."""
    monkeypatch.setattr("proxy.server.capacity.MAX_CONNECTIONS", 2 * MOST)
    monkeypatch.setattr("proxy.server.capacity.MOST_STRANGERS", MOST, raising=False)
    values = {"port": 0, "host": "127.0.0.1", "drain_timeout": WAIT_S, **server}
    async with gateway(Upstream(), callers=callers, server=values) as proxy:
        yield proxy


def files(folder: Path) -> tuple[dict[str, object], ssl.SSLContext]:
    """Settings for TLS, and the context of their clients."""
    authority, context = trustme.CA(), ssl.create_default_context()
    pair = authority.issue_cert("localhost", "127.0.0.1")
    authority.configure_trust(context)
    return {**tls_files(folder, pair)}, context


async def status(proxy: Gateway, tls: ssl.SSLContext | None) -> int:
    """The status of a call with the key, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=tls)
    writer.write(proxy.request(b"GET /v1/segments", KEY))
    try:
        return (await read_message(reader)).status
    finally:
        writer.transport.abort()


def connections(proxy: Gateway) -> int:
    return len(list(proxy.app._listeners.connections()))


@pytest.mark.parametrize("place", PLACES)
async def test_strangers_hold_neither_a_known_caller_nor_the_stop_up(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, tls = files(tmp_path) if place == "handshake" else ({}, None)
    loop = asyncio.get_running_loop()
    async with (
        small(monkeypatch, CALLERS, **server) as proxy,
        strangers(place, COUNT, ("127.0.0.1", proxy.port), tls),
    ):
        began_at = loop.time()
        for _ in range(20):
            assert await status(proxy, tls) == 200
        assert loop.time() - began_at < LIMIT_S
        await until(lambda: connections(proxy) <= MOST)
        began_at = loop.time()
        await asyncio.wait_for(proxy.app.drain(asyncio.Event()), WAIT_S)
        assert loop.time() - began_at < LIMIT_S
        assert not connections(proxy)


async def test_the_oldest_stranger_is_dropped_and_a_known_caller_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with small(monkeypatch, CALLERS) as proxy:
        address = ("127.0.0.1", proxy.port)
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/segments", KEY))
        assert (await read_message(reader)).status == 200
        async with strangers("head", 1, address) as [first]:
            await until(lambda: connections(proxy) == 2)
            async with strangers("content", MOST, address) as later:
                await until(lambda: first.is_lost)
                assert not any(one.is_lost for one in later)
                writer.write(proxy.request(b"GET /v1/segments", KEY))
                assert (await read_message(reader)).status == 200


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_without_callers_a_caller_is_known_once_a_whole_request_was_found_good(
    in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with small(monkeypatch, {}) as proxy:
        reader, writer = await proxy.connect()
        [connection] = await found(proxy)
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
        assert (await read_message(reader)).status == 421
        assert not connection.is_known
        if in_pieces:
            writer.write(proxy.request(b"POST /v1/exports", b"Content-Length: 3", body=b"a"))
            await until(lambda: connection.current is not None and connection.current.exchange is not None)
            assert not connection.is_known
            writer.write(b"bc")
        else:
            writer.write(proxy.request(b"GET /v1/segments"))
        assert (await read_message(reader)).status == 200
        assert connection.is_known


@pytest.mark.parametrize(
    ("target", "lines", "is_known"),
    [
        (b"GET /v1/segments", (), False),
        (b"GET /v1/segments", (b"X-API-Key: wrong",), False),
        (b"POST /v1/oauth/token", (b"Content-Length: 2",), False),
        (b"GET /-/healthy", (KEY,), True),
        (b"POST /v1/oauth/token", (KEY, b"Content-Length: 2"), True),
        (b"GET /v1/segments", (KEY,), True),
    ],
)
async def test_with_callers_a_key_makes_a_caller_known(
    target: bytes, lines: tuple[bytes, ...], is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with small(monkeypatch, CALLERS) as proxy:
        reader, writer = await proxy.connect()
        [connection] = await found(proxy)
        writer.write(proxy.request(target, *lines, body=b"{}" if b"oauth" in target else b""))
        await read_message(reader)
        assert connection.is_known == is_known


async def found(proxy: Gateway) -> list[CallerConnection]:
    """The proxy's connections, once there is one."""
    await until(lambda: connections(proxy))
    return list(proxy.app._listeners.connections())


class Aborted:
    """A connection that notes its end."""

    def __init__(self, accepted_at: float) -> None:
        self.accepted_at = accepted_at
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def test_in_a_flood_each_stranger_has_a_little_time() -> None:
    strangers = Strangers(most=2)
    there = [Aborted(10.0), Aborted(10.0 + LEAST_AGE_S), Aborted(11.0)]
    assert strangers.wait_s(10.0) == 0
    strangers.add(there[0])
    assert strangers.wait_s(10.0) == 0
    strangers.add(there[1])
    assert strangers.wait_s(10.0) == pytest.approx(LEAST_AGE_S)
    assert strangers.wait_s(11.0) == 0
    strangers.add(there[2])
    assert [one.is_aborted for one in there] == [True, False, False]
    strangers.discard(there[1])
    strangers.discard(there[1])
    assert len(strangers) == 1


async def test_a_dropped_strangers_memory_is_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector of cycles comes late: in a flood, hundreds of MiB would wait for it."""
    async with (
        small(monkeypatch, CALLERS) as proxy,
        strangers("content", 1, ("127.0.0.1", proxy.port)),
    ):
        [connection] = await found(proxy)
        await until(lambda: connection._task is not None)
        gc.disable()
        try:
            body = cast(Request, connection.current).body
            assert body._kept
            task = weakref.ref(cast(asyncio.Task[None], connection._task))
            connection.abort()
            await until(lambda: task() is None)
            assert not body._kept
            assert not body._buffered
        finally:
            gc.enable()


@pytest.mark.parametrize("speaks_tls", [False, True])
@pytest.mark.parametrize("place", PLACES)
async def test_no_dropped_connection_waits_for_the_collector(
    place: str, speaks_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, tls = files(tmp_path) if speaks_tls else ({}, None)
    async with small(monkeypatch, CALLERS, **server) as proxy:
        before = alive()
        gc.disable()
        try:
            async with strangers(place, FEW, ("127.0.0.1", proxy.port), tls) as there:
                await until(lambda: connections(proxy) == FEW or all(one.is_lost for one in there))
                drop_all(proxy)
                await until(lambda: alive() <= before + 1)  # `CallerSite._accept` knows the last one
        finally:
            gc.enable()


def drop_all(proxy: Gateway) -> None:
    for connection in proxy.app._listeners.connections():
        connection.abort()


def alive() -> int:
    """How many callers' connections and TLS objects of servers there are in memory."""
    return sum(
        isinstance(one, CallerConnection) or (isinstance(one, ssl.SSLObject) and one.server_side)
        for one in gc.get_objects()
    )


async def test_a_connection_that_is_dropped_before_its_handshake_task_began_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = files(tmp_path)
    made = CallerServer.__call__

    def make(self: CallerServer, sock: socket.socket) -> CallerConnection:
        connection = made(self, sock)
        asyncio.get_running_loop().call_soon(connection.abort)  # it runs before the task, which comes after
        return connection

    monkeypatch.setattr(CallerServer, "__call__", make)
    async with (
        small(monkeypatch, CALLERS, **server) as proxy,
        strangers("accept", 1, ("127.0.0.1", proxy.port)) as [one],
    ):
        await until(lambda: one.is_lost)
        await until(lambda: not connections(proxy))
