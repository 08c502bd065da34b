"""Whatever the fields, the target, the content and its pieces: it arrives equal, in both directions."""

from __future__ import annotations

import asyncio
import re
import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.harness import Gateway, Message, Upstream, gateway, read_message

NOT_JUST_PASSED_ON = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"trailer"),
    *(b"http2-settings", b"host", b"content-length", b"expect", b"authorization", b"proxy-authorization"),
    *(b"x-api-key", b"x-csq-project", b"x-csq-api", b"origin", b"sec-fetch-site", b"via"),
    *(b"proxy-authenticate", b"proxy-authentication-info"),
}
TOKEN = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
VISIBLE = bytes({*range(0x21, 0x7F), *range(0x80, 0x100)})
WITHIN = VISIBLE + b" \t"


def of(alphabet: bytes, min_size: int, max_size: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), min_size=min_size, max_size=max_size).map(bytes)


REFUSED = re.compile(rb"\.|%2e|(?:[\xc0\xc1\xe0\xf0\xf8\xfc]|%(?:25)*(?:c[01]|[ef]0|f[8c]))|%u")
"""A dot segment, or a code that no client makes: overlong UTF-8, or ``%u``."""


names = st.one_of(
    of(TOKEN, 1, 20),
    st.sampled_from((b"Accept", b"accept", b"Prefer", b"Set-Cookie", b"ETag", b"X-A", b"x-a")),
).filter(lambda name: name.lower() not in NOT_JUST_PASSED_ON)
lines = st.builds(
    lambda name, before, value: name + b":" + before + value,
    names,
    st.sampled_from((b"", b" ", b"\t", b"  ")),
    of(WITHIN, 0, 40),
)
multisets = st.lists(lines, max_size=30)


@given(fields=multisets)
async def test_any_fields_reach_the_cloud_equal(
    fields: list[bytes], proxy: Gateway, upstream: Upstream
) -> None:
    upstream.requests.clear()
    assert (await proxy.call(b"GET /v1/x", *fields)).status == 200
    assert upstream.requests[0].lines[1:-2] == fields


@given(
    fields=multisets,
    status=st.integers(200, 999).filter(lambda n: n not in (204, 304, 401)),
    reason=of(WITHIN, 0, 30),
)
async def test_any_fields_and_status_reach_the_caller_equal(
    fields: list[bytes], status: int, reason: bytes, proxy: Gateway, upstream: Upstream
) -> None:
    head = b"\r\n".join((b"HTTP/1.1 %d %b" % (status, reason), *fields, b"Date: then", b"Content-Length: 2"))
    upstream.answer = head + b"\r\n\r\nok"
    answer = await proxy.call(b"GET /v1/x")
    assert (answer.plain_head, answer.body) == (head, b"ok")


@given(tails=st.lists(of(VISIBLE, 0, 60), min_size=1, max_size=5))
@example(tails=[b"//", b"%2F?", b"?#?", b"[]{}|\\^", b"\xff%00"])
async def test_any_target_reaches_the_cloud_equal_or_is_refused(
    tails: list[bytes], proxy: Gateway, upstream: Upstream
) -> None:
    for tail in tails:
        target = b"/v1/" + tail
        upstream.requests.clear()
        for sent in (target, b"/shop" + target):
            answer = await proxy.call(b"GET " + sent)
            if answer.status != 200:
                assert answer.error_code == "PROXY_BAD_TARGET"
                assert REFUSED.search(target.lower())
        assert {request.start_line for request in upstream.requests} <= {b"GET %b HTTP/1.1" % target}


@given(target=of(VISIBLE, 0, 30), method=st.sampled_from((b"GET", b"POST", b"OPTIONS", b"X-Y")))
@example(target=b"@other.example/", method=b"GET")
@example(target=b"http://other.example/", method=b"GET")
async def test_no_target_reaches_another_host_than_the_cloud(
    target: bytes, method: bytes, proxy: Gateway, upstream: Upstream
) -> None:
    assume(target)
    upstream.requests.clear()
    answer = await proxy.send(proxy.request(method + b" " + target))
    assert answer.status in (200, 204, 400, 404)
    for request in upstream.requests:
        assert request.start_line.split(b" ")[1].startswith(b"/")
        assert request.values(b"host") == [b"127.0.0.1:%d" % proxy.upstream.port]


pieces = st.lists(st.binary(min_size=1, max_size=300), max_size=12)
segments = st.lists(st.integers(1, 400), max_size=12)


def framed(content: list[bytes], *, is_chunked: bool) -> tuple[bytes, bytes]:
    """The framing field, and the content in that framing, a chunk for each piece."""
    if is_chunked:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in content)
        return b"Transfer-Encoding: chunked", chunks + b"0\r\n\r\n"
    joined = b"".join(content)
    return b"Content-Length: %d" % len(joined), joined


async def send_in(sizes: list[int], raw: bytes, writer: asyncio.StreamWriter) -> None:
    """Send ``raw`` in segments of these sizes, the rest in one."""
    start = 0
    for size in sizes:
        writer.write(raw[start : start + size])
        await asyncio.sleep(0)
        start += size
    writer.write(raw[start:])


@given(requests=st.lists(st.tuples(pieces, st.booleans()), min_size=1, max_size=4), sizes=segments)
async def test_any_content_in_any_chunks_and_segments_reaches_the_cloud_equal(
    requests: list[tuple[list[bytes], bool]], sizes: list[int], proxy: Gateway, upstream: Upstream
) -> None:
    upstream.requests.clear()
    reader, writer = await proxy.connect()
    raw = b""
    for content, is_chunked in requests:
        line, body = framed(content, is_chunked=is_chunked)
        raw += proxy.request(b"POST /v1/x", line, body=body)
    await send_in(sizes, raw, writer)
    for _ in requests:
        assert (await read_message(reader)).status == 200
    for got, (content, is_chunked) in zip(upstream.requests, requests, strict=True):
        assert got.content == b"".join(content)
        assert bool(got.values(b"transfer-encoding")) is is_chunked
    writer.close()


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@given(pieces, st.sampled_from(("length", "chunked", "close")), segments)
async def test_any_content_in_any_chunks_and_segments_reaches_the_caller_equal(
    version: bytes, content: list[bytes], framing: str, sizes: list[int]
) -> None:
    line, body = framed(content, is_chunked=framing == "chunked")
    raw = b"HTTP/1.1 200 OK\r\n" + (b"X: 1" if framing == "close" else line) + b"\r\n\r\n" + body

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            await send_in(sizes, raw, writer)
            await writer.drain()
            if framing == "close":
                return

    async with gateway(script) as proxy:
        for _ in range(2):
            answer = await proxy.send(b"GET /v1/x HTTP/%b\r\nHost: %b\r\n\r\n" % (version, proxy.host))
            assert answer.content == b"".join(content)
            assert answer.values(b"content-length") == ([line.split()[1]] if framing == "length" else [])


@given(
    kinds=st.lists(st.sampled_from(("GET", "HEAD", "POST", "bad")), min_size=1, max_size=12), sizes=segments
)
async def test_any_pipeline_is_answered_in_order_and_up_to_its_first_fault(
    kinds: list[str], sizes: list[int], proxy: Gateway, upstream: Upstream
) -> None:
    def answer(request: Message) -> bytes:
        method, target, _ = request.start_line.split(b" ")
        head = b"HTTP/1.1 200 OK\r\nX-Target: %b\r\nContent-Length: 2\r\n\r\n" % target
        return head if method == b"HEAD" else head + b"ok"

    upstream.answer = answer
    reader, writer = await proxy.connect()
    raw = b""
    for number, kind in enumerate(kinds):
        if kind == "bad":
            raw += b"bad\r\n\r\n"
        elif kind == "POST":
            raw += proxy.request(b"POST /%d" % number, b"Content-Length: 3", body=b"xyz")
        else:
            raw += proxy.request(b"%b /%d" % (kind.encode(), number))
    await send_in(sizes, raw, writer)
    for number, kind in enumerate(kinds):
        got = await read_message(reader, bodyless=kind == "HEAD")
        if kind == "bad":
            assert got.status == 400
            assert await reader.read() == b""
            break
        assert got.values(b"x-target") == [b"/%d" % number]
    writer.close()
