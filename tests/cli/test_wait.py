"""``csq-proxy wait`` against proxies that become ready, don't, or refuse."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.commands import run, run_anew
from support.harness import RawServer, Upstream, free_port, gateway, next_request

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has no loop


def answer(status: int, content: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(content))
    return head + content


async def wait(url: str, timeout_s: str, environ: dict[str, str], cwd: Path) -> tuple[int, str]:
    ended = await asyncio.to_thread(
        run, "wait", "--url", url, "--timeout", timeout_s, environ=environ, cwd=cwd
    )
    return ended.returncode, ended.stderr


async def test_it_ends_when_the_proxy_is_ready(environ: dict[str, str], tmp_path: Path) -> None:
    async with gateway() as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        assert await wait(url, "60", environ, tmp_path) == (0, "")
        ended = await asyncio.to_thread(run_anew, "wait", "--url", url, environ=environ, cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")


async def test_it_waits_for_a_proxy_without_tokens(environ: dict[str, str], tmp_path: Path) -> None:
    answers = iter((answer(503), answer(503), answer(200, b'{"ready": true}')))
    async with RawServer(Upstream(lambda _: next(answers))) as server:
        assert await wait(server.url, "60", environ, tmp_path) == (0, "")
    assert next(answers, None) is None


@pytest.mark.parametrize(
    ("status", "timeout_s", "says"),
    [
        (503, "0", "not ready"),
        (401, "60", "a program other than csq-proxy answers there"),
        (404, "60", "is it a csq-proxy?"),
        (200, "60", "a program other than csq-proxy answers there"),
    ],
)
async def test_it_ends_with_1_after_the_time_and_at_once_where_waiting_is_no_use(
    status: int, timeout_s: str, says: str, environ: dict[str, str], tmp_path: Path
) -> None:
    async with RawServer(Upstream(lambda _: answer(status))) as server:
        code, errors = await wait(server.url, timeout_s, environ, tmp_path)
    assert code == 1
    assert says in errors


@pytest.mark.parametrize("status", [200, 503])
async def test_an_answer_without_an_end_does_not_hold_it_up(
    status: int, environ: dict[str, str], tmp_path: Path
) -> None:
    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Type: text/event-stream\r\n\r\n" % status)
        while not writer.is_closing():
            writer.write(b"data: x\n\n")
            await asyncio.sleep(0.01)

    async with RawServer(stream) as server:
        code, errors = await wait(server.url, "0", environ, tmp_path)
    assert code == 1
    assert "its answer doesn't end; is it a csq-proxy?" in errors


async def test_an_error_whose_content_does_not_come_is_told(environ: dict[str, str], tmp_path: Path) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 9\r\n\r\n")
        await reader.read()

    async with RawServer(stall) as server:
        code, errors = await wait(server.url, "0", environ, tmp_path)
    assert code == 1
    assert "can't be reached (timed out)" in errors


async def test_a_proxy_that_never_comes_is_told(environ: dict[str, str], tmp_path: Path) -> None:
    code, errors = await wait(f"http://127.0.0.1:{free_port()}", "0", environ, tmp_path)
    assert code == 1
    assert "can't be reached" in errors
