"""``/-/requests``: what it may be asked, what it shows, and who learns what."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from support.harness import Gateway, Message, Upstream, gateway

from proxy.admin import requests

CALLERS: dict[str, dict[str, object]] = {
    "boss": {"key": "the-key-of-the-boss"},
    "shop-only": {"key": "the-key-of-shop-only", "projects": ["shop"]},
    "reader": {"key": "the-key-of-the-reader", "read_only": True},
    "acme-only": {"key": "the-key-of-acme-only", "projects": ["acme"]},
}
PROJECTS = {
    name: {"client_id": f"id-of-{name}", "client_secret": "canary-secret", "apis": ["metrics"]}
    for name in ("shop", "hidden")
}
ACCOUNTS = {"acme": {"client_id": "id-of-acme", "client_secret": "canary-secret", "apis": ["metrics"]}}

HOST = socket.gethostname()

SOME = {name: caller for name, caller in CALLERS.items() if name != "acme-only"}


def key(caller: str) -> bytes:
    return b"X-API-Key: " + str(CALLERS[caller]["key"]).encode()


async def page(proxy: Gateway, query: str = "", *lines: bytes) -> dict[str, Any]:
    answer = await proxy.call(b"GET /-/requests" + query.encode(), *lines)
    assert answer.status == 200, answer.body
    assert answer.values(b"content-type") == [b"application/json"]
    assert answer.values(b"cache-control") == [b"no-store"]
    found: dict[str, Any] = json.loads(answer.body)
    return found


def routes(found: dict[str, Any]) -> list[str]:
    return [one["route"] for one in found["requests"]]


async def test_the_oldest_is_first_and_since_goes_on() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        assert await page(proxy) == {"host": HOST, "next": 0, "requests": []}
        for number in range(3):
            await proxy.call(b"GET /shop/v1/%d" % number)
        first = await page(proxy)
        assert routes(first) == ["/shop/v1/0", "/shop/v1/1", "/shop/v1/2"]
        assert first["next"] == first["requests"][-1]["id"]
        nothing = await page(proxy, f"?since={first['next']}")
        assert nothing == {"host": HOST, "next": first["next"], "requests": []}
        await proxy.call(b"GET /hidden/v1/3")
        later = await page(proxy, f"?since={first['next']}")
        assert routes(later) == ["/hidden/v1/3"]
        # A number of the future is from a clock that was put back since.
        assert len(routes(await page(proxy, "?since=99999999999999999"))) == 4


async def test_project_and_status_choose() -> None:
    answers = iter((200, 204, 302, 404, 500, 503))

    def cloud(_: Message) -> bytes:
        return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % next(answers)

    async with gateway(Upstream(cloud), projects=PROJECTS) as proxy:
        for number in range(6):
            await proxy.call(b"GET /%b/v1/%d" % ((b"shop", b"hidden")[number % 2], number))
        await proxy.call(b"GET /nope/v1/6")
        expected = {
            "?project=shop": "024",
            "?project=-": "6",
            "?status=404": "36",
            "?status=2xx": "01",
            "?status=5xx": "45",
            "?status=errors": "3456",
            "?project=hidden&status=errors": "35",
            "?status=errors&project=shop&since=1": "4",
            "?": "0123456",
        }
        for query, numbers in expected.items():
            assert "".join(route[-1] for route in routes(await page(proxy, query))) == numbers, query


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("status=", "status must be"),
        ("status=5XX", "status must be"),
        ("status=600", "status must be"),
        ("status=050", "status must be"),
        ("status=error", "status must be"),
        ("status=5%D9%A1%D9%A1", "status must be"),
        ("since=", "since must be"),
        ("since=-1", "since must be"),
        ("since=1e9", "since must be"),
        ("since=" + "9" * 5000, "since must be"),
        ("projekt=shop", "The parameters here are project, status, since"),
        ("project=shop&project=hidden", "sent twice"),
    ],
)
async def test_a_wrong_parameter_is_a_400_that_says_what_is_right(query: str, says: str) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        answer = await proxy.call(b"GET /-/requests?" + query.encode())
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
        assert says in json.loads(answer.body)["errorMessage"]


async def test_other_methods_are_refused_and_the_list_is_named() -> None:
    async with gateway() as proxy:
        answer = await proxy.call(b"POST /-/requests", b"Content-Length: 0")
        assert (answer.status, answer.values(b"allow")) == (405, [b"GET, HEAD"])
        assert (await proxy.call(b"HEAD /-/requests")).status == 200
        assert b"/-/requests" in (await proxy.call(b"GET /-/unknown")).body


async def test_a_project_of_an_account_can_be_asked_for() -> None:
    async with gateway(projects=PROJECTS, accounts=ACCOUNTS) as proxy:
        await proxy.call(b"GET /acme/42/v1/x")
        assert routes(await page(proxy, "?project=acme/42")) == ["/acme/42/v1/x"]
        assert routes(await page(proxy, "?project=acme%2F43")) == []


async def test_callers_with_limits_see_their_own_requests_only() -> None:
    async with gateway(projects=PROJECTS, accounts=ACCOUNTS, callers=CALLERS) as proxy:
        for caller in CALLERS:
            for project in ("shop", "hidden", "acme/42"):
                await proxy.call(f"GET /{project}/v1/{caller}".encode(), key(caller))
        await proxy.call(b"GET /shop/v1/nobody")
        everything = [
            f"/{project}/v1/{caller}" for caller in CALLERS for project in ("shop", "hidden", "acme/42")
        ]
        assert sorted(routes(await page(proxy, "", key("boss")))) == sorted([*everything, "/shop/v1/nobody"])
        for caller in ("shop-only", "reader", "acme-only"):
            own = [route for route in everything if route.endswith(caller)]
            found = await page(proxy, "", key(caller))
            assert routes(found) == own
            visible = {"shop-only": {"shop"}, "acme-only": {"acme/42"}}.get(
                caller, {"shop", "hidden", "acme/42"}
            )
            assert {one["project"] for one in found["requests"] if "project" in one} == visible


async def test_a_caller_with_limits_learns_nothing_of_others() -> None:
    """Neither that there is a project, nor that others send requests."""
    async with gateway(projects=PROJECTS, callers=SOME) as proxy:
        await proxy.call(b"GET /shop/v1/mine", key("shop-only"))
        before = await proxy.call(b"GET /-/requests", key("shop-only"))
        since = f"?since={json.loads(before.body)['next']}"
        for project in (b"hidden", b"shop", b"nope"):
            await proxy.call(b"GET /%b/v1/x" % project, key("boss"))
            await proxy.call(b"GET /%b/v1/x" % project)
        assert (await proxy.call(b"GET /-/requests", key("shop-only"))).body == before.body
        assert (await page(proxy, since, key("shop-only")))["requests"] == []
        assert since.endswith(str((await page(proxy, since, key("shop-only")))["next"]))
        answers = [
            await proxy.call(b"GET /-/requests?project=" + name, key("shop-only"))
            for name in (b"hidden", b"no-one", b"acme/42")
        ]
        assert [answer.status for answer in answers] == [404] * 3
        texts = [json.loads(answer.body)["errorMessage"].partition(".")[2] for answer in answers]
        assert texts == [" Try shop"] * 3


async def test_web_pages_of_others_and_callers_without_a_key_are_refused() -> None:
    async with gateway(projects=PROJECTS, callers=SOME) as proxy:
        assert (await proxy.call(b"GET /-/requests")).status == 401
        in_query = b"?csq_key=the-key-of-the-boss&status=errors"
        assert len((await page(proxy, in_query.decode()))["requests"]) == 1
        evil = await proxy.call(b"GET /-/requests", key("boss"), b"Origin: https://evil.example")
        assert (evil.status, evil.error_code) == (403, "PROXY_ORIGIN_REFUSED")
        site = await proxy.call(b"GET /-/requests", key("boss"), b"Sec-Fetch-Site: cross-site")
        assert site.status == 403
        host = await proxy.send(b"GET /-/requests HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert host.status == 421


async def test_a_long_list_comes_in_parts_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_SHOWN", 4)
    monkeypatch.setattr(requests, "SLICE", 5)
    async with gateway(projects=PROJECTS) as proxy:
        for number in range(10):
            await proxy.call(b"GET /shop/v1/%d" % number)
        assert routes(await page(proxy)) == [f"/shop/v1/{number}" for number in range(6, 10)]
        seen, since = [], 1
        while found := (answer := await page(proxy, f"?since={since}"))["requests"]:
            assert len(found) <= 4
            seen += routes(answer)
            since = answer["next"]
        assert seen == [f"/shop/v1/{number}" for number in range(10)]
