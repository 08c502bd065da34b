"""`proxy.tokens.keeper`: when a token is fetched, kept, refused and replaced. The clock is a fake one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clocks import FakeClock, settle
from support.keeping import EU, HOUR, PERMANENT, TRANSIENT, Endpoint, Events, make_keeper, running

from proxy.errors import TokenFetchError, TokenUnavailable
from proxy.origin import Origin
from proxy.tokens import Lease, LeaseKeeper
from proxy.tokens.demand import Demand
from proxy.tokens.keeper import FORCED_REFRESH_GAP_S
from proxy.tokens.schedule import BACKOFF_S, MIN_REFRESH_S

US = Origin("https", "api.us-east-1.production.contentsquare.com", 443)


async def until_stale(keeper: LeaseKeeper, clock: FakeClock) -> None:
    while keeper.status().state != "stale":
        await clock.advance(0.25)


async def unavailable(waiting: Awaitable[Lease]) -> TokenUnavailable:
    with pytest.raises(TokenUnavailable) as caught:
        await waiting
    error = caught.value
    assert isinstance(error.retry_after_s, int)
    assert error.retry_after_s >= 1
    return error


# The first lease


async def test_the_first_lease_reaches_a_waiter() -> None:
    endpoint = Endpoint(FakeClock(), HOUR)
    keeper = make_keeper(endpoint)
    assert keeper.current() is None
    async with running(keeper):
        lease = await keeper.get(1)
    assert lease is keeper.current()
    assert lease.authorization == b"Bearer token-1"
    assert (lease.origin, lease.project_id) == (EU, 42)


async def test_a_thousand_waiters_cause_one_fetch() -> None:
    endpoint = Endpoint(FakeClock(), HOUR)
    endpoint.gate.clear()
    keeper = make_keeper(endpoint)
    async with running(keeper):
        waiters = [asyncio.create_task(keeper.get(5)) for _ in range(1000)]
        await settle()
        endpoint.gate.set()
        leases = await asyncio.gather(*waiters)
    assert len(endpoint.calls) == 1
    assert all(lease is leases[0] for lease in leases)


async def test_a_cancelled_waiter_cancels_neither_the_fetch_nor_the_others() -> None:
    endpoint = Endpoint(FakeClock(), HOUR)
    endpoint.gate.clear()
    keeper = make_keeper(endpoint)
    async with running(keeper):
        leaves, stays = (asyncio.create_task(keeper.get(5)) for _ in range(2))
        await settle()
        leaves.cancel()
        await settle()
        endpoint.gate.set()
        assert (await stays).access_token == "token-1"
    assert leaves.cancelled()
    assert len(endpoint.calls) == 1


async def test_a_waiter_is_told_after_its_time_and_when_to_come_back() -> None:
    endpoint = Endpoint(FakeClock(), HOUR)
    endpoint.gate.clear()
    keeper = make_keeper(endpoint)
    async with running(keeper):
        error = await unavailable(keeper.get(0.01))
    assert "shop-fr/metrics" in error.message
    assert "isn't answered yet" in error.message
    assert "under way" in error.message
    assert (error.code, error.status) == ("PROXY_TOKEN_UNAVAILABLE", 503)


async def test_a_refusal_is_told_to_the_waiters_at_once() -> None:
    endpoint = Endpoint(FakeClock(), PERMANENT)
    endpoint.gate.clear()
    keeper = make_keeper(endpoint)
    async with running(keeper):
        waiter = asyncio.create_task(keeper.get(3600))
        await settle()
        endpoint.gate.set()
        error = await unavailable(waiter)
        late = await unavailable(keeper.get(3600))
    assert str(PERMANENT) in error.message
    assert error.retry_after_s == late.retry_after_s == 60
    assert "the next try is in 60 s" in error.message


async def test_a_waiter_survives_a_transient_failure_that_is_over_in_time() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, TRANSIENT, HOUR)
    keeper = make_keeper(endpoint)
    async with running(keeper):
        waiter = asyncio.create_task(keeper.get(10))
        await clock.advance(1.0)
        assert (await waiter).access_token == "token-2"


async def test_a_waiter_is_told_at_once_that_the_next_try_comes_too_late() -> None:
    asked = TokenFetchError("slow down", cause="rate_limited", retry_after_s=120)
    keeper = make_keeper(Endpoint(FakeClock(), asked))
    async with running(keeper):
        error = await unavailable(keeper.get(100))
    assert error.retry_after_s is not None
    assert 120 <= error.retry_after_s <= 133


async def test_a_lone_get_without_a_running_keeper_ends_in_time() -> None:
    error = await unavailable(make_keeper(Endpoint(FakeClock(), HOUR)).get(0.01))
    assert "isn't answered yet" in error.message


# Keeping it fresh


async def test_a_lease_is_replaced_at_about_half_of_its_life_and_used_until_then(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    first = keeper.current()
    await clock.advance(1619)
    assert keeper.current() is first
    await clock.advance(362)
    second = keeper.current()
    assert len(endpoint.calls) == 2
    assert second is not first
    assert second is not None
    assert keeper.status().refreshes == 2


async def test_a_valid_lease_is_handed_out_while_its_refresh_hangs(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.gate.clear()
    await clock.advance(2000)
    assert endpoint.under_way == 1
    assert (await keeper.get(0)).access_token == "token-1"


async def test_token_and_endpoint_change_together(
    clock: FakeClock, endpoint: Endpoint, events: Events, keeper: LeaseKeeper
) -> None:
    endpoint.origin = US
    await clock.advance(2000)
    lease = keeper.current()
    assert lease is not None
    assert (lease.access_token, lease.origin) == ("token-2", US)
    changes = [values for event, values in events if event == "base_url_changed"]
    assert changes == [{"lease": "shop-fr/metrics", "endpoint": str(US), "before": str(EU)}]


async def test_an_outage_of_half_an_hour_goes_unnoticed(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    await clock.advance(1600)
    endpoint.script = [TRANSIENT]
    for _ in range(1800 // 5):
        await clock.advance(5)
        assert keeper.current() is not None
    assert keeper.status().state == "stale"
    endpoint.script = [HOUR]
    await clock.advance(60)
    assert keeper.status().state == "fresh"
    assert len(endpoint.calls) < 80


async def test_a_lease_outlives_failing_refreshes_until_its_margin_and_is_never_sent_after(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.script = [TRANSIENT]
    await clock.advance(HOUR - 30.1)
    assert keeper.current() is not None
    await clock.advance(0.2)
    assert keeper.current() is None
    error = await unavailable(keeper.get(0.0))
    assert str(TRANSIENT) in error.message
    assert keeper.status().state == "failing"


async def test_the_message_after_a_refresh_that_hangs_too_long_says_that_the_token_expired(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.gate.clear()
    await clock.advance(HOUR)
    error = await unavailable(keeper.get(0.0))
    assert "the last token expired" in error.message


async def test_a_refusal_of_the_credentials_leaves_the_valid_lease_in_use(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.script = [PERMANENT]
    await clock.advance(3000)
    status = keeper.status()
    assert keeper.current() is not None
    assert (status.state, status.permanent) == ("stale", True)
    await clock.advance(600)
    assert keeper.status().state == "refused"


async def test_a_refused_pair_is_tried_once_a_minute_at_most() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, PERMANENT)
    async with running(make_keeper(endpoint)):
        await clock.advance(HOUR)
    gaps = [after - before for before, after in zip(endpoint.calls, endpoint.calls[1:], strict=False)]
    assert min(gaps) >= 60
    assert 10 <= len(gaps) <= 18


async def test_five_second_lives_never_leave_a_gap() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, 5.0, takes_s=0.2)
    keeper = make_keeper(endpoint)
    async with running(keeper):
        await clock.advance(0.3)
        for _ in range(600):
            await clock.advance(0.1)
            assert keeper.current() is not None
    assert 20 <= len(endpoint.calls) <= 45


async def test_a_short_life_survives_one_failed_refresh() -> None:
    clock = FakeClock()
    for seed in range(20):
        endpoint = Endpoint(clock, 5.0, TRANSIENT, 5.0)
        keeper = make_keeper(endpoint, seed=seed)
        async with running(keeper):
            for _ in range(60):
                await clock.advance(0.1)
                assert keeper.current() is not None


async def test_a_token_that_is_over_before_it_arrives_is_a_failure_and_replaces_nothing() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, HOUR, 0.5)
    keeper = make_keeper(endpoint)
    async with running(keeper):
        endpoint.takes_s = 2.0
        await clock.advance(2100)
        lease = keeper.current()
        assert lease is not None
        assert lease.access_token == "token-1"
        assert "took longer" in str(keeper.status().last_error)


async def test_a_fetch_that_takes_half_of_the_life_isnt_followed_by_another_at_once() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, 10.0, takes_s=6.0)
    async with running(make_keeper(endpoint)):
        await clock.advance(60)
    gaps = [after - before for before, after in zip(endpoint.calls, endpoint.calls[1:], strict=False)]
    assert min(gaps) >= 6.0 + MIN_REFRESH_S


async def test_retry_after_is_obeyed_up_to_five_minutes() -> None:
    clock = FakeClock()
    asked = TokenFetchError("slow down", cause="rate_limited", retry_after_s=100_000)
    endpoint = Endpoint(clock, asked)
    async with running(make_keeper(endpoint)):
        await clock.advance(299)
        assert len(endpoint.calls) == 1
        await clock.advance(32)
        assert len(endpoint.calls) == 2


async def test_a_thousand_keepers_started_together_spread_their_refreshes() -> None:
    clock = FakeClock()
    delays = []
    for seed in range(1000):
        keeper = make_keeper(Endpoint(clock, HOUR), seed=seed)
        async with running(keeper):
            delays.append(keeper.status().next_try_in_s or 0)
    minutes = [round(delay / 60) for delay in delays]
    assert max(minutes.count(minute) for minute in set(minutes)) < 250


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.floats(0.01, 200), st.sampled_from([TRANSIENT, PERMANENT])), min_size=1, max_size=12
    ),
    moves=st.lists(
        st.tuples(st.sampled_from(["run", "suspend", "back", "reject", "refresh"]), st.floats(0.01, 90)),
        max_size=25,
    ),
    seed=st.integers(0, 1000),
)
async def test_whatever_happens_no_expired_token_is_handed_out_and_nothing_spins(
    steps: list[float | TokenFetchError], moves: list[tuple[str, float]], seed: int
) -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, *steps)
    keeper = make_keeper(endpoint, seed=seed)
    awake_s = 0.0
    async with running(keeper):
        for move, seconds in moves:
            match move:
                case "run":
                    await clock.advance(seconds)
                    awake_s += seconds
                case "suspend":
                    clock.suspend(seconds)
                case "back":
                    clock.wall -= seconds
                case "refresh":
                    keeper.refresh_now()
                case _:
                    if (lease := keeper.current()) is not None:
                        keeper.reject(lease)
            if (lease := keeper.current()) is not None:
                assert clock.now < lease.received_at + lease.lifetime_s
                assert clock.wall < lease.expires_at.timestamp()
    assert len(endpoint.calls) <= 2 + awake_s / BACKOFF_S[0] + len(moves)


# A token that upstream refused


async def test_a_rejected_lease_is_out_of_use_and_replaced_at_once(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    lease = await keeper.get(1)
    await clock.advance(100)
    assert keeper.reject(lease)
    assert keeper.current() is None
    assert (await keeper.get(1)).access_token == "token-2"
    assert endpoint.calls == [1000.0, 1100.0]


async def test_five_401s_for_one_token_cause_one_refresh(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    lease = await keeper.get(1)
    await clock.advance(100)
    assert [keeper.reject(lease) for _ in range(3)] == [True] * 3
    await keeper.get(1)
    assert [keeper.reject(lease) for _ in range(2)] == [True] * 2
    await settle()
    assert len(endpoint.calls) == 2


async def test_a_late_401_for_an_old_token_leaves_the_fresh_one_alone(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    old = await keeper.get(1)
    await clock.advance(2000)
    fresh = keeper.current()
    assert keeper.reject(old)
    assert keeper.current() is fresh
    await settle()
    assert len(endpoint.calls) == 2


async def test_an_upstream_that_refuses_everything_forces_one_refresh_in_half_a_minute(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    await clock.advance(100)
    answers = []
    for _ in range(300):
        answers.append(keeper.reject(await keeper.get(1)))
        await clock.advance(1)
    assert len(endpoint.calls) == 1 + 300 / FORCED_REFRESH_GAP_S
    assert answers.count(True) == 300 / FORCED_REFRESH_GAP_S


async def test_a_lease_refused_again_within_the_gap_stays_in_use(
    clock: FakeClock, keeper: LeaseKeeper
) -> None:
    keeper.reject(await keeper.get(1))
    await clock.advance(2)
    second = await keeper.get(1)
    assert not keeper.reject(second)
    assert keeper.current() is second


async def test_a_rejected_lease_stays_out_of_use_when_its_replacement_fails(
    clock: FakeClock, endpoint: Endpoint, events: Events, keeper: LeaseKeeper
) -> None:
    endpoint.script = [PERMANENT]
    lease = await keeper.get(1)
    await clock.advance(10)
    assert keeper.reject(lease)
    waiter = asyncio.create_task(keeper.get(3600))
    error = await unavailable(waiter)
    assert keeper.current() is None
    assert str(PERMANENT) in error.message
    assert events[-1][1]["token_usable_for_s"] == 0


async def test_the_message_after_a_401_says_that_the_token_was_refused(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    lease = await keeper.get(1)
    await clock.advance(10)
    endpoint.gate.clear()
    keeper.reject(lease)
    assert keeper.status().state == "fetching"
    error = await unavailable(keeper.get(0.01))
    assert "refused the last token" in error.message


async def test_a_401_doesnt_break_the_pause_that_the_token_endpoint_asked_for(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    asked = TokenFetchError("slow down", cause="rate_limited", retry_after_s=100)
    endpoint.script = [asked, HOUR]
    await until_stale(keeper, clock)
    lease = keeper.current()
    assert lease is not None
    assert keeper.reject(lease)
    keeper.refresh_now()
    await clock.advance(5)
    assert len(endpoint.calls) == 2
    await clock.advance(110)
    assert keeper.current() is not None
    assert len(endpoint.calls) == 3


async def test_rejecting_after_the_keeper_ended_does_nothing_bad() -> None:
    clock = FakeClock()
    keeper = make_keeper(Endpoint(clock, HOUR))
    async with running(keeper):
        lease = await keeper.get(1)
    keeper.reject(lease)
    keeper.refresh_now()


# A cloud that can't be reached


async def test_an_unreachable_cloud_makes_a_fetch_now_and_then_while_the_endpoint_stays(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.script = [1e5]
    keeper.refresh_now()
    await clock.advance(10)
    began_at = clock.now
    for _ in range(6000):
        keeper.note_unreachable(await keeper.get(0))
        await clock.advance(1)
    gaps = [after - before for before, after in pairwise(at for at in endpoint.calls if at >= began_at)]
    assert gaps[:7] == pytest.approx([30, 60, 120, 240, 480, 600, 600], abs=1)
    assert min(gaps[4:]) >= 480


async def test_an_endpoint_that_changed_is_left_again_just_as_soon(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    endpoint.script = [1e5]
    for _ in range(400):
        keeper.note_unreachable(await keeper.get(1))
        await clock.advance(1)
    endpoint.origin = US
    before = len(endpoint.calls)
    for _ in range(240):
        keeper.note_unreachable(await keeper.get(1))
        await clock.advance(1)
    moved_at = endpoint.calls[before]
    assert keeper.status().endpoint == str(US)
    assert endpoint.calls[before + 1] - moved_at == pytest.approx(30, abs=2)


async def test_a_late_failure_on_an_old_endpoint_and_one_of_a_retired_lease_change_nothing(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    old = await keeper.get(1)
    await clock.advance(2000)
    keeper.note_unreachable(old)
    keeper.retire()
    keeper.note_unreachable(await keeper.get(1))
    await clock.advance(100)
    assert len(endpoint.calls) == 2


# Asked for by a person


async def test_refresh_now_fetches_though_nothing_is_due_and_the_old_lease_serves_meanwhile(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    await clock.advance(10)
    endpoint.gate.clear()
    keeper.refresh_now()
    await settle()
    assert (len(endpoint.calls), keeper.current() is not None) == (2, True)
    endpoint.gate.set()
    await settle()
    assert keeper.status().refreshes == 2


async def test_refresh_now_ends_the_long_pause_after_a_refusal() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, PERMANENT, HOUR)
    keeper = make_keeper(endpoint)
    async with running(keeper):
        await clock.advance(10)
        keeper.refresh_now()
        assert (await keeper.get(1)).access_token == "token-2"


async def test_refresh_now_in_a_loop_makes_one_fetch_a_second(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    for _ in range(100):
        keeper.refresh_now()
        await clock.advance(0.1)
    assert 9 <= len(endpoint.calls) <= 11


async def test_refresh_now_twice_in_a_row_is_one_refresh_and_no_accident(
    clock: FakeClock, endpoint: Endpoint, keeper: LeaseKeeper
) -> None:
    await clock.advance(10)
    for _ in range(10):
        keeper.refresh_now()
        keeper.refresh_now()
        await asyncio.sleep(0)
    assert len(endpoint.calls) == 2


async def test_refresh_now_never_postpones_a_try() -> None:
    clock = FakeClock()
    for seed in range(20):
        endpoint = Endpoint(clock, TRANSIENT)
        keeper = make_keeper(endpoint, seed=seed)
        async with running(keeper):
            due_in = keeper.status().next_try_in_s
            keeper.refresh_now()
            assert keeper.status().next_try_in_s == due_in


async def test_refresh_now_during_a_fetch_makes_no_second_one() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, HOUR)
    endpoint.gate.clear()
    keeper = make_keeper(endpoint)
    async with running(keeper):
        keeper.refresh_now()
        endpoint.gate.set()
        await clock.advance(10)
    assert len(endpoint.calls) == 1


# Bugs and words


async def test_a_bug_in_fetch_ends_the_keeper_loudly() -> None:
    async def fetch() -> Lease:
        raise ZeroDivisionError

    keeper = LeaseKeeper(fetch, name="x", clock=FakeClock())
    with pytest.raises(ZeroDivisionError):
        await keeper.run()


async def test_cancelling_ends_the_keeper_also_during_a_fetch() -> None:
    endpoint = Endpoint(FakeClock(), HOUR)
    endpoint.gate.clear()
    async with running(make_keeper(endpoint)) as task:
        assert endpoint.under_way == 1
    assert task.cancelled()
    assert endpoint.under_way == 0


async def test_the_status_tells_the_whole_story_without_the_token() -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, HOUR, TRANSIENT, HOUR)
    keeper = make_keeper(endpoint)
    before = keeper.status()
    assert (before.state, before.usable, before.endpoint, before.seconds_left) == (
        "fetching",
        False,
        None,
        None,
    )
    async with running(keeper):
        await clock.advance(100)
        fresh = keeper.status()
        assert (fresh.state, fresh.endpoint, fresh.seconds_left) == ("fresh", str(EU), 3500.0)
        assert fresh.expires_at == datetime.fromtimestamp(1_800_003_600, UTC)
        assert (fresh.last_error, fresh.failures_in_a_row) == (None, 0)
        await until_stale(keeper, clock)
        stale = keeper.status()
        assert (stale.state, stale.failures_in_a_row, stale.last_error) == ("stale", 1, str(TRANSIENT))
        assert stale.last_error_at is not None
        await clock.advance(2)
        overcome = keeper.status()
        assert (overcome.state, overcome.refreshes, overcome.failures_in_a_row) == ("fresh", 2, 0)
        assert overcome.last_error == str(TRANSIENT)
    for status in (before, fresh, stale, overcome):
        assert "token-" not in repr(status)


async def test_events_are_told_with_their_values_and_without_the_token(
    clock: FakeClock, endpoint: Endpoint, events: Events, keeper: LeaseKeeper
) -> None:
    endpoint.script = [PERMANENT]
    await until_stale(keeper, clock)
    lease = keeper.current()
    assert lease is not None
    keeper.reject(lease)
    assert [event for event, _ in events] == ["token_fetched", "token_fetch_failed", "token_rejected"]
    assert events[0][1]["endpoint"] == str(EU)
    assert events[1][1]["cause"] == "credentials_refused"
    assert events[1][1]["permanent"] is True
    assert all(values["lease"] == "shop-fr/metrics" for _, values in events)
    assert "token-" not in repr(events)


def test_only_the_fetch_and_the_clock_are_asked_of_the_composition_root() -> None:
    fetch: Callable[[], Awaitable[Lease]] = Endpoint(FakeClock(), HOUR).fetch
    assert LeaseKeeper(fetch, name="x").current() is None


# Leases that are fetched when a request needs them


@pytest.mark.parametrize(
    ("answer", "state"), [(PERMANENT, "refused"), (TRANSIENT, "failing"), (HOUR, "idle")]
)
async def test_a_lease_that_no_request_needs_any_more_still_tells_of_its_failure(
    answer: float | TokenFetchError, state: str
) -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, answer)
    demand = Demand(lambda: False, lambda: 0, lambda: False, lambda: clock.now)
    keeper = LeaseKeeper(endpoint.fetch, name="shop/metrics", clock=clock, demand=demand)
    async with running(keeper):
        for _ in range(200):
            await clock.advance(60)
        status = keeper.status()
        assert (status.state, status.next_try_in_s) == (state, float("inf"))
        if state == "idle":
            return
        assert str(answer) == status.last_error
        asked = len(endpoint.calls)
        keeper.refresh_now()  # a person asks for it
        await clock.advance(60)
        await clock.advance(600)
        assert len(endpoint.calls) == asked + 1


@pytest.mark.parametrize("seconds", [HOUR, 8 * HOUR])
async def test_the_first_request_after_a_suspend_gets_a_lease_also_where_none_was_needed_for_long(
    seconds: float,
) -> None:
    clock = FakeClock()
    endpoint = Endpoint(clock, HOUR)
    requests: list[str] = []
    demand = Demand(lambda: False, lambda: 0, lambda: bool(requests), lambda: clock.now)
    keeper = LeaseKeeper(endpoint.fetch, name="shop/metrics", clock=clock, demand=demand)
    async with running(keeper):
        while keeper.status().is_wanted:
            await clock.advance(60)
        assert keeper.current() is not None
        clock.suspend(seconds)
        await clock.advance(60)  # the suspend is noticed, and no request needs a lease
        assert (keeper.status().state, keeper.status().next_try_in_s) == ("idle", float("inf"))
        requests.append("GET")
        assert await keeper.get(1) is keeper.current()
