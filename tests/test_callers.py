"""Callers' keys: every way to send one, and none of them goes further than the proxy."""

from __future__ import annotations

import base64

import pytest
from harness import Upstream, gateway

KEY = "a-key%with&signs=1"
CALLERS = {
    "powerbi": {"key": KEY, "projects": ["shop"], "read_only": True},
    "app": {"key": "app-key-12345"},
    "elsewhere": {"key": "elsewhere-key-12345", "projects": ["other"]},
}
PROJECTS = {
    name: {"client_id": f"id-{name}", "client_secret": "secret-1", "apis": ["metrics"]}
    for name in ("shop", "other")
}


def basic(password: str) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"anyone:{password}".encode())


@pytest.mark.parametrize(
    ("target", "field"),
    [
        pytest.param(b"/shop/v1/x?a=1", b"Authorization: Bearer " + KEY.encode(), id="bearer"),
        pytest.param(b"/shop/v1/x?a=1", b"authorization: bearer " + KEY.encode(), id="bearer in lower case"),
        pytest.param(b"/shop/v1/x?a=1", basic(KEY), id="basic"),
        pytest.param(b"/shop/v1/x?a=1", b"X-API-Key: " + KEY.encode(), id="x-api-key"),
        pytest.param(b"/shop/v1/x?csq_key=a-key%25with%26signs%3D1&a=1", b"A: 1", id="query, first"),
        pytest.param(b"/shop/v1/x?a=1&csq_key=a-key%25with%26signs%3d1", b"A: 1", id="query, last"),
    ],
)
async def test_a_key_is_accepted_and_does_not_reach_the_cloud(target: bytes, field: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream, callers=CALLERS, projects=PROJECTS) as proxy:
        assert (await proxy.call(b"GET " + target, field)).status == 200
        request = upstream.requests[0]
        assert request.start_line == b"GET /v1/x?a=1 HTTP/1.1"
        assert request.values(b"authorization")[0].startswith(b"Bearer token-")
        assert b"csq_key" not in request.head
        assert b"signs" not in request.head
        assert not request.values(b"x-api-key")


@pytest.mark.parametrize(
    "field", [b"A: 1", b"Authorization: Bearer no", basic("no"), b"Authorization: Basic !!", b"X-API-Key:"]
)
async def test_without_a_known_key_the_answer_is_401_and_asks_for_basic(field: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream, callers=CALLERS, projects=PROJECTS) as proxy:
        for target in (b"/shop/v1/x", b"/-/status", b"/nothing/v1/x"):
            answer = await proxy.call(b"GET " + target, field)
            assert (answer.status, answer.error_code) == (401, "PROXY_CALLER_UNKNOWN")
            assert answer.values(b"www-authenticate")[0].startswith(b"Basic realm=")
        assert not upstream.requests


async def test_a_caller_reaches_only_its_projects() -> None:
    upstream = Upstream()
    async with gateway(upstream, callers=CALLERS, projects=PROJECTS) as proxy:
        for target in (b"/shop/v1/x", b"/shop/v1/x?projectId=1"):
            answer = await proxy.call(b"GET " + target, b"X-API-Key: elsewhere-key-12345")
            assert (answer.status, answer.error_code) == (403, "PROXY_FORBIDDEN")
        answer = await proxy.call(b"GET /v1/x", b"X-API-Key: elsewhere-key-12345", b"X-CSQ-Project: shop")
        assert answer.status == 403
        assert not upstream.requests
        assert (await proxy.call(b"GET /other/v1/x", b"X-API-Key: elsewhere-key-12345")).status == 200


async def test_a_read_only_caller_cannot_change_data_but_may_read_by_post() -> None:
    upstream = Upstream()
    async with gateway(upstream, callers=CALLERS, projects=PROJECTS) as proxy:
        key = b"X-API-Key: " + KEY.encode()
        empty = b"Content-Length: 0"
        assert (await proxy.call(b"POST /shop/v1/exports", key, empty)).error_code == "PROXY_FORBIDDEN"
        assert (await proxy.call(b"DELETE /shop/v1/segments", key)).error_code == "PROXY_FORBIDDEN"
        assert not upstream.requests
        assert (await proxy.call(b"POST /shop/v1/speed-analysis/event/list", key, empty)).status == 200
        assert (await proxy.call(b"POST /shop/v1/exports", b"X-API-Key: app-key-12345", empty)).status == 200


async def test_a_key_in_the_query_is_removed_even_where_no_callers_are_defined() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await proxy.call(b"GET /v1/x?csq_key=left-over")
        assert upstream.requests[0].start_line == b"GET /v1/x HTTP/1.1"
