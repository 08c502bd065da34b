"""The project that a token request means, by each way to name one, and by several at once."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from support.harness import Message, TokenServer, free_port, gateway, read_message

ASKED = {"grant_type": "client_credentials", "client_id": "any", "client_secret": "any"}
SECRET = {"client_secret": "secret-canary-1", "apis": ["metrics"]}
PROJECTS = {
    "shop": {**SECRET, "client_id": "id-1", "project_id": 41},
    "other": {**SECRET, "client_id": "id-2", "project_id": 42},
}
ACCOUNTS = {
    "acme": {**SECRET, "client_id": "id-3", "projects": [43, 44]},
    "wide": {**SECRET, "client_id": "id-4", "projects": [44, 45]},
}


def asks(target: str, members: dict[str, object], *lines: bytes) -> tuple[bytes, list[bytes], bytes]:
    body = json.dumps({**ASKED, **members}).encode()
    return (
        b"POST " + target.encode(),
        [b"Content-Type: application/json", b"Content-Length: %d" % len(body), *lines],
        body,
    )


def members_of(answer: Message) -> dict[str, Any]:
    return dict(json.loads(answer.content))


TOKEN = "/v1/oauth/token"
_Asked = tuple[str, dict[str, object]]
NO_NUMBERS: list[object] = ["x", True, 1.5, -1, [42], {}, "4 2", "²", "9" * 30]


@pytest.mark.parametrize(
    ("target", "members", "line", "prefix", "number"),
    [
        pytest.param(TOKEN, {"project_id": 42}, b"", "/other", 42, id="number"),
        pytest.param(TOKEN, {"project_id": "42"}, b"", "/other", 42, id="digits"),
        pytest.param(TOKEN, {"projectId": 42}, b"", "/other", 42, id="projectId"),
        pytest.param(TOKEN, {"projectId": "42", "project_id": 42}, b"", "/other", 42, id="both agree"),
        pytest.param(TOKEN, {"project_id": 43}, b"", "/acme/43", 43, id="an account's number"),
        pytest.param("/acme" + TOKEN, {"project_id": 44}, b"", "/acme/44", 44, id="below an account"),
        pytest.param("/wide" + TOKEN, {"projectId": "44"}, b"", "/wide/44", 44, id="below another account"),
        pytest.param("/acme/43" + TOKEN, {"project_id": 43}, b"", "/acme/43", 43, id="said twice"),
        pytest.param("/other" + TOKEN, {"project_id": 42}, b"", "/other", 42, id="below the project"),
        pytest.param(TOKEN, {"client_id": "other"}, b"", "/other", 42, id="client_id"),
        pytest.param(TOKEN, {"client_id": "acme/43"}, b"", "/acme/43", 43, id="client_id of an account's"),
        pytest.param(TOKEN, {"client_id": "wide", "project_id": 44}, b"", "/wide/44", 44, id="account, id"),
        pytest.param("/acme" + TOKEN, {"client_id": "acme/43"}, b"", "/acme/43", 43, id="account, longer"),
        pytest.param("/acme/43" + TOKEN, {"client_id": "acme"}, b"", "/acme/43", 43, id="longer, account"),
        pytest.param(TOKEN, {"project_id": 44}, b"X-CSQ-Project: wide", "/wide/44", 44, id="field, account"),
        pytest.param(TOKEN, {"client_id": "other"}, b"X-CSQ-Project: other", "/other", 42, id="field"),
        pytest.param("//other/" + TOKEN + "/", {}, b"", "/other", 42, id="slashes"),
        pytest.param("/" + TOKEN, {"project_id": 42}, b"", "/other", 42, id="two slashes"),
        pytest.param(TOKEN, {}, b"", "", 41, id="the default"),
        pytest.param(TOKEN, {"project_id": ""}, b"", "", 41, id="an empty number"),
        pytest.param(
            TOKEN,
            {"client_id": None},
            b"Authorization: Basic " + base64.b64encode(b"acme%2F43:any"),
            "/acme/43",
            43,
            id="the client of Basic",
        ),
    ],
)
async def test_a_program_gets_the_project_that_it_names(
    target: str, members: dict[str, object], line: bytes, prefix: str, number: int
) -> None:
    projects = {**PROJECTS, "shop": {**PROJECTS["shop"], "default": True}}
    async with gateway(projects=projects, accounts=ACCOUNTS) as proxy:
        start, lines, body = asks(target, members, *([line] if line else []))
        if members.get("client_id", "") is None:
            body = json.dumps({"grant_type": "client_credentials"}).encode()
            lines[1] = b"Content-Length: %d" % len(body)
        answer = await proxy.call(start, *lines, body=body)
        assert answer.status == 200, answer.content
        told = members_of(answer)
        assert told["endpoint"] == f"http://127.0.0.1:{proxy.port}{prefix}"
        assert told["access_token"] == f"csq-proxy.{prefix[1:] or 'shop'}.local"
        assert told["project_id"] == number
        assert (await proxy.call(b"GET " + prefix.encode() + b"/v1/segments")).status == 200


@pytest.mark.parametrize(
    ("target", "members", "line", "named"),
    [
        pytest.param("/shop" + TOKEN, {"project_id": 42}, b"", ["shop", "41", "42"], id="path, number"),
        pytest.param("/acme/43" + TOKEN, {"project_id": 44}, b"", ["acme/43", "44"], id="account, number"),
        pytest.param("/shop" + TOKEN, {"client_id": "other"}, b"", ["shop", "other"], id="path, client_id"),
        pytest.param("/shop" + TOKEN, {"client_id": "acme"}, b"", ["shop", "acme"], id="path, account"),
        pytest.param(
            TOKEN, {"client_id": "shop", "project_id": 42}, b"", ["shop", "42"], id="client, number"
        ),
        pytest.param(
            TOKEN, {"client_id": "shop"}, b"X-CSQ-Project: other", ["shop", "other"], id="field, client_id"
        ),
        pytest.param(TOKEN, {"project_id": 41, "projectId": 42}, b"", ["41", "42"], id="both spellings"),
        pytest.param(TOKEN, {"project_id": 44}, b"", ["acme/44", "wide/44"], id="two accounts"),
        pytest.param(TOKEN, {"project_id": 99}, b"", ["99", "other (42)", "acme/NUMBER"], id="no such id"),
        pytest.param(TOKEN, {}, b"", ["default", "shop (41)", "wide/NUMBER"], id="nothing, no default"),
        pytest.param("/acme" + TOKEN, {}, b"", ["acme", "project_id"], id="an account alone"),
        pytest.param(TOKEN, {"client_id": "acme"}, b"", ["acme", "project_id"], id="client_id, account"),
        *(
            pytest.param(TOKEN, {"project_id": wrong}, b"", ["project_id", "number"], id=f"{wrong!r}")
            for wrong in NO_NUMBERS
        ),
    ],
)
async def test_a_request_that_names_none_or_several_is_an_invalid_request(
    target: str, members: dict[str, object], line: bytes, named: list[str]
) -> None:
    async with gateway(projects=PROJECTS, accounts=ACCOUNTS) as proxy:
        start, lines, body = asks(target, members, *([line] if line else []))
        answer = await proxy.call(start, *lines, body=body)
        told = members_of(answer)
        assert (answer.status, told["error"]) == (400, "invalid_request"), told
        assert not [word for word in named if word not in told["error_description"]], told
        assert told["errorCode"] == "PROXY_BAD_REQUEST"


async def test_an_id_that_a_token_answer_named_counts() -> None:
    token = TokenServer(extra={"project_id": 77})
    project = {"client_id": "id-1", "client_secret": "secret-canary-1", "apis": ["metrics"]}
    async with gateway(token=token, projects={"shop": {**project, "default": False}}) as proxy:
        start, lines, body = asks(TOKEN, {"project_id": 77})
        assert members_of(await proxy.call(start, *lines, body=body))["endpoint"].endswith("/shop")
        start, lines, body = asks(TOKEN, {"project_id": 78})
        assert (await proxy.call(start, *lines, body=body)).status == 400


@pytest.mark.parametrize(("count", "status"), [(1, 200), (2, 400)])
async def test_where_ids_are_unknown_only_a_lone_project_is_taken(count: int, status: int) -> None:
    unknown = {"client_id": "id-1", "client_secret": "secret-canary-1", "apis": ["metrics"]}
    others = {"other": unknown} if count == 2 else {}
    async with gateway(projects={"shop": {**unknown, "default": True}, **others}) as proxy:
        start, lines, body = asks(TOKEN, {"project_id": 78})
        assert (await proxy.call(start, *lines, body=body)).status == status
        start, lines, body = asks("/shop" + TOKEN, {"project_id": 78})
        assert (await proxy.call(start, *lines, body=body)).status == 200


async def test_a_port_of_a_project_is_its_name() -> None:
    port = free_port()
    projects = {**PROJECTS, "other": {**PROJECTS["other"], "port": port}}
    async with gateway(projects=projects):

        async def ask(target: str, members: dict[str, object]) -> dict[str, Any]:
            start, lines, body = asks(target, members)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"\r\n".join((start + b" HTTP/1.1", b"Host: localhost:%d" % port, *lines, b"", b""))
            writer.write(head + body)
            answer = await read_message(reader)
            writer.close()
            return members_of(answer)

        assert (await ask(TOKEN, {"project_id": 42}))["endpoint"] == f"http://localhost:{port}"
        assert (await ask(TOKEN, {"client_id": "other"}))["access_token"] == "csq-proxy.other.local"
        assert "other" in (await ask(TOKEN, {"client_id": "shop"}))["error_description"]
        assert "other" in (await ask(TOKEN, {"project_id": 41}))["error_description"]
        assert (await ask("/shop" + TOKEN, {}))["errorCode"] == "PROXY_UNKNOWN_PROJECT"


async def test_projects_of_others_do_not_exist_for_a_caller() -> None:
    callers = {"bi": {"key": "key-of-bi-123456789", "projects": ["other", "acme"]}}
    async with gateway(projects=PROJECTS, accounts=ACCOUNTS, callers=callers) as proxy:

        async def ask(target: str, members: dict[str, object]) -> tuple[int, str]:
            start, lines, body = asks(target, {**members, "client_secret": "key-of-bi-123456789"})
            answer = await proxy.call(start, *lines, body=body)
            return answer.status, str(members_of(answer).get("error_description", members_of(answer)))

        assert (await ask(TOKEN, {"project_id": 42}))[0] == 200
        assert (await ask(TOKEN, {"project_id": 44}))[0] == 200  # the other account may not be used
        pairs: list[tuple[_Asked, _Asked, str, str]] = [
            ((TOKEN, {"project_id": 41}), (TOKEN, {"project_id": 99}), "41", "99"),
            ((TOKEN, {"project_id": 45}), (TOKEN, {"project_id": 99}), "45", "99"),
            ((TOKEN, {"client_id": "shop"}), (TOKEN, {"client_id": "none"}), "", ""),
            ((TOKEN, {"client_id": "wide"}), (TOKEN, {"client_id": "none"}), "", ""),
            (("/shop" + TOKEN, {}), ("/none" + TOKEN, {}), "shop", "none"),
            (("/wide" + TOKEN, {"project_id": 44}), ("/none" + TOKEN, {"project_id": 44}), "wide", "none"),
            (("/wide/44" + TOKEN, {}), ("/none/44" + TOKEN, {}), "wide", "none"),
        ]
        for foreign, unknown, word, other in pairs:
            (status, text), as_unknown = await ask(*foreign), await ask(*unknown)
            assert (status, text.replace(word, other) if word else text) == as_unknown, foreign
            assert status in (400, 404)
            assert "wide" not in text.replace(word or "-", "")


async def test_me_describes_the_project_that_is_named() -> None:
    async with gateway(projects=PROJECTS, accounts=ACCOUNTS) as proxy:
        both: list[dict[str, object]] = [{"project_id": 42}, {"client_id": "other"}]
        for members in both:
            start, lines, body = asks("/v1/oauth/me", members)
            answer = await proxy.call(start, *lines, body=body)
            assert (answer.status, members_of(answer)) == (200, {"scopes": "metrics"})
        start, lines, body = asks("/v1/oauth/me", {})
        assert members_of(await proxy.call(start, *lines, body=body))["error"] == "invalid_request"


async def test_me_of_an_account_needs_no_project_because_the_credentials_are_the_same() -> None:
    secret = {**SECRET, "client_id": "id-5"}
    accounts = {**ACCOUNTS, "open": secret}
    async with gateway(projects=PROJECTS, accounts=accounts) as proxy:
        for target, members in (("/v1/oauth/me", {"client_id": "acme"}), ("/acme/v1/oauth/me", {})):
            start, lines, body = asks(target, dict(members))
            answer = await proxy.call(start, *lines, body=body)
            assert (answer.status, members_of(answer)) == (200, {"scopes": "metrics"})
        for target, name in ((TOKEN, "acme"), ("/v1/oauth/me", "open")):
            start, lines, body = asks(target, {"client_id": name})
            answer = await proxy.call(start, *lines, body=body)
            assert answer.status == 400
            assert f"The account {name} has many projects" in members_of(answer)["error_description"]


async def test_me_of_an_account_that_the_caller_may_not_use_is_as_unknown_as_any_name() -> None:
    key = "key-canary-1-long-enough"
    callers = {"own": {"key": key, "projects": ["shop"]}}
    async with gateway(projects=PROJECTS, accounts=ACCOUNTS, callers=callers) as proxy:
        told = []
        for name in ("acme", "zzzz"):
            start, lines, body = asks("/v1/oauth/me", {"client_id": name, "client_secret": key})
            answer = await proxy.call(start, *lines, body=body)
            told.append((answer.status, answer.content.replace(name.encode(), b"")))
            start, lines, body = asks(f"/{name}/v1/oauth/me", {"client_secret": key})
            answer = await proxy.call(start, *lines, body=body)
            told.append((answer.status, answer.content.replace(name.encode(), b"")))
        assert told[:2] == told[2:]
        assert [status for status, _ in told[:2]] == [200, 404]


@pytest.mark.parametrize("default", [False, True])
async def test_a_request_that_names_no_project_gets_the_only_one_of_its_key(default: bool) -> None:
    keys = {name: f"key-canary-{name}-long-enough" for name in ("one", "two", "account", "both")}
    may = {"one": ["other"], "two": ["shop", "other"], "account": ["acme"], "both": ["other", "acme"]}
    callers = {name: {"key": keys[name], "projects": projects} for name, projects in may.items()}
    projects = {**PROJECTS, "shop": {**PROJECTS["shop"], "default": default}}
    async with gateway(projects=projects, accounts=ACCOUNTS, callers=callers) as proxy:
        for name, key in keys.items():
            start, lines, body = asks(TOKEN, {"client_secret": key})
            answer = members_of(await proxy.call(start, *lines, body=body))
            if name == "one":
                assert answer["access_token"] == f"csq-proxy.other.{key}"
                assert answer["endpoint"].endswith("/other")
            elif name == "two" and default:
                assert answer["access_token"] == f"csq-proxy.shop.{key}"
            else:
                assert answer["error"] == "invalid_request"
