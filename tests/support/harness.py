"""For all tests: a scripted upstream, a token endpoint and a running proxy, on real loopback sockets.

Raw bytes in and raw bytes out, because a client library would hide the framing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from proxy.app.app import App
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.server.passed_sockets import PassedSocket

WAIT_S = 15.0
"""The bound of every wait in the tests; only a failing test gets there."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KEPT = b"Connection: keep-alive\r\nKeep-Alive: timeout=70"
"""The field lines with which the proxy says that it keeps a connection."""


@dataclass
class Message:
    """One HTTP message as it arrived: ``head`` without its empty line, ``body`` with its framing."""

    head: bytes
    body: bytes = b""

    @property
    def start_line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def is_kept(self) -> bool:
        """Whether the proxy says that the connection is kept, and how long."""
        return KEPT in self.head

    @property
    def plain_head(self) -> bytes:
        """The head without the lines that say so."""
        return self.head.replace(b"\r\n" + KEPT, b"", 1)

    @property
    def lines(self) -> list[bytes]:
        """The field lines of `plain_head`."""
        return self.plain_head.split(b"\r\n")[1:]

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, in order."""
        pairs = (line.partition(b":") for line in self.lines)
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]

    @property
    def status(self) -> int:
        return int(self.start_line.split(b" ")[1])

    @property
    def content(self) -> bytes:
        """The body without chunked framing."""
        if self.values(b"transfer-encoding") != [b"chunked"]:
            return self.body
        pieces, at = [], 0
        while at < len(self.body):
            size = self.body[at : (start := self.body.index(b"\r\n", at) + 2)]
            length = int(size.split(b";")[0], 16)
            if not length:
                break
            pieces.append(self.body[start : start + length])
            at = start + length + 2
        return b"".join(pieces)

    @property
    def error_code(self) -> str:
        """The proxy's or the vendor's ``errorCode``."""
        return str(json.loads(self.content)["errorCode"])


async def next_request(reader: asyncio.StreamReader) -> Message:
    """A server's next request, however long the connection idles before."""
    return await read_message(reader, first=await reader.readexactly(1))


async def read_message(
    reader: asyncio.StreamReader, *, bodyless: bool = False, first: bytes = b""
) -> Message:
    """The next message of a stream; an interim answer is a message, too. ``first`` was read already."""
    async with asyncio.timeout(WAIT_S):
        message = Message(first + (await reader.readuntil(b"\r\n\r\n"))[:-4])
        is_answer = message.head.startswith(b"HTTP/")
        if bodyless or (is_answer and (message.status < 200 or message.status in (204, 304))):
            return message
        if message.values(b"transfer-encoding") == [b"chunked"]:
            body = bytearray()
            while True:
                line = await reader.readuntil(b"\r\n")
                body += line
                size = int(line.split(b";")[0], 16)
                if not size:
                    break
                body += await reader.readexactly(size + 2)
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                body += line
            message.body = bytes(body + b"\r\n")
        elif lengths := message.values(b"content-length"):
            message.body = await reader.readexactly(int(lengths[0]))
        elif is_answer:
            message.body = await reader.read()
        return message


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """A loopback server whose connections are each given to ``script``."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.errors: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=1 << 20)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        await turns()  # a connection that was just accepted gets its task
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)  # tasks that have ended leave the set in the loop's next turn
        for writer in self._writers:
            writer.transport.abort()
        await turns()  # and each transport its end, whatever it still had to send

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as exc:
            if isinstance(exc, RuntimeError) and writer.is_closing():
                return  # uvloop refuses a write to a connection that the other side has closed
            self.errors.append(exc)
            raise
        finally:
            await close(writer)
            self._writers.discard(writer)


async def turns(count: int = 8) -> None:
    """Let the event loop turn, so that ready callbacks run, and the callbacks that they schedule."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds, where no event tells it."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def free_port() -> int:
    """A free port, outside the range from which the system chooses for a bind to port 0."""
    while True:
        port = random.randrange(11_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a stream and wait for it."""
    writer.close()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(WAIT_S):
            await writer.wait_closed()


@dataclass
class Upstream:
    """A cloud that records each request and answers by ``answer``: bytes, or a function that makes them.

    For stages in between, pass a ``script`` of your own to `gateway` instead.
    """

    answer: bytes | Callable[[Message], bytes] = OK
    requests: list[Message] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await next_request(reader)
            self.requests.append(request)
            writer.write(self.answer(request) if callable(self.answer) else self.answer)
            await writer.drain()


@dataclass
class Held:
    """A cloud that sends the rest of its answer once it is released; later answers come at once."""

    first: bytes = OK[:-1]
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: list[bytes] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await next_request(reader)
            self.tokens += request.values(b"authorization")
            writer.write(self.first)
            self.started.set()
            await self.go_on.wait()
            writer.write(OK[len(self.first) :])
            await writer.drain()


@dataclass
class TokenServer:
    """A token endpoint: tokens ``token-1``, ``token-2``, ... for the ``endpoint`` that is set."""

    endpoint: str = ""
    expires_in: object = 3600
    status: int = 200
    requests: list[dict[str, Any]] = field(default_factory=list)
    extra: Mapping[str, object] = field(default_factory=dict)
    fields: bytes = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        if b"/v1/oauth/me" in request.start_line:
            answer: Mapping[str, object] = {"scopes": "metrics"}
        else:
            self.requests.append(json.loads(request.body))
            answer = {
                "access_token": f"token-{len(self.requests)}",
                "token_type": "bearer",
                "expires_in": self.expires_in,
                "endpoint": self.endpoint,
                **self.extra,
            }
        content = json.dumps(answer).encode()
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close"
        writer.write(head % (self.status, len(content)) + b"\r\n" + self.fields + b"\r\n" + content)
        await writer.drain()


@dataclass
class Gateway:
    """A running proxy with one project ``shop`` (the default), seen from a caller."""

    app: App
    token: TokenServer
    upstream: RawServer
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.app.listeners[0].url.rpartition(":")[2])

    @property
    def host(self) -> bytes:
        """The value for ``Host``."""
        return b"127.0.0.1:%d" % self.port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A caller's connection; it is closed with the gateway at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self._writers.append(writer)
        return reader, writer

    async def aclose(self) -> None:
        for writer in self._writers:
            await close(writer)

    def request(self, start: bytes, *lines: bytes, body: bytes = b"") -> bytes:
        """The bytes of a request; ``start`` such as ``GET /v1/x`` gets the version and Host."""
        return b"\r\n".join((start + b" HTTP/1.1", b"Host: " + self.host, *lines, b"", body))

    async def call(self, start: bytes, *lines: bytes, body: bytes = b"") -> Message:
        """One request on a connection of its own, and its final answer."""
        return await self.send(self.request(start, *lines, body=body), bodyless=start.startswith(b"HEAD "))

    async def send(self, raw: bytes, *, bodyless: bool = False) -> Message:
        """Raw bytes on a connection of their own, and the final answer to them."""
        reader, writer = await self.connect()
        try:
            writer.write(raw)
            while True:
                message = await read_message(reader, bodyless=bodyless)
                if message.status >= 200:
                    return message
        finally:
            await close(writer)


def settings_for(token_url: str, upstream_url: str, **sections: Mapping[str, object]) -> Settings:
    """The configuration that `gateway` runs with; ``sections`` are merged into it, table by table."""
    values: dict[str, Any] = {
        "server": {"port": 0, "drain_timeout": 1},
        "contentsquare": {
            "auth_url": token_url,
            "allowed_endpoints": [upstream_url.partition("://")[2]],
        },
        "projects": {"shop": {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return load(None, values, {}, search=False)


@contextlib.asynccontextmanager
async def gateway(
    script: Script | None = None,
    *,
    token: TokenServer | None = None,
    tls: ssl.SSLContext | None = None,
    passed: Sequence[PassedSocket] = (),
    **sections: Mapping[str, object],
) -> AsyncIterator[Gateway]:
    """A running proxy in front of a server that runs ``script`` (an `Upstream` by default)."""
    token = token or TokenServer()
    async with RawServer(script or Upstream(), tls=tls) as upstream, RawServer(token) as token_server:
        token.endpoint = token.endpoint or upstream.url.replace(
            "127.0.0.1", "localhost" if tls else "127.0.0.1"
        )
        app = App(settings_for(token_server.url, token.endpoint, **sections), passed=passed)
        async with app.started():
            await app.settled(WAIT_S)
            caller = Gateway(app, token, upstream)
            try:
                yield caller
            finally:
                await caller.aclose()
        assert not upstream.errors
