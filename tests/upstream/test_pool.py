"""The pools: which connection is used next, how many are held ready, and when one is closed."""

from __future__ import annotations

import asyncio
import socket
import sys
import time

import pytest
from support.clouds import GET, Sink, closing, dialer, exchange, pool_of, silent
from support.harness import OK, WAIT_S, RawServer, Upstream, read_message, turns, until

from proxy.origin import Origin
from proxy.upstream.connection import CloudConnection
from proxy.upstream.dial import Dialer
from proxy.upstream.pool import FRESH, KEEP_ALIVE_S, MOST_READY, Pool, Upstreams
from proxy.upstream.tls import tls_context


async def test_the_connection_used_last_is_used_next() -> None:
    async with RawServer(Upstream()) as server, closing(pool_of(server.url)) as pool:
        first, second = await pool.connect(), await pool.connect()
        await exchange(first)
        await exchange(second)
        assert repr(pool) == f"<Pool {server.url} 2 idle, 0 busy>"
        assert pool.take_idle() is second
        assert pool.take_idle() is first
        assert pool.take_idle() is None
        await exchange(first)
        assert server.connections == 2


async def test_a_busy_connection_is_not_given_out() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        connection.start(Sink(), GET, is_head_request=False, request_done=True)
        assert repr(connection) == f"<CloudConnection {server.url} busy, 1 exchanges>"
        assert repr(pool) == f"<Pool {server.url} 0 idle, 1 busy>"
        assert pool.take_idle() is None
        assert not pool.is_unused
        connection.close()
        assert pool.is_unused


async def test_a_connection_idle_for_longer_than_allowed_is_left_where_it_is() -> None:
    async with RawServer(Upstream()) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        await exchange(connection)
        connection.last_activity -= 10
        assert pool.take_idle(5) is None
        assert pool.take_idle(0) is None
        assert pool.take_idle(15) is connection


async def test_connections_idle_for_too_long_are_closed_the_oldest_first() -> None:
    async with RawServer(Upstream()) as server, closing(pool_of(server.url)) as pool:
        old, young = await pool.connect(), await pool.connect()
        await exchange(old)
        await exchange(young)
        old.last_activity -= KEEP_ALIVE_S + 1
        pool.sweep(60)
        assert not old.is_usable()
        assert pool.take_idle() is young
        assert pool.take_idle() is None


async def busy(pool: Pool, count: int) -> list[CloudConnection]:
    """This many connections in use at once."""
    connections = [await pool.connect() for _ in range(count)]
    for connection in connections:
        connection.start(Sink(), GET, is_head_request=False, request_done=True)
    return connections


async def test_one_connection_is_held_ready_and_as_many_as_were_used_at_once_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        pool.sweep(60)
        assert pool.lacking()
        for connection in await busy(pool, 3):
            pool.sweep(60)
            connection.close()
        for left in (3, 2, 1):
            assert pool.lacking() == left
            pool.give_back(await pool.connect())
        assert not pool.lacking()
        monkeypatch.setattr("proxy.upstream.pool.RECENT_S", -1.0)
        for connection in await busy(pool, 5):  # this count is the last, and expires at once
            pool.sweep(60)
            connection.close()
        while (ready := pool.take_idle()) is not None:
            ready.close()
        assert pool.lacking()
        pool.sweep(60)
        pool.give_back(await pool.connect())
        assert not pool.lacking()


async def test_there_is_a_bound_to_what_is_held_ready() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        used = await busy(pool, MOST_READY + 2)
        pool.sweep(60)
        for connection in used:
            connection.close()
        for opened in range(MOST_READY):
            assert pool.lacking() == MOST_READY - opened
            pool.give_back(await pool.connect())
        assert not pool.lacking()


async def test_what_was_opened_ahead_and_not_used_asks_for_no_more() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        for _ in range(3):
            pool.give_back(await pool.connect())
        pool.sweep(60)
        for _ in range(3):
            connection = pool.take_idle()
            assert connection is not None
            connection.close()
        pool.give_back(await pool.connect())
        assert not pool.lacking()


async def test_a_cloud_that_hangs_up_sooner_is_remembered_until_it_no_longer_does() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hang_up.wait()

    hang_up = asyncio.Event()
    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        pool.give_back(connection)
        connection.last_activity -= 10
        assert not pool.lacking()
        hang_up.set()
        await until(lambda: pool.is_unused)
        hang_up.clear()
        connection = await pool.connect()
        pool.give_back(connection)
        assert not pool.lacking()
        connection.last_activity -= 25
        assert pool.lacking()
        connection.last_activity -= KEEP_ALIVE_S
        pool.sweep(60)
        assert pool.is_unused
        connection = await pool.connect()
        pool.give_back(connection)
        connection.last_activity -= 25
        assert not pool.lacking()


async def test_the_successor_of_a_connection_is_opened_before_that_is_too_old() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        pool.give_back(connection)
        assert not pool.lacking()
        connection.last_activity -= FRESH * KEEP_ALIVE_S
        assert pool.lacking()
        assert pool.take_idle() is connection
        connection.close()


async def test_after_the_pool_is_closed_a_busy_connection_ends_with_its_exchange() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        await go_on.wait()
        writer.write(OK)
        await reader.read()

    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection, sink = await pool.connect(), Sink()
        connection.start(sink, GET, is_head_request=False, request_done=True)
        pool.close()
        go_on.set()
        assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"
        assert not connection.is_usable()
        assert pool.is_unused


async def test_there_is_one_pool_an_origin_and_unused_ones_are_forgotten() -> None:
    async with RawServer(Upstream()) as server:
        upstreams = Upstreams(dialer(), idle_timeout_s=0.04)
        origin = Origin.parse(server.url)
        pool = upstreams.pool(origin)
        assert upstreams.pool(Origin.parse(server.url + "/")) is pool
        assert upstreams.pool(Origin.parse("https://localhost")) is not pool
        connection = await pool.connect()
        await exchange(connection)
        watching = asyncio.create_task(upstreams.run())
        await asyncio.sleep(0.03)
        assert upstreams.pool(origin) is pool
        connection.close()
        await until(lambda: upstreams.pool(origin) is not pool)
        watching.cancel()
        upstreams.close()


async def test_a_pool_is_not_forgotten_while_a_connection_to_it_is_on_its_way() -> None:
    connected = asyncio.Event()

    class SlowDialer(Dialer):
        async def dial(self, origin: Origin, connection: asyncio.BaseProtocol) -> None:
            await connected.wait()

    upstreams = Upstreams(
        SlowDialer(tls_context(), connect_timeout_s=1, find_proxy=lambda _: None), idle_timeout_s=0.004
    )
    pool = upstreams.pool(Origin("http", "127.0.0.1", 1))
    watching = asyncio.create_task(upstreams.run())
    connecting = asyncio.create_task(pool.connect())
    await asyncio.sleep(0.02)
    assert upstreams.pool(pool.origin) is pool
    connected.set()
    await connecting
    watching.cancel()


async def test_after_the_machine_slept_idle_connections_are_dropped_and_busy_ones_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.upstream.pool.SWEEP_S", 0.01)
    slept_s = 0.0
    async with RawServer(Upstream()) as server:
        upstreams = Upstreams(dialer(), idle_timeout_s=WAIT_S, clock_jump_s=lambda: slept_s)
        pool = upstreams.pool(Origin.parse(server.url))
        idle, busy = await pool.connect(), await pool.connect()
        await exchange(idle)
        sink = Sink()
        busy.start(sink, GET[:-2], is_head_request=False, request_done=True)
        watching = asyncio.create_task(upstreams.run())
        await asyncio.sleep(0.02)
        assert idle.is_usable()
        slept_s = 20.0
        await until(lambda: not idle.is_usable())
        busy.write(GET[-2:])
        assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"
        watching.cancel()
        upstreams.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows' event loop has no add_reader")
async def test_an_answer_that_came_while_the_process_stood_still_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.upstream.pool.STALLED_S", 0.1)
    upstreams = Upstreams(dialer(), idle_timeout_s=0.4)
    waker, woken = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        pool = upstreams.pool(Origin.parse(f"http://127.0.0.1:{server.getsockname()[1]}"))
        sweeping = asyncio.create_task(upstreams.run())
        connection, sink = await pool.connect(), Sink()
        peer, _ = server.accept()
        with peer, waker, woken:

            def stand_still() -> None:
                woken.recv(1)
                peer.sendall(OK)
                time.sleep(0.8)  # as SIGSTOP and SIGCONT

            # After a callback for input, uvloop looks at its timers before it looks for input again.
            asyncio.get_running_loop().add_reader(woken, stand_still)
            connection.start(sink, GET, is_head_request=False, request_done=True)
            waker.sendall(b"x")
            assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"
            asyncio.get_running_loop().remove_reader(woken)
        sweeping.cancel()
        pool.close()
        await turns()
