"""``csq-proxy stop`` against running proxies, and against programs that tell a wrong process id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import CONFIG, STARTUP_S, run, run_anew, started, write
from support.harness import RawServer, Upstream, free_port, gateway, next_request

from proxy.cli.running_proxy import RunningProxy, Unreachable
from proxy.cli.stop import EVERY_S, GRACE_S, _drains, _has_ended, _held_by, stop

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells who holds a socket")
KEY = "a-key-of-16-bytes-or-more"


def config(folder: Path, server: str) -> str:
    return str(write(folder / "config.toml", CONFIG.replace("port = 0", server)))


def test_where_quit_is_allowed_it_is_asked_for(environ: dict[str, str], tmp_path: Path) -> None:
    file = config(tmp_path, "port = 0\nallow_quit = true")
    with started("serve", "--config", file, environ=environ, cwd=tmp_path) as proxy:
        url = proxy.listening()
        ended = run_anew("stop", "--url", url, environ=environ, cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Stopped.\n", "")
        assert proxy.end()[0] == 0
    ended = run("stop", "--url", url, environ=environ, cwd=tmp_path)
    assert ended.returncode == 1
    assert "can't be reached" in ended.stderr


async def test_a_command_says_that_the_proxy_may_be_stopping() -> None:
    """The listeners close first, so that a balancer sends its calls to another proxy."""
    kill = asyncio.Event()
    async with gateway(server={"drain_timeout": 60}) as proxy:
        _, caller = await asyncio.open_connection("127.0.0.1", proxy.port)
        caller.write(b"POST /v1/oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{")
        place = RunningProxy(f"http://127.0.0.1:{proxy.port}", None, None)
        await asyncio.to_thread(place.status)
        drain = asyncio.create_task(proxy.app.drain(kill))
        while not proxy.app.overview.is_stopping:
            await asyncio.sleep(0)
        with pytest.raises(Unreachable, match="it isn't running, or it is stopping"):
            await asyncio.to_thread(place.status)
        kill.set()
        await drain
        caller.close()


@on_linux
async def test_a_second_stop_waits_for_the_end_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, looked, go, loop = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    async def cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_request(reader)
        asked.set()
        await go.wait()
        writer.write(b"HTTP/1.1 204 X\r\n\r\n")

    def seen(url: str) -> bool:
        loop.call_soon_threadsafe(looked.set)
        return _drains(url)

    monkeypatch.setattr("proxy.cli.stop._drains", seen)
    async with gateway(cloud, server={"drain_timeout": 60}) as proxy:
        request = asyncio.create_task(proxy.call(b"GET /v1/segments"))
        await asked.wait()
        place = RunningProxy(f"http://127.0.0.1:{proxy.port}", None, None)
        await asyncio.to_thread(place.status)
        assert not _drains(place.url)  # it listens
        drain = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        while not proxy.app.overview.is_stopping:
            await asyncio.sleep(0)
        second = asyncio.create_task(asyncio.to_thread(stop, place))
        await looked.wait()
        looked.clear()
        await looked.wait()  # it goes on waiting
        assert not second.done()
        go.set()
        assert (await request).status == 204
        await drain
    await second
    assert capsys.readouterr().out.endswith("\nStopped.\n")
    assert not _drains(place.url)


@on_linux
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_process_that_holds_the_port_gets_sigterm(
    host: str, environ: dict[str, str], tmp_path: Path
) -> None:
    file = config(tmp_path, f'port = 0\nhost = "{host}"')
    variables = {**environ, "CSQ_PROXY_CALLERS__BI__KEY": KEY, "CSQ_PROXY_KEY": KEY}
    with started("serve", "--config", file, environ=variables, cwd=tmp_path) as proxy:
        url = f"http://127.0.0.1:{proxy.listening().rpartition(':')[2]}"
        ended = run("stop", "--url", url, environ=variables, cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Stopped.\n", "")
        assert proxy.end()[0] == 0


@on_linux
def test_a_process_that_holds_the_unix_socket_gets_sigterm(environ: dict[str, str], tmp_path: Path) -> None:
    file = config(tmp_path, f'tcp = false\nunix_socket = "{tmp_path / "s"}"')
    with started("serve", "--config", file, environ=environ, cwd=tmp_path) as proxy:
        proxy.listening()
        ended = run("stop", "--config", file, environ=environ, cwd=tmp_path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Stopped.\n", "")
        assert proxy.end()[0] == 0


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_process_that_does_not_hold_the_port_gets_no_signal(
    environ: dict[str, str], tmp_path: Path
) -> None:
    other = subprocess.Popen(  # noqa: ASYNC220 - begins without a wait
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    )
    status = json.dumps({"projects": {}, "pid": other.pid}).encode()
    answers = {
        b"GET": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(status), status),
        b"POS": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    }
    try:
        async with RawServer(Upstream(lambda seen: answers[bytes(seen.head[:3])])) as server:
            ended = await asyncio.to_thread(run, "stop", "--url", server.url, environ=environ, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (1, "")
        for way in ("server.allow_quit", "Ctrl-C", "service manager"):
            assert way in ended.stderr
        assert other.poll() is None
        other.communicate(b"\n", timeout=60)
        assert other.returncode == 0  # its own end
    finally:
        other.kill()


@on_linux
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_without_a_look_at_the_socket_no_process_is_taken_for_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError

    def held(pid: object) -> bool:
        with _held_by(place, pid) as process:
            return process is not None

    async with gateway() as proxy:
        place = RunningProxy(f"http://127.0.0.1:{proxy.port}", None, None)
        assert await asyncio.to_thread(held, os.getpid())
        for pid in (os.getppid(), 1, 0, -1, None, True, "1", 2**22):
            assert not await asyncio.to_thread(held, pid)
        monkeypatch.setattr(Path, "iterdir", refuse)
        assert not await asyncio.to_thread(held, os.getpid())


@on_linux
@pytest.mark.parametrize("program", ["proxy", "csq-proxy", "csq-proxy.pyz", "csq-proxy-linux-x86_64"])
def test_without_a_look_at_the_socket_a_csq_proxy_of_the_same_user_is_taken_for_it(
    program: str, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / program, "from proxy.__main__ import main; main()")
    code = f"import os, sys; os.execv(sys.executable, [sys.executable, {program!r}, *sys.argv[1:]])"

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    with started("serve", "--sandbox", "--port", "0", environ=environ, cwd=tmp_path, code=code) as proxy:
        place = RunningProxy(proxy.listening(), None, None)
        with _held_by(place, proxy.process.pid) as process:
            assert process is not None
        monkeypatch.setattr("proxy.cli.stop._is_ours", lambda _: True)
        monkeypatch.setattr(os, "getuid", lambda: 64_209)  # the socket is of another user
        with _held_by(place, proxy.process.pid) as process:
            assert process is None


@on_linux
@pytest.mark.parametrize(
    ("status", "is_signalled"),
    [
        (404, True),
        (405, True),
        (503, False),
        (401, False),
        (403, False),
        (500, False),
    ],
)
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_signal_is_sent_only_where_quit_is_not_allowed(
    status: int, is_signalled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda _, number: sent.append(number))
    state = {"projects": {}, "pid": os.getpid(), "drain_timeout_s": -GRACE_S}  # waits for no time
    content = json.dumps(state).encode()
    answers = {
        b"GET": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content),
        b"POS": b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status,
    }
    async with RawServer(Upstream(lambda seen: answers[bytes(seen.head[:3])])) as server:
        with pytest.raises(SystemExit):
            await asyncio.to_thread(stop, RunningProxy(server.url, None, None))
    assert sent == ([signal.SIGTERM] if is_signalled else [])


@on_linux
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_another_user_s_proxy_is_named_as_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from proxy.config.trust import user_name  # noqa: PLC0415 - Windows has none

    user = user_name(os.getuid())
    async with gateway() as proxy:
        monkeypatch.setattr(os, "getuid", lambda: 64_209)
        with pytest.raises(SystemExit):
            await asyncio.to_thread(stop, RunningProxy(f"http://127.0.0.1:{proxy.port}", None, None))
    said = capsys.readouterr().err
    assert f"can't be stopped from here, as process {os.getpid()} is of the user {user}: " in said


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_container_is_named_as_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    content = json.dumps({"projects": {}, "pid": 1}).encode()
    answers = {
        b"GET": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content),
        b"POS": b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n",
    }
    async with RawServer(Upstream(lambda seen: answers[bytes(seen.head[:3])])) as server:
        with pytest.raises(SystemExit):
            await asyncio.to_thread(stop, RunningProxy(server.url, None, None))
    assert "can't be stopped from here, as it is the first process of a container" in capsys.readouterr().err


def test_an_unknown_process_that_accepts_no_more_is_waited_for() -> None:
    place = RunningProxy(f"http://127.0.0.1:{free_port()}", None, None)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            assert not _has_ended(place, None, process.pid, EVERY_S)
            for pid in (1, 0, -1, None, True, "1"):
                assert _has_ended(place, None, pid, STARTUP_S)
            process.stdin.write(b"\n")
            process.stdin.close()
            assert _has_ended(
                place, None, process.pid, STARTUP_S
            )  # its parent hasn't asked for its exit code
        finally:
            process.kill()


def test_without_quit_a_key_for_some_projects_is_named_as_the_reason(
    environ: dict[str, str], tmp_path: Path
) -> None:
    limits = {"CSQ_PROXY_CALLERS__BI__KEY": KEY, "CSQ_PROXY_CALLERS__BI__PROJECTS": "shop"}
    with started(
        "serve", "--config", config(tmp_path, "port = 0"), environ={**environ, **limits}, cwd=tmp_path
    ) as proxy:
        url = proxy.listening()
        ended = run("stop", "--url", url, environ={**environ, "CSQ_PROXY_KEY": KEY}, cwd=tmp_path)
        assert ended.returncode == 1
        assert "as this key is for some projects alone" in ended.stderr
        assert proxy.process.poll() is None


def test_a_caller_with_limits_cannot_stop_it(environ: dict[str, str], tmp_path: Path) -> None:
    file = config(tmp_path, "port = 0\nallow_quit = true")
    limits = {"CSQ_PROXY_CALLERS__BI__KEY": KEY, "CSQ_PROXY_CALLERS__BI__READ_ONLY": "true"}
    with started("serve", "--config", file, environ={**environ, **limits}, cwd=tmp_path) as proxy:
        url = proxy.listening()
        ended = run("stop", "--url", url, environ={**environ, "CSQ_PROXY_KEY": KEY}, cwd=tmp_path)
        assert ended.returncode == 1
        assert "The caller bi may not stop the proxy" in ended.stderr
        assert (
            run(
                "health", environ={**environ, "CSQ_PROXY_SERVER__PORT": url.rpartition(":")[2]}, cwd=tmp_path
            ).returncode
            == 0
        )
        assert proxy.process.poll() is None
