"""The end of a stop: callers that still wait are told, and the log says that the proxy ended the requests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.certificates import tls_files
from support.harness import (
    OK,
    WAIT_S,
    Gateway,
    Message,
    TokenServer,
    gateway,
    read_message,
    until,
)

from proxy.app import app
from proxy.logs.setup import configure

KEY = "k" * 32
SHOP = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}
CHANGES = [b"POST", b"PUT", b"PATCH", b"DELETE", b"REPORT"]
READS = [b"GET", b"HEAD", b"OPTIONS"]


WARM = b"/v1/warm"


@dataclass
class Silent:
    """A cloud that answers `WARM`, and of other requests' answers no more than ``first``."""

    first: bytes = b""
    requests: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while WARM in (await read_message(reader)).start_line:
            writer.write(OK)
        self.requests += 1
        writer.write(self.first)
        await reader.read()


class Lines(io.StringIO):
    """The log."""

    def __init__(self) -> None:
        super().__init__()
        configure("info", "json", self)

    def of_requests(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in lines if line["event"].startswith("request_")]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@contextlib.asynccontextmanager
async def stopping(script: Any, token: TokenServer | None = None, **sections: Any) -> AsyncIterator[Gateway]:
    """A proxy whose drain is over as soon as it begins."""
    server = {"port": 0, "drain_timeout": 0.01, **sections.pop("server", {})}
    async with gateway(script, token=token, server=server, **sections) as proxy:
        yield proxy


async def drain(proxy: Gateway) -> None:
    await asyncio.wait_for(proxy.app.drain(asyncio.Event()), WAIT_S)


async def asked(proxy: Gateway, start: bytes, *fields: bytes) -> asyncio.StreamReader:
    reader, writer = await proxy.connect()
    writer.write(proxy.request(start, *fields))
    return reader


async def last_answer(reader: asyncio.StreamReader, *, bodyless: bool = False) -> Message:
    """The answer, after which the connection has ended without a reset."""
    async with asyncio.timeout(WAIT_S):
        answer = await read_message(reader, bodyless=bodyless)
        assert await reader.read() == b""
    assert (answer.status, answer.values(b"connection")) == (503, [b"close"])
    return answer


async def warm(proxy: Gateway) -> None:
    """Let there be a token and an idle connection: the next request is sent without a task."""
    assert (await proxy.call(b"GET " + WARM)).status == 200


def running(proxy: Gateway, count: int) -> bool:
    return sum(project.running for project in proxy.app.projects()) == count


# Before a byte of an answer


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("method", READS + CHANGES)
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
async def test_a_caller_that_waits_for_contentsquare_is_told_that_the_proxy_stops(
    method: bytes, version: bytes, is_warm: bool, lines: Lines
) -> None:
    cloud = Silent()
    async with stopping(cloud) as proxy:
        if is_warm:
            await warm(proxy)
        reader, writer = await proxy.connect()
        raw = proxy.request(method + b" /v1/x", b"Connection: keep-alive", b"Content-Length: 0")
        writer.write(raw.replace(b"HTTP/1.1", version))
        await until(lambda: cloud.requests)
        await drain(proxy)
        answer = await last_answer(reader, bodyless=method == b"HEAD")
    assert method == b"HEAD" or answer.error_code == "PROXY_STOPPING"
    if method in CHANGES:
        assert b"The call may have been made: check before you send it again." in answer.body
        assert not answer.values(b"retry-after")
    else:
        assert method == b"HEAD" or b"try again in a moment" in answer.body
        assert answer.values(b"retry-after") == [b"5"]
    line = lines.of_requests()[-1]
    assert (line["event"], line["status"], line["error"]) == ("request_answered", 503, "PROXY_STOPPING")


@pytest.mark.parametrize("count", [1, 40])
async def test_requests_in_slots_and_requests_that_wait_for_slots_end(count: int, lines: Lines) -> None:
    cloud = Silent()
    async with stopping(cloud, contentsquare={"max_concurrency": 3}) as proxy:
        readers = [await asked(proxy, b"POST /v1/x", b"Content-Length: 0") for _ in range(3)]
        await until(lambda: cloud.requests == 3)
        waiting = [await asked(proxy, b"POST /v1/x", b"Content-Length: 0") for _ in range(count)]
        [project] = proxy.app.projects()
        await until(lambda: project.slots.waiting == count)
        await drain(proxy)
        for reader in readers:
            assert b"may have been made" in (await last_answer(reader)).body
        for reader in waiting:  # none of them has taken a slot that another one gave back
            answer = await last_answer(reader)
            assert b"may have been made" not in answer.body
            assert answer.values(b"retry-after") == [b"5"]
        assert cloud.requests == 3
        assert (project.running, project.slots.in_use, project.slots.waiting) == (0, 0, 0)
    assert {line["event"] for line in lines.of_requests()} == {"request_answered"}
    assert len(lines.of_requests()) == 3 + count


async def test_a_request_that_waits_for_a_token_ends(lines: Lines) -> None:
    async with stopping(Silent(), TokenServer(status=503)) as proxy:
        reader = await asked(proxy, b"DELETE /v1/x")
        await until(lambda: running(proxy, 1))
        await drain(proxy)
        answer = await last_answer(reader)
    assert (answer.error_code, answer.values(b"retry-after")) == ("PROXY_STOPPING", [b"5"])
    [line] = lines.of_requests()
    assert (line["event"], line["error"]) == ("request_answered", "PROXY_STOPPING")


async def test_a_second_signal_ends_the_requests_at_once() -> None:
    cloud, kill = Silent(), asyncio.Event()
    async with stopping(cloud, server={"drain_timeout": 600}) as proxy:
        reader = await asked(proxy, b"GET /v1/x")
        await until(lambda: cloud.requests)
        kill.set()
        await asyncio.wait_for(proxy.app.drain(kill), WAIT_S)
        assert (await last_answer(reader)).error_code == "PROXY_STOPPING"


async def test_a_request_whose_content_is_still_coming_ends() -> None:
    # Windows ends the process 5 s after its console, and ``kill`` comes after 4 s.
    assert app.LAST_ANSWERS_S <= 0.5
    cloud = Silent()
    async with stopping(cloud, callers={"app": {"key": KEY}}) as proxy:
        reader, writer = await proxy.connect()
        key = b"X-API-Key: " + KEY.encode()
        writer.write(proxy.request(b"POST /v1/x", key, b"Content-Length: 9", body=b"x"))
        await until(lambda: running(proxy, 1))
        await drain(proxy)
        answer = await asyncio.wait_for(read_message(reader), WAIT_S)
    assert (answer.status, answer.error_code) == (503, "PROXY_STOPPING")


async def test_identical_requests_that_share_an_answer_end() -> None:
    cloud = Silent()
    async with stopping(cloud, projects={"shop": {**SHOP, "coalesce": True}}) as proxy:
        readers = [await asked(proxy, b"GET /v1/x") for _ in range(5)]
        await until(lambda: running(proxy, 5))
        await until(lambda: cloud.requests)
        await drain(proxy)
        for reader in readers:
            assert (await last_answer(reader)).error_code == "PROXY_STOPPING"
        assert cloud.requests == 1


async def test_a_caller_over_tls_gets_the_whole_answer(tmp_path: Path) -> None:
    authority, cloud = trustme.CA(), Silent()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    files = tls_files(tmp_path, authority.issue_cert("127.0.0.1"))
    async with stopping(cloud, server=files) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=trusting)
        writer.write(proxy.request(b"GET /v1/x"))
        await until(lambda: cloud.requests)
        _, answer = await asyncio.gather(drain(proxy), last_answer(reader))
        assert answer.error_code == "PROXY_STOPPING"
        writer.close()


async def test_a_stranger_whose_request_was_still_coming_is_not_taken_for_one_that_left(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.server.site.GRACE_S", 0.01)
    async with stopping(Silent(), server={"drain_timeout": WAIT_S}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/oauth/token", b"Content-Length: 9", body=b"{"))
        await until(lambda: any(one.unanswered for one in proxy.app._listeners.connections()))
        await drain(proxy)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), WAIT_S)
    [line] = lines.of_requests()
    assert (line["event"], line.get("status")) == ("request_cut_short", None)
    assert line["reason"] == "the proxy stopped before its answer"


async def test_a_request_that_waits_for_a_slot_is_not_sent_as_an_answer_is_cut() -> None:
    cloud = Silent(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
    async with stopping(cloud, contentsquare={"max_concurrency": 1}) as proxy:
        await warm(proxy)
        streaming = await asked(proxy, b"GET /v1/x")
        assert await asyncio.wait_for(streaming.readuntil(b"ab"), WAIT_S)
        waiting = await asked(proxy, b"POST /v1/x", b"Content-Length: 0")
        [project] = proxy.app.projects()
        await until(lambda: project.slots.waiting)
        await drain(proxy)
        assert b"try again in a moment" in (await last_answer(waiting)).body
        assert cloud.requests == 1


# After the first byte


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab",
    ],
    ids=["length", "chunked", "until-the-end"],
)
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
async def test_an_answer_that_has_begun_is_cut_and_the_log_says_by_whom(
    first: bytes, version: bytes, is_warm: bool, lines: Lines
) -> None:
    async with stopping(Silent(first)) as proxy:
        if is_warm:
            await warm(proxy)
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x").replace(b"HTTP/1.1", version))
        async with asyncio.timeout(WAIT_S):
            assert (await reader.readuntil(b"ab")).startswith(b"HTTP/1.1 200")
        await drain(proxy)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), WAIT_S)
    line = lines.of_requests()[-1]
    assert (line["event"], line["status"]) == ("request_cut_short", 200)
    assert line["reason"] == "the proxy stopped before its end"
