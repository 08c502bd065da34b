"""What the server uses of aiohttp: public names only. A release that moves one fails here, by name.

When a test fails after an update: read what became of the name in aiohttp's ``web_server.py`` or
``web_runner.py``, adapt `proxy.server.site`, then this list and the version range in pyproject.toml.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import socket
import struct
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.web_runner import BaseRunner, BaseSite, ServerRunner
from aiohttp.web_server import Server
from support.harness import WAIT_S, gateway, read_message

import proxy
from proxy.server.connection import CallerConnection
from proxy.server.request import Listener, Request
from proxy.server.site import CallerServer, CallerSite
from proxy.server.strangers import Strangers

HINT = (
    f"aiohttp {aiohttp.__version__} moved a name that the server uses; see this file's first lines. It is: "
)
LISTENER = Listener(0, "http://localhost", 80, None)
NAMES = [
    (Server, "__call__", ["self"]),
    (Server, "pre_shutdown", ["self"]),
    (Server, "shutdown", ["self", "timeout"]),
    (BaseSite, "start", ["self"]),
    (BaseSite, "stop", ["self"]),
    (BaseRunner, "setup", ["self"]),
    (BaseRunner, "cleanup", ["self"]),
]


@pytest.mark.parametrize(("kind", "name", "expected"), NAMES)
def test_the_method_takes_what_it_took(kind: type, name: str, expected: list[str]) -> None:
    method = getattr(kind, name, None)
    assert method is not None, f"{HINT}{kind.__name__}.{name} is gone"
    found = list(inspect.signature(method).parameters)
    assert found == expected, f"{HINT}{kind.__name__}.{name}{inspect.signature(method)}"


@pytest.mark.parametrize(
    ("kind", "name"), [(Server, "connections"), (BaseSite, "name"), (BaseRunner, "sites")]
)
def test_the_property_is_there(kind: type, name: str) -> None:
    assert isinstance(inspect.getattr_static(kind, name, None), property), f"{HINT}{kind.__name__}.{name}"


@pytest.mark.parametrize("name", ["Server", "ServerRunner", "BaseSite"])
def test_the_class_is_the_public_one(name: str) -> None:
    found = {"Server": Server, "ServerRunner": ServerRunner, "BaseSite": BaseSite}[name]
    assert getattr(web, name, None) is found, f"{HINT}aiohttp.web.{name}"


def test_the_server_uses_no_private_name_of_aiohttp() -> None:
    """What starts with an underscore, in a class below one of aiohttp's, is our own."""
    theirs = {name for kind in (Server, BaseSite, ServerRunner) for name in private_names_of(kind)}
    path = Path(proxy.__file__).parent / "server" / "site.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            assert node.attr not in theirs, f"{path.name}:{node.lineno} uses aiohttp's {node.attr}"


def private_names_of(kind: type) -> set[str]:
    source = inspect.getsource(inspect.getmodule(kind))  # type: ignore[arg-type]
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    [of_kind] = [node for node in nodes if node.name == kind.__name__]
    names = {node.attr for node in ast.walk(of_kind) if isinstance(node, ast.Attribute)}
    names |= {node.name for node in ast.walk(of_kind) if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_only_the_site_knows_aiohttp_s_server() -> None:
    users = [
        path.name
        for path in (Path(proxy.__file__).parent / "server").glob("*.py")
        if "aiohttp." in path.read_text(encoding="utf-8")
    ]
    assert sorted(users) == ["listeners.py", "site.py"]


async def test_connections_and_their_end_are_aiohttp_s_runner_s() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        for _ in range(2):
            writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 3", body=b"abc"))
            assert (await read_message(reader)).status == 200
        [site] = proxy.app._listeners.sites
        assert isinstance(site, CallerSite)
        [connection] = site.server.connections
        assert type(connection) is CallerConnection
        assert not connection.unanswered
    assert await reader.read() == b""


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        targets = [b"/-/healthy", b"/v1/x", b"/-/nothing"] * 6
        writer.write(b"".join(proxy.request(b"GET " + target) for target in targets))
        statuses = [(await read_message(reader)).status for _ in targets]
        assert statuses == [200, 200, 404] * 6


async def test_an_idle_connection_has_no_task() -> None:
    async with gateway() as proxy:
        before = asyncio.all_tasks()
        reader, writer = await proxy.connect()
        for target in (b"/v1/x", b"/-/healthy"):
            writer.write(proxy.request(b"GET " + target))
            assert (await read_message(reader)).status == 200
        await asyncio.sleep(0.01)
        tasks = asyncio.all_tasks() - before
        assert not [task for task in tasks if "CallerConnection" in repr(task.get_coro())]


class Waiting:
    """A handler that waits for ever."""

    def __init__(self) -> None:
        self.handling, self.cancelled = asyncio.Event(), asyncio.Event()

    def try_now(self, request: Request) -> bool:
        return False

    async def run(self, request: Request) -> bool:
        self.handling.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return True


class Begun:
    """A handler that sends every request on, and answers none; ``exchange`` of each is itself."""

    others_wait = False

    def __init__(self) -> None:
        self.handling, self.cancelled = asyncio.Event(), asyncio.Event()

    def try_now(self, request: Request) -> bool:
        request.exchange = self
        self.handling.set()
        return True

    async def run(self, request: Request) -> bool:
        raise AssertionError("it was sent on")

    def abandon(self) -> None:
        self.cancelled.set()


@pytest.mark.parametrize("kind", [Waiting, Begun])
async def test_a_caller_that_leaves_ends_what_is_done_for_it(kind: Any) -> None:
    handler = kind()
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    async with asyncio.TaskGroup() as group:
        server = CallerServer(handler, LISTENER, Strangers(), 8, group.create_task)
        runner = ServerRunner(server)
        await runner.setup()
        site = CallerSite(runner, server, sock, tls=None, spawn=group.create_task, on_event=lambda *_: None)
        await site.start()
        _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            await handler.handling.wait()
            resetting = writer.get_extra_info("socket")
            resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await handler.cancelled.wait()
        await runner.cleanup()
