"""The counts of calls over restarts of the program, also one that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import Running, get, started, write
from support.harness import WAIT_S, RawServer, TokenServer, Upstream, until

from proxy.projects.calls_file import NAME

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the programs have loops of their own
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send, and no modes")


class Place:
    """A folder with a configuration, and clouds for the programs that run there."""

    def __init__(self, folder: Path, auth_url: str, cloud_url: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.environ = dict(os.environ)
        write(
            folder / "config.toml",
            f"""
            [server]
            port = 0
            state_dir = "state"
            [contentsquare]
            auth_url = "{auth_url}"
            allowed_endpoints = ["{cloud_url.partition("://")[2]}"]
            [projects.shop]
            client_id = "id-1"
            client_secret = "canary-secret"
            apis = ["metrics"]
            quota = 4
            """,
        )

    @contextlib.asynccontextmanager
    async def proxy(self) -> AsyncIterator[tuple[Running, str]]:
        """A program, and its URL."""
        with started("serve", environ=self.environ, cwd=self.folder) as running:
            yield running, await asyncio.to_thread(running.listening)

    def in_file(self) -> int:
        """The calls in the file."""
        with contextlib.suppress(FileNotFoundError):
            months = json.loads((self.state / NAME).read_text())["months"]
            return sum(month["calls"].get("shop", 0) for month in months.values())
        return 0


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    token = TokenServer()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    async with RawServer(Upstream(lambda _message: answer)) as cloud, RawServer(token) as token_server:
        token.endpoint = cloud.url
        yield Place(tmp_path, token_server.url, cloud.url)


async def call(url: str, times: int = 1) -> None:
    for _ in range(times):
        status, _ = await asyncio.to_thread(get, f"{url}/shop/v1/segments")
        assert status == 200


async def status_of(url: str) -> dict[str, Any]:
    status: dict[str, Any] = (await asyncio.to_thread(get, f"{url}/-/status"))[1]
    return status


async def kept(url: str) -> dict[str, Any]:
    """The status, once the file was read."""
    async with asyncio.timeout(WAIT_S):
        while not (status := await status_of(url))["counts"]["kept"]:
            await asyncio.sleep(0.01)
    return status


@POSIX
async def test_the_calls_of_a_killed_proxy_and_of_a_stopped_one_are_counted_after_it(place: Place) -> None:
    async with place.proxy() as (running, url):
        await call(url, 2)
        await kept(url)
        await until(lambda: place.in_file() == 2)
        running.process.kill()
        await asyncio.to_thread(running.process.wait)
    async with place.proxy() as (running, url):
        assert (await kept(url))["projects"]["shop"]["usage"]["calls"] == 2
        await call(url, 2)
        running.process.terminate()
        code, logged = await asyncio.to_thread(running.end)
    assert code == 0
    assert place.in_file() == 4
    [told] = [line for line in map(json.loads, logged.splitlines()) if line["event"] == "quota_reached"]
    assert (told["level"], told["name"], told["calls"], told["quota"]) == ("warning", "shop", 4, 4)
    async with place.proxy() as (running, url):
        usage = (await kept(url))["projects"]["shop"]["usage"]
        running.process.terminate()
        _, logged = await asyncio.to_thread(running.end)
    assert (usage["calls"], usage["quota"]) == (4, 4)
    assert "4 of 4 calls" in usage["notice"]
    assert "quota" not in logged


@POSIX
async def test_two_proxies_of_one_folder_count_the_calls_of_both(place: Place) -> None:
    async with place.proxy() as (first, first_url), place.proxy() as (second, second_url):
        await call(first_url)
        await call(second_url, 2)
        for running in (first, second):
            running.process.terminate()
            assert (await asyncio.to_thread(running.end))[0] == 0
    assert place.in_file() == 3


@POSIX
async def test_a_folder_that_is_lost_while_it_runs_is_told_and_stops_nothing(place: Place) -> None:
    async with place.proxy() as (running, url):
        await kept(url)
        await asyncio.to_thread(place.state.rename, place.folder / "away")
        await call(url)
        running.process.terminate()
        code, logged = await asyncio.to_thread(running.end)
    assert code == 0
    [told] = [line for line in map(json.loads, logged.splitlines()) if line["event"] == "counts_not_saved"]
    assert told["level"] == "warning"
    assert "No such file" in told["error"]
