"""Shared answers, end to end: one call for identical ones, stored answers, and all that is never shared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from support.cuts import reset
from support.harness import (
    WAIT_S,
    Gateway,
    Message,
    TokenServer,
    Upstream,
    close,
    gateway,
    read_message,
    until,
)

from proxy.gateway.sharing.cache_rules import MAX_CONTENT_BYTES
from proxy.projects import Project

SHOP: Mapping[str, object] = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}
GET = b"GET /v1/segments?a=1"
Answering = Callable[[Message, int], bytes]


def json_answer(content: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    head = (b"HTTP/1.1 " + status, b"Content-Type: application/json", *lines)
    return b"\r\n".join((*head, b"Content-Length: %d" % len(content), b"", content))


def numbered(_: Message, number: int) -> bytes:
    return json_answer(b"[%d]" % number)


@dataclass
class Cloud:
    """A cloud that answers each request in its turn by ``answer``, and none before ``opened``."""

    answer: Answering = numbered
    requests: list[Message] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0

    def opened(self) -> Cloud:
        self.gate.set()
        return self

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            self.requests.append(request)
            number = len(self.requests)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                async with asyncio.timeout(WAIT_S):
                    await self.gate.wait()
                    writer.write(self.answer(request, number))
                    await writer.drain()
            finally:
                self.at_once -= 1


@contextlib.asynccontextmanager
async def sharing(
    cloud: Any, *, token: TokenServer | None = None, shop: Mapping[str, object] | None = None, **more: Any
) -> AsyncIterator[Gateway]:
    """A gateway whose project ``shop`` stores answers for a minute, unless ``shop`` says else."""
    mine = {**SHOP, "default": True, **({"cache": "60s"} if shop is None else shop)}
    projects = {"shop": mine, **more.pop("projects", {})}
    async with gateway(cloud, token=token, projects=projects, **more) as proxy:
        yield proxy
        for project in proxy.app.projects():
            assert project.slots.in_use == project.slots.waiting == 0
            assert project.running == 0


def project_of(proxy: Gateway, name: str = "shop") -> Project:
    return next(project for project in proxy.app.projects() if project.name == name)


def status_of(message: Message) -> bytes:
    return b", ".join(message.values(b"cache-status"))


@contextlib.asynccontextmanager
async def together(proxy: Gateway, count: int, start: bytes = GET, *lines: bytes) -> AsyncIterator[Any]:
    """So many identical calls, all of which have reached the project; their answers on leaving."""
    calls = [asyncio.create_task(proxy.call(start, *lines)) for _ in range(count)]
    try:
        await until(lambda: project_of(proxy).running == count)
        yield calls
        await asyncio.wait(calls, timeout=WAIT_S)
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_nothing_is_shared_or_added_where_nobody_asked_for_it() -> None:
    cloud = Cloud()
    async with gateway(cloud) as proxy, together(proxy, 3) as calls:
        await until(lambda: len(cloud.requests) == 3)
        cloud.gate.set()
        answers = [await call for call in calls]
        assert sorted(one.body for one in answers) == [b"[1]", b"[2]", b"[3]"]
        sent = json_answer(b"[1]").split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        assert all([line for line in one.lines if line[:5] != b"Date:"] == sent for one in answers)


async def test_identical_calls_at_once_are_one_call_and_one_slot() -> None:
    cloud = Cloud()
    async with sharing(cloud, shop={"coalesce": True}) as proxy, together(proxy, 25) as calls:
        assert project_of(proxy).slots.in_use == 1
        cloud.gate.set()
        answers = [await call for call in calls]
        assert {one.body for one in answers} == {b"[1]"}
        kinds = Counter(status_of(one) for one in answers)
        assert kinds == {b"csq-proxy; fwd=miss": 1, b"csq-proxy; fwd=miss; collapsed": 24}
        assert not any(one.values(b"age") for one in answers)
        assert len(cloud.requests) == 1
        assert (await proxy.call(GET)).body == b"[2]"  # nothing is stored
        assert project_of(proxy).measures.shared == {"hit": 0, "collapsed": 24}


async def test_a_fresh_answer_is_served_from_memory_and_says_so() -> None:
    answer = json_answer(
        b"[1]", b"X-Two: a", b"X-Two: b", b"ETag: \xe4", b'Cache-Status: "edge"; hit', b"Age: 3"
    )
    async with sharing(Upstream(answer)) as proxy:
        first, second = await proxy.call(GET), await proxy.call(GET)
        assert first.values(b"cache-status") == [b'"edge"; hit', b"csq-proxy; fwd=miss"]
        assert second.values(b"cache-status")[0] == b'"edge"; hit'
        members = second.values(b"cache-status")[1].split(b"; ")
        assert members[:2] == [b"csq-proxy", b"hit"]
        assert 57 - WAIT_S <= int(members[2].removeprefix(b"ttl=")) <= 57
        assert 3 <= int(second.values(b"age")[0]) <= 3 + WAIT_S
        assert (second.start_line, second.body) == (first.start_line, first.body)
        ours = (b"age", b"cache-status")
        kept = [
            [line for line in one.lines if line.split(b":")[0].lower() not in ours] for one in (first, second)
        ]
        assert kept[0] == kept[1]
        assert len(proxy.upstream.errors) == 0


async def test_an_answer_on_its_way_that_is_older_than_a_caller_wants_is_not_its_own() -> None:
    cloud = Cloud(lambda _, number: json_answer(b"[%d]" % number, b"Age: 60"))
    async with sharing(cloud, shop={"coalesce": True}) as proxy, together(proxy, 1) as (first,):
        await until(lambda: len(cloud.requests) == 1)
        others = [
            asyncio.create_task(proxy.call(GET, b"Cache-Control: max-age=%d" % age_s)) for age_s in (59, 60)
        ]
        await until(lambda: project_of(proxy).running == 3)
        cloud.gate.set()
        assert [(await call).body for call in (first, *others)] == [b"[1]", b"[2]", b"[1]"]
        assert status_of(await others[0]) == b"csq-proxy; fwd=miss; collapsed=?0"


async def test_an_answer_is_asked_for_again_once_it_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = Cloud().opened()
    async with sharing(cloud, shop={"cache": "10s"}) as proxy:
        await proxy.call(GET)
        (stored,) = project_of(proxy).shared_answers.shelf.answers.values()  # type: ignore[union-attr]
        assert 9 < stored.fresh_until - stored.asked_at < 10.001
        stored.fresh_until = stored.asked_at
        again = await proxy.call(GET)
        assert (again.body, status_of(again)) == (b"[2]", b"csq-proxy; fwd=stale")
        assert (await proxy.call(GET)).body == b"[2]"


@pytest.mark.parametrize(
    ("line", "is_stored"),
    [
        (b"Cache-Control: private", True),
        (b"Cache-Control: max-age=600", True),
        (b"Cache-Control: max-age=0", False),
        (b"Cache-Control: no-cache", False),
        (b"Cache-Control: no-store", False),
        (b"Age: 60", False),
        (b"Set-Cookie: a=b", False),
        (b"Vary: *", False),
        (b"Vary: Accept", True),
        (b"Content-Disposition: attachment", False),
    ],
)
async def test_the_cloud_can_forbid_or_shorten_and_not_lengthen(line: bytes, is_stored: bool) -> None:
    async with sharing(Cloud(lambda _, n: json_answer(b"[%d]" % n, line)).opened()) as proxy:
        await proxy.call(GET)
        assert (await proxy.call(GET)).body == (b"[1]" if is_stored else b"[2]")
        for stored in project_of(proxy).shared_answers.shelf.answers.values():  # type: ignore[union-attr]
            assert stored.fresh_until - stored.asked_at == pytest.approx(60)


async def test_why_an_answer_cannot_be_shared_is_said() -> None:
    async with sharing(Upstream(json_answer(b"1", b"Cache-Control: no-store"))) as proxy:
        assert status_of(await proxy.call(GET)) == b"csq-proxy; fwd=miss; detail=no-store"


@pytest.mark.parametrize(
    ("start", "lines", "said"),
    [
        (b"HEAD /v1/segments?a=1", (), b"fwd=method"),
        (b"OPTIONS /v1/segments?a=1", (), b"fwd=method"),
        (b"POST /v1/speed-analysis/event/list", (b"Content-Length: 0",), b"fwd=method"),
        (GET, (b"Range: bytes=0-0", b'If-Range: "1"'), b"fwd=bypass"),
        (b"GET /v1/exports", (b"Range: bytes=0-0",), b"fwd=bypass"),
        (GET, (b'If-None-Match: "1"',), b"fwd=bypass"),
        (b"GET /v1/oauth/keys", (), b"fwd=bypass"),
    ],
)
async def test_what_is_not_shared_goes_upstream_each_time(
    start: bytes, lines: tuple[bytes, ...], said: bytes
) -> None:
    cloud = Cloud().opened()
    cloud.answer = lambda _, n: json_answer(b"" if start.startswith(b"HEAD") else b"[%d]" % n)
    async with sharing(cloud) as proxy:
        for number in (1, 2):
            answer = await proxy.call(start, *lines)
            assert status_of(answer) == b"csq-proxy; " + said
            assert len(cloud.requests) == number


@pytest.mark.parametrize(
    "target", [b"/v1/exports/7/runs", b"/v1/exports", b"/v1/exports?page=2", b"/v1/new-api", b"/v1//segments"]
)
async def test_exports_and_unknown_paths_are_coalesced_but_never_stored(target: bytes) -> None:
    cloud = Cloud()
    async with sharing(cloud) as proxy:
        async with together(proxy, 3, b"GET " + target) as calls:
            cloud.gate.set()
            assert {(await call).body for call in calls} == {b"[1]"}
        assert (await proxy.call(b"GET " + target)).body == b"[2]"


# ---- what the caller asks of a cache


async def test_no_cache_goes_upstream_and_renews_what_is_stored() -> None:
    async with sharing(Cloud().opened()) as proxy:
        for line in (b"Cache-Control: no-cache", b"Pragma: no-cache", b"Cache-Control: max-age=0"):
            before = (await proxy.call(GET)).body
            renewed = await proxy.call(GET, line)
            assert renewed.body != before
            assert status_of(renewed) == b"csq-proxy; fwd=request"
            assert (await proxy.call(GET)).body == renewed.body


async def test_an_older_answer_does_not_replace_a_newer_one() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    requests: list[Message] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_message(reader))
            number = len(requests)
            await gates[number - 1].wait()
            writer.write(json_answer(b"[%d]" % number))

    async with sharing(script) as proxy:
        older = asyncio.create_task(proxy.call(GET))
        await until(lambda: len(requests) == 1)
        await asyncio.sleep(0.002)  # uvloop's clock has whole milliseconds
        newer = asyncio.create_task(proxy.call(GET, b"Cache-Control: no-cache"))
        await until(lambda: len(requests) == 2)
        gates[1].set()
        assert (await newer).body == b"[2]"
        gates[0].set()
        assert (await older).body == b"[1]"
        assert (await proxy.call(GET)).body == b"[2]"


async def test_no_cache_joins_nobody_and_nobody_joins_it() -> None:
    cloud = Cloud()
    async with sharing(cloud) as proxy:
        calls = [
            asyncio.create_task(proxy.call(GET, *lines))
            for lines in ((b"Cache-Control: no-cache",), (), ()) * 2
        ]
        await until(lambda: project_of(proxy).running == 6)
        await until(lambda: len(cloud.requests) == 3)
        cloud.gate.set()
        answers = [await call for call in calls]
        assert {answers[0].body, answers[3].body, answers[1].body} == {b"[1]", b"[2]", b"[3]"}
        assert len({answers[place].body for place in (1, 2, 4, 5)}) == 1


async def test_no_store_is_not_stored() -> None:
    async with sharing(Cloud().opened()) as proxy:
        assert (await proxy.call(GET, b"Cache-Control: no-store")).body == b"[1]"
        assert (await proxy.call(GET)).body == b"[2]"


async def test_max_age_is_compared_with_what_is_stored() -> None:
    async with sharing(Cloud(lambda _, n: json_answer(b"[%d]" % n, b"Age: 20")).opened()) as proxy:
        await proxy.call(GET)
        assert (await proxy.call(GET, b"Cache-Control: max-age=40")).body == b"[1]"
        assert (await proxy.call(GET, b"Cache-Control: max-age=19")).body == b"[2]"


@pytest.mark.parametrize("asked", [b"only-if-cached", b"max-age=40, min-fresh=20"])
async def test_a_request_that_asks_for_more_than_max_age_goes_to_the_cloud(asked: bytes) -> None:
    async with sharing(Cloud().opened()) as proxy:
        await proxy.call(GET)
        answer = await proxy.call(GET, b"Cache-Control: " + asked)
        assert (answer.body, status_of(answer)) == (b"[2]", b"csq-proxy; fwd=request")


async def test_only_what_every_answer_may_depend_on_makes_requests_differ() -> None:
    cloud = Cloud().opened()
    async with sharing(cloud) as proxy:
        await proxy.call(GET, b"Accept: application/json", b"X-Request-Id: 1", b"traceparent: 00-1-1-01")
        same = await proxy.call(GET, b"Accept: application/json", b"X-Request-Id: 2")
        assert same.body == b"[1]"
        for lines in ((), (b"Accept: text/csv",), (b"Accept: application/json", b"Prefer: a=b")):
            assert (await proxy.call(GET, *lines)).body != b"[1]"
        assert len(cloud.requests) == 4
        assert (await proxy.call(b"GET /v1/segments?a=1&")).body == b"[5]"


# ---- who may see what


CALLERS: Mapping[str, Mapping[str, object]] = {
    "one": {"key": "key-one-0123456789", "projects": ["shop", "other"]},
    "two": {"key": "key-two-0123456789", "read_only": True},
    "none": {"key": "key-none-0123456789", "projects": ["other"]},
}


def key(name: str) -> bytes:
    return b"X-API-Key: " + str(CALLERS[name]["key"]).encode()


async def test_callers_share_with_themselves_alone() -> None:
    cloud = Cloud()
    other = {**SHOP, "client_id": "id-2", "cache": 60}
    async with sharing(cloud, projects={"other": other}, callers=CALLERS) as proxy:
        calls = [asyncio.create_task(proxy.call(GET, key(name))) for name in ("one", "two") * 3]
        await until(lambda: project_of(proxy).running == 6)
        await until(lambda: len(cloud.requests) == 2)
        cloud.gate.set()
        bodies = [(await call).body for call in calls]
        assert len({*bodies[::2]}) == len({*bodies[1::2]}) == 1
        assert bodies[0] != bodies[1]
        assert (await proxy.call(GET, key("one"))).body == bodies[0]
        assert (await proxy.call(GET, key("two"))).body == bodies[1]


async def test_who_may_not_use_the_project_gets_nothing_of_it() -> None:
    other = {**SHOP, "client_id": "id-2", "cache": 60}
    async with sharing(Cloud().opened(), projects={"other": other}, callers=CALLERS) as proxy:
        target = b"GET /shop/v1/segments?a=1"
        assert (await proxy.call(target, key("one"))).status == 200
        assert (await proxy.call(target, key("none"))).error_code == "PROXY_UNKNOWN_PROJECT"
        assert (await proxy.call(target)).status == 401
        assert (await proxy.call(target, b"X-API-Key: wrong")).status == 401


async def test_names_of_one_contentsquare_project_share_no_answers() -> None:
    numbers = {"project_id": 42, "cache": 60}
    shops = {"shop": {**SHOP, **numbers}, "twin": {**SHOP, **numbers}}
    accounts = {"acme": {**SHOP, "cache": 60}}
    async with sharing(Cloud().opened(), projects=shops, accounts=accounts) as proxy:
        starts = [b"GET /%b/v1/segments" % prefix for prefix in (b"shop", b"twin", b"acme/42", b"acme/43")]
        for _ in range(2):
            assert [(await proxy.call(start)).body for start in starts] == [b"[1]", b"[2]", b"[3]", b"[4]"]


async def test_apis_of_a_project_share_no_answers() -> None:
    async with sharing(Cloud().opened()) as proxy:
        assert (await proxy.call(GET)).body == b"[1]"
        assert (await proxy.call(GET, b"X-CSQ-Api: data-export")).body == b"[2]"
        assert (await proxy.call(GET, b"X-CSQ-Api: metrics")).body == b"[1]"


# ---- errors


@pytest.mark.parametrize("status", [b"403 Forbidden", b"404 Not Found", b"429 Too Many", b"500 X", b"503 X"])
async def test_an_error_is_nobody_elses(status: bytes) -> None:
    def answer(_: Message, number: int) -> bytes:
        return json_answer(b"[%d]" % number, status=status)

    cloud = Cloud(answer)
    async with sharing(cloud) as proxy, together(proxy, 5) as calls:
        cloud.gate.set()
        answers = [await call for call in calls]
        assert {one.status for one in answers} == {int(status[:3])}
        assert len({one.body for one in answers}) == len(cloud.requests) == 5
        assert not project_of(proxy).shared_answers.shelf.answers  # type: ignore[union-attr]


async def test_a_token_refused_once_is_no_answer() -> None:
    cloud = Cloud(
        lambda _, n: b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n" if n == 1 else json_answer(b"[%d]" % n)
    )
    async with sharing(cloud) as proxy, together(proxy, 5) as calls:
        cloud.gate.set()
        assert {(await call).body for call in calls} == {b"[2]"}
        assert len(cloud.requests) == 2


async def test_a_refusal_for_concurrency_is_no_answer() -> None:
    crowded = json_answer(b'{"errorCode": "CONCURRENT_API_CALL"}', status=b"429 Too Many")
    cloud = Cloud(lambda _, n: crowded if n < 3 else json_answer(b"[%d]" % n))
    async with sharing(cloud) as proxy, together(proxy, 5) as calls:
        cloud.gate.set()
        assert {(await call).body for call in calls} == {b"[3]"}
        assert len(cloud.requests) == 3
        assert cloud.most_at_once == 1


async def test_a_cut_answer_lets_the_others_go() -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[1"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_message(reader))
            await gate.wait()
            if len(requests) == 1:
                writer.write(cut)
                await writer.drain()
                return
            writer.write(json_answer(b"[2]"))

    requests: list[Message] = []
    gate = asyncio.Event()
    async with sharing(script) as proxy:
        calls = [asyncio.create_task(proxy.call(GET)) for _ in range(4)]
        await until(lambda: len(requests) == 1 and project_of(proxy).running == 4)
        gate.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        broken = [one for one in answers if isinstance(one, BaseException)]
        assert len(broken) == 1
        assert {one.body for one in answers if isinstance(one, Message)} == {b"[2]"}


# ---- the way of an answer


async def test_what_is_chunked_is_whole_for_everybody() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    cloud = Cloud(lambda _, n: head + b"2\r\n[%d\r\n3\r\n, 7\r\n1\r\n]\r\n0\r\n\r\n" % n)
    async with sharing(cloud) as proxy:
        async with together(proxy, 3) as calls:
            cloud.gate.set()
            answers = [await call for call in calls]
        answers.append(await proxy.call(GET))
        assert {one.content for one in answers} == {b"[1, 7]"}
        followers = [one for one in answers if status_of(one) != b"csq-proxy; fwd=miss"]
        assert len(followers) == 3
        assert all(one.values(b"content-length") == [b"6"] for one in followers)
        assert not any(one.values(b"transfer-encoding") for one in followers)


@pytest.mark.parametrize(
    ("age", "least"),
    [(b"7", 7), (b"7, 900", 7), (b"old", None), (b"99999999999", 2**31), (b"9" * 21, 2**31)],
)
async def test_an_answers_age_is_told_where_it_is_one(age: bytes, least: int | None) -> None:
    cloud = Cloud(lambda _, n: json_answer(b"[%d]" % n, b"Age: " + age))
    async with sharing(cloud) as proxy, together(proxy, 2) as calls:
        cloud.gate.set()
        answers = [await call for call in calls]
        assert {one.body for one in answers} == {b"[1]"}
        (follower,) = (one for one in answers if b"collapsed" in status_of(one))
        told = [int(value) for value in follower.values(b"age")]
        if least is None:
            assert told == []
        else:
            assert len(told) == 1
            assert least <= told[0] <= least + WAIT_S


async def test_trailers_are_not_lost_on_anybody() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    cloud = Cloud(lambda _, n: head + b"1\r\n%d\r\n0\r\nX-Sum: 1\r\n\r\n" % n)
    async with sharing(cloud) as proxy, together(proxy, 3) as calls:
        cloud.gate.set()
        assert {(await call).content for call in calls} == {b"1", b"2", b"3"}


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_what_is_too_long_is_everybodys_own(is_chunked: bool) -> None:
    content = b'"%b"' % (b"x" * MAX_CONTENT_BYTES)
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(content)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if is_chunked else content
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing + b"\r\n\r\n"
    cloud = Cloud(lambda *_: head + body)
    async with sharing(cloud) as proxy, together(proxy, 3) as calls:
        cloud.gate.set()
        assert [(await call).content == content for call in calls] == [True] * 3
        assert len(cloud.requests) == 3


async def test_a_long_answer_comes_whole_from_memory() -> None:
    content = b'"%b"' % (b"0123456789abcdef" * 50_000)
    async with sharing(Upstream(json_answer(content))) as proxy:
        assert [(await proxy.call(GET)).body == content for _ in range(2)] == [True] * 2


LONG = b'"%b"' % (b"0123456789abcdef" * 5_000)


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        (b"bytes=0-0", slice(0, 1)),
        (b"bytes=5-9", slice(5, 10)),
        (b"Bytes=70000-", slice(70_000, None)),
        (b"bytes=10-999999", slice(10, None)),
        (b"bytes=-3", slice(-3, None)),
    ],
)
async def test_a_stored_answer_gives_the_part_that_a_range_asks_for(asked: bytes, part: slice) -> None:
    cloud = Cloud(lambda *_: json_answer(LONG, b'ETag: "1"', b"Vary: Accept")).opened()
    async with sharing(cloud) as proxy:
        await proxy.call(GET)
        answer = await proxy.call(GET, b"Range: " + asked)
        start, stop, _ = part.indices(len(LONG))
        assert (answer.status, answer.body) == (206, LONG[part])
        assert answer.values(b"content-range") == [b"bytes %d-%d/%d" % (start, stop - 1, len(LONG))]
        assert answer.values(b"content-length") == [b"%d" % (stop - start)]
        for name, value in ((b"etag", b'"1"'), (b"vary", b"Accept"), (b"content-type", b"application/json")):
            assert answer.values(name) == [value]
        assert len(answer.values(b"date")) == len(answer.values(b"age")) == 1
        assert status_of(answer).startswith(b"csq-proxy; hit; ttl=")
        assert len(cloud.requests) == 1


@pytest.mark.parametrize(
    "asked",
    [b"bytes=0-1,4-5", b"bytes=9-5", b"bytes=-", b"lines=0-1", b"bytes=%d-" % len(LONG), b"bytes=-0"],
)
async def test_several_ranges_and_those_that_name_no_byte_get_the_whole(asked: bytes) -> None:
    cloud = Cloud(lambda *_: json_answer(LONG)).opened()
    async with sharing(cloud) as proxy:
        await proxy.call(GET)
        answer = await proxy.call(GET, b"Range: " + asked)
        assert (answer.status, answer.body, answer.values(b"content-range")) == (200, LONG, [])
        assert len(cloud.requests) == 1


async def test_a_stored_answer_answers_head_with_its_head() -> None:
    cloud = Cloud(lambda *_: json_answer(LONG, b'ETag: "1"')).opened()
    async with sharing(cloud) as proxy:
        await proxy.call(GET)
        reader, writer = await proxy.connect()
        for lines in ((), (b"Range: bytes=0-3",)):
            writer.write(proxy.request(b"HEAD" + GET[3:], *lines))
            answer = await read_message(reader, bodyless=True)
            assert (answer.status, answer.values(b"content-length")) == (200, [b"%d" % len(LONG)])
            assert answer.values(b"etag") == [b'"1"']
            assert status_of(answer).startswith(b"csq-proxy; hit; ttl=")
        writer.write(proxy.request(GET))
        assert (await read_message(reader)).body == LONG
        await close(writer)
        assert len(cloud.requests) == 1


async def test_a_whole_answer_to_a_request_for_a_part_is_stored_and_a_part_is_not() -> None:
    part = json_answer(b"01", b"Content-Range: bytes 0-1/9", status=b"206 Partial Content")
    cloud = Cloud(lambda asked, _: json_answer(LONG) if b"/segments" in asked.start_line else part).opened()
    async with sharing(cloud) as proxy:
        whole = await proxy.call(GET, b"Range: bytes=0-1")
        assert (whole.status, whole.body, status_of(whole)) == (200, LONG, b"csq-proxy; fwd=miss")
        assert cloud.requests[0].values(b"range") == [b"bytes=0-1"]
        for lines, body in (((b"Range: bytes=2-3",), LONG[2:4]), ((), LONG)):
            assert (await proxy.call(GET, *lines)).body == body
        assert len(cloud.requests) == 1
        for _ in range(2):
            answer = await proxy.call(b"GET /v1/goals", b"Range: bytes=0-1")
            assert (answer.status, answer.body) == (206, b"01")
        assert len(cloud.requests) == 3


async def test_reads_as_duckdb_makes_them_are_two_calls_at_first_and_then_none() -> None:
    cloud = Cloud(lambda request, _: json_answer(b"" if request.start_line[:4] == b"HEAD" else LONG)).opened()
    async with sharing(cloud) as proxy:
        for reads in range(3):
            head = await proxy.call(b"HEAD" + GET[3:])
            first = await proxy.call(GET, b"Range: bytes=0-65535")
            second = await proxy.call(GET, b"Range: bytes=65536-")
            assert head.status == 200
            if reads:
                assert first.body + second.body == LONG
        assert len(cloud.requests) == 2


async def test_a_request_for_a_part_joins_nobody_and_nobody_joins_it() -> None:
    cloud = Cloud(lambda *_: json_answer(LONG))
    async with sharing(cloud) as proxy:
        calls = [
            asyncio.create_task(proxy.call(GET, *lines)) for lines in ((b"Range: bytes=0-1",), (), ()) * 2
        ]
        await until(lambda: project_of(proxy).running == 6)
        await until(lambda: len(cloud.requests) == 3)
        cloud.gate.set()
        assert {(await call).body for call in calls} == {LONG}


async def test_each_caller_keeps_its_own_connection() -> None:
    async with sharing(Cloud().opened()) as proxy:
        await proxy.call(GET)
        reader, writer = await proxy.connect()
        for lines in ((), (b"Connection: close",)):
            writer.write(proxy.request(GET, *lines))
            answer = await read_message(reader)
            assert (answer.is_kept, answer.values(b"connection")) == (not lines, [b"close"] * len(lines))
        assert await reader.read() == b""


async def test_callers_of_http_1_0_are_answered_in_kind() -> None:
    async with sharing(Cloud().opened()) as proxy:
        old = b"GET /v1/segments HTTP/1.0\r\nHost: %b\r\n" % proxy.host
        first, second = await proxy.send(old + b"\r\n"), await proxy.send(old + b"\r\n")
        assert (first.body, second.body, second.values(b"connection")) == (b"[1]", b"[1]", [b"close"])
        reader, writer = await proxy.connect()
        for _ in range(2):
            writer.write(old + b"Connection: keep-alive\r\n\r\n")
            kept = await read_message(reader)
            assert (kept.body, kept.is_kept) == (b"[1]", True)


async def test_hundreds_of_requests_in_a_row_are_answered_from_memory() -> None:
    async with sharing(Cloud().opened()) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(GET) * 600)
        for _ in range(600):
            assert (await read_message(reader)).body == b"[1]"


async def test_requests_in_a_row_on_one_connection_do_not_wait_for_each_other() -> None:
    cloud = Cloud()
    async with sharing(cloud) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(GET) * 3)
        await until(lambda: len(cloud.requests) == 1)
        cloud.gate.set()
        assert [(await read_message(reader)).body for _ in range(3)] == [b"[1]"] * 3


# ---- who leads, and who follows


async def test_when_the_one_that_leads_leaves_another_leads() -> None:
    cloud = Cloud()
    async with sharing(cloud) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(GET))
        await until(lambda: len(cloud.requests) == 1)
        calls = [asyncio.create_task(proxy.call(GET)) for _ in range(4)]
        await until(lambda: project_of(proxy).running == 5)
        reset(writer)
        await until(lambda: len(cloud.requests) == 2)
        assert project_of(proxy).slots.in_use == 1
        cloud.gate.set()
        answers = [await call for call in calls]
        assert {one.body for one in answers} == {b"[2]"}
        assert sorted(map(status_of, answers)) == [
            b"csq-proxy; fwd=miss; collapsed",
            b"csq-proxy; fwd=miss; collapsed",
            b"csq-proxy; fwd=miss; collapsed",
            b"csq-proxy; fwd=miss; collapsed=?0",
        ]
        assert len(cloud.requests) == 2


async def test_those_that_follow_may_leave() -> None:
    cloud = Cloud()
    async with sharing(cloud) as proxy:
        lead = asyncio.create_task(proxy.call(GET))
        await until(lambda: len(cloud.requests) == 1)
        writers = []
        for _ in range(3):
            _, writer = await proxy.connect()
            writer.write(proxy.request(GET))
            writers.append(writer)
        await until(lambda: project_of(proxy).running == 4)
        for writer in writers:
            reset(writer)
        await until(lambda: project_of(proxy).running == 1)
        cloud.gate.set()
        assert (await lead).body == b"[1]"
        assert (await proxy.call(GET)).body == b"[1]"


async def test_nobody_waits_for_a_slow_caller() -> None:
    content = b'"%b"' % (b"x" * (MAX_CONTENT_BYTES - 2))
    finish = asyncio.Event()
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await read_message(reader)
            requests += 1
            if requests > 1:
                writer.write(json_answer(b"[2]"))
                continue
            writer.write(json_answer(content)[:-1])
            await finish.wait()
            writer.write(content[-1:])
            await writer.drain()

    async with sharing(script) as proxy:
        reader, writer = await proxy.connect()
        cast(asyncio.Transport, writer.transport).pause_reading()
        writer.write(proxy.request(GET))
        await until(lambda: requests == 1)
        calls = [asyncio.create_task(proxy.call(GET)) for _ in range(3)]
        assert [(await call).body for call in calls] == [b"[2]"] * 3
        finish.set()
        cast(asyncio.Transport, writer.transport).resume_reading()
        assert (await read_message(reader)).body == content


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.projects.shared_answers.PATIENCE_S", 0.02)
    cloud = Cloud()
    async with sharing(cloud) as gate, together(gate, 4) as calls:
        await until(lambda: len(cloud.requests) == 4)
        cloud.gate.set()
        answers = [await call for call in calls]
        assert sorted(one.body for one in answers) == [b"[1]", b"[2]", b"[3]", b"[4]"]
        said = Counter(map(status_of, answers))
        assert set(said) == {b"csq-proxy; fwd=miss", b"csq-proxy; fwd=miss; collapsed=?0"}


async def test_waiting_for_one_that_waits_for_a_slot_is_waiting_for_a_slot() -> None:
    cloud = Cloud()
    limits = {"max_concurrency": 1, "queue_timeout": 0.3}
    async with sharing(cloud, contentsquare=limits) as gate:
        busy = asyncio.create_task(gate.call(b"GET /v1/goals"))
        await until(lambda: len(cloud.requests) == 1)
        calls = [asyncio.create_task(gate.call(GET)) for _ in range(3)]
        refused = [await call for call in calls]
        assert {one.error_code for one in refused} == {"PROXY_QUEUE_TIMEOUT"}
        waited_s = sorted(float(one.content.split(b"busy for ")[1].split(b" s")[0]) for one in refused)
        assert waited_s[2] == 0.3
        assert waited_s[1] < 0.3  # less what was waited before it was this one's own turn to wait
        cloud.gate.set()
        assert (await busy).status == 200


# ---- reading what was written


async def test_a_call_that_may_change_data_ends_what_was_stored() -> None:
    cloud = Cloud().opened()
    async with sharing(cloud) as proxy:
        assert (await proxy.call(GET)).body == b"[1]"
        await proxy.call(b"POST /v1/speed-analysis/event/list", b"Content-Length: 0")  # a read
        assert (await proxy.call(GET)).body == b"[1]"
        await proxy.call(b"POST /v1/exports", b"Content-Length: 0")
        assert (await proxy.call(GET)).body == b"[4]"
        await proxy.call(GET, b"X-HTTP-Method-Override: DELETE")
        assert (await proxy.call(GET)).body == b"[6]"


async def test_what_was_asked_before_or_while_data_changed_is_not_stored_or_joined() -> None:
    held = {b"GET": asyncio.Event(), b"POST": asyncio.Event()}
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            method = (await read_message(reader)).start_line.split(b" ")[0]
            requests.append(method)
            number = len(requests)
            await held[method].wait()
            writer.write(json_answer(b"[%d]" % number))

    async with sharing(script) as proxy:
        before = asyncio.create_task(proxy.call(GET))
        await until(lambda: len(requests) == 1)
        change = asyncio.create_task(proxy.call(b"POST /v1/exports", b"Content-Length: 0"))
        await until(lambda: len(requests) == 2)
        during = asyncio.create_task(proxy.call(GET))
        await until(lambda: len(requests) == 3)  # it didn't join the one from before
        held[b"POST"].set()
        await change
        after = asyncio.create_task(proxy.call(GET))
        await until(lambda: len(requests) == 4)  # nor this the one from during
        held[b"GET"].set()
        assert [(await call).body for call in (before, during, after)] == [b"[1]", b"[3]", b"[4]"]
        assert (await proxy.call(GET)).body == b"[4]"


async def test_new_tokens_and_a_reload_end_what_was_stored() -> None:
    async with sharing(Cloud().opened()) as proxy:
        assert (await proxy.call(GET)).body == b"[1]"
        await proxy.call(b"POST /-/refresh/shop")
        assert (await proxy.call(GET)).body == b"[2]"
        proxy.app._prepare(proxy.app._generation.settings)()
        assert (await proxy.call(GET)).body == b"[3]"


# ---- what is told


async def test_shared_answers_are_counted_and_shown() -> None:
    async with sharing(Cloud().opened()) as proxy:
        for _ in range(3):
            await proxy.call(GET)
        metrics = (await proxy.call(b"GET /-/metrics")).content
        assert b'csq_proxy_answers_shared_total{kind="hit",project="shop"} 2.0' in metrics
        assert b'csq_proxy_answers_shared_total{kind="collapsed",project="shop"} 0.0' in metrics
        assert b'csq_proxy_stored_bytes{project="shop"} 1' in metrics
        shown = json.loads((await proxy.call(b"GET /-/status")).content)["projects"]["shop"]["sharing"]
        assert (shown["hit"], shown["collapsed"], shown["stored"]) == (2, 0, 1)
        assert shown["stored_bytes"] > 1024


# ---- all at once


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_callers_do_everybody_gets_a_right_answer_and_every_slot_is_given_back(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.projects.shared_answers.PATIENCE_S", 0.03)
    rng = random.Random(seed)

    def answer(request: Message, _: int) -> bytes:
        target = request.start_line.split(b" ")[1]
        kind = rng.random()
        if kind < 0.1:
            return json_answer(target, status=rng.choice((b"403 No", b"429 No", b"500 No")))
        if kind < 0.2:
            return json_answer(target * rng.choice((1, 30_000)), b"Cache-Control: no-store")
        return json_answer(target)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            await asyncio.sleep(rng.choice((0.0, 0.005, 0.05)))
            raw = answer(request, 0)
            if rng.random() < 0.05:
                writer.write(raw[:-1])
                return
            writer.write(raw)
            await writer.drain()

    async def caller(gate: Gateway) -> None:
        for _ in range(8):
            target = b"/v1/segments?tile=%d" % rng.randrange(4)
            lines = rng.choice(
                ((), (), (b"Cache-Control: no-cache",), (b"X-Request-Id: %d" % rng.randrange(9),))
            )
            method = rng.choice((b"GET",) * 19 + (b"PUT",))
            reader, writer = await gate.connect()
            writer.write(gate.request(method + b" " + target, *lines))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.choice((0.0, 0.01)))
                writer.transport.abort()
                continue
            try:
                got = await read_message(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                seen["cut"] += 1
                continue
            finally:
                await close(writer)
            seen[str(got.status)] += 1
            if got.status == 200:
                assert got.body.startswith(target)
                assert got.body.replace(target, b"") == b""

    seen: Counter[str] = Counter()
    limits = {"max_concurrency": 3}
    async with sharing(slow, contentsquare=limits, shop={"cache": 1 + seed % 2}) as gate:
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(caller(gate) for _ in range(20)))
        await until(lambda: project_of(gate).running == 0)
        assert seen["200"] > 20
        assert project_of(gate).measures.shared["collapsed"] > 0


async def test_who_saw_a_change_answered_reads_nothing_older() -> None:
    head, end = asyncio.Event(), asyncio.Event()
    begun, version = asyncio.Event(), 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal version
        while True:
            request = await read_message(reader)
            if request.start_line.startswith(b"POST"):
                begun.set()
                await head.wait()
                version += 1
                writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n[")
                await end.wait()
                writer.write(b"]")
            else:
                writer.write(json_answer(b"[%d]" % version))
            await writer.drain()

    async with gateway(script, projects={"shop": {**SHOP, "default": True, "cache": "60s"}}) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/segments", b"Content-Length: 0"))
        await begun.wait()
        assert (await proxy.call(b"GET /v1/segments")).body == b"[0]"
        head.set()
        await reader.readuntil(b"\r\n\r\n")
        assert (await proxy.call(b"GET /v1/segments")).body == b"[1]"
        end.set()
