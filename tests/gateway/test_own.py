"""The proxy's own long answers: callers that never read them cost little, and keep nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.harness import WAIT_S, Gateway, Upstream, gateway, until

from proxy.contentsquare import oauth_path
from proxy.gateway import entrance, own
from proxy.gateway.callers import Callers
from proxy.http1 import parse_request_head
from proxy.server import answer

COUNT = 200
BAD, GOOD = b"X-API-Key: the-key-of-the-bad-one", b"X-API-Key: the-key-of-the-good-one"
CALLERS = {"bad": {"key": "the-key-of-the-bad-one"}, "good": {"key": "the-key-of-the-good-one"}}
PROJECTS = {
    f"project-{number}": {"client_id": f"id-{number}", "client_secret": f"the-secret-{number}", "apis": []}
    for number in range(500)
}
LONG = b"x" * 8_000_000


def written(proxy: Gateway) -> int:
    """The bytes of all answers that wait in the proxy's buffers."""
    connections = proxy.app._listeners.connections()
    return sum(one.transport.get_write_buffer_size() for one in connections if one.transport)


async def unread(proxy: Gateway, stack: contextlib.ExitStack, *lines: bytes) -> socket.socket:
    """A connection that asks for the metrics, and reads nothing."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
    await loop.sock_sendall(sock, proxy.request(b"GET /-/metrics", *lines))
    return sock


async def read_all(sock: socket.socket) -> None:
    """Read until the end. Raises ConnectionResetError where the answer is cut."""
    while await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
        pass


BROWSER = b"Accept: text/html,application/xhtml+xml,*/*;q=0.8"
DEFAULT = {"shop": {"client_id": "id-1", "client_secret": "the-secret-1", "apis": ["metrics"]}}


@pytest.mark.parametrize("callers", [CALLERS, {}])
@pytest.mark.parametrize("start", [b"GET /", b"HEAD /", b"GET /?from=bookmark"])
async def test_a_browser_that_opens_the_root_is_led_to_the_page(
    callers: dict[str, object], start: bytes
) -> None:
    cloud = Upstream()
    async with gateway(cloud, projects=DEFAULT, callers=callers) as proxy:
        answer = await proxy.call(start, BROWSER)
        assert (answer.status, answer.content) == (303, b"")
        assert answer.values(b"location") == [b"/-/"]
        assert answer.values(b"vary") == [b"Accept"]
        assert answer.values(b"www-authenticate") == []  # a key for / would go out with every later call
        assert (await proxy.call(b"GET /favicon.ico", BROWSER, GOOD)).status == 204
        assert not cloud.requests


@pytest.mark.parametrize(
    ("start", "accept"),
    [
        (b"GET /", b"Accept: */*"),
        (b"GET /", b"Accept: application/json"),
        (b"POST /", BROWSER),
        (b"GET //", BROWSER),
        (b"GET /v1/segments", BROWSER),
    ],
)
async def test_a_program_that_asks_for_the_root_is_forwarded_by_the_rules_about_keys(
    start: bytes, accept: bytes
) -> None:
    cloud = Upstream()
    async with gateway(cloud, projects=DEFAULT, callers=CALLERS) as proxy:
        assert (await proxy.call(start, accept)).status == 401
        assert not cloud.requests
        assert (await proxy.call(start, accept, GOOD)).status == 200
        assert len(cloud.requests) == 1


@pytest.fixture
def long_metrics(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Metrics that no system takes at once; the list has one entry for each time they are made."""
    from proxy.admin import metrics  # noqa: PLC0415

    made: list[bytes] = []

    async def exposition(*_: object) -> bytes:
        made.append(LONG)
        return LONG

    monkeypatch.setattr(metrics, "exposition", exposition)
    return made


@pytest.mark.parametrize("callers", [CALLERS, {}])
async def test_a_caller_that_never_reads_has_few_answers_under_way(
    callers: dict[str, object], long_metrics: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "ROOM_S", 0.3)
    with contextlib.ExitStack() as stack:
        async with gateway(Upstream(), callers=callers) as proxy:
            for _ in range(COUNT):
                await unread(proxy, stack, BAD)
            await until(
                lambda: proxy.app.overview.refusals.all["PROXY_QUEUE_TIMEOUT"] == COUNT - own.MOST_UNDER_WAY
            )
            assert len(long_metrics) == own.MOST_UNDER_WAY
            assert written(proxy) < own.MOST_UNDER_WAY * 4 * answer.PIECE
            for target in (b"/-/healthy", b"/-/ready", b"/v1/segments"):
                assert (await proxy.call(b"GET " + target, GOOD)).status == 200
            status = await proxy.call(b"GET /-/status", GOOD)
            assert status.status == (200 if callers else 503)
            if not callers:
                assert status.error_code == "PROXY_QUEUE_TIMEOUT"
                assert status.values(b"retry-after") == [b"5"]


async def test_an_unread_answer_is_cut_and_its_place_is_free_again(
    long_metrics: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "STALL_S", 0.3)
    with contextlib.ExitStack() as stack:
        async with gateway(Upstream()) as proxy:
            socks = [await unread(proxy, stack) for _ in range(own.MOST_UNDER_WAY)]
            await until(lambda: len(long_metrics) == own.MOST_UNDER_WAY)
            assert (await proxy.call(b"GET /-/status")).status == 200
            # The others are cut, too, before any is read.
            await until(lambda: not list(proxy.app._listeners.connections()))
            for sock in socks:
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(read_all(sock), WAIT_S)


async def test_a_caller_that_left_frees_its_place(long_metrics: list[bytes]) -> None:
    with contextlib.ExitStack() as stack:
        async with gateway(Upstream()) as proxy:
            for _ in range(own.MOST_UNDER_WAY):
                await unread(proxy, stack)
            await until(lambda: len(long_metrics) == own.MOST_UNDER_WAY)
            stack.close()
            assert (await proxy.call(b"GET /-/metrics")).body == LONG


async def test_long_answers_come_whole() -> None:
    async with gateway(Upstream(), projects=PROJECTS) as proxy:
        for target in (b"/-/metrics", b"/-/status"):
            whole = await proxy.call(b"GET " + target)
            assert whole.status == 200
            assert len(whole.body) > 4 * answer.PIECE
            assert whole.body.endswith(b"\n")
            assert not (await proxy.call(b"HEAD " + target)).body


_PARTS = st.sampled_from(
    [*"/?*&-=", "csq_key=a", "favicon.ico", "v1", "oauth", "token", "me", "shop", "healthy", "%6f", "x"]
)


@given(st.sampled_from(["*", "/", "/-", "/favicon.ico", "/v1/oauth/me"]), st.lists(_PARTS, max_size=9))
@example("/favicon.ico", ["?", "csq_key=a"])
@example("/", ["?", "csq_key=a"])
@example("/-", ["?", "csq_key=a"])
def test_a_target_that_is_surely_not_the_proxys_own_is_not(start: str, parts: list[str]) -> None:
    target = (start + "".join(parts)).encode()
    head = parse_request_head(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html")
    if not own.may_be_own(target):
        assert oauth_path(target) is None
        assert not own.asks_for_page(head, target)
        assert not own.is_own(Callers({}).identify(head, target)[1])
