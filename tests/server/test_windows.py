"""Windows' event loop, imitated.

It hands over a bytearray, tells of a FIN twice where reading was held back, and shuts a socket down before it
closes the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from support.clouds import closing, dialer, exchange, pool_of
from support.cuts import cut, received_until_reset
from support.harness import OK, WAIT_S, RawServer, Upstream, gateway, read_message

from proxy.server.departure import _is_reset
from proxy.upstream.connection import _has_read

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nok\r\n0\r\nT: r\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 OK\r\n\r\n"
SHUTDOWN_S = 0.02
"""From the imitated shutdown to the close: the other end sees the FIN first, as it does on Windows."""

Run = Callable[[Coroutine[object, object, None]], None]


def _read_as_bytearray(self: Any) -> None:
    try:
        data = self._sock.recv(self.max_size)
    except (BlockingIOError, InterruptedError):
        return
    except OSError as exc:
        self._fatal_error(exc)
        return
    if data:
        self._protocol.data_received(bytearray(data))
    else:
        self._read_ready__on_eof()
        if not self._closing:
            self._loop.call_soon(self._protocol.eof_received)


def _end_by_shutdown(self: Any, exc: BaseException | None) -> None:
    if self._sock.fileno() != -1:
        with contextlib.suppress(OSError):  # the other end has closed it
            self._sock.shutdown(socket.SHUT_RDWR)
    self._loop.call_later(SHUTDOWN_S, _call_connection_lost, self, exc)


_call_connection_lost = _SelectorSocketTransport._call_connection_lost


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a coroutine on a loop whose transports do what the Proactor loop's do."""
    if sys.platform == "win32":
        pytest.skip("the loop itself is there")
    monkeypatch.setattr(_SelectorSocketTransport, "_read_ready__data_received", _read_as_bytearray)
    monkeypatch.setattr(_SelectorSocketTransport, "_call_connection_lost", _end_by_shutdown)
    monkeypatch.setattr("proxy.server.caller_socket.ABORT_SHUTS_DOWN", True)

    def run(scenario: Coroutine[object, object, None]) -> None:
        async def whole() -> None:
            await scenario
            await asyncio.sleep(2 * SHUTDOWN_S)  # until the last socket is closed

        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(whole())

    return run


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_requests_and_answers_that_come_as_bytearrays_are_read(run: Run, answer: bytes) -> None:
    async def scenario() -> None:
        async with gateway(Upstream(answer)) as proxy:
            for _ in range(3):
                assert (await proxy.call(b"POST /x", b"Content-Length: 2", body=b"{}")).content == b"ok"

    run(scenario())


def test_an_http_proxy_s_answer_that_comes_as_a_bytearray_is_read(run: Run) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(ESTABLISHED)
        await read_message(reader)
        writer.write(OK)
        await reader.read()

    async def scenario() -> None:
        async with RawServer(script) as server:
            using = dialer(find_proxy=lambda _: server.url)
            async with closing(pool_of("http://cloud.example", using)) as pool:
                assert (await exchange(await pool.connect())).content == b"ok"

    run(scenario())


@pytest.mark.parametrize(
    "part",
    [b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n01234", CHUNKED.partition(b"ok")[0] + b"ok"],
    ids=["length", "chunked"],
)
def test_a_cut_answer_ends_in_a_reset_though_aborting_shuts_down_first(run: Run, part: bytes) -> None:
    async def scenario() -> None:
        async with gateway(cut(part, "close")) as proxy:
            reader, writer = await proxy.connect()
            writer.write(b"GET /x HTTP/1.0\r\nHost: " + proxy.host + b"\r\n\r\n")
            async with asyncio.timeout(WAIT_S):
                assert b"\r\n\r\n" in await received_until_reset(reader)

    run(scenario())


@pytest.mark.parametrize(
    ("said", "ends"),
    [(BlockingIOError(), False), (b"x", False), (ConnectionResetError(), True), (b"", False)],
)
def test_while_reading_is_held_back_only_a_read_tells_of_a_reset(
    said: OSError | bytes, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sock(socket.socket):
        def recv(self, size: int, flags: int = 0, /) -> bytes:
            assert (size, flags) == (1, socket.MSG_PEEK)
            if isinstance(said, OSError):
                raise said
            return said

    monkeypatch.setattr("proxy.server.departure.READ_TELLS", True)
    with Sock() as sock:
        assert _is_reset(sock) is ends


@pytest.mark.parametrize(("winerror", "count"), [(64, 0), (10024, 1)])
async def test_a_caller_that_left_before_its_acceptance_is_no_failure(
    winerror: int, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(22, "left")
    error.winerror = winerror  # type: ignore[attr-defined,unused-ignore]
    async with gateway(Upstream(OK)) as proxy:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept
        failures = [error]

        async def failing(sock: socket.socket) -> object:
            if failures:
                raise failures.pop()
            return await accept(sock)

        monkeypatch.setattr("proxy.server.site.RETRY_S", 0.0)
        monkeypatch.setattr(type(loop), "sock_accept", lambda _, sock: failing(sock))
        for _ in range(3):
            assert (await proxy.call(b"GET /x")).content == b"ok"
    assert not failures
    assert capsys.readouterr().out.count("accept_failed") == count


def test_a_fin_that_is_told_twice_ends_no_whole_request(run: Run) -> None:
    async def scenario() -> None:
        async with gateway(Upstream(OK)) as proxy:
            reader, writer = await proxy.connect()
            cut_one = proxy.request(b"POST /cut", b"Content-Length: 9", body=b"hel")
            writer.write(proxy.request(b"GET /x") * 8 + cut_one)
            writer.write_eof()
            assert [(await read_message(reader)).body for _ in range(8)] == [b"ok"] * 8
            assert await reader.read() == b""

    run(scenario())


@pytest.mark.parametrize(
    ("done", "pending", "expected"), [(False, True, False), (False, False, True), (True, None, True)]
)
def test_what_the_loop_has_read_already_counts_as_unread(
    done: bool, pending: bool | None, expected: bool
) -> None:
    read = SimpleNamespace(
        done=lambda: done, _ov=None if pending is None else SimpleNamespace(pending=pending)
    )
    plain = SimpleNamespace(_read_fut=read)
    assert _has_read(plain) is expected
    assert _has_read(SimpleNamespace(_ssl_protocol=SimpleNamespace(_transport=plain))) is expected
    assert _has_read(SimpleNamespace(_read_fut=None)) is False


async def test_bytes_that_came_before_the_request_are_seen_without_a_turn_of_the_loop() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(OK)
        servers.put_nowait(writer)
        await reader.read()

    servers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        assert (await exchange(connection)).content == b"ok"
        assert connection.is_usable()
        peer = servers.get_nowait().get_extra_info("socket")
        with socket.fromfd(peer.fileno(), peer.family, peer.type) as copy:
            copy.send(b"HTTP/1.1 200 OK\r\n\r\n")
        ends = time.monotonic() + WAIT_S
        while connection.is_usable():
            assert time.monotonic() < ends
