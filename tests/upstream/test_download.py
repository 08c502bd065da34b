"""One GET, read piece by piece: back-pressure, reuse of connections, and the ways in which it fails."""

from __future__ import annotations

import asyncio
import random
import ssl

import pytest
import trustme
from support.clouds import closing, dialer, pool_of
from support.harness import WAIT_S, Message, RawServer, Upstream, read_message, until

from proxy.errors import ConnectFailed, ConnectionLost
from proxy.upstream import download
from proxy.upstream.download import Download
from proxy.upstream.pool import Pool
from proxy.upstream.tls import tls_context

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def answer(content: bytes) -> bytes:
    return b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)


def content_of(target: bytes) -> bytes:
    """The content that this target alone has."""
    return random.Random(target).randbytes(3_000_000)


async def fetched(pool: Pool, request: bytes = GET) -> bytes:
    one, content = Download(pool), b""
    try:
        async with asyncio.timeout(WAIT_S):
            head = await one.open(request)
            assert head.status == 200
            while piece := await one.read():
                content += piece
            assert await one.read() == b""
    finally:
        one.close()
    return content


async def test_a_connection_carries_one_download_after_the_other() -> None:
    async with RawServer(Upstream(answer(b"x" * 100_000))) as server, closing(pool_of(server.url)) as pool:
        for _ in range(3):
            assert await fetched(pool) == b"x" * 100_000
        assert server.connections == 1


@pytest.mark.parametrize("is_tls", [False, True])
async def test_downloads_that_run_at_once_do_not_mix(is_tls: bool) -> None:
    """The connections of a pool read into the same memory."""
    ca, tls = trustme.CA(), None
    trusting = tls_context()
    ca.configure_trust(trusting)
    if is_tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(tls)

    async def cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await read_message(reader)).start_line.split(b" ")[1]
        writer.write(answer(content_of(target)))
        await writer.drain()

    targets = [b"/%d" % number for number in range(6)]
    async with RawServer(cloud, tls=tls) as server:
        url = f"https://localhost:{server.port}" if is_tls else server.url
        async with closing(pool_of(url, dialer(trusting))) as pool:
            requests = [GET.replace(b"/", target, 1) for target in targets]
            contents = await asyncio.gather(*(fetched(pool, request) for request in requests))
    assert contents == [content_of(target) for target in targets]


async def test_a_slow_reader_stops_the_reading() -> None:
    size = 64 << 20
    async with RawServer(Upstream(answer(bytes(size)))) as server, closing(pool_of(server.url)) as pool:
        one = Download(pool)
        await one.open(GET)
        [busy] = pool._busy
        await until(lambda: busy._paused)
        assert download.HELD_BYTES <= one._held <= download.HELD_BYTES + (1 << 20)
        got = 0
        while piece := await one.read():
            got += len(piece)
            assert one._held <= download.HELD_BYTES + (1 << 20)
        assert got == size


async def test_a_download_that_is_given_up_closes_its_connection() -> None:
    async with RawServer(Upstream(answer(bytes(8 << 20)))) as server, closing(pool_of(server.url)) as pool:
        one = Download(pool)
        await one.open(GET)
        one.close()
        one.close()
        assert pool.is_unused


async def test_a_connection_that_is_being_closed_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(answer(b"ok"))
        await read_message(reader)  # and no answer to the second request

    async with RawServer(once) as server, closing(pool_of(server.url)) as pool:
        assert await fetched(pool) == b"ok"
        assert await fetched(pool) == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 X\r\nContent-Le"])
async def test_no_answer_is_an_error(sent: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(sent)

    async with RawServer(cut) as server, closing(pool_of(server.url)) as pool:
        with pytest.raises(ConnectionLost):
            await fetched(pool)
        assert pool.is_unused


async def test_a_cut_comes_after_the_bytes_before_it() -> None:
    def half(_request: Message) -> bytes:
        return b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\nfirst"

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(half(await read_message(reader)))

    async with RawServer(cut) as server, closing(pool_of(server.url)) as pool:
        one = Download(pool)
        await one.open(GET)
        assert await one.read() == b"first"
        with pytest.raises(ConnectionLost):
            await one.read()


async def test_a_storage_that_can_t_be_reached() -> None:
    async with RawServer(Upstream()) as server:
        url = server.url
    async with closing(pool_of(url)) as pool:
        with pytest.raises(ConnectFailed):
            await fetched(pool)
