from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.harness import WAIT_S, RawServer, read_message

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.secret import Secret
from proxy.tokens import TokenEndpoint, TokenRequest, make_session
from proxy.upstream import dns as names
from proxy.upstream.dns import NameResolver

LOOK_UP: Any = socket.getaddrinfo


class NameServer:
    """Stands for the system's lookup: for names with ``.hangs`` it does not return before `answer`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._answers = threading.Event()

    def answer(self) -> None:
        self._answers.set()

    def getaddrinfo(self, host: str, *args: Any, flags: int = 0, **options: Any) -> Any:
        if flags & socket.AI_NUMERICHOST:
            return LOOK_UP(host, *args, flags=flags, **options)
        self.asked[host] += 1
        if ".hangs" in host:
            self._answers.wait(WAIT_S)
        if host.endswith(".missing"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return LOOK_UP("127.0.0.1", *args, **options)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.answer()


async def asked(server: NameServer, host: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not server.asked[host]:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
async def test_an_address_is_its_own_and_needs_no_thread(
    host: str, family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(names, "in_thread")
    [(found, kind, _, _, address)] = await NameResolver().addresses(host, 8277)
    assert (found, kind, address[:2]) == (family, socket.SOCK_STREAM, (host, 8277))


async def test_names_that_hang_hold_up_no_other_one(server: NameServer) -> None:
    looked_up = NameResolver()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        hanging = [group.create_task(looked_up.addresses(f"{number}.hangs", 1)) for number in range(40)]
        for number in range(40):
            await asked(server, f"{number}.hangs")
        assert (await looked_up.addresses("api.example", 1))[0][4] == ("127.0.0.1", 1)
        assert not any(task.done() for task in hanging)
        server.answer()


async def test_who_asks_for_a_name_meanwhile_shares_its_lookup_and_may_leave(server: NameServer) -> None:
    looked_up = NameResolver()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        first, *others = [group.create_task(looked_up.addresses("api.hangs", 1)) for _ in range(10)]
        await asked(server, "api.hangs")
        first.cancel()
        await asyncio.wait([first])
        server.answer()
        for task in others:
            assert (await task)[0][4] == ("127.0.0.1", 1)
    assert server.asked["api.hangs"] == 1
    await looked_up.addresses("api.hangs", 1)
    assert server.asked["api.hangs"] == 2


async def test_a_name_that_is_not_known_is_an_error_for_all_who_asked(server: NameServer) -> None:
    looked_up = NameResolver()
    found = await asyncio.gather(
        *(looked_up.addresses("api.missing", 1) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in found] == [socket.gaierror] * 3
    assert server.asked["api.missing"] == 1


@pytest.mark.parametrize("by_aiohttp", [False, True])
async def test_a_lookup_that_fails_after_its_request_was_given_up_is_not_logged(
    server: NameServer, *, by_aiohttp: bool
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    looked_up = NameResolver()
    async with make_session(resolver=looked_up) as session:
        request = (
            session.get("https://api.hangs.missing")
            if by_aiohttp
            else looked_up.addresses("api.hangs.missing", 443)
        )
        left = asyncio.ensure_future(request)
        await asked(server, "api.hangs.missing")
        left.cancel()
        await asyncio.wait((left,))
        other = asyncio.ensure_future(looked_up.addresses("api.hangs.missing", 443))
        await asyncio.sleep(0)
        server.answer()
        with pytest.raises(socket.gaierror):
            await other
        await asyncio.sleep(0)
    assert told == []  # Python 3.14's asyncio.shield tells it


async def test_what_is_no_name_is_an_error() -> None:
    with pytest.raises(UnicodeError):
        await NameResolver().addresses("a" * 64 + ".example", 1)


async def test_a_token_is_fetched_while_lookups_of_other_names_hang(server: NameServer) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        body = json.dumps({"access_token": "t", "endpoint": "https://api.contentsquare.com"}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    request = TokenRequest(Credentials(client_id="id", client_secret=Secret("secret")), Api.METRICS)
    async with RawServer(script) as tokens, make_session() as session, asyncio.TaskGroup() as group:
        ways = [f"https://{number}.hangs" for number in range(40)] + [f"http://localhost:{tokens.port}"]
        *hanging, good = [
            TokenEndpoint(session, way, allowed_endpoints=["*.contentsquare.com"]) for way in ways
        ]
        tasks = [group.create_task(endpoint.fetch(request)) for endpoint in hanging[:20]]
        await asked(server, "19.hangs")
        async with asyncio.timeout(WAIT_S):
            assert (await good.fetch(request)).access_token == "t"
        for task in tasks:
            task.cancel()
