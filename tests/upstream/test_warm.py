"""Connections are opened ahead: the first request after start, or after an idle hour, pays one round trip."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import pytest
from support.harness import OK, WAIT_S, Upstream, gateway, read_message, turns
from support.harness import Gateway as Proxy

from proxy.upstream.pool import FRESH, KEEP_ALIVE_S, Upstreams


async def until_connected(proxy_upstream: object, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while getattr(proxy_upstream, "connections", 0) < count:
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.pool.WARM_S", 3600.0)
    monkeypatch.setattr("proxy.upstream.pool.COLD_S", (0.01, 0.01))


async def test_a_connection_is_there_before_the_first_request_and_is_used_for_it() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await until_connected(proxy.upstream, 1)
        for _ in range(3):
            assert (await proxy.call(b"GET /v1/x")).status == 200
        assert proxy.upstream.connections == 1
        assert len(upstream.requests) == 3


async def test_one_that_the_cloud_closes_is_opened_anew_without_a_request() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with gateway(script, contentsquare={"idle_timeout": 0.02}) as proxy:
        await until_connected(proxy.upstream, 3)


async def test_one_idle_for_too_long_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.pool.KEEP_ALIVE_S", 0.01)
    async with gateway(contentsquare={"idle_timeout": 0.02}) as proxy:
        await until_connected(proxy.upstream, 3)


async def test_a_cloud_that_cant_be_reached_does_not_end_the_proxy() -> None:
    upstream = Upstream()
    async with gateway(upstream, contentsquare={"idle_timeout": 0.02}) as proxy:
        await until_connected(proxy.upstream, 1)
        proxy.upstream._server.close()
        await asyncio.sleep(0.05)
        assert (await proxy.call(b"GET /-/healthy")).status == 200


@contextlib.asynccontextmanager
async def used_at_once(opened: list[asyncio.StreamWriter]) -> AsyncIterator[tuple[Proxy, Upstreams]]:
    """A proxy that has used three connections at once; ``opened`` gets each that the cloud accepts."""
    together = asyncio.Barrier(3)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        await read_message(reader)
        await together.wait()
        writer.write(OK)
        await reader.read()

    async with gateway(script) as proxy:
        calls = [proxy.call(b"GET /v1/%d" % number) for number in range(3)]
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        upstreams = proxy.app._generation.outward.upstreams
        upstreams._woken.set()  # so that the three are counted while they are recent
        await turns()
        yield proxy, upstreams


async def test_as_many_as_were_used_at_once_are_opened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.pool.AT_ONCE_S", WAIT_S)
    async with used_at_once([]) as (proxy, upstreams):
        monkeypatch.setattr(
            "proxy.upstream.pool.COLD_S", (3600.0, 3600.0)
        )  # none is opened after the first time
        [pool] = upstreams._pools.values()
        for connection in pool._idle:
            connection.last_activity -= FRESH * KEEP_ALIVE_S
        connections = proxy.upstream.connections
        async with asyncio.timeout(WAIT_S):
            while proxy.upstream.connections < connections + 3:
                upstreams._woken.set()  # instead of waiting for the next second
                await asyncio.sleep(0.002)
        assert not pool.lacking()


async def test_what_was_used_at_once_is_held_ready_when_the_cloud_has_closed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "proxy.upstream.pool.FRESH", math.inf
    )  # no connection is opened because another is old
    monkeypatch.setattr("proxy.upstream.pool.AT_ONCE_S", WAIT_S)
    opened: list[asyncio.StreamWriter] = []
    async with used_at_once(opened) as (_, upstreams):
        while opened:
            opened.pop().close()
        async with asyncio.timeout(WAIT_S):
            while len(opened) < 3:
                upstreams._woken.set()  # instead of waiting for the next second
                await asyncio.sleep(0.002)
