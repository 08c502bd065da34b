"""Ways that die in silence are found in time; a cloud that only takes its time is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.clouds import GET, Sink, closing, dialer, exchange, pool_of
from support.harness import OK, WAIT_S, RawServer, read_message, until
from support.ways import hasty, kill_way, linux_only, revive_way  # noqa: F401 - a fixture

from proxy.errors import WayDied
from proxy.upstream.connection import CloudConnection
from proxy.upstream.pool import Pool
from proxy.upstream.tls import tls_context
from proxy.upstream.way import DEAD_S, PATIENT_S, Way, is_silent, options

BEYOND_S = 3.0
"""Twice the time after which a way is dead in the tests here."""


@pytest.mark.parametrize(
    ("platform", "limit_s", "expected"),
    [
        ("linux", DEAD_S, {4: 4, 5: 3, 6: 3}),
        ("linux", PATIENT_S, {4: 4, 5: 3, 6: 19}),
        ("darwin", DEAD_S, {0x10: 4, 0x101: 3, 0x102: 3, 0x80: 13}),
        ("darwin", PATIENT_S, {0x10: 4, 0x101: 3, 0x102: 19, 0x80: 60}),
        ("win32", DEAD_S, {3: 4, 17: 3, 16: 3, 5: 13}),
        ("win32", PATIENT_S, {3: 4, 17: 3, 16: 19, 5: 60}),
        ("another", DEAD_S, {}),
    ],
)
def test_the_options_of_each_system_end_a_dead_connection_in_time(
    platform: str, limit_s: float, expected: dict[int, int]
) -> None:
    assert dict(options(platform, limit_s)) == expected


@pytest.mark.parametrize(
    ("retransmits", "probes", "data_ms", "ack_ms", "silent"),
    [
        (2, 0, 99_000, 13_000, True),
        (0, 2, 99_000, 13_000, True),
        (6, 0, 13_000, 99_000, True),
        (6, 0, 99_000, 12_900, False),
        (6, 0, 12_900, 99_000, False),
        (1, 1, 99_000, 99_000, False),
        (0, 0, 99_000, 99_000, False),
    ],
)
def test_only_a_peer_that_leaves_segments_unanswered_for_long_enough_is_silent(
    *, retransmits: int, probes: int, data_ms: int, ack_ms: int, silent: bool
) -> None:
    info = struct.pack("=2xBB48xII40x", retransmits, probes, data_ms, ack_ms)
    assert is_silent(info, 13.0) is silent
    assert not is_silent(info[:50], 13.0)


class RecordingSocket(socket.socket):
    """A real socket that takes any TCP option, of any system, and notes it."""

    options: list[tuple[int, int]]

    def setsockopt(self, level: int, number: int, value: object) -> None:  # type: ignore[override]
        if level == socket.IPPROTO_TCP:
            assert isinstance(value, int)
            self.options.append((number, value))


@contextlib.asynccontextmanager
async def recording_way(url: str) -> AsyncIterator[tuple[RecordingSocket, Way]]:
    sock = RecordingSocket()
    sock.options = []
    with sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", int(url.rpartition(":")[2])))
        yield sock, Way(sock)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
async def test_where_the_system_ends_dead_connections_it_is_told_each_new_limit_once(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.way.PLATFORM", platform)
    async with RawServer(answering) as server, recording_way(server.url) as (sock, way):
        told = options(platform, DEAD_S)
        for is_answering, is_uploading, limit_s in (
            (False, False, None),
            (True, False, PATIENT_S),
            (True, False, None),
            (False, True, None),
            (False, False, DEAD_S),
        ):
            assert not way.is_dead(is_answering=is_answering, is_uploading=is_uploading)
            told += options(platform, limit_s) if limit_s else []
            assert sock.options == told


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            await read_message(reader)
            writer.write(OK)


async def test_after_a_change_of_address_idle_connections_are_dropped_and_busy_ones_go_on() -> None:
    async with RawServer(answering) as server, closing(pool_of(server.url)) as pool:
        idle, staying, busy = [await pool.connect() for _ in range(3)]
        for connection in (idle, staying):
            await exchange(connection)
        sink = Sink()
        busy.start(sink, GET[:-2], is_head_request=False, request_done=True)
        for connection in (idle, busy):
            assert connection.way is not None
            connection.way.source = "192.0.2.1"
        pool.sweep(60)
        assert [idle.is_usable(), staying.is_usable()] == [False, True]
        busy.write(GET[-2:])
        assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"


# Real ways that die


class Cloud:
    """Keeps all its connections, and answers only when a test does."""

    def __init__(self) -> None:
        self.readers: list[asyncio.StreamReader] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.readers.append(reader)
        self.writers.append(writer)
        await asyncio.sleep(3600)


class Living:
    """A pool whose sweeps run, and its cloud."""

    def __init__(self, pool: Pool, cloud: Cloud) -> None:
        self.pool = pool
        self.cloud = cloud
        self._opening = asyncio.Lock()

    async def connection(self) -> tuple[CloudConnection, asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection and the cloud's end of it."""
        async with self._opening:
            count = len(self.cloud.writers)
            connection = await self.pool.connect()
            await until(lambda: len(self.cloud.writers) > count)
            return connection, self.cloud.readers[-1], self.cloud.writers[-1]


@contextlib.asynccontextmanager
async def living(
    tls: ssl.SSLContext | None = None, ca_file: Path | None = None, *, by_http_proxy: bool = False
) -> AsyncIterator[Living]:
    cloud = Cloud()

    async def http_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await cloud(reader, writer)

    async with RawServer(http_proxy if by_http_proxy else cloud, tls=tls) as server:
        url = server.url.replace("127.0.0.1", "localhost") if tls else server.url
        cloud_url, proxy_url = ("http://cloud.example", url) if by_http_proxy else (url, None)
        using = dialer(tls_context(ca_file), find_proxy=lambda _: proxy_url)
        async with closing(pool_of(cloud_url, using)) as pool:

            async def sweep() -> None:
                while True:
                    pool.sweep(60)
                    await asyncio.sleep(0.05)

            sweeping = asyncio.create_task(sweep())
            try:
                yield Living(pool, cloud)
            finally:
                sweeping.cancel()
                for writer in cloud.writers:  # the end of TLS would wait for the other side
                    writer.transport.abort()


async def dies_before_the_request(world: Living) -> None:
    connection, _, writer = await world.connection()
    kill_way(connection, writer)
    with pytest.raises(WayDied):
        await exchange(connection)


async def dies_while_the_cloud_thinks(world: Living) -> None:
    connection, reader, writer = await world.connection()
    sink = Sink()
    connection.start(sink, GET, is_head_request=False, request_done=True)
    await read_message(reader)
    kill_way(connection, writer)
    with pytest.raises(WayDied):
        await asyncio.wait_for(sink.done, WAIT_S)


async def dies_during_an_upload(world: Living) -> None:
    connection, reader, writer = await world.connection()
    sink = Sink()
    connection.start(sink, GET, is_head_request=False, request_done=False)
    await read_message(reader)
    kill_way(connection, writer)
    while not sink.done.done():  # what the caller still sends is no sign of life
        connection.write(b"x" * 1000)
        await asyncio.sleep(0.05)
    with pytest.raises(WayDied):
        await sink.done


async def dies_with_the_window_shut(world: Living) -> None:
    connection, _, writer = await world.connection()
    sink = Sink()
    connection.start(sink, GET + b"x" * 4_000_000, is_head_request=False, request_done=True)
    await asyncio.sleep(0.3)
    kill_way(connection, writer)
    with pytest.raises(WayDied):
        await asyncio.wait_for(sink.done, WAIT_S)


async def dies_while_idle(world: Living) -> None:
    connection, _, writer = await world.connection()
    world.pool.give_back(connection)
    kill_way(connection, writer)
    await until(lambda: not connection.is_usable())


async def lives_while_idle(world: Living) -> None:
    connection, _, _ = await world.connection()
    world.pool.give_back(connection)
    await asyncio.sleep(BEYOND_S)
    assert connection.is_usable()


async def lives_while_the_cloud_thinks(world: Living) -> None:
    connection, reader, writer = await world.connection()
    sink = Sink()
    connection.start(sink, GET, is_head_request=False, request_done=True)
    await read_message(reader)
    await asyncio.sleep(BEYOND_S)
    writer.write(OK)
    assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"


async def lives_while_the_cloud_takes_nothing(world: Living, size: int) -> None:
    connection, reader, writer = await world.connection()
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport
    sink = Sink()
    connection.start(sink, GET + b"x" * size, is_head_request=False, request_done=True)
    await asyncio.sleep(BEYOND_S)
    assert not sink.done.done()
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    await reader.readexactly(len(GET) + size)
    writer.write(OK)
    assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"


async def lives_while_an_answer_is_under_way(world: Living) -> None:
    connection, reader, writer = await world.connection()
    sink = Sink()
    connection.start(sink, GET, is_head_request=False, request_done=True)
    await read_message(reader)
    writer.write(OK[:-1])
    await until(lambda: sink.content)
    kill_way(connection, writer)
    await asyncio.sleep(BEYOND_S)
    revive_way(connection, writer)
    writer.write(OK[-1:])
    assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"


@linux_only
@pytest.mark.usefixtures("hasty")
async def test_a_way_that_dies_is_found_and_one_that_lives_is_kept() -> None:
    async with living() as world:
        await asyncio.gather(
            dies_before_the_request(world),
            dies_while_the_cloud_thinks(world),
            dies_during_an_upload(world),
            dies_with_the_window_shut(world),
            dies_while_idle(world),
            lives_while_idle(world),
            lives_while_the_cloud_thinks(world),
            lives_while_the_cloud_takes_nothing(world, 400_000),  # the kernel takes all of it
            lives_while_the_cloud_takes_nothing(world, 4_000_000),
            lives_while_an_answer_is_under_way(world),
        )


@linux_only
@pytest.mark.usefixtures("hasty")
async def test_a_way_without_a_route_dies_though_the_cloud_is_still_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect, has_route = socket.socket.connect, True

    def routed(probe: socket.socket, peer: tuple[str, int]) -> None:
        if probe.type == socket.SOCK_DGRAM and not has_route:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        connect(probe, peer)

    monkeypatch.setattr(socket.socket, "connect", routed)
    async with living() as world:
        connection, reader, writer = await world.connection()
        sink = Sink()
        connection.start(sink, GET, is_head_request=False, request_done=True)
        await read_message(reader)
        has_route = False
        await asyncio.sleep(DEAD_S / 20)
        has_route = True
        await asyncio.sleep(BEYOND_S)
        writer.write(OK)
        assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"
        assert world.pool.take_idle() is connection
        has_route = False
        with pytest.raises(WayDied):
            await exchange(connection)


@linux_only
@pytest.mark.usefixtures("hasty")
async def test_a_way_below_tls_that_dies_is_found(server_side: ssl.SSLContext, ca_file: Path) -> None:
    async with living(server_side, ca_file) as world:
        await asyncio.gather(
            dies_before_the_request(world), dies_while_the_cloud_thinks(world), dies_while_idle(world)
        )


@linux_only
@pytest.mark.usefixtures("hasty")
async def test_a_way_to_an_http_proxy_that_dies_is_found() -> None:
    async with living(by_http_proxy=True) as world:
        await asyncio.gather(
            dies_before_the_request(world), dies_while_the_cloud_thinks(world), dies_while_idle(world)
        )


@linux_only
async def test_where_the_system_ends_a_dead_connection_that_is_known_from_an_end_by_the_cloud(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.upstream.way.PLATFORM", "another")
    async with living() as world:
        connection, _, writer = await world.connection()
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        kill_way(connection, writer)
        with pytest.raises(WayDied):
            await exchange(connection)


@linux_only
async def test_a_connection_that_was_closed_a_moment_ago_is_looked_at_without_an_error() -> None:
    async with RawServer(answering) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        way, transport = connection.way, connection._transport
        assert way is not None
        assert transport is not None
        transport.close()
        for _ in range(3):  # uvloop closes the socket before it tells so
            assert not connection.is_lost()
            assert not way.is_dead(is_answering=False, is_uploading=False)
            assert not way.has_moved()
            await asyncio.sleep(0)
