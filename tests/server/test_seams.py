"""The seams of aiohttp that server/connection.py rides on: a release that moves one fails here, by name.

None of them is public. When a test fails after an update: read what became of the named thing in
aiohttp's ``web_protocol.py``, ``base_protocol.py`` or ``web_server.py``, adapt server/connection.py, and then
this list and the version range in pyproject.toml.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from support.harness import WAIT_S, gateway, read_message

from proxy.server.connection import CallerConnection, CallerServer
from proxy.server.request import Request

HINT = f"aiohttp {aiohttp.__version__} moved a seam of the server; see this file's first lines. It is: "


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def slots(kind: type) -> set[str]:
    found: set[str] = set()
    for base in kind.__mro__:
        listed: Iterable[str] = getattr(base, "__slots__", ())
        found.update(listed)
    return found


BASE_ATTRIBUTES = {
    "_loop": "timers",
    "_parser": "our parser stands there",
    "_paused": "behind writing_paused",
    "_reading_paused": "a request's content holds reading",
    "_buffer_paused": "pipelined requests hold reading",
    "transport": "answers are written to it",
}
HANDLER_ATTRIBUTES = {
    "_messages": "requests wait there for their turn",
    "_max_msg_queue_size": "set to MAX_PIPELINED",
    "_msg_queue_resume_size": "set to half of it",
    "_current_request": "a half-closed caller's request",
    "_task_handler": "cancelled when the caller leaves",
    "_force_close": "no request is read after it",
    "_waiter": "what an idle connection waits on, and only an idle one",
    "_keepalive_timeout": "closes idle connections",
    "_next_keepalive_close_time": "moved while a head is on its way",
    "_keepalive_handle": "the timer that closes idle connections",
    "_request_in_progress": "whether a request is being answered",
    "_close": "the last request was taken",
    "_manager": "our CallerServer",
}
METHODS = [
    (BaseProtocol, "pause_writing", ["self"]),
    (BaseProtocol, "resume_writing", ["self"]),
    (BaseProtocol, "_pause_transport_reading", ["self"]),
    (BaseProtocol, "_resume_transport_reading", ["self"]),
    (BaseProtocol, "_pause_reading_for_buffer", ["self"]),
    (BaseProtocol, "_drain_helper", ["self"]),
    (web.RequestHandler, "connection_made", ["self", "transport"]),
    (web.RequestHandler, "connection_lost", ["self", "exc"]),
    (web.RequestHandler, "data_received", ["self", "data"]),
    (web.RequestHandler, "eof_received", ["self"]),
    (web.RequestHandler, "force_close", ["self"]),
    (web.RequestHandler, "close", ["self"]),
    (web.RequestHandler, "start", ["self"]),
    (web.RequestHandler, "_process_keepalive", ["self"]),
    (web.RequestHandler, "_resume_reading_if_drained", ["self"]),
    (web.Server, "connection_made", ["self", "handler", "transport"]),
    (web.Server, "connection_lost", ["self", "handler", "exc"]),
    (web.Server, "__call__", ["self"]),
]


@pytest.mark.parametrize("name", BASE_ATTRIBUTES)
def test_base_protocol_has_the_attribute(name: str) -> None:
    assert name in slots(BaseProtocol), f"{HINT}BaseProtocol.{name} ({BASE_ATTRIBUTES[name]})"


@pytest.mark.parametrize("name", HANDLER_ATTRIBUTES)
def test_request_handler_has_the_attribute(name: str) -> None:
    assert name in slots(web.RequestHandler), f"{HINT}RequestHandler.{name} ({HANDLER_ATTRIBUTES[name]})"


@pytest.mark.parametrize("kind", [CallerConnection, CallerServer])
def test_every_private_name_that_we_take_from_aiohttp_is_listed_here(kind: type) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if _is_self(node) or ast.unparse(node.value) == "super()"
    }
    own = {*vars(kind), *_assigned(tree)} - slots(web.RequestHandler)
    listed = {*BASE_ATTRIBUTES, *HANDLER_ATTRIBUTES, *(name for _, name, _ in METHODS), "_loop"}
    assert used - own <= listed, "server/connection.py rides on a seam that this file doesn't name"


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _assigned(tree: ast.AST) -> set[str]:
    """The attributes that a class sets on itself."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _is_self(node) and isinstance(node.ctx, ast.Store)
    }


@pytest.mark.parametrize(("kind", "name", "expected"), METHODS)
def test_the_method_takes_what_it_took(kind: type, name: str, expected: list[str]) -> None:
    method = getattr(kind, name, None)
    assert method is not None, f"{HINT}{kind.__name__}.{name} is gone"
    assert parameters(method) == expected, f"{HINT}{kind.__name__}.{name}{inspect.signature(method)}"


def test_request_handler_takes_our_options() -> None:
    known = inspect.signature(web.RequestHandler).parameters
    for name in ("manager", "loop", "keepalive_timeout", "access_log", "auto_decompress"):
        assert name in known, f"{HINT}RequestHandler(..., {name}=)"
    assert "handler_cancellation" in inspect.signature(web.Server).parameters, (
        f"{HINT}Server(handler_cancellation=)"
    )


@pytest.mark.parametrize("name", ["writing_paused", "ssl_context", "connected"])
def test_request_handler_has_the_property(name: str) -> None:
    assert hasattr(web.RequestHandler, name), f"{HINT}RequestHandler.{name}"


def test_the_server_gives_out_its_connections() -> None:
    assert isinstance(web.Server.connections, property), f"{HINT}Server.connections"


@pytest.mark.parametrize(
    ("method", "call", "use"),
    [
        (
            web.RequestHandler.data_received,
            "self._pause_reading_for_buffer()",
            "holds reading for a full queue",
        ),
        (web.RequestHandler._process_keepalive, "if self._waiter", "closes who is idle, and no other"),
        (web.RequestHandler.force_close, "self._waiter.cancel()", "ends an idle connection's task"),
        (
            web.RequestHandler.connection_made,
            "self.start()",
            "runs our loop of requests as the handler's task",
        ),
        (web.RequestHandler.start, ".message_consumed()", "frees a place for a pipelined request"),
        (web.RequestHandler.start, "self._resume_reading_if_drained()", "once the queue is short enough"),
        (web.RequestHandler.connection_lost, "._cancel(exc)", "asked of a request"),
        (
            web.RequestHandler.connection_lost,
            "handler_cancellation",
            "the handler ends when the caller leaves",
        ),
    ],
)
def test_what_aiohttp_asks_of_our_stand_ins_is_what_it_asked(method: Any, call: str, use: str) -> None:
    assert call in inspect.getsource(method), f"{HINT}{method.__qualname__} no longer has {call!r} ({use})"


async def test_nothing_more_is_asked_of_our_request_than_it_has() -> None:
    """Whatever RequestHandler touches of a request or a payload while serving one exists there."""
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        for _ in range(2):
            writer.write(proxy.request(b"POST /v1/x", b"Content-Length: 3", body=b"abc"))
            assert (await read_message(reader)).status == 200
        for _, server in proxy.app._listeners.servers:
            for connection in server.connections:
                assert type(connection) is CallerConnection
                assert not connection.is_answering
                assert not connection._messages, f"{HINT}RequestHandler._messages"


async def test_pipelined_requests_are_answered_in_order_by_the_queue() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        targets = [b"/-/healthy", b"/v1/x", b"/-/nothing"] * 6
        writer.write(b"".join(proxy.request(b"GET " + target) for target in targets))
        statuses = [(await read_message(reader)).status for _ in targets]
        assert statuses == [200, 200, 404] * 6, f"{HINT}the order of RequestHandler's queue"


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


async def test_a_caller_that_leaves_cancels_the_handler() -> None:
    handler = Waiting()
    server = await asyncio.get_running_loop().create_server(CallerServer(handler, None), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        await handler.handling.wait()
        writer.transport.abort()
        await handler.cancelled.wait()
    server.close()


class Begun:
    """A handler that begins on every request, and answers none; ``exchange`` of each is itself."""

    def __init__(self) -> None:
        self.begun, self.abandoned = asyncio.Event(), asyncio.Event()

    def try_now(self, request: Request) -> bool:
        request.exchange = self
        self.begun.set()
        return True

    async def run(self, request: Request) -> bool:
        raise AssertionError("it was begun")

    def abandon(self) -> None:
        self.abandoned.set()


async def test_what_was_begun_for_a_caller_that_leaves_is_abandoned() -> None:
    handler = Begun()
    server = await asyncio.get_running_loop().create_server(CallerServer(handler, None), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        await handler.begun.wait()
        writer.transport.abort()
        await handler.abandoned.wait()
    server.close()
