"""``check --live``: each thing that can go wrong is named, with what to do; 0 only if nothing did."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.certificates import openssl_verifies
from support.commands import STARTUP_S, run, run_anew, started, write
from support.harness import RawServer, free_port, gateway, read_message
from support.ways import silent_dns  # noqa: F401 - a fixture
from support.windows import has_no_access_lists, verifies_certificates

from proxy.cli import live_report
from proxy.cli.live_check import (
    Finding,
    examine,
    expiries,
    short_keys,
    unusable_listeners,
    unwritable_state,
)
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.sandbox import Sandbox, SandboxOptions

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def sandbox(authority: trustme.CA) -> AsyncIterator[Sandbox]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    async with Sandbox(SandboxOptions(ssl_context=context, public_host="localhost")) as running:
        yield running


@pytest.fixture
def values(sandbox: Sandbox, authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    demo = sandbox.projects["demo-eu"]
    return {
        "contentsquare": {
            "auth_url": sandbox.auth_url,
            "ca_file": str(tmp_path / "ca.pem"),
            "allowed_endpoints": sandbox.hosts,
            "connect_timeout": 5,
        },
        "projects": {
            "shop": {
                "client_id": demo.client_id,
                "client_secret": demo.client_secret,
                "project_id": demo.project_id,
                "integration_id": demo.integration_id,
            }
        },
    }


def settings_of(values: dict[str, Any]) -> Settings:
    return load(None, values, {}, search=False)


async def findings_of(values: dict[str, Any]) -> list[Finding]:
    async with asyncio.timeout(60):
        return [finding async for finding in examine(settings_of(values))]


def failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.result == "failed"]


async def test_all_is_well_with_the_sandbox_over_tls(values: dict[str, Any], sandbox: Sandbox) -> None:
    account = sandbox.account
    values["accounts"] = {
        "acme": {"client_id": account.client_id, "client_secret": account.client_secret},
        "some": {
            "client_id": account.client_id,
            "client_secret": account.client_secret,
            "projects": list(account.project_ids),
            "apis": ["metrics"],
        },
    }
    findings = await findings_of(values)
    assert {finding.result for finding in findings} == {"ok"}
    assert [finding.check for finding in findings if not finding.project] == ["dns", "tcp", "tls", "clock"]
    for api in ("data-export", "metrics", "enrichment", "speed-analysis", "surveys"):
        checks = [one.check for one in findings if (one.project, one.api) == ("shop", api)]
        assert checks == ["credentials", "scope", "project", "endpoint"]
    assert {one.project for one in findings} >= {"acme", f"some/{account.project_ids[0]}"}
    assert not any(finding.next_step for finding in findings)
    assert "secret" not in repr(findings)


def wrong_secret(values: dict[str, Any]) -> None:
    values["projects"]["shop"]["client_secret"] = "wrong-canary-1"


def unknown_authority(values: dict[str, Any]) -> None:
    del values["contentsquare"]["ca_file"]


def refused_port(values: dict[str, Any]) -> None:
    values["contentsquare"]["auth_url"] = f"https://localhost:{free_port()}"


def no_such_name(values: dict[str, Any]) -> None:
    values["contentsquare"]["auth_url"] = "https://no-such-name.invalid"


def itself(values: dict[str, Any]) -> None:
    port = free_port()
    values["server"] = {"port": port}
    values["contentsquare"]["auth_url"] = f"https://localhost:{port}"


def a_projects_own_port(values: dict[str, Any]) -> None:
    port = free_port()
    values["projects"]["shop"]["port"] = port
    values["contentsquare"]["auth_url"] = f"https://127.0.0.1:{port}"


def foreign_endpoint(values: dict[str, Any]) -> None:
    values["contentsquare"]["allowed_endpoints"] = ["*.contentsquare.com"]


def other_project(values: dict[str, Any]) -> None:
    values["projects"]["shop"].update(project_id=987, apis=["metrics"])


def no_integration(values: dict[str, Any]) -> None:
    values["projects"]["shop"].update(integration_id=987, apis=["enrichment"])


@pytest.mark.parametrize(
    ("change", "check", "says", "todo"),
    [
        (wrong_secret, "credentials", "wrong client_id or client_secret", "over a year old"),
        pytest.param(
            unknown_authority, "tls", "set contentsquare.ca_file", "date", marks=verifies_certificates
        ),
        (refused_port, "tcp", "refused", "firewall"),
        (itself, "loop", "remove Contentsquare's name from the hosts file", "nslookup"),
        (a_projects_own_port, "loop", "is this proxy itself", "hosts file"),
        (no_such_name, "dns", "can't be resolved", "DNS"),
        (foreign_endpoint, "endpoint", "allowed_endpoints", "allowed_endpoints"),
        (other_project, "project", "987", "project_id"),
        (no_integration, "integration", "no such integration", "integration_id"),
    ],
)
async def test_each_failure_is_named_with_the_next_step(
    change: Change, check: str, says: str, todo: str, values: dict[str, Any]
) -> None:
    change(values)
    findings = await findings_of(values)
    assert failed(findings)
    for finding in failed(findings):
        assert finding.check == check
        assert says in finding.message
        assert todo in finding.next_step
    assert "canary" not in repr(findings)


@pytest.mark.usefixtures("silent_dns")
async def test_a_name_server_that_says_nothing_is_the_broken_link(values: dict[str, Any]) -> None:
    no_such_name(values)
    values["contentsquare"]["connect_timeout"] = 0.05
    [finding] = await findings_of(values)
    assert (finding.check, finding.result) == ("dns", "failed")


async def test_the_same_secret_is_named_where_apis_are_configured(values: dict[str, Any]) -> None:
    wrong_secret(values)
    values["projects"]["shop"]["apis"] = ["metrics", "data-export"]
    findings = await findings_of(values)
    assert [(one.check, one.api) for one in failed(findings)] == [
        ("credentials", "metrics"),
        ("credentials", "data-export"),
    ]
    assert [one.check for one in findings if one.result == "warning"] == ["me"]


# An authentication endpoint that says what it is told to


class Told:
    """Answers ``/v1/oauth/me`` and the token request with a status and members."""

    def __init__(self, *, date: float | None = None) -> None:
        self.me: tuple[int, dict[str, object]] = (200, {"scopes": "metrics"})
        self.token: tuple[int, dict[str, object]] = (200, {})
        self.date = date
        self.good = {"access_token": "token-1", "token_type": "bearer", "expires_in": 3600}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        status, members = self.me if b"/me " in request.start_line else self.token
        if request.start_line.startswith(b"POST /v1/oauth/token") and status == 200:
            members = {**self.good, **members}
        content = json.dumps(members).encode()
        date = b"" if self.date is None else b"Date: %b\r\n" % formatdate(self.date, usegmt=True).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n" % (status, date, len(content)) + content
        )
        await writer.drain()


def told_values(url: str, **project: object) -> dict[str, Any]:
    return {
        "contentsquare": {"auth_url": url, "allowed_endpoints": [url.partition("://")[2]]},
        "projects": {"shop": {"client_id": "id-1", "client_secret": "canary-1", **project}},
    }


@pytest.mark.parametrize(
    ("token", "project", "check", "says"),
    [
        ((400, {"error": "invalid_scope"}), {"apis": ["metrics"]}, "scope", "invalid_scope"),
        ((403, {"errorMessage": "No such scope"}), {"apis": ["metrics"]}, "scope", "No such scope"),
        ((200, {"scope": "data-export"}), {"apis": ["metrics"]}, "scope", "got data-export"),
        ((403, {"error_description": "Not your project"}), {"apis": ["metrics"]}, "project", "Not your"),
        ((200, {"project_id": 43}), {"apis": ["metrics"], "project_id": 42}, "project", "43"),
        ((401, {}), {}, "credentials", "401"),
        ((500, {}), {}, "credentials", "wrong client_id or client_secret"),
        ((302, {}), {}, "answer", "redirect"),
        ((503, {}), {}, "answer", "503"),
        ((200, {"endpoint": ""}), {}, "endpoint", "names no endpoint"),
        ((200, {"endpoint": "https://evil.example"}), {}, "endpoint", "evil.example"),
        ((200, {"access_token": ""}), {}, "answer", "access_token"),
    ],
)
async def test_what_the_token_endpoint_says_is_told_apart(
    token: tuple[int, dict[str, object]], project: dict[str, object], check: str, says: str
) -> None:
    told = Told()
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        told.token = token
        [finding] = failed(await findings_of(told_values(server.url, **project)))
    assert (finding.project, finding.api, finding.check) == ("shop", "metrics", check)
    assert says in finding.message
    assert finding.next_step


@pytest.mark.parametrize(
    ("me", "check"),
    [
        ((500, {}), "credentials"),
        ((200, {"scopes": "unheard-of"}), "scope"),
        ((200, {"scopes": "enrichment"}), "integration"),
        ((200, {"scopes": "metrics", "permissions": {"projects": [{"id": 43}]}}), "project"),
        ((503, {}), "answer"),
    ],
)
async def test_what_me_says_counts(me: tuple[int, dict[str, object]], check: str) -> None:
    told = Told()
    told.me = me
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        findings = await findings_of(told_values(server.url, project_id=42))
    assert [finding.check for finding in failed(findings)] == [check]


async def test_what_contentsquare_says_moves_no_cursor_and_shows_no_secret(tmp_path: Path) -> None:
    told = Told()
    told.me = (200, {"scopes": "metrics \x1b[2J\x9b\u202e canary-1"[:20]})
    told.token = (403, {"error": "\x1b[2J\x9b\u202e\nforged", "errorMessage": "1-yranac"})
    async with RawServer(told) as server:
        config = write(
            tmp_path / "config.toml",
            f'[contentsquare]\nauth_url = "{server.url}"\nallowed_endpoints = ["{server.url[7:]}"]\n'
            '[projects.shop]\nclient_id = "id-1"\nclient_secret = "canary-1"\napis = ["metrics"]\n',
        )
        environ = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "200"}
        for arguments in ((), ("--json",)):
            shown = await asyncio.to_thread(
                run, "check", "--live", "--config", str(config), *arguments, environ=environ, cwd=tmp_path
            )
            assert shown.returncode == 1
            for line in (shown.stdout + shown.stderr).splitlines():
                assert line.isprintable(), line
            assert "withheld" in shown.stdout
            assert "1-yranac" not in shown.stdout


async def test_a_cloud_that_is_the_proxy_itself_is_named() -> None:
    told, port = Told(), free_port()
    async with RawServer(told) as server:
        told.good["endpoint"] = f"http://127.0.0.1:{port}"
        values = told_values(server.url) | {"server": {"host": "localhost", "port": port}}
        values["contentsquare"]["allowed_endpoints"].append(f"127.0.0.1:{port}")
        [finding] = failed(await findings_of(values))
    assert (finding.project, finding.api, finding.check) == ("shop", "metrics", "loop")
    assert "hosts file" in finding.message


@pytest.mark.parametrize("project", [{}, {"apis": ["metrics"]}])
async def test_a_running_proxy_that_calls_itself_is_named(project: dict[str, object]) -> None:
    told = Told()
    told.me = (502, {"success": False, "errorCode": "PROXY_LOOP", "errorMessage": "..."})
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        [finding] = failed(await findings_of(told_values(server.url, **project)))
    assert finding.check == "loop"
    assert "hosts file" in finding.message


@pytest.mark.parametrize(("ahead_s", "result"), [(0, "ok"), (300, "warning"), (-300, "warning")])
async def test_a_wrong_clock_is_a_warning(ahead_s: float, result: str) -> None:
    told = Told(date=time.time() - ahead_s)
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        [clock] = [one for one in await findings_of(told_values(server.url)) if one.check == "clock"]
    assert clock.result == result
    if ahead_s:
        assert ("ahead" if ahead_s > 0 else "behind") in clock.message


def test_a_short_key_is_a_warning() -> None:
    callers = {"bi": {"key": "x" * 15}, "app": {"key": "x" * 16}}
    settings = settings_of({**told_values("http://127.0.0.1:1"), "callers": callers})
    [finding] = short_keys(settings)
    assert (finding.check, finding.result) == ("key", "warning")
    assert "of the caller bi has 15 bytes" in finding.message


def test_an_address_that_another_program_has_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        for sock in (taken, other):
            threading.Thread(target=refuse_one, args=(sock,), daemon=True).start()
        port, another = taken.getsockname()[1], other.getsockname()[1]
        values = told_values("http://127.0.0.1:1")
        values["projects"]["shop"]["port"] = another
        settings = settings_of({**values, "server": {"host": "127.0.0.1", "port": port}})
        findings = [*unusable_listeners(settings)]
    assert {(one.check, one.result) for one in findings} == {("listener", "warning")}
    assert [one.message.partition(" (")[0] for one in findings] == [
        f"server.port: can't listen on 127.0.0.1:{port}",
        f"projects.shop.port: can't listen on 127.0.0.1:{another}",
    ]


def refuse_one(server: socket.socket) -> None:
    """Answer one caller as another program does."""
    server.settimeout(STARTUP_S)
    with contextlib.suppress(OSError):
        caller, _ = server.accept()
        with caller:
            caller.recv(4096)
            caller.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


async def test_an_address_that_a_csq_proxy_has_is_no_warning() -> None:
    async with gateway(server={"port": 0, "host": "127.0.0.1"}) as proxy:
        server = {"host": "127.0.0.1", "port": proxy.port}
        settings = settings_of({**told_values("http://127.0.0.1:1"), "server": server})
        assert await asyncio.to_thread(lambda: [*unusable_listeners(settings)]) == []


def test_a_folder_for_counts_that_this_user_cannot_write_to_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    settings = settings_of({**told_values("http://127.0.0.1:1"), "server": {"state_dir": str(tmp_path)}})
    assert [*unwritable_state(settings)] == []
    monkeypatch.setattr(os, "access", lambda *_: False)
    [finding] = unwritable_state(settings)
    assert (finding.check, finding.result) == ("state", "warning")
    assert str(tmp_path) in finding.message


def test_credentials_that_are_about_to_expire_are_a_warning_and_expired_ones_have_failed() -> None:
    values = told_values("http://127.0.0.1:1", expires="2026-03-01")
    values["projects"]["other"] = {"client_id": "id-2", "client_secret": "canary-2"}
    values["accounts"] = {"acme": {"client_id": "id-3", "client_secret": "canary-3", "expires": "2027-03-01"}}
    settings = settings_of(values)

    def told(year: int, month: int, day: int) -> list[tuple[str, str, str]]:
        found = list(expiries(settings, date(year, month, day)))
        assert {one.check for one in found} == {"expires"}
        assert all("console" in one.next_step for one in found if one.result != "ok")
        return [(one.project, one.result, one.message) for one in found]

    well = ("acme", "ok", "the credentials expire in 395 days, on 2027-03-01")
    assert told(2026, 1, 30) == [
        ("shop", "warning", "the credentials expire in 30 days, on 2026-03-01"),
        well,
    ]
    assert [result for _, result, _ in told(2026, 1, 29)] == ["ok", "ok"]
    assert told(2026, 2, 28)[0][1:] == ("warning", "the credentials expire in 1 day, on 2026-03-01")
    assert told(2026, 3, 1)[0][1] == "warning"
    assert told(2026, 3, 2)[0] == ("shop", "failed", "the credentials expired on 2026-03-01")


@pytest.mark.parametrize(
    ("retry_after", "todo"),
    [(b"", "Wait, then try again."), (b"Retry-After: 30\r\n", "Wait 30 s, then try again.")],
)
async def test_too_many_token_requests_are_to_be_waited_for(retry_after: bytes, todo: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 429 X\r\n%bContent-Length: 0\r\n\r\n" % retry_after)
        await writer.drain()

    async with RawServer(refuse) as server:
        findings = await findings_of(told_values(server.url, apis=["metrics"]))
        assert [one.next_step for one in findings if one.result != "ok"] == [todo, todo]
        [finding] = failed(await findings_of(told_values(server.url)))
        assert finding.next_step == todo


async def test_where_me_names_no_api_the_advice_is_not_to_take_one_away() -> None:
    told = Told()
    told.me = (200, {})
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        [finding] = failed(await findings_of(told_values(server.url)))
    assert finding.next_step.endswith("name it in apis.")


async def test_me_asks_for_no_apis_where_they_are_named() -> None:
    told = Told()
    told.me = (503, {})
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        findings = await findings_of(told_values(server.url, apis=["metrics"]))
    [finding] = [one for one in findings if one.result != "ok"]
    assert (finding.check, finding.result) == ("me", "warning")
    assert "name the project's apis" not in finding.next_step


async def test_an_endpoint_that_cannot_be_reached_is_named() -> None:
    told = Told()
    async with RawServer(told) as server:
        nowhere = f"127.0.0.1:{free_port()}"
        told.good["endpoint"] = f"http://{nowhere}"
        values = told_values(server.url)
        values["contentsquare"]["allowed_endpoints"].append(nowhere)
        [finding] = failed(await findings_of(values))
    assert (finding.check, finding.api) == ("tcp", "metrics")
    assert nowhere in finding.message


@openssl_verifies
async def test_a_server_that_is_somebody_elses_or_speaks_no_tls_is_named(
    values: dict[str, Any], authority: trustme.CA
) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with RawServer(plain) as server:
        values["contentsquare"]["auth_url"] = server.url.replace("http:", "https:")
        [_, finding] = await findings_of(values)
        assert (finding.check, finding.result) == ("tls", "failed")
    other, old = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    authority.issue_cert("other.example").configure_cert(other)
    past = datetime.now(UTC) - timedelta(days=3)
    authority.issue_cert("localhost", not_before=past, not_after=past + timedelta(days=1)).configure_cert(old)
    for context, says in ((other, "mismatch"), (old, "expired")):
        async with RawServer(Told(), tls=context) as server:
            values["contentsquare"]["auth_url"] = f"https://localhost:{server.port}"
            [finding] = failed(await findings_of(values))
        assert finding.check == "tls"
        assert says in finding.message
        assert "date" in finding.next_step


@verifies_certificates
async def test_an_endpoint_with_another_certificate_is_named(
    values: dict[str, Any], authority: trustme.CA
) -> None:
    stranger, told = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), Told()
    trustme.CA().issue_cert("localhost").configure_cert(stranger)
    known = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(known)
    async with RawServer(told, tls=known) as auth, RawServer(told, tls=stranger) as cloud:
        told.good["endpoint"] = f"https://localhost:{cloud.port}"
        values["contentsquare"]["auth_url"] = f"https://localhost:{auth.port}"
        values["contentsquare"]["allowed_endpoints"] = [f"localhost:{cloud.port}"]
        values["projects"]["shop"]["apis"] = ["metrics"]
        [finding] = failed(await findings_of(values))
    assert (finding.project, finding.api, finding.check) == ("shop", "metrics", "tls")
    assert f"localhost:{cloud.port}" in finding.message


async def test_silence_is_named_with_where_it_is(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawServer(silent) as server:
        values["contentsquare"].update(auth_url=f"https://localhost:{server.port}", connect_timeout=1)
        [finding] = failed(await findings_of(values))
        assert finding.check == "tls"
        assert "no TLS with localhost:" in finding.message
        values["contentsquare"].update(auth_url="https://api.contentsquare.example", connect_timeout=0.1)
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        [finding] = failed(await findings_of(values))
        assert (finding.check, "0.1 s" in finding.message) == ("http-proxy", True)


@pytest.mark.parametrize(
    ("answer", "says"), [(b"HTTP/1.1 407 X\r\n\r\n", "user and password"), (b"HTTP/1.1 403 X\r\n\r\n", "403")]
)
async def test_an_http_proxy_that_refuses_is_named(
    answer: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with RawServer(refuse) as server:
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        [finding] = await findings_of(told_values("https://api.contentsquare.example"))
        assert (finding.check, finding.result) == ("http-proxy", "failed")
        assert says in finding.message
    for proxy, named in (
        (f"http://127.0.0.1:{free_port()}", "the HTTP proxy 127.0.0.1:"),
        ("http://no-such-name.invalid:3128", "the HTTP proxy's name no-such-name.invalid"),
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        [finding] = await findings_of(told_values("https://api.contentsquare.example"))
        assert (finding.check, finding.result) == ("http-proxy", "failed")
        assert named in finding.message
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    [finding] = await findings_of(told_values("https://api.contentsquare.example"))
    assert (finding.check, finding.result) == ("http-proxy", "failed")
    assert "HTTPS_PROXY" in finding.next_step


# The command


@pytest.fixture
def served(sandbox: Sandbox, values: dict[str, Any], tmp_path: Path) -> Path:
    vendor, shop = values["contentsquare"], values["projects"]["shop"]
    text = f"""
[contentsquare]
auth_url = "{vendor["auth_url"]}"
ca_file = "ca.pem"
allowed_endpoints = {json.dumps(vendor["allowed_endpoints"])}
[server]
port = 0
[projects.shop]
client_id = "{shop["client_id"]}"
client_secret = "{shop["client_secret"]}"
"""
    return write(tmp_path / "live.toml", text)


@has_no_access_lists
@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is full")
@pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has a loop of its own
async def test_progress_that_can_not_be_shown_is_no_failure(environ: dict[str, str], served: Path) -> None:
    full = """
import os
from proxy.__main__ import main
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
main()
"""
    arguments = ("check", "--live", "--config", str(served))
    unbuffered = {**environ, "PYTHONUNBUFFERED": "1"}
    with started(*arguments, environ=unbuffered, cwd=served.parent, code=full) as ended:
        assert await asyncio.to_thread(ended.end) == (0, "")


@has_no_access_lists
@pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has a loop of its own
async def test_the_command_shows_a_table_and_ends_with_0(environ: dict[str, str], served: Path) -> None:
    def check(*options: str) -> Any:
        arguments = ("check", "--live", "--config", str(served), *options)
        return (run if options else run_anew)(*arguments, environ=environ, cwd=served.parent)

    def in_words(ended: Any) -> str:
        return " ".join(ended.stdout.split())

    narrow = {**environ, "COLUMNS": "80"}
    ended = await asyncio.to_thread(check)
    assert (ended.returncode, "Next:" in ended.stdout) == (0, False), ended.stdout + ended.stderr
    assert ended.stdout.endswith(
        f"All is well.\nTo run it: {sys.executable} -m proxy serve --config {served}\n"
    )
    assert re.search(
        r"shop +data-export, metrics, +credentials, scope,.* ok +https://localhost:\d+ ", ended.stdout
    )
    for columns in ("80", "50"):
        own = {**environ, "COLUMNS": columns}
        ended = await asyncio.to_thread(run, *ended.args[3:], environ=own, cwd=served.parent)
        assert re.search(r"^ +https://localhost:\d+ can be reached *$", ended.stdout, re.MULTILINE)
        assert "shop data-export, metrics," in ended.stdout
    ended = await asyncio.to_thread(check, "--json")
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["ok"]) == (0, True)
    assert told["projects"]["shop"]
    assert {check["result"] for check in told["checks"]} == {"ok"}
    text = await asyncio.to_thread(served.read_text)
    write(served, text.replace("client_secret = ", 'client_secret = "canary"\n#'))
    ended = await asyncio.to_thread(check)
    assert ended.returncode == 1
    assert "Next:" in ended.stdout
    assert "1 failed." in ended.stdout
    assert "Traceback" not in ended.stderr
    ended = await asyncio.to_thread(lambda: run(*ended.args[3:], environ=narrow, cwd=served.parent))
    assert "Next: Compare client_id and client_secret with the Contentsquare console;" in in_words(ended)
    assert "; they may be wrong, deleted, or over a year old." in in_words(ended)
    ended = await asyncio.to_thread(check, "--json")
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["ok"]) == (1, False)
    [one] = [check for check in told["checks"] if check["result"] == "failed"]
    assert (one["check"], one["project"]) == ("credentials", "shop")
    assert one["message"].endswith(" (client_secret as it was read: 6 characters, nothing unusual in it)")
    assert "canary" not in ended.stdout + ended.stderr


@has_no_access_lists
async def test_a_warning_is_counted_not_called_well_and_ends_with_1_if_strict(
    environ: dict[str, str], tmp_path: Path
) -> None:
    told = Told(date=time.time() - 172_800)
    async with RawServer(told) as server:
        told.good["endpoint"] = server.url
        tomorrow = datetime.now(UTC).date() + timedelta(days=1)
        text = f"""
[contentsquare]
auth_url = "{server.url}"
allowed_endpoints = ["{server.url.partition("://")[2]}"]
[projects.shop]
client_id = "id"
client_secret = "canary-1"
"""

        async def check(*options: str, expires: date | None = None) -> tuple[int, str, set[str]]:
            path = write(tmp_path / "told.toml", text + (f"expires = {expires}\n" if expires else ""))
            command = ("check", "--config", str(path), *options)
            ended = await asyncio.to_thread(run, *command, environ=environ, cwd=tmp_path)
            coded = await asyncio.to_thread(run, *command, "--json", environ=environ, cwd=tmp_path)
            status = json.loads(coded.stdout)
            assert (coded.returncode, status["ok"]) == (ended.returncode, ended.returncode == 0)
            assert "All is well" not in ended.stdout
            return ended.returncode, ended.stdout, {one["result"] for one in status["checks"]}

        code, shown, results = await check("--live")
        assert (code, results) == (0, {"ok", "warning"})
        assert "\n1 warning.\nTo run it: " in shown
        assert (await check("--live", "--strict"))[::2] == (1, {"ok", "warning"})
        code, shown, results = await check("--live", expires=tomorrow)
        assert (code, results) == (0, {"ok", "warning"})
        assert "\n2 warnings.\nTo run it: " in shown
        code, shown, results = await check("--live", expires=date(2020, 1, 1))
        assert (code, results) == (1, {"ok", "warning", "failed"})
        assert shown.endswith("\n1 failed, 1 warning.\n")
        code, shown, results = await check(expires=date(2020, 1, 1))
        assert (code, results) == (1, {"failed"})
        assert "expired on 2020-01-01" in shown
        assert "1 failed.\n" in shown
        assert (await check(expires=tomorrow))[::2] == (0, {"warning"})
        assert (await check("--strict", expires=tomorrow))[::2] == (1, {"warning"})
        assert (await check("--strict", expires=date(2999, 1, 1)))[::2] == (0, {"ok"})
        assert (await check(expires=date(2999, 1, 1)))[::2] == (0, {"ok"})


def test_what_failed_stands_last_where_300_projects_scroll_by(capsys: pytest.CaptureFixture[str]) -> None:
    live_report.show(
        [Finding(f"shop-{n}", "", "token", "failed" if n == 7 else "ok", "told") for n in range(300)]
    )
    lines = capsys.readouterr().out.splitlines()
    *_, before, last, summary = (line for line in lines if "shop-" in line or "failed" in line)
    assert "shop-299" in before
    assert "shop-7" in last
    assert summary == "1 failed."
