"""The line of a request: its keys, what never gets into it, and which request is which."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.harness import OK, WAIT_S, Gateway, Message, Upstream, close, gateway, read_message

from proxy.gateway.request_log import LONGEST_ROUTE, route_of
from proxy.http1 import RequestHead, parse_request_head
from proxy.logs.setup import configure
from proxy.server.request_id import trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()


class Logged:
    """The lines of requests."""

    def configure(self, level: str) -> None:
        self._stream = io.StringIO()
        configure(level, "json", self._stream)

    def __call__(self) -> list[dict[str, Any]]:
        """Those since `configure`."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["event"].startswith("request_")]


@pytest.fixture
def logged() -> Logged:
    found = Logged()
    found.configure("info")
    return found


# ---- routes


@pytest.mark.parametrize(
    ("target", "route"),
    [
        ("/v1/exports?state=active", "/v1/exports"),
        ("/v1/exports/1002/runs/101002", "/v1/exports/{id}/runs/{id}"),
        ("/v1/public/projects/42/surveys/7/responses?c=d", "/v1/public/projects/{id}/surveys/{id}/responses"),
        ("/v1/metrics/page-group/12345/bounce-rate", "/v1/metrics/page-group/{id}/bounce-rate"),
        ("/v1/exports/successful-runs", "/v1/exports/successful-runs"),
        ("/v1/exports/6f1c9d3e-6f0c-4bb5-9d5e-0f6f2d1c8b3a/runs/", "/v1/exports/{id}/runs/"),
        ("/v1/users/jane.doe@example.com", "/v1/users/{id}"),
        ("/v1/users/Jane", "/v1/users/{id}"),
        ("/v1/a%2Fb/%6A", "/v1/{id}/{id}"),
        ("/v1/deadbeef/feed", "/v1/{id}/feed"),
        ("/v1/x;jsessionid=1/a..b/../.", "/v1/{id}/{id}/{id}/{id}"),
        ("/v1/" + "a" * 21, "/v1/{id}"),
        ("/v1/one-two-three-four-five", "/v1/{id}"),
        ("/v100/v10", "/{id}/v10"),
        ("//v1//exports", "//v1//exports"),
        ("/v1/caf\xe9", "/v1/{id}"),
        ("/", "/"),
        ("*", "*"),
        ("http://user:word@host/v1/exports", "{other}"),
        ("/-/healthy", "/-/healthy"),
        ("/-/page.js", "/-/page.js"),
    ],
)  # fmt: skip
def test_a_route_is_the_path_without_identifiers(target: str, route: str) -> None:
    assert route_of(target.encode("latin-1")) == route


plain = re.compile(r"[a-z]{1,20}(-[a-z]{1,20}){0,3}\Z|v[0-9]{1,2}\Z|page\.(css|js)\Z|\{id\}\Z|-?\Z")
words = st.sampled_from([b"v1", b"exports", b"runs", b"page-group", b"", b"-", b"..", b"...", b"{id}"])


@given(
    st.lists(
        st.one_of(words, st.binary(max_size=12), st.text("abcdef-", max_size=30).map(str.encode)),
        max_size=400,
    )
)
@example([b"exports"] * 400)
@example([b"1234567"] * 400)
@example([b"a" * 40_000])
def test_no_segment_that_is_not_a_plain_word_gets_out_of_a_route(segments: list[bytes]) -> None:
    route = route_of(b"/" + b"/".join(segments))
    assert len(route) <= LONGEST_ROUTE
    first, *rest = route.split("/")
    assert first == ""
    *inner, last = rest
    assert [segment for segment in inner if not plain.match(segment)] == []
    assert plain.match(last) or last == "..."
    assert not [segment for segment in rest if re.fullmatch("[a-f]{8,}", segment) or len(segment) > 40]


@given(st.binary(max_size=60))
def test_whatever_the_target_is_its_route_is_printable_ascii_without_a_query(target: bytes) -> None:
    route = route_of(target)
    assert route.isascii()
    assert route.isprintable() or not route
    assert "?" not in route


# ---- the line


async def test_the_line_of_a_request_holds_what_an_operator_looks_for(logged: Logged) -> None:
    async with gateway() as proxy:
        await proxy.call(
            b"POST /shop/v1/metrics/zone/123?secret=canary",
            b"Content-Length: 3",
            b"X-Request-Id: report-7",
            b"traceparent: " + TRACEPARENT,
            body=b"abc",
        )
    (line,) = logged()
    times = {key: line.pop(key) for key in ("wait_ms", "upstream_ms", "total_ms")}
    assert 0 == times["wait_ms"] <= times["upstream_ms"] <= times["total_ms"] < WAIT_S * 1000
    assert line.pop("timestamp")
    assert line == {
        "level": "info",
        "logger": "proxy",
        "event": "request_answered",
        "project": "shop",
        "api": "metrics",
        "method": "POST",
        "route": "/v1/metrics/zone/{id}",
        "status": 200,
        "bytes_in": 3,
        "bytes_out": 2,
        "request_id": "report-7",
        "trace_id": TRACE,
    }


async def test_what_we_do_after_the_answer_is_in_no_time(logged: Logged) -> None:
    class Slow(Counter[str]):
        def __setitem__(self, key: str, value: int) -> None:
            if not value:  # the request is over
                time.sleep(0.03)
            super().__setitem__(key, value)

    async with gateway(callers={"tool": {"key": "canary-key"}}) as proxy:
        proxy.app._gateway._in_flight = Slow()
        await proxy.call(b"GET /v1/x", b"X-API-Key: canary-key")
    (line,) = logged()
    assert line["upstream_ms"] <= line["total_ms"]


async def test_the_keys_come_in_their_order(logged: Logged) -> None:
    async with gateway(callers={"tool": {"key": "canary-key"}}) as proxy:
        await proxy.call(b"GET /v1/x?csq_key=canary-key", b"traceparent: " + TRACEPARENT)
    (line,) = logged()
    assert " ".join(line) == (
        "timestamp level logger event project api caller method route status bytes_in bytes_out wait_ms"
        " upstream_ms total_ms request_id trace_id"
    )
    assert line["caller"] == "tool"
    assert "canary" not in json.dumps(line)


async def test_a_request_that_was_sent_again_says_why(logged: Logged) -> None:
    answers = iter((b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n", OK))
    async with gateway(Upstream(lambda _: next(answers))) as proxy:
        await proxy.call(b"GET /v1/x")
    (line,) = logged()
    assert (line["status"], line["replayed"]) == (200, ["token"])


async def test_an_error_of_ours_is_in_the_line_and_what_reached_no_project_has_none(logged: Logged) -> None:
    async with gateway() as proxy:
        await proxy.call(b"GET /v1/x", b"X-CSQ-Project: nobody-17")
        await proxy.send(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    unknown, malformed = logged()
    assert (unknown["error"], unknown["status"], unknown["route"]) == ("PROXY_UNKNOWN_PROJECT", 404, "/v1/x")
    assert not {"project", "api", "wait_ms", "upstream_ms"} & {*unknown}
    assert (malformed["error"], malformed["status"]) == ("PROXY_BAD_REQUEST", 400)
    assert not {"method", "route"} & {*malformed}


async def test_an_error_of_ours_to_a_head_request_counts_no_content(logged: Logged) -> None:
    async with gateway() as proxy:
        answer = await proxy.call(b"HEAD /v1/x", b"X-CSQ-Project: nobody-17")
    (line,) = logged()
    assert answer.values(b"content-length") != [b"0"]
    assert (line["status"], line["bytes_out"]) == (404, 0)


async def test_a_caller_that_leaves_before_an_answer_abandoned_its_request(logged: Logged) -> None:
    came = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await read_message(reader)
        came.set()
        await reader.read()

    async with gateway(script) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        await asyncio.wait_for(came.wait(), WAIT_S)
        await close(writer)
    (line,) = logged()
    assert line["event"] == "request_abandoned"
    assert "status" not in line
    assert line["upstream_ms"] > 0


async def test_unknown_methods_are_not_quoted(logged: Logged) -> None:
    async with gateway() as proxy:
        await proxy.call(b"CANARY /v1/x")
    assert logged()[0]["method"] == "{other}"


async def test_probes_that_are_answered_as_designed_are_quiet(logged: Logged) -> None:
    async def probe(proxy: Gateway) -> None:
        for path in (b"healthy", b"ready", b"metrics", b"status?hour=1"):
            await proxy.call(b"GET /-/" + path)
        await proxy.call(b"POST /-/healthy")
        await proxy.call(b"GET /-/nothing")

    async with gateway() as proxy:
        await probe(proxy)
        assert [(line["status"], line["route"]) for line in logged()] == [
            (405, "/-/healthy"),
            (404, "/-/nothing"),
        ]
        logged.configure("debug")
        await probe(proxy)
        levels = {(line["route"], line["status"]): line["level"] for line in logged()}
        assert levels == {
            **{(f"/-/{name}", 200): "debug" for name in ("healthy", "ready", "metrics", "status")},
            ("/-/healthy", 405): "info",
            ("/-/nothing", 404): "info",
        }


async def test_a_proxy_that_is_not_ready_says_so_quietly(logged: Logged) -> None:
    async with gateway() as proxy:
        proxy.app.overview.is_stopping = True
        assert (await proxy.call(b"GET /-/ready")).status == 503
        assert logged() == []


async def test_a_probe_without_a_key_is_quiet(logged: Logged) -> None:
    async with gateway(callers={"one": {"key": "key-of-one-0123456789abcdef012345"}}) as proxy:
        assert (await proxy.call(b"GET /-/healthy")).status == 401  # alive, by csq-proxy health
        assert logged() == []
        assert (await proxy.call(b"GET /-/status")).status == 401
        assert [line["route"] for line in logged()] == ["/-/status"]


# ---- which request is which


async def test_ids_of_the_caller_go_upstream_unchanged_and_no_answer_gets_one() -> None:
    fields = (b'X-Request-Id: "odd" one', b"TraceParent: not one", b"tracestate: a=b,c=d", b"x-request-id: 2")
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"GET /v1/x", *fields)
    lines = upstream.requests[0].lines
    assert [line for line in lines if line in fields] == [*fields]
    names = [line.partition(b":")[0] for line in answer.lines]
    assert names == [b"Content-Length", b"Date"]


def with_ids(*lines: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((b"GET / HTTP/1.1", b"Host: a", *lines)))


@pytest.mark.parametrize(
    ("given_ids", "kept"),
    [
        ([b"7f3c2a90-5b1e-4a47-9d5e-0f6f2d1c8b3a"], True),
        ([b"!" * 128], True),
        ([b"x" * 129], False),
        ([b""], False),
        ([b"a b"], False),
        ([b'a"b'], False),
        ([b"a'b"], False),
        ([b"a\\b"], False),
        ([b"caf\xe9"], False),
        ([b"one", b"two"], False),
        ([], False),
    ],
)
async def test_an_error_of_ours_carries_the_request_s_id_and_so_does_its_line(
    given_ids: list[bytes], kept: bool, logged: Logged
) -> None:
    async with gateway() as proxy:
        answer = await proxy.call(
            b"GET /v1/x", b"X-CSQ-Api: none", *(b"X-Request-Id: " + one for one in given_ids)
        )
    (value,) = answer.values(b"x-request-id")
    assert logged()[0]["request_id"] == value.decode()
    assert ([value] == given_ids) is kept
    if not kept:
        assert re.fullmatch(rb"[0-9a-f]{8}-[0-9]+", value)


async def test_no_two_requests_get_the_same_id_of_ours() -> None:
    async with gateway() as proxy:
        reader, writer = await proxy.connect()
        answers: list[Message] = []
        for _ in range(3):
            writer.write(proxy.request(b"GET /v1/x", b"X-CSQ-Api: none"))
            answers.append(await read_message(reader))
    assert len({answer.values(b"x-request-id")[0] for answer in answers}) == 3


@pytest.mark.parametrize(
    ("value", "trace"),
    [
        (TRACEPARENT, TRACE),
        (TRACEPARENT + b"-more", None),
        (b"01" + TRACEPARENT[2:] + b"-more", TRACE),
        (b"01" + TRACEPARENT[2:] + b"more", None),
        (b"ff" + TRACEPARENT[2:], None),
        (b"0" + TRACEPARENT, None),
        (TRACEPARENT.upper(), None),
        (b"00-" + b"0" * 32 + TRACEPARENT[35:], None),
        (TRACEPARENT[:36] + b"0" * 16 + b"-01", None),
        (TRACEPARENT[:-1], None),
        (b"", None),
    ],
)
def test_a_trace_is_that_of_a_valid_traceparent(value: bytes, trace: str | None) -> None:
    assert trace_id(with_ids(b"traceparent: " + value)) == trace


def test_two_traceparents_are_none() -> None:
    assert trace_id(with_ids(*[b"traceparent: " + TRACEPARENT] * 2)) is None
