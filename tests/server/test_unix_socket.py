"""The Unix socket of `server.unix_socket`: its file is removed by others, replaced by others, and by us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from support.harness import WAIT_S, Gateway, gateway, read_message, until

from proxy.app.app import App
from proxy.server import unix_socket
from proxy.server.listeners import Listeners

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket has about a hundred bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert unix_socket.LOOK_S == 1
    monkeypatch.setattr("proxy.server.unix_socket.LOOK_S", 0.01)
    folder.mkdir()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The events about Unix sockets."""
    events: list[str] = []

    def log(_: App, event: str, values: Mapping[str, object]) -> None:
        if event.startswith("unix_socket"):
            events.append(event)

    monkeypatch.setattr(App, "_log_event", log)
    return events


@contextlib.asynccontextmanager
async def on(path: Path) -> AsyncIterator[Gateway]:
    async with gateway(server={"port": 0, "unix_socket": str(path)}) as proxy:
        yield proxy


async def status(path: Path) -> int:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return (await read_message(reader)).status
    finally:
        writer.close()


async def until_answered(path: Path) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(OSError):
                assert await status(path) == 200
                return
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["file", "folder"])
async def test_a_file_that_was_removed_is_made_again(folder: Path, how: str, told: list[str]) -> None:
    path = folder / "proxy.sock"
    async with on(path):
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(str(path))
            path.unlink()
            if how == "folder":
                os.rmdir(folder)  # noqa: PTH106 - no work
                await until(lambda: "unix_socket_lost" in told)
                os.mkdir(folder)  # noqa: PTH102
            await until_answered(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            writer.write(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await read_message(reader)).status == 200  # connections from before live on
            writer.close()
            lost = ["unix_socket_lost"] if how == "folder" else []
            assert told == [*lost, "unix_socket_made_again"]  # once, however often it was tried
            told.clear()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["a file", "a socket that is answered", "a socket", "a link"])
async def test_another_file_in_its_place_is_left_alone_until_it_goes(
    folder: Path, kind: str, told: list[str]
) -> None:
    path = folder / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with on(path):
            path.unlink()
            if kind == "a file":
                path.write_text("precious")
            elif kind == "a link":
                path.symlink_to(folder / "nothing")
            else:
                other.bind(str(path))
            if kind == "a socket that is answered":
                other.listen()
            number = path.lstat().st_ino
            await until(lambda: told == ["unix_socket_lost"])
            await asyncio.sleep(0.05)  # some more looks
            assert (path.lstat().st_ino, told) == (number, ["unix_socket_lost"])
            path.unlink()
            await until_answered(path)
            assert told == ["unix_socket_lost", "unix_socket_made_again"]


async def test_the_stop_removes_its_own_file_only(folder: Path) -> None:
    path = folder / "proxy.sock"
    async with on(path) as proxy:
        assert path.is_socket()
        await proxy.app.drain(asyncio.Event())
        assert not path.exists()
        path.write_text("of the next proxy")
    assert path.read_text() == "of the next proxy"
    path.unlink()
    async with on(path):
        path.unlink()
        path.write_text("of another program")
    assert path.read_text() == "of another program"


async def test_a_start_that_fails_leaves_no_file(folder: Path) -> None:
    path = folder / "proxy.sock"

    async def fails(*_: object) -> None:
        raise RuntimeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Listeners, "serve", fails)
        with pytest.raises(RuntimeError):
            async with on(path):
                pass
    assert not path.exists()


def test_whether_a_socket_can_be_made_is_seen_without_making_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = folder / "s", folder / "file"
    assert unix_socket.socket_fault(path) is None
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(path))
        assert unix_socket.socket_fault(path) is None  # the proxy's, or that of one that has ended
    assert not other.exists()
    for place in (folder, other):
        other.touch()
        fault = unix_socket.socket_fault(place)
        assert fault is not None
        assert fault.endswith("; something else is there; choose another path")
    monkeypatch.setattr(os, "access", lambda _, mode: not mode & os.W_OK)
    fault = unix_socket.socket_fault(path)
    assert fault is not None
    assert fault.endswith(f"; let this user write to {folder}, or choose another path")
