"""The HTTP proxy between this machine and a cloud."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clouds import closing, dialer, exchange, pool_of, refusal, silent
from support.harness import WAIT_S, RawServer, Upstream, close, free_port
from support.ways import silent_dns  # noqa: F401 - a fixture
from support.windows import verifies_certificates

from proxy.config.settings import Credentials
from proxy.errors import TokenFetchError
from proxy.origin import Origin
from proxy.secret import Secret
from proxy.tokens import TokenEndpoint, make_session
from proxy.upstream.http_proxy import http_proxy_for
from proxy.upstream.pool import Pool
from proxy.upstream.tls import tls_context

if TYPE_CHECKING:
    from aiohttp import ClientSession


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


async def token_failure(session: ClientSession, url: str | None) -> TokenFetchError:
    """What a token request says that fails on its way through the HTTP proxy at ``url``."""
    endpoint = TokenEndpoint(session, CLOUD, allowed_endpoints=["x"], find_proxy=lambda _: url)
    with pytest.raises(TokenFetchError) as caught:
        await endpoint.me_members(Credentials(client_id="id", client_secret=Secret("secret")))
    return caught.value


@verifies_certificates
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


PASSWORDS = [
    ("p%40ss%3A", b"p@ss:"),
    ("p@ss:w/o#r?d", b"p@ss:w/o#r?d"),
    ("\u20ac", b"\xe2\x82\xac"),
    ("\u00e4", b"\xc3\xa4"),
    ("%e2%82%AC%C3%A4", b"\xe2\x82\xac\xc3\xa4"),
    ("%E4", b"\xe4"),
    ("\udce4", b"\xe4"),  # a byte of the environment that is no UTF-8
    ("100%", b"100%"),
    ("\uff20\u2100", b"\xef\xbc\xa0\xe2\x84\x80"),  # NFKC would make another URL of these
    ("", b""),
]
"""As they stand in the URL, and as they are sent (RFC 7617)."""


@pytest.mark.parametrize(("given", "sent"), PASSWORDS)
async def test_a_password_is_sent_in_the_same_way_for_calls_and_for_tokens(
    given: str, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    http_proxy = HttpProxy(0, b"HTTP/1.1 407 X\r\n\r\n")
    cloud = Origin.parse(CLOUD)
    async with RawServer(http_proxy) as server, make_session() as session:
        monkeypatch.setattr(
            "urllib.request.getproxies", lambda: {"https": f"http://m\u00e4x:{given}@127.0.0.1:{server.port}"}
        )
        on_calls = await refusal(pool_of(CLOUD, dialer(find_proxy=http_proxy_for)))
        endpoint = TokenEndpoint(session, CLOUD, allowed_endpoints=["x"], find_proxy=http_proxy_for)
        with pytest.raises(TokenFetchError) as on_tokens:
            await endpoint.me_members(Credentials(client_id="id", client_secret=Secret("secret")))
        assert "user and password" in str(on_calls)
        assert str(on_tokens.value) == f"the token endpoint {cloud}: {on_calls}"
    for head in http_proxy.requests:
        [value] = [line for line in head.split(b"\r\n") if line.startswith(b"Proxy-Authorization: ")]
        assert value == b"Proxy-Authorization: Basic " + base64.b64encode(b"m\xc3\xa4x:" + sent)
    assert len(http_proxy.requests) == 2


@pytest.mark.parametrize("user", ["", "me:canary@"])
@pytest.mark.parametrize("place", ["127.0.0.1:{port}", "no-such-name.invalid:3128", f"{'a' * 64}.example:1"])
async def test_an_http_proxy_that_is_away_is_told_alike_for_calls_and_for_tokens(
    user: str, place: str
) -> None:
    url = f"http://{user}{place.format(port=free_port())}"
    on_calls = await refusal(pool_of(CLOUD, dialer(find_proxy=lambda _: url)))
    async with make_session() as session:
        on_tokens = await token_failure(session, url)
    assert on_tokens.cause == "http_proxy"
    assert str(on_tokens) == f"the token endpoint {CLOUD}: {on_calls}"
    assert on_calls.proxy_status in ("proxy_internal_response", "dns_error")
    assert "HTTP proxy" in str(on_calls)
    assert "canary" not in str(on_calls)


async def test_a_407_without_a_user_says_how_one_is_given() -> None:
    async with behind(HttpProxy(0, b"HTTP/1.1 407 X\r\n\r\n"), tls_context()) as pool:
        assert "HTTPS_PROXY=http://user:password@host:port" in str(await refusal(pool))


@pytest.mark.parametrize(
    ("offers", "words"),
    [
        ([b"Negotiate", b"NTLM"], "NTLM or Kerberos"),
        ([b"Negotiate, NTLM", b"Digest realm=basic, nonce=x"], "NTLM or Kerberos"),
        ([b"Negotiate", b'basic realm="x"'], "refused the user and password"),
        ([b'NTLM, Basic realm="x"'], "refused the user and password"),
        ([b"Basic"], "refused the user and password"),
    ],
)
async def test_a_sign_in_that_a_password_does_not_help_is_told(offers: list[bytes], words: str) -> None:
    lines = b"".join(b"Proxy-Authenticate: %b\r\n" % offer for offer in offers)
    http_proxy = HttpProxy(0, b"HTTP/1.1 407 X\r\n%bContent-Length: 0\r\n\r\n" % lines)
    async with behind(http_proxy, tls_context(), user="me:secret@") as pool:
        assert words in str(await refusal(pool))
    async with RawServer(http_proxy) as server, make_session() as session:
        assert words in str(await token_failure(session, f"http://me:secret@127.0.0.1:{server.port}"))


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
        error = await refusal(pool_of(CLOUD, using))
        async with make_session(total_timeout_s=0.05) as session:
            on_tokens = await token_failure(session, server.url)
    assert error.proxy_status == "proxy_internal_response"
    assert f"the HTTP proxy 127.0.0.1:{server.port}" in str(error)
    assert f"the HTTP proxy 127.0.0.1:{server.port}" in str(on_tokens)
    assert on_tokens.cause == "timeout"


@pytest.mark.usefixtures("silent_dns")
async def test_a_proxy_whose_name_server_says_nothing_is_named() -> None:
    using = dialer(timeout_s=0.05, find_proxy=lambda _: "http://proxy.example:3128")
    error = await refusal(pool_of(CLOUD, using))
    assert error.proxy_status == "dns_timeout"
    assert "the HTTP proxy's name proxy.example" in str(error)


@pytest.mark.usefixtures("silent_dns")
async def test_a_token_endpoint_whose_name_server_says_nothing_is_a_matter_of_dns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.tokens.endpoint.DNS_TIMEOUT_S", 0.05)
    async with make_session() as session:
        assert (await token_failure(session, None)).cause == "dns"
        assert (await token_failure(session, "http://proxy.example:3128")).cause == "http_proxy"


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
        "http://u:12/ss",
        "http://h/path",
        "http://h?query",
        "http://h name",
        "http://u:p@",
        "http://\u2100:1",
        "://h:1",
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


cases_differ = pytest.mark.skipif(sys.platform == "win32", reason="names of variables have no case there")


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://a:1"}, "http://a:1"),
        ({"https_proxy": "http://a:1"}, "http://a:1"),
        ({"HTTPS_PROXY": "a:1"}, "http://a:1"),
        ({"ALL_PROXY": "http://a:1"}, "http://a:1"),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"HTTPS_PROXY": " http://a:1 "}, "http://a:1"),
        ({"HTTPS_PROXY": " "}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "*.example"}, None),
        pytest.param(
            {"HTTPS_PROXY": "http://a:1", "no_proxy": "cloud.example", "NO_PROXY": "other"},
            None,
            marks=cases_differ,
        ),
        pytest.param(
            {"HTTPS_PROXY": "http://a:1", "no_proxy": "other", "NO_PROXY": "cloud.example"},
            "http://a:1",
            marks=cases_differ,
        ),
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
