"""The facts that are kept of a request, for each kind of end, and those that never are."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

from support.cuts import reset
from support.harness import OK, Gateway, Message, TokenServer, Upstream, gateway, read_message, until
from support.storage import exporting

from proxy.logs import configure
from proxy.projects.health import MISTAKES
from proxy.projects.recent import MOST_OF_ONE

SECRET, KEY = "canary-secret-5f1c", "canary-key-of-the-analyst"
PROJECTS = {
    "shop": {"client_id": "id-1", "client_secret": SECRET, "apis": ["metrics"], "cache": "1m"},
    "ro": {"client_id": "id-2", "client_secret": SECRET, "apis": ["metrics"], "read_only": True},
}
CALLERS = {"analyst": {"key": KEY}}
WITH_KEY = b"X-API-Key: " + KEY.encode()


async def listed(proxy: Gateway, query: bytes = b"", *lines: bytes) -> list[dict[str, Any]]:
    """The requests that ``/-/requests`` shows."""
    answer = await proxy.call(b"GET /-/requests" + query, *lines)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = json.loads(answer.body)["requests"]
    return found


def error_answer(status: int, code: str, *, length: bool = True) -> bytes:
    content = json.dumps({"success": False, "errorCode": code, "errorMessage": "no"}).encode()
    framing = b"Content-Length: %d" % len(content) if length else b"Transfer-Encoding: chunked"
    if not length:
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%b\r\n\r\n%b" % (status, framing, content)


async def test_an_answer_of_contentsquares_with_all_that_is_known() -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        await proxy.call(
            b"POST /shop/v1/exports/1002?csq_key=" + KEY.encode() + b"&x=1",
            b"X-Request-Id: mine-1",
            b"Content-Length: 3",
            body=b"abc",
        )
        [one] = await listed(proxy, b"", WITH_KEY)
        assert one.pop("id") > 10**15
        assert one.pop("at").endswith("Z")
        for name in ("wait_ms", "upstream_ms", "total_ms"):
            assert one.pop(name) >= 0
        assert one == {
            "project": "shop",
            "caller": "analyst",
            "api": "data-export",
            "method": "POST",
            "route": "/shop/v1/exports/1002",
            "query": True,
            "status": 200,
            "source": "contentsquare",
            "upstream": proxy.upstream.url.partition("://")[2],
            "bytes_in": 3,
            "bytes_out": 2,
            "request_id": "mine-1",
        }


async def test_the_errors_of_both_sides_and_stored_answers_are_told_apart() -> None:
    def cloud(request: Message) -> bytes:
        if b"/missing" in request.start_line:
            return error_answer(404, "SEGMENT_NOT_FOUND")
        if b"/broken" in request.start_line:
            return error_answer(500, "INTERNAL", length=False)
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"

    async with gateway(Upstream(cloud), projects=PROJECTS) as proxy:
        for path in (b"missing", b"broken", b"segments", b"segments"):
            await proxy.call(b"GET /shop/v1/" + path)
        await proxy.call(b"DELETE /ro/v1/segments/7")
        shown = [(one.get("source"), one["status"], one.get("error")) for one in await listed(proxy)]
        assert shown == [
            ("contentsquare", 404, "SEGMENT_NOT_FOUND"),
            ("contentsquare", 500, "INTERNAL"),
            ("contentsquare", 200, None),
            ("stored", 200, None),
            ("proxy", 403, "PROXY_FORBIDDEN"),
        ]


async def test_a_server_error_is_not_held_back() -> None:
    """Its errorCode is read while it passes: the caller has its first bytes before the cloud sends more."""
    go_on = asyncio.Event()
    answer = error_answer(500, "INTERNAL")

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(answer[:-5])
        await go_on.wait()
        writer.write(answer[-5:])
        await reader.read()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        assert b" 500 " in await reader.readuntil(b"\r\n\r\n")
        go_on.set()
        await reader.readuntil(b"}")
        await until(lambda: proxy.app.overview.recent.after(0))
        assert (await listed(proxy))[0]["error"] == "INTERNAL"


async def test_a_cut_answer_is_an_error_and_an_abandoned_request_has_no_status() -> None:
    came = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        if b"/cut" in request.start_line:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
            return
        came.set()
        await reader.read()

    async with gateway(script) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/cut"))
        await until(lambda: proxy.app.overview.recent.after(0))
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/slow"))
        await came.wait()
        reset(writer)
        await until(lambda: len(proxy.app.overview.recent.after(0)) == 2)
        cut, left = await listed(proxy)
        assert (cut["status"], cut["source"], cut["error"]) == (200, "proxy", "PROXY_ANSWER_CUT")
        assert not {"status", "source", "error"} & set(left)
        assert [one["route"] for one in await listed(proxy, b"?status=errors")] == ["/v1/cut"]


async def test_a_request_that_was_sent_again_says_why() -> None:
    tokens: list[bytes] = []

    def cloud(request: Message) -> bytes:
        tokens.extend(request.values(b"authorization"))
        return OK if len(tokens) > 1 else error_answer(401, "UNAUTHORIZED")

    async with gateway(Upstream(cloud)) as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200
        [one] = await listed(proxy)
        assert one["replayed"] == ["token"]
        assert "error" not in one


async def test_refusals_before_a_project_have_a_list_of_their_own() -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        await proxy.call(b"GET /shop/v1/a", WITH_KEY)
        await proxy.call(b"GET /shop/v1/segments?x=y")
        await proxy.call(b"GET /shop/v1/b", b"X-API-Key: wrong-" + KEY.encode())
        await proxy.call(b"GET /nope/v1/c", WITH_KEY)
        await proxy.call(b"TRACE /shop/v1/d", WITH_KEY)
        await proxy.send(b"GET /v1/e HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        await proxy.send(b"GET /v1/f HTTP/1.1\r\nHost: %b\r\nbad field\r\n\r\n" % proxy.host)
        await proxy.call(b"GET /-/nothing", WITH_KEY)
        await proxy.call(b"GET /-/status", WITH_KEY)
        shown = [
            (one.get("route"), one["status"], one["error"], one.get("caller"))
            for one in await listed(proxy, b"?project=-", WITH_KEY)
        ]
        assert shown == [
            ("/shop/v1/segments", 401, "PROXY_CALLER_UNKNOWN", None),
            ("/shop/v1/b", 401, "PROXY_CALLER_UNKNOWN", None),
            ("/nope/v1/c", 404, "PROXY_UNKNOWN_PROJECT", "analyst"),
            ("/shop/v1/d", 405, "PROXY_METHOD_REFUSED", shown[3][3]),
            ("/v1/e", 421, "PROXY_HOST_REFUSED", None),
            (None, 400, "PROXY_BAD_REQUEST", None),
            ("/-/nothing", 404, "PROXY_NOT_FOUND", "analyst"),
        ]
        everything = await listed(proxy, b"", WITH_KEY)
        assert [one.get("project") for one in everything] == ["shop"] + [None] * 7


async def test_a_flood_without_keys_pushes_out_no_request_of_a_project() -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        await proxy.call(b"GET /shop/v1/mine", WITH_KEY)
        reader, writer = await proxy.connect()
        for _ in range(MOST_OF_ONE + 10):
            writer.write(proxy.request(b"GET /shop/v1/flood"))
            assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}\n")
        assert [one["route"] for one in await listed(proxy, b"?project=shop", WITH_KEY)] == ["/shop/v1/mine"]
        assert len(await listed(proxy, b"?project=-", WITH_KEY)) == MOST_OF_ONE


async def test_oauth_and_its_placeholder_are_kept_without_content() -> None:
    content = json.dumps(
        {"grant_type": "client_credentials", "client_id": "x", "client_secret": KEY, "scope": "metrics"}
    ).encode()
    length = b"Content-Length: %d" % len(content)
    async with gateway(token=TokenServer(), projects=PROJECTS, callers=CALLERS) as proxy:
        answer = await proxy.call(b"POST /shop/v1/oauth/token", length, body=content)
        token = json.loads(answer.body)["access_token"]
        await proxy.call(b"POST /shop/v1/oauth/me", length, body=content)
        await proxy.call(b"POST /shop/v1/oauth/token", b"Content-Length: 0")
        page = await proxy.call(b"GET /-/requests", WITH_KEY)
        shown = [
            (one.get("project"), one.get("caller"), one["route"], one["status"], one["source"])
            for one in json.loads(page.body)["requests"]
        ]
        assert shown == [
            ("shop", "analyst", "/shop/v1/oauth/token", 200, "proxy"),
            ("shop", "analyst", "/shop/v1/oauth/me", 200, "contentsquare"),
            (None, None, "/shop/v1/oauth/token", 401, "proxy"),
        ]
        assert token.encode() not in page.body


async def test_an_export_and_its_calls_are_kept_under_one_id() -> None:
    async with exporting(b"a,b\n1,2\n") as run:
        assert (await run.get()).status == 200
        await run.proxy.call(b"GET /-/exports/shop/7/latest.csv", b"X-Request-Id: mine")
        await run.proxy.call(b"GET /-/exports/nope/7/latest.csv")
        shown = await listed(run.proxy)
        assert {one["source"] for one in shown if one["status"] == 200} == {"contentsquare"}
        assert [one["route"] for one in shown if one["request_id"] == shown[0]["request_id"]][-1].startswith(
            "/-/exports/shop/"
        )
        mine = [(one["route"], one["project"], one["status"]) for one in shown if one["request_id"] == "mine"]
        assert mine == [("/v1/exports/7", "shop", 404), ("/-/exports/shop/7/latest.csv", "shop", 404)]
        assert "project" not in shown[-1]
        assert "X-Amz" not in json.dumps(shown)


async def test_no_secret_is_shown_wherever_a_caller_puts_it() -> None:
    """Also after a reload that takes the secrets out of the configuration."""
    secrets = (SECRET.encode(), KEY.encode())
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        for secret in secrets:
            coded = b"".join(b"%%%02X" % code for code in secret)
            for value in (secret, coded, secret.hex().encode(), secret.upper()):
                for lines in ((WITH_KEY,), ()):
                    for target in (b"/shop/v1/%b/x", b"/%b/v1/x", b"/shop/v1/x?a=%b", b"/shop/v1/x?%b=1"):
                        await proxy.call(b"GET " + target % value, *lines)
            for lines in ((WITH_KEY,), ()):
                await proxy.call(b"GET /shop/v1/x", b"X-Request-Id: " + secret, *lines)
                await proxy.call(secret + b" /shop/v1/x", *lines)
        first = (await proxy.call(b"GET /-/requests", WITH_KEY)).body
        assert len(json.loads(first)["requests"]) == 2 * (4 * 2 * 4 + 2 * 2)
        await proxy.app.overview.recent.redact()
        proxy.app._generation.unredact()
        try:
            second = (await proxy.call(b"GET /-/requests", WITH_KEY)).body
        finally:
            proxy.app._generation.redact()
        for page in (first, second):
            for secret in secrets:
                coded = b"".join(b"%%%02X" % code for code in secret)
                for form in (secret[:9], secret[:9].upper(), secret.hex().encode()[:18], coded[:24]):
                    assert form not in page


async def test_texts_of_callers_and_of_the_cloud_are_cut_and_printable() -> None:
    def cloud(_: Message) -> bytes:
        return error_answer(400, "\x1b[2J\u202e" + "E" * 3000)

    async with gateway(Upstream(cloud), projects=PROJECTS) as proxy:
        await proxy.call(b"GET /shop/v1/" + b"long/" * 1000)
        await proxy.call("GET /shop/v1/\u202e\x9b31m".encode())
        page = await proxy.call(b"GET /-/requests")
        assert len(page.body) < 4000
        shown = json.loads(page.body)["requests"]
        assert len(shown) == 2
        assert shown[0]["route"].endswith("/long/...")
        for one in shown:
            assert all(value.isprintable() for value in one.values() if isinstance(value, str))
            assert len(one["error"]) == 64


async def test_switched_off_nothing_is_kept_and_the_list_says_so() -> None:
    async with gateway(log={"requests": False}) as proxy:
        await proxy.call(b"GET /v1/x")
        page = json.loads((await proxy.call(b"GET /-/requests")).body)
        assert page["requests"] == []
        assert "log.requests is false" in page["off"]


async def test_a_caller_that_leaves_within_an_answer_is_told_from_one_that_took_all() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        if b"/long" in request.start_line:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
            await reader.read()
        writer.write(OK)

    stream = io.StringIO()
    configure("info", "json", stream)
    async with gateway(script) as proxy:
        await proxy.call(b"GET /v1/short", b"Connection: close")
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/long"))
        await reader.readuntil(b"part")
        reset(writer)
        await until(lambda: len(proxy.app.overview.recent.after(0)) == 2)
        whole, left = await listed(proxy)
        assert "reason" not in whole
        assert (left["status"], left["source"]) == (200, "contentsquare")
        assert left["reason"] == "the caller left before the end of the answer"
        assert [*await listed(proxy, b"?status=errors")] == []
        await until(lambda: "request_cut_short" in stream.getvalue())
    lines = [json.loads(line) for line in stream.getvalue().splitlines() if "/v1/" in line]
    assert [line.get("reason") for line in lines] == [None, left["reason"]]


async def test_content_that_is_malformed_while_its_answer_comes_is_told_as_the_callers_trouble() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"ok")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
        await reader.read()

    async with gateway(script) as proxy:
        for count in range(1, 4):
            reader, writer = await proxy.connect()
            writer.write(proxy.request(b"POST /v1/x", b"Transfer-Encoding: chunked", body=b"2\r\nok\r\n"))
            await reader.readuntil(b"part")
            writer.write(b"G\r\n")
            await until(lambda: len(proxy.app.overview.recent.after(0)) == count)  # noqa: B023
            writer.close()
        one = (await listed(proxy))[-1]
        assert (one["error"], one["reason"].partition(":")[0]) == (
            "PROXY_ANSWER_CUT",
            "The request's content can't be read",
        )
        health = json.loads((await proxy.call(b"GET /-/status")).body)["projects"]["shop"]["health"]
        assert (health["state"], health["side"]) == ("degraded", "caller")


async def test_a_probe_without_a_key_is_no_trouble_and_not_kept() -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        for _ in range(MISTAKES + 1):
            assert (await proxy.call(b"GET /-/healthy")).status == 401  # alive, by csq-proxy health
        status = json.loads((await proxy.call(b"GET /-/status", WITH_KEY)).content)
        assert (status["health"]["state"], status["requests_refused"]) == ("working", {})
        assert await listed(proxy, b"", WITH_KEY) == []


async def test_a_refused_request_of_a_project_counts_among_its_requests() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        assert (await proxy.call(b"DELETE /ro/v1/segments/7")).status == 403
        for query in (b"", b"?detail=shop"):
            shown = json.loads((await proxy.call(b"GET /-/status" + query)).content)["projects"]["ro"]
            assert (shown["requests_refused"], shown["responses"]["proxy"]["4xx"]) == (1, 1)
