"""A cloud that can't be reached any more: a new token may name another endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from support.harness import RawServer, Script, TokenServer, Upstream, free_port, gateway, read_message, until

from proxy.tokens import schedule


async def ends_at_once(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """A load balancer without a cloud behind it: each connection is closed."""


async def ends_after_the_request(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await read_message(reader)


GONE: dict[str, Callable[[], str]] = {
    "refused": lambda: f"http://127.0.0.1:{free_port()}",
    "no such name": lambda: "https://gone.invalid",
}


@pytest.mark.parametrize("start", [b"GET /v1/x", b"POST /v1/x"])
@pytest.mark.parametrize("gone", GONE)
async def test_a_cloud_that_moved_is_found_after_one_failed_request(gone: str, start: bytes) -> None:
    old = GONE[gone]()
    token = TokenServer(endpoint=old)
    async with RawServer(Upstream()) as new:
        allowed = [url.partition("://")[2] for url in (old, new.url)]
        async with gateway(token=token, contentsquare={"allowed_endpoints": allowed}) as proxy:
            token.endpoint = new.url
            await asyncio.sleep(schedule.MIN_GAP_S)  # between any two fetches of a lease
            assert (await proxy.call(start, b"Content-Length: 0")).status == 502
            await until(lambda: len(token.requests) == 2)
            async with asyncio.timeout(5):
                while (await proxy.call(start, b"Content-Length: 0")).status != 200:
                    await asyncio.sleep(0.01)
    assert len(token.requests) == 2


@pytest.mark.parametrize("script", [ends_at_once, ends_after_the_request])
async def test_a_cloud_that_closes_each_connection_may_have_moved_too(script: Script) -> None:
    token = TokenServer()
    async with gateway(script, token=token) as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 502
        await until(lambda: len(token.requests) == 2)


async def test_a_cloud_that_answers_has_not_moved() -> None:
    token = TokenServer()
    async with gateway(Upstream(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"), token=token) as proxy:
        for _ in range(5):
            assert (await proxy.call(b"GET /v1/x")).status == 503
        await asyncio.sleep(schedule.MIN_GAP_S + 0.2)
    assert len(token.requests) == 1


async def test_many_failures_of_an_endpoint_that_stays_are_one_token_request() -> None:
    token = TokenServer(endpoint=GONE["refused"]())
    async with gateway(
        token=token, contentsquare={"allowed_endpoints": [token.endpoint.partition("://")[2]]}
    ) as proxy:
        answers = await asyncio.gather(*(proxy.call(b"GET /v1/x") for _ in range(120)))
        assert {answer.status for answer in answers} == {502}
        await until(lambda: len(token.requests) == 2)
        await asyncio.gather(*(proxy.call(b"GET /v1/x") for _ in range(20)))
        await asyncio.sleep(schedule.MIN_GAP_S + 0.2)
        assert len(token.requests) == 2
