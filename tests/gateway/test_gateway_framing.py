"""Where a message ends, in both directions (RFC 9112, sections 6, 7), and that nobody buffers without end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.cases import together
from support.harness import (
    OK,
    WAIT_S,
    Gateway,
    Message,
    Upstream,
    close,
    gateway,
    read_message,
    until,
)

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def framing(message: Message) -> list[bytes]:
    """The lines that say where the content ends."""
    return [line for line in message.lines if line.lower().startswith((b"content-length", b"transfer-enc"))]


# The caller's content


@pytest.mark.parametrize(
    ("start", "lines", "body"),
    [
        pytest.param(b"POST /x", [b"Content-Length: 5"], b"hello", id="length"),
        pytest.param(b"POST /x", [b"content-length:  05 "], b"hello", id="length-as-it-was-written"),
        pytest.param(b"POST /x", [b"Content-Length: 0"], b"", id="length-0"),
        pytest.param(b"GET /x", [b"Content-Length: 2"], b"{}", id="GET-with-content"),
        pytest.param(b"GET /x", [], b"", id="GET"),
        pytest.param(b"POST /x", [], b"", id="POST-without-content"),
        pytest.param(b"DELETE /x", [], b"", id="DELETE"),
        pytest.param(b"PUT /x", [b"Content-Length: 300000"], b"0123456789" * 30_000, id="300-kB"),
        pytest.param(
            b"PUT /x", [b"Content-Length: 3", b"Content-Encoding: gzip"], b"\x00\r\n", id="bad-gzip"
        ),
    ],
)
async def test_a_request_keeps_its_framing(start: bytes, lines: list[bytes], body: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        assert (await proxy.call(start, *lines, body=body)).status == 200
        request = upstream.requests[0]
        assert framing(request) == [line for line in lines if b"ength" in line]
        assert request.body == body


@together(
    ("sent", "content"),
    [
        pytest.param(b"0\r\n\r\n", b"", id="empty"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one"),
        pytest.param(
            b"1\r\na\r\nA\r\n0123456789\r\n0a\r\n0123456789\r\n00\r\n\r\n", b"a" + b"0123456789" * 2, id="hex"
        ),
        pytest.param(b'2;a=b;c="d"\r\nok\r\n0;x\r\n\r\n', b"ok", id="extensions"),
        pytest.param(b"2 ;a\r\nok\r\n0\r\n\r\n", b"ok", id="extension-after-blank"),
        pytest.param(
            b"4\r\n\r\n0\r\r\n3\r\n\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n", id="content-like-framing"
        ),
        pytest.param(b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n", b"x" * 2000, id="2000-one-byte-chunks"),
        pytest.param(b"493e0\r\n" + b"z" * 300_000 + b"\r\n0\r\n\r\n", b"z" * 300_000, id="300-kB"),
    ],
)
@pytest.mark.parametrize("te", [b"Transfer-Encoding: chunked", b"transfer-encoding:\tChunked "])
async def test_a_chunked_request_stays_chunked(
    te: bytes, sent: bytes, content: bytes, proxy: Gateway, upstream: Upstream
) -> None:
    upstream.requests.clear()
    reader, writer = await proxy.connect()
    for _ in range(2):
        writer.write(proxy.request(b"POST /x", te, body=sent))
        assert (await read_message(reader)).status == 200
    for request in upstream.requests:
        assert framing(request) == [CHUNKED]
        assert request.content == content


async def test_content_is_passed_on_as_it_comes() -> None:
    arrived = b""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await reader.readuntil(b"\r\n\r\n")
        while not arrived.endswith(b"0\r\n\r\n"):
            arrived += await reader.read(100)
        writer.write(OK)
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /x", CHUNKED))
        for sent, expected in ((b"4\r\nab", b"ab"), (b"cd\r", b"cd"), (b"\n3\r\nefg\r\n", b"efg")):
            writer.write(sent)
            async with asyncio.timeout(WAIT_S):
                while expected not in arrived:
                    await asyncio.sleep(0.001)
        writer.write(b"0\r\n\r\n")
        assert (await read_message(reader)).status == 200


@together(
    ("lines", "status"),
    [
        pytest.param([b"Content-Length: 5", CHUNKED], 400, id="CL-and-TE"),
        pytest.param([CHUNKED, b"Content-Length: 5"], 400, id="TE-and-CL"),
        pytest.param([b"Content-Length: 5", b"Content-Length: 6"], 400, id="lengths-differ"),
        pytest.param([b"Content-Length: 5", b"Content-Length: 5"], 400, id="lengths-agree"),
        pytest.param([b"Content-Length: 5, 5"], 400, id="length-list"),
        pytest.param([b"Content-Length: +5"], 400, id="length-plus"),
        pytest.param([b"Content-Length: -1"], 400, id="length-minus"),
        pytest.param([b"Content-Length: 5 5"], 400, id="length-with-blank"),
        pytest.param([b"Content-Length: 0x5"], 400, id="length-hex"),
        pytest.param([b"Content-Length: 5_0"], 400, id="length-underscore"),
        pytest.param([b"Content-Length: \xb2"], 400, id="length-superscript"),
        pytest.param([b"Content-Length:"], 400, id="length-empty"),
        pytest.param([b"Content-Length: 9999999999999999999999"], 400, id="length-overflow"),
        pytest.param([b"Transfer-Encoding:"], 400, id="TE-empty"),
        pytest.param([b"Transfer-Encoding:", b"Content-Length: 5"], 400, id="TE-empty-and-CL"),
        pytest.param([CHUNKED, CHUNKED], 400, id="TE-twice"),
        pytest.param([CHUNKED, b"Transfer-Encoding:"], 400, id="TE-and-empty"),
        pytest.param([b"Transfer-Encoding: gzip"], 400, id="TE-gzip"),
        pytest.param([b"Transfer-Encoding: gzip, chunked"], 501, id="TE-list"),
        pytest.param([b"Transfer-Encoding: chunked, chunked"], 400, id="TE-chunked-twice"),
        pytest.param([b"Transfer-Encoding: xchunked"], 400, id="TE-similar"),
        pytest.param([b"Transfer-Encoding: chunked;q=1"], 400, id="TE-with-parameter"),
        pytest.param([b'Transfer-Encoding: "chunked"'], 400, id="TE-quoted"),
        pytest.param([b"Transfer-Encoding: identity"], 400, id="TE-identity"),
        pytest.param([b"Transfer-Encoding: chunked, gzip"], 400, id="TE-chunked-first"),
        pytest.param([CHUNKED, b"Transfer-Encoding: gzip"], 400, id="TE-chunked-first-of-two"),
        pytest.param([CHUNKED, b"Transfer-Encoding: gzip, chunked"], 400, id="TE-chunked-around"),
        pytest.param([b"Transfer-Encoding: gzip", CHUNKED], 501, id="TE-two"),
        pytest.param([b"Transfer-Encoding: gzip;q=1, x-odd", CHUNKED], 501, id="TE-three"),
        pytest.param([b"Transfer-Encoding: g zip, chunked"], 400, id="TE-no-coding"),
        pytest.param([b"Transfer-Encoding: , chunked"], 400, id="TE-empty-member"),
        pytest.param([b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5"], 400, id="TE-list-and-CL"),
        pytest.param([b"Transfer-Encoding : chunked"], 400, id="TE-space"),
        pytest.param([b"Transfer-Encoding\t: chunked"], 400, id="TE-tab"),
        pytest.param([b"Transfer-Encoding: chun\x0bked"], 400, id="TE-control"),
        pytest.param([b"X: y\nTransfer-Encoding: chunked"], 400, id="TE-after-bare-LF"),
        pytest.param([b"X: y\r\n Transfer-Encoding: chunked"], 400, id="TE-folded"),
    ],
)
async def test_framing_that_could_be_read_in_two_ways_is_refused(
    lines: list[bytes], status: int, proxy: Gateway, upstream: Upstream
) -> None:
    reader, writer = await proxy.connect()
    body = b"0\r\n\r\n" + proxy.request(b"GET /smuggled")
    writer.write(proxy.request(b"POST /x", *lines, body=body))
    answer = await read_message(reader)
    assert (answer.status, answer.error_code) == (status, "PROXY_BAD_REQUEST")
    assert answer.values(b"connection") == [b"close"]
    assert await reader.read() == b""
    assert upstream.requests == []


@pytest.mark.parametrize("coding", [b"chunked", b"gzip, chunked", b"gzip"])
async def test_a_transfer_coding_in_http_1_0_is_refused(coding: bytes) -> None:  # RFC 9112, section 6.1
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        raw = b"POST /x HTTP/1.0\r\nHost: %b\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" % (proxy.host, coding)
        assert (await proxy.send(raw)).status == 400
        assert upstream.requests == []


@together(
    "sent",
    [
        pytest.param(b"x\r\n", id="size-not-hex"),
        pytest.param(b"\r\n", id="size-empty"),
        pytest.param(b" 2\r\nok\r\n", id="size-after-blank"),
        pytest.param(b"-2\r\nok\r\n", id="size-negative"),
        pytest.param(b"0x2\r\nok\r\n", id="size-0x"),
        pytest.param(b"2\nok\r\n", id="size-bare-LF"),
        pytest.param(b"2\rok\r\n", id="size-bare-CR"),
        pytest.param(b"2;\x00\r\nok\r\n", id="extension-NUL"),
        pytest.param(b"2;a\nb\r\nok\r\n", id="extension-bare-LF"),
        pytest.param(b"2\r\nokk\r\n", id="chunk-too-long"),
        pytest.param(b"3\r\nok\r\n0\r\n\r\n", id="chunk-too-short"),
        pytest.param(b"2\r\nok\n0\r\n\r\n", id="end-bare-LF"),
        pytest.param(b"ffffffffffffffffffff\r\n", id="size-overflow"),
        pytest.param(b"2;" + b"e" * 9000, id="extension-endless"),
        pytest.param(b"2\r\nok\r\n0\r\nA : b\r\n\r\n", id="trailer-space"),
        pytest.param(b"2\r\nok\r\n0\r\nA: b\n\r\n", id="trailer-bare-LF"),
        pytest.param(b"2\r\nok\r\n0\r\nA: b\r\n c\r\n\r\n", id="trailer-folded"),
        pytest.param(b"2\r\nok\r\n0\r\nA: b\x00\r\n\r\n", id="trailer-NUL"),
        pytest.param(b"2\r\nok\r\n0\r\nContent-Length: 3\r\n\r\n", id="trailer-length"),
        pytest.param(b"2\r\nok\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", id="trailer-coding"),
        pytest.param(b"2\r\nok\r\n0\r\nHost: x\r\n\r\n", id="trailer-host"),
        pytest.param(b"2\r\nok\r\n0\r\n" + b"A: b\r\n" * 20_000, id="trailers-endless"),
    ],
)
@pytest.mark.parametrize("is_split", [False, True], ids=["at-once", "later"])
async def test_malformed_chunks_are_a_400_and_the_cloud_never_sees_a_whole_request(
    sent: bytes, is_split: bool, proxy: Gateway, upstream: Upstream
) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.request(b"POST /x", CHUNKED, body=b"" if is_split else sent))
    if is_split:
        await asyncio.sleep(0.003)
        writer.write(sent)
    answer = await read_message(reader)
    assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
    assert answer.values(b"connection") == [b"close"]
    assert await reader.read() == b""
    assert upstream.requests == []


async def test_a_request_whose_content_is_malformed_from_the_start_leaves_no_connection_open() -> None:
    opened = ended = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened, ended
        opened += 1
        await reader.read()
        ended += 1

    async with gateway(script) as proxy:
        for _ in range(5):
            answer = await proxy.call(b"POST /x", CHUNKED, body=b"2\r\nokk\r\n")
            assert answer.status == 400
        await until(lambda: opened == ended > 0)


# Trailers


async def test_request_trailers_go_on_without_what_is_ours_or_hop_by_hop() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        trailers = (
            b"X-Sum: 1\r\nx-sum: 2\r\nAuthorization: Bearer y\r\nX-Hop: 1\r\nX-API-Key: k\r\n"
            b"X-CSQ-Project: other\r\nx-csq-api: metrics\r\nContent-Type: a/form\r\nX-Empty:\r\n"
        )
        await proxy.call(b"POST /x", CHUNKED, b"Connection: x-hop", body=b"2\r\nok\r\n0\r\n%b\r\n" % trailers)
        assert upstream.requests[0].body == b"2\r\nok\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\nX-Empty:\r\n\r\n"


TRAILING = (
    HEAD
    + b"Trailer: X-Sum\r\n%b\r\n\r\n2\r\nok\r\n0\r\nX-Sum: \xe9\r\nx-sum: 2\r\nKeep-Alive: 1\r\n\r\n"
    % CHUNKED
)


async def test_trailers_reach_a_caller_that_asked_for_them() -> None:
    async with gateway(Upstream(TRAILING)) as proxy:
        answer = await proxy.call(b"GET /x", b"TE: trailers")
        assert answer.values(b"trailer") == [b"X-Sum"]
        assert answer.body == b"2\r\nok\r\n0\r\nX-Sum: \xe9\r\nx-sum: 2\r\n\r\n"


async def test_trailers_do_not_reach_a_caller_that_did_not_ask() -> None:
    async with gateway(Upstream(TRAILING)) as proxy:
        answer = await proxy.call(b"GET /x")
        assert answer.values(b"trailer") == []
        assert answer.body == b"2\r\nok\r\n0\r\n\r\n"
        answer = await proxy.send(b"GET /x HTTP/1.0\r\nTE: trailers\r\n\r\n")
        assert answer.body == b"ok"


# The cloud's content


@together(
    ("start", "lines", "passed_on"),
    [
        pytest.param(b"GET /x", b"200 OK\r\nContent-Length: 0", [b"Content-Length: 0"], id="empty"),
        pytest.param(b"HEAD /x", b"200 OK\r\nContent-Length: 99", [b"Content-Length: 99"], id="HEAD-length"),
        pytest.param(b"HEAD /x", b"200 OK\r\n" + CHUNKED, [CHUNKED], id="HEAD-chunked"),
        pytest.param(b"HEAD /x", b"200 OK\r\nX: 1", [], id="HEAD-neither"),
        pytest.param(b"HEAD /x", b"404 No\r\nContent-Length: 9", [b"Content-Length: 9"], id="HEAD-error"),
        pytest.param(b"HEAD /x", b"304 No\r\nContent-Length: 9", [b"Content-Length: 9"], id="HEAD-304"),
        pytest.param(b"GET /x", b"204 No\r\nX: 1", [], id="204"),
        pytest.param(b"GET /x", b"204 No\r\nContent-Length: 0", [], id="204-length"),
        pytest.param(b"GET /x", b"304 No\r\nContent-Length: 99", [b"Content-Length: 99"], id="304-length"),
        pytest.param(b"GET /x", b"304 No\r\n" + CHUNKED, [], id="304-chunked"),
        pytest.param(b"GET /x", b"304 No\r\nETag: x", [], id="304"),
        pytest.param(b"DELETE /x", b"205 Reset\r\nContent-Length: 0", [b"Content-Length: 0"], id="205"),
    ],
)
async def test_answers_without_content_keep_their_fields_and_the_connection(
    start: bytes, lines: bytes, passed_on: list[bytes], proxy: Gateway, upstream: Upstream
) -> None:
    upstream.answer = b"HTTP/1.1 " + lines + b"\r\n\r\n"
    reader, writer = await proxy.connect()
    for _ in range(3):
        writer.write(proxy.request(start))
        answer = await read_message(reader, bodyless=True)
        assert framing(answer) == passed_on
        assert answer.values(b"connection") == []
    assert proxy.upstream.connections == 1


@pytest.mark.parametrize("segments", ["one", "many"])
async def test_2000_one_byte_chunks_arrive_whole(segments: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(HEAD + CHUNKED + b"\r\n\r\n")
        for i in range(2000):
            writer.write(b"1\r\n%c\r\n" % (97 + i % 26))
            if segments == "many" and not i % 7:
                await writer.drain()
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with gateway(script) as proxy:
        answer = await proxy.call(b"GET /x")
        assert framing(answer) == [CHUNKED]
        assert answer.content == bytes(97 + i % 26 for i in range(2000))


@pytest.mark.parametrize("status_line", [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK"])
@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
@pytest.mark.parametrize("content", [b"", b"until the end", b"x" * 300_000], ids=["empty", "some", "300-kB"])
async def test_content_that_ends_with_the_connection_is_chunked_for_the_caller(
    status_line: bytes, connection: bytes, content: bytes
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(status_line + b"\r\n" + connection + b"\r\n" + content)
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        for count in (1, 2):
            writer.write(proxy.request(b"GET /x"))
            answer = await read_message(reader)
            assert framing(answer) == [CHUNKED]
            assert answer.content == content
            assert proxy.upstream.connections == count


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate, gzip", b"x-unknown"])
async def test_content_codings_are_never_touched(coding: bytes) -> None:
    content = b"\x1f\x8b\x08not really\x00\xff\r\n0\r\n\r\n"
    raw = HEAD + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(content)) + content
    async with gateway(Upstream(raw)) as proxy:
        answer = await proxy.call(b"GET /x", b"Accept-Encoding: identity")
        assert (answer.values(b"content-encoding"), answer.body) == ([coding], content)


@pytest.mark.parametrize("framed", ["length", "chunked", "close"])
async def test_content_arrives_as_it_comes(framed: str) -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        lines = {"length": b"Content-Length: 12\r\n", "chunked": CHUNKED + b"\r\n", "close": b""}
        writer.write(HEAD + lines[framed] + b"\r\n")
        for data in (b"one.", b"two.", b"tri."):
            await go_on.wait()
            go_on.clear()
            writer.write(b"4\r\n%b\r\n" % data if framed == "chunked" else data)
        if framed == "chunked":
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /x"))
        async with asyncio.timeout(WAIT_S):
            await reader.readuntil(b"\r\n\r\n")
            for data in (b"one.", b"two.", b"tri."):
                go_on.set()
                await reader.readuntil(data)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 10, 100])
async def test_an_answer_cut_into_segments_anywhere_is_the_same_answer(size: int) -> None:
    raw = (
        HEAD + b"X: 1\r\n" + CHUNKED + b"\r\n\r\n3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nT: 1\r\n\r\n"
    )

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        step = size or len(raw)
        for start in range(0, len(raw), step):
            writer.write(raw[start : start + step])
            await writer.drain()
            await asyncio.sleep(0)

    async with gateway(script) as proxy:
        answer = await proxy.call(b"GET /x", b"TE: trailers")
        assert answer.content == b"abc0123456789abcdef"
        assert answer.body.endswith(b"0\r\nT: 1\r\n\r\n")


@pytest.mark.parametrize("size", [1, 2, 5, 10, 100])
async def test_a_request_cut_into_segments_anywhere_is_the_same_request(size: int) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        raw = proxy.request(
            b"POST /x?y", CHUNKED, body=b"3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nT: 1\r\n\r\n"
        )
        raw = raw + b"\r\n" + proxy.request(b"PUT /z", b"Content-Length: 3", body=b"xyz")
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            await asyncio.sleep(0)
        assert [(await read_message(reader)).status for _ in range(2)] == [200, 200]
        first, second = upstream.requests
        assert first.content == b"abc0123456789abcdef"
        assert first.body.endswith(b"0\r\nT: 1\r\n\r\n")
        assert (second.start_line, second.body) == (b"PUT /z HTTP/1.1", b"xyz")


# Back-pressure


def caller_side(proxy: Gateway) -> Any:
    """The proxy's connection to its only caller."""
    return next(iter(proxy.app._listeners.connections()))


async def until_it_stands_still(count: list[int]) -> int:
    """Wait until a counter doesn't move any more."""
    before, looks = -1, 0
    async with asyncio.timeout(4 * WAIT_S):
        while looks < 4:
            looks = looks + 1 if before == count[0] else 0
            before = count[0]
            await asyncio.sleep(0.02)
    return before


@pytest.mark.parametrize("framed", ["length", "chunked"])
async def test_a_slow_reader_stops_the_cloud_and_gets_all_in_the_end(framed: str) -> None:
    total, sent = 24 << 20, [0]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        is_chunked = framed == "chunked"
        writer.write(HEAD + (CHUNKED if is_chunked else b"Content-Length: %d" % total) + b"\r\n\r\n")
        while sent[0] < total:
            piece = b"x" * 65_536
            writer.write(b"10000\r\n%b\r\n" % piece if is_chunked else piece)
            await writer.drain()
            sent[0] += len(piece)
        if is_chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(proxy.request(b"GET /x"))
        while not sent[0]:
            await asyncio.sleep(0.002)
        assert await until_it_stands_still(sent) < total
        assert caller_side(proxy).transport.get_write_buffer_size() <= 512 * 1024
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await read_message(reader)).content) == total


@pytest.mark.parametrize("framed", ["length", "chunked"])
async def test_a_slow_cloud_stops_the_caller_and_gets_all_in_the_end(framed: str) -> None:
    total, sent, go_on = 24 << 20, [0], asyncio.Event()
    received = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await reader.readuntil(b"\r\n\r\n")
        while received < total:
            if framed == "chunked":
                size = int(await reader.readuntil(b"\r\n"), 16)
                received += size
                await reader.readexactly(size + 2)
            else:
                received += len(await reader.read(1 << 20))
        writer.write(OK)
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()

        async def upload() -> None:
            piece = b"x" * 65_536
            while sent[0] < total:
                writer.write(b"10000\r\n%b\r\n" % piece if framed == "chunked" else piece)
                await writer.drain()
                sent[0] += len(piece)
            if framed == "chunked":
                writer.write(b"0\r\n\r\n")

        line = CHUNKED if framed == "chunked" else b"Content-Length: %d" % total
        writer.write(proxy.request(b"POST /x", line))
        uploading = asyncio.create_task(upload())
        while not sent[0]:
            await asyncio.sleep(0.002)
        assert await until_it_stands_still(sent) < total
        async with asyncio.timeout(WAIT_S):
            while not caller_side(proxy).is_reading_held:
                await asyncio.sleep(0.002)
        go_on.set()
        assert (await read_message(reader)).status == 200
        await uploading
        assert received == total


async def test_a_caller_that_waits_for_a_slot_is_not_read_beyond_a_little() -> None:
    sent, go_on = [0], asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            if request.start_line.startswith(b"GET"):
                await go_on.wait()
            writer.write(OK)
            await writer.drain()

    async with gateway(script, contentsquare={"max_concurrency": 1}) as proxy:
        first_reader, first = await proxy.connect()
        first.write(proxy.request(b"GET /x"))
        reader, writer = await proxy.connect()
        total = 16 << 20
        writer.write(proxy.request(b"POST /x", b"Content-Length: %d" % total))

        async def upload() -> None:
            while sent[0] < total:
                writer.write(b"x" * 65_536)
                await writer.drain()
                sent[0] += 65_536

        uploading = asyncio.create_task(upload())
        while not sent[0]:
            await asyncio.sleep(0.002)
        assert await until_it_stands_still(sent) < total
        go_on.set()
        assert (await read_message(first_reader)).status == 200
        assert (await read_message(reader)).status == 200
        await uploading


@pytest.mark.parametrize("size", [100_000, 900_000, 2_800_000, 5_000_000, 20_000_000])
async def test_a_connection_goes_on_after_an_answer_that_came_before_the_upload_was_taken(size: int) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.sleep(0.03)
            writer.write(OK)
            await writer.drain()
            if head.startswith(b"POST"):
                await asyncio.sleep(0.01)
                writer.transport.resume_reading()  # type: ignore[attr-defined]
                await reader.readexactly(size)

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /x", b"Content-Length: %d" % size, body=b"x" * size))
        answer = await read_message(reader)
        assert answer.status == 200
        if answer.values(b"connection"):
            await reader.read()
        else:
            writer.write(proxy.request(b"GET /x"))
            assert (await read_message(reader)).status == 200
        await close(writer)
