"""One connection to a cloud: when it can be used again, and how an exchange on it fails."""

from __future__ import annotations

import asyncio
import errno

import pytest
from support.clouds import GET, Sink, closing, exchange, pool_of, silent
from support.harness import OK, RawServer, Upstream, read_message, until

from proxy.errors import ConnectionLost, ProtocolViolation, UpstreamError, UpstreamSilent


@pytest.mark.parametrize("unasked", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"x"])
async def test_an_idle_connection_that_says_anything_or_ends_is_dropped(unasked: bytes) -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(OK)
        await go_on.wait()
        writer.write(unasked)
        await writer.drain()

    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        await exchange(connection)
        assert connection.is_usable()
        go_on.set()
        await until(lambda: pool.is_unused)
        assert not connection.is_usable()
        assert pool.take_idle() is None
        assert repr(connection) == f"<CloudConnection {server.url} closed, 1 exchanges>"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
    ],
)
async def test_a_connection_that_will_not_last_is_not_pooled(answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(answer)

    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        assert (await exchange(await pool.connect())).content == b"ok"
        assert pool.is_unused


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", ProtocolViolation),
        (b"HTTP/1.1 204 No Content\r\n\r\nx", ProtocolViolation),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ProtocolViolation),
        (b"HTTP/1.1 103 Early\r\n\r\n" * 40, ProtocolViolation),
        (b"nonsense\r\n\r\n", ProtocolViolation),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nContent-Le", ConnectionLost),
        (b"", ConnectionLost),
    ],
)
async def test_a_bad_answer_fails_and_its_connection_is_never_used_again(
    answer: bytes, error: type[UpstreamError]
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(answer)

    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        with pytest.raises(error):
            await exchange(connection)
        assert pool.is_unused
        assert not connection.is_usable()


@pytest.mark.parametrize(
    ("code", "side"),
    [
        (errno.ECONNRESET, "contentsquare"),
        (errno.ETIMEDOUT, "network"),
        (errno.EHOSTUNREACH, "network"),
        (errno.ENOBUFS, "proxy"),
    ],
)
async def test_the_system_s_error_tells_whose_trouble_a_cut_answer_is(code: int, side: str) -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        connection, sink = await pool.connect(), Sink()
        connection.start(sink, GET, is_head_request=False, request_done=True)
        connection.connection_lost(OSError(code, "failed"))
        with pytest.raises(ConnectionLost) as raised:
            await sink.done
        assert raised.value.side == side


async def test_interim_answers_and_trailers_reach_the_sink() -> None:
    answer = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    async with RawServer(Upstream(answer)) as server, closing(pool_of(server.url)) as pool:
        sink = await exchange(await pool.connect())
        assert (sink.interim, sink.status, sink.content) == ([100, 103], 200, b"ok")
        assert sink.trailers == [b"X-Sum: 1"]
        assert pool.take_idle()


async def test_an_answer_that_comes_a_byte_at_a_time_is_the_same() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        for byte in OK:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        assert (await exchange(await pool.connect())).content == b"ok"
        assert pool.take_idle()


async def test_an_answer_to_head_has_no_content_whatever_its_length_says() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    async with RawServer(Upstream(answer)) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        for _ in range(2):
            assert (await exchange(connection, is_head_request=True)).content == b""


async def test_an_exchange_on_which_no_byte_moves_is_ended() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        connection, sink = await pool.connect(), Sink()
        connection.start(sink, GET, is_head_request=False, request_done=True)
        connection.last_activity -= 10
        pool.sweep(15)
        assert not sink.done.done()
        pool.sweep(5)
        with pytest.raises(UpstreamSilent, match="no byte for 5 s"):
            await sink.done
        assert pool.is_unused
