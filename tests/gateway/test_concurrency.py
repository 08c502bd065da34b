"""Slots and the cloud's concurrency limit, end to end: no caller ever sees it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from support.cuts import reset
from support.harness import OK, WAIT_S, Message, Upstream, gateway, read_message, until
from support.harness import Gateway as Proxy

from proxy.gateway.gateway import Gateway
from proxy.gateway.held_error import LIMIT_BYTES, HeldError

CROWDED = json.dumps(
    {"success": False, "errorMessage": "Too much concurrent calls", "errorCode": "CONCURRENT_API_CALL"}
).encode()


def error(status: int, content: bytes, *lines: bytes) -> bytes:
    head = (b"HTTP/1.1 %d No" % status, b"Content-Type: application/json; charset=utf-8", *lines)
    return b"\r\n".join((*head, b"Content-Length: %d" % len(content), b"", content))


def chunked(status: int, content: bytes) -> bytes:
    head = b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


def first_then(*answers: bytes) -> Upstream:
    """An upstream that gives these answers in turn, and the last one for ever."""
    left = list(answers)
    return Upstream(lambda _: left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(error(429, CROWDED), id="429"),
        pytest.param(error(403, CROWDED), id="403"),
        pytest.param(chunked(429, CROWDED), id="chunked"),
        pytest.param(error(429, gzip.compress(CROWDED), b"Content-Encoding: gzip"), id="gzip"),
    ],
)
async def test_a_refusal_for_concurrency_is_tried_again_with_the_same_content(refusal: bytes) -> None:
    upstream = first_then(refusal, refusal, OK)
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"POST /v1/exports", b"Content-Length: 2", body=b"{}")
        assert (answer.status, answer.body) == (200, b"ok")
        assert [request.body for request in upstream.requests] == [b"{}"] * 3


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(error(429, b'{"errorCode": "RATE"}', b"Retry-After: 7"), id="another error"),
        pytest.param(error(404, b"not json"), id="not JSON after all"),
        pytest.param(error(400, b'["CONCURRENT_API_CALL"]'), id="no object"),
        pytest.param(error(400, b'{"errorCode": 7}'), id="no text"),
        pytest.param(error(400, b'{"a": "%b"}' % (b"x" * LIMIT_BYTES)), id="long"),
        pytest.param(chunked(400, b'{"a": "%b"}' % (b"x" * LIMIT_BYTES)), id="long and chunked"),
        pytest.param(error(400, CROWDED, b"Content-Encoding: br"), id="a coding that we can't read"),
        pytest.param(error(200, CROWDED), id="a good answer is never looked at"),
        pytest.param(error(503, CROWDED), id="not a 4xx"),
    ],
)
async def test_any_other_answer_arrives_as_it_was_sent(answer: bytes) -> None:
    answer = answer.replace(b"\r\n", b"\r\nDate: then\r\n", 1)
    upstream = Upstream(answer)
    async with gateway(upstream) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        got = await read_message(reader)
        if b"chunked" in answer:
            assert got.content == Message(*answer.split(b"\r\n\r\n", 1)).content
        else:
            assert got.plain_head + b"\r\n\r\n" + got.body == answer
        assert len(upstream.requests) == 1


async def test_while_the_deadline_lasts_only_then_the_caller_is_told() -> None:
    upstream = Upstream(error(429, CROWDED))
    async with gateway(upstream, contentsquare={"queue_timeout": 0.2}) as proxy:
        answer = await proxy.call(b"GET /v1/x")
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert int(answer.values(b"retry-after")[0]) >= 1
        told = re.search(
            rb"Contentsquare refused this request (\d+) times? in 0\.2 s, because too many of its project ran"
            rb" at once: other programs use the project, too\. Send fewer",
            answer.body,
        )
        assert told is not None, answer.body
        assert int(told[1]) == len(upstream.requests)


async def test_content_too_long_to_be_sent_again_is_the_callers_to_send_again() -> None:
    upstream = Upstream(error(429, CROWDED))
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"POST /v1/exports", b"Content-Length: 100000", body=b"x" * 100_000)
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert len(upstream.requests) == 1


async def test_a_dashboard_of_sixty_queries_never_exceeds_the_limit_and_loses_none() -> None:
    running = peak = 0
    full = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running, peak
        while True:
            await read_message(reader)
            running += 1
            peak = max(peak, running)
            if running == 10:
                full.set()
            await asyncio.wait_for(full.wait(), WAIT_S)
            await asyncio.sleep(0.01)
            running -= 1
            writer.write(OK)
            await writer.drain()

    async with gateway(script) as proxy:
        answers = await asyncio.gather(*(proxy.call(b"GET /v1/x?%d" % n) for n in range(60)))
        assert Counter(answer.status for answer in answers) == {200: 60}
        assert peak == 10


async def test_one_callers_many_queries_do_not_starve_another_caller() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            await go_on.wait()
            await asyncio.sleep(0.01)
            writer.write(OK)
            await writer.drain()

    callers = {"greedy": {"key": "greedy-key-12345"}, "modest": {"key": "modest-key-12345"}}
    async with gateway(script, contentsquare={"max_concurrency": 1}, callers=callers) as proxy:
        greedy = [
            asyncio.create_task(proxy.call(b"GET /v1/x", b"X-API-Key: greedy-key-12345")) for _ in range(20)
        ]
        slots = next(iter(proxy.app.projects())).slots
        async with asyncio.timeout(WAIT_S):
            while slots.waiting < 19:
                await asyncio.sleep(0.002)
            modest = asyncio.create_task(proxy.call(b"GET /v1/x", b"X-API-Key: modest-key-12345"))
            while slots.waiting < 20:
                await asyncio.sleep(0.002)
        go_on.set()
        assert (await modest).status == 200
        assert sum(task.done() for task in greedy) < 10
        await asyncio.gather(*greedy)


class Gate:
    """A cloud whose answers wait until the gate is open; with ``closes``, each ends its connection."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.closes = False

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            await self.open.wait()
            writer.write(OK)
            await writer.drain()
            if self.closes:
                writer.close()
                return


@contextlib.asynccontextmanager
async def held(queue_timeout_s: float = 60) -> AsyncIterator[tuple[Gate, Proxy, asyncio.Task[Message]]]:
    """A proxy with one slot, and a call that holds it until the gate is open."""
    gate = Gate()
    limits = {"max_concurrency": 1, "queue_timeout": queue_timeout_s}
    async with gateway(gate.script, contentsquare=limits) as proxy:
        gate.open.set()
        assert (await proxy.call(b"GET /v1/x")).status == 200  # leaves a connection to the cloud behind
        gate.open.clear()
        [project] = proxy.app.projects()
        first = asyncio.create_task(proxy.call(b"GET /v1/x"))
        await until(lambda: project.slots.in_use)
        yield gate, proxy, first
        gate.open.set()
        assert (await first).status == 200
        assert (project.running, project.slots.in_use, project.slots.waiting) == (0, 0, 0)


async def answered_beside_a_second(gate: Gate, proxy: Proxy, first: asyncio.Task[Message]) -> None:
    """Open the gate once a second call waits for the slot of the first: both are answered."""
    [project] = proxy.app.projects()
    second = asyncio.create_task(proxy.call(b"GET /v1/x"))
    await until(lambda: project.slots.waiting)
    gate.open.set()
    assert [(await call).status for call in (first, second)] == [200, 200]


async def test_a_request_that_waits_for_a_slot_is_answered_without_a_task_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with held() as (gate, proxy, first):
        monkeypatch.setattr(Gateway, "run", None)
        await answered_beside_a_second(gate, proxy, first)


async def test_a_request_whose_slot_comes_without_a_connection_makes_one() -> None:
    async with held() as (gate, proxy, first):
        gate.closes = True
        await answered_beside_a_second(gate, proxy, first)


async def test_a_request_that_gets_no_slot_in_time_is_told_so() -> None:
    async with held(0.1) as (_, proxy, _first):
        answer = await proxy.call(b"GET /v1/x")
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert b"busy for 0.1 s" in answer.body


async def test_a_waiting_caller_that_leaves_gives_its_place_away() -> None:
    hold = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            await hold.wait()
            writer.write(OK)
            await writer.drain()

    async with gateway(script, contentsquare={"max_concurrency": 1}) as proxy:
        slots = next(iter(proxy.app.projects())).slots
        first = asyncio.create_task(proxy.call(b"GET /v1/x"))
        _, leaving = await proxy.connect()
        while not slots.in_use:
            await asyncio.sleep(0.001)
        leaving.write(proxy.request(b"GET /v1/x"))
        while not slots.waiting:
            await asyncio.sleep(0.001)
        reset(leaving)
        async with asyncio.timeout(WAIT_S):
            while slots.waiting:
                await asyncio.sleep(0.005)
        hold.set()
        assert (await first).status == 200
        assert (slots.in_use, slots.waiting) == (0, 0)


def test_a_gzip_bomb_is_not_inflated() -> None:
    small = HeldError(gzipped=True)
    assert small.feed(gzip.compress(b" " * 1_000_000 + CROWDED))
    assert small.error_code() is None
