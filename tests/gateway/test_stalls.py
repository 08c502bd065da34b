"""Callers that take their answers too slowly: their answers are cut only while others wait for their slot."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trustme
from support.certificates import tls_files
from support.clouds import dialer
from support.crowd import in_virtual_time
from support.harness import (
    OK,
    WAIT_S,
    Gateway,
    Message,
    Upstream,
    gateway,
    read_message,
    until,
)

from proxy.config.settings import ServerSettings
from proxy.contentsquare import Api
from proxy.gateway.exchange import Exchange
from proxy.gateway.stalls import StallWatch
from proxy.http1 import parse_request_head
from proxy.logs.setup import configure
from proxy.projects import Project, Slots
from proxy.projects.measures import ProjectMeasures
from proxy.server import request as server
from proxy.server.body import RequestBody, Source
from proxy.server.request import Request
from proxy.upstream.pool import Upstreams

SIZE = 6 << 20
AFTER_S = 0.4
SHOP = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"], "default": True}
OTHER = {"client_id": "id-2", "client_secret": "secret-2", "apis": ["metrics"], "project_id": 7}
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + bytes(SIZE)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + bytes(65536) + b"\r\n") * (SIZE >> 16)
    + b"0\r\n\r\n"
)
CODED = LENGTH.replace(b"OK\r\n", b"OK\r\nContent-Encoding: gzip\r\n", 1)
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


def cloud(large: bytes = LENGTH) -> Upstream:
    """Answers ``/v1/large`` by a large answer, and all other paths by a small one."""
    return Upstream(lambda request: large if b"/v1/large" in request.start_line else OK)


class Reader:
    """A caller with small buffers, that has asked for an answer and reads only when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.got = 0
        self.end: EOFError | OSError | None = None

    async def take(self, most: int) -> None:
        """Read at most so many bytes. Raises EOFError or ConnectionError at the end."""
        data = await self._reader.read(most)
        if not data:
            raise EOFError
        self.got += len(data)

    async def trickle(self, most: int, every_s: float) -> None:
        """Read so many bytes from time to time, up to the end."""
        try:
            while True:
                await self.take(most)
                await asyncio.sleep(every_s)
        except (EOFError, ConnectionError) as exc:
            self.end = exc

    async def rest(self) -> int:
        """Read up to the end, fast; how many bytes came in all."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        await asyncio.wait_for(self.trickle(1 << 20, 0), WAIT_S)
        return self.got


@contextlib.asynccontextmanager
async def stalled(
    proxy: Gateway,
    *,
    path: str | None = None,
    tls: ssl.SSLContext | None = None,
    target: bytes = b"GET /shop/v1/large",
) -> AsyncIterator[Reader]:
    """A caller that has taken nothing of a large answer, so that the proxy has stopped to read it."""
    sock = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    await asyncio.get_running_loop().sock_connect(sock, path or ("127.0.0.1", proxy.port))
    open_: dict[str, Any] = {} if tls is None else {"ssl": tls, "server_hostname": "localhost"}
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024, **open_)
    known = paused(proxy)
    host = proxy.host if path is None else b"localhost"
    writer.write(target + b" HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    try:
        await until(lambda: paused(proxy) > known)
        yield Reader(reader, writer)
    finally:
        writer.transport.abort()


def paused(proxy: Gateway) -> int:
    """How many callers the proxy waits for."""
    return sum(connection.writing_paused for connection in proxy.app._listeners.connections())


def slots(proxy: Gateway) -> dict[str, Any]:
    [project] = [project for project in proxy.app.projects() if project.name == "shop"]
    return {
        "in_use": project.slots.in_use,
        "waiting": project.slots.waiting,
        "cut": project.measures.slow_callers,
    }


@contextlib.asynccontextmanager
async def one_slot(
    upstream: Any = None,
    *,
    server: Mapping[str, object] | None = None,
    queue_timeout: float = WAIT_S,
    shop: Mapping[str, object] | None = None,
    limit: int = 1,
) -> AsyncIterator[Gateway]:
    """A proxy with so many slots, in front of `cloud`."""
    async with gateway(
        upstream or cloud(),
        server={"port": 0, "min_rate_after": AFTER_S, **(server or {})},
        contentsquare={"max_concurrency": limit, "queue_timeout": queue_timeout},
        projects={"shop": {**SHOP, **(shop or {})}, "other": OTHER},
    ) as proxy:
        yield proxy


async def small(proxy: Gateway) -> Message:
    return await proxy.call(b"GET /shop/v1/small")


async def is_held(proxy: Gateway, reader: Reader, for_s: float) -> None:
    """A call waits, and gets its slot only when the reader reads on to the end of its answer."""
    call = asyncio.create_task(small(proxy))
    await asyncio.sleep(for_s)
    assert not call.done()
    assert await reader.rest() >= SIZE
    assert (await asyncio.wait_for(call, WAIT_S)).body == b"ok"
    assert slots(proxy)["cut"] == 0


# ---- on sockets: who is cut


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, CODED], ids=["length", "chunked", "coded"])
async def test_a_caller_that_takes_nothing_loses_its_slot_to_the_request_that_waits(answer: bytes) -> None:
    async with one_slot(cloud(answer)) as proxy, stalled(proxy) as reader:
        assert (await small(proxy)).body == b"ok"
        assert slots(proxy) == {"in_use": 0, "waiting": 0, "cut": 1}
        assert await reader.rest() < SIZE
        assert isinstance(reader.end, ConnectionResetError)


async def test_over_tls_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = tls_files(tmp_path, authority.issue_cert("localhost"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with (
        one_slot(server=files) as proxy,
        stalled(proxy, tls=context) as reader,
    ):
        other_reader, other = await asyncio.open_connection(
            "127.0.0.1", proxy.port, ssl=context, server_hostname="localhost"
        )
        other.write(proxy.request(b"GET /shop/v1/small"))
        assert (await read_message(other_reader)).body == b"ok"
        other.transport.abort()
        assert slots(proxy)["cut"] == 1
        assert await reader.rest() < SIZE


@needs_unix
async def test_on_a_unix_socket_too() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's path may be too long for a socket
        path = str(Path(folder) / "s")
        async with one_slot(server={"unix_socket": path}) as proxy, stalled(proxy, path=path) as reader:
            assert (await small(proxy)).body == b"ok"
            assert slots(proxy)["cut"] == 1
            assert await reader.rest() < SIZE


async def test_a_caller_that_trickles_is_cut() -> None:
    async with one_slot() as proxy, stalled(proxy) as reader:
        trickle = asyncio.create_task(reader.trickle(1, 0.02))
        assert (await small(proxy)).body == b"ok"
        assert slots(proxy)["cut"] == 1
        trickle.cancel()


async def test_a_caller_above_the_rate_is_not_cut() -> None:
    async with one_slot(server={"min_rate": 512}) as proxy, stalled(proxy) as reader:
        call = asyncio.create_task(small(proxy))
        begin = time.monotonic()
        while time.monotonic() - begin < 4 * AFTER_S:
            await reader.take(8192)
            await asyncio.sleep(0.02)
        assert not call.done()
        assert await reader.rest() >= SIZE
        assert (await asyncio.wait_for(call, WAIT_S)).body == b"ok"
        assert slots(proxy)["cut"] == 0


async def test_nobody_is_cut_while_no_request_waits() -> None:
    async with one_slot(limit=2) as proxy, stalled(proxy) as reader:
        for _ in range(6):
            assert (await small(proxy)).body == b"ok"
            await asyncio.sleep(AFTER_S / 2)
        assert await reader.rest() >= SIZE


async def test_nobody_is_cut_for_a_request_that_waits_for_another_projects_slot() -> None:
    async with one_slot() as proxy, stalled(proxy, target=b"GET /other/v1/large") as other, stalled(proxy):
        assert (await small(proxy)).body == b"ok"
        assert slots(proxy)["cut"] == 1
        assert await other.rest() >= SIZE


async def test_nobody_is_cut_where_it_is_turned_off() -> None:
    async with one_slot(server={"min_rate": 0}) as proxy, stalled(proxy) as reader:
        await is_held(proxy, reader, 3 * AFTER_S)


async def test_the_time_that_the_cloud_takes_does_not_count() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if b"/v1/large" not in (await read_message(reader)).start_line:
                writer.write(OK)
                continue
            writer.write(LENGTH[:2000])
            await go_on.wait()
            writer.write(LENGTH[2000:])
            await writer.drain()

    async with one_slot(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /shop/v1/large"))
        await reader.readuntil(b"\r\n\r\n")  # and nothing of the content
        call = asyncio.create_task(small(proxy))
        await asyncio.sleep(3 * AFTER_S)
        assert slots(proxy) == {"in_use": 1, "waiting": 1, "cut": 0}
        go_on.set()
        await asyncio.wait_for(reader.readexactly(SIZE), WAIT_S)
        assert (await asyncio.wait_for(call, WAIT_S)).body == b"ok"
        assert slots(proxy)["cut"] == 0


async def test_no_more_answers_are_cut_than_requests_wait() -> None:
    async with one_slot(limit=3) as proxy, contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(stalled(proxy)) for _ in range(3)]
        assert (await small(proxy)).body == b"ok"
        await asyncio.sleep(2 * AFTER_S)
        assert slots(proxy) == {"in_use": 2, "waiting": 0, "cut": 1}
        assert sum([await reader.rest() >= SIZE for reader in readers]) == 2


async def test_waits_in_pieces_add_up() -> None:
    async with one_slot(queue_timeout=AFTER_S / 4) as proxy, stalled(proxy):
        async with asyncio.timeout(WAIT_S):
            while (answer := await small(proxy)).status == 503:
                assert answer.error_code == "PROXY_QUEUE_TIMEOUT"
        assert answer.body == b"ok"
        assert slots(proxy)["cut"] == 1


async def test_nothing_is_kept_of_callers_that_have_left() -> None:
    async with one_slot(queue_timeout=AFTER_S / 2) as proxy:
        stalls = proxy.app._gateway._stalls
        async with stalled(proxy):
            assert (await small(proxy)).status == 503
            await until(lambda: not stalls._waiting)
            await asyncio.sleep(AFTER_S / 4)  # a look, or several
            assert stalls._marks
        await until(lambda: not stalls._marks and stalls._timer is None)


@pytest.mark.skipif(
    sys.platform not in ("linux", "darwin"), reason="this system tells nothing of its buffers"
)
async def test_bytes_that_our_system_still_holds_are_not_taken() -> None:
    async with one_slot() as proxy, stalled(proxy) as reader:
        [connection] = [one for one in proxy.app._listeners.connections() if one.writing_paused]
        request = connection.current
        assert request is not None
        taken = request.answer_bytes - connection.untaken
        assert taken <= 64 * 1024  # what fits into the caller's buffers, which are small
        while reader.got < 1 << 20:
            await reader.take(8192)
        # The buffers of a test's machine may be larger than these; but not by so much.
        assert reader.got - 4096 <= request.answer_bytes - connection.untaken <= reader.got + 128 * 1024


async def test_the_limits_can_change_while_an_answer_is_under_way() -> None:
    async with one_slot(server={"min_rate": 0}) as proxy, stalled(proxy):
        first = asyncio.create_task(small(proxy))
        await asyncio.sleep(AFTER_S)
        settings = proxy.app._generation.settings
        table = settings.server.model_copy(update={"min_rate": 16384})
        proxy.app._prepare(settings.model_copy(update={"server": table}))()
        assert (await small(proxy)).body == b"ok"
        assert (await first).body == b"ok"


# ---- on sockets: what people see


async def test_the_log_the_status_and_the_metrics_say_why() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    async with one_slot() as proxy, stalled(proxy):
        await small(proxy)
        status = json.loads((await proxy.call(b"GET /-/status")).body)["projects"]["shop"]
        metrics = (await proxy.call(b"GET /-/metrics")).body
    why = (
        f"its caller took less than 16384 bytes/s over {AFTER_S:g} s, while other requests waited for a slot"
    )
    [line] = [line for line in map(json.loads, stream.getvalue().splitlines()) if line.get("reason")]
    assert (line["event"], line["status"], line["reason"]) == ("request_cut_short", 200, why)
    assert status["slots"]["slow_callers_cut"] == 1
    [error] = status["last_errors"]
    assert error["code"] == "PROXY_ANSWER_CUT"
    assert why in error["message"]
    assert b'csq_proxy_slow_callers_cut_total{project="shop"} 1.0' in metrics
    assert b'csq_proxy_slow_callers_cut_total{project="other"} 0.0' in metrics


# ---- on sockets: shared answers


def json_cloud() -> Upstream:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return Upstream(lambda _: head % 900_000 + b"1" * 900_000)


async def test_a_caller_that_stalls_ends_no_other_callers_shared_answer() -> None:
    target = b"GET /shop/v1/segments"
    async with (
        one_slot(json_cloud(), shop={"coalesce": True}) as proxy,
        stalled(proxy, target=target) as reader,
    ):
        answers = await asyncio.gather(*(proxy.call(target) for _ in range(4)))
        assert [len(answer.body) for answer in answers] == [900_000] * 4
        assert slots(proxy) == {"in_use": 0, "waiting": 0, "cut": 1}
        assert await reader.rest() < 900_000


async def test_a_stored_answer_holds_no_slot_and_is_not_cut() -> None:
    async with one_slot(json_cloud(), shop={"cache": "60s"}) as proxy:
        target = b"GET /shop/v1/segments"
        await proxy.call(target)
        async with stalled(proxy, target=target) as reader:
            assert slots(proxy)["in_use"] == 0
            async with stalled(proxy, target=b"GET /shop/v1/segments?other") as other:
                assert len((await proxy.call(b"GET /shop/v1/segments?third")).body) == 900_000
                assert await other.rest() < 900_000
            assert await reader.rest() > 900_000


# ---- in virtual time: the rate


class Connection:
    """A caller's connection, for which bytes lie ready all the time."""

    transport = None
    untaken = 0
    writing_paused = True
    is_aborted = False

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...

    def abort(self) -> None:
        self.is_aborted = True


async def seconds_until_cut(taken_at: Callable[[float], int], *, waits_from_s: float = 0.0) -> float | None:
    """When the answer to a caller that took so many bytes after so many seconds is cut; None: never.

    A request waits for its slot from ``waits_from_s`` on, and one for another project's slot all the time.
    """
    slots = Slots(1)
    connection = Connection()
    project = SimpleNamespace(slots=slots, measures=ProjectMeasures())
    request = Request(
        parse_request_head(b"GET /v1/x HTTP/1.1\r\nHost: x"),
        RequestBody(cast(Source, connection)),
        cast(server.Connection, connection),
    )
    request.head_sent = True
    upstreams = Upstreams(dialer(), idle_timeout_s=300)
    request.exchange = exchange = Exchange(
        request,
        cast(Project, project),
        Api.METRICS,
        b"/v1/x",
        upstreams,
        waits=(watch := StallWatch(lambda: [request], ServerSettings)),
        queue_timeout_s=60,
        ended=lambda _: None,
    )
    await exchange.take_slot(0.0, first=False)
    watch.begin_wait()
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    while (passed_s := loop.time() - began_at) < 600:
        if connection.is_aborted:
            return passed_s
        slots.waiting = int(passed_s >= waits_from_s)
        request.answer_bytes = taken_at(passed_s)
        await asyncio.sleep(0.1)
    return None


def steadily(rate: float, step: int) -> Callable[[float], int]:
    return lambda passed_s: int(rate * passed_s) // step * step


@pytest.mark.parametrize(
    ("rate", "step"),
    [(0, 1), (1, 1), (8_000, 1), (12_000, 1), (15_500, 1), (8_000, 230_000), (12_000, 93_000)],
)
def test_below_the_rate_an_answer_is_cut_in_time(rate: int, step: int) -> None:
    cut_s = in_virtual_time(seconds_until_cut(steadily(rate, step)))
    assert cut_s is not None
    # Half of the bytes due in 30 s are granted, so one just below the rate is cut later.
    assert 30 <= cut_s <= 33 + max(0, 15 * 16384 / (16384 - rate) - 30) + 2 * step / max(1, rate)


@pytest.mark.parametrize(
    ("rate", "step"),
    [(17_500, 1), (17_500, 93_000), (20_000, 500_000), (262_144, 5 << 20), (1 << 20, 1)],
    ids=["just", "small steps", "large steps", "5 MiB every 20 s", "fast"],
)
def test_above_the_rate_no_answer_is_cut(rate: int, step: int) -> None:
    assert in_virtual_time(seconds_until_cut(steadily(rate, step))) is None


def test_a_caller_is_not_cut_whose_system_takes_little_at_first() -> None:
    # Measured on Linux: the program reads 24 KiB/s all the time, from a buffer that was more than full.
    steps = [(24.5, 369), (34.6, 253), (45.2, 316), (66.5, 499), *((80 + 20 * n, 480) for n in range(30))]

    def taken_at(passed_s: float) -> int:
        return 1024 * sum(size for at_s, size in steps if passed_s >= at_s)

    assert in_virtual_time(seconds_until_cut(taken_at)) is None


def test_the_time_counts_only_while_a_request_waits_for_the_same_slots() -> None:
    cut_s = in_virtual_time(seconds_until_cut(lambda _: 0, waits_from_s=100))
    assert cut_s is not None
    assert 129 <= cut_s <= 132
