"""A cloud or a token endpoint that is the proxy itself: one request, and at once an answer that says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.certificates import tls_files
from support.commands import started, write
from support.harness import (
    WAIT_S,
    Gateway,
    Message,
    RawServer,
    TokenServer,
    Upstream,
    free_port,
    gateway,
    read_message,
    until,
)

from proxy.upstream.loop import HOSTS_FILE, VIA_NAME

ME = b'{"client_id": "a", "client_secret": "b"}'


@dataclass
class Relay:
    """Something between the proxy and itself, as a container's port or another proxy: it passes bytes on."""

    port: int = 0
    path: str | None = None
    passed: bytes = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.path is None:
            back, forth = await asyncio.open_connection("127.0.0.1", self.port)
        else:
            back, forth = await asyncio.open_unix_connection(self.path)

        async def answers() -> None:
            while data := await back.read(65536):
                writer.write(data)
            writer.close()

        task = asyncio.create_task(answers())
        try:
            while data := await reader.read(65536):
                self.passed += data
                forth.write(data)
        finally:
            forth.close()
            task.cancel()

    def requests(self, path: bytes) -> int:
        return self.passed.count(b" " + path + b" HTTP/1.1\r\n")


def assert_loop(answer: Message) -> None:
    assert (answer.status, answer.error_code) == (502, "PROXY_LOOP")
    assert b"error=proxy_loop_detected" in b"".join(answer.values(b"proxy-status"))
    assert HOSTS_FILE in json.loads(answer.content)["errorMessage"]
    assert not answer.values(b"retry-after")


def assert_one_request(proxy: Gateway) -> None:
    (project,) = proxy.app.projects()
    assert (sum(project.requests.values()), project.running) == (1, 0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []
    monkeypatch.setattr("proxy.app.app.App._log_event", lambda *event: events.append(event[1]))
    return events


# Known by the address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_cloud_that_is_our_own_listener(host: str, told: list[str]) -> None:
    port = free_port()
    async with gateway(server={"port": port}, token=TokenServer(endpoint=f"http://{host}:{port}")) as proxy:
        assert_loop(await proxy.call(b"GET /v1/x"))
        assert_one_request(proxy)
        assert told.count("loop_detected") == 1
        assert "request_failed" not in told
        assert_loop(await proxy.call(b"POST /v1/x", b"Content-Length: 2", body=b"{}"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_token_endpoint_that_is_our_own_listener(host: str) -> None:
    port = free_port()
    elsewhere = {"auth_url": f"http://{host}:{port}"}
    async with gateway(server={"port": port}, contentsquare=elsewhere) as proxy:
        assert_loop(await proxy.call(b"GET /v1/x"))
        assert_loop(await proxy.call(b"POST /v1/oauth/me", b"Content-Length: %d" % len(ME), body=ME))
        assert_one_request(proxy)


@pytest.fixture
def pair(tmp_path: Path) -> Mapping[str, str]:
    """A certificate that the proxy itself has no reason to trust."""
    return tls_files(tmp_path, trustme.CA().issue_cert("api.contentsquare.com"))


@pytest.mark.parametrize("what", ["the token endpoint", "the cloud", "both"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
async def test_a_name_that_the_hosts_file_leads_to_us(
    what: str, address: str, pair: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS: the address is known before the certificate, which would be blamed."""
    port, look_up = free_port(), socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        led_here = host == "api.contentsquare.com" and not options.get("flags")
        return look_up(address if led_here else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("NO_PROXY", "*")
    name = f"https://api.contentsquare.com:{port}"
    token = TokenServer() if what == "the token endpoint" else TokenServer(endpoint=name)
    vendor = {} if what == "the cloud" else {"auth_url": name}
    async with gateway(
        server={"port": port, **(pair if what != "the cloud" else {})}, token=token, contentsquare=vendor
    ) as proxy:
        answer = await (secured(proxy) if what != "the cloud" else proxy.call(b"GET /v1/x"))
        assert_loop(answer)
        assert_one_request(proxy)


async def secured(proxy: Gateway) -> Message:
    """GET /v1/x over TLS, by a caller that trusts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
    writer.write(proxy.request(b"GET /v1/x"))
    try:
        return await read_message(reader)
    finally:
        writer.transport.abort()  # the end of TLS would wait for the other side


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_http_proxy_that_is_our_own_listener(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{host}:{port}")
    cloud = TokenServer(endpoint="https://cloud.contentsquare.com")
    async with gateway(server={"port": port}, token=cloud) as proxy:
        answer = await proxy.call(b"GET /v1/x")
        assert_loop(answer)
        assert "HTTPS_PROXY" in answer.content.decode()
    vendor = {"auth_url": "https://api.contentsquare.com"}
    async with gateway(server={"port": port}, contentsquare=vendor) as proxy:
        assert_loop(await proxy.call(b"GET /v1/x"))


# Known by Via


@pytest.fixture
def short() -> Iterator[str]:
    """A short path for a Unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"{folder}/s"


@contextlib.asynccontextmanager
async def looped(
    *, through: str, path: str | None = None, sharing: bool = False, known: bool = False
) -> AsyncIterator[tuple[Gateway, Relay]]:
    """A proxy that reaches itself ``through`` its token endpoint or its cloud."""
    relay = Relay(free_port(), path)
    async with RawServer(relay) as hop:
        token = TokenServer(endpoint=hop.url)
        vendor = {"auth_url": hop.url} if through == "token" else {}
        hosts = {"allowed_hosts": [hop.url.removeprefix("http://")] if known else []}
        unix = {} if path is None else {"unix_socket": path}
        shop = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"], "coalesce": sharing}
        async with gateway(
            token=token,
            contentsquare=vendor,
            server={"port": relay.port, "drain_timeout": 1, **unix, **hosts},
            projects={"shop": shop},
        ) as proxy:
            yield proxy, relay


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("known", [False, True], ids=["a-foreign-host", "an-allowed-host"])
async def test_a_request_that_comes_back_is_answered_at_once(known: bool, sharing: bool) -> None:
    async with looped(through="cloud", sharing=sharing, known=known) as (proxy, relay):
        assert_loop(await proxy.call(b"GET /v1/x"))
        assert relay.requests(b"/v1/x") == 1
        assert_one_request(proxy)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
async def test_a_request_that_comes_back_by_the_unix_socket(short: str) -> None:
    async with looped(through="cloud", path=short) as (proxy, relay):
        assert_loop(await proxy.call(b"GET /v1/x"))
        assert relay.requests(b"/v1/x") == 1


async def test_a_token_request_that_comes_back_is_no_token_and_no_flood(told: list[str]) -> None:
    async with looped(through="token") as (proxy, relay):
        assert_loop(await proxy.call(b"GET /v1/x"))
        began = asyncio.get_running_loop().time()
        for _ in range(20):
            assert_loop(await proxy.call(b"GET /v1/x"))
            await asyncio.sleep(0.05)
        took_s = asyncio.get_running_loop().time() - began
        assert relay.requests(b"/v1/oauth/token") <= 4 + took_s  # gaps of 0.25 s, 0.5 s, ..., 3 s
        assert told.count("token_endpoint_failed") == 1


async def test_a_request_for_me_that_comes_back_is_answered_at_once() -> None:
    async with looped(through="token") as (proxy, relay):
        await until(lambda: relay.requests(b"/v1/oauth/token"))
        for _ in range(3):
            answer = await proxy.call(b"POST /v1/oauth/me", b"Content-Length: %d" % len(ME), body=ME)
            assert_loop(answer)
        assert relay.requests(b"/v1/oauth/me") <= 1  # none, where the outage is known already


# Two proxies


PROXY = """
[server]
port = 0
[contentsquare]
auth_url = "{auth_url}"
allowed_endpoints = ["{allowed}"]
[projects.shop]
client_id = "id-1"
client_secret = "secret-1"
apis = ["metrics"]
"""


@pytest.mark.parametrize("comes_back", [False, True], ids=["chain", "circle"])
async def test_two_proxies_in_a_row_work_and_two_in_a_circle_are_a_loop(
    comes_back: bool, tmp_path: Path, environ: dict[str, str]
) -> None:
    cloud, port = Upstream(), free_port()
    async with RawServer(cloud) as upstream:
        second = f"http://127.0.0.1:{port}" if comes_back else upstream.url
        token = TokenServer(endpoint=second)
        async with RawServer(token) as tokens:
            text = PROXY.format(auth_url=tokens.url, allowed=second.removeprefix("http://"))
            config = write(tmp_path / "config.toml", text)
            with started("serve", "--config", str(config), environ=environ, cwd=tmp_path) as other:
                base = await asyncio.to_thread(other.listening)
                first = TokenServer(endpoint=base)
                async with gateway(
                    token=first, server={"port": port}, contentsquare={"auth_url": base}
                ) as proxy:
                    async with asyncio.timeout(WAIT_S):
                        answer = await proxy.call(b"GET /v1/x")
                    if comes_back:
                        assert_loop(answer)
                        assert cloud.requests == []
                        return
                    assert (answer.status, answer.body) == (200, b"ok")
                    via = b", ".join(cloud.requests[-1].values(b"via"))
                    names = re.findall(rb"1\.1 (csq-proxy-\w+)", via)
                    assert names[0] == VIA_NAME
                    assert len(set(names)) == len(names) == 2
                    assert len(first.requests) == 0  # the other proxy answered the token request
