"""`tokens.endpoint`: the token request on the wire, against real servers on loopback and against shapes."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import socket
import ssl
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import aioresponses.core
import pytest
import trustme
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses as fake_answers
from support.certificates import CASES, openssl_verifies
from support.clocks import FakeClock
from support.descriptors import none_left
from support.harness import WAIT_S, RawServer, Upstream, free_port, turns

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.errors import ConnectFailed, TokenFetchError
from proxy.origin import Origin
from proxy.secret import Secret
from proxy.tokens import SYSTEM_CLOCK
from proxy.tokens.breaker import Breaker
from proxy.tokens.endpoint import (
    MAX_BODY,
    TLS_RETRY_S,
    FindProxy,
    TokenEndpoint,
    TokenRequest,
    apis_named,
    make_session,
)

ALLOWED = ("*.contentsquare.com",)
SECRET = "hush-hush-1234567890"
CREDENTIALS = Credentials(client_id="an-id-5f1c", client_secret=Secret(SECRET))
METRICS = TokenRequest(CREDENTIALS, Api.METRICS)
AUTH_URL = "https://api.contentsquare.com"
TOKEN_URL = f"{AUTH_URL}/v1/oauth/token"
ME_URL = f"{AUTH_URL}/v1/oauth/me"
GOOD = {
    "access_token": "eyJ.abc.def",
    "token_type": "bearer",
    "expires_in": 3600,
    "scope": "metrics",
    "project_id": 42,
    "endpoint": "https://api.eu-west-1.production.contentsquare.com",
}


class _Answer(aiohttp.ClientResponse):
    """aioresponses 0.7.9 doesn't know of `stream_writer`, which aiohttp wants from 3.14 on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", type("Sent", (), {"output_size": 0})())
        super().__init__(*args, **kwargs)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_answers]:
    monkeypatch.setattr(aioresponses.core, "ClientResponse", _Answer)
    with fake_answers() as fake:
        yield fake


@asynccontextmanager
async def endpoint_at(
    auth_url: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    find_proxy: FindProxy = lambda _: None,
    total_timeout_s: float = 5,
    clock: FakeClock | None = None,
    breaker: Breaker | None = None,
) -> AsyncIterator[TokenEndpoint]:
    async with make_session(ssl_context, total_timeout_s=total_timeout_s) as session:
        yield TokenEndpoint(
            session,
            auth_url,
            allowed_endpoints=ALLOWED,
            find_proxy=find_proxy,
            breaker=breaker,
            clock=clock or SYSTEM_CLOCK,
        )
    await asyncio.sleep(0)


async def failure(fetching: Awaitable[object]) -> TokenFetchError:
    with pytest.raises(TokenFetchError) as caught:
        await fetching
    error = caught.value
    assert SECRET not in str(error)
    assert CREDENTIALS.client_id not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error


# Servers


@asynccontextmanager
async def web_server(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context)
    await site.start()
    scheme = "https" if ssl_context else "http"
    try:
        yield f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """Each connection is given to ``talk`` once the request's head and body are in."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await turns()  # a connection that was just accepted gets its task
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await turns()


def says(*parts: bytes) -> Talk:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
        await writer.drain()

    return talk


def head(length: int, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()


# What is sent


async def test_the_request_is_json_with_the_documented_members_and_nothing_else() -> None:
    seen: list[tuple[str, str, dict[str, str], Any]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append((request.method, request.path_qs, dict(request.headers), await request.json()))
        return web.json_response(GOOD)

    async with web_server(handler) as url, endpoint_at(url) as endpoint:
        await endpoint.fetch(METRICS)
        await endpoint.fetch(TokenRequest(CREDENTIALS, Api.ENRICHMENT, project_id=42, integration_id=7))
        await endpoint.fetch(TokenRequest(CREDENTIALS, Api.DATA_EXPORT, project_id=42, integration_id=7))
    method, path, fields, members = seen[0]
    assert (method, path) == ("POST", "/v1/oauth/token")
    assert fields["Content-Type"] == "application/json"
    assert fields["Accept-Encoding"] == "identity"
    assert "Authorization" not in fields
    identification = {
        "client_id": "an-id-5f1c",
        "client_secret": SECRET,
        "grant_type": "client_credentials",
    }
    assert members == {**identification, "scope": "metrics"}
    assert seen[1][3] == {**identification, "scope": "enrichment", "project_id": 42, "integration_id": 7}
    assert seen[2][3] == {**identification, "scope": "data-export", "project_id": 42}


async def test_no_cookie_is_kept_and_no_connection_either() -> None:
    seen: list[tuple[object, object]] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        seen.append((request.headers.get("Cookie"), request.transport.get_extra_info("peername")))
        response = web.json_response(GOOD)
        response.set_cookie("session", "1", domain="localhost")
        return response

    async with web_server(handler) as url, endpoint_at(url.replace("127.0.0.1", "localhost")) as endpoint:
        for _ in range(2):
            await endpoint.fetch(METRICS)
    assert [cookie for cookie, _ in seen] == [None, None]
    assert seen[0][1] != seen[1][1]


async def test_the_environments_proxy_and_netrc_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.json_response(GOOD)

    async with web_server(handler) as url, endpoint_at(url) as endpoint:
        assert (await endpoint.fetch(METRICS)).project_id == 42


async def test_so_many_requests_run_at_once_and_the_others_wait_without_timing_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.tokens.endpoint.MAX_CONNECTIONS", 4)
    running = peak = 0

    async def handler(request: web.BaseRequest) -> web.Response:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.15)
        running -= 1
        return web.json_response(GOOD)

    async with web_server(handler) as url, endpoint_at(url, total_timeout_s=1.5) as endpoint:
        await asyncio.gather(*(endpoint.fetch(METRICS) for _ in range(60)))
    assert peak == 4


# What comes back


async def test_the_answer_becomes_a_lease_whose_life_begins_when_it_was_asked_for(
    answers: fake_answers,
) -> None:
    clock = FakeClock()
    answers.post(TOKEN_URL, payload=GOOD)
    async with endpoint_at(AUTH_URL, clock=clock) as endpoint:
        lease = await endpoint.fetch(METRICS)
    assert (lease.access_token, lease.lifetime_s) == ("eyJ.abc.def", 3600.0)
    assert lease.received_at == 1000.0
    assert lease.expires_at == datetime.fromtimestamp(1_800_003_600, UTC)
    assert str(lease.origin) == GOOD["endpoint"]


async def test_a_slow_answer_doesnt_stretch_the_life() -> None:
    clock = FakeClock()

    async def handler(request: web.BaseRequest) -> web.Response:
        clock.now += 10
        clock.wall += 10
        return web.json_response(GOOD)

    async with web_server(handler) as url, endpoint_at(url, clock=clock) as endpoint:
        lease = await endpoint.fetch(METRICS)
    assert lease.received_at == 1000.0
    assert lease.expires_at == datetime.fromtimestamp(1_800_003_600, UTC)


@pytest.mark.parametrize(
    ("status", "body", "cause", "permanent"),
    [
        (
            401,
            {"error": "invalid_client", "error_description": "no such client"},
            "credentials_refused",
            True,
        ),
        (400, {"success": False, "errorMessage": "Bad scope", "errorCode": "X"}, "credentials_refused", True),
        (403, {}, "credentials_refused", True),
        (500, {"success": False, "errorMessage": "Internal error"}, "server_error", False),
        (503, "unavailable", "server_error", False),
        (200, "<html>", "malformed", False),
        (200, {}, "malformed", False),
        (204, None, "malformed", False),
        (200, {**GOOD, "endpoint": "https://evil.example"}, "endpoint_refused", False),
        (200, {**GOOD, "endpoint": None}, "endpoint_missing", False),
        (200, {**GOOD, "expires_in": 0}, "malformed", False),
        (200, {**GOOD, "token_type": "mac"}, "malformed", False),
    ],
)
async def test_each_shape_of_answer_has_its_cause(
    answers: fake_answers, status: int, body: object, cause: str, permanent: bool
) -> None:
    answers.post(
        TOKEN_URL, status=status, body=json.dumps(body) if isinstance(body, dict) else str(body or "")
    )
    async with endpoint_at(AUTH_URL) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert (error.cause, error.permanent) == (cause, permanent)


async def test_a_500_names_wrong_credentials_as_its_known_meaning(answers: fake_answers) -> None:
    answers.post(TOKEN_URL, status=500, payload={"errorMessage": f"{CREDENTIALS.client_id} {SECRET}"})
    async with endpoint_at(AUTH_URL) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert "client_id or client_secret" in str(error)
    assert "api.contentsquare.com" in str(error)


async def test_a_redirect_is_never_followed() -> None:
    asked: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with web_server(handler) as url, endpoint_at(url) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert asked == ["/v1/oauth/token"]
    assert error.cause == "redirected"
    assert "answered 307" in str(error)


# Misbehaviour


@pytest.mark.parametrize(
    ("talk", "cause"),
    [
        (says(), "connection_lost"),
        (says(b"HTTP/1.1 200 OK\r\nConte"), "connection_lost"),
        (says(head(1000), b'{"access_token": '), "connection_lost"),
        (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"), "connection_lost"),
        (says(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "malformed"),
        (says(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 100_000, b"\r\n\r\n"), "malformed"),
        (
            says(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n" + head(9)[17:], b"\x1f\x8b\x08xxxxxx"),
            "malformed",
        ),
        (says(head(2 * MAX_BODY), b" " * 2 * MAX_BODY), "oversized"),
    ],
    ids=["closes", "cut-head", "cut-body", "cut-chunk", "not-http", "huge-field", "gzip", "huge-body"],
)
async def test_a_misbehaving_server_is_a_failure_that_is_tried_again(talk: Talk, cause: str) -> None:
    async with raw_server(talk) as url, endpoint_at(url) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert (error.cause, error.permanent) == (cause, False)
    assert url in str(error) or cause == "malformed"


async def test_a_reset_is_a_lost_connection() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with raw_server(talk) as url, endpoint_at(url) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert error.cause == "connection_lost"


async def test_an_endless_answer_is_left_after_a_mebibyte() -> None:
    sent = 0

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with raw_server(talk) as url, endpoint_at(url) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert error.cause == "oversized"
    assert sent < 24 * MAX_BODY  # the rest is in the sockets' buffers


@pytest.mark.parametrize("first", [b"", head(1000), b"HTTP/1.1 200"], ids=["silent", "no-body", "no-head"])
async def test_a_hanging_server_is_given_up_in_time(first: bytes) -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await asyncio.sleep(60)

    async with raw_server(talk) as url, endpoint_at(url, total_timeout_s=0.04) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert (error.cause, error.permanent) == ("timeout", False)


async def test_an_answer_that_drips_is_given_up_in_time() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(1000))
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.005)

    async with raw_server(talk) as url, endpoint_at(url, total_timeout_s=0.04) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert error.cause == "timeout"


@pytest.mark.parametrize("host", ["127.0.0.1", "auth.contentsquare.example"])
async def test_no_descriptor_left_is_not_called_a_fault_of_the_network(host: str) -> None:
    async with endpoint_at(f"http://{host}:{free_port()}") as endpoint:
        with none_left():
            error = await failure(endpoint.fetch(METRICS))
    assert (error.cause, error.permanent) == ("no_descriptors", False)
    assert "EMFILE" in str(error)


async def test_nobody_listening_is_said_so() -> None:
    port = free_port()
    async with endpoint_at(f"http://127.0.0.1:{port}") as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert error.cause == "connection_refused"
    assert f"127.0.0.1:{port}" in str(error)


@pytest.mark.parametrize(
    ("exception", "cause"),
    [
        (
            aiohttp.ClientConnectorDNSError(
                ConnectionKey("h", 443, True, True, None, None, None),
                OSError(f"text of a library {SECRET}"),
            ),
            "dns",
        ),
        (
            aiohttp.ClientConnectorError(
                ConnectionKey("h", 443, True, True, None, None, None),
                OSError(f"text of a library {SECRET}"),
            ),
            "connection_failed",
        ),
        (aiohttp.ClientError(f"text of a library {SECRET}"), "connection_lost"),
        (OSError(errno.EIO, f"text of a library {SECRET}"), "connection_lost"),
        (OSError(errno.EMFILE, f"text of a library {SECRET}"), "no_descriptors"),
        (ssl.SSLError(f"text of a library {SECRET}"), "tls"),
        (TimeoutError(f"text of a library {SECRET}"), "timeout"),
        (UnicodeError(f"text of a library {SECRET}"), "dns"),
    ],
    ids=["dns", "connector", "client", "os", "descriptors", "ssl", "timeout", "no name"],
)
async def test_a_librarys_exception_becomes_words_of_our_own(
    answers: fake_answers, exception: Exception, cause: str
) -> None:
    answers.post(TOKEN_URL, exception=exception)
    async with endpoint_at(AUTH_URL) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert (error.cause, error.permanent) == (cause, False)
    assert "library" not in str(error)


async def test_a_cancelled_fetch_leaves_nothing_behind() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        gone.set()

    async with raw_server(talk) as url, endpoint_at(url) as endpoint:
        fetching = asyncio.create_task(endpoint.fetch(METRICS))
        await asyncio.wait_for(asked.wait(), WAIT_S)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await asyncio.wait_for(gone.wait(), WAIT_S)
    gc.collect()


# TLS and HTTP proxies


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def grant(_request: web.BaseRequest) -> web.Response:
    return web.json_response(GOOD)


async def test_tls_is_verified_against_the_given_authorities(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with web_server(grant, server_tls) as url, endpoint_at(url, ssl_context=client_tls) as endpoint:
        assert (await endpoint.fetch(METRICS)).project_id == 42


async def test_an_unknown_authority_names_ca_file_and_isnt_retried_soon(server_tls: ssl.SSLContext) -> None:
    async with web_server(grant, server_tls) as url, endpoint_at(url) as endpoint:
        error = await failure(endpoint.fetch(METRICS))
    assert (error.cause, error.permanent, error.retry_after_s) == ("tls", False, TLS_RETRY_S)
    assert "ca_file" in str(error)


async def test_a_certificate_for_another_host_is_a_tls_failure(
    authority: trustme.CA, client_tls: ssl.SSLContext
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(context)
    async with web_server(grant, context) as url, endpoint_at(url, ssl_context=client_tls) as endpoint:
        assert (await failure(endpoint.fetch(METRICS))).cause == "tls"


@openssl_verifies
@pytest.mark.parametrize("name", CASES)
async def test_the_verdict_on_a_certificate_is_the_same_for_a_ca_in_the_systems_store(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setenv("SSL_CERT_FILE", str(case.ca_file(tmp_path)))
    async with RawServer(Upstream(), tls=case.server_side(tmp_path)) as server, make_session() as session:
        endpoint = TokenEndpoint(session, f"https://localhost:{server.port}", allowed_endpoints=ALLOWED)
        error = await failure(endpoint.me_members(CREDENTIALS))
    assert error.cause == ("tls" if case.fault else "malformed")  # the server is no token endpoint
    assert case.fault in str(error)
    assert ("set contentsquare.ca_file" in str(error)) is case.has_unknown_issuer


@asynccontextmanager
async def connect_proxy(status: str, heads: list[bytes]) -> AsyncIterator[str]:
    """An HTTP proxy that answers CONNECT with ``status``, and tunnels if that is 200."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(65536):
            writer.write(part)
        writer.close()

    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        asked = await reader.readuntil(b"\r\n\r\n")
        heads.append(asked)
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if status.startswith("200"):
            host, _, port = asked.split()[1].decode().rpartition(":")
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
            writers.append(inner_writer)
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await turns()
        for writer in writers:
            writer.transport.abort()
        await turns()


async def test_the_request_goes_through_the_http_proxy_with_its_user(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    heads: list[bytes] = []
    async with connect_proxy("200 OK", heads) as authority, web_server(grant, server_tls) as url:
        name = f"http://someone:pass%40word@{authority}"

        def find_proxy(origin: Origin) -> str | None:
            return name if origin.is_tls else None

        async with endpoint_at(url, ssl_context=client_tls, find_proxy=find_proxy) as endpoint:
            assert (await endpoint.fetch(METRICS)).project_id == 42
    assert heads[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"Proxy-Authorization: Basic " + b64encode(b"someone:pass@word") in heads[0]
    assert SECRET.encode() not in heads[0]


async def test_an_http_proxy_that_refuses_is_named_as_such() -> None:
    heads: list[bytes] = []
    async with (
        connect_proxy("407 Proxy Authentication Required", heads) as authority,
        endpoint_at(AUTH_URL, find_proxy=lambda _: f"http://someone:pass-word@{authority}") as endpoint,
    ):
        error = await failure(endpoint.fetch(METRICS))
    assert error.cause == "http_proxy"
    assert "pass-word" not in str(error)


async def test_an_http_proxy_that_is_away_is_named_as_such() -> None:
    port = free_port()
    async with endpoint_at(AUTH_URL, find_proxy=lambda _: f"http://127.0.0.1:{port}") as endpoint:
        assert (await failure(endpoint.fetch(METRICS))).cause == "http_proxy"


# The breaker


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("what", ["no name", "refused", "TLS", "silence", "closed", "no HTTP proxy"])
async def test_a_failure_without_an_answer_opens_the_breaker(what: str, server_tls: ssl.SSLContext) -> None:
    proxy = f"http://127.0.0.1:{free_port()}" if what == "no HTTP proxy" else None
    async with (
        RawServer(_hang) as hanging,
        RawServer(_close) as closing,
        web_server(grant, server_tls) as tls,
    ):
        urls = {"no name": "https://gone.invalid", "TLS": tls, "silence": hanging.url, "closed": closing.url}
        url = urls.get(what) or f"http://127.0.0.1:{free_port()}"
        async with endpoint_at(
            url, total_timeout_s=0.3, find_proxy=lambda _: proxy, breaker=Breaker(url)
        ) as endpoint:
            error = await failure(endpoint.fetch(METRICS))
            assert error.is_outage
            outage = endpoint.outage()
            assert outage is not None
            assert outage.error is error
            assert await failure(endpoint.me_answer(CREDENTIALS)) is error  # a caller isn't kept waiting


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
@pytest.mark.parametrize("failed", [502, 503, 504])
async def test_a_status_opens_the_breaker_if_it_is_the_endpoints_own(
    answers: fake_answers, status: int, failed: int
) -> None:
    answers.post(TOKEN_URL, status=status)
    answers.post(TOKEN_URL, status=failed)
    answers.post(TOKEN_URL, payload=GOOD)
    async with endpoint_at(AUTH_URL, breaker=Breaker(AUTH_URL)) as endpoint:
        await failure(endpoint.fetch(METRICS))
        assert endpoint.outage() is None
        await failure(endpoint.fetch(METRICS))
        assert endpoint.outage() is not None
        await endpoint.fetch(METRICS)
        assert endpoint.outage() is None


# 429, clocks, /v1/oauth/me


async def test_a_429_holds_back_all_requests_of_that_pair_and_no_others(answers: fake_answers) -> None:
    clock = FakeClock()
    answers.post(TOKEN_URL, status=429, headers={"Retry-After": "120"})
    answers.post(TOKEN_URL, payload=GOOD, repeat=True)
    other = TokenRequest(Credentials(client_id="another", client_secret=Secret("x")), Api.METRICS)
    async with endpoint_at(AUTH_URL, clock=clock) as endpoint:
        first = await failure(endpoint.fetch(METRICS))
        clock.now += 20
        second = await failure(endpoint.fetch(TokenRequest(CREDENTIALS, Api.SURVEYS)))
        assert (await endpoint.fetch(other)).project_id == 42
        clock.now += 101
        assert (await endpoint.fetch(METRICS)).project_id == 42
    assert (first.cause, first.retry_after_s) == ("rate_limited", 120)
    assert (second.cause, second.retry_after_s) == ("rate_limited", 100)
    assert sum(len(calls) for calls in answers.requests.values()) == 3


async def test_a_pause_ends_while_the_machine_sleeps(answers: fake_answers) -> None:
    clock = FakeClock()
    answers.post(TOKEN_URL, status=429, headers={"Retry-After": "120"})
    answers.post(TOKEN_URL, payload=GOOD)
    async with endpoint_at(AUTH_URL, clock=clock) as endpoint:
        await failure(endpoint.fetch(METRICS))
        clock.wall -= 3600  # the clock was set, and the machine didn't sleep
        assert (await failure(endpoint.fetch(METRICS))).retry_after_s == 120
        clock.wall += 3600 + 8 * 3600  # the monotonic clock stood still
        assert (await endpoint.fetch(METRICS)).project_id == 42


@pytest.mark.parametrize(("url", "is_asked"), [(AUTH_URL, False), ("https://another.example", True)])
async def test_a_pause_is_taken_over_where_the_same_endpoint_is_asked(
    answers: fake_answers, url: str, *, is_asked: bool
) -> None:
    answers.post(TOKEN_URL, status=429, headers={"Retry-After": "120"})
    answers.post(f"{url}/v1/oauth/token", status=503)
    async with endpoint_at(AUTH_URL) as before, endpoint_at(url) as endpoint:
        endpoint.share_pauses(before)
        await failure(before.fetch(METRICS))  # of a request that goes on: its pause counts for both
        error = await failure(endpoint.fetch(METRICS))
    assert error.cause == ("server_error" if is_asked else "rate_limited")


async def test_a_503_holds_no_other_request_back(answers: fake_answers) -> None:
    answers.post(TOKEN_URL, status=503, headers={"Retry-After": "120"})
    answers.post(TOKEN_URL, payload=GOOD)
    async with endpoint_at(AUTH_URL, clock=FakeClock()) as endpoint:
        assert (await failure(endpoint.fetch(METRICS))).retry_after_s == 120
        assert (await endpoint.fetch(METRICS)).project_id == 42


@pytest.mark.parametrize("ours_ahead_s", [0, 90, -90, 86_400])
async def test_the_clocks_skew_is_known_after_an_answer(answers: fake_answers, ours_ahead_s: int) -> None:
    clock = FakeClock()
    date = format_datetime(datetime.fromtimestamp(clock.wall - ours_ahead_s, UTC), usegmt=True)
    answers.post(TOKEN_URL, status=401, headers={"Date": date})
    async with endpoint_at(AUTH_URL, clock=clock) as endpoint:
        assert endpoint.clock_skew_s is None
        await failure(endpoint.fetch(METRICS))
        assert endpoint.clock_skew_s == pytest.approx(ours_ahead_s, abs=1)


async def test_an_answer_without_a_date_leaves_the_skew_alone(answers: fake_answers) -> None:
    answers.post(TOKEN_URL, payload=GOOD, headers={"Date": "today"})
    async with endpoint_at(AUTH_URL) as endpoint:
        await endpoint.fetch(METRICS)
        assert endpoint.clock_skew_s is None


@pytest.mark.parametrize(
    ("body", "apis"),
    [
        (
            {"scopes": "data-export metrics", "permissions": {"projects": [{"id": 42}]}},
            {Api.DATA_EXPORT, Api.METRICS},
        ),
        ({"scopes": ["enrichment", "surveys", None, 5]}, {Api.ENRICHMENT, Api.SURVEYS}),
        ({"scope": "metrics,speed-analysis"}, {Api.METRICS, Api.SPEED_ANALYSIS}),
        ({"scopes": "metrics something-new"}, {Api.METRICS}),
        ({"scopes": ""}, set()),
        ({"scopes": 5}, None),
        ({}, None),
        ([], None),
    ],
)
async def test_the_credentials_scopes_are_read_leniently(
    answers: fake_answers, body: object, apis: set[Api] | None
) -> None:
    answers.post(ME_URL, body=json.dumps(body))
    async with endpoint_at(AUTH_URL) as endpoint:
        assert await apis_named(endpoint.me_members(CREDENTIALS)) == apis
    [(_, calls)] = answers.requests.items()
    assert json.loads(calls[0].kwargs["data"]) == {"client_id": "an-id-5f1c", "client_secret": SECRET}


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_scopes_that_cant_be_read_are_none_and_me_says_why(answers: fake_answers, status: int) -> None:
    answers.post(ME_URL, status=status, repeat=True)
    async with endpoint_at(AUTH_URL) as endpoint:
        assert await apis_named(endpoint.me_members(CREDENTIALS)) is None
        assert f"answered {status}" in str(await failure(endpoint.me_members(CREDENTIALS)))


@pytest.mark.parametrize("status", [302, 429, 500, 503])
async def test_scopes_that_another_try_may_bring_are_an_error(answers: fake_answers, status: int) -> None:
    answers.post(ME_URL, status=status)
    async with endpoint_at(AUTH_URL) as endpoint:
        assert not (await failure(apis_named(endpoint.me_members(CREDENTIALS)))).permanent


async def test_refused_credentials_are_an_error(answers: fake_answers) -> None:
    answers.post(ME_URL, status=401)
    async with endpoint_at(AUTH_URL) as endpoint:
        assert (await failure(apis_named(endpoint.me_members(CREDENTIALS)))).cause == "credentials_refused"


async def test_scopes_of_an_unreachable_endpoint_are_an_error(answers: fake_answers) -> None:
    answers.post(ME_URL, exception=TimeoutError())
    async with endpoint_at(AUTH_URL) as endpoint:
        assert (await failure(apis_named(endpoint.me_members(CREDENTIALS)))).cause == "timeout"


def test_no_repr_holds_the_secret_or_the_client_id() -> None:
    assert SECRET not in repr(METRICS)
    assert "an-id-5f1c" not in repr(METRICS)


async def test_an_auth_url_that_is_no_base_url_is_refused() -> None:
    async with make_session() as session:
        with pytest.raises(ValueError, match="base URL"):
            TokenEndpoint(session, "https://api.contentsquare.com/v1", allowed_endpoints=ALLOWED)


async def test_an_http_proxy_that_cant_be_used_is_a_failure_that_names_the_variable() -> None:
    def find_proxy(_: Origin) -> str | None:
        raise ConnectFailed("the HTTP proxy must be given as http://host:port; check HTTPS_PROXY")

    async with make_session() as session:
        endpoint = TokenEndpoint(
            session, "https://api.contentsquare.com", allowed_endpoints=["x"], find_proxy=find_proxy
        )
        with pytest.raises(TokenFetchError, match="HTTPS_PROXY") as caught:
            await endpoint.me_members(Credentials(client_id="id", client_secret=Secret("secret")))
    assert caught.value.cause == "http_proxy"
    assert not caught.value.permanent
