"""Who uses what, and the calls of the month, as ``/-/status`` tells them."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

from support.harness import Gateway, Message, Upstream, gateway, settings_for, until

UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
SECRET = "canary-secret-5f1c"
CALLERS = {
    "bi": {"key": "key-of-the-bi-tool", "projects": ["shop"]},
    "ops": {"key": "key-of-operations"},
}
ACCOUNTS = {"acme": {"client_id": "id-2", "client_secret": SECRET, "quota": 2}}
BI = b"X-API-Key: key-of-the-bi-tool"
OPS = b"X-API-Key: key-of-operations"


async def status(proxy: Gateway, *fields: bytes) -> Any:
    return json.loads((await proxy.call(b"GET /-/status", *fields)).content)


async def usage(proxy: Gateway, *fields: bytes, project: str = "shop") -> Any:
    return (await status(proxy, *fields))["projects"][project]["usage"]


async def test_usage_has_requests_bytes_and_waits_by_caller_and_api() -> None:
    def answer(_message: Message) -> bytes:
        return b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\nhello"

    async with gateway(Upstream(answer), callers=CALLERS) as proxy:
        await proxy.call(b"GET /shop/v1/segments", BI)
        await proxy.call(b"GET /shop/v1/segments", OPS)
        await proxy.call(b"POST /shop/v1/exports", OPS, b"Content-Length: 3", body=b"abc")
        used = await usage(proxy, OPS)
    one = {"requests": 1, "bytes_in": 0, "bytes_out": 5, "waited_s": 0.0}
    assert used["callers"] == {
        "bi": {"metrics": {**one, "hour": one}},
        "ops": {
            "metrics": {**one, "hour": one},
            "data-export": {**one, "bytes_in": 3, "hour": {**one, "bytes_in": 3}},
        },
    }
    assert used["calls"] == 3


async def test_a_caller_with_limits_sees_its_own_use_alone() -> None:
    async with gateway(callers=CALLERS, accounts=ACCOUNTS) as proxy:
        await proxy.call(b"GET /shop/v1/segments", BI)
        await proxy.call(b"GET /shop/v1/segments", OPS)
        assert set((await usage(proxy, BI))["callers"]) == {"bi"}
        assert set((await usage(proxy, OPS))["callers"]) == {"bi", "ops"}
        assert set((await status(proxy, BI))["account_usage"]) == set()
        assert set((await status(proxy, OPS))["account_usage"]) == {"acme"}


async def test_a_refused_request_is_its_callers_too() -> None:
    callers = {"bi": {"key": "key-of-the-bi-tool", "read_only": True}}
    async with gateway(callers=callers) as proxy:
        answer = await proxy.call(b"POST /shop/v1/exports", BI, b"Content-Length: 3", body=b"abc")
        assert answer.status == 403
        used = await usage(proxy, BI)
    assert set(used["callers"]) == {"bi"}
    assert used["calls"] == 0


async def test_a_request_that_is_sent_again_is_another_call() -> None:
    answers = [UNAUTHORIZED, b"HTTP/1.1 204 No Content\r\n\r\n"]
    async with gateway(Upstream(lambda _message: answers.pop(0))) as proxy:
        assert (await proxy.call(b"GET /shop/v1/segments")).status == 204
        used = await usage(proxy)
    assert (used["calls"], used["callers"]["-"]["metrics"]["requests"]) == (2, 1)


async def test_an_answer_from_the_store_is_no_call() -> None:
    def answer(_message: Message) -> bytes:
        return b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    project = {"client_id": "id", "client_secret": SECRET, "apis": ["metrics"], "cache": "5m"}
    async with gateway(Upstream(answer), projects={"shop": project}) as proxy:
        for _ in range(3):
            await proxy.call(b"GET /shop/v1/segments")
        used = await usage(proxy)
    assert (used["calls"], used["callers"]["-"]["metrics"]["requests"]) == (1, 3)


async def test_tokens_and_oauth_me_are_no_calls() -> None:
    async with gateway() as proxy:
        await proxy.call(b"POST /shop/v1/oauth/me", b"Content-Length: 2", body=b"{}")
        await proxy.call(b"POST /-/refresh/shop", b"Content-Length: 0")
        assert (await usage(proxy))["calls"] == 0


async def test_an_accounts_calls_are_those_of_all_its_projects() -> None:
    async with gateway(accounts=ACCOUNTS) as proxy:
        for number in (b"42", b"43"):
            await proxy.call(b"GET /acme/" + number + b"/v1/segments")
        seen = await status(proxy)
    month = f"{dt.datetime.now(dt.UTC):%Y-%m}"
    assert [seen["projects"][f"acme/{number}"]["usage"]["calls"] for number in (42, 43)] == [1, 1]
    of_account = seen["account_usage"]["acme"]
    assert (of_account["calls"], of_account["quota"], of_account["month"]) == (2, 2, month)
    assert of_account["notice"].startswith(f"2 of 2 calls of {month} are used (100 %)")


async def test_metrics_have_the_calls_and_the_quotas() -> None:
    project = {"client_id": "id", "client_secret": SECRET, "apis": ["metrics"], "quota": 5}
    async with gateway(projects={"shop": project}, accounts=ACCOUNTS, callers=CALLERS) as proxy:
        for path in (b"/shop", b"/shop", b"/acme/42"):
            await proxy.call(b"GET " + path + b"/v1/segments", OPS)
        seen = (await proxy.call(b"GET /-/metrics", OPS)).content.decode().splitlines()
        limited = (await proxy.call(b"GET /-/metrics", BI)).content.decode().splitlines()
    shop = [
        'csq_proxy_calls_total{project="shop"} 2.0',
        'csq_proxy_calls_this_month{project="shop"} 2.0',
        'csq_proxy_calls_quota{project="shop"} 5.0',
    ]
    acme = [
        'csq_proxy_calls_total{project="acme/42"} 1.0',
        'csq_proxy_calls_this_month{project="acme"} 1.0',
        'csq_proxy_calls_quota{project="acme"} 2.0',
    ]
    assert {line for line in seen if line.startswith("csq_proxy_calls")} == {*shop, *acme}
    assert {line for line in limited if line.startswith("csq_proxy_calls")} == {*shop}


async def test_the_status_says_whether_counts_are_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(0o700)
    async with gateway(server={"port": 0, "state_dir": str(state)}, callers=CALLERS) as proxy:
        saving = proxy.app.overview.saving
        await until(lambda: saving.is_kept)
        assert (await status(proxy, OPS))["counts"] == {"kept": True, "error": None}
        assert (await status(proxy, BI))["counts"] == {"kept": True}
        await proxy.call(b"GET /shop/v1/segments", OPS)
        await asyncio.to_thread(shutil.rmtree, state)

        def has_failed() -> bool:
            saving.calls.is_changed = True  # a write that was under way may have saved the call
            saving.begin()
            return not saving.is_kept

        await until(has_failed)
        told = (await status(proxy, OPS))["counts"]
        assert told["error"].startswith("the counts of calls can't be saved")
        assert (await usage(proxy, OPS))["calls"] == 1
    async with gateway() as proxy:
        assert (await status(proxy))["counts"] is None


async def test_a_reload_keeps_the_counts_and_takes_new_quotas() -> None:
    async with gateway() as proxy:
        await proxy.call(b"GET /shop/v1/segments")
        shop = {"client_id": "id-9", "client_secret": "other", "apis": ["metrics"], "quota": 1}
        auth_url = proxy.app.overview.settings.contentsquare.auth_url
        settings = settings_for(auth_url, proxy.upstream.url, projects={"shop": shop})
        apply = await asyncio.to_thread(proxy.app._prepare, settings)
        apply()
        used = await usage(proxy)
    assert (used["calls"], used["quota"], used["callers"]["-"]["metrics"]["requests"]) == (1, 1, 1)
    assert used["notice"] is not None


async def test_without_a_state_folder_the_count_is_since_the_start() -> None:
    began = dt.datetime.now(dt.UTC).replace(microsecond=0)
    async with gateway() as proxy:
        used = await usage(proxy)
    assert used["since"] == "start" or began.day == 1
    assert began <= dt.datetime.fromisoformat(used["since_at"]) <= dt.datetime.now(dt.UTC)
