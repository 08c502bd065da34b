"""What the cloud gets of a request, and which requests it never gets (RFC 9110, 9112), on raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest
from support.cases import together
from support.cuts import reset
from support.harness import (
    KEPT,
    OK,
    WAIT_S,
    Gateway,
    Message,
    Script,
    Upstream,
    close,
    gateway,
    next_request,
    read_message,
    until,
)
from support.windows import reset_behind_unread_bytes

from proxy.server import connection as server
from proxy.server import departure, parser
from proxy.server.request import KEEP_ALIVE_S
from proxy.upstream.loop import VIA_NAME

OURS = (b"via", b"authorization")


def passed_on(request: Message) -> list[bytes]:
    """The field lines that the cloud got, less those that are ours to set."""
    assert request.lines[0].startswith(b"Host: ")
    return [line for line in request.lines[1:] if line.partition(b":")[0].lower() not in OURS]


async def closing_answer(proxy: Gateway, raw: bytes) -> Message:
    """The answer to raw bytes, after which the proxy closes by itself; the caller only listens."""
    reader, writer = await proxy.connect()
    writer.write(raw)
    answer = await read_message(reader)
    assert answer.values(b"connection") == [b"close"]
    assert await reader.read() == b""
    await close(writer)
    return answer


# Fields


@together(
    "lines",
    [
        pytest.param([b"X-A: 1", b"x-a: 2", b"X-B: 3", b"X-A: 1"], id="repeated-in-order"),
        pytest.param([b"x-lower: a", b"X-UPPER: b", b"eTaG: c"], id="case-of-names"),
        pytest.param([b"X-Empty:", b"X-Blank: ", b"X-Tight:v", b"X-Wide:   v \t "], id="empty-and-blanks"),
        pytest.param(
            [b"X-Latin: caf\xe9", b"X-UTF-8: \xf0\x9f\x90\x8d", b"X-High: \x80\xff"], id="non-ascii"
        ),
        pytest.param([b"Accept: a", b"Accept: b", b"Prefer: a=1", b"Prefer: b=2"], id="lists-stay-apart"),
        pytest.param([b"Content-Encoding: gzip", b"Accept-Encoding: br;q=0"], id="codings"),
        pytest.param([b"User-Agent: me", b"Accept: */*", b"Content-Type: a/b"], id="negotiation"),
        pytest.param([b"X-Long: " + b"j" * 32_768], id="32-KiB-value"),
        pytest.param([b"X-%d: %d" % (i, i) for i in range(300)], id="300-fields"),
        pytest.param([b"Cache-Control: no-cache", b'If-None-Match: W/"x"', b"Range: bytes=0-"], id="others"),
        pytest.param([b"!#$%&'*+-.^_`|~09aZ: v"], id="every-token-character"),
        pytest.param(
            [b"X-Forwarded-For: 1.2.3.4", b"Forwarded: for=x", b"X-Real-IP: 1.2.3.4"], id="forwarded"
        ),
    ],
)
async def test_fields_reach_the_cloud_byte_for_byte(
    lines: list[bytes], proxy: Gateway, upstream: Upstream
) -> None:
    upstream.requests.clear()
    await proxy.call(b"GET /v1/x", *lines)
    assert passed_on(upstream.requests[0]) == lines


async def test_nothing_is_invented_but_host_via_and_the_token() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await proxy.call(b"POST /v1/x")
        assert upstream.requests[0].lines == [
            b"Host: 127.0.0.1:%d" % proxy.upstream.port,
            b"Via: 1.1 " + VIA_NAME,
            b"Authorization: Bearer token-1",
        ]


@together(
    "lines",
    [
        pytest.param([b"Connection: keep-alive"], id="connection"),
        pytest.param([b"Keep-Alive: timeout=5"], id="keep-alive"),
        pytest.param([b"Proxy-Connection: keep-alive"], id="proxy-connection"),
        pytest.param([b"Connection: X-Hop", b"X-Hop: 1", b"x-hop: 2"], id="nominated"),
        pytest.param([b"Connection: close, \t x-HOP ,,", b"X-Hop: 1"], id="nominated-in-a-list"),
        pytest.param([b"Connection: a", b"Connection: x-hop", b"X-Hop: 1", b"A: 2"], id="nominated-twice"),
        pytest.param([b"X-Hop: 1", b"Connection: x-hop"], id="nominated-after"),
        pytest.param([b"Connection: Upgrade", b"Upgrade: websocket"], id="upgrade"),
        pytest.param(
            [b"Upgrade: h2c", b"HTTP2-Settings: x", b"Connection: upgrade, http2-settings"], id="h2c"
        ),
        pytest.param([b"TE: gzip"], id="te-other-than-trailers"),
        pytest.param([b"Proxy-Authorization: Basic eA=="], id="proxy-authorization"),
        pytest.param([b"X-CSQ-Project: shop"], id="project"),
        pytest.param([b"X-CSQ-Api: metrics"], id="api"),
        pytest.param([b"X-Original-URL: /v1/exports", b"x-rewrite-url: /a"], id="another-target"),
        pytest.param([b"X-Original-URI: /a", b"X-Forwarded-Uri: /a"], id="nginx-and-traefik"),
        pytest.param([b"x-envoy-original-path: /a", b"X_Original_URL: /a"], id="envoy-and-cgi"),
        pytest.param([b"Transfer_Encoding: chunked", b"Content.Length: 5"], id="framing-of-cgi"),
    ],
)
async def test_what_is_between_the_caller_and_us_stays_there(
    lines: list[bytes], proxy: Gateway, upstream: Upstream
) -> None:
    upstream.requests.clear()
    answer = await proxy.call(b"GET /v1/x", *lines, b"X-End: yes")
    assert answer.status == 200
    assert passed_on(upstream.requests[0]) == [b"X-End: yes"]


@pytest.mark.parametrize(
    "named", [b"Authorization", b"Host", b"Content-Length", b"Transfer-Encoding", b"Via", b"close, host, te"]
)
async def test_naming_one_of_our_fields_in_connection_breaks_nothing(named: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        lengths = b"Content_Length: 9", b"Content-Length: 2"
        await proxy.call(b"POST /v1/x", b"Connection: " + named, *lengths, body=b"{}")
        request = upstream.requests[0]
        assert not request.values(b"content_length")
        assert request.values(b"host") == [b"127.0.0.1:%d" % proxy.upstream.port]
        assert request.values(b"authorization") == [b"Bearer token-1"]
        assert request.values(b"content-length") == [b"2"]
        assert request.values(b"via") == [b"1.1 " + VIA_NAME]
        assert request.body == b"{}"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"Authorization: Bearer mine"], id="bearer"),
        pytest.param([b"authorization: Basic eDp5", b"AUTHORIZATION: x"], id="several"),
        pytest.param([b"Authorization:"], id="empty"),
        pytest.param([b"X-API-Key: k"], id="key"),
    ],
)
async def test_the_callers_credentials_never_go_on(lines: list[bytes]) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await proxy.call(b"GET /v1/x", *lines)
        assert upstream.requests[0].values(b"authorization") == [b"Bearer token-1"]
        assert passed_on(upstream.requests[0]) == []


async def test_via_is_appended_to_the_callers() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await proxy.call(b"GET /v1/x", b"Via: 1.0 a, 1.1 b", b"via: 2 c")
        assert upstream.requests[0].values(b"via") == [b"1.0 a, 1.1 b", b"2 c", b"1.1 " + VIA_NAME]
        await proxy.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
        assert upstream.requests[1].values(b"via") == [b"1.0 " + VIA_NAME]


@pytest.mark.parametrize(
    "te", [b"TE: trailers", b"te: gzip;q=0.5, Trailers", b"TE: trailers\r\nConnection: TE"]
)
async def test_te_trailers_is_said_again_by_us(te: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await proxy.call(b"GET /v1/x", te)
        assert passed_on(upstream.requests[0]) == [b"TE: trailers", b"Connection: TE"]


# Targets


@together(
    "target",
    [
        pytest.param(b"/v1/x?a=%c3%a9&b=%C3%A9", id="case-of-escapes"),
        pytest.param(b"/v1/%7e%41%61~Aa", id="unreserved-escaped"),
        pytest.param(b"/v1/x?", id="lone-question-mark"),
        pytest.param(b"/v1/x??a=?", id="more-question-marks"),
        pytest.param(b"/v1/x?&&=&a&a=&=b", id="odd-pairs"),
        pytest.param(b"//v1//x//", id="empty-segments"),
        pytest.param(b"/v1/x;p=1;q/y;", id="path-parameters"),
        pytest.param(b'/v1/[a]{b}|c^`"<>\\', id="unwise"),
        pytest.param(b"/v1/x?[]{}|^`\"<>\\'", id="unwise-in-query"),
        pytest.param(b"/v1/a%00b", id="escaped-NUL"),
        pytest.param(b"/v1/a%2fb%2Fc%5cd", id="escaped-slashes"),
        pytest.param(b"/v1/a%25b%2525", id="escaped-percent"),
        pytest.param(b"/v1/a%zz%1%", id="broken-escapes"),
        pytest.param(b"/v1/a+b%20c%2B?d+e", id="plus"),
        pytest.param(b"/v1/caf\xe9\xff", id="raw-bytes"),
        pytest.param(b"/v1/a#b", id="fragment-like"),
        pytest.param(b"/v1/a:b@c!$&'()*,=", id="sub-delimiters"),
        pytest.param(b"/v1/a/./b/../c", id="dots-that-stay-within"),
        pytest.param(b"/v1/...", id="three-dots"),
        pytest.param(b"/v1/.hidden/a..b", id="dots-in-names"),
        pytest.param(b"/v1/x?/../../%2e%2e", id="dots-in-query"),
        pytest.param(b"/v1/x?url=http://other.example/%2F", id="url-in-query"),
        pytest.param(b"/v1/" + b"a" * 32_768, id="32-KiB-path"),
        pytest.param(b"/v1/x?" + b"b" * 32_768, id="32-KiB-query"),
    ],
)
@pytest.mark.parametrize("prefix", [b"", b"/shop"], ids=["default", "prefix"])
async def test_the_target_reaches_the_cloud_byte_for_byte(
    prefix: bytes, target: bytes, proxy: Gateway, upstream: Upstream
) -> None:
    upstream.requests.clear()
    answer = await proxy.call(b"GET " + prefix + target)
    assert answer.status == 200
    assert upstream.requests[0].start_line == b"GET %b HTTP/1.1" % target


@pytest.mark.parametrize("minor", [2, 5, 9])
async def test_a_later_minor_version_is_handled_as_1_1(minor: int) -> None:  # RFC 9110, section 2.5
    upstream = Upstream(b"HTTP/1.%d 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" % minor)
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        start = b"POST /v1/x HTTP/1.%d\r\nHost: %b\r\n" % (minor, proxy.host)
        for _ in range(2):  # both connections are kept
            writer.write(start + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            answer = await read_message(reader)
            assert (answer.start_line, answer.content) == (b"HTTP/1.1 200 OK", b"ok")
        assert [request.content for request in upstream.requests] == [b"hi", b"hi"]
        assert upstream.requests[0].start_line == b"POST /v1/x HTTP/1.1"
        assert proxy.upstream.connections == 1


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(b"/shop/../v1/x", id="dots"),
        pytest.param(b"/shop/..#/v1/x", id="before-a-fragment"),
        pytest.param(b"/shop/%2e%2E/v1/x", id="escaped"),
        pytest.param(b"/shop/..%2fv1/x", id="escaped-slash"),
        pytest.param(b"/shop/..\\v1/x", id="backslash"),
        pytest.param(b"/shop/v1/../../x", id="later"),
        pytest.param(b"/shop/..", id="at-the-end"),
        pytest.param(b"/shop/..;x/v1/x", id="with-parameters"),
        pytest.param(b"/../v1/x", id="above-the-root"),
    ],
)
async def test_dot_segments_that_leave_the_project_are_refused(target: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"GET " + target)
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_TARGET")
        assert upstream.requests == []


@pytest.mark.parametrize("scheme", [b"http", b"HTTP"])
@pytest.mark.parametrize(
    ("rest", "target"),
    [(b"/v1/x?a=%7e", b"/v1/x?a=%7e"), (b"?a", b"/?a"), (b"", b"/"), (b"/shop//x", b"//x")],
)
async def test_absolute_form_is_accepted_where_it_names_us(scheme: bytes, rest: bytes, target: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"GET %b://%b%b" % (scheme, proxy.host, rest))
        assert answer.status == 200
        assert upstream.requests[0].start_line == b"GET %b HTTP/1.1" % target


@together(
    "target",
    [
        b"http://other.example/v1/x",
        b"https://169.254.169.254/latest",
        b"http://user@HOST/v1/x",
        b"http://HOST@other.example/v1/x",
        b"http://HOST#@other.example/",
        b"http://127.0.0.1/v1/x",
        b"http://127.0.0.1:1/v1/x",
        b"http:///v1/x",
        b"ftp://HOST/v1/x",
        b"pany://x/a",
        b"http:/v1/x",
        b"@other.example/v1/x",
        b":80@other.example",
        b".other.example",
        b"v1/x",
        b"?a=b",
        b"*",
        b"other.example:443",
        b"\\v1\\x",
    ],
)
async def test_a_target_that_is_no_path_of_ours_is_refused(
    target: bytes, proxy: Gateway, upstream: Upstream
) -> None:
    answer = await proxy.call(b"GET " + target.replace(b"HOST", proxy.host))
    assert (answer.status, answer.error_code) == (400, "PROXY_BAD_TARGET")
    assert upstream.requests == []


# Methods


@pytest.mark.parametrize(
    "method", [b"X-CUSTOM", b"QUERY", b"PROPFIND", b"PURGE", b"get", b"M-SEARCH", b"PATCH", b"DELETE", b"!#$"]
)
async def test_methods_that_we_do_not_know_go_on(method: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        assert (await proxy.call(method + b" /v1/x")).status == 200
        assert upstream.requests[0].start_line == method + b" /v1/x HTTP/1.1"


@pytest.mark.parametrize(
    "start",
    [
        *(b"TRACE /v1/x", b"TRACE *", b"CONNECT other.example:443", b"CONNECT /v1/x"),
        *(b"trace /v1/x", b"Connect /v1/x", b"TRACK /v1/x", b"Track /shop/v1/x"),  # as lenient servers read
    ],
)
async def test_trace_and_connect_are_refused(start: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(start, b"Max-Forwards: 0")
        assert (answer.status, answer.error_code) == (405, "PROXY_METHOD_REFUSED")
        assert b"GET" in answer.values(b"allow")[0]
        assert upstream.requests == []


@pytest.mark.parametrize("target", [b"*", b"http://HOST"], ids=["asterisk", "absolute"])
async def test_options_about_the_server_are_answered_by_us(target: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"OPTIONS " + target.replace(b"HOST", proxy.host))
        assert answer.status == 204
        assert answer.values(b"content-length") == answer.values(b"content-type") == []
        assert upstream.requests == []


async def test_options_with_no_hop_left_are_answered_by_us() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        assert (await proxy.call(b"OPTIONS /v1/x", b"Max-Forwards: 0")).status == 204
        assert upstream.requests == []


@pytest.mark.parametrize(
    ("start", "sent", "got"),
    [
        (b"OPTIONS /v1/x", b"Max-Forwards: 3", b"Max-Forwards: 2"),
        (b"OPTIONS /v1/x", b"max-forwards:1", b"max-forwards: 0"),
        (b"OPTIONS /v1/x", b"Max-Forwards: many", b"Max-Forwards: many"),
        (b"OPTIONS /v1/x", b"Max-Forwards:", b"Max-Forwards:"),
        (b"OPTIONS /v1/x", b"Max-Forwards: 00010", b"Max-Forwards: 9"),
        (b"GET /v1/x", b"Max-Forwards: 0", b"Max-Forwards: 0"),
    ],
)
async def test_max_forwards_counts_down_on_options_alone(start: bytes, sent: bytes, got: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        assert (await proxy.call(start, sent)).status == 200
        assert passed_on(upstream.requests[0]) == [got]


# Host


@pytest.mark.parametrize(
    ("host", "status", "code"),
    [
        (b"localhost.other.example:PORT", 421, "PROXY_HOST_REFUSED"),
        (b"", 400, "PROXY_BAD_REQUEST"),
        (b"user@127.0.0.1:PORT", 400, "PROXY_BAD_REQUEST"),
    ],
)  # all: gateway/test_guard.py
async def test_a_host_that_is_not_ours_is_refused(host: bytes, status: int, code: str) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        host = host.replace(b"PORT", b"%d" % proxy.port)
        answer = await proxy.send(b"GET /v1/x HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        assert (answer.status, answer.error_code) == (status, code)
        assert upstream.requests == []


@pytest.mark.parametrize("host", [b"127.0.0.1:PORT", b"LOCALHOST:PORT", b"127.0.0.1", b"[::1]"])
async def test_a_host_that_is_ours_passes(host: bytes) -> None:
    async with gateway() as proxy:
        host = host.replace(b"PORT", b"%d" % proxy.port)
        assert (await proxy.send(b"GET /v1/x HTTP/1.1\r\nhost:%b\r\n\r\n" % host)).status == 200


# What can't be understood


@together(
    ("raw", "status"),
    [
        pytest.param(b"GET /v1/x HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", 400, id="two-hosts"),
        pytest.param(b"GET /v1/x HTTP/1.0\r\nHost: HOST\r\nHost: HOST\r\n\r\n", 400, id="two-hosts-1.0"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX : 1\r\n\r\n", 400, id="space-before-colon"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost : HOST\r\n\r\n", 400, id="space-after-Host"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX\r\n\r\n", 400, id="no-colon"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\n: 1\r\n\r\n", 400, id="no-name"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: 1\r\n 2\r\n\r\n", 400, id="obs-fold"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: 1\r\n\t2: 3\r\n\r\n", 400, id="obs-fold-colon"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\n Host: HOST\r\n\r\n", 400, id="fold-at-once"),
        pytest.param(b"GET /v1/x HTTP/1.1\nHost: HOST\n\n", 400, id="bare-LF"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\nX: 1\r\n\r\n", 400, id="bare-LF-between"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: 1\n\r\n", 400, id="bare-LF-at-the-end"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: a\rb\r\n\r\n", 400, id="bare-CR"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: a\x00b\r\n\r\n", 400, id="NUL-in-value"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: a\x7fb\r\n\r\n", 400, id="DEL-in-value"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX: a\x0bb\r\n\r\n", 400, id="VT-in-value"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX\x00: 1\r\n\r\n", 400, id="NUL-in-name"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX\xe9: 1\r\n\r\n", 400, id="non-ASCII-name"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: HOST\r\nX(y): 1\r\n\r\n", 400, id="delimiter-in-name"),
        pytest.param(b"GET /v1/\x00x HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="NUL-in-target"),
        pytest.param(b"GET /v1/\x01x HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="control-in-target"),
        pytest.param(b"GET /v1/\x7fx HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="DEL-in-target"),
        pytest.param(b"GET /v1/x y HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="space-in-target"),
        pytest.param(b"GET /v1/x\tHTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="tab-as-separator"),
        pytest.param(b"GET  /v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="two-spaces"),
        pytest.param(b" GET /v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="space-first"),
        pytest.param(b"G(T /v1/x HTTP/1.1\r\nHost: HOST\r\n\r\n", 400, id="method-not-a-token"),
        pytest.param(b"GET /v1/x HTTP/1.1 \r\nHost: HOST\r\n\r\n", 400, id="space-last"),
        pytest.param(b"GET /v1/x http/1.1\r\nHost: HOST\r\n\r\n", 400, id="lower-case-version"),
        pytest.param(b"GET /v1/x HTTP/11\r\nHost: HOST\r\n\r\n", 400, id="version-without-dot"),
        pytest.param(b"GET /v1/x\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"GET /v1/x\r\n\r\n", 400, id="HTTP/0.9-with-empty-line"),
        pytest.param(b"GET /v1/x HTTP/2.0\r\nHost: HOST\r\n\r\n", 505, id="HTTP/2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2-preface"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(b'{"json": true}', 400, id="no-HTTP-at-all"),
    ],
)
async def test_what_is_no_http_1_request_is_refused_at_once_and_ends_the_connection(
    raw: bytes, status: int, proxy: Gateway, upstream: Upstream
) -> None:
    follow_up = proxy.request(b"GET /v1/smuggled") if raw.endswith(b"\n\r\n") else b""
    answer = await closing_answer(proxy, raw.replace(b"HOST", proxy.host) + follow_up)
    assert (answer.status, answer.error_code) == (status, "PROXY_BAD_REQUEST")
    assert answer.values(b"proxy-status") == [b"csq-proxy; error=http_request_error"]
    assert upstream.requests == []


async def test_an_error_names_the_reason_and_repeats_nothing_of_what_came() -> None:
    async with gateway() as proxy:
        answer = await closing_answer(proxy, proxy.request(b"GET /v1/x", b"X-Canary : secret"))
        assert b"a field name that is not a token" in answer.body
        assert b"Canary" not in answer.body
        assert b"secret" not in answer.body


async def test_a_refused_start_is_refused_however_it_is_cut() -> None:
    async with gateway() as proxy:
        for raw in (b"GET / HTTP/1.1\nX", b"GET /\r\n", b"\x16\x03"):
            for cut in range(1, len(raw)):
                reader, writer = await proxy.connect()
                writer.write(raw[:cut])
                await asyncio.sleep(0)
                writer.write(raw[cut:])
                assert (await read_message(reader)).status == 400
                await close(writer)


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\r\n" * 7])
async def test_empty_lines_before_a_request_are_ignored(blank: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        for _ in range(2):
            writer.write(blank)
            await asyncio.sleep(0.005)
            writer.write(proxy.request(b"GET /v1/x"))
            assert (await read_message(reader)).status == 200
        assert len(upstream.requests) == 2


# What is too long


@pytest.mark.parametrize(
    ("start", "lines", "status"),
    [
        pytest.param(b"GET /" + b"a" * 41_000, [], 414, id="target"),
        pytest.param(b"GET /" + b"a" * 2_000_000, [], 414, id="target-of-2-MB"),
        pytest.param(b"G" * 50_000 + b" /", [], 414, id="method"),
        pytest.param(b"GET /", [b"X: " + b"a" * 41_000], 431, id="field"),
        pytest.param(b"GET /", [b"X: " + b"a" * 2_000_000], 431, id="field-of-2-MB"),
        pytest.param(b"GET /", [b"X-%d: 1" % i for i in range(600)], 431, id="600-fields"),
        pytest.param(b"GET /", [b"X: " + b"a" * 30_000] * 5, 431, id="150-kB-together"),
        pytest.param(b"GET /", [b"X-%d: 1" % i for i in range(100_000)], 431, id="100000-fields"),
    ],
)
async def test_what_is_too_long_is_refused_and_the_caller_learns_it(
    start: bytes, lines: list[bytes], status: int
) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await closing_answer(proxy, proxy.request(start, *lines))
        assert (answer.status, answer.error_code) == (status, "PROXY_BAD_REQUEST")
        assert upstream.requests == []


async def test_the_answer_to_what_is_too_long_arrives_while_the_caller_still_sends() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"GET /" + b"a" * 50_000)

        async def send_on() -> None:
            while True:
                writer.write(b"a" * 10_000)
                await writer.drain()
                await asyncio.sleep(0)

        sending = asyncio.create_task(send_on())
        answer = await read_message(reader)
        assert answer.status == 414
        assert await reader.read() == b""
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


# Slow callers


@pytest.mark.parametrize(
    "part", [b"G", b"GET /v1/x HTTP/1.1\r\nHost: ", b"\r\nGET / HTTP/1.1\r\nA: b\r\n", b"\r"]
)
async def test_a_head_that_does_not_come_in_time_is_a_408_and_the_end(
    part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "HEAD_TIMEOUT_S", 0.03)
    async with gateway() as proxy:
        answer = await closing_answer(proxy, part)
        assert (answer.status, answer.error_code) == (408, "PROXY_REQUEST_TIMEOUT")


async def test_a_head_that_trickles_is_not_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "HEAD_TIMEOUT_S", 0.05)
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"GET /v1/x HTTP/1.1\r\nX: ")
        answering = asyncio.create_task(read_message(reader))
        while not answering.done():
            writer.write(b"y")
            await asyncio.sleep(0.005)
        assert answering.result().status == 408


async def test_the_time_for_a_head_begins_with_its_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "HEAD_TIMEOUT_S", 0.03)
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        for _ in range(2):
            await asyncio.sleep(0.05)
            writer.write(proxy.request(b"GET /v1/x"))
            assert (await read_message(reader)).status == 200


async def test_a_caller_that_sends_nothing_is_let_go_after_the_keep_alive_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert KEEP_ALIVE_S == 75
    assert parser.HEAD_TIMEOUT_S == 10
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.4)
    async with gateway() as proxy:
        for raw in (b"", proxy.request(b"GET /v1/x")):
            reader, writer = await proxy.connect()
            writer.write(raw)
            async with asyncio.timeout(WAIT_S):
                received = await reader.read()
            assert received[:15] == (OK[:15] if raw else b"")


async def test_a_head_that_begins_at_the_end_of_the_keep_alive_time_is_still_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.4)
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        request = proxy.request(b"GET /v1/x")
        writer.write(request[:9])
        await asyncio.sleep(0.5)
        writer.write(request[9:])
        assert (await read_message(reader)).status == 200


# Versions


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Keep-Alive, CLOSE", False),
        (b"1.0", None, False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive, x", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
async def test_the_callers_connection_is_kept_as_it_asks(
    version: bytes, connection: bytes | None, kept: bool
) -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        lines = [b"GET /v1/x HTTP/" + version, b"Host: " + proxy.host]
        if connection is not None:
            lines.append(b"Connection: " + connection)
        raw = b"\r\n".join((*lines, b"", b""))
        writer.write(raw)
        answer = await read_message(reader)
        assert answer.start_line == b"HTTP/1.1 200 OK"
        if kept:
            assert answer.is_kept
            assert answer.values(b"connection") == answer.values(b"keep-alive") == []
            writer.write(raw)
            assert (await read_message(reader)).status == 200
        else:
            assert answer.values(b"connection") == [b"close"]
            assert not answer.is_kept
            assert await reader.read() == b""


async def test_each_kind_of_answer_tells_how_long_its_connection_is_kept() -> None:
    async with gateway() as proxy:
        for start in (b"GET /v1/x", b"HEAD /v1/x", b"GET /-/healthy", b"GET /elsewhere/v1/x"):
            assert (await proxy.call(start)).is_kept
    told = re.fullmatch(rb"Connection: keep-alive\r\nKeep-Alive: timeout=([0-9]+)", KEPT)
    assert told is not None
    assert int(told[1]) == KEEP_ALIVE_S - 5


async def test_an_http_1_0_caller_needs_no_host_and_gets_no_chunks() -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: t\r\n\r\n"
    upstream = Upstream(raw)
    async with gateway(upstream) as proxy:
        answer = await proxy.send(b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.values(b"transfer-encoding") == []
        assert answer.values(b"connection") == [b"close"]
        assert answer.body == b"abcde"
        assert upstream.requests[0].start_line == b"GET /v1/x HTTP/1.1"


# Pipelining and half-close


@pytest.mark.parametrize("count", [2, 8, 9, 50, 300])
@pytest.mark.parametrize("is_half_closed", [False, True], ids=["open", "half-closed"])
async def test_pipelined_requests_are_answered_in_order(count: int, is_half_closed: bool) -> None:
    upstream = Upstream(
        lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + request.start_line[5:10]
    )
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"".join(proxy.request(b"GET /%05d" % i) for i in range(count)))
        if is_half_closed:
            writer.write_eof()
        got = [(await read_message(reader)).body for _ in range(count)]
        assert got == [b"%05d" % i for i in range(count)]
        if is_half_closed:
            assert await reader.read() == b""


async def test_pipelined_requests_with_bodies_are_answered_in_order_behind_a_slow_one() -> None:
    go_on = asyncio.Event()
    bodies: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            bodies.append(request.content)
            if len(bodies) == 1:
                await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + request.start_line[6:8])
            await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        sent = []
        for i in range(20):
            body = b"%02d" % i * 500 * i
            if i % 2:
                sent.append(proxy.request(b"POST /%02d" % i, b"Content-Length: %d" % len(body), body=body))
            else:
                chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
                sent.append(proxy.request(b"POST /%02d" % i, b"Transfer-Encoding: chunked", body=chunks))
        writer.write(b"".join(sent))
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            while not bodies:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(bodies) == 1
        go_on.set()
        assert [(await read_message(reader)).body for _ in range(20)] == [b"%02d" % i for i in range(20)]
        assert bodies == [b"%02d" % i * 500 * i for i in range(20)]
        assert await reader.read() == b""


CUT_REQUESTS = [
    pytest.param(b"POST /cut HTTP/1.1\r\nHost: x\r\nConte", id="in-its-head"),
    pytest.param(b"P", id="in-its-method"),
    pytest.param(b"POST /cut HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\n", id="before-its-content"),
    pytest.param(b"POST /cut HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\nhel", id="in-its-content"),
    pytest.param(
        b"POST /cut HTTP/1.1\r\nHost: HOST\r\nContent-Length: 999999\r\n\r\n" + b"x" * 300_000,
        id="in-long-content",
    ),
    pytest.param(
        b"POST /cut HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", id="in-a-chunk"
    ),
    pytest.param(
        b"POST /cut HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: 1\r\n",
        id="in-its-trailers",
    ),
]


@pytest.fixture
async def slower_proxy() -> AsyncIterator[Gateway]:
    """Its cloud answers a little later."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await next_request(reader)
            await asyncio.sleep(0.001)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + request.start_line.split()[1][1:3])
            await writer.drain()

    async with gateway(script) as proxy:
        yield proxy


@together("cut", CUT_REQUESTS)
@pytest.mark.parametrize("count", [1, 8, 9, 30])
@pytest.mark.parametrize("pause_s", [0, 0.02], ids=["fin-at-once", "fin-later"])
async def test_all_whole_requests_before_a_cut_one_are_answered(
    pause_s: float, count: int, cut: bytes, slower_proxy: Gateway
) -> None:  # RFC 9112, sections 8, 9.3.2 and 9.6
    proxy = slower_proxy
    reader, writer = await proxy.connect()
    whole = [
        proxy.request(b"GET /%02d" % i)
        if i % 3
        else proxy.request(b"POST /%02d" % i, b"Content-Length: 4", body=b"abcd")
        for i in range(count)
    ]
    writer.write(b"".join(whole) + cut.replace(b"HOST", proxy.host))
    await asyncio.sleep(pause_s)
    writer.write_eof()
    assert [(await read_message(reader)).body for _ in range(count)] == [b"%02d" % i for i in range(count)]
    assert await reader.read() == b""


async def test_what_follows_a_request_that_closes_is_not_answered() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /a", b"Connection: close") + proxy.request(b"GET /b"))
        assert (await read_message(reader)).status == 200
        assert await reader.read() == b""
        assert len(upstream.requests) == 1


async def test_what_can_not_be_understood_is_refused_in_its_turn() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /a") + b"bad\r\n\r\n" + proxy.request(b"GET /b"))
        assert [(await read_message(reader)).status for _ in range(2)] == [200, 400]
        assert await reader.read() == b""


async def test_pipelined_requests_are_bounded_while_the_first_is_slow() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with gateway(script) as proxy:
        _, writer = await proxy.connect()
        one = proxy.request(b"POST /v1/x", b"Content-Length: 1000", body=b"x" * 1000)
        writer.write(one * 20_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await writer.drain()
        await until(lambda: any(one.is_reading_held for one in proxy.app._listeners.connections()))
        [connection] = proxy.app._listeners.connections()
        assert connection.unanswered <= 9
        writer.transport.abort()


async def test_answers_that_nobody_reads_stop_the_requests() -> None:
    async with gateway(
        Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    ) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x") * 2000)
        project = next(iter(proxy.app.projects()))
        async with asyncio.timeout(WAIT_S):
            while not list(proxy.app._listeners.connections()):
                await asyncio.sleep(0.005)
            connection = next(iter(proxy.app._listeners.connections()))
            before = 0
            while not before or connection.answered != before:  # until it stands still
                before = connection.answered
                await asyncio.sleep(0.1)
            while project.slots.in_use and not connection.writing_paused:
                await asyncio.sleep(0.005)
        assert connection.answered < 200
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 300_000
        writer.transport.abort()


async def test_a_malformed_request_before_the_end_leaves_no_connection_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.server.linger.LINGER_S", 10 * WAIT_S)
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x") + b"G E T\r\n\r\n")
        writer.write_eof()
        assert (await read_message(reader)).status == 200
        assert (await read_message(reader)).status == 400
        assert await reader.read() == b""
        async with asyncio.timeout(WAIT_S):
            while list(proxy.app._listeners.connections()):
                await asyncio.sleep(0.005)


def late(after_s: float) -> Script:
    """A cloud that takes a while for its answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        await asyncio.sleep(after_s)
        writer.write(OK)
        await writer.drain()

    return script


@pytest.mark.parametrize("body", [b"", b"hello"], ids=["bodyless", "with-body"])
async def test_a_caller_that_half_closes_is_answered_even_late(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (departure.PATIENCE_S, departure.HURRIED_PATIENCE_S) == (10, 1)
    monkeypatch.setattr(departure, "LOOK_S", 0.005)
    async with gateway(late(0.04)) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: %d" % len(body), body=body))
        writer.write_eof()
        assert (await read_message(reader)).body == b"ok"
        assert await reader.read() == b""


async def test_an_answer_that_comes_too_late_for_a_half_closed_caller_ends_in_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departure, "LOOK_S", 0.01)
    monkeypatch.setattr(departure, "PATIENCE_S", 0.05)
    async with gateway(late(WAIT_S)) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        writer.write_eof()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(WAIT_S):
                await reader.read()


async def test_a_head_that_came_in_time_lets_a_half_closed_caller_read_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departure, "LOOK_S", 0.01)
    monkeypatch.setattr(departure, "PATIENCE_S", 0.5)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await asyncio.sleep(0.8)
        writer.write(b"k")
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        writer.write_eof()
        assert (await read_message(reader)).body == b"ok"


async def test_a_complete_request_before_an_incomplete_one_is_answered_after_the_last_byte() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        for rest in (
            b"GET /v1/y HTTP/1.1\r\nHo",
            proxy.request(b"POST /v1/y", b"Content-Length: 9", body=b"a"),
            proxy.request(b"POST /v1/y", b"Transfer-Encoding: chunked", body=b"5\r\na"),
        ):
            reader, writer = await proxy.connect()
            writer.write(proxy.request(b"GET /v1/x") + rest)
            writer.write_eof()
            assert (await read_message(reader)).body == b"ok"
            assert await reader.read() == b""
        assert [request.start_line for request in upstream.requests] == [b"GET /v1/x HTTP/1.1"] * 3


@pytest.mark.parametrize("others_wait", [True, False])
async def test_a_half_closed_caller_that_holds_others_up_is_given_less_time(
    others_wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "LOOK_S", 0.01)
    monkeypatch.setattr(departure, "HURRIED_PATIENCE_S", 0.05)
    started = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        if not started.is_set():
            started.set()
            if others_wait:
                await reader.read()
            await asyncio.sleep(0.3)
        writer.write(OK)
        await writer.drain()

    async with gateway(script, contentsquare={"max_concurrency": 1}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        writer.write_eof()
        await asyncio.wait_for(started.wait(), WAIT_S)
        if others_wait:
            assert (await proxy.call(b"GET /v1/y")).body == b"ok"
            with pytest.raises(ConnectionResetError):
                await reader.read()
        else:
            assert (await read_message(reader)).body == b"ok"


@pytest.mark.parametrize("way", ["close", "abort", "half-close-then-close"])
async def test_a_caller_that_leaves_frees_its_slot(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "LOOK_S", 0.01)
    monkeypatch.setattr(departure, "PATIENCE_S", 0.05)
    started, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        started.set()
        await reader.read(1)
        gone.set()

    async with gateway(script) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 2", body=b"{}"))
        await started.wait()
        if way == "abort":
            writer.transport.abort()
        else:
            if way != "close":
                writer.write_eof()
                await asyncio.sleep(0.01)
            await close(writer)
        slots = next(iter(proxy.app.projects())).slots
        async with asyncio.timeout(WAIT_S):
            await gone.wait()
            while slots.in_use:
                await asyncio.sleep(0.005)


@reset_behind_unread_bytes
async def test_a_reset_while_an_upload_is_held_back_is_noticed() -> None:
    started, gone = asyncio.Event(), asyncio.Event()

    async def stalled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        started.set()
        await gone.wait()

    async with gateway(stalled) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 80000000", body=b"x" * 20_000_000))
        await started.wait()
        slots = next(iter(proxy.app.projects())).slots
        connection = next(iter(proxy.app._listeners.connections()))
        async with asyncio.timeout(WAIT_S):
            while not connection.is_reading_held:
                await asyncio.sleep(0.002)
        reset(writer)
        async with asyncio.timeout(WAIT_S):
            while slots.in_use:
                await asyncio.sleep(0.005)
        gone.set()


async def test_a_caller_that_leaves_in_the_middle_of_its_body_ends_the_upstream_request() -> None:
    gone = asyncio.Event()
    received = b""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                received += data
        gone.set()

    async with gateway(script) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 10", body=b"12345"))
        while received != b"12345":
            await asyncio.sleep(0.001)
        writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            await gone.wait()
        assert received == b"12345"
