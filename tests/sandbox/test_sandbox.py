"""The sandbox's hosts over loopback: tokens, refusals, limits, failures asked for, test aids."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme
from aiohttp import web
from support import shapes
from support.harness import WAIT_S, free_port

from proxy.sandbox import Sandbox, SandboxOptions, bytes_sha256

EVERYTHING = "data-export metrics speed-analysis surveys"


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A program that talks to a sandbox with the credentials of one project."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession, project: str = "demo-eu") -> None:
        self.sandbox = sandbox
        self.session = session
        self.project = sandbox.projects[project]

    def wanted(self, **changes: Any) -> dict[str, Any]:
        content = {
            "grant_type": "client_credentials",
            "client_id": self.project.client_id,
            "client_secret": self.project.client_secret,
            "scope": "metrics",
        }
        return {name: value for name, value in (content | changes).items() if value is not None}

    async def ask_token(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        url = f"{self.sandbox.auth_url}/v1/oauth/token"
        async with self.session.post(url, json=self.wanted(**changes)) as answer:
            content = await answer.json()
        if answer.status == 200:
            shapes.hold("POST", "/v1/oauth/token", content)
        else:
            shapes.hold_refusal(content, oauth="error" in content)
        return answer.status, content

    async def lease(self, **changes: Any) -> tuple[str, dict[str, str]]:
        """A base URL, and the fields to send there."""
        status, answer = await self.ask_token(**changes)
        assert status == 200, answer
        return answer["endpoint"], {"Authorization": f"Bearer {answer['access_token']}"}

    async def get(self, url: str, fields: dict[str, str] | None = None) -> tuple[int, Any]:
        async with self.session.get(url, headers=fields) as answer:
            return answer.status, await answer.json()


@contextlib.asynccontextmanager
async def running(clock: Clock | None = None, **options: Any) -> AsyncIterator[Client]:
    async with (
        Sandbox(SandboxOptions(**options), now=clock or time.time) as sandbox,
        aiohttp.ClientSession() as session,
    ):
        yield Client(sandbox, session)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with running() as one:
        yield one


def error_of(content: dict[str, Any]) -> Any:
    assert content["success"] is False
    assert content["errorMessage"]
    return content["errorCode"]


# Where it listens


async def test_ports_after_the_last_one_are_any_free_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Site(web.TCPSite):
        def __init__(self, runner: Any, host: str, port: int, **options: Any) -> None:
            asked.append(port)
            super().__init__(runner, host, 0, **options)

    monkeypatch.setattr(web, "TCPSite", Site)
    async with running(port=65_534):
        assert asked == [65_534, 65_535, 0, 0, 0, 0]


# The authentication host


async def test_a_token_answer_has_the_documented_members(client: Client) -> None:
    status, answer = await client.ask_token(scope="metrics data-export")

    assert status == 200
    assert set(answer) == {"access_token", "token_type", "expires_in", "scope", "project_id", "endpoint"}
    assert answer["token_type"] == "bearer"
    assert answer["expires_in"] == 3600
    assert answer["scope"] == "metrics data-export"
    assert answer["project_id"] == client.project.project_id
    assert answer["endpoint"] == client.sandbox.endpoints["eu"]


async def test_a_token_is_shaped_like_a_jwt_and_never_the_same_twice(client: Client) -> None:
    tokens = [(await client.ask_token())[1]["access_token"] for _ in range(2)]

    assert tokens[0] != tokens[1]
    head, payload, signature = tokens[0].split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"alg": "HS256", "typ": "JWT"}
    assert json.loads(base64.urlsafe_b64decode(payload + "=="))["project"] == client.project.project_id
    assert signature


async def test_a_token_answer_is_not_stored_and_dated_by_the_sandboxs_clock() -> None:
    clock = Clock()
    async with running(clock) as client:
        url = f"{client.sandbox.auth_url}/v1/oauth/token"
        async with client.session.post(url, json=client.wanted()) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers.getall("Date") == ["Fri, 15 Jan 2027 08:00:00 GMT"]


async def test_a_form_is_refused_because_the_token_endpoint_reads_json_only(client: Client) -> None:
    url = f"{client.sandbox.auth_url}/v1/oauth/token"
    async with client.session.post(url, data=client.wanted()) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"] == "invalid_request"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
async def test_a_token_request_that_is_no_json_object_is_an_invalid_request(
    client: Client, body: bytes
) -> None:
    url = f"{client.sandbox.auth_url}/v1/oauth/token"
    async with client.session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"] in ("invalid_request", "unsupported_grant_type")


async def test_wrong_credentials_get_the_generic_500_that_the_vendor_is_said_to_give(client: Client) -> None:
    for changes in ({"client_secret": "wrong"}, {"client_id": "wrong"}):
        status, answer = await client.ask_token(**changes)
        assert status == 500
        assert error_of(answer) == "INTERNAL_SERVER_ERROR"


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": None}, 400, "unsupported_grant_type"),
        ({"client_id": None}, 400, "invalid_request"),
        ({"client_secret": 5}, 400, "invalid_request"),
        ({"scope": None}, 400, "invalid_scope"),
        ({"scope": " "}, 400, "invalid_scope"),
        ({"scope": "metrics everything"}, 400, "invalid_scope"),
        ({"scope": "data-export enrichment", "integration_id": 7}, 400, "invalid_scope"),
        ({"scope": "enrichment"}, 400, "invalid_request"),
        ({"scope": "enrichment", "integration_id": "7"}, 400, "invalid_request"),
        ({"scope": "enrichment", "integration_id": True}, 400, "invalid_request"),
        ({"scope": "enrichment", "integration_id": 999}, 400, "invalid_request"),
        ({"project_id": 43}, 403, "unauthorized_client"),
    ],
)
async def test_a_wrong_token_request_is_refused_in_the_shape_of_rfc_6749(
    client: Client, changes: dict[str, Any], status: int, error: str
) -> None:
    got, answer = await client.ask_token(**changes)

    assert got == status
    assert answer["error"] == error
    assert answer["error_description"]


async def test_enrichment_has_an_endpoint_of_its_own(client: Client) -> None:
    status, answer = await client.ask_token(scope="enrichment", integration_id=client.project.integration_id)

    assert status == 200
    assert answer["endpoint"] == client.sandbox.endpoints["enrichment-eu"]


async def test_all_hosts_are_distinct_origins(client: Client) -> None:
    sandbox = client.sandbox
    assert set(sandbox.endpoints) == {"eu", "us", "enrichment-eu", "enrichment-us"}
    assert len({sandbox.auth_url, sandbox.storage_url, *sandbox.endpoints.values()}) == 6


async def test_account_level_credentials_need_a_project_of_the_account(client: Client) -> None:
    account = client.sandbox.account
    ours = {"client_id": account.client_id, "client_secret": account.client_secret}

    for project in client.sandbox.projects.values():
        status, answer = await client.ask_token(**ours, project_id=project.project_id)
        assert status == 200
        assert answer["project_id"] == project.project_id
        assert answer["endpoint"] == client.sandbox.endpoints[project.cloud]
    assert [(await client.ask_token(**ours, project_id=wrong))[0] for wrong in (None, "42", 1)] == [
        400,
        400,
        403,
    ]


async def test_me_describes_the_credentials(client: Client) -> None:
    url = f"{client.sandbox.auth_url}/v1/oauth/me"
    account = client.sandbox.account
    for credentials, names in ((client.project, {42: "demo-eu"}), (account, {42: "demo-eu", 43: "demo-us"})):
        content = {"client_id": credentials.client_id, "client_secret": credentials.client_secret}
        async with client.session.post(url, json=content) as answer:
            described = await answer.json()
        shapes.hold("POST", "/v1/oauth/me", described)
        assert set(described["scopes"].split()) == {*EVERYTHING.split(), "enrichment"}
        assert described["permissions"]["projects"] == [
            {"id": id_, "name": name} for id_, name in names.items()
        ]


@pytest.mark.parametrize("host", ["eu", "us"])
async def test_the_hosts_of_regions_give_tokens_too(client: Client, host: str) -> None:
    base = client.sandbox.endpoints[host]
    async with client.session.post(f"{base}/v1/oauth/token", json=client.wanted()) as answer:
        lease = await answer.json()
    shapes.hold("POST", "/v1/oauth/token", lease)
    assert lease["endpoint"] == client.sandbox.endpoints["eu"]
    async with client.session.post(f"{base}/v1/oauth/me", json=client.wanted()) as answer:
        assert answer.status == 200
    assert client.sandbox.counters.token_requests == 1
    assert client.sandbox.counters.api_requests == 0


async def test_a_project_may_be_named_by_project_id_in_camel_case(client: Client) -> None:
    account = client.sandbox.account
    ours = {"client_id": account.client_id, "client_secret": account.client_secret}
    for names in ({"projectId": 43}, {"projectId": 43, "project_id": 43}):
        status, answer = await client.ask_token(**ours, **names)
        assert (status, answer["project_id"]) == (200, 43)
    assert (await client.ask_token(**ours, projectId=43, project_id=42))[0] == 400
    assert (await client.ask_token(**ours, projectId="43"))[0] == 400
    assert (await client.ask_token(**ours, projectId=9))[0] == 403


async def test_a_lenient_token_endpoint_takes_forms_digits_and_no_scope() -> None:
    async with running(lenient=True) as client:
        account = client.sandbox.account
        form = {
            "grant_type": "client_credentials",
            "client_id": account.client_id,
            "client_secret": account.client_secret,
            "projectId": "43",
        }
        async with client.session.post(f"{client.sandbox.auth_url}/v1/oauth/token", data=form) as answer:
            lease = await answer.json()
        shapes.hold("POST", "/v1/oauth/token", lease)
        assert lease["api_base_url"] == lease["endpoint"] == client.sandbox.endpoints["us"]
        assert set(lease["scope"].split()) == set(EVERYTHING.split())
        status, lease = await client.ask_token(scope="enrichment", integration_id="7")
        assert (status, lease["scope"]) == (200, "enrichment")
        async with client.session.post(
            f"{client.sandbox.auth_url}/v1/oauth/token", data={"a": "b"}
        ) as answer:
            assert answer.status == 400
            shapes.hold_refusal(await answer.json(), oauth=True)


async def test_the_authentication_host_has_no_other_paths_and_only_posts(client: Client) -> None:
    assert (await client.get(f"{client.sandbox.auth_url}/v1/segments"))[0] == 404
    async with client.session.get(f"{client.sandbox.auth_url}/v1/oauth/token") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "POST"


async def test_the_asked_for_share_of_token_requests_fails_in_three_ways() -> None:
    async with running(token_failure_rate=1.0) as client:
        url = f"{client.sandbox.auth_url}/v1/oauth/token"
        seen = set()
        for _ in range(20):
            async with client.session.post(url, json=client.wanted()) as answer:
                seen.add((answer.status, answer.content_type))
    assert seen == {(500, "application/json"), (503, "application/json"), (200, "text/html")}
    assert client.sandbox.counters.token_requests == 20


# The API hosts


@pytest.mark.parametrize(
    "fields",
    [{}, {"Authorization": "Bearer a.b.c"}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer ÿ"}],
)
async def test_a_missing_or_unknown_token_is_401(client: Client, fields: dict[str, str]) -> None:
    status, answer = await client.get(f"{client.sandbox.endpoints['eu']}/v1/segments", fields)

    assert status == 401
    assert error_of(answer) != "JWT_EXPIRED"
    assert client.sandbox.counters.unauthorized == 1


async def test_an_expired_token_is_answered_exactly_as_documented() -> None:
    clock = Clock()
    async with running(clock, token_lifetime_s=5) as client:
        endpoint, fields = await client.lease()
        clock.now += 4.9
        assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 200
        clock.now += 0.2
        status, answer = await client.get(f"{endpoint}/v1/segments", fields)

        assert status == 401
        assert answer == {
            "success": False,
            "errorMessage": "Auth token is expired.",
            "errorCode": "JWT_EXPIRED",
        }
        assert client.sandbox.counters.expired_tokens_seen == 1
        assert client.sandbox.counters.unauthorized == 0


async def test_a_token_with_a_changed_payload_is_refused(client: Client) -> None:
    endpoint, fields = await client.lease()
    head, payload, signature = fields["Authorization"].split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "==")) | {"project": 43}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    status, _ = await client.get(f"{endpoint}/v1/segments", {"Authorization": f"{head}.{forged}.{signature}"})

    assert status == 401


async def test_a_token_is_only_good_for_its_own_cloud_host_and_scope(client: Client) -> None:
    endpoints = client.sandbox.endpoints
    _, fields = await client.lease(scope="metrics")
    _, enriching = await client.lease(scope="enrichment", integration_id=7)

    assert (await client.get(f"{endpoints['us']}/v1/segments", fields))[0] == 401
    assert (await client.get(f"{endpoints['enrichment-eu']}/v1/segments", fields))[0] == 401
    assert (await client.get(f"{endpoints['eu']}/v1/segments", enriching))[0] == 401
    status, answer = await client.get(f"{endpoints['eu']}/v1/exports", fields)
    assert (status, error_of(answer)) == (403, "FORBIDDEN")


async def test_revoked_tokens_are_401_and_new_ones_are_not(client: Client) -> None:
    endpoint, fields = await client.lease()
    client.sandbox.revoke_tokens()
    assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 401
    _, fields = await client.lease()
    assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 200


async def test_a_moved_project_is_found_at_the_endpoint_that_a_new_token_names(client: Client) -> None:
    endpoint, fields = await client.lease()
    client.sandbox.move_project("demo-eu", "us")
    assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 401
    moved, fields = await client.lease()
    assert moved == client.sandbox.endpoints["us"]
    assert (await client.get(f"{moved}/v1/segments", fields))[0] == 200


async def test_unknown_paths_and_methods_are_refused_in_the_vendors_shape(client: Client) -> None:
    endpoint, fields = await client.lease(scope=EVERYTHING)
    for path in ("/v1/unheard-of", "/v1/exports/1/2/3", "/", "/v1/metrics"):
        status, answer = await client.get(endpoint + path, fields)
        assert (status, error_of(answer)) == (404, "NOT_FOUND")
    async with client.session.delete(f"{endpoint}/v1/exports", headers=fields) as refused:
        assert refused.status == 405
        assert refused.headers["Allow"] == "GET, POST"
        assert error_of(await refused.json()) == "METHOD_NOT_ALLOWED"


async def test_above_the_limit_a_call_is_refused_whatever_its_api_or_credentials() -> None:
    async with running(max_concurrency=2, latency_s=1) as client:
        account = client.sandbox.account
        endpoint, metrics = await client.lease(scope="metrics")
        _, exports = await client.lease(
            scope="data-export",
            client_id=account.client_id,
            client_secret=account.client_secret,
            project_id=42,
        )
        answers = await asyncio.gather(
            client.get(f"{endpoint}/v1/segments", metrics),
            client.get(f"{endpoint}/v1/exports", exports),
            client.get(f"{endpoint}/v1/goals", metrics),
        )

    assert sorted(status for status, _ in answers) == [200, 200, 429]
    refusal = next(content for status, content in answers if status == 429)
    assert refusal == {
        "success": False,
        "errorMessage": "Too much concurrent calls",
        "errorCode": "CONCURRENT_API_CALL",
    }
    assert client.sandbox.counters.peak_concurrency == {42: 2}
    assert client.sandbox.counters.concurrency_refusals == 1


async def test_the_limit_is_each_projects_own() -> None:
    async with running(max_concurrency=1, latency_s=0.02) as client:
        other = Client(client.sandbox, client.session, "demo-us")
        leases = [await client.lease(), await other.lease()]
        answers = await asyncio.gather(
            *(client.get(f"{base}/v1/segments", fields) for base, fields in leases)
        )
    assert [status for status, _ in answers] == [200, 200]


async def test_a_slot_is_taken_until_the_whole_body_is_sent() -> None:
    async with running(max_concurrency=1) as client:
        endpoint, fields = await client.lease()
        async with client.session.get(
            f"{endpoint}/v1/x-sandbox/bytes?size=50000000", headers=fields
        ) as answer:
            await answer.content.readexactly(10)
            assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 429
            await answer.read()
        assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 200


async def test_a_slot_is_free_again_when_the_caller_has_left() -> None:
    async with running(max_concurrency=1) as client:
        endpoint, fields = await client.lease()
        leaving = asyncio.create_task(client.get(f"{endpoint}/v1/x-sandbox/slow?seconds=60", fields))
        async with asyncio.timeout(WAIT_S):
            while not client.sandbox.counters.peak_concurrency:
                await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        async with asyncio.timeout(WAIT_S):
            while (await client.get(f"{endpoint}/v1/segments", fields))[0] == 429:
                await asyncio.sleep(0.01)
        assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 200


async def test_latency_is_added_to_api_answers_and_not_to_tokens() -> None:
    async with running(latency_s=0.25) as client:
        endpoint, fields = await client.lease()
        quickest_s = 1e9
        for _ in range(20):  # a busy machine may hold some of them up
            started = time.perf_counter()
            await client.lease()
            quickest_s = min(quickest_s, time.perf_counter() - started)
        assert quickest_s < 0.2
        started = time.perf_counter()
        await client.get(f"{endpoint}/v1/segments", fields)
        assert time.perf_counter() - started > 0.24


async def test_the_asked_for_share_of_api_requests_is_503_and_the_same_for_the_same_seed() -> None:
    async def statuses(seed: int) -> list[int]:
        async with running(failure_rate=0.5, seed=seed) as client:
            endpoint, fields = await client.lease()
            return [(await client.get(f"{endpoint}/v1/goals", fields))[0] for _ in range(40)]

    first = await statuses(7)
    assert set(first) == {200, 503}
    assert 8 < first.count(503) < 32
    assert await statuses(7) == first
    assert await statuses(8) != first


async def test_resets_come_before_the_answer_and_within_its_body() -> None:
    async with running(reset_rate=1.0) as client:
        endpoint, fields = await client.lease()
        seen = set()
        for _ in range(20):
            for path in ("/v1/segments", "/v1/x-sandbox/bytes?size=9000000"):
                try:
                    async with client.session.get(endpoint + path, headers=fields) as answer:
                        with pytest.raises(aiohttp.ClientError):
                            await answer.read()
                        seen.add(f"within {path}")
                except aiohttp.ClientError:
                    seen.add(f"before {path}")
        assert client.sandbox.counters.api_requests >= 40
    assert len(seen) == 4


async def test_hosts_speak_https_under_the_public_name_if_given_a_context() -> None:
    authority = trustme.CA()
    serving, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(serving)
    authority.configure_trust(trusting)
    async with (
        Sandbox(SandboxOptions(ssl_context=serving, public_host="localhost")) as sandbox,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session,
    ):
        client = Client(sandbox, session)
        assert sandbox.auth_url.startswith("https://localhost:")
        endpoint, fields = await client.lease()
        assert endpoint.startswith("https://localhost:")
        assert (await client.get(f"{endpoint}/v1/segments", fields))[0] == 200


async def test_the_other_hosts_take_the_ports_after_the_given_one_or_any_if_taken() -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", port + 1)))
        async with running(port=port) as client:
            urls = [client.sandbox.auth_url, *client.sandbox.endpoints.values(), client.sandbox.storage_url]
            ports = [urlsplit(url).port for url in urls]
            assert ports[0] == port
            assert ports[1] != port + 1
            assert len(set(ports)) == 6


async def test_a_taken_port_is_an_os_error_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sandbox = Sandbox(SandboxOptions(port=taken.getsockname()[1]))
        with pytest.raises(OSError, match=r"address already in use|10048"):
            await sandbox.__aenter__()


async def test_closing_is_quick_even_with_requests_in_flight() -> None:
    async with aiohttp.ClientSession() as session:
        async with Sandbox() as sandbox:
            client = Client(sandbox, session)
            endpoint, fields = await client.lease()
            waiting = asyncio.create_task(client.get(f"{endpoint}/v1/x-sandbox/slow?seconds=60", fields))
            async with asyncio.timeout(WAIT_S):
                while sandbox.counters.peak_concurrency != {42: 1}:
                    await asyncio.sleep(0.01)
            started = time.perf_counter()
        assert time.perf_counter() - started < 10  # of the 60 that the request would take
        with pytest.raises(aiohttp.ClientError):
            await waiting


async def test_a_bug_in_a_handler_is_a_plain_500_without_a_traceback(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("an inner detail")

    monkeypatch.setattr("proxy.sandbox.catalog.success", broken)
    endpoint, fields = await client.lease()
    async with client.session.get(f"{endpoint}/v1/segments", headers=fields) as answer:
        assert answer.status == 500
        assert "inner detail" not in await answer.text()
    assert [record.message for record in caplog.records] == ["sandbox_request_failed"]


async def exchange(url: str, *parts: bytes) -> list[bytes]:
    """Sends each part when the head of the answer to the one before has come; returns all heads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    answers = []
    for part in parts:
        writer.write(part)
        answers.append(await reader.readuntil(b"\r\n\r\n"))
    writer.close()
    await writer.wait_closed()
    return answers


async def test_a_body_is_asked_for_only_from_a_caller_that_is_let_in(client: Client) -> None:
    endpoint, fields = await client.lease()
    head = (
        b"POST /v1/x-sandbox/echo-digest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: 3\r\nExpect: 100-continue\r\n"
    )
    token = f"Authorization: {fields['Authorization']}\r\n\r\n".encode()

    first, second = await exchange(endpoint, head + token, b"abc")
    (refusal,) = await exchange(endpoint, head + b"\r\n")

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert refusal.startswith(b"HTTP/1.1 401 ")


async def test_a_caller_of_http_1_0_gets_a_body_that_ends_with_the_connection(client: Client) -> None:
    endpoint, fields = await client.lease()
    token = f"Authorization: {fields['Authorization']}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(endpoint).port)
    writer.write(b"GET /v1/x-sandbox/bytes?size=500&chunked=1 HTTP/1.0\r\n" + token)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert b"chunked" not in head
    assert hashlib.sha256(body).hexdigest() == bytes_sha256(500)


# The test aids


@pytest.mark.parametrize("chunked", [0, 1])
async def test_bytes_are_always_the_same_ones(client: Client, chunked: int) -> None:
    endpoint, fields = await client.lease()
    url = f"{endpoint}/v1/x-sandbox/bytes?size=3000001&chunked={chunked}"
    async with client.session.get(url, headers=fields) as answer:
        assert (answer.content_length is None) == bool(chunked)
        assert ("Transfer-Encoding" in answer.headers) == bool(chunked)
        body = await answer.read()
    assert len(body) == 3_000_001
    assert body[1_000_000] == 1_000_000 % 251
    assert hashlib.sha256(body).hexdigest() == bytes_sha256(3_000_001)


async def test_bytes_need_a_size_and_head_tells_it_without_a_body(client: Client) -> None:
    endpoint, fields = await client.lease()
    assert (await client.get(f"{endpoint}/v1/x-sandbox/bytes?size=many", fields))[0] == 400
    async with client.session.head(f"{endpoint}/v1/x-sandbox/bytes?size=77", headers=fields) as answer:
        assert answer.content_length == 77
        assert await answer.read() == b""


async def test_echo_digest_reads_a_body_of_any_length_and_coding_as_it_is(client: Client) -> None:
    endpoint, fields = await client.lease()
    body = random.Random(1).randbytes(5_000_000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 70_000):
            yield body[start : start + 70_000]

    url = f"{endpoint}/v1/x-sandbox/echo-digest"
    async with client.session.post(url, data=pieces(), headers=fields) as answer:
        assert await answer.json() == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    packed = gzip.compress(b"plain")
    coded = fields | {"Content-Encoding": "gzip"}
    async with client.session.post(url, data=packed, headers=coded) as answer:
        assert (await answer.json())["bytes"] == len(packed)


async def test_truncated_sends_what_was_asked_for_and_closes(client: Client) -> None:
    endpoint, fields = await client.lease()
    async with client.session.get(
        f"{endpoint}/v1/x-sandbox/truncated?size=900000&sent=400000", headers=fields
    ) as answer:
        assert answer.content_length == 900_000
        await answer.content.readexactly(400_000)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()


async def test_the_aids_need_a_token(client: Client) -> None:
    assert (await client.get(f"{client.sandbox.endpoints['eu']}/v1/x-sandbox/bytes?size=1"))[0] == 401
