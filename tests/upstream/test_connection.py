"""Connections to a cloud: how they come about, what each failure is called, and how they are pooled."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from support.harness import OK, WAIT_S, RawServer, Upstream, close, free_port, read_message, until

from proxy.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ProtocolViolation,
    UpstreamError,
    UpstreamSilent,
)
from proxy.http1.heads import Field, ResponseHead
from proxy.origin import Origin
from proxy.upstream.connection import Connection
from proxy.upstream.dial import Dialer, http_proxy_for, tls_context
from proxy.upstream.pool import FRESH, KEEP_ALIVE_S, MOST_READY, Pool, Upstreams

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Sink:
    """Collects an answer; ``done`` has its content, or raises what ended it."""

    done: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    status: int = 0
    content: bytes = b""
    interim: list[int] = field(default_factory=list)
    trailers: list[bytes] = field(default_factory=list)

    def on_informational(self, head: ResponseHead) -> None:
        self.interim.append(head.status)

    def on_head(self, head: ResponseHead) -> None:
        self.status = head.status

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_end(self, trailers: list[Field]) -> None:
        self.trailers = [field.line for field in trailers]
        self.done.set_result(self.content)

    def on_failure(self, error: UpstreamError) -> None:
        self.done.set_exception(error)

    def on_flush(self) -> None: ...

    def on_writable(self, *, writable: bool) -> None: ...


async def exchange(connection: Connection, *, is_head_request: bool = False) -> Sink:
    """One request on a connection, until its answer is complete. Raises what ended it otherwise."""
    sink = Sink()
    connection.start(sink, GET, is_head_request=is_head_request, request_done=True)
    await asyncio.wait_for(sink.done, WAIT_S)
    return sink


def direct(_origin: Origin) -> None:
    """No HTTP proxy."""


def dialer(
    context: ssl.SSLContext | None = None,
    *,
    timeout_s: float = WAIT_S,
    find_proxy: Callable[[Origin], str | None] = direct,
) -> Dialer:
    return Dialer(context or tls_context(), connect_timeout_s=timeout_s, find_proxy=find_proxy)


def pool_of(url: str, using: Dialer | None = None) -> Pool:
    return Pool(Origin.parse(url), using or dialer())


@contextlib.asynccontextmanager
async def closing(pool: Pool) -> AsyncIterator[Pool]:
    """Every connection of the pool is closed at the end."""
    try:
        yield pool
    finally:
        pool.close()
        await asyncio.sleep(0)


async def refusal(pool: Pool) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as caught:
        await pool.connect()
    assert pool.is_unused
    return caught.value


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_side(authority: trustme.CA) -> ssl.SSLContext:
    """A certificate for localhost and for the host that HTTP proxies are asked for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "cloud.example").configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


# Dialing


async def test_nobody_listening_is_a_refused_connection() -> None:
    port = free_port()
    error = await refusal(pool_of(f"http://127.0.0.1:{port}"))
    assert error.proxy_status == "connection_refused"
    assert f"127.0.0.1:{port}" in str(error)


async def test_a_name_that_cant_be_resolved_is_a_dns_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = await refusal(pool_of("https://api.contentsquare.example"))
    assert error.proxy_status == "dns_error"
    assert "api.contentsquare.example" in str(error)


async def test_a_tls_peer_that_says_nothing_is_given_up() -> None:
    async with RawServer(silent) as server:
        pool = pool_of(f"https://localhost:{server.port}", dialer(timeout_s=0.05))
        error = await refusal(pool)
    # The second where the machine is so busy that TLS has not begun by then.
    assert error.proxy_status in ("tls_protocol_error", "connection_timeout")
    assert "within 0.05 s" in str(error)


async def test_a_peer_that_does_not_speak_tls_is_a_tls_error() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with RawServer(script) as server:
        error = await refusal(pool_of(f"https://localhost:{server.port}"))
    assert error.proxy_status == "tls_protocol_error"


async def test_a_server_whose_authority_is_in_ca_file_is_trusted(
    server_side: ssl.SSLContext, ca_file: Path
) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        url = f"https://localhost:{server.port}"
        async with closing(pool_of(url, dialer(tls_context(ca_file)))) as pool:
            connection = await pool.connect()
            for _ in range(2):
                assert (await exchange(connection)).content == b"ok"
    assert len(upstream.requests) == 2


async def test_an_unknown_authority_is_refused_and_the_message_names_ca_file(
    server_side: ssl.SSLContext,
) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        error = await refusal(pool_of(f"https://localhost:{server.port}"))
    assert error.proxy_status == "tls_certificate_error"
    assert "contentsquare.ca_file" in str(error)
    assert not upstream.requests


async def test_a_certificate_for_another_name_is_refused(server_side: ssl.SSLContext, ca_file: Path) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        error = await refusal(pool_of(f"https://127.0.0.1:{server.port}", dialer(tls_context(ca_file))))
    assert error.proxy_status == "tls_certificate_error"
    assert not upstream.requests


def test_a_ca_file_that_holds_no_certificate_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    for content in ("", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"contentsquare\.ca_file"):
            tls_context(path)
    with pytest.raises(ConfigError, match=r"contentsquare\.ca_file"):
        tls_context(tmp_path / "missing.pem")


def test_the_context_verifies_and_speaks_tls_1_2_at_least() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


# Through an HTTP proxy


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


# The pool


async def test_the_connection_used_last_is_used_next() -> None:
    async with RawServer(Upstream()) as server, closing(pool_of(server.url)) as pool:
        first, second = await pool.connect(), await pool.connect()
        await exchange(first)
        await exchange(second)
        assert repr(pool) == f"<Pool {server.url} 2 idle, 0 busy>"
        assert pool.take_idle() is second
        assert pool.take_idle() is first
        assert pool.take_idle() is None
        await exchange(first)
        assert server.connections == 2


async def test_a_busy_connection_is_not_given_out() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        connection.start(Sink(), GET, is_head_request=False, request_done=True)
        assert repr(connection) == f"<Connection {server.url} busy, 1 exchanges>"
        assert repr(pool) == f"<Pool {server.url} 0 idle, 1 busy>"
        assert pool.take_idle() is None
        assert not pool.is_unused
        connection.close()
        assert pool.is_unused


async def test_a_connection_idle_for_longer_than_allowed_is_left_where_it_is() -> None:
    async with RawServer(Upstream()) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        await exchange(connection)
        connection.last_activity -= 10
        assert pool.take_idle(5) is None
        assert pool.take_idle(0) is None
        assert pool.take_idle(15) is connection


async def test_connections_idle_for_too_long_are_closed_the_oldest_first() -> None:
    async with RawServer(Upstream()) as server, closing(pool_of(server.url)) as pool:
        old, young = await pool.connect(), await pool.connect()
        await exchange(old)
        await exchange(young)
        old.last_activity -= KEEP_ALIVE_S + 1
        pool.sweep(60)
        assert not old.is_usable
        assert pool.take_idle() is young
        assert pool.take_idle() is None


async def busy(pool: Pool, count: int) -> list[Connection]:
    """So many connections in use at once."""
    connections = [await pool.connect() for _ in range(count)]
    for connection in connections:
        connection.start(Sink(), GET, is_head_request=False, request_done=True)
    return connections


async def test_one_connection_is_held_ready_and_as_many_as_were_used_at_once_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        pool.sweep(60)
        assert pool.lacks_ready()
        for connection in await busy(pool, 3):
            pool.sweep(60)
            connection.close()
        for _ in range(3):
            assert pool.lacks_ready()
            pool.give_back(await pool.connect())
        assert not pool.lacks_ready()
        monkeypatch.setattr("proxy.upstream.pool.RECENT_S", -1.0)
        for connection in await busy(pool, 5):  # the last count that lasts no time
            pool.sweep(60)
            connection.close()
        while (ready := pool.take_idle()) is not None:
            ready.close()
        assert pool.lacks_ready()
        pool.sweep(60)
        pool.give_back(await pool.connect())
        assert not pool.lacks_ready()


async def test_there_is_a_bound_to_what_is_held_ready() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        used = await busy(pool, MOST_READY + 2)
        pool.sweep(60)
        for connection in used:
            connection.close()
        for _ in range(MOST_READY):
            assert pool.lacks_ready()
            pool.give_back(await pool.connect())
        assert not pool.lacks_ready()


async def test_what_was_opened_ahead_and_not_used_asks_for_no_more() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        for _ in range(3):
            pool.give_back(await pool.connect())
        pool.sweep(60)
        for _ in range(3):
            connection = pool.take_idle()
            assert connection is not None
            connection.close()
        pool.give_back(await pool.connect())
        assert not pool.lacks_ready()


async def test_a_cloud_that_hangs_up_sooner_is_remembered_until_it_no_longer_does() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hang_up.wait()

    hang_up = asyncio.Event()
    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        pool.give_back(connection)
        connection.last_activity -= 10
        assert not pool.lacks_ready()
        hang_up.set()
        await until(lambda: pool.is_unused)
        hang_up.clear()
        connection = await pool.connect()
        pool.give_back(connection)
        assert not pool.lacks_ready()
        connection.last_activity -= 25
        assert pool.lacks_ready()
        connection.last_activity -= KEEP_ALIVE_S
        pool.sweep(60)
        assert pool.is_unused
        connection = await pool.connect()
        pool.give_back(connection)
        connection.last_activity -= 25
        assert not pool.lacks_ready()


async def test_the_successor_of_a_connection_is_opened_before_that_is_too_old() -> None:
    async with RawServer(silent) as server, closing(pool_of(server.url)) as pool:
        connection = await pool.connect()
        pool.give_back(connection)
        assert not pool.lacks_ready()
        connection.last_activity -= FRESH * KEEP_ALIVE_S
        assert pool.lacks_ready()
        assert pool.take_idle() is connection
        connection.close()


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
        assert connection.is_usable
        go_on.set()
        await until(lambda: pool.is_unused)
        assert not connection.is_usable
        assert pool.take_idle() is None
        assert repr(connection) == f"<Connection {server.url} closed, 1 exchanges>"


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
        assert not connection.is_usable


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


async def test_after_the_pool_is_closed_a_busy_connection_ends_with_its_exchange() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        await go_on.wait()
        writer.write(OK)
        await reader.read()

    async with RawServer(script) as server, closing(pool_of(server.url)) as pool:
        connection, sink = await pool.connect(), Sink()
        connection.start(sink, GET, is_head_request=False, request_done=True)
        pool.close()
        go_on.set()
        assert await asyncio.wait_for(sink.done, WAIT_S) == b"ok"
        assert not connection.is_usable
        assert pool.is_unused


async def test_there_is_one_pool_an_origin_and_unused_ones_are_forgotten() -> None:
    async with RawServer(Upstream()) as server:
        upstreams = Upstreams(dialer(), idle_timeout_s=0.04)
        origin = Origin.parse(server.url)
        pool = upstreams.pool(origin)
        assert upstreams.pool(Origin.parse(server.url + "/")) is pool
        assert upstreams.pool(Origin.parse("https://localhost")) is not pool
        connection = await pool.connect()
        await exchange(connection)
        watching = asyncio.create_task(upstreams.run())
        await asyncio.sleep(0.03)
        assert upstreams.pool(origin) is pool
        connection.close()
        await until(lambda: upstreams.pool(origin) is not pool)
        watching.cancel()
        upstreams.close()


async def test_a_pool_is_not_forgotten_while_a_connection_to_it_is_on_its_way() -> None:
    connected = asyncio.Event()

    class SlowDialer(Dialer):
        async def dial(self, origin: Origin, connection: asyncio.Protocol) -> None:
            await connected.wait()

    upstreams = Upstreams(
        SlowDialer(tls_context(), connect_timeout_s=1, find_proxy=lambda _: None), idle_timeout_s=0.004
    )
    pool = upstreams.pool(Origin("http", "127.0.0.1", 1))
    watching = asyncio.create_task(upstreams.run())
    connecting = asyncio.create_task(pool.connect())
    await asyncio.sleep(0.02)
    assert upstreams.pool(pool.origin) is pool
    connected.set()
    await connecting
    watching.cancel()
