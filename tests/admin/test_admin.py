"""Everything below ``/-/``, over raw sockets."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import socket
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from support.harness import (
    WAIT_S,
    Gateway,
    Message,
    RawServer,
    TokenServer,
    Upstream,
    free_port,
    gateway,
    read_message,
    settings_for,
    until,
)

from proxy.admin.admin import MOST_REASONS
from proxy.app.app import App
from proxy.tokens import LeaseKeeper

SECRET = "canary-secret-5f1c"
PROJECTS = {
    "shop": {"client_id": "id-1", "client_secret": SECRET, "apis": ["metrics", "surveys"], "project_id": 42},
    "ro": {"client_id": "canary-id-77", "client_secret": SECRET, "apis": [], "read_only": True},
}
PAGES = [b"/-/healthy", b"/-/ready", b"/-/status", b"/-/metrics", b"/-/requests", b"/-/"]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaseKeeper._hurry, "__kwdefaults__", {"gap_s": 0.01})


def said(answer: Message) -> Any:
    """The JSON that an answer holds."""
    assert answer.values(b"content-type") == [b"application/json"]
    return json.loads(answer.body)


async def test_healthy_says_that_the_process_lives_whatever_the_tokens_do() -> None:
    async with gateway(token=TokenServer(status=503)) as proxy:
        answer = await proxy.call(b"GET /-/healthy")
        assert (answer.status, answer.body) == (200, b"alive\n")
        assert (await proxy.call(b"GET /-/ready")).status == 503


async def test_ready_once_every_wanted_token_is_here() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        answer = await proxy.call(b"GET /-/ready")
        assert answer.status == 200
        assert said(answer) == {"ready": True, "stopping": False, "waiting_for": []}


async def test_not_ready_names_each_missing_token_with_its_reason() -> None:
    async with gateway(token=TokenServer(status=403), projects=PROJECTS) as proxy:
        answer = await proxy.call(b"GET /-/ready")
        assert answer.status == 503
        waiting = said(answer)["waiting_for"]
        assert [reason.partition(":")[0] for reason in waiting] == ["shop/metrics", "shop/surveys"]
        assert all("answered 403" in reason for reason in waiting)


async def test_not_ready_names_few_tokens_and_the_failed_ones_first() -> None:
    async def refuses_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if json.loads((await read_message(reader)).body)["client_id"] == "wrong":
            writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
        else:
            await reader.read()  # until the proxy leaves

    names = [*(f"late-{number}" for number in range(MOST_REASONS)), "wrong"]
    one = {"client_secret": SECRET, "apis": ["metrics"]}
    projects = {name: {**one, "client_id": name} for name in reversed(names)}
    async with RawServer(refuses_one) as token, RawServer(Upstream()) as upstream:
        app = App(settings_for(token.url, upstream.url, projects=projects))
        async with app.started():
            proxy = Gateway(app, TokenServer(), upstream)
            await until(lambda: any("403" in line for one in app.projects() for line in one.missing()))
            answer = await proxy.call(b"GET /-/ready")
            assert answer.status == 503
            told = said(answer)
            assert "answered 403" in told["waiting_for"][0]
            assert len(told["waiting_for"]) == MOST_REASONS
            assert told["more"] == 2  # the project shop is late, too
            await proxy.aclose()


async def test_not_ready_while_the_wanted_apis_are_not_known() -> None:
    projects = {"shop": {"client_id": "id-1", "client_secret": SECRET, "apis": None}}
    async with gateway(token=TokenServer(status=503), projects=projects) as proxy:
        answer = await proxy.call(b"GET /-/ready")
        assert answer.status == 503
        [reason] = said(answer)["waiting_for"]
        assert reason.startswith("shop: the token endpoint ")


async def test_saturation_does_not_make_it_unready() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        started.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with gateway(script, contentsquare={"max_concurrency": 1}) as proxy:
        calls = [asyncio.create_task(proxy.call(b"GET /v1/x")) for _ in range(2)]
        await started.wait()
        async with asyncio.timeout(WAIT_S):
            while (status := said(await proxy.call(b"GET /-/status")))["projects"]["shop"]["slots"][
                "waiting"
            ] == 0:
                await asyncio.sleep(0.005)
        assert status["projects"]["shop"]["slots"] == {"in_use": 1, "waiting": 1, "limit": 1, "allowance": 1}
        assert (await proxy.call(b"GET /-/ready")).status == 200
        go_on.set()
        assert [answer.status for answer in await asyncio.gather(*calls)] == [204, 204]


async def test_while_stopping_it_is_alive_and_not_ready() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        started.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with gateway(script) as proxy:
        # Pipelined behind a request in flight, because a draining proxy accepts no new connection.
        reader, writer = await proxy.connect()
        ask = [proxy.request(b"GET " + page) for page in (b"/v1/x", b"/-/healthy", b"/-/ready", b"/v1/x")]
        writer.write(b"".join(ask))
        await started.wait()
        draining = asyncio.create_task(proxy.app.drain(asyncio.Event()))
        await asyncio.sleep(0.01)
        go_on.set()
        first = await read_message(reader)
        rest = b"" if first.values(b"connection") == [b"close"] else await reader.read()
        assert first.status == 204
        if rest:
            assert b"alive" in rest
            assert b'"stopping": true' in rest
            assert b"PROXY_STOPPING" in rest
        await asyncio.wait_for(draining, WAIT_S)


async def test_status_names_the_computer_and_the_public_url() -> None:
    server = {"public_url": "http://localhost:9"}
    accounts = {"acme": {"client_id": "id-2", "client_secret": "canary-2"}}
    async with gateway(
        projects={**PROJECTS, "own": {**PROJECTS["shop"], "port": free_port()}},
        server=server,
        accounts=accounts,
    ) as proxy:
        status = said(await proxy.call(b"GET /-/status"))
        assert status["host"] == socket.gethostname()
        assert status["public_url"] == "http://localhost:9"
        assert status["accounts"] == {"acme": "http://localhost:9/acme"}
        for name, project in status["projects"].items():
            assert project["url"] == f"http://localhost:9/{name}"


async def test_status_shows_each_project_and_api() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        await proxy.call(b"GET /shop/v1/segments")
        await proxy.call(b"GET /shop/v1/unknown")
        status = said(await proxy.call(b"GET /-/status?x=y"))
        assert set(status) >= {
            "version",
            "host",
            "uptime_s",
            "started_at",
            "health",
            "stopping",
            "reload",
            "projects",
        }
        shop = status["projects"]["shop"]
        assert shop["url"] == f"http://127.0.0.1:{proxy.port}/shop"
        assert (shop["ready"], shop["read_only"]) == (True, False)
        assert shop["slots"] == {"in_use": 0, "waiting": 0, "limit": 10, "allowance": 10}
        metrics = shop["apis"]["metrics"]
        assert metrics["endpoint"] == proxy.upstream.url
        assert 3500 < metrics["seconds_left"] <= 3600
        assert (metrics["state"], metrics["last_error"], metrics["requests"]) == ("fresh", None, 2)
        assert shop["apis"]["surveys"]["requests"] == 0
        usage = status["projects"]["ro"].pop("usage")
        assert (usage["calls"], usage["quota"], usage["callers"]) == (0, None, {})
        assert status["projects"]["ro"] == {
            "url": f"http://127.0.0.1:{proxy.port}/ro",
            "health": {
                "state": "working",
                "summary": "working",
                "side": None,
                "reason": None,
                "next_step": None,
            },
            "requests_refused": 0,
            "responses": {
                "contentsquare": {"2xx": 0, "3xx": 0, "4xx": 0, "5xx": 0},
                "proxy": {"4xx": 0, "5xx": 0},
            },
            "ready": True,
            "read_only": True,
            "credentials": {"in_use": "first", "expires": None, "days_left": None},
            "slots": {"in_use": 0, "waiting": 0, "limit": 10, "allowance": 10},
            "apis": {},
            "sharing": None,
            "missing": [],
            "last_errors": [],
        }


async def test_status_tells_what_went_wrong_and_when_the_next_try_is() -> None:
    async with gateway(token=TokenServer(status=403)) as proxy:
        metrics = said(await proxy.call(b"GET /-/status"))["projects"]["shop"]["apis"]["metrics"]
        assert (metrics["state"], metrics["permanent"], metrics["failures_in_a_row"]) == ("refused", True, 1)
        assert "answered 403" in metrics["last_error"]
        assert metrics["last_error_at"].endswith("+00:00")
        assert 50 < metrics["next_try_in_s"] <= 60
        assert metrics["endpoint"] is metrics["seconds_left"] is metrics["expires_at"] is None


@pytest.mark.usefixtures("_impatient")
async def test_refresh_fetches_new_tokens_now() -> None:
    upstream = Upstream()
    async with gateway(upstream, projects=PROJECTS) as proxy:
        answer = await proxy.call(b"POST /-/refresh/shop", b"Content-Length: 2", body=b"{}")
        assert answer.status == 202
        assert said(answer) == {"project": "shop", "refreshing": ["metrics", "surveys"]}
        async with asyncio.timeout(WAIT_S):
            while len(proxy.token.requests) < 4:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(WAIT_S):
            while True:
                await proxy.call(b"GET /shop/v1/segments")
                if upstream.requests[-1].values(b"authorization")[0] in (
                    b"Bearer token-3",
                    b"Bearer token-4",
                ):
                    break
                await asyncio.sleep(0.01)


async def test_refresh_of_an_unknown_project_is_a_404() -> None:
    async with gateway() as proxy:
        for name in (b"", b"nobody", b"shop/", b"%73hop", b"SHOP", b"\xff", b"../shop"):
            answer = await proxy.call(b"POST /-/refresh/" + name)
            assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert len(proxy.token.requests) == 1


async def test_a_404_of_refresh_names_the_nearest() -> None:
    account: dict[str, object] = {"client_id": "id-2", "client_secret": SECRET}
    projects = {name: {**account, "apis": []} for name in ("shop-fr", "shop-de", "blog")}
    async with gateway(projects=projects, accounts={"acme": account}) as proxy:
        for name, nearest in (
            (b"shop-rf", "/-/refresh/shop-fr, /-/refresh/shop, /-/refresh/shop-de"),
            (b"acme", "/-/refresh/acme/42"),
            (b"acme/7", "/-/refresh/acme/42"),
            (
                b"zz",
                ", ".join(f"/-/refresh/{one}" for one in ("acme/42", "blog", "shop", "shop-de", "shop-fr")),
            ),
        ):
            answer = await proxy.call(b"POST /-/refresh/" + name)
            assert said(answer)["errorMessage"] == f"There is no project {name.decode()!r}. Try {nearest}"


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_404_names_quit_only_where_it_is_allowed(*, allowed: bool) -> None:
    nowhere = "http://127.0.0.1:1"
    app = App(settings_for(nowhere, nowhere, server={"allow_quit": allowed}), quit_=lambda: None)
    async with app.started():
        answer = await Gateway(app, TokenServer(), RawServer(Upstream())).call(b"GET /-/nothing")
        assert (b"/-/quit" in answer.content) is allowed
        assert b"/-/refresh/PROJECT" in answer.content


async def test_an_accounts_project_is_refreshed_by_its_name() -> None:
    accounts = {"acme": {"client_id": "id-2", "client_secret": SECRET}}
    async with gateway(accounts=accounts) as proxy:
        assert (await proxy.call(b"POST /-/refresh/acme/42")).status == 404
        await proxy.call(b"GET /acme/42/v1/segments")
        assert said(await proxy.call(b"POST /-/refresh/acme/42"))["refreshing"] == ["metrics"]


async def test_another_method_is_a_405_that_names_the_right_ones() -> None:
    async with gateway() as proxy:
        for target in (*PAGES, b"/-/refresh/shop"):
            right = [b"POST"] if b"refresh" in target else [b"GET", b"HEAD"]
            for method in {b"DELETE", b"PUT", b"OPTIONS", b"BREW", b"GET", b"POST"} - {*right}:
                answer = await proxy.call(method + b" " + target)
                assert (answer.status, answer.error_code) == (405, "PROXY_METHOD_REFUSED")
                assert answer.values(b"allow") == [b", ".join(right)]


async def test_anything_else_below_it_is_a_404_and_never_contentsquares() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        for target in (b"/-", b"/-/nothing", b"/-/status/", b"/-/Status", b"/-//status", b"/-/../v1/x"):
            answer = await proxy.call(b"GET " + target)
            assert (answer.status, answer.error_code) == (404, "PROXY_NOT_FOUND")
        assert not upstream.requests


async def test_head_is_get_without_the_content() -> None:
    async with gateway() as proxy:
        for page in PAGES[:2]:
            answer = await proxy.call(b"HEAD " + page)
            assert (answer.status, answer.body) == (200, b"")
            got = await proxy.call(b"GET " + page)
            assert answer.values(b"content-length") == [b"%d" % len(got.body)]


async def test_answers_keep_the_connection_and_are_not_cached_or_sniffed() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        for page in PAGES * 2:
            writer.write(proxy.request(b"GET " + page))
            answer = await read_message(reader)
            assert answer.values(b"cache-control") == [b"no-store"]
            assert answer.values(b"x-content-type-options") == [b"nosniff"]
            assert answer.values(b"connection") == []


@pytest.mark.parametrize("start", [b"GET /-/healthy", b"GET /-/nothing", b"OPTIONS *", b"TRACE /v1/x"])
async def test_answers_of_our_own_say_when_they_were_made(start: bytes) -> None:
    async with gateway() as proxy:
        [date] = (await proxy.call(start)).values(b"date")
    made = parsedate_to_datetime(date.decode())
    assert date.endswith(b" GMT")
    assert abs(dt.datetime.now(dt.UTC) - made) < dt.timedelta(minutes=1)


async def test_web_pages_of_other_sites_see_and_do_nothing() -> None:
    async with gateway() as proxy:
        for start in (*(b"GET " + page for page in PAGES), b"POST /-/refresh/shop"):
            for line in (b"Origin: http://evil.example", b"Sec-Fetch-Site: cross-site"):
                assert (await proxy.call(start, line)).error_code == "PROXY_ORIGIN_REFUSED"
        raw = b"GET /-/status HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        assert (await proxy.send(raw)).error_code == "PROXY_HOST_REFUSED"
        assert len(proxy.token.requests) == 1


async def every_answer(proxy: Gateway) -> bytes:
    """All answers of the pages, joined."""
    starts = [
        *(b"GET " + page for page in PAGES),
        b"GET /-/nothing",
        b"POST /-/refresh/shop",
        b"DELETE /-/status",
    ]
    starts += [b"POST /-/refresh/nobody", b"GET /v1/segments"]
    answers = [await proxy.call(start) for start in starts]
    return b"".join(answer.head + answer.body for answer in answers)


async def test_no_answer_holds_a_token_a_secret_or_a_client_id() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        text = await every_answer(proxy)
    for canary in (b"canary", SECRET.encode(), b"token-1", b"token-2", b"token-3", b"id-1"):
        assert canary not in text


async def test_no_error_of_the_token_endpoint_brings_a_secret_into_an_answer() -> None:
    async def parrot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        content = json.dumps({"error": "bad", "error_description": request.body.decode()}).encode()
        head = b"HTTP/1.1 400 X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(content)
        writer.write(head + content)
        await writer.drain()

    async with RawServer(parrot) as token_server, RawServer(Upstream()) as upstream:
        app = App(settings_for(token_server.url, upstream.url, projects=PROJECTS))
        async with app.started():
            await app.settled(WAIT_S)
            proxy = Gateway(app, TokenServer(), upstream)
            text = await every_answer(proxy)
            await proxy.aclose()
    assert b"answered 400" in text
    assert b"canary" not in text
