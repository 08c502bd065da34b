"""Staged troubles: the three answers of ``/-/status`` (whose trouble, why, what next), and the recovery."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from support.harness import (
    OK,
    Gateway,
    RawServer,
    TokenServer,
    Upstream,
    gateway,
    read_message,
    settings_for,
    until,
)

from proxy.app.app import App

if TYPE_CHECKING:
    import pytest

KEY = "a-callers-key-0123456789"
CROWDED = json.dumps({"success": False, "errorCode": "CONCURRENT_API_CALL"}).encode()


def answer(status: int, content: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(content)) + content


async def health(proxy: Gateway, *lines: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The health of the whole and of the project ``shop``."""
    status = json.loads((await proxy.call(b"GET /-/status", *lines)).content)
    return status["health"], status["projects"]["shop"]["health"]


async def assert_trouble(proxy: Gateway, state: str, side: str, reason: str, *lines: bytes) -> None:
    whole, shop = await health(proxy, *lines)
    assert (shop["state"], shop["side"]) == (whole["state"], whole["side"]) == (state, side), shop
    assert reason in shop["reason"]
    assert shop["next_step"]
    assert whole == {**shop, "project": "shop"}


async def assert_recovery(proxy: Gateway, good_answers: int = 3) -> None:
    """A project with few requests works at the third good answer in a row."""
    for left in range(good_answers, 0, -1):
        assert (await health(proxy))[1]["state"] != "working", left
        assert (await proxy.call(b"GET /v1/segments")).status < 300
    whole, shop = await health(proxy)
    assert (whole["state"], shop["state"], shop["reason"]) == ("working", "working", None)


async def test_nothing_is_wrong_before_the_first_request() -> None:
    async with gateway() as proxy:
        whole, shop = await health(proxy)
        assert whole == {**shop, "summary": "1 project working", "project": None}
        assert shop["state"] == "working"


async def test_the_cloud_is_down_and_comes_back() -> None:
    async with gateway() as proxy:
        assert (await proxy.call(b"GET /v1/segments")).status == 200
        port = proxy.upstream.port
        await proxy.upstream.__aexit__()
        for _ in range(3):
            assert (await proxy.call(b"GET /v1/segments")).status == 502
        await assert_trouble(proxy, "failing", "contentsquare", "No answer from Contentsquare (127.0.0.1:")
        ready = await proxy.call(b"GET /-/ready")
        assert ready.status == 200
        server = await asyncio.start_server(Upstream(), "127.0.0.1", port)
        await assert_recovery(proxy)
        server.close()


async def test_the_cloud_answers_500_and_then_well_again() -> None:
    status = 500
    async with gateway(Upstream(lambda _: answer(status))) as proxy:
        for _ in range(4):
            assert (await proxy.call(b"GET /v1/segments")).status == 500
        reason = "Contentsquare answered 4 of 4 requests in the last 5 minutes with 500."
        await assert_trouble(proxy, "failing", "contentsquare", reason)
        status = 200
        await assert_recovery(proxy)


async def test_one_stray_error_alarms_nobody() -> None:
    statuses = [200, 500, 200]
    async with gateway(Upstream(lambda _: answer(statuses.pop(0)))) as proxy:
        for _ in range(3):
            await proxy.call(b"GET /v1/segments")
            assert (await health(proxy))[1]["state"] == "working"


async def test_the_secret_is_wrong() -> None:
    async with gateway(token=TokenServer(status=401)) as proxy:
        assert (await proxy.call(b"GET /v1/segments")).status == 503
        await assert_trouble(proxy, "failing", "proxy", "No token: ")
        assert (await proxy.call(b"GET /-/ready")).status == 503


async def test_another_program_takes_the_slots() -> None:
    running = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A cloud that leaves two of the project's slots to the proxy."""
        nonlocal running
        while True:
            await read_message(reader)
            running += 1
            if running > 2:
                writer.write(answer(429, CROWDED))
            else:
                await asyncio.sleep(0.01)
                writer.write(OK)
            running -= 1
            await writer.drain()

    async with gateway(script) as proxy:
        answers = await asyncio.gather(*(proxy.call(b"GET /v1/segments") for _ in range(12)))
        assert {one.status for one in answers} == {200}
        reason = "Other programs use this Contentsquare project, too: they leave about "
        await assert_trouble(proxy, "degraded", "caller", reason)
        minutes = json.loads((await proxy.call(b"GET /-/status?hour=1")).content)["projects"]["shop"]["hour"]
        assert sum(minute["refused"] for minute in minutes) > 0
        assert 2 < max(minute["slots_in_use"] for minute in minutes) <= 10
        assert max(minute["waiting"] for minute in minutes) >= 2


async def test_the_network_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.gateway.tries.TOKEN_WAIT_S", 0.1)
    vendor = {"auth_url": "https://no-such-host.invalid"}
    async with gateway(contentsquare=vendor) as proxy:
        assert (await proxy.call(b"GET /v1/segments")).status == 503
        await assert_trouble(proxy, "failing", "network", "can't be resolved")


async def test_the_clouds_name_cannot_be_resolved() -> None:
    async with gateway(token=TokenServer(endpoint="https://no-such-host.invalid")) as proxy:
        for _ in range(3):
            assert (await proxy.call(b"GET /v1/segments")).status == 502
        await assert_trouble(proxy, "failing", "network", "can't be resolved")


async def test_a_caller_lacks_the_right() -> None:
    callers = {"etl": {"key": KEY, "read_only": True}}
    key = b"X-API-Key: " + KEY.encode()
    async with gateway(callers=callers) as proxy:
        for _ in range(5):
            assert (await proxy.call(b"POST /v1/exports", key)).status == 403
        await assert_trouble(proxy, "degraded", "caller", "5 of 5 requests", key)


async def test_requests_without_a_key_reach_no_project() -> None:
    key = b"X-API-Key: " + KEY.encode()
    async with gateway(callers={"etl": {"key": KEY}}) as proxy:
        for _ in range(5):
            assert (await proxy.call(b"GET /v1/segments")).status == 401
        whole, shop = await health(proxy, key)
    assert (whole["state"], whole["side"], whole["project"]) == ("degraded", "caller", None)
    assert "most with PROXY_CALLER_UNKNOWN" in whole["reason"]
    assert shop["state"] == "working"


async def test_the_token_endpoint_is_away_while_the_token_is_valid() -> None:
    token = TokenServer()
    async with gateway(token=token) as proxy:
        token.status = 503
        assert (await proxy.call(b"POST /-/refresh/shop")).status == 202
        [shop] = proxy.app.projects()
        await until(lambda: shop.readiness.outage_failures > 1)
        assert (await proxy.call(b"GET /v1/segments")).status == 200
        await assert_trouble(proxy, "degraded", "contentsquare", "can't be renewed, and ends in 60 min")
        token.status = 200
        await until(lambda: not shop.readiness.outage_failures)
        await until(lambda: all(keeper.record.error is None for keeper in shop.keepers.values()))
        assert (await health(proxy))[1]["state"] == "working"


async def test_tokens_are_still_being_fetched() -> None:
    go_on = asyncio.Event()

    class Slow(TokenServer):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            await super().__call__(reader, writer)

    async with (
        RawServer(Upstream()) as cloud,
        RawServer(token := Slow(cloud.url)) as token_server,
        App(settings_for(token_server.url, cloud.url)).started() as app,
    ):
        proxy = Gateway(app, token, cloud)
        whole, shop = await health(proxy)
        assert (whole["state"], shop["state"], whole["project"]) == ("waiting", "waiting", "shop")
        go_on.set()
        await until(lambda: all(one.is_ready for one in app.projects()))
        assert (await health(proxy))[1]["state"] == "working"
        await proxy.aclose()
