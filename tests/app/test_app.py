"""The whole proxy: its listeners, its accounts, how it starts without a token endpoint, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support.certificates import tls_files
from support.harness import (
    OK,
    WAIT_S,
    Gateway,
    Held,
    Message,
    RawServer,
    TokenServer,
    Upstream,
    close,
    free_port,
    gateway,
    read_message,
    settings_for,
    until,
)

from proxy.app.app import App
from proxy.config.settings import Settings
from proxy.errors import ConfigError, ListenError
from proxy.logs.setup import configure
from proxy.tokens import LeaseKeeper

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}
ACCOUNT = {"client_id": "id-2", "client_secret": "secret-2", "projects": [42, 43]}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="csq") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """An app alone, whose token endpoint may not exist."""
    app = App(settings)
    async with app.started():
        yield app


def lone(token_url: str = "http://127.0.0.1:1", **sections: Mapping[str, object]) -> Settings:
    return settings_for(token_url, "http://127.0.0.1:1", **sections)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str = "/v1/x"
) -> Message:
    writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return await read_message(reader)


# Listeners


async def test_a_project_can_have_a_listener_of_its_own_that_needs_no_prefix() -> None:
    upstream = Upstream()
    port = free_port()
    projects = {"shop": {**ONE, "default": True}, "alone": {**ONE, "port": port}}
    async with gateway(upstream, projects=projects) as proxy:
        assert proxy.app.overview.project_url("alone") == f"http://127.0.0.1:{port}"
        assert proxy.app.overview.project_url("shop") == f"http://127.0.0.1:{proxy.port}/shop"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await ask(reader, writer, f"127.0.0.1:{port}", "/shop/v1/x")).status == 200
        assert upstream.requests[0].start_line == b"GET /shop/v1/x HTTP/1.1"
        refused = await ask(reader, writer, f"127.0.0.1:{proxy.port}", "/v1/x")
        assert refused.error_code == "PROXY_HOST_REFUSED"
        await close(writer)
        by_project = {project.name: sum(project.requests.values()) for project in proxy.app.projects()}
        assert by_project == {"shop": 0, "alone": 1}


@needs_unix
async def test_a_unix_socket_is_served_beside_the_port_and_is_its_owners_alone(folder: Path) -> None:
    path = folder / "proxy.sock"
    async with gateway(server={"port": 0, "unix_socket": str(path)}) as proxy:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert proxy.app.listeners[1].url == f"unix:{path}"
        reader, writer = await asyncio.open_unix_connection(str(path))
        for _ in range(2):
            assert (await ask(reader, writer, "localhost")).body == b"ok"
        await close(writer)
        assert (await proxy.call(b"GET /v1/x")).status == 200


@needs_unix
async def test_a_unix_socket_may_be_called_by_the_url_of_the_port(folder: Path) -> None:
    path, port = folder / "p.sock", free_port()
    async with gateway(server={"port": port, "unix_socket": str(path)}):
        reader, writer = await asyncio.open_unix_connection(str(path))
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
            assert (await ask(reader, writer, host)).body == b"ok"
        await close(writer)


@needs_unix
async def test_a_stale_unix_socket_is_replaced(folder: Path) -> None:
    path = folder / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    async with running(lone(server={"port": 0, "unix_socket": str(path)})):
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert (await ask(reader, writer, "localhost", "/-/healthy")).status == 200
        await close(writer)


@needs_unix
@pytest.mark.parametrize("kind", ["a socket in use", "a busy socket", "a file"])
async def test_a_unix_socket_that_is_somebody_elses_is_left_alone(folder: Path, kind: str) -> None:
    path = folder / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as taken, contextlib.ExitStack() as stack:
        if kind == "a file":
            path.write_text("precious")
        else:
            taken.bind(str(path))
            taken.listen(0)
        if kind == "a busy socket":
            for _ in range(2):
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.setblocking(False)
                caller.connect_ex(str(path))
        before = path.stat().st_ino
        with pytest.raises(ListenError, match=r"server\.unix_socket: can't listen on"):
            async with running(lone(server={"port": 0, "unix_socket": str(path)})):
                pass
        assert path.stat().st_ino == before


@needs_unix
@pytest.mark.parametrize(
    ("server", "says"),
    [
        ({"port": 80}, "server.port: can't listen on 127.0.0.1:80 .*; choose another port with --port$"),
        (
            {"tcp": False, "unix_socket": "FOLDER/proxy.sock"},
            "server.unix_socket: .*; let this user write to ",
        ),
    ],
)
async def test_where_it_may_not_listen_it_does_not_blame_another_proxy(
    server: dict[str, Any], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(socket.socket):
        def bind(self, address: Any, /) -> None:
            if self.family == socket.AF_UNIX:
                raise OSError(errno.EROFS, "Read-only file system")
            if address[1]:
                raise PermissionError(errno.EACCES, "Permission denied")
            super().bind(address)

    settings = lone(
        server={k: v.replace("FOLDER", str(folder)) if isinstance(v, str) else v for k, v in server.items()}
    )
    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(ListenError, match=says):
        async with running(settings):
            pass


async def test_a_listener_can_speak_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("localhost", "127.0.0.1")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with gateway(server={"port": 0, **tls_files(tmp_path, pair)}) as proxy:
        url = proxy.app.listeners[0].url
        assert url.startswith("https://127.0.0.1:")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", proxy.port, ssl=context, server_hostname="localhost"
        )
        for _ in range(2):
            assert (await ask(reader, writer, f"localhost:{proxy.port}")).body == b"ok"
        await close(writer)


async def test_a_certificate_that_is_none_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.touch(mode=0o600)
    broken.write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"server\.tls_cert"):
        async with running(lone(server={"port": 0, "tls_cert": str(broken), "tls_key": str(broken)})):
            pass
    with pytest.raises(ConfigError, match=r"contentsquare\.ca_file"):
        async with running(lone(contentsquare={"ca_file": str(broken)})):
            pass


async def test_an_encrypted_key_is_an_error_and_nobody_is_asked_for_a_pass_phrase(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    key.touch(mode=0o600)
    private = serialization.load_pem_private_key(issued.private_key_pem.bytes(), password=None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass phrase"),
        )
    )
    with pytest.raises(ConfigError, match=r"server\.tls_key: is encrypted"):
        async with running(lone(server={"port": 0, "tls_cert": str(cert), "tls_key": str(key)})):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.0/8 is not all there elsewhere")
async def test_on_another_loopback_address_it_is_called_by_that() -> None:
    async with gateway(server={"host": "127.0.0.2", "port": 0}) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.2", proxy.port)
        for host, status in (("127.0.0.2", 200), ("localhost", 200), ("127.0.0.3", 421)):
            assert (await ask(reader, writer, f"{host}:{proxy.port}")).status == status
        await close(writer)


@pytest.mark.skipif(sys.platform == "win32", reason="the error has another number there")
async def test_an_address_of_another_computer_is_told_as_such() -> None:
    server = {"host": "192.0.2.1", "port": 0}  # RFC 5737: nobody's
    with pytest.raises(ListenError, match=r"server\.host: .* give an address of this computer"):
        async with running(lone(server=server, callers={"me": {"key": "a-callers-key"}})):
            pass


async def test_a_taken_port_is_a_listen_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"server\.port: can't listen on 127\.0\.0\.1:{port}"):
            async with running(lone(server={"port": port})):
                pass
        with pytest.raises(ListenError, match=rf"projects\.shop\.port: can't listen on 127\.0\.0\.1:{port}"):
            async with running(lone(projects={"shop": {**ONE, "port": port}})):
                pass


async def test_after_a_failed_start_nothing_is_left_open() -> None:
    first = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError):
            async with running(lone(server={"port": first}, projects={"shop": {**ONE, "port": port}})):
                pass
    async with running(lone(server={"port": first})):
        pass


# Accounts


async def test_an_accounts_project_gets_a_token_of_its_own_with_its_number() -> None:
    upstream = Upstream()
    async with gateway(upstream, accounts={"acme": ACCOUNT}) as proxy:
        for target in (b"GET /acme/42/v1/segments?a", b"GET /acme/43/v1/segments", b"GET /acme/42/v1/goals"):
            assert (await proxy.call(target)).status == 200
        asked = [(request["client_id"], request.get("project_id")) for request in proxy.token.requests]
        assert asked == [("id-1", None), ("id-2", 42), ("id-2", 43)]
        assert [request.start_line for request in upstream.requests] == [
            b"GET /v1/segments?a HTTP/1.1",
            b"GET /v1/segments HTTP/1.1",
            b"GET /v1/goals HTTP/1.1",
        ]
        tokens = [request.values(b"authorization")[0] for request in upstream.requests]
        assert tokens == [b"Bearer token-2", b"Bearer token-3", b"Bearer token-2"]
        assert [project.name for project in proxy.app.projects()] == ["shop", "acme/42", "acme/43"]


async def test_an_accounts_project_that_is_not_allowed_does_not_exist_and_makes_no_token_request() -> None:
    async with gateway(accounts={"acme": ACCOUNT}) as proxy:
        answer = await proxy.call(b"GET /acme/44/v1/segments")
        assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert len(proxy.token.requests) == 1


@pytest.mark.parametrize("apis", [None, ["metrics", "surveys"]])
async def test_a_wrong_number_below_an_account_does_not_make_the_proxy_unready(
    apis: list[str] | None,
) -> None:
    token = TokenServer()
    async with gateway(token=token, accounts={"acme": {**ACCOUNT, "projects": None, "apis": apis}}) as proxy:
        token.status = 403
        answer = await proxy.call(b"GET /acme/999/v1/segments")
        assert (answer.status, answer.error_code) == (503, "PROXY_TOKEN_UNAVAILABLE")
        assert (await proxy.call(b"GET /-/ready")).status == 200
        status = json.loads((await proxy.call(b"GET /-/status")).body)
        assert list(status["projects"]["acme/999"]["apis"]) == ["metrics"]


async def test_one_contentsquare_project_has_one_set_of_slots_however_it_is_addressed() -> None:
    projects = {"shop": {**ONE, "project_id": 42}, "same": {**ONE, "project_id": 42}, "other": ONE}
    async with gateway(projects=projects, accounts={"acme": ACCOUNT}) as proxy:
        await proxy.call(b"GET /acme/42/v1/segments")
        slots = {project.name: project.slots for project in proxy.app.projects()}
        assert slots["shop"] is slots["same"] is slots["acme/42"]
        assert slots["other"] is not slots["shop"]


# Starting without a token endpoint


@dataclass
class Outage:
    """A token endpoint that is out of order until it is repaired."""

    status: int = 503
    token: TokenServer = field(default_factory=TokenServer)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.token.status = self.status
        await self.token(reader, writer)


async def test_the_listener_opens_before_the_token_endpoint_has_answered() -> None:
    asked, release = asyncio.Event(), asyncio.Event()
    token = TokenServer()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await release.wait()
        await token(reader, writer)

    async with RawServer(Upstream()) as upstream, RawServer(slow) as token_server:
        token.endpoint = upstream.url
        async with running(settings_for(token_server.url, upstream.url)) as app:
            proxy = Gateway(app, token, upstream)
            await asked.wait()
            assert (await proxy.call(b"GET /-/healthy")).status == 200
            assert (await proxy.call(b"GET /-/ready")).status == 503
            waiting = asyncio.create_task(proxy.call(b"GET /v1/segments"))
            await asyncio.sleep(0.02)
            assert not waiting.done()
            release.set()
            assert (await waiting).status == 200
            assert (await proxy.call(b"GET /-/ready")).status == 200
            await proxy.aclose()


async def test_without_a_token_requests_get_a_503_and_later_recover_without_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LeaseKeeper._hurry, "__kwdefaults__", {"gap_s": 0.01})
    outage = Outage(403)
    async with RawServer(Upstream()) as upstream, RawServer(outage) as token_server:
        outage.token.endpoint = upstream.url
        async with running(settings_for(token_server.url, upstream.url)) as app:
            proxy = Gateway(app, outage.token, upstream)
            await app.settled(WAIT_S)
            answer = await proxy.call(b"GET /v1/segments")
            assert (answer.status, answer.error_code) == (503, "PROXY_TOKEN_UNAVAILABLE")
            [retry_after] = answer.values(b"retry-after")
            assert 1 <= int(retry_after) <= 300
            assert b"403" in answer.body
            assert (await proxy.call(b"GET /-/ready")).status == 503
            outage.status = 200
            refreshed = await proxy.call(b"POST /-/refresh/shop")
            assert refreshed.status == 202
            async with asyncio.timeout(WAIT_S):
                while (await proxy.call(b"GET /-/ready")).status != 200:
                    await asyncio.sleep(0.02)
            assert (await proxy.call(b"GET /v1/segments")).status == 200
            await proxy.aclose()


async def test_a_token_endpoint_that_is_back_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.tokens.schedule.BACKOFF_S", (0.5, 0.5, 0.5))
    outage = Outage(503)
    async with RawServer(Upstream()) as upstream, RawServer(outage) as token_server:
        outage.token.endpoint = upstream.url
        async with running(settings_for(token_server.url, upstream.url)) as app:
            proxy = Gateway(app, outage.token, upstream)
            await app.settled(WAIT_S)
            assert len(outage.token.requests) == 1
            outage.status = 200
            assert (await proxy.call(b"GET /v1/segments")).status == 200  # it waits for the next try
            await proxy.aclose()


@pytest.mark.parametrize("kind", ["silent", "reset", 403, 429, 500, 200])
async def test_a_project_without_a_token_touches_no_other_project(kind: str | int) -> None:
    token, asked = TokenServer(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        if b"id-2" not in request.body:
            replay = asyncio.StreamReader()
            replay.feed_data(request.head + b"\r\n\r\n" + request.body)
            await token(replay, writer)
            return
        asked.set()
        if kind == "silent":
            await reader.read()
        elif kind == "reset":
            writer.transport.abort()
        elif isinstance(kind, int):
            writer.write(b"HTTP/1.1 %d X\r\nRetry-After: 60\r\nContent-Length: 2\r\n\r\n{]" % kind)

    projects = {"shop": ONE, "dead": {**ONE, "client_id": "id-2"}}
    async with RawServer(Upstream()) as upstream, RawServer(script) as token_server:
        token.endpoint = upstream.url
        async with running(settings_for(token_server.url, upstream.url, projects=projects)) as app:
            proxy = Gateway(app, token, upstream)
            await asked.wait()
            waiting = [asyncio.create_task(proxy.call(b"GET /dead/v1/segments")) for _ in range(30)]
            for _ in range(5):
                assert (await proxy.call(b"GET /shop/v1/segments")).status == 200
            assert (await proxy.call(b"POST /-/refresh/shop")).status == 202
            answer = await proxy.call(b"GET /-/ready")
            assert answer.status == 503
            [reason] = json.loads(answer.body)["waiting_for"]
            assert reason.startswith("dead/metrics: ")
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            await proxy.aclose()


async def test_settling_ends_early_when_the_proxy_is_asked_to_stop() -> None:
    never, stop = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()

    async with RawServer(silent) as token_server, running(lone(token_server.url)) as app:
        stop.set()
        async with asyncio.timeout(WAIT_S):
            await app.settled(60, stop)


# Draining


async def until_begun(proxy: Gateway, held: Held) -> None:
    """Wait until the cloud has the request, and the caller what ``held`` sends at once."""
    await asyncio.wait_for(held.started.wait(), WAIT_S)
    if held.first:
        await until(
            lambda: any(
                one.current is not None and one.current.head_sent
                for one in proxy.app._listeners.connections()
            )
        )


@pytest.mark.parametrize("first", [OK[:-1], b""])
async def test_a_running_request_finishes_while_the_proxy_stops(first: bytes) -> None:
    held = Held(first)
    async with gateway(held) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        await until_begun(proxy, held)
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        async with asyncio.timeout(WAIT_S):
            while not all(one.is_ending for one in proxy.app._listeners.connections()):
                await asyncio.sleep(0.01)
        assert not draining.done()
        assert proxy.app.overview.is_stopping
        held.go_on.set()
        answer = await read_message(reader)
        assert (answer.body, answer.values(b"connection")) == (b"ok", [] if first else [b"close"])
        assert await reader.read() == b""
        await asyncio.wait_for(draining, WAIT_S)


async def test_while_stopping_idle_connections_are_closed_and_new_ones_are_not_accepted() -> None:
    held = Held()
    async with gateway(held) as proxy:
        idle, idle_writer = await proxy.connect()
        assert (await ask(idle, idle_writer, proxy.host.decode(), "/-/healthy")).status == 200
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        await held.started.wait()
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        async with asyncio.timeout(WAIT_S):
            assert await idle.read() == b""
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system likes
            await ask(*(await proxy.connect()), proxy.host.decode())
        held.go_on.set()
        await asyncio.wait_for(draining, WAIT_S)


async def test_a_request_that_comes_as_the_stop_begins_is_answered_or_its_connection_closed() -> None:
    # A balancer sends a GET again, to another process, where the connection ended, and not after a 503.
    async with gateway() as proxy:
        opened = [await proxy.connect() for _ in range(20)]
        for _, writer in opened:
            writer.write(proxy.request(b"GET /v1/x"))
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        for reader, _ in opened:
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(), WAIT_S)
            assert not answer or answer.startswith(b"HTTP/1.1 200 ")
        await asyncio.wait_for(draining, WAIT_S)


@pytest.mark.parametrize("first", [OK[:-1], b""])
async def test_a_request_that_comes_after_another_on_a_kept_connection_isnt_begun(first: bytes) -> None:
    held = Held(first)
    async with gateway(held) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        await until_begun(proxy, held)
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        await until(lambda: all(one.is_ending for one in proxy.app._listeners.connections()))
        writer.write(proxy.request(b"GET /v1/x"))
        await until(lambda: any(one.unanswered == 2 for one in proxy.app._listeners.connections()))
        held.go_on.set()
        answer = await read_message(reader)
        assert (answer.body, answer.values(b"connection")) == (b"ok", [] if first else [b"close"])
        rest = await reader.read()  # RFC 9112, section 9.6: nothing after "close" is answered
        assert not rest or (first and b"PROXY_STOPPING" in rest)
        await asyncio.wait_for(draining, WAIT_S)


async def test_our_own_answers_say_that_the_connection_ends_too() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        start = proxy.request(b"POST /v1/oauth/token", b"Content-Length: 2")
        writer.write(start + b"{")
        await until(lambda: any(one.unanswered for one in proxy.app._listeners.connections()))
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        await until(lambda: all(one.is_ending for one in proxy.app._listeners.connections()))
        writer.write(b"}")
        answer = await read_message(reader)
        assert answer.status in (400, 503)
        assert answer.values(b"connection") == [b"close"]
        assert await reader.read() == b""
        await asyncio.wait_for(draining, WAIT_S)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_request_that_does_not_finish_in_time_is_aborted(killed: bool) -> None:
    held = Held()
    kill = asyncio.Event()
    timeout = 60 if killed else 0.05
    async with gateway(held, server={"port": 0, "drain_timeout": timeout}) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(proxy.request(b"GET /v1/x"))
        assert await reader.readuntil(b"\r\n\r\no")
        if killed:
            kill.set()
        async with asyncio.timeout(WAIT_S):
            await proxy.app.drain(kill)
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(reader.read(), WAIT_S)
    await close(writer)


async def test_an_answer_that_was_cut_is_not_logged_as_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(OK[:-1])

    configure("info", "json")
    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(reader.read(), WAIT_S)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    cut = [line for line in lines if "status" in line]
    assert [line["event"] for line in cut] == ["request_cut_short"]
    assert "before the answer was complete" in cut[0]["reason"]


# Bugs and secrets


async def test_a_bug_in_a_background_task_ends_the_proxy_with_its_traceback() -> None:
    async def bug() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError("a bug")

    async def life() -> None:
        async with running(lone()) as app, asyncio.timeout(WAIT_S):
            app._spawn(bug())
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await life()
    assert caught.group_contains(ZeroDivisionError, match="a bug")


async def test_a_bug_in_a_request_is_a_500_that_says_nothing_and_the_proxy_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway() as proxy:
        configure("info", "json")
        [project] = proxy.app.projects()
        with monkeypatch.context() as patched:
            patched.setattr(project, "keeper", None)
            answer = await proxy.call(b"GET /v1/x")
        assert (answer.status, answer.error_code) == (500, "PROXY_INTERNAL_ERROR")
        assert b"NoneType" not in answer.body
        assert (await proxy.call(b"GET /v1/x")).status == 200
    assert "TypeError" in capsys.readouterr().err


async def test_a_bug_in_the_counting_costs_no_caller_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway() as proxy:
        configure("info", "json")
        assert (await proxy.call(b"GET /v1/x")).status == 200  # so that the next one has a connection ready
        [project] = proxy.app.projects()
        with monkeypatch.context() as patched:
            patched.setattr(project, "measures", None)
            assert (await proxy.call(b"GET /v1/x")).status == 200
        assert (await proxy.call(b"GET /v1/x")).status == 200
        assert (project.running, project.slots.in_use) == (0, 0)
    assert "request_failed_by_bug" in capsys.readouterr().err


async def test_no_log_line_holds_a_secret_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    standby = {"client_id": "id-2", "client_secret": "canary-standby"}
    projects = {"shop": {**ONE, "client_secret": "canary-secret", "standby": standby}}
    callers = {"tool": {"key": "canary-caller"}}
    async with running(lone(projects=projects, callers=callers)):
        logging.getLogger("any").warning("canary-secret canary-standby canary-caller")
    line = next(line for line in capsys.readouterr().err.splitlines() if "[redacted]" in line)
    assert "canary" not in line


@pytest.fixture(autouse=True)
def _plain_root_logger() -> Iterator[None]:
    """`configure` sets up the process; here it is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


async def test_each_request_is_one_line_of_the_log_without_its_query(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", "json")
    async with gateway() as proxy:
        await proxy.call(b"POST /shop/v1/segments?secret=canary", b"Content-Length: 3", body=b"abc")
        await proxy.call(b"GET /nobody/v1/x/17")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    first, second = (line for line in lines if line["event"] == "request_answered")
    assert {
        key: first[key] for key in ("project", "api", "method", "route", "status", "bytes_in", "bytes_out")
    } == {
        "project": "shop",
        "api": "metrics",
        "method": "POST",
        "route": "/v1/segments",
        "status": 200,
        "bytes_in": 3,
        "bytes_out": 2,
    }
    assert (second["route"], second["status"]) == ("/nobody/v1/x/{id}", 404)
    assert "canary" not in json.dumps(lines)


async def test_the_log_says_whose_answer_a_request_got(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    shop = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"], "cache": "60s"}
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    async with gateway(Upstream(answer), projects={"shop": shop}) as proxy:
        for _ in range(2):
            await proxy.call(b"GET /v1/segments")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    answered = [line for line in lines if line["event"] == "request_answered"]
    assert [(line.get("shared"), line["bytes_out"]) for line in answered] == [(None, 2), ("hit", 2)]


async def test_an_early_answer_reaches_a_caller_that_still_sends_while_the_proxy_stops() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await reader.read()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/exports", b"Content-Length: 3000000", body=b"x" * 100_000))
        await until(lambda: any(one.answered for one in proxy.app._listeners.connections()))
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        await asyncio.sleep(0.05)
        writer.write(b"x" * 1_000_000)
        await writer.drain()
        assert (await read_message(reader)).status == 413
        writer.close()
        await asyncio.wait_for(draining, WAIT_S)
