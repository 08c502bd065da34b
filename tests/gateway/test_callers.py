"""Callers' keys: every way to send one, and none of them goes further than the proxy."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import quote

import pytest
from support.harness import WAIT_S, Gateway, TokenServer, Upstream, close, free_port, gateway, read_message

from proxy.config.settings import CallerSettings
from proxy.errors import UnknownProject
from proxy.gateway.callers import (
    DELAY_STEP_S,
    FORGIVEN_S,
    FREE_TRIES,
    LONGEST_DELAY_S,
    MOST_PEERS,
    Caller,
    Callers,
    WrongKey,
    WrongKeys,
)
from proxy.gateway.route import Router
from proxy.http1 import parse_request_head
from proxy.projects import Project

KEY = "a-key%with&signs=1"
CALLERS = {
    "powerbi": {"key": KEY, "projects": ["shop"], "read_only": True},
    "app": {"key": "app-key-12345"},
    "elsewhere": {"key": "elsewhere-key-12345", "projects": ["other"]},
}
PROJECTS: dict[str, dict[str, Any]] = {
    name: {"client_id": f"id-{name}", "client_secret": "secret-1", "apis": ["metrics"]}
    for name in ("shop", "other")
}


@dataclass
class Named:
    """A project, as far as the router knows one."""

    name: str


def noted(real: Callable[..., Any], compared: list[bytes], key: bytes = b"", **options: Any) -> Any:
    """A digest by `hashlib`, where compiled code finds it, too; the key is noted."""
    compared.append(key)
    return real(key, **options)


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


async def test_a_key_that_was_typed_for_the_page_is_not_sent_with_calls() -> None:
    """Each realm has credentials of its own, and those of a page are sent ahead below its folder only."""
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        realms = {
            target: (await proxy.call(b"GET " + target)).values(b"www-authenticate")[0]
            for target in (b"/-/", b"/-/page.js", b"/-/status", b"/v1/x", b"/shop/v1/x", b"/")
        }
        page, calls = realms[b"/-/"], realms[b"/v1/x"]
        assert page != calls
        assert {target for target, realm in realms.items() if realm == page} == {
            *(b"/-/", b"/-/page.js", b"/-/status")
        }
        assert {*realms.values()} == {page, calls}


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        pytest.param(b"/shop/v1/x?" + b"&".join([b"csq_key=no"] * 600), (), id="query"),
        pytest.param(b"/shop/v1/x?" + b"&".join([b"csq_key=app-key-12345"] * 9), (), id="query, right"),
        pytest.param(b"/shop/v1/x", (b"X-API-Key: no",) * 9, id="fields"),
        pytest.param(b"/shop/v1/x?csq_key=a&csq_key=b", (b"X-API-Key: no",) * 7, id="both"),
        pytest.param(
            b"/v1/oauth/token?" + b"&".join([b"csq_key=no"] * 9), (b"Content-Length: 0",), id="token"
        ),
    ],
)
@pytest.mark.parametrize("callers", [CALLERS, {}], ids=["callers", "no callers"])
async def test_a_request_with_more_than_8_credentials_is_refused_before_any_is_compared(
    target: bytes, lines: tuple[bytes, ...], callers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    monkeypatch.setattr("hashlib.sha256", partial(noted, hashlib.sha256, compared))
    async with gateway(Upstream(), callers=callers, projects=PROJECTS) as proxy:
        at_start = len(compared)
        method = b"POST " if b"oauth" in target else b"GET "
        answer = await proxy.call(method + target, *lines)
        if callers or b"csq_key" in target:
            assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
        assert len(compared) == at_start


async def test_a_key_sent_eight_times_is_compared_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway(Upstream(), callers=CALLERS, projects=PROJECTS) as proxy:
        compared: list[bytes] = []
        monkeypatch.setattr("hashlib.sha256", partial(noted, hashlib.sha256, compared))
        target = b"GET /shop/v1/x?" + b"&".join([b"csq_key=no"] * 8)
        assert (await proxy.call(target)).status == 401
        assert compared == [b"no"]


async def test_a_caller_reaches_only_its_projects() -> None:
    upstream = Upstream()
    async with gateway(upstream, callers=CALLERS, projects=PROJECTS) as proxy:
        for target in (b"/shop/v1/x", b"/shop/v1/x?projectId=1"):
            answer = await proxy.call(b"GET " + target, b"X-API-Key: elsewhere-key-12345")
            assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        answer = await proxy.call(b"GET /v1/x", b"X-API-Key: elsewhere-key-12345", b"X-CSQ-Project: shop")
        assert answer.status == 404
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


async def test_a_caller_without_the_right_to_an_account_brings_none_of_its_projects_into_being() -> None:
    accounts = {"acme": {"client_id": "id-2", "client_secret": "secret-2"}}
    token = TokenServer()
    async with gateway(token=token, callers=CALLERS, projects=PROJECTS, accounts=accounts) as proxy:
        before = len(token.requests)
        for start, field in ((b"GET /acme/42/v1/x", b"A: 1"), (b"GET /v1/x", b"X-CSQ-Project: acme/42")):
            answer = await proxy.call(start, field, b"X-API-Key: elsewhere-key-12345")
            assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert [project.name for project in proxy.app.projects()] == ["shop", "other"]
        assert len(token.requests) == before


async def test_a_caller_can_have_only_its_own_projects_tokens_renewed() -> None:
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        key = b"X-API-Key: elsewhere-key-12345"
        empty = b"Content-Length: 0"
        answer = await proxy.call(b"POST /-/refresh/shop", key, empty)
        assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert (await proxy.call(b"POST /-/refresh/other", key, empty)).status == 202


async def test_a_caller_is_told_of_its_own_projects_alone() -> None:
    account = {"client_id": "id-2", "client_secret": "secret-2", "projects": [42]}
    accounts = {"shop-account": account, "mine": account}
    callers = {**CALLERS, "elsewhere": {"key": "elsewhere-key-12345", "projects": ["other", "mine"]}}
    token = TokenServer(status=403)
    async with gateway(token=token, callers=callers, projects=PROJECTS, accounts=accounts) as proxy:
        key, unlimited = b"X-API-Key: elsewhere-key-12345", b"X-API-Key: app-key-12345"
        for target in (b"/mine/42/v1/x", b"/shop-account/42/v1/x"):  # they come into being
            await proxy.call(b"GET " + target, unlimited)
        for target, status in (
            (b"/-/status?hour=1", 200),
            (b"/-/metrics", 200),
            (b"/-/ready", 503),
            (b"/shopp/v1/x", 404),
        ):
            answer = await proxy.call(b"GET " + target, key)
            assert answer.status == status
            assert b"shop" not in answer.content.replace(b"'shopp'", b"")
            assert b"other" in answer.content
            assert b"shop" in (await proxy.call(b"GET " + target, unlimited)).content.replace(b"'shopp'", b"")
        ready = json.loads((await proxy.call(b"GET /-/ready", key)).content)
        assert [reason.partition(":")[0] for reason in ready["waiting_for"]] == ["other/metrics"]
        assert ready["others"] == 1
        assert "others" not in json.loads((await proxy.call(b"GET /-/ready", unlimited)).content)
        told = json.loads((await proxy.call(b"GET /-/status", key)).content)
        assert set(told["projects"]) == {"other", "mine/42"}
        assert set(told["accounts"]) == {"mine"}


async def test_the_errors_of_a_project_name_none_of_its_other_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.gateway.exports.exports.MOST_AT_ONCE", 0)
    monkeypatch.setattr("proxy.gateway.entrance.ROOM_S", 0.01)
    callers = {
        "reader": {"key": "key-of-a-reader-1", "read_only": True},
        "elsewhere": {"key": "elsewhere-key-12345", "projects": ["other"]},
    }
    reader, limited = b"X-API-Key: key-of-a-reader-1", b"X-API-Key: elsewhere-key-12345"
    async with gateway(callers=callers, projects=PROJECTS) as proxy:
        assert (await proxy.call(b"DELETE /other/v1/x", reader)).error_code == "PROXY_FORBIDDEN"
        export = await proxy.call(b"GET /-/exports/other/1/latest.csv", reader)
        monkeypatch.setattr("proxy.gateway.gateway.MAX_IN_FLIGHT", 0)
        assert (await proxy.call(b"GET /other/v1/x", reader)).error_code == "PROXY_QUEUE_TIMEOUT"
        assert export.error_code == "PROXY_QUEUE_TIMEOUT"
        told = await proxy.call(b"GET /-/status?hour=1", limited)
        assert len(json.loads(told.content)["projects"]["other"]["last_errors"]) == 3
        assert b"reader" not in told.content


async def test_a_key_that_a_caller_sent_in_a_wrong_place_is_shown_to_no_other_caller() -> None:
    key = b"app-key-12345-67890"
    callers = {"app": {"key": key.decode()}, "other": {"key": "key-of-the-other-caller"}}
    async with gateway(callers=callers, projects=PROJECTS) as proxy:
        for start, line in (
            (b"GET /shop/v1/" + key, b"A: 1"),
            (b"GET /" + key + b"/v1/x", b"A: 1"),
            (b"GET /shop/v1/x?projectId=" + key, b"A: 1"),
            (key + b" /shop/v1/x", b"A: 1"),
            *((b"GET /shop/v1/x", name + key) for name in (b"X-CSQ-Api: ", b"X-Request-Id: ", b"Expect: ")),
            (b"GET /v1/x", b"X-CSQ-Project: " + key),
        ):
            assert (await proxy.call(start, line, b"X-API-Key: " + key)).status >= 400
        for target in (b"/-/status?hour=1", b"/-/metrics", b"/-/ready", b"/-/requests", b"/-/"):
            shown = await proxy.call(b"GET " + target, b"X-API-Key: key-of-the-other-caller")
            assert key not in shown.head + shown.content


WAYS = {
    "path": (b"GET /%b/v1/segments?projectId=7",),
    "path that changes data": (b"DELETE /%b/v1/segments",),
    "path of no version": (b"GET /%b/x",),
    "name alone": (b"GET /%b",),
    "field": (b"GET /v1/segments", b"X-CSQ-Project: %b"),
    "field with an API": (b"GET /v1/segments", b"X-CSQ-Project: %b", b"X-CSQ-Api: nonsense"),
    "dot segments": (b"GET /%b/%%2e%%2e/v1/segments",),
    "refresh": (b"POST /-/refresh/%b", b"Content-Length: 0"),
    "placeholder": (b"GET /x", b"Authorization: Bearer csq-proxy.%b.elsewhere-key-12345"),
    "export": (b"GET /-/exports/%b/1/latest.csv",),
    "texts": (b"GET /-/snippets?project=%b",),
    "requests": (b"GET /-/requests?project=%b",),
    "token": (b"POST /%b/v1/oauth/token", b"Content-Length: 2"),
    "me": (b"POST /%b/v1/oauth/me", b"Content-Length: 2"),
}
HIDDEN = {"project": b"shop", "project of an account": b"acme/42", "account": b"acme"}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
async def test_a_project_of_others_is_answered_like_one_that_does_not_exist(hidden: bytes) -> None:
    absent = hidden.translate(bytes.maketrans(b"acmeshop", b"qzqzqzqz"))
    account = {"client_id": "id-2", "client_secret": "secret-2"}
    projects = {**PROJECTS, "shop": {**PROJECTS["shop"], "read_only": True, "default": True}}
    upstream, token = Upstream(), TokenServer()
    async with gateway(
        upstream, token=token, callers=CALLERS, projects=projects, accounts={"acme": account}
    ) as proxy:
        assert (await proxy.call(b"GET /acme/42/v1/x", b"X-API-Key: app-key-12345")).status == 200
        sent = len(upstream.requests), len(token.requests)
        for way, lines in WAYS.items():
            told = [await told_of(proxy, name, *lines) for name in (hidden, absent)]
            assert told[0] == told[1], way
            assert b"shop" not in told[0][1], way
            assert b"acme" not in told[0][1], way
        assert (len(upstream.requests), len(token.requests)) == sent


async def told_of(proxy: Gateway, name: bytes, *lines: bytes) -> tuple[list[bytes], bytes]:
    """The answer to these lines of a request with the name in them, but for what always differs."""
    start, *fields = (line % name if b"%" in line else line for line in lines)
    body = b"{}" if start.endswith((b"token", b"me")) else b""
    answer = await proxy.call(start, *fields, b"X-API-Key: elsewhere-key-12345", body=body)
    content = answer.content.replace(name, b"NAME").replace(name.partition(b"/")[0], b"NAME")
    differ = (b"Date:", b"X-Request-Id:", b"Content-Length:")
    return [line for line in answer.head.split(b"\r\n") if not line.startswith(differ)], content


async def test_a_port_of_a_project_of_others_names_no_project() -> None:
    projects = {**PROJECTS, "shop": {**PROJECTS["shop"], "port": free_port()}}
    async with gateway(callers=CALLERS, projects=projects) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", projects["shop"]["port"])
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nX-API-Key: elsewhere-key-12345\r\n\r\n")
        answer = await read_message(reader)
        assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert b"shop" not in answer.content
        await close(writer)
        assert proxy.app.projects()


def test_a_hidden_name_costs_the_same_time_as_an_absent_one() -> None:
    router = Router(
        {f"shop-{number}": cast(Project, Named(f"shop-{number}")) for number in range(1000)},
        accounts=frozenset(("acme",)),
    )
    caller = Caller("bi", frozenset(("shop-1", "shop-2")), read_only=False)
    times: dict[bytes, list[int]] = {b"/shop-500/v1/x": [], b"/zhop-500/v1/x": [], b"/acme/42/v1/x": []}
    for _ in range(60):
        for target, spent in times.items():
            began = time.thread_time_ns()
            with pytest.raises(UnknownProject):
                router.route(target, caller)
            spent.append(time.thread_time_ns() - began)
    hidden, absent, of_account = (min(spent) for spent in times.values())
    assert hidden < 1.5 * absent
    assert absent < 1.5 * hidden
    assert of_account < 1.5 * absent


def test_the_caller_of_earlier_fields_is_kept_for_them_and_for_these_callers_alone() -> None:
    mine, later = (
        Callers({name: CallerSettings.model_validate({"key": "key-of-many-letters"})})
        for name in ("mine", "later")
    )
    other = Callers({"other": CallerSettings.model_validate({"key": "another-key-of-letters"})})
    head = parse_request_head(b"GET / HTTP/1.1\r\nHost: h\r\nX-API-Key: key-of-many-letters")
    for callers, name in ((mine, "mine"), (later, "later"), (mine, "mine"), (mine, "mine")):
        found, target = callers.identify(head, b"/v1/x?a=1")
        assert found is not None
        assert (found.name, target) == (name, b"/v1/x?a=1")
    for _ in range(2):
        with pytest.raises(WrongKey):
            other.identify(head, b"/v1/x")
        found, target = other.identify(head, b"/v1/x?csq_key=another-key-of-letters")
        assert found is not None
        assert (found.name, target) == ("other", b"/v1/x")
        assert Callers({}).identify(head, b"/v1/x?csq_key=a") == (None, b"/v1/x")
        assert Callers({}).identify(head, b"/v1/x") == (None, b"/v1/x")


# Wrong keys


def test_wrong_keys_are_slowed_down_after_some_and_forgiven_with_time() -> None:
    now = 0.0
    wrong = WrongKeys(lambda: now)
    assert [wrong.delay_s("192.0.2.1") for _ in range(FREE_TRIES)] == [0.0] * FREE_TRIES
    assert wrong.delay_s("192.0.2.1") == pytest.approx(DELAY_STEP_S)
    assert max(wrong.delay_s("192.0.2.1") for _ in range(1000)) == LONGEST_DELAY_S
    assert wrong.delay_s("192.0.2.2") == 0.0
    now = 3 * FORGIVEN_S
    assert wrong.delay_s("192.0.2.1") == 0.0


def test_an_ipv6_host_that_changes_its_address_is_slowed_down_too() -> None:
    wrong = WrongKeys(lambda: 0.0)
    delays = [wrong.delay_s(f"2001:db8::{number:x}") for number in range(2 * FREE_TRIES)]
    assert delays[-1] > 0
    assert wrong.delay_s("2001:db8:0:1::1") == 0.0
    assert wrong.delay_s("fe80::1%eth0") == 0.0


def test_who_sends_wrong_keys_from_everywhere_takes_no_more_memory() -> None:
    wrong = WrongKeys(lambda: 0.0)
    for number in range(3 * MOST_PEERS):
        wrong.delay_s(f"192.0.{number >> 8}.{number & 255}")
    assert len(wrong) == MOST_PEERS


async def test_guessing_keys_is_slow_and_a_right_key_is_never_kept_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.gateway.callers.DELAY_STEP_S", 10 * DELAY_STEP_S)  # so that a busy machine
    monkeypatch.setattr("proxy.gateway.callers.LONGEST_DELAY_S", 10 * LONGEST_DELAY_S)  # is not slower yet
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        for number in range(FREE_TRIES + int(LONGEST_DELAY_S / DELAY_STEP_S) - 1):
            reader, writer = await proxy.connect()
            writer.write(proxy.request(b"GET /shop/v1/x", b"X-API-Key: guess-%d" % number))
            if number < FREE_TRIES:
                async with asyncio.timeout(WAIT_S):
                    assert b" 401 " in await reader.readline()
        await asyncio.sleep(0.02)
        guess = asyncio.create_task(proxy.call(b"GET /shop/v1/x", b"X-API-Key: one-more"))
        await asyncio.sleep(0.02)
        for _ in range(3):
            assert (await proxy.call(b"GET /shop/v1/x", b"X-API-Key: app-key-12345")).status == 200
            assert (await proxy.call(b"GET /shop/v1/x")).status == 401
        assert not guess.done()
        guess.cancel()
        await asyncio.gather(guess, return_exceptions=True)


@pytest.mark.parametrize("field", [b"A: 1", b"X-API-Key:", basic(""), b"Authorization: Bearer "])
async def test_who_sends_no_key_is_asked_for_one_at_once_however_often(field: bytes) -> None:
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        for _ in range(3 * FREE_TRIES):
            assert (await proxy.call(b"GET /shop/v1/x", field)).status == 401
        assert not len(proxy.app._gateway._wrong_keys)


@pytest.mark.parametrize("key", ["raw+base64/key=with==", "100%of+it%2Fraw%zz"])
@pytest.mark.parametrize("coded", [False, True])
async def test_a_key_in_the_query_may_be_raw_or_coded(key: str, *, coded: bool) -> None:
    sent = quote(key, safe="") if coded else key
    async with gateway(callers={"bi": {"key": key}}) as proxy:
        assert (await proxy.call(b"GET /v1/x?csq_key=" + sent.encode())).status == 200


async def test_a_wrong_key_is_told_from_none() -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        for lines, says in (((), b"A key is needed"), ((b"X-API-Key: wrong",), b"key is none of [callers]")):
            answer = await proxy.call(b"GET /shop/v1/x", *lines)
            assert (answer.status, answer.error_code) == (401, "PROXY_CALLER_UNKNOWN")
            assert says in answer.content
