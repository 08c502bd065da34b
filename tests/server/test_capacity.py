"""Bounds: connections, file descriptors, and what one caller can take from the others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from support.harness import WAIT_S, Gateway, Upstream, close, gateway, until

from proxy.server import capacity, site
from proxy.server.capacity import FEWEST_CONNECTIONS, MAX_CONNECTIONS, most_connections, most_strangers
from proxy.server.connection import CallerConnection
from proxy.server.strangers import MOST_STRANGERS

KEY = b"X-API-Key: the-key-of-the-caller"
CALLERS = {"me": {"key": "the-key-of-the-caller"}}


@pytest.mark.parametrize(
    ("descriptors", "listeners", "limit", "strangers"),
    [
        (None, 1, MAX_CONNECTIONS, MOST_STRANGERS),
        (1_048_576, 3, MAX_CONNECTIONS, MOST_STRANGERS),
        (1024, 1, 496, 248),
        (1024, 4, 124, 248),
        (256, 1, 112, 56),
        (64, 1, 16, 8),
        (16, 9, FEWEST_CONNECTIONS, FEWEST_CONNECTIONS),
    ],
)
def test_connections_leave_file_descriptors_for_tokens_and_clouds(
    descriptors: int | None, listeners: int, limit: int, strangers: int
) -> None:
    assert (most_connections(descriptors, listeners), most_strangers(descriptors)) == (limit, strangers)
    assert most_strangers(descriptors, is_tls=True) == min(strangers, MOST_STRANGERS * 3 // 8)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(capacity, "MAX_CONNECTIONS", 16)
    monkeypatch.setattr(capacity, "MOST_STRANGERS", 16)
    monkeypatch.setattr(site, "LOOK_S", 0.01)
    monkeypatch.setattr(capacity, "IDLE_S", 0.2)
    return 16


def connections(proxy: Gateway) -> int:
    [listening] = proxy.app._listeners.sites
    return listening.server.open


def known(proxy: Gateway) -> int:
    return sum(one.is_known for one in proxy.app._listeners.connections())


async def busy(proxy: Gateway, count: int) -> list[asyncio.StreamWriter]:
    """So many connections whose requests are being answered, for ever."""
    writers = []
    for _ in range(count):
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/exports", KEY, b"Content-Length: 9", body=b"a"))
        writers.append(writer)
    return writers


@contextlib.asynccontextmanager
async def crowded(
    count: int, queue_timeout: float = 60
) -> AsyncIterator[tuple[Gateway, list[asyncio.StreamWriter]]]:
    """A proxy with as many busy connections as it takes."""
    async with gateway(Upstream(), callers=CALLERS, contentsquare={"queue_timeout": queue_timeout}) as proxy:
        writers = await busy(proxy, count)
        async with asyncio.timeout(WAIT_S):
            while known(proxy) < count:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.03)
        yield proxy, writers


async def test_beyond_the_limit_connections_wait_and_are_served_when_others_leave(few: int) -> None:
    async with crowded(few) as (proxy, writers):
        waiting = [asyncio.create_task(proxy.call(b"GET /v1/segments", KEY)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert known(proxy) == few
        assert not any(task.done() for task in waiting)
        for writer in writers[:4]:
            await close(writer)
        for answer in await asyncio.gather(*waiting):
            assert answer.status == 200


async def test_idle_connections_make_room_for_new_ones(few: int) -> None:
    async with gateway(Upstream()) as proxy:
        for number in range(5 * few):
            if number % 2:  # one that was used, and one that never was
                _, writer = await proxy.connect()
                writer.write(proxy.request(b"GET /v1/segments"))
            await proxy.connect()
            if number % 8 == 7:
                assert (await proxy.call(b"GET /v1/segments")).status == 200
        assert known(proxy) <= few
        assert connections(proxy) <= 2 * few + few // 4


async def test_one_caller_that_waits_costs_one_batch_of_idle_connections(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "IDLE_S", 0)
    batches = []
    make_room = capacity.make_room

    def counted(connections: Iterable[CallerConnection], limit: int, now: float) -> None:
        batches.append(known(proxy))
        make_room(connections, limit, now)

    monkeypatch.setattr(site, "make_room", counted)
    async with gateway(Upstream()) as proxy:
        for _ in range(few):
            _, writer = await proxy.connect()
            writer.write(proxy.request(b"GET /v1/segments"))
        await until(lambda: known(proxy) == few)
        await until(lambda: all(one.is_idle for one in proxy.app._listeners.connections()))
        assert (await proxy.call(b"GET /v1/segments")).status == 200
        assert batches == [few]


async def test_a_flood_of_connections_is_taken_in_bounded_batches(few: int) -> None:
    async with crowded(few) as (proxy, writers):
        flood = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(200)]
        try:
            await until(lambda: connections(proxy) >= 2 * few)
            assert connections(proxy) <= 2 * few + few // 4
            assert known(proxy) == few
            for writer in writers:
                await close(writer)
            assert (await proxy.call(b"GET /v1/segments", KEY)).status == 200
        finally:
            for sock in flood:
                sock.close()


@pytest.mark.parametrize("path", [b"/-/healthy", b"/-/ready"])
async def test_a_full_listener_answers_probes_and_says_in_time_that_it_is_full(few: int, path: bytes) -> None:
    async with crowded(few, queue_timeout=0.2) as (proxy, _):
        for _ in range(3 * few):
            assert (await proxy.call(b"GET " + path, KEY)).status == 200
        answer = await proxy.call(b"GET /v1/segments", KEY)
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert answer.values(b"retry-after")


async def test_a_full_listener_still_stops_cleanly(few: int) -> None:
    async with crowded(few) as (proxy, _):
        await proxy.app.drain(asyncio.Event())
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await proxy.connect()


SCARCE = """
import asyncio, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
from support.harness import Upstream, TokenServer, RawServer, settings_for
from proxy.app.app import App

async def main():
    token = TokenServer()
    async with RawServer(Upstream()) as cloud, RawServer(token) as endpoint:
        token.endpoint = cloud.url
        app = App(settings_for(endpoint.url, cloud.url))
        async with app.started():
            await app.settled(15)
            port = int(app.listeners[0].url.rpartition(":")[2])
            taken = []
            try:
                while len(taken) < 200:
                    taken.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                    await asyncio.sleep(0)
            except OSError:
                pass
            [site] = app._listeners.sites
            print('#', len(taken) > 20, site.server.open <= site.server.limit + site.server.strangers.most)
            for sock in taken[:3]:  # as much as the test itself needs to go on
                sock.close()
            [project] = app.projects()
            [keeper] = project.keepers.values()
            before = keeper.status().refreshes
            keeper._hurry(gap_s=0.0)
            for look in range(1, 1500):
                if keeper.status().refreshes > before:
                    break
                if look % 50 == 0:  # on a slow machine the listener has taken those by now
                    for _ in range(3):
                        taken.pop().close()
                await asyncio.sleep(0.02)
            print('#', keeper.status().refreshes > before)
            for sock in taken:
                sock.close()
            await asyncio.sleep(0.3)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v1/x HTTP/1.1\\r\\nHost: 127.0.0.1:%d\\r\\n\\r\\n" % port)
            print('#', (await asyncio.wait_for(reader.readline(), 10)).decode().strip())
            writer.close()

with asyncio.Runner(loop_factory=LOOP) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of descriptors can be set there")
@pytest.mark.parametrize("loop", ["asyncio.new_event_loop", "__import__('uvloop').new_event_loop"])
def test_with_file_descriptors_used_up_accepting_recovers_and_tokens_are_still_refreshed(loop: str) -> None:
    code = textwrap.dedent(SCARCE).replace("LOOP", loop)
    tests, root = Path(__file__).parents[1], Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tests)!r}, {str(root)!r}]\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [line[2:] for line in found.stdout.splitlines() if line.startswith("# ")]
    assert said == ["True True", "True", "HTTP/1.1 200 OK"], found.stderr[-3000:]


async def test_one_caller_cannot_take_all_connections_by_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.gateway.gateway.MAX_IN_FLIGHT", 3)
    callers = {"greedy": {"key": "key-of-greedy"}, "other": {"key": "key-of-other"}}
    async with gateway(Upstream(), callers=callers) as proxy:
        key = b"X-API-Key: key-of-greedy"
        writers = [(await proxy.connect())[1] for _ in range(3)]
        for writer in writers:
            writer.write(proxy.request(b"POST /v1/exports", key, b"Content-Length: 9", body=b"a"))
        async with asyncio.timeout(WAIT_S):
            while proxy.app._gateway._in_flight["greedy"] < 3:
                await asyncio.sleep(0.01)
        answer = await proxy.call(b"GET /v1/segments", b"X-API-Key: key-of-greedy")
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert answer.values(b"retry-after")
        assert (await proxy.call(b"GET /-/healthy", b"X-API-Key: key-of-greedy")).status == 200
        assert (await proxy.call(b"GET /v1/segments", b"X-API-Key: key-of-other")).status == 200
        await close(writers[0])
        async with asyncio.timeout(WAIT_S):
            while proxy.app._gateway._in_flight["greedy"] == 3:
                await asyncio.sleep(0.01)
        assert (await proxy.call(b"GET /v1/segments", b"X-API-Key: key-of-greedy")).status == 200


async def test_a_process_without_file_descriptors_says_so_and_accepts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(site, "LOOK_S", 0.01)
    told: list[tuple[str, object]] = []
    async with gateway() as proxy:
        [listening] = proxy.app._listeners.sites
        listening._on_event = lambda event, values: told.append((event, values["cause"]))
        await proxy.connect()  # what is accepted next is accepted by a new call
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.SelectorEventLoop):
            pytest.skip("uvloop's methods can't be replaced")
        accept, failures = loop.sock_accept, [errno.EMFILE, errno.ENFILE]

        async def failing(sock: socket.socket) -> object:
            if failures:
                raise OSError(failures.pop(), "none left")
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", failing)
        for _ in range(2):
            assert (await proxy.call(b"GET /-/healthy")).status == 200
        assert told == [("accept_failed", "ENFILE"), ("accept_failed", "EMFILE")]
