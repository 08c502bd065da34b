"""`proxy.projects.uploads`, and its purpose: callers that never end their content keep no others out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from support.harness import WAIT_S, Gateway, Held, Upstream, gateway, until

from proxy.projects.uploads import Uploads


@dataclass(eq=False)
class Content:
    complete: bool = False
    broken: object = None
    on_end: Callable[[], None] | None = None

    def end(self) -> None:
        self.complete = True
        if self.on_end is not None:
            self.on_end()


async def test_complete_content_needs_no_place() -> None:
    uploads = Uploads()
    await uploads.enter(Content(complete=True), 1, WAIT_S)
    assert uploads.running == 0


async def test_so_many_are_let_in_and_the_others_as_places_become_free_in_their_order() -> None:
    uploads = Uploads()
    first, second, third, fourth = (Content() for _ in range(4))
    await uploads.enter(first, 2, WAIT_S)
    await uploads.enter(second, 2, WAIT_S)
    waiting = [asyncio.create_task(uploads.enter(content, 2, WAIT_S)) for content in (third, fourth)]
    await asyncio.sleep(0)
    assert (uploads.running, uploads.waiting) == (2, 2)
    uploads.leave(first)
    await waiting[0]
    assert not waiting[1].done()
    uploads.leave(second)
    await waiting[1]
    uploads.leave(third)
    uploads.leave(fourth)
    assert (uploads.running, uploads.waiting) == (0, 0)


async def test_a_content_that_ends_gives_its_place_to_the_next_one() -> None:
    uploads, first, second = Uploads(), Content(), Content()
    await uploads.enter(first, 1, WAIT_S)
    task = asyncio.create_task(uploads.enter(second, 1, WAIT_S))
    await asyncio.sleep(0)
    first.end()
    await task
    assert (uploads.running, uploads.waiting) == (1, 0)
    uploads.leave(first)  # its answer came
    assert uploads.running == 1
    second.end()
    assert uploads.running == 0


async def test_a_waiter_whose_content_ends_goes_on_without_a_place() -> None:
    uploads, first, content = Uploads(), Content(), Content()
    await uploads.enter(first, 1, WAIT_S)
    task = asyncio.create_task(uploads.enter(content, 1, WAIT_S))
    await asyncio.sleep(0)
    content.end()
    await task
    uploads.leave(first)
    assert uploads.running == 0


@pytest.mark.parametrize("at", ["before its turn", "at its turn", "as its turn comes", "as its content ends"])
async def test_a_waiter_that_leaves_takes_no_place_along(at: str) -> None:
    uploads, first, content = Uploads(), Content(), Content()
    await uploads.enter(first, 1, WAIT_S)
    task = asyncio.create_task(uploads.enter(content, 1, WAIT_S))
    await asyncio.sleep(0)
    if at == "at its turn":
        uploads.leave(first)
    task.cancel()
    if at == "as its turn comes":
        uploads.leave(first)
    if at == "as its content ends":
        content.end()
    await asyncio.gather(task, return_exceptions=True)
    uploads.leave(first)
    assert (uploads.running, uploads.waiting) == (0, 0)


async def test_waiting_for_a_place_has_an_end() -> None:
    uploads = Uploads()
    await uploads.enter(Content(), 1, WAIT_S)
    with pytest.raises(TimeoutError):
        await uploads.enter(Content(), 1, 0.01)
    assert uploads.waiting == 0


SLOW = (b"Content-Length: 9",)


async def upload_for_ever(proxy: Gateway) -> None:
    """Hold a slot with a request whose content never ends."""
    [project] = proxy.app.projects()
    _, slow = await proxy.connect()
    slow.write(proxy.request(b"POST /v1/exports", *SLOW, body=b"a"))
    await until(lambda: project.slots.in_use)


async def test_contents_that_never_end_leave_half_of_the_slots_to_others() -> None:
    upstream = Upstream()
    async with gateway(upstream, contentsquare={"max_concurrency": 4}) as proxy:
        [project] = proxy.app.projects()
        for _ in range(20):
            _, writer = await proxy.connect()
            writer.write(proxy.request(b"POST /v1/exports", *SLOW, body=b"a"))
        async with asyncio.timeout(WAIT_S):
            while project.slots.in_use < 2:
                await asyncio.sleep(0.01)
        for _ in range(5):
            assert (await proxy.call(b"GET /v1/segments")).status == 200
            assert (await proxy.call(b"POST /v1/exports", *SLOW, body=b"123456789")).status == 200
        assert project.slots.in_use == 2


async def test_a_content_that_ends_while_it_waits_goes_on_at_once() -> None:
    upstream = Upstream()
    async with gateway(upstream, contentsquare={"max_concurrency": 2}) as proxy:
        await upload_for_ever(proxy)
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/exports", *SLOW, body=b"1234"))
        await asyncio.sleep(0.02)
        assert not upstream.requests
        writer.write(b"56789")
        async with asyncio.timeout(WAIT_S):
            assert b" 200 " in await reader.readline()
        assert upstream.requests[0].content == b"123456789"


async def test_contents_that_have_ended_leave_all_slots_to_others() -> None:
    cloud, content = Held(), b"y" * 400_000  # too much to be held: each needs a place before its end
    async with gateway(cloud, contentsquare={"max_concurrency": 4}) as proxy:
        [project] = proxy.app.projects()
        post = proxy.request(b"POST /v1/exports", b"Content-Length: %d" % len(content), body=content)
        answers = [asyncio.create_task(proxy.send(post)) for _ in range(4)]
        await until(lambda: len(cloud.tokens) == 4)
        assert (project.slots.in_use, project.slots.uploads.running) == (4, 0)
        cloud.go_on.set()
        assert [answer.status for answer in await asyncio.gather(*answers)] == [200] * 4


async def test_a_content_that_stays_away_while_it_waits_is_a_408() -> None:
    settings = {"max_concurrency": 2, "queue_timeout": 0.05}
    async with gateway(Upstream(), contentsquare=settings) as proxy:
        await upload_for_ever(proxy)
        answer = await proxy.call(b"POST /v1/exports", *SLOW, body=b"a")
        assert (answer.status, answer.error_code) == (408, "PROXY_REQUEST_TIMEOUT")
        assert answer.values(b"retry-after") == [b"1"]


async def test_who_is_passed_over_because_he_left_keeps_the_next_from_nothing() -> None:
    uploads, first = Uploads(), Content()
    await uploads.enter(first, 1, WAIT_S)
    gone, next_one = (asyncio.create_task(uploads.enter(Content(), 1, WAIT_S)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    uploads.leave(first)
    await asyncio.wait_for(next_one, WAIT_S)
    assert (uploads.running, uploads.waiting) == (1, 0)


async def test_a_malformed_content_waits_for_no_place() -> None:
    async with gateway(Upstream(), contentsquare={"max_concurrency": 2, "queue_timeout": 60}) as proxy:
        await upload_for_ever(proxy)
        async with asyncio.timeout(WAIT_S):
            answer = await proxy.call(b"POST /v1/exports", b"Transfer-Encoding: chunked", body=b"zz\r\n")
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")


async def test_who_waits_in_vain_for_a_place_and_isnt_read_from_is_not_blamed() -> None:
    settings = {"max_concurrency": 2, "queue_timeout": 0.2}
    async with gateway(Upstream(), contentsquare=settings) as proxy:
        await upload_for_ever(proxy)
        content = b"y" * 200_000
        answer = await proxy.call(b"POST /v1/exports", b"Content-Length: %d" % len(content), body=content)
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert answer.values(b"retry-after") == [b"2"]


async def test_who_waits_in_vain_for_a_place_and_for_a_100_is_not_blamed() -> None:
    settings = {"max_concurrency": 2, "queue_timeout": 0.2}
    async with gateway(Upstream(), contentsquare=settings) as proxy:
        await upload_for_ever(proxy)
        answer = await proxy.call(b"POST /v1/exports", b"Expect: 100-continue", *SLOW)
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
