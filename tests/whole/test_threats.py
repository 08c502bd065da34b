"""The threat model, a test for each threat: what an attacker tries, on the wire or at the process.

The modules have tests of their own (guard, policy, token answers, gateway, log, limits, browser,
canary); here the whole proxy meets each threat.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Running, started
from support.configurations import give_to_a_foreign_group
from support.harness import (
    OK,
    WAIT_S,
    Message,
    RawServer,
    TokenServer,
    Upstream,
    close,
    gateway,
    read_message,
    settings_for,
)

from proxy.app.app import App
from proxy.config.load import load
from proxy.config.settings import CallerSettings
from proxy.errors import ConfigError, ListenError, ProxyError
from proxy.gateway import callers
from proxy.gateway.route import Router
from proxy.secret import Secret

PAIR = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="not on Windows")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc and prctl")

# Web pages, and programs that an attacker can make to call


@pytest.mark.parametrize("host", [b"evil.example:%d", b"0.0.0.0:%d"])  # all: gateway/test_guard.py
async def test_dns_rebinding_and_0_0_0_0_are_a_421_before_anything_else(host: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        for start in (b"GET /v1/x", b"GET /-/status", b"POST /-/refresh/shop", b"GET /nobody/v1/x"):
            value = host.replace(b"%d", b"%d" % proxy.port)
            answer = await proxy.send(
                start + b" HTTP/1.1\r\nHost: " + value + b"\r\nContent-Length: 0\r\n\r\n"
            )
            assert (answer.status, answer.error_code) == (421, "PROXY_HOST_REFUSED")
        assert not upstream.requests
        for good in (b"127.0.0.1:%d", b"localhost:%d"):
            raw = b"GET /v1/x HTTP/1.1\r\nHost: " + good % proxy.port + b"\r\n\r\n"
            assert (await proxy.send(raw)).status == 200


@pytest.mark.parametrize(
    ("start", "lines"),
    [
        pytest.param(b"POST /v1/exports", [b"Content-Type: application/x-www-form-urlencoded"], id="form"),
        pytest.param(b"POST /v1/exports", [b"Content-Type: text/plain", b"Origin: null"], id="text/plain"),
        pytest.param(b"GET /v1/x", [b"Sec-Fetch-Mode: no-cors", b"Sec-Fetch-Dest: image"], id="image"),
        pytest.param(b"GET /v1/x", [b"Origin: https://evil.example"], id="fetch"),
        pytest.param(b"OPTIONS /v1/x", [b"Access-Control-Request-Method: POST"], id="preflight"),
        pytest.param(b"OPTIONS *", [b"Origin: http://localhost"], id="preflight of everything"),
        pytest.param(b"POST /-/refresh/shop", [b"Origin: null"], id="our own pages"),
    ],
)
async def test_cross_site_requests_are_a_403_without_a_cors_field(start: bytes, lines: list[bytes]) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(start, *lines, b"Sec-Fetch-Site: cross-site", b"Content-Length: 0")
        assert (answer.status, answer.error_code) == (403, "PROXY_ORIGIN_REFUSED")
        assert b"access-control" not in answer.head.lower()
        assert not upstream.requests


async def test_ssrf_through_another_local_app_needs_a_key_once_callers_are_defined() -> None:
    upstream = Upstream()
    async with gateway(upstream, callers={"bi": {"key": "key-of-bi"}}) as proxy:
        for target in (b"/v1/x", b"/shop/v1/x?csq_key=", b"/-/status", b"/-/healthy"):
            assert (await proxy.call(b"GET " + target)).status == 401
        assert not upstream.requests


async def test_port_squatting_and_sharing_is_not_possible_while_we_listen() -> None:
    async with gateway() as proxy:
        nowhere = "http://127.0.0.1:1"
        second = App(settings_for(nowhere, nowhere, server={"port": proxy.port}))
        with pytest.raises(ListenError):
            await second.started().__aenter__()
        with socket.socket() as squatter:
            if hasattr(socket, "SO_REUSEPORT"):
                squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match=r"in use|permitted|denied"):
                squatter.bind(("127.0.0.1", proxy.port))


# Other users, containers, machines


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "csq.example"])
def test_other_containers_and_machines_cannot_be_let_in_without_callers(host: str) -> None:
    projects = {"projects": {"shop": PAIR}, "server": {"host": host}}
    with pytest.raises(ConfigError, match=r"server\.host: not a loopback address|server\.host"):
        load(None, projects, {}, search=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def as_nobody(folder: Path, path: Path) -> subprocess.CompletedProcess[bytes]:
    """Another user's attempt to connect, where only the mode of the socket can prevent it."""
    folder.chmod(0o755)
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    command = ["/usr/bin/env", "-i", "python3", "-c", code]
    return subprocess.run(
        command, capture_output=True, check=False, user=65534, group=65534, extra_groups=[], cwd="/"
    )


@unix_only
async def test_other_local_users_cannot_use_the_unix_socket(folder: Path) -> None:
    path = folder / "socket"
    async with gateway(server={"port": 0, "unix_socket": str(path)}):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        if os.geteuid() == 0:
            found = await asyncio.to_thread(as_nobody, folder, path)
            assert found.returncode
            assert b"PermissionError" in found.stderr or b"No such file" in found.stderr


@pytest.mark.parametrize("table", ["callers", "projects"])
async def test_a_read_only_caller_or_project_changes_nothing(table: str) -> None:
    upstream = Upstream()
    tables: dict[str, Any] = {
        "callers": {"bi": {"key": "key-of-bi", "read_only": table == "callers"}},
        "projects": {"shop": {**PAIR, "read_only": table == "projects"}},
    }
    async with gateway(upstream, **tables) as proxy:
        key = (b"X-API-Key: key-of-bi", b"Content-Length: 0")
        for start in (b"POST /v1/exports", b"DELETE /v1/x", b"POST /v1/%65xports", b"PUT /v1/new"):
            assert (await proxy.call(start, *key)).error_code == "PROXY_FORBIDDEN"
        override = b"X-HTTP-Method-Override: DELETE"
        assert (await proxy.call(b"GET /v1/x", *key, override)).error_code == "PROXY_FORBIDDEN"
        assert not upstream.requests


def test_a_callers_key_is_compared_in_constant_time_and_held_as_a_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"bi": "key-of-bi-123", "etl": "key-of-etl-123"}
    known = callers.Callers({name: CallerSettings(key=Secret(key)) for name, key in keys.items()})
    held = {name: getattr(known, name) for name in dir(known) if not name.startswith("__")}
    assert "_by_digest" in held
    assert "key-of" not in repr(held)
    compare = Mock(side_effect=hmac.compare_digest)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    found = known._find(b"key-of-bi-123")
    assert found is not None
    assert found.name == "bi"
    assert compare.call_count == len(keys), "one that is found early is answered earlier"


# A hostile token endpoint or cloud


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "https://169.254.169.254",
        "https://evil.example",
        "https://api.contentsquare.com.evil.example",
        "https://a@api.contentsquare.com",
        "https://api.contentsquare.com:8443",
        "https://10.0.0.1",
        "https://[::1]",
        "https://localhost",
        "http://api.contentsquare.com",
        "https://api.contentsquare.com/../x",
        "https://api.contentsquare.com\\@evil.example",
        "https://xcontentsquare.com",
    ],
)
async def test_ssrf_by_the_endpoint_of_a_token_answer_is_refused_and_the_token_not_sent(
    endpoint: str,
) -> None:
    upstream = Upstream()
    token = TokenServer(extra={"endpoint": endpoint})
    allowed = {"allowed_endpoints": ["*.contentsquare.com"]}
    async with gateway(upstream, token=token, contentsquare=allowed) as proxy:
        [why] = json.loads((await proxy.call(b"GET /-/ready")).content)["waiting_for"]
        assert "endpoint" in why
        assert "refused" in why
        assert not any(project.has_lease for project in proxy.app.projects())
        assert not upstream.requests


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_of_the_token_endpoint_is_not_followed_with_the_secret(status: int) -> None:
    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("called")

    async with RawServer(elsewhere) as other:

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_message(reader)
            location = f"{other.url}/v1/oauth/token".encode()
            writer.write(b"HTTP/1.1 %d Go\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, location))
            await writer.drain()

        async with RawServer(redirect) as token:
            app = App(settings_for(token.url, "http://127.0.0.1:1"))
            async with app.started():
                await app.settled(WAIT_S)
                [project] = app.projects()
                assert "redirect" in str(project.missing())
        assert other.connections == 0


async def test_a_redirect_of_the_cloud_is_the_callers_to_follow_and_leaks_no_token() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/x\r\nContent-Length: 0\r\n\r\n"
    async with RawServer(Upstream()) as other:
        async with gateway(Upstream(answer=moved % other.port)) as proxy:
            answer = await proxy.call(b"GET /v1/x")
            assert answer.status == 302
            assert answer.values(b"location") == [b"http://127.0.0.1:%d/x" % other.port]
            assert b"token-" not in answer.head
        assert other.connections == 0


async def test_absolute_form_that_names_another_host_gets_no_token() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy, RawServer(Upstream()) as other:
        for target in (other.url.encode() + b"/v1/x", b"pany://x/a", b"@evil.example/"):
            answer = await proxy.call(b"GET " + target)
            assert (answer.status, answer.error_code) == (400, "PROXY_BAD_TARGET")
        assert not upstream.requests
        assert not other.connections


async def test_pre_signed_links_reach_the_caller_untouched_and_are_never_fetched_by_us() -> None:
    link = b"https://bucket.s3.example/f.csv?X-Amz-Signature=a%2Bb&X-Amz-Credential=c%2Fd"
    content = b'{"payload":{"files":[{"url":"' + link + b'"}]}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)
    async with gateway(Upstream(answer=answer)) as proxy:
        assert (await proxy.call(b"GET /v1/exports/1/runs/1")).content == content


async def test_a_cookie_of_one_caller_is_never_sent_for_another() -> None:
    upstream = Upstream(answer=OK.replace(b"\r\n", b"\r\nSet-Cookie: session=first; Path=/\r\n", 1))
    async with gateway(upstream) as proxy:
        assert (await proxy.call(b"GET /v1/x")).values(b"set-cookie")
        await proxy.call(b"GET /v1/x")
        assert not any(request.values(b"cookie") for request in upstream.requests)


@pytest.mark.parametrize(
    "token", ["a\r\nX-Evil: y", "a\nb", "a\0b", "a b", "\x7f", "t\u00f6ken", "", 7, None, "x" * 20_000]
)
async def test_header_injection_by_a_token_is_refused(token: Any) -> None:
    upstream = Upstream()
    async with gateway(upstream, token=TokenServer(extra={"access_token": token})) as proxy:
        [why] = json.loads((await proxy.call(b"GET /-/ready")).content)["waiting_for"]
        assert "access_token" in why
        assert b"X-Evil" not in (await proxy.call(b"GET /-/status")).content
        assert not any(project.has_lease for project in proxy.app.projects())
        assert not upstream.requests


@pytest.mark.parametrize("bad", [b"\0", b"\x01", b"\x7f", b"\n", b"\r", b"\x0b"])
async def test_header_injection_by_a_caller_is_a_400(bad: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        for line in (b"A: b%bX-Evil: c" % bad, b"A%b: c" % bad):
            assert (await proxy.call(b"GET /v1/x", line)).status == 400
        assert not upstream.requests


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Content-Length: 5", b"Content-Length: 6"],
        [b"Content-Length: +5"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding : chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        [b"Host: evil.example"],
    ],
)
async def test_request_smuggling_is_refused_and_ends_the_connection(lines: list[bytes]) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        smuggled = b"0\r\n\r\n" + proxy.request(b"GET /v1/smuggled")
        writer.write(proxy.request(b"POST /v1/x", *lines, body=smuggled))
        assert (await read_message(reader)).status in (400, 501)
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        await close(writer)
        assert not upstream.requests


# From one project to another

PARTS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        "/",
        "//",
        ";",
        "%00",
        "%61",
        "%62",
        "v1",
        "x",
        "?",
        "#",
    ]
)


@given(st.lists(PARTS, max_size=12), st.sampled_from(["/", "/a", "/a/", "/a/v1/"]))
def test_tenant_crossing_no_spelling_of_a_path_below_a_is_decided_for_b_or_leaves_a(
    parts: list[str], start: str
) -> None:
    projects: Any = {"a": "A", "b": "B"}
    router = Router(projects)
    target = (start + "".join(parts)).encode()
    try:
        project, _, rest = router.route(target)
    except ProxyError:
        return
    found = str(project)
    first = target.partition(b"?")[0].split(b"/")[1]
    assert found == {b"a": "A", b"b": "B"}[first]
    depth, path = 0, rest.partition(b"?")[0].lower()
    for old, new in ((b"%2e", b"."), (b"%2f", b"/"), (b"%5c", b"/"), (b"\\", b"/")):
        path = path.replace(old, new)
    for segment in path.split(b"/")[1:]:
        depth += {b"..": -1, b".": 0}.get(segment.partition(b";")[0], 1)
        assert depth >= 0, target


async def test_connection_field_tricks_neither_strip_our_fields_nor_smuggle_theirs() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        lines = (
            b"Connection: Authorization, Host, Via, Content-Length, X-Secret, close",
            b"X-Secret: 1",
            b"Authorization: Bearer of-the-caller",
            b"Proxy-Authorization: Basic abc",
            b"Content-Length: 2",
        )
        assert (await proxy.call(b"POST /v1/x", *lines, body=b"ab")).status == 200
        [request] = upstream.requests
        [authorization] = request.values(b"authorization")
        assert authorization.startswith(b"Bearer token-")
        assert request.content == b"ab"
        assert request.values(b"host")
        assert not request.values(b"x-secret") + request.values(b"proxy-authorization")


# Secrets at rest and in the process


@unix_only
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o622, 0o606])
def test_a_configuration_or_secret_file_that_others_can_read_or_change_is_refused(
    mode: int, tmp_path: Path
) -> None:
    secret, config = tmp_path / "secret", tmp_path / "config.toml"
    secret.write_text("of-the-file")
    for exposed in (secret, config):
        text = "client_secret_file = 'secret'" if exposed is secret else "client_secret = 'in-the-file'"
        config.write_text(f"[projects.shop]\nclient_id = 'id'\n{text}\n")
        for path in (secret, config):
            give_to_a_foreign_group(path)
            path.chmod(mode if path is exposed else 0o600)
        if mode & 0o066:
            with pytest.raises(ConfigError, match="chmod 600"):
                load(config, environ={})


SERVE = """
[server]
port = 0
[contentsquare]
auth_url = "http://127.0.0.1:1"
[projects.shop]
client_id = "id-1"
client_secret_file = "secret"
apis = ["metrics"]
"""


@contextlib.contextmanager
def serving(folder: Path, **environ: str) -> Iterator[Running]:
    """The program, with a secret in a file, once it serves."""
    (folder / "config.toml").write_text(SERVE)
    (folder / "secret").touch(mode=0o600)
    (folder / "secret").write_text("canary-of-the-secret-file")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CSQ_", "CONTENTSQ"))}
    arguments = ("serve", "--config", str(folder / "config.toml"))
    with started(*arguments, environ={**kept, **environ}, cwd=folder, anew=True) as proxy:
        proxy.listening()
        yield proxy


@linux_only
def test_secrets_are_in_neither_argv_nor_environ_and_a_crash_leaves_no_core(tmp_path: Path) -> None:
    with serving(tmp_path) as proxy:
        process = proxy.process
        proc = Path(f"/proc/{process.pid}")
        assert "canary" not in (proc / "cmdline").read_text() + (proc / "environ").read_text(errors="replace")
        assert re.search(r"Max core file size +0 +0 ", (proc / "limits").read_text())
        assert proc.stat().st_uid == 0  # not dumpable: other processes of the same user can't read its memory
        process.send_signal(signal.SIGSEGV)
        _, status = os.waitpid(process.pid, 0)
        assert os.WIFSIGNALED(status)
        assert not os.WCOREDUMP(status)
        process.returncode = -signal.SIGSEGV


def test_no_flag_takes_a_secret(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--help"], capture_output=True, text=True, check=True
    )
    assert not [
        word for word in ("secret", "key", "token", "password") if f"--{word}" in found.stdout.lower()
    ]
    assert "--client" not in found.stdout


@unix_only
def test_a_secret_in_the_environment_is_warned_of_once_by_the_variables_name(tmp_path: Path) -> None:
    with serving(tmp_path, CSQ_PROXY_CALLERS__BI__KEY="canary-of-the-environment") as proxy:
        proxy.process.terminate()
        code, logged = proxy.end()
    assert code == 0
    [event] = [
        line for line in map(json.loads, logged.splitlines()) if line["event"] == "secret_in_environment"
    ]
    assert event["level"] == "warning"
    assert event["variables"] == ["CSQ_PROXY_CALLERS__BI__KEY"]
    assert "client_secret_file" in event["better"]
    assert "canary" not in logged + proxy.printed


# The network on the way


async def test_tls_downgrade_a_certificate_of_nobody_we_trust_gets_neither_secret_nor_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.gateway.tries.TOKEN_WAIT_S", 0.1)
    stranger = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.issue_cert("localhost").configure_cert(server)
    token = TokenServer()
    seen: list[Message] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_message(reader))

    async with RawServer(record, tls=server) as cloud:
        endpoint = cloud.url.replace("127.0.0.1", "localhost")
        token.endpoint = endpoint
        async with RawServer(token) as plain, RawServer(record, tls=server) as secured:
            for auth_url in (plain.url, secured.url.replace("127.0.0.1", "localhost")):
                app = App(settings_for(auth_url, endpoint))
                async with app.started():
                    await app.settled(WAIT_S)
                    port = int(app.listeners[0].url.rpartition(":")[2])
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
                    assert (await read_message(reader)).status in (502, 503)
                    await close(writer)
    assert not seen


@pytest.mark.parametrize("url", ["http://api.contentsquare.com", "http://192.0.2.1", "ftp://127.0.0.1"])
def test_tls_downgrade_plain_http_to_anything_but_loopback_is_no_configuration(url: str) -> None:
    values = {"projects": {"shop": PAIR}, "contentsquare": {"auth_url": url}}
    with pytest.raises(ConfigError, match=r"contentsquare\.auth_url"):
        load(None, values, {}, search=False)


@pytest.mark.parametrize("name", ["verify", "insecure", "tls_verify", "skip_verify"])
def test_tls_downgrade_there_is_no_setting_that_stops_verification(name: str) -> None:
    values = {"projects": {"shop": PAIR}, "contentsquare": {name: False}}
    with pytest.raises(ConfigError, match="unknown"):
        load(None, values, {}, search=False)
