"""What is cut never looks whole, and what changes data is never sent twice (RFC 9112, sections 8 and 9)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import trustme
from support.cuts import cut, received_until_reset, reset
from support.harness import (
    OK,
    WAIT_S,
    Message,
    TokenServer,
    Upstream,
    close,
    gateway,
    read_message,
    turns,
)
from support.windows import reset_behind_unread_bytes

HEAD = b"HTTP/1.1 200 OK\r\nX: 1\r\n"
LENGTH = HEAD + b"Content-Length: 10\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = HEAD + b"\r\n"

BEFORE_THE_HEAD = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"HTTP", id="within-the-status-line"),
    pytest.param(b"HTTP/1.1 200 OK\r\n", id="after-the-status-line"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="within-a-field"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", id="before-the-empty-line"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r", id="within-the-empty-line"),
    pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", id="after-an-interim-answer"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2", id="within-the-head-after-an-interim-answer"),
]
AFTER_THE_HEAD = {
    "length-after-head": LENGTH,
    "length-first-byte": LENGTH + b"0",
    "length-last-byte-missing": LENGTH + b"012345678",
    "chunked-after-head": CHUNKED,
    "chunked-within-size": CHUNKED + b"5",
    "chunked-within-extension": CHUNKED + b"5;ext",
    "chunked-within-size-line-end": CHUNKED + b"5\r",
    "chunked-after-size": CHUNKED + b"5\r\n",
    "chunked-within-data": CHUNKED + b"5\r\n012",
    "chunked-after-data": CHUNKED + b"5\r\n01234",
    "chunked-within-data-end": CHUNKED + b"5\r\n01234\r",
    "chunked-before-last-chunk": CHUNKED + b"5\r\n01234\r\n",
    "chunked-within-last-chunk": CHUNKED + b"5\r\n01234\r\n0",
    "chunked-after-last-chunk": CHUNKED + b"5\r\n01234\r\n0\r\n",
    "chunked-within-trailer": CHUNKED + b"5\r\n01234\r\n0\r\nT: ",
    "chunked-after-trailer": CHUNKED + b"5\r\n01234\r\n0\r\nT: 1\r\n",
    "chunked-last-byte-missing": CHUNKED + b"5\r\n01234\r\n0\r\nT: 1\r\n\r",
}
UNTIL_THE_END = {
    "until-close-after-head": UNTIL_CLOSE,
    "until-close-within-content": UNTIL_CLOSE + b"01234",
    "until-close-in-1.0": b"HTTP/1.0 200 OK\r\n\r\n01234",
}


@pytest.mark.parametrize("part", BEFORE_THE_HEAD)
@pytest.mark.parametrize("ending", ["close", "reset", "stall"])
async def test_an_answer_cut_before_its_end_of_head_is_an_error_of_ours(part: bytes, ending: str) -> None:
    idle_timeout = 0.04 if ending == "stall" else WAIT_S
    async with gateway(cut(part, ending), contentsquare={"idle_timeout": idle_timeout}) as proxy:
        for start in (b"GET /x", b"POST /x"):
            answer = await proxy.call(start)
            if ending == "stall":
                assert (answer.status, answer.error_code) == (504, "PROXY_UPSTREAM_TIMEOUT")
            else:
                assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
                assert answer.values(b"proxy-status") == [b"csq-proxy; error=connection_terminated"]
            for internal in (b"Error", b"Errno", b"Traceback", b"0x", b"asyncio"):
                assert internal not in answer.body.replace(b"errorCode", b"").replace(b"errorMessage", b"")


@pytest.mark.parametrize(
    ("part", "ending"),
    [
        *(
            pytest.param(part, ending, id=f"{name}-{ending}")
            for name, part in AFTER_THE_HEAD.items()
            for ending in ("close", "reset", "stall")
        ),
        *(
            pytest.param(part, ending, id=f"{name}-{ending}")
            for name, part in UNTIL_THE_END.items()
            for ending in ("reset", "stall")
        ),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_cut_after_its_head_aborts_the_caller(
    part: bytes, ending: str, version: bytes
) -> None:
    idle_timeout = 0.25 if ending == "stall" else WAIT_S
    async with gateway(cut(part, ending), contentsquare={"idle_timeout": idle_timeout}) as proxy:
        reader, writer = await proxy.connect()
        lines = b"Host: %b\r\nConnection: keep-alive\r\nTE: trailers" % proxy.host
        writer.write(b"GET /x HTTP/%b\r\n%b\r\n\r\n" % (version, lines))
        received = await received_until_reset(reader)
        assert b"\r\n0\r\n" not in received  # no last chunk
        slots = next(iter(proxy.app.projects())).slots
        assert slots.in_use == 0


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_cut_answer_takes_only_itself_down(version: bytes) -> None:
    """Pipelined answers before the cut one arrive whole; the ones behind it never look like part of it."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
    upstream = Upstream(lambda request: LENGTH + b"cut" if b"/cut" in request.start_line else whole)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            assert callable(upstream.answer)
            writer.write(upstream.answer(request))
            await writer.drain()
            if b"/cut" in request.start_line:
                return

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        lines = b"Host: %b\r\nConnection: keep-alive\r\n\r\n" % proxy.host
        for target in (b"/one", b"/cut", b"/two"):
            writer.write(b"GET %b HTTP/%b\r\n%b" % (target, version, lines))
        assert (await read_message(reader)).body == b"one"
        assert b"two" not in await received_until_reset(reader)


@reset_behind_unread_bytes
async def test_a_cut_answer_to_a_slow_reader_is_not_ended_cleanly() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    writer.write(b"10000\r\n%b\r\n" % (b"x" * 65_536))
                    await writer.drain()
        reset(writer)

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(proxy.request(b"GET /x"))
        await asyncio.sleep(0.05)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert b"\r\n0\r\n" not in await received_until_reset(reader)


async def test_a_reader_that_stands_still_for_the_idle_time_is_let_go() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        started.set()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 80000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    started = asyncio.Event()
    async with gateway(script, contentsquare={"idle_timeout": 0.05}) as proxy:
        _, writer = await proxy.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(proxy.request(b"GET /x"))
        [project] = proxy.app.projects()
        async with asyncio.timeout(WAIT_S):
            await started.wait()
            while project.slots.in_use:
                await asyncio.sleep(0.005)
        [error] = project.measures.last_errors
        assert error.message == "The answer was cut: its caller took no byte for 0.05 s. Send it again."
        shown = json.loads((await proxy.call(b"GET /-/status")).content)["projects"]["shop"]["health"]
        assert (shown["state"], shown["side"]) == ("degraded", "caller")
        writer.transport.abort()


@pytest.mark.parametrize("ending", ["stall", "close", "abort"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_callers_cut_upload_never_looks_whole_to_the_cloud(ending: str, is_chunked: bool) -> None:
    outcome: asyncio.Queue[str] = asyncio.Queue()
    reached = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        try:
            await read_message(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            await outcome.put("cut")
        else:
            await outcome.put("whole")

    idle_timeout = 0.25 if ending == "stall" else WAIT_S
    async with gateway(script, contentsquare={"idle_timeout": idle_timeout}) as proxy:
        reader, writer = await proxy.connect()
        line = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 10"
        writer.write(proxy.request(b"POST /x", line, body=b"5\r\n01234\r\n" if is_chunked else b"01234"))
        async with asyncio.timeout(WAIT_S):
            await reached.wait()
        if ending == "stall":
            answer = await read_message(reader)
            assert (answer.status, answer.error_code) == (408, "PROXY_REQUEST_TIMEOUT")
        elif ending == "abort":
            reset(writer)
        else:
            await close(writer)
        async with asyncio.timeout(WAIT_S):
            assert await outcome.get() == "cut"


async def test_a_cloud_that_takes_no_upload_for_the_idle_time_is_a_504() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(WAIT_S)

    # A caller that a slow machine stops for so long would get a 408.
    async with gateway(script, contentsquare={"idle_timeout": 0.5}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /x", b"Content-Length: 30000000", body=b"x" * 30_000_000))
        answer = await read_message(reader)
        assert (answer.status, answer.error_code) == (504, "PROXY_UPSTREAM_TIMEOUT")


# TLS: an end without close_notify is a cut (RFC 8446, section 6.1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def cloud_tls(authority: trustme.CA, tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """The context of a cloud at ``localhost``, and the file that makes the proxy trust it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return context, str(ca_file)


@pytest.mark.parametrize("ends_well", [True, False], ids=["close-notify", "bare-FIN"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_content_until_close_over_tls_is_whole_only_with_close_notify(
    ends_well: bool, version: bytes, cloud_tls: tuple[ssl.SSLContext, str]
) -> None:
    context, ca_file = cloud_tls

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(UNTIL_CLOSE + b"01234")
        await writer.drain()
        await asyncio.sleep(0.005)
        if not ends_well:
            sock = writer.get_extra_info("socket")
            with socket.fromfd(sock.fileno(), sock.family, sock.type) as raw:
                raw.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.02)

    async with gateway(script, tls=context, contentsquare={"ca_file": ca_file}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"GET /x HTTP/%b\r\nHost: %b\r\n\r\n" % (version, proxy.host))
        if ends_well:
            assert (await read_message(reader)).content == b"01234"
        else:
            await received_until_reset(reader)


@pytest.mark.parametrize("ending", ["stays", "closes", "resets"])
async def test_a_413_over_tls_reaches_the_caller_in_the_middle_of_a_large_upload(
    ending: str, cloud_tls: tuple[ssl.SSLContext, str]
) -> None:
    context, ca_file = cloud_tls
    # A write that fails because the cloud closed would make the event loop drop the unread 413.
    pieces = 300 if ending == "stays" else 10

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if ending != "stays":
            await reader.readexactly(pieces * 60_000)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        if ending == "stays":
            await reader.read()
        elif ending == "resets":
            writer.transport.abort()

    async with gateway(script, tls=context, contentsquare={"ca_file": ca_file}) as proxy:
        for _ in range(5):
            reader, writer = await proxy.connect()
            writer.write(proxy.request(b"POST /x", b"Content-Length: 60000000"))

            async def upload(writer: asyncio.StreamWriter = writer) -> None:
                for _ in range(pieces):
                    writer.write(b"x" * 60_000)
                    await writer.drain()

            sending = asyncio.create_task(upload())
            answer = await read_message(reader)
            assert (answer.status, answer.body) == (413, b"big")
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await close(writer)


# Keep-alive races


class Unreliable(asyncio.Protocol):
    """A cloud that ends its connections when they are idle, at the worst moment, in every way there is.

    A connection answers at least one request; ``seen`` counts the requests by their target.
    """

    def __init__(self, rng: random.Random, seen: Counter[bytes]) -> None:
        self._rng = rng
        self._seen = seen
        self._left = rng.randrange(1, 6)
        self._buffer = b""
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True

    def data_received(self, data: bytes) -> None:
        if not self._left:  # a request on its way to a connection that is no longer served
            self._note(self._buffer + data)
            self._end(self._rng.choice(("close", "abort", "close")))
            return
        self._buffer += data
        while b"\r\n\r\n" in self._buffer and self._left:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self._note(head)
            self._left -= 1
            self._transport.write(OK)
            if not self._left:
                self._retire()

    def _note(self, head: bytes) -> None:
        if target := head.split(b" ")[1:2]:
            self._seen[target[0]] += 1

    def _retire(self) -> None:
        way = self._rng.choice(("close", "soon", "later", "silent", "abort-soon"))
        loop = asyncio.get_running_loop()
        if way == "close":
            self._end("close")
        elif way != "silent":  # silent: the next request's bytes are taken, and the connection ended
            delay_s = 0.0 if way == "soon" else self._rng.uniform(0, 0.003)
            loop.call_later(delay_s, self._end, "abort" if way == "abort-soon" else "close")

    def _end(self, way: str) -> None:
        if way == "abort":
            self._transport.abort()
        else:
            self._transport.close()


async def behind_unreliable_cloud(
    requests: int, callers: int, make: Callable[[int], tuple[bytes, tuple[bytes, ...], bytes]]
) -> tuple[Counter[int], Counter[bytes]]:
    """The statuses that callers got, and how often the cloud saw each target."""
    rng = random.Random(20260822)
    seen: Counter[bytes] = Counter()
    statuses: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    clouds: list[Unreliable] = []

    def make_cloud() -> Unreliable:
        clouds.append(Unreliable(rng, seen))
        return clouds[-1]

    server = await loop.create_server(make_cloud, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    numbers = iter(range(requests))
    token = TokenServer(endpoint=f"http://127.0.0.1:{port}")
    async with gateway(token=token) as proxy:

        async def call() -> None:
            reader, writer = await proxy.connect()
            for number in numbers:
                start, lines, body = make(number)
                writer.write(proxy.request(start, *lines, body=body))
                answer = await read_message(reader)
                statuses[answer.status] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(call())
    server.close()
    async with asyncio.timeout(WAIT_S):  # each connection's end is taken note of before the loop closes
        while not all(cloud.is_over for cloud in clouds):
            await asyncio.sleep(0.001)
    return statuses, seen


@pytest.mark.asyncio(loop_factories=["asyncio" if sys.platform == "win32" else "uvloop"])  # once is enough
async def test_a_cloud_that_ends_idle_connections_costs_no_get_in_10000() -> None:
    requests = 1_000 if sys.platform == "win32" else 10_000  # Wine answers 140 a second
    statuses, seen = await behind_unreliable_cloud(requests, 8, lambda n: (b"GET /%d" % n, (), b""))
    assert statuses == {200: requests}
    assert (len(seen), seen.total() > requests) == (requests, True)  # the race was met


async def test_what_changes_data_is_never_seen_twice_by_the_cloud() -> None:
    def make(number: int) -> tuple[bytes, tuple[bytes, ...], bytes]:
        method = (b"POST", b"PUT", b"PATCH", b"DELETE")[number % 4]
        return method + b" /%d" % number, (), b""

    statuses, seen = await behind_unreliable_cloud(1000, 4, make)
    assert set(statuses) <= {200, 502}
    assert statuses[200] > 500
    assert max(seen.values()) == 1


async def test_a_get_with_content_is_sent_again_whole() -> None:
    bodies: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        bodies.append(request.body)
        writer.write(OK)
        await writer.drain()
        await reader.read(1)

    async with gateway(script) as proxy:
        for _ in range(3):
            assert (await proxy.call(b"GET /x", b"Content-Length: 5", body=b"hello")).status == 200
        assert bodies == [b"hello"] * 3


@pytest.mark.parametrize("later", range(6))
async def test_content_that_outgrows_what_is_held_as_a_connection_ends_is_no_bug(later: int) -> None:
    lost = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(60_000)
        reset(writer)
        await turns(later)
        lost.set()

    async with gateway(script) as proxy:
        assert (await proxy.call(b"GET /x")).status == 200
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /x", b"Content-Length: 100000", body=bytes(60_000)))
        async with asyncio.timeout(WAIT_S):
            await lost.wait()
        writer.write(bytes(40_000))
        # Sent again where that came before the rest of the content did.
        assert (await read_message(reader)).status in (200, 502)


async def test_silence_on_a_used_connection_is_not_taken_for_a_race() -> None:
    requests: list[Message] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_message(reader))
        writer.write(OK)
        await writer.drain()
        requests.append(await read_message(reader))
        await reader.read()

    async with gateway(script, contentsquare={"idle_timeout": 0.5}) as proxy:
        assert (await proxy.call(b"GET /x")).status == 200
        assert (await proxy.call(b"GET /x")).status == 504
        assert len(requests) == 2
