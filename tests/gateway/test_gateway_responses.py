"""What the caller gets of an answer, and which answers it never gets (RFC 9110, 9112), on raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from support.cases import together
from support.harness import (
    OK,
    WAIT_S,
    Gateway,
    Message,
    Script,
    Upstream,
    close,
    gateway,
    read_message,
)

from proxy.http1 import parse_date

HEAD = b"HTTP/1.1 200 OK\r\n"
EMPTY = b"Content-Length: 0\r\n"


def answering(*parts: bytes, pause_s: float = 0.005, counts: list[int] | None = None) -> Script:
    """A cloud that answers each request with these parts, one segment each, and keeps the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            if counts is not None:
                counts.append(1)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)

    return script


# Fields


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"Date: Thu, 01 Jan 1970 00:00:00 GMT", b"Server: S/1"], id="date-and-server"),
        pytest.param(
            [b"Set-Cookie: a=1; Path=/", b"X: 1", b"set-cookie: b=2", b"X: 1"], id="repeated-in-order"
        ),
        pytest.param([b'ETag: "a"', b"etag: b", b"ETAG: c"], id="case-of-names"),
        pytest.param([b"X-Empty:", b"X-Blank: ", b"X-Tight:v", b"X-Wide:   v \t "], id="empty-and-blanks"),
        pytest.param(
            [b"X-Latin: caf\xe9", b"X-UTF-8: \xf0\x9f\x90\x8d", b"X-High: \x80\xff"], id="non-ascii"
        ),
        pytest.param([b"X-Long: " + b"j" * 20_000], id="20-kB-value"),
        pytest.param([b"X-%d: %d" % (i, i) for i in range(300)], id="300-fields"),
        pytest.param([b"Content-Encoding: gzip", b"Vary: *", b"Via: 1.1 theirs"], id="codings-and-via"),
        pytest.param([b"WWW-Authenticate: Basic", b"Retry-After: 3", b"Location: /x"], id="others"),
        pytest.param([b"Access-Control-Allow-Origin: *", b'Alt-Svc: h2=":443"'], id="policies"),
    ],
)
async def test_fields_reach_the_caller_byte_for_byte(lines: list[bytes]) -> None:
    head = b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"Date: then", b"Content-Length: 0"))
    async with gateway(Upstream(head + b"\r\n\r\n")) as proxy:
        assert (await proxy.call(b"GET /v1/x")).plain_head == head


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"Connection: keep-alive", b"Keep-Alive: timeout=5"], id="keep-alive"),
        pytest.param([b"Connection: X-Hop", b"X-Hop: 1", b"x-hop: 2"], id="nominated"),
        pytest.param([b"Connection: close, x-HOP", b"X-Hop: 1"], id="nominated-and-closed"),
        pytest.param([b"Proxy-Connection: keep-alive"], id="proxy-connection"),
        pytest.param([b"Upgrade: h2c", b"Connection: upgrade"], id="upgrade"),
        pytest.param([b"Proxy-Authenticate: Basic"], id="proxy-authenticate"),
        pytest.param([b"Trailer: X-Sum"], id="trailer-not-asked-for"),
        pytest.param([b"TE: x"], id="te"),
    ],
)
async def test_what_is_between_the_cloud_and_us_stays_there(lines: list[bytes]) -> None:
    raw = b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"Date: then", b"Content-Length: 2", b"", b"ok"))
    async with gateway(Upstream(raw)) as proxy:
        answer = await proxy.call(b"GET /v1/x")
        assert answer.lines == [b"Date: then", b"Content-Length: 2"]
        assert answer.body == b"ok"


@pytest.mark.parametrize("named", [b"Content-Length", b"content-length, Transfer-Encoding, Date"])
async def test_an_answer_keeps_its_length_even_where_connection_names_it(named: bytes) -> None:
    raw = HEAD + b"Connection: " + named + b"\r\nContent-Length: 2\r\n\r\nok"
    async with gateway(Upstream(raw)) as proxy:
        assert (await proxy.call(b"GET /v1/x")).values(b"content-length") == [b"2"]


@together(
    ("status_line", "passed_on"),
    [
        (b"HTTP/1.1 200 OK", None),
        (b"HTTP/1.1 200 Fine, thanks \xe9\t!", None),
        (b"HTTP/1.1 200 ", None),
        (b"HTTP/1.1 200", b"HTTP/1.1 200 "),
        (b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK"),
        (b"HTTP/1.1 999 Odd", None),
        (b"HTTP/1.1 599 x", None),
        (b"HTTP/1.1 426 Upgrade Required", None),
        (b"HTTP/1.1 302 Found", None),
        (b"HTTP/1.1 429 Too Many Requests", None),
        (b"HTTP/1.1 503 Service Unavailable", None),
        (b"HTTP/1.1 403 Forbidden", None),
        (b"HTTP/1.1 404 Not Found", None),
        (b"HTTP/1.1 407 Proxy Authentication Required", None),
        (b"HTTP/1.1 421 Misdirected Request", None),
        (b"HTTP/1.1 205 Reset Content", None),
        (b"HTTP/1.1 206 Partial Content", None),
    ],
)
async def test_status_and_reason_reach_the_caller_as_they_are(
    status_line: bytes, passed_on: bytes | None, proxy: Gateway, upstream: Upstream
) -> None:
    upstream.answer = status_line + b"\r\nContent-Length: 0\r\n\r\n"
    assert (await proxy.call(b"GET /v1/x")).start_line == (passed_on or status_line)


# Date (RFC 9110, section 6.6.1)


@together(
    "status_line",
    [
        b"200 OK",
        b"204 No",
        b"206 Part",
        b"304 Same",
        b"302 Found",
        b"400 Bad",
        b"404 No",
        b"500 Oops",
        b"503 Busy",
    ],
)
@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n"])
@together("method", [b"GET", b"HEAD"])
async def test_an_answer_without_a_date_gets_the_time_of_its_receipt(
    method: bytes, connection: bytes, status_line: bytes, proxy: Gateway, upstream: Upstream
) -> None:
    head = b"HTTP/1.1 %b\r\n%bX-First: 1\r\n" % (status_line, connection)
    upstream.answer = head + b"Content-Length: 0\r\n\r\n"
    before = int(time.time())
    (value,) = (await proxy.call(method + b" /v1/x")).values(b"date")
    told = parse_date(value)
    assert told is not None
    assert before <= told <= time.time()


@together("dates", [[b"Tue, 24 Nov 2020 10:00:00 GMT"], [b""], [b"never"], [b"1", b"2"]])
@pytest.mark.parametrize("spelling", [b"Date", b"date", b"DATE"])
async def test_a_date_of_the_clouds_is_never_changed(
    spelling: bytes, dates: list[bytes], proxy: Gateway, upstream: Upstream
) -> None:
    lines = b"".join(b"%b: %b\r\n" % (spelling, value) for value in dates)
    upstream.answer = HEAD + lines + EMPTY + b"\r\n"
    answer = await proxy.call(b"GET /v1/x")
    assert [line for line in answer.lines if line.lower().startswith(b"date")] == lines.splitlines()


async def test_a_date_that_is_dropped_with_the_clouds_connection_is_replaced() -> None:
    raw = HEAD + b"Connection: Date\r\nDate: then\r\n" + EMPTY + b"\r\n"
    async with gateway(Upstream(raw)) as proxy:
        (value,) = (await proxy.call(b"GET /v1/x")).values(b"date")
        assert parse_date(value) is not None


async def test_no_interim_answer_gets_a_date() -> None:
    async with gateway(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        assert (await read_message(reader)).lines == []
        assert len((await read_message(reader)).values(b"date")) == 1


async def test_redirects_are_the_callers_to_follow() -> None:
    upstream = Upstream(b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    async with gateway(upstream) as proxy:
        assert (await proxy.call(b"GET /v1/x")).values(b"location") == [b"http://127.0.0.1:1/"]
        assert len(upstream.requests) == 1


async def test_cookies_of_one_caller_are_not_sent_for_another() -> None:
    upstream = Upstream(HEAD + b"Set-Cookie: sid=1\r\nContent-Length: 0\r\n\r\n")
    async with gateway(upstream) as proxy:
        await proxy.call(b"GET /v1/x")
        await proxy.call(b"GET /v1/x")
        assert upstream.requests[1].values(b"cookie") == []


# Interim answers


async def test_interim_answers_come_through_in_order_and_without_hop_by_hop_fields() -> None:
    interim = (
        b"HTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"
        b"HTTP/1.1 199 Odd\r\nX: 1\r\nContent-Length: 5\r\nX: 2\r\n\r\n"
    )
    final = b"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 0"
    async with gateway(answering(interim, final + b"\r\n\r\n")) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        got = [(await read_message(reader)).plain_head for _ in range(4)]
        assert got == [
            b"HTTP/1.1 102 Processing",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload",
            b"HTTP/1.1 199 Odd\r\nX: 1\r\nX: 2",
            final,
        ]


async def test_an_interim_answer_arrives_before_the_final_one_is_there() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await go_on.wait()
        writer.write(OK)
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        assert (await read_message(reader)).status == 103
        go_on.set()
        assert (await read_message(reader)).status == 200


async def test_an_http_1_0_caller_gets_no_interim_answer() -> None:
    async with gateway(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)) as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"GET /v1/x HTTP/1.0\r\n\r\n")
        assert (await read_message(reader)).status == 200


async def test_thirty_interim_answers_are_no_attack() -> None:
    async with gateway(answering(b"HTTP/1.1 102 P\r\n\r\n" * 30 + OK)) as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200


# Expect


@pytest.mark.parametrize("status", [417, 413, 200, 403])
async def test_the_clouds_verdict_on_expect_is_the_first_thing_that_the_caller_hears(status: int) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nExpect: 100-continue\r\n" in head
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\nwhy" % status)
        await writer.drain()
        await reader.read()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 5", b"Expect: 100-continue"))
        answer = await read_message(reader)
        assert (answer.status, answer.body) == (status, b"why")
        assert answer.values(b"connection") == [b"close"]
        assert await reader.read() == b""


async def test_no_100_is_said_that_the_cloud_did_not_say() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 5", b"Expect: 100-continue"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await reader.readexactly(1)
        writer.write(b"hello")
        assert (await read_message(reader)).status == 200


@pytest.mark.parametrize("line", [b"Expect: 200-ok", b"expect: 100-Continue"])
async def test_any_expectation_is_the_clouds_to_judge(line: bytes) -> None:
    upstream = Upstream(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
    async with gateway(upstream) as proxy:
        assert (await proxy.call(b"GET /v1/x", line)).status == 417
        assert line in upstream.requests[0].lines


async def test_an_http_1_0_caller_can_not_expect() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        raw = b"POST /v1/x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"
        assert (await proxy.send(raw)).status == 200
        assert upstream.requests[0].values(b"expect") == []


async def test_our_own_refusal_comes_before_the_body_too() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /nobody/v1/x", b"Content-Length: 5", b"Expect: 100-continue"))
        answer = await read_message(reader)
        assert (answer.status, answer.values(b"connection")) == (404, [b"close"])
        assert await reader.read() == b""


# Early answers


@pytest.mark.parametrize("ending", ["stays", "closes", "resets"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("is_chunked_upload", [False, True], ids=["sized-upload", "chunked-upload"])
async def test_a_413_reaches_the_caller_in_the_middle_of_a_large_upload(
    ending: str, framing: str, is_chunked_upload: bool
) -> None:
    answers = {
        "length": b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig",
        "chunked": b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbig\r\n0\r\n\r\n",
    }

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[framing])
        await writer.drain()
        if ending == "stays":
            await reader.read()
        elif ending == "resets":
            writer.transport.abort()

    async with gateway(script) as proxy:
        for _ in range(5):
            reader, writer = await proxy.connect()
            framing_line = b"Transfer-Encoding: chunked" if is_chunked_upload else b"Content-Length: 60000000"
            writer.write(proxy.request(b"POST /v1/exports", framing_line))

            async def upload(writer: asyncio.StreamWriter = writer) -> None:
                piece = b"f000\r\n" + b"x" * 0xF000 + b"\r\n" if is_chunked_upload else b"x" * 60_000
                for _ in range(300):
                    writer.write(piece)
                    await writer.drain()

            sending = asyncio.create_task(upload())
            answer = await read_message(reader)
            assert (answer.status, answer.content) == (413, b"big")
            assert answer.values(b"connection") == [b"close"]
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await close(writer)


async def test_an_early_answer_is_streamed_while_the_upload_goes_on() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            data = await reader.readexactly(4)
            writer.write(b"4\r\n" + data + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 12"))
        await reader.readuntil(b"\r\n\r\n")
        for data in (b"abcd", b"efgh", b"ijkl"):
            writer.write(data)
            assert await reader.readexactly(9) == b"4\r\n" + data + b"\r\n"
        assert await reader.read() == b"0\r\n\r\n"


# Answers that can't be trusted


INVALID = [
    pytest.param(
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", "Content-Length", id="lengths-differ"
    ),
    pytest.param(
        HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", "Content-Length", id="lengths-agree"
    ),
    pytest.param(HEAD + b"Content-Length: 2, 3\r\n\r\nok", "Content-Length", id="length-list"),
    pytest.param(HEAD + b"Content-Length: +2\r\n\r\nok", "Content-Length", id="length-signed"),
    pytest.param(HEAD + b"Content-Length: -2\r\n\r\nok", "Content-Length", id="length-negative"),
    pytest.param(HEAD + b"Content-Length: 0x2\r\n\r\nok", "Content-Length", id="length-hex"),
    pytest.param(HEAD + b"Content-Length:\r\n\r\nok", "Content-Length", id="length-empty"),
    pytest.param(
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\nok", "Content-Length", id="length-huge"
    ),
    pytest.param(
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "together", id="CL-and-TE"
    ),
    pytest.param(HEAD + b"Transfer-Encoding: gzip\r\n\r\nok", "Transfer-Encoding", id="TE-gzip"),
    pytest.param(
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding", id="TE-list"
    ),
    pytest.param(HEAD + b"Transfer-Encoding: identity\r\n\r\nok", "Transfer-Encoding", id="TE-identity"),
    pytest.param(HEAD + b"Transfer-Encoding:\r\n\r\nok", "Transfer-Encoding", id="TE-empty"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding",
        id="TE-twice",
    ),
    pytest.param(
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding", id="TE-similar"
    ),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.0", id="TE-in-1.0"
    ),
    pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "bare CR or LF", id="bare-LF"),
    pytest.param(HEAD + b"Content-Length: 2\n\r\nok", "bare CR or LF", id="bare-LF-in-the-middle"),
    pytest.param(HEAD + b"Content-Length: 2\r\n\nok", "bare CR or LF", id="bare-LF-at-the-end"),
    pytest.param(HEAD + b"X: a\rb\r\n" + EMPTY + b"\r\n", "bare CR or LF", id="bare-CR"),
    pytest.param(HEAD + b"X: a\r\n b\r\n" + EMPTY + b"\r\n", "folded", id="obs-fold"),
    pytest.param(HEAD + b"X: a\r\n\tb: c\r\n" + EMPTY + b"\r\n", "folded", id="obs-fold-with-colon"),
    pytest.param(HEAD + b" X: a\r\n" + EMPTY + b"\r\n", "folded", id="fold-at-once"),
    pytest.param(HEAD + b"X : a\r\n" + EMPTY + b"\r\n", "not a token", id="space-before-colon"),
    pytest.param(HEAD + b"X\r\n" + EMPTY + b"\r\n", "without a colon", id="no-colon"),
    pytest.param(HEAD + b": a\r\n" + EMPTY + b"\r\n", "not a token", id="no-name"),
    pytest.param(HEAD + b"X: a\x00b\r\n" + EMPTY + b"\r\n", "control character", id="NUL-in-value"),
    pytest.param(HEAD + b"X: a\x7fb\r\n" + EMPTY + b"\r\n", "control character", id="DEL-in-value"),
    pytest.param(HEAD + b"X: a\x1bb\r\n" + EMPTY + b"\r\n", "control character", id="ESC-in-value"),
    pytest.param(HEAD + b"X\x00: a\r\n" + EMPTY + b"\r\n", "control character", id="NUL-in-name"),
    pytest.param(HEAD + b"X\xe9: a\r\n" + EMPTY + b"\r\n", "not a token", id="non-ASCII-name"),
    pytest.param(b"HTTP/1.1 200 O\x00K\r\n" + EMPTY + b"\r\n", "control character", id="NUL-in-reason"),
    pytest.param(b"HTTP/1.1 20 OK\r\n" + EMPTY + b"\r\n", "status line", id="status-of-two-digits"),
    pytest.param(b"HTTP/1.1 2000 OK\r\n" + EMPTY + b"\r\n", "status line", id="status-of-four-digits"),
    pytest.param(b"HTTP/1.1 099 OK\r\n" + EMPTY + b"\r\n", "status line", id="status-below-100"),
    pytest.param(b"HTTP/1.1  200 OK\r\n" + EMPTY + b"\r\n", "status line", id="two-spaces"),
    pytest.param(b"HTTP/2 200\r\n" + EMPTY + b"\r\n", "status line", id="HTTP/2"),
    pytest.param(b"http/1.1 200 OK\r\n" + EMPTY + b"\r\n", "status line", id="lower-case"),
    pytest.param(b"ICY 200 OK\r\n" + EMPTY + b"\r\n", "status line", id="ICY"),
    pytest.param(b"\r\nHTTP/1.1 200 OK\r\n" + EMPTY + b"\r\n", "status line", id="empty-line-first"),
    pytest.param(b"<html>HTTP/0.9</html>", "status line", id="HTTP/0.9"),
    pytest.param(b"220 mail.example ESMTP\r\n", "status line", id="SMTP"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", "status line", id="TLS-alert"),
    pytest.param(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n", "131072 bytes", id="200-kB-head"),
    pytest.param(HEAD + b"X: 1\r\n" * 600 + EMPTY + b"\r\n", "512 fields", id="600-fields"),
    pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "switch of protocols", id="101"),
    pytest.param(b"HTTP/1.1 102 P\r\n\r\n" * 100, "interim", id="endless-1xx"),
    pytest.param(OK + b"x", "after the end", id="one-byte-after-the-end"),
    pytest.param(OK + OK, "after the end", id="two-answers"),
    pytest.param(b"HTTP/1.1 204 No\r\n\r\nx", "after the end", id="204-with-content"),
    pytest.param(b"HTTP/1.1 304 No\r\nContent-Length: 1\r\n\r\nx", "after the end", id="304-with-content"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", "after the end", id="after-last-chunk"
    ),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", "chunk size", id="chunk-size"),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\nok", "bare CR or LF", id="chunk-bare-LF"),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n 2\r\nok\r\n", "chunk size", id="chunk-space"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nokk\r\n", "its size says", id="chunk-too-long"
    ),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", "chunk size", id="chunk-negative"),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX : 1\r\n\r\n", "trailer", id="trailer-space"
    ),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n", "trailer", id="trailer-CL"
    ),
    pytest.param(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"\r\n", "chunk size", id="chunk-overflow"
    ),
]


@together(("raw", "reason"), INVALID)
async def test_an_invalid_answer_is_a_502_that_names_the_reason_and_ends_its_connection(
    raw: bytes, reason: str, proxy: Gateway, upstream: Upstream
) -> None:
    reader, writer = await proxy.connect()
    writer.write(proxy.request(b"GET /v1/x"))
    assert (await read_message(reader)).body == b"ok"
    connections, upstream.answer = proxy.upstream.connections, raw
    writer.write(proxy.request(b"GET /v1/x"))
    while (got := await read_message(reader)).status < 200:
        pass
    assert (got.status, got.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
    assert got.values(b"proxy-status") == [b"csq-proxy; error=http_protocol_error"]
    assert reason.encode() in got.body
    assert b"\\x" not in got.body
    assert proxy.upstream.connections == connections
    upstream.answer = OK
    writer.write(proxy.request(b"GET /v1/x"))
    assert (await read_message(reader)).body == b"ok"
    assert proxy.upstream.connections == connections + 1


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([HEAD + b"Content-Length: 4\r\n\r\nok", b"okX"], id="byte-after-the-end"),
        pytest.param([HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"zz\r\n"], id="chunk-size"),
        pytest.param([HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok", b"zz\r\n"], id="chunk-end"),
        pytest.param([HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"3\nabc"], id="bare-LF"),
        pytest.param(
            [HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n\r\nHTTP/1.1 200 OK\r\n"],
            id="second-answer",
        ),
        pytest.param(
            [HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", b"A: b\x00\r\n\r\n"],
            id="trailer-NUL",
        ),
        pytest.param(
            [HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", b"A: " + b"b" * 17_000],
            id="trailer-long",
        ),
        pytest.param(
            [HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"2;" + b"e" * 9000],
            id="extension-long",
        ),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_that_turns_invalid_after_its_head_aborts_the_caller(
    parts: list[bytes], version: bytes
) -> None:
    head_is_read = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(parts[0])
        await head_is_read.wait()
        writer.write(parts[1])
        await reader.read()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"GET /v1/x HTTP/%b\r\nHost: %b\r\n\r\n" % (version, proxy.host))
        async with asyncio.timeout(WAIT_S):
            await reader.readuntil(b"\r\n\r\n")
            head_is_read.set()
            with pytest.raises(ConnectionError):
                await reader.read()


async def test_bytes_that_come_after_the_end_never_reach_the_next_caller() -> None:
    answered, closed = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(OK)
        await answered.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""  # and no further request
        closed.set()

    async with gateway(script) as proxy:
        for round_ in range(1, 4):
            answered.clear()
            closed.clear()
            assert (await proxy.call(b"GET /v1/x")).body == b"ok"
            answered.set()
            await asyncio.wait_for(closed.wait(), WAIT_S)
            assert proxy.upstream.connections == round_


# Connections to the cloud


@pytest.mark.parametrize(
    ("raw", "is_reused"),
    [
        (OK, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", True),
    ],
)
async def test_the_clouds_connection_is_used_again_where_it_may_be(raw: bytes, is_reused: bool) -> None:
    async with gateway(Upstream(raw)) as proxy:
        for _ in range(3):
            answer = await proxy.call(b"GET /v1/x")
            assert (answer.body, answer.values(b"connection")) == (b"ok", [])
        assert proxy.upstream.connections == (1 if is_reused else 3)


def an_upstream_with_a_408() -> Upstream:
    """Its second answer is the one that a cloud sends to an idle connection."""

    def answer(_: Message) -> bytes:
        late = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        return late if len(upstream.requests) == 2 else OK

    upstream = Upstream(answer)
    return upstream


async def test_a_408_for_an_idle_connection_is_not_taken_for_the_answer() -> None:
    upstream = an_upstream_with_a_408()
    async with gateway(upstream) as proxy:
        assert [(await proxy.call(b"GET /v1/x")).status for _ in range(2)] == [200, 200]
        assert proxy.upstream.connections == 2


async def test_a_408_to_what_changes_data_is_passed_on() -> None:
    upstream = an_upstream_with_a_408()
    async with gateway(upstream) as proxy:
        assert [(await proxy.call(b"POST /v1/exports")).status for _ in range(2)] == [200, 408]
        assert len(upstream.requests) == 2


async def test_a_408_to_more_content_than_is_held_is_passed_on() -> None:
    upstream = an_upstream_with_a_408()
    async with gateway(upstream) as proxy:
        content = bytes(100_000)
        calls = [await proxy.call(b"GET /v1/x", b"Content-Length: 100000", body=content) for _ in range(2)]
        assert [call.status for call in calls] == [200, 408]


async def test_a_cloud_that_closes_at_once_is_a_502_not_a_wait() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with gateway(script) as proxy:
        for method in (b"GET", b"POST"):
            answer = await proxy.call(method + b" /v1/x")
            assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")


async def test_a_204_to_head_says_nothing_of_framing() -> None:
    async with gateway(Upstream(b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n")) as proxy:
        answer = await proxy.call(b"HEAD /v1/x")
        assert answer.status == 204
        assert not answer.values(b"transfer-encoding")  # RFC 9112, section 6.1
