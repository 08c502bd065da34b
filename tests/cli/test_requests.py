"""``csq-proxy requests`` against a running proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.harness import WAIT_S, TokenServer, Upstream, free_port, gateway

from proxy.cli.requests import duration, folded, text_of

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has no loop
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
PROJECTS = {
    name: {"client_id": f"id-{name}", "client_secret": "secret-1", "apis": ["metrics"]} for name in ("a", "b")
}


def environ(cwd: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CSQ_")}
    return {**inherited, "HOME": str(cwd), **more}


async def run(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    own = environ(cwd, **more)
    return await asyncio.to_thread(commands.run, "requests", *arguments, environ=own, cwd=cwd)


@contextlib.asynccontextmanager
async def following(url: str, *options: str, cwd: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command with ``--follow``, which has said that it follows; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "requests", "--follow", "--url", url, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(cwd, TZ="UTC"),
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(WAIT_S):
            assert await line_of(process.stderr) == f"csq-proxy: following {url}, until Ctrl-C\n"
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    return (await stream.readline()).decode()


async def test_a_line_for_each_request_and_the_newest_last(tmp_path: Path) -> None:
    answers = iter((NO_CONTENT, NO_CONTENT.replace(b"204 No Content", b"500 X\r\nContent-Length: 0")))
    async with gateway(Upstream(lambda _: next(answers)), projects=PROJECTS) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        nothing = await run("--url", url, cwd=tmp_path)
        assert (nothing.returncode, nothing.stdout) == (0, "")
        assert nothing.stderr == f"csq-proxy: {url}: no such request since its start\n"
        await proxy.call(b"GET /a/v1/segments?x=y")
        await proxy.call(b"GET /v1/x", b"X-CSQ-Project: b", b"X-Request-Id: mine")
        await proxy.call(b"GET /nope/v1/x")
        shown = await run("--url", url, cwd=tmp_path, TZ="UTC")
        assert (shown.returncode, shown.stderr) == (0, "")
        first, second, third = shown.stdout.splitlines()
        assert " 204 Contentsquare " in first
        assert first.endswith("  GET /a/v1/segments?")
        assert " 500 Contentsquare " in second
        assert second.endswith("  GET /v1/x  project b, id mine")
        assert " 404 proxy " in third
        assert "PROXY_UNKNOWN_PROJECT" in third
        chosen = await run("--url", url, "--project", "b", "--status", "5xx", "--json", cwd=tmp_path)
        assert [one["route"] for one in json.loads(chosen.stdout)["requests"]] == ["/v1/x"]
        if sys.platform != "win32":
            east = await run("--url", url, cwd=tmp_path, TZ="XXX-05:30")
            assert first.partition(" 204")[0] not in east.stdout  # local time


async def test_a_wrong_option_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        for option, value, said in (("--status", "700", "status must be"), ("--project", "c", "Try a, b")):
            for more in ((), ("--follow",)):
                shown = await run("--url", url, option, value, *more, cwd=tmp_path)
                assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1)
                assert said in shown.stderr


async def test_what_can_t_be_reached_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for options in ((), ("--follow",)):
        shown = await run("--url", url, *options, cwd=tmp_path)
        assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (1, "", 1)
        assert "it isn't running, or it is stopping" in shown.stderr


async def test_switched_off_it_says_so(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS, log={"requests": False}) as proxy:
        await proxy.call(b"GET /a/v1/x")
        shown = await run("--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path)
        assert (shown.returncode, shown.stdout) == (0, "")
        assert "log.requests is false" in shown.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a Ctrl-C is no signal there")
@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_following_outlives_a_restart_of_the_proxy_and_ctrl_c_ends_it(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    port = free_port()
    server = {"port": port, "drain_timeout": 1}
    url = f"http://127.0.0.1:{port}"
    sections: Any = {"projects": PROJECTS, "server": server}
    async with contextlib.AsyncExitStack() as ends:
        async with gateway(Upstream(NO_CONTENT), token=TokenServer(), **sections) as proxy:
            for number in range(12):
                await proxy.call(b"GET /a/v1/%d" % number)
            process = await ends.enter_async_context(following(url, *options, cwd=tmp_path))
            for number in range(2, 12):  # the last ten
                assert f"/a/v1/{number}" in await line_of(process.stdout)
            await proxy.call(b"GET /b/v1/live")
            assert "/b/v1/live" in await line_of(process.stdout)
        assert "waiting for it" in await line_of(process.stderr)
        async with gateway(Upstream(NO_CONTENT), token=TokenServer(), **sections) as proxy:
            await proxy.call(b"GET /a/v1/again")
            assert await line_of(process.stderr) == f"csq-proxy: {url}: reached again\n"
            assert "/a/v1/again" in await line_of(process.stdout)
            process.send_signal(signal.SIGINT)
            rest = await process.communicate()
        assert (process.returncode, rest) == (0, (b"", b""))


# ---- the line

ONE = {
    "id": 1,
    "at": "2026-11-29T12:00:00.000Z",
    "project": "shop",
    "caller": "powerbi",
    "method": "GET",
    "route": "/shop/v1/metrics/page-group/12345/conversion-rate",
    "status": 503,
    "source": "proxy",
    "error": "PROXY_QUEUE_TIMEOUT",
    "wait_ms": 60000.0,
    "total_ms": 60001.0,
    "replayed": ["stale", "token"],
    "request_id": "5f1c-12",
}


@pytest.mark.parametrize("width", [50, 80, 200])
@pytest.mark.parametrize("route", [ONE["route"], "/" + "x" * 200, "/v1/x"])
async def test_the_line_fits_the_terminal_and_nothing_of_it_is_lost(width: int, route: str) -> None:
    line = f"12:00:00 {text_of({**ONE, 'route': route})}"
    lines = folded(line, width)
    assert all(len(one) <= width for one in lines)
    assert "".join(lines).replace(" ", "") == line.replace(" ", "")
    assert lines[0].startswith("12:00:00 503 proxy         60.0 s  GET")
    assert all(one.startswith(" " * 9) for one in lines[1:])


async def test_the_words_of_a_line() -> None:
    assert text_of(ONE) == (
        "503 proxy         60.0 s  GET /shop/v1/metrics/page-group/12345/conversion-rate"
        "  PROXY_QUEUE_TIMEOUT, waited 60.0 s, sent again: stale, token, caller powerbi, id 5f1c-12"
    )
    left = {"at": ONE["at"], "method": "GET", "route": "/v1/x", "total_ms": 3, "request_id": "r"}
    assert text_of(left) == "-   nobody          3 ms  GET /v1/x  the caller left before an answer"
    part = {**left, "status": 200, "source": "contentsquare", "reason": "the caller left before its end"}
    assert text_of(part) == "200 Contentsquare   3 ms  GET /v1/x  the caller left before its end"


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.0 s"),
        (99_900, "99.9 s"),
        (99_960, "2 min"),
        (6e6, "100 min"),
    ],
)
async def test_durations_are_short(duration_ms: float, text: str) -> None:
    assert duration(duration_ms) == text
