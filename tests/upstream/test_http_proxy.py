"""The HTTP proxy between this machine and a cloud."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.clouds import closing, dialer, exchange, pool_of, refusal, silent
from support.harness import WAIT_S, RawServer, Upstream, close

from proxy.origin import Origin
from proxy.upstream.http_proxy import http_proxy_for
from proxy.upstream.pool import Pool
from proxy.upstream.tls import tls_context


@dataclass
class HttpProxy:
    """A forward proxy that knows CONNECT and leads every tunnel to ``port`` of this machine."""

    port: int
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
    requests: list[bytes] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readuntil(b"\r\n\r\n"))[:-4])
        # In two pieces, as it may come.
        for piece in (self.answer[:9], self.answer[9:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        if not self.answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        finally:
            await close(back)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()


CLOUD = "https://cloud.example"


@contextlib.asynccontextmanager
async def behind(
    http_proxy: HttpProxy, context: ssl.SSLContext, *, user: str = "", timeout_s: float = WAIT_S
) -> AsyncIterator[Pool]:
    """A pool for a cloud that is reached through ``http_proxy`` only."""
    async with RawServer(http_proxy) as server:
        url = f"http://{user}127.0.0.1:{server.port}"
        using = dialer(context, timeout_s=timeout_s, find_proxy=lambda _: url)
        async with closing(pool_of(CLOUD, using)) as pool:
            yield pool


async def test_a_tunnel_leads_to_the_cloud_and_its_certificate_is_verified(
    server_side: ssl.SSLContext, ca_file: Path
) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        http_proxy = HttpProxy(server.port)
        async with behind(http_proxy, tls_context(ca_file)) as pool:
            connection = await pool.connect()
            for _ in range(2):
                assert (await exchange(connection)).content == b"ok"
        assert http_proxy.requests == [b"CONNECT cloud.example:443 HTTP/1.1\r\nHost: cloud.example:443"]
        async with behind(HttpProxy(server.port), tls_context()) as pool:
            assert (await refusal(pool)).proxy_status == "tls_certificate_error"
    assert len(upstream.requests) == 2


async def test_a_user_and_password_of_the_proxys_url_are_sent_to_the_proxy_only(
    server_side: ssl.SSLContext, ca_file: Path
) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        http_proxy = HttpProxy(server.port)
        async with behind(http_proxy, tls_context(ca_file), user="me:p%40ss%3A@") as pool:
            await exchange(await pool.connect())
    [asked] = http_proxy.requests
    assert asked.endswith(b"\r\nProxy-Authorization: Basic " + base64.b64encode(b"me:p@ss:"))
    assert upstream.requests[0].lines == [b"Host: x"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "user and password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nbody", "status 502"),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://evil.example\r\n\r\n", "status 301"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not valid HTTP"),
        (b"<html>hello</html>\r\n\r\n", "not valid HTTP"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 20", "closed the connection"),
    ],
)
async def test_a_proxy_that_makes_no_tunnel_is_named_with_the_reason(answer: bytes, words: str) -> None:
    async with behind(HttpProxy(0, answer), tls_context(), user="me:canary@") as pool:
        error = await refusal(pool)
    assert error.proxy_status == "proxy_internal_response"
    assert "HTTP proxy" in str(error)
    assert words in str(error)
    assert "canary" not in str(error)


async def test_a_proxy_that_sends_more_than_its_answer_is_not_trusted() -> None:
    async with behind(HttpProxy(0, b"HTTP/1.1 200 OK\r\n\r\nmore"), tls_context()) as pool:
        assert (await refusal(pool)).proxy_status == "proxy_internal_response"


async def test_a_proxy_that_says_nothing_is_given_up() -> None:
    async with RawServer(silent) as server:
        using = dialer(timeout_s=0.05, find_proxy=lambda _: server.url)
        assert (await refusal(pool_of(CLOUD, using))).proxy_status == "connection_timeout"


@pytest.mark.parametrize(
    "url",
    [
        "socks5://127.0.0.1:1080",
        "https://127.0.0.1:1080",
        "http://",
        "http://h:abc",
        "http://[::1",
        "http://h:0",
        "http://h:99999",
    ],
)
async def test_another_kind_of_proxy_is_an_error_that_names_the_variable(url: str) -> None:
    error = await refusal(pool_of(CLOUD, dialer(find_proxy=lambda _: url)))
    assert error.proxy_status == "proxy_configuration_error"
    assert "HTTPS_PROXY" in str(error)


async def test_a_proxy_whose_name_is_no_name_is_a_dns_error() -> None:
    error = await refusal(pool_of(CLOUD, dialer(find_proxy=lambda _: f"http://{'a' * 64}.example:1")))
    assert error.proxy_status == "dns_error"


async def test_this_machine_is_never_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with RawServer(Upstream()) as server:
        using = dialer(find_proxy=http_proxy_for)
        async with closing(pool_of(server.url, using)) as pool:
            assert (await exchange(await pool.connect())).content == b"ok"


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://a:1"}, "http://a:1"),
        ({"https_proxy": "http://a:1"}, "http://a:1"),
        ({"HTTPS_PROXY": "a:1"}, "http://a:1"),
        ({"ALL_PROXY": "http://a:1"}, "http://a:1"),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "cloud.example"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "other, .example"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "cloud.example:443"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "cloud.example:444, loud.example"}, "http://a:1"),
    ],
)
def test_the_environment_names_the_proxy_and_the_exceptions(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not variables:
        # Without any variable, Windows and macOS have settings of their own.
        monkeypatch.setattr("urllib.request.getproxies", dict)
    assert http_proxy_for(Origin.parse(CLOUD)) == proxy
