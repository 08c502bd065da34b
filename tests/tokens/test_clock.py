"""`proxy.tokens.clock`: what a keeper does about clocks that jump, drift, or stand still."""

from __future__ import annotations

from datetime import UTC, datetime

from support.clocks import FakeClock, settle
from support.keeping import HOUR, TRANSIENT, Endpoint, Events, make_keeper, running

from proxy.errors import TokenFetchError
from proxy.tokens import SYSTEM_CLOCK, LeaseKeeper
from proxy.tokens.clock import CLOCK_JUMP_S, SuspendWatch
from proxy.tokens.keeper import SLICE_S


async def test_sleeps_come_in_short_slices(clock: FakeClock, keeper: LeaseKeeper) -> None:
    await clock.advance(1000)
    assert clock.longest_sleep <= SLICE_S


async def test_after_a_suspend_the_lease_is_refreshed_within_a_slice(
    clock: FakeClock, endpoint: Endpoint, events: Events, keeper: LeaseKeeper
) -> None:
    await clock.advance(60)
    clock.suspend(1200)
    await clock.advance(SLICE_S)
    assert len(endpoint.calls) == 2
    await clock.advance(60)
    assert len(endpoint.calls) == 2
    assert [values["by_s"] for event, values in events if event == "clock_jumped"] == [1200.0]


async def test_a_request_right_after_a_long_suspend_gets_a_new_token_without_waiting_for_the_slice(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    await clock.advance(61)
    clock.suspend(2 * HOUR)
    assert keeper.current() is None
    assert (await keeper.get(1)).access_token == "token-2"
    assert endpoint.calls[1] == 1061.0


async def test_requests_after_a_suspend_dont_hammer_an_endpoint_that_is_away(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.script = [TRANSIENT]
    await clock.advance(60)
    clock.suspend(2 * HOUR)
    for _ in range(100):
        assert keeper.current() is None
        await settle()
    assert len(endpoint.calls) == 2
    assert keeper.status().state == "failing"


async def test_a_short_suspend_is_enough_to_replace_a_short_life_at_once() -> None:
    clock = FakeClock()
    keeper = make_keeper(Endpoint(clock, 5.0))
    async with running(keeper):
        await clock.advance(1.1)
        clock.suspend(6)
        assert keeper.current() is None
        assert (await keeper.get(1)).access_token == "token-2"


async def test_a_suspend_outlasts_the_pause_that_the_token_endpoint_asked_for_and_is_told_once() -> None:
    clock = FakeClock()
    events: Events = []
    asked = TokenFetchError("slow down", cause="rate_limited", retry_after_s=200)
    endpoint = Endpoint(clock, asked)
    async with running(make_keeper(endpoint, events)):
        await clock.advance(20)
        clock.suspend(60)
        await clock.advance(40)
        assert len(endpoint.calls) == 1
        clock.suspend(150)
        await clock.advance(SLICE_S)
    assert len(endpoint.calls) == 2
    assert [values["by_s"] for event, values in events if event == "clock_jumped"] == [60.0, 150.0]


async def test_clocks_that_drift_apart_slowly_are_no_suspend(
    clock: FakeClock, events: Events, keeper: LeaseKeeper
) -> None:
    for _ in range(200):
        await clock.advance(600)
        clock.wall += 0.3
    assert "clock_jumped" not in [event for event, _ in events]


async def test_many_short_suspends_add_up(clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper) -> None:
    for _ in range(4):
        clock.suspend(4)
        await clock.advance(20)
    assert len(endpoint.calls) == 2


async def test_a_wall_clock_put_back_neither_extends_a_life_nor_causes_a_refresh(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.script = [TRANSIENT]
    clock.wall -= HOUR
    await clock.advance(1500)
    assert len(endpoint.calls) == 1
    await clock.advance(HOUR - 30 - 1500)
    assert keeper.current() is None


async def test_a_suspend_is_noticed_though_the_wall_clock_was_put_back_before(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    clock.wall -= HOUR
    await clock.advance(30)
    clock.suspend(600)
    await clock.advance(SLICE_S)
    assert len(endpoint.calls) == 2


async def test_the_systems_clock_is_the_default() -> None:
    before = SYSTEM_CLOCK.monotonic()
    await SYSTEM_CLOCK.sleep(0.001)
    assert SYSTEM_CLOCK.monotonic() > before
    assert abs(SYSTEM_CLOCK.time() - datetime.now(UTC).timestamp()) < 5


def test_the_watch_tells_each_jump_once_and_none_below_its_threshold(clock: FakeClock) -> None:
    watch = SuspendWatch(clock)
    clock.suspend(CLOCK_JUMP_S - 0.1)
    assert watch.jump_s() == 0
    clock.suspend(0.1)
    assert watch.jump_s() == CLOCK_JUMP_S
    assert watch.jump_s() == 0
    clock.suspend(CLOCK_JUMP_S)
    watch.restart()
    assert watch.jump_s() == 0
