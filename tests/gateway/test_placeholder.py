"""Placeholder tokens: their form, and the projects that requests with one go to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import Gateway, Upstream, gateway
from support.texts import CHARACTERS, texts

from proxy.gateway.placeholder import Placeholder, parse, placeholder

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}(?:/[1-9][0-9]{0,9})?", fullmatch=True, alphabet=CHARACTERS)
BI, ELS = "a.key.of.bi-123456", "key-of-els-12345678"
KEYS = {"bi": {"key": BI}, "els": {"key": ELS, "projects": ["other"]}}
PROJECTS = {
    name: {"client_id": f"id-{name}", "client_secret": "secret-1", "project_id": number, "apis": ["metrics"]}
    for name, number in (("shop", 41), ("other", 42))
}
ACCOUNTS = {"acme": {"client_id": "id-acme", "client_secret": "secret-2", "apis": ["metrics"]}}


@given(NAMES, st.none() | texts(min_size=1))
def test_a_placeholder_is_read_as_it_was_made(name: str, key: str | None) -> None:
    token = placeholder(name, key).encode()
    assert parse(token) == Placeholder(name.encode(), (key or "local").encode())


@given(st.binary())
def test_another_token_is_no_placeholder(token: bytes) -> None:
    assert parse(token) is None or token.startswith(b"csq-proxy.")
    assert parse(b"csq-proxy-" + token) is None


def bearer(token: str) -> bytes:
    return b"Authorization: Bearer " + token.encode()


def ids_of(proxy: Gateway, upstream: Upstream) -> list[int]:
    """The ids of the projects whose tokens the cloud got, for each of its requests."""
    tokens = [int(request.values(b"authorization")[0].rpartition(b"-")[2]) for request in upstream.requests]
    return [proxy.token.requests[token - 1]["project_id"] for token in tokens]


@pytest.mark.parametrize("default", ["shop", None])
@pytest.mark.parametrize("key", [None, BI])
async def test_a_request_goes_to_the_project_that_its_token_names(
    default: str | None, key: str | None
) -> None:
    upstream = Upstream()
    projects = {name: {**project, "default": name == default} for name, project in PROJECTS.items()}
    callers: dict[str, object] = {} if key is None else {**KEYS}
    async with gateway(upstream, projects=projects, accounts=ACCOUNTS, callers=callers) as proxy:
        for name in ("other", "shop", "acme/43"):
            answer = await proxy.call(b"GET /v1/segments?a=1", bearer(placeholder(name, key)))
            assert answer.status == 200
        assert ids_of(proxy, upstream) == [42, 41, 43]
        assert {request.start_line for request in upstream.requests} == {b"GET /v1/segments?a=1 HTTP/1.1"}


async def test_a_prefix_a_field_and_a_port_go_before_the_token() -> None:
    upstream = Upstream()
    async with gateway(upstream, projects=PROJECTS) as proxy:
        token = bearer(placeholder("other", None))
        assert (await proxy.call(b"GET /shop/v1/segments", token)).status == 200
        assert (await proxy.call(b"GET /v1/segments", token, b"X-CSQ-Project: shop")).status == 200
        assert ids_of(proxy, upstream) == [41, 41]
        answer = await proxy.call(b"GET /none/v1/segments", token)
        assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")


@pytest.mark.parametrize("name", ["none", "", "acme", "acme/x", "shop/1", "shop%2F"])
async def test_a_token_of_no_project_is_never_answered_with_the_default_project(name: str) -> None:
    upstream = Upstream()
    projects = {**PROJECTS, "shop": {**PROJECTS["shop"], "default": True}}
    async with gateway(upstream, projects=projects, accounts=ACCOUNTS) as proxy:
        answer = await proxy.call(b"GET /v1/segments", bearer(placeholder(name, None)))
        assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert not upstream.requests


async def test_the_key_in_the_token_is_the_callers() -> None:
    upstream = Upstream()
    async with gateway(upstream, projects=PROJECTS, callers=KEYS) as proxy:
        own = bearer(placeholder("other", ELS))
        assert (await proxy.call(b"GET /v1/segments", own)).status == 200
        for key in (None, "wrong", ELS + "x"):
            answer = await proxy.call(b"GET /v1/segments", bearer(placeholder("other", key)))
            assert (answer.status, answer.error_code) == (401, "PROXY_CALLER_UNKNOWN")
        foreign = await proxy.call(b"GET /v1/segments", bearer(placeholder("shop", ELS)))
        unknown = await proxy.call(b"GET /v1/segments", bearer(placeholder("none", ELS)))
        assert (foreign.status, foreign.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert foreign.body.replace(b"shop", b"none") == unknown.body
        assert len(upstream.requests) == 1
