"""What callers see of a way to the cloud that dies in silence, before an answer."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from support.harness import OK, WAIT_S, Upstream, gateway, read_message, until
from support.ways import hasty, kill_way, linux_only  # noqa: F401 - a fixture

from proxy.tokens import SystemClock


class Cloud:
    """Answers, except that the way of a request dies: of its first try, or of every one for ``always``."""

    def __init__(self) -> None:
        self.tries: Counter[bytes] = Counter()
        self.idle: asyncio.StreamWriter | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            target = (await read_message(reader)).start_line.split(b" ")[1]
            self.tries[target] += 1
            if target == b"/v1/fine":
                self.idle = writer
            elif target != b"/v1/reused" and (self.tries[target] == 1 or target == b"/v1/always"):
                kill_way(writer)
                continue
            writer.write(OK)


@linux_only
@pytest.mark.usefixtures("hasty")
async def test_a_request_that_changes_nothing_is_sent_once_more_on_a_new_connection() -> None:
    cloud = Cloud()
    async with gateway(cloud) as proxy:
        assert (await proxy.call(b"GET /v1/fine")).status == 200
        assert cloud.idle is not None
        kill_way(cloud.idle)
        # On the idle connection: the cloud hears only of its second try.
        first = asyncio.create_task(proxy.call(b"GET /v1/reused"))
        [project] = proxy.app.projects()
        await until(lambda: project.slots.in_use)
        reused, new, always, change = await asyncio.gather(
            first,
            proxy.call(b"GET /v1/new"),
            proxy.call(b"GET /v1/always"),
            proxy.call(b"POST /v1/change", b"Content-Length: 2", body=b"{}"),
        )
        assert (
            b'replays_total{project="shop",reason="stale"} 3' in (await proxy.call(b"GET /-/metrics")).content
        )
    assert (reused.status, new.status) == (200, 200)
    assert (always.status, always.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
    assert (change.status, change.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
    assert always.values(b"retry-after")
    assert not change.values(b"retry-after")
    assert b"The call may have been made" in change.body
    assert cloud.tries == {
        b"/v1/fine": 1,
        b"/v1/reused": 1,
        b"/v1/new": 2,
        b"/v1/always": 2,
        b"/v1/change": 1,
    }


class SleepyClock(SystemClock):
    """The machine's clocks, after a sleep of ``slept_s`` seconds."""

    slept_s = 0.0

    def time(self) -> float:
        return super().time() + self.slept_s


async def test_after_the_machine_slept_a_request_goes_out_on_a_new_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SleepyClock()
    monkeypatch.setattr("proxy.gateway.outward.SYSTEM_CLOCK", clock)
    monkeypatch.setattr("proxy.upstream.pool.SWEEP_S", 0.01)
    left = asyncio.Event()
    answer = Upstream()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            left.set()

    async with gateway(script) as proxy:
        for _ in range(2):
            assert (await proxy.call(b"GET /v1/x")).status == 200
            await asyncio.sleep(0.05)
        assert proxy.upstream.connections == 1
        clock.slept_s = 60.0
        await asyncio.wait_for(left.wait(), WAIT_S)
        assert (await proxy.call(b"GET /v1/x")).status == 200
        assert proxy.upstream.connections == 2
