"""Programs that do the OAuth dance themselves: what they are answered, and what they never get."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from support.harness import (
    WAIT_S,
    Gateway,
    Message,
    TokenServer,
    Upstream,
    free_port,
    gateway,
    read_message,
    until,
)

from proxy.gateway.oauth import MAX_CONTENT_BYTES
from proxy.logs.setup import configure

KEY = "key-with/1+%2F"
CALLERS = {
    "n8n": {"key": KEY, "projects": ["shop"], "read_only": True},
    "elsewhere": {"key": "elsewhere-key-12345", "projects": ["other"]},
}
PROJECTS = {
    name: {"client_id": f"id-{name}", "client_secret": "secret-canary-1", "apis": ["metrics"]}
    for name in ("shop", "other")
}
ASKED = {"grant_type": "client_credentials", "scope": "metrics", "client_id": "any", "client_secret": "any"}
JSON = b"Content-Type: application/json"
FORM = b"Content-Type: application/x-www-form-urlencoded"


async def post(
    proxy: Gateway, target: bytes, members: Mapping[str, object], *lines: bytes, form: bool = False
) -> Message:
    body = (urlencode(members) if form else json.dumps(members)).encode()
    length = b"Content-Length: %d" % len(body)
    return await proxy.call(b"POST " + target, length, FORM if form else JSON, *lines, body=body)


def of(answer: Message) -> dict[str, Any]:
    return dict(json.loads(answer.content))


@pytest.mark.parametrize("form", [False, True])
async def test_without_callers_anybody_gets_a_placeholder_and_this_proxy_as_endpoint(form: bool) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        before = len(proxy.token.requests)
        answer = await post(proxy, b"/v1/oauth/token", ASKED, form=form)
        assert answer.status == 200
        assert of(answer) == {
            "access_token": "csq-proxy.shop.local",
            "token_type": "bearer",
            "expires_in": 3600,
            "scope": "metrics",
            "endpoint": f"http://127.0.0.1:{proxy.port}",
        }
        assert answer.values(b"cache-control") == [b"no-store"]
        assert answer.values(b"pragma") == [b"no-cache"]
        assert (len(proxy.token.requests), upstream.requests) == (before, [])


@pytest.mark.parametrize(
    ("target", "lines", "prefix"),
    [
        (b"/shop/v1/oauth/token", [], "/shop"),
        (b"/acme/42/v1/oauth/token", [], "/acme/42"),
        (b"/v1/oauth/token?x=1", [b"X-CSQ-Project: other"], "/other"),
        (b"/v1/oauth/token", [b"X-CSQ-Project: acme/42"], "/acme/42"),
    ],
)
async def test_the_endpoint_names_the_project_as_it_was_addressed(
    target: bytes, lines: list[bytes], prefix: str
) -> None:
    accounts = {"acme": {"client_id": "id-2", "client_secret": "secret-canary-2", "apis": ["metrics"]}}
    async with gateway(accounts=accounts, projects=PROJECTS) as proxy:
        told = of(await post(proxy, target, ASKED, *lines))
        assert told["endpoint"] == f"http://127.0.0.1:{proxy.port}{prefix}"
        assert told.get("project_id") == (42 if "acme" in prefix else None)
        answer = await proxy.call(b"GET " + prefix.encode() + b"/v1/segments")
        assert answer.status == 200


async def test_the_endpoint_has_the_name_that_the_caller_used() -> None:
    server = {"allowed_hosts": ["csq-proxy:8277"]}
    callers = {"bi": {"key": ASKED["client_secret"]}}
    async with gateway(server=server, callers=callers) as proxy:
        body = json.dumps(ASKED).encode()
        head = b"POST /shop/v1/oauth/token HTTP/1.1\r\nHost: csq-proxy:8277\r\nContent-Length: %d\r\n\r\n"
        answer = await proxy.send(head % len(body) + body)
        assert of(answer)["endpoint"] == "http://csq-proxy:8277/shop"
        refused = await proxy.send(head.replace(b"csq-proxy:8277", b"evil.example") % len(body) + body)
        assert refused.error_code == "PROXY_HOST_REFUSED"
        absolute = head.replace(b" /shop", b" http://csq-proxy:8277/shop")  # RFC 9112, section 3.2.2
        absolute = absolute.replace(b"Host: csq-proxy:8277", b"Host: evil.example")
        answer = await proxy.send(absolute % len(body) + body)
        assert of(answer)["endpoint"] == "http://csq-proxy:8277/shop"
        refused = await post(proxy, b"/v1/oauth/token", ASKED, b"Origin: https://evil.example")
        assert refused.error_code == "PROXY_ORIGIN_REFUSED"


@pytest.mark.parametrize("host", [b"csq.corp", b"csq.corp:443", b"CSQ.corp", b"127.0.0.1"])
async def test_behind_a_server_that_ends_tls_the_endpoint_is_the_public_url(host: bytes) -> None:
    port = free_port()
    projects = {"shop": {**PROJECTS["shop"], "default": True}, "other": {**PROJECTS["other"], "port": port}}
    server = {"public_url": "https://csq.corp"}
    callers = {"bi": {"key": ASKED["client_secret"]}}
    async with gateway(server=server, callers=callers, projects=projects) as proxy:
        body = json.dumps(ASKED).encode()
        head = b"POST %b/v1/oauth/token HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n"
        ways = ((b"/shop", proxy.port, "shop"), (b"", proxy.port, "shop"), (b"", port, "other"))
        for path, at, name in ways:
            reader, writer = await asyncio.open_connection("127.0.0.1", at)
            writer.write(head % (path, host, len(body)) + body)
            # With the project's name, by which a balancer chooses the process.
            assert of(await read_message(reader))["endpoint"] == f"https://csq.corp/{name}"
            writer.close()
        refused = await proxy.send(head % (b"/shop", b"csq.corp:8443", 0))
        assert refused.error_code == "PROXY_HOST_REFUSED"


async def test_a_projects_own_listener_needs_no_prefix() -> None:
    port = free_port()
    projects = {**PROJECTS, "other": {**PROJECTS["other"], "port": port}}
    async with gateway(projects=projects) as proxy:
        body = json.dumps(ASKED).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/oauth/token HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (port, len(body)) + body)
        told = of(await read_message(reader))
        writer.close()
        assert told["endpoint"] == f"http://localhost:{port}"
        assert proxy.port != port


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": None}, "unsupported_grant_type"),
        ({"scope": 1}, "invalid_scope"),
        ({"scope": "data-export enrichment"}, "invalid_scope"),
        ({"project_id": 43}, "invalid_request"),
        ({"integration_id": 8}, "invalid_request"),
        ({"integration_id": "x"}, "invalid_request"),
    ],
)
async def test_what_contentsquare_would_refuse_is_refused_as_rfc_6749_says(
    change: dict[str, object], error: str
) -> None:
    project = {**PROJECTS["shop"], "project_id": 42, "integration_id": 7}
    async with gateway(projects={"shop": project}) as proxy:
        answer = await post(proxy, b"/shop/v1/oauth/token", {**ASKED, **change})
        assert (answer.status, of(answer)["error"]) == (400, error)
        assert of(answer)["error_description"] == of(answer)["errorMessage"]
        assert answer.error_code == "PROXY_BAD_REQUEST"
        assert answer.values(b"proxy-status") == [b"csq-proxy; error=http_request_error"]
        assert answer.values(b"x-request-id")
        good = await post(proxy, b"/v1/oauth/token", {**ASKED, "scope": "data-export metrics"})
        assert (of(good)["scope"], of(good)["project_id"]) == ("data-export metrics", 42)
        assert (await post(proxy, b"/v1/oauth/token", {**ASKED, "project_id": 42}, form=True)).status == 200
        for right in (7, "7", None, ""):
            members = {**ASKED, "scope": "enrichment", "integration_id": right}
            assert (await post(proxy, b"/v1/oauth/token", members)).status == 200


@pytest.mark.parametrize(
    ("scope", "told"),
    [
        (None, "metrics data-export"),
        ("", "metrics data-export"),
        (" ", "metrics data-export"),
        ([], "metrics data-export"),
        ("metrics", "metrics"),
        ("metrics,data-export", "metrics data-export"),
        (" metrics ,  data-export\tmetrics", "metrics data-export"),
        (["metrics", "data-export"], "metrics data-export"),
        ("metrics new-api", "metrics new-api"),
    ],
)
async def test_scopes_are_read_leniently_and_none_means_all(scope: object, told: str) -> None:
    projects = {"shop": {**PROJECTS["shop"], "apis": ["metrics", "data-export"]}}
    async with gateway(projects=projects) as proxy:
        answer = await post(proxy, b"/v1/oauth/token", {**ASKED, "scope": scope})
        assert (answer.status, of(answer)["scope"]) == (200, told)


async def test_json_may_begin_with_a_byte_order_mark() -> None:
    async with gateway() as proxy:
        body = b"\xef\xbb\xbf" + json.dumps(ASKED).encode()
        for kind in (JSON, b"Content-Type: text/plain"):
            answer = await proxy.call(
                b"POST /v1/oauth/token", kind, b"Content-Length: %d" % len(body), body=body
            )
            assert answer.status == 200


@pytest.mark.parametrize("path", [b"//v1/oauth/token", b"/v1/oauth/token/", b"/shop//v1//oauth/token//?a=1"])
async def test_slashes_that_many_servers_ignore_are_ignored_here(path: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        assert (await post(proxy, path, ASKED)).status == 200
        assert (await post(proxy, path.replace(b"token", b"me"), ASKED)).status == 200
        assert not upstream.requests


@pytest.mark.parametrize("path", [b"/v1/oauth/token", b"/shop/v1/oauth/me", b"//v1/oauth/token/"])
async def test_every_error_of_these_paths_has_both_shapes(path: bytes) -> None:
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        length = b"Content-Length: 0"
        absolute = b"POST http://" + proxy.host + path
        shop, other = f"{KEY}", "elsewhere-key-12345"
        answers = [
            (await proxy.call(b"POST " + path, length, b"Origin: https://evil.example"), "invalid_request"),
            (await proxy.call(absolute, length, b"Origin: https://evil.example"), "invalid_request"),
            (await proxy.call(b"GET " + path), "invalid_request"),
            (await proxy.call(b"POST " + path, length), "invalid_client"),
            (await post(proxy, path, {**ASKED, "client_secret": "wrong"}), "invalid_client"),
            (await post(proxy, path, {**ASKED, "client_secret": shop, "project_id": "x"}), "invalid_request"),
            (await post(proxy, b"/shop/v1/oauth/me", {**ASKED, "client_secret": other}), "invalid_request"),
        ]
        for answer, error in answers:
            told = of(answer)
            assert answer.status >= 400
            assert (told["error"], told["success"]) == (error, False)
            assert told["error_description"] == told["errorMessage"]
            assert told["errorCode"].startswith("PROXY_")
            assert answer.values(b"cache-control") == [b"no-store"]
            assert bool(answer.values(b"www-authenticate")) == (answer.status == 401)
        assert "client_secret" in of(answers[4][0])["error_description"]


async def test_trouble_with_the_token_endpoint_has_a_word_of_its_own() -> None:
    token = Me()
    async with gateway(token=token, projects=PROJECTS) as proxy:
        for told, status, error in (
            (b"nonsense", 502, "server_error"),
            (b"HTTP/1.1 429 X\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n", 429, None),
            (b"", 503, "temporarily_unavailable"),
        ):
            token.told = told
            answer = await post(proxy, b"/shop/v1/oauth/me", {})
            assert (answer.status, of(answer)["error"] if answer.content else None) == (status, error)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b"[" * 9999, b"scope=metrics&scope=enrichment", b"{}"]
)
async def test_content_that_is_no_token_request_is_a_400(body: bytes) -> None:
    async with gateway() as proxy:
        for kind in (JSON, FORM, b"Content-Type: text/plain"):
            answer = await proxy.call(
                b"POST /v1/oauth/token", kind, b"Content-Length: %d" % len(body), body=body
            )
            assert answer.status == 400
            assert of(answer)["error"] in ("invalid_request", "unsupported_grant_type")


async def test_content_has_a_limit_and_only_post_is_answered() -> None:
    async with gateway() as proxy:
        body = b"x" * (MAX_CONTENT_BYTES + 1)
        answer = await proxy.call(b"POST /v1/oauth/token", b"Content-Length: %d" % len(body), body=body)
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
        for target in (b"/v1/oauth/token", b"/shop/v1/oauth/me"):
            answer = await proxy.call(b"GET " + target)
            assert (answer.status, answer.values(b"allow")) == (405, [b"POST"])


async def test_who_waits_for_a_100_before_the_content_gets_one() -> None:
    async with gateway() as proxy:
        body = json.dumps(ASKED).encode()
        reader, writer = await proxy.connect()
        lines = (b"Expect: 100-continue", b"Content-Length: %d" % len(body))
        writer.write(proxy.request(b"POST /v1/oauth/token", *lines))
        assert (await read_message(reader)).status == 100
        writer.write(body)
        assert (await read_message(reader)).status == 200


# With callers


def basic(user: str, password: str) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    ("members", "lines", "query"),
    [
        pytest.param({**ASKED, "client_secret": KEY}, [], b"", id="client_secret"),
        pytest.param(ASKED, [basic("any", KEY)], b"", id="basic"),
        pytest.param(ASKED, [basic("any", "key-with%2F1%2B%252F")], b"", id="basic, encoded"),
        pytest.param(ASKED, [b"X-API-Key: " + KEY.encode()], b"", id="x-api-key"),
        pytest.param(ASKED, [], b"?csq_key=key-with/1%2b%252F&a=1", id="query"),
    ],
)
@pytest.mark.parametrize("form", [False, True])
async def test_a_callers_key_is_the_token(
    members: dict[str, object], lines: list[bytes], query: bytes, form: bool
) -> None:
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        answer = await post(proxy, b"/shop/v1/oauth/token" + query, members, *lines, form=form)
        assert answer.status == 200
        told = of(answer)
        assert told["access_token"] == f"csq-proxy.shop.{KEY}"
        bearer = b"Authorization: Bearer " + told["access_token"].encode()
        assert (await proxy.call(b"GET /shop/v1/segments", bearer)).status == 200


async def test_whose_secret_is_no_callers_key_is_an_invalid_client() -> None:
    accounts = {"acme": {"client_id": "id-2", "client_secret": "secret-canary-2"}}
    async with gateway(callers=CALLERS, projects=PROJECTS, accounts=accounts) as proxy:
        without = {key: value for key, value in ASKED.items() if key != "client_secret"}
        for target in (b"/shop/v1/oauth/token", b"/acme/42/v1/oauth/token", b"/shop/v1/oauth/me"):
            for members in (ASKED, without, {**ASKED, "client_secret": "secret-canary-1"}):
                answer = await post(proxy, target, members)
                assert (answer.status, of(answer)["error"]) == (401, "invalid_client")
                assert answer.error_code == "PROXY_CALLER_UNKNOWN"
                [challenge] = answer.values(b"www-authenticate")
                assert challenge.startswith(b"Basic ")
        assert [project.name for project in proxy.app.projects()] == ["shop", "other"]


async def test_a_caller_gets_tokens_for_its_own_projects_only() -> None:
    async with gateway(callers=CALLERS, projects=PROJECTS) as proxy:
        for path in (b"/v1/oauth/token", b"/v1/oauth/me"):
            members = {**ASKED, "client_secret": "elsewhere-key-12345"}
            answer = await post(proxy, b"/shop" + path, members)
            assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
            assert (await post(proxy, b"/other" + path, members)).status == 200
            assert (await post(proxy, b"/none" + path, members)).error_code == "PROXY_UNKNOWN_PROJECT"


async def test_no_path_gets_past_the_key_because_it_looks_like_the_token_path() -> None:
    upstream = Upstream()
    async with gateway(upstream, callers=CALLERS, projects=PROJECTS) as proxy:
        for target in (
            b"/shop/v1/segments/v1/oauth/token",
            b"/shop/v1/oauth/token/",
            b"/shop/x/v1/oauth/token",
            b"/shop/../v1/oauth/token",
            b"/-/v1/oauth/token",
            b"/shop/v1/oauth/%74oken",
        ):
            answer = await proxy.call(b"POST " + target, JSON, b"Content-Length: 2", body=b"{}")
            assert answer.status == 401, target
            members = {**ASKED, "client_secret": "elsewhere-key-12345"}
            assert (await post(proxy, target, members)).status in (400, 401, 403, 404), target
        assert not upstream.requests


# /v1/oauth/me


class Me(TokenServer):
    """Remembers what ``/v1/oauth/me`` is asked, and answers it by ``told``."""

    told: bytes = (
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"scopes":"metrics"}'
    )

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Message] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        if b"/v1/oauth/me" in request.start_line:
            self.asked.append(request)
            writer.write(self.told)
            await writer.drain()
            return
        replay = asyncio.StreamReader()
        replay.feed_data(request.head + b"\r\n\r\n" + request.body)
        replay.feed_eof()
        await super().__call__(replay, writer)


async def test_me_is_asked_with_the_real_credentials_and_no_bearer_token() -> None:
    token = Me()
    async with gateway(token=token, projects=PROJECTS) as proxy:
        answer = await post(proxy, b"/shop/v1/oauth/me", ASKED, b"Authorization: Bearer x", form=True)
        assert (answer.status, of(answer)) == (200, {"scopes": "metrics"})
        [asked] = token.asked
        assert json.loads(asked.body) == {"client_id": "id-shop", "client_secret": "secret-canary-1"}
        assert not asked.values(b"authorization")
        token.told = b"HTTP/1.1 418 X\r\nContent-Type: text/x\r\nContent-Length: 3\r\n\r\nhey"
        answer = await post(proxy, b"/shop/v1/oauth/me", {})
        assert (answer.status, answer.content, answer.values(b"content-type")) == (418, b"hey", [b"text/x"])
        token.told = b"HTTP/1.1 200 X\r\nContent-Type: a/\xe9\xff\r\nContent-Length: 3\r\n\r\nhey"
        answer = await post(proxy, b"/shop/v1/oauth/me", {})
        assert (answer.status, answer.values(b"content-type")) == (200, [b"a/\xe9\xff"])


@pytest.mark.parametrize(
    ("told", "status", "code"),
    [
        (b"", 502, "PROXY_UPSTREAM_UNREACHABLE"),
        (b"nonsense\r\n\r\n", 502, "PROXY_UPSTREAM_UNREACHABLE"),
        (b"HTTP/1.1 101 X\r\nConnection: close\r\n\r\n", 502, "PROXY_UPSTREAM_UNREACHABLE"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\nsecret-canary-1",
            502,
            "PROXY_UPSTREAM_UNREACHABLE",
        ),
    ],
)
async def test_trouble_with_me_is_never_the_callers_fault(told: bytes, status: int, code: str) -> None:
    token = Me()
    async with gateway(token=token, projects=PROJECTS) as proxy:
        token.told = told
        answer = await post(proxy, b"/shop/v1/oauth/me", {})
        assert (answer.status, answer.error_code) == (status, code)
        assert b"canary" not in answer.head + answer.body


async def test_me_is_answered_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    token = Me()
    async with gateway(token=token, projects=PROJECTS) as proxy:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert (await post(proxy, b"/shop/v1/oauth/me", {})).status == 200
        secret = b"secret-canary-1"
        token.told = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(secret), secret)
        answer = await post(proxy, b"/shop/v1/oauth/me", {})
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")


async def test_me_repeats_no_secret_in_any_spelling_also_after_a_renewal(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_text("first-secret-of-shop")
    token = Me()
    projects = {"shop": {"client_id": "id-shop", "client_secret_file": str(file), "apis": ["metrics"]}}
    async with gateway(token=token, projects=projects) as proxy:
        for secret in (b"first-secret-of-shop", b"second-secret-of-shop"):
            file.write_bytes(secret)
            async with asyncio.timeout(WAIT_S):
                while not token.asked or secret not in token.asked[-1].body:
                    await proxy.call(b"POST /-/refresh/shop")
                    await asyncio.sleep(0.1)  # two questions for a secret have a pause between them
                    assert (await post(proxy, b"/v1/oauth/me", {})).status == 200
            usual = token.told
            for spelt in (secret, secret[::-1], base64.b64encode(b"id:" + secret), secret.hex().encode()):
                told = b'{"for": "%b"}' % spelt
                token.told = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told)
                answer = await post(proxy, b"/v1/oauth/me", {})
                assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
                assert spelt not in answer.body
            token.told = usual


async def test_a_pause_that_me_asks_for_is_kept() -> None:
    token = Me()
    async with gateway(token=token, projects=PROJECTS) as proxy:
        token.told = b"HTTP/1.1 429 X\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
        assert (await post(proxy, b"/shop/v1/oauth/me", {})).status == 429
        answer = await post(proxy, b"/shop/v1/oauth/me", {})
        assert (answer.status, answer.error_code) == (503, "PROXY_TOKEN_UNAVAILABLE")
        assert answer.values(b"retry-after") == [b"7"]
        assert len(token.asked) == 1


async def test_trouble_with_me_is_logged_without_an_api() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    token = Me()
    async with gateway(token=token, projects=PROJECTS) as proxy:
        token.told = b""
        assert (await post(proxy, b"/shop/v1/oauth/me", {})).status == 502
        await until(lambda: "request_failed" in stream.getvalue())
    [line] = [
        one for one in map(json.loads, stream.getvalue().splitlines()) if one["event"] == "request_failed"
    ]
    assert (line["project"], line["cause"]) == ("shop", "PROXY_UPSTREAM_UNREACHABLE")
    assert "api" not in line


async def test_an_answer_of_me_that_its_caller_does_not_take_is_no_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.server.answer.STALL_S", 0.1)
    token = Me()
    token.told = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    async with gateway(token=token, projects=PROJECTS) as proxy:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with sock:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", proxy.port))
            head = b"POST /shop/v1/oauth/me HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % proxy.port
            await asyncio.get_running_loop().sock_sendall(
                sock, head + JSON + b"\r\nContent-Length: 2\r\n\r\n{}"
            )
            requests: list[dict[str, Any]] = []
            async with asyncio.timeout(WAIT_S):
                while not requests:
                    requests = of(await proxy.call(b"GET /-/requests?project=shop"))["requests"]
        assert "piece" in requests[0]["reason"]
        status = of(await proxy.call(b"GET /-/status"))["projects"]["shop"]
        assert not status["last_errors"]
        assert status["responses"]["proxy"] == {"4xx": 0, "5xx": 0}
