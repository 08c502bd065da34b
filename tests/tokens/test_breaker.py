"""`proxy.tokens.breaker`: one outage of the token endpoint, noticed once for all leases. In virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from support.crowd import in_virtual_time
from support.keeping import HOUR
from support.outages import LATENCY_S, NO_ANSWER, Answer, World, answered, no_answer

from proxy.errors import TokenFetchError, TokenNotWanted, TokenUnavailable
from proxy.tokens import Lease
from proxy.tokens.breaker import BURST, GAP_S, HURRY_GAP_S, LATE_S, PROBE_LIMIT_S, RATE, ROOM, NamedBy

OUTAGES = [*map(no_answer, NO_ANSWER), *map(answered, (502, 503, 504))]
"""Failures that open the breaker at once."""


def simulate(live: Callable[[World], Awaitable[None]]) -> World:
    """Let ``live`` pass in virtual time. Returns what is left of its world."""

    async def main() -> World:
        async with World() as world:
            await live(world)
            return world

    return in_virtual_time(main())


def named(error: TokenFetchError) -> str:
    return str(error.status or error.cause)


def events(world: World, name: str) -> int:
    return sum(event == name for event, _ in world.log.lines)


# A thousand leases


@pytest.mark.parametrize(
    "outage", [*map(no_answer, ("connection_refused", "timeout")), answered(503), answered(500)], ids=named
)
def test_a_thousand_leases_come_through_an_outage_at_their_start(outage: TokenFetchError) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: outage
        world.keep(*(f"project-{number}" for number in range(1000)))
        await asyncio.sleep(120)
        assert len(world.begun) <= 60
        assert {keeper.status().state for keeper in world.keepers.values()} == {"failing"}
        assert all(str(outage) in str(keeper.status().last_error) for keeper in world.keepers.values())
        world.answer = lambda _: HOUR
        assert await world.ready_after_s() <= 15
        assert world.most_in_a_second() <= 100
        assert len(world.begun) <= 1060
        await asyncio.sleep(60)

    world = simulate(live)
    assert len(world.log.lines) <= 20, world.log.lines
    assert events(world, "token_endpoint_failed") == events(world, "token_endpoint_recovered") == 1


def test_a_thousand_leases_that_are_well_get_their_tokens_at_a_bounded_rate() -> None:
    async def live(world: World) -> None:
        world.keep(*(f"project-{number}" for number in range(1000)))
        assert await world.ready_after_s() <= 1000 / RATE + 1
        assert world.most_in_a_second() <= RATE + BURST + 1
        assert world.most_under_way <= ROOM[1]

    assert not events(simulate(live), "token_endpoint_failed")


def test_a_silent_endpoint_keeps_no_lease_waiting_when_it_answers_again() -> None:
    """The fewer leases there are, the more of them wait for an answer that never comes."""
    for ms in range(0, 3000, 100):

        async def live(world: World, during_s: float = 120 + ms / 1000) -> None:
            world.answer = lambda _: no_answer("timeout")
            world.keep("only", "wrong")
            await asyncio.sleep(during_s)
            world.answer = lambda name: HOUR if name == "only" else answered(500)
            assert await world.ready_after_s("only") <= 15

        simulate(live)


# A wrong secret


@pytest.mark.parametrize(
    ("outage", "during_s", "before_s", "life_s"),
    [  # each two values meet
        pytest.param(outage, during_s, 90 * ((row + turn) % 2), (HOUR, 20.0)[(row // 2 + turn) % 2])
        for row, outage in enumerate([*OUTAGES, answered(500)])
        for turn, during_s in enumerate((1, 30, 120))
    ],
    ids=lambda value: named(value) if isinstance(value, TokenFetchError) else str(value),
)
def test_a_wrong_secret_that_gets_500_keeps_no_other_lease_from_its_token(
    outage: TokenFetchError, during_s: float, before_s: float, life_s: float
) -> None:
    good = ("good-1", "good-2")

    async def live(world: World) -> None:
        def well(name: str) -> Answer:
            return life_s if name in good else answered(500)

        world.answer = well if before_s else lambda name: outage if name in good else answered(500)
        world.keep("wrong", *good)
        await asyncio.sleep(before_s)
        assert world.ready() == (2 if before_s else 0)
        world.answer = lambda name: outage if name in good else answered(500)
        await asyncio.sleep(during_s)
        world.answer = well
        assert await world.ready_after_s(*good) <= 15
        sent = len(world.begun)
        await asyncio.sleep(600)
        assert world.ready(*good) == 2
        wrong = [at for at, name in world.begun[sent:] if name == "wrong"]
        assert len(wrong) <= 60  # on its own, a wrong secret gets slow
        status = world.keepers["wrong"].status()
        assert status.state == "failing"
        assert "500" in str(status.last_error)

    simulate(live)


@pytest.mark.parametrize(("credentials", "opens"), [(1, False), (2, False), (3, True)])
def test_a_500_opens_the_breaker_only_if_three_credentials_get_it(credentials: int, *, opens: bool) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(500)
        for _ in range(4):
            for number in range(credentials):
                with pytest.raises(TokenFetchError):
                    await world.request(str(number))
        assert (world.breaker.outage is not None) == opens

    simulate(live)


@pytest.mark.parametrize("between", ["a success", "a minute"])
def test_500s_before_a_success_or_a_minute_ago_count_no_longer(between: str) -> None:
    async def live(world: World) -> None:
        for name in ("a", "b", "", "c", "d"):
            if name:
                world.answer = lambda _: answered(500)
                with pytest.raises(TokenFetchError):
                    await world.request(name)
            elif between == "a minute":
                await asyncio.sleep(61)
            else:
                world.answer = lambda _: HOUR
                await world.request("good")
        assert world.breaker.outage is None

    simulate(live)


# What an outage is, and its end


@pytest.mark.parametrize("outage", OUTAGES, ids=named)
def test_one_failure_of_the_endpoint_holds_all_others_back(outage: TokenFetchError) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: outage
        with pytest.raises(TokenFetchError) as caught:
            await world.request("a")
        assert caught.value.is_outage
        assert world.breaker.outage is not None
        waiting = [asyncio.create_task(world.request(name)) for name in ("b", "c", "d")]
        await asyncio.sleep(GAP_S[0] / 2)
        assert len(world.begun) == 1
        world.answer = lambda _: HOUR
        await asyncio.gather(*waiting)
        assert world.breaker.outage is None

    simulate(live)


@pytest.mark.parametrize("status", [401, 429])
def test_a_refusal_and_a_429_are_about_their_own_credentials(status: int) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(status)
        for name in "abcdefgh":
            with pytest.raises(TokenFetchError) as caught:
                await world.request(name)
            assert not caught.value.is_outage
        assert world.breaker.outage is None

    assert not simulate(live).log.lines


def test_a_refused_lease_keeps_its_own_pace_and_reason_in_an_outage_of_others() -> None:
    async def live(world: World) -> None:
        world.answer = lambda name: answered(401 if name == "refused" else 503)
        world.keep("refused", "good-1", "good-2")
        await asyncio.sleep(120)
        assert [name for _, name in world.begun].count("refused") <= 3
        status = world.keepers["refused"].status()
        assert (status.state, status.permanent) == ("refused", True)
        assert world.keepers["good-1"].status().state == "failing"
        world.answer = lambda name: answered(401) if name == "refused" else HOUR
        assert await world.ready_after_s("good-1", "good-2") <= 15

    simulate(live)


@pytest.mark.parametrize("outage", OUTAGES, ids=named)
def test_one_request_at_a_time_tries_and_each_with_other_credentials(outage: TokenFetchError) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: outage
        names = ("a", "b", "c")
        world.keep(*names)
        await asyncio.sleep(20)
        began_at, world.most_under_way = world.clock.monotonic(), world.under_way
        await asyncio.sleep(60)
        sent = [name for at, name in world.begun if at >= began_at]
        assert world.repeats(began_at) == 0
        assert max(map(sent.count, names)) - min(map(sent.count, names)) <= 1
        if NO_ANSWER.get(outage.cause, 0.0) < GAP_S[1]:
            assert world.most_under_way <= 1
            assert len(sent) >= 60 / GAP_S[1] - 1
        assert len(sent) <= 60 / (0.9 * GAP_S[1]) + 1

    simulate(live)


def test_new_credentials_are_tried_before_those_that_failed_already() -> None:
    async def live(world: World) -> None:
        world.answer = lambda name: HOUR if name == "good" else answered(500)
        world.keep(*(f"wrong-{number}" for number in range(5)))
        await asyncio.sleep(60)
        assert world.breaker.outage is not None
        world.keep("good")
        assert await world.ready_after_s("good") <= GAP_S[1] + 1

    simulate(live)


def test_a_late_answer_to_a_slow_request_still_closes_the_breaker() -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: no_answer("connection_refused")
        with pytest.raises(TokenFetchError):
            await world.request("a")

        async def slow() -> None:
            await asyncio.sleep(10)

        tasks = [asyncio.create_task(world.breaker.run(name, slow)) for name in "bc"]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert world.breaker.outage is None
        await asyncio.gather(*tasks)

    simulate(live)


async def left_without_answer(world: World) -> asyncio.Task[Lease]:
    """The request "b", which has begun in an outage that "a" found, and gets no answer."""
    world.answer = lambda _: no_answer("connection_refused")
    with pytest.raises(TokenFetchError):
        await world.request("a")
    world.answer = lambda _: no_answer("timeout")
    left = asyncio.create_task(world.request("b"))
    while len(world.begun) < 2:
        await asyncio.sleep(0.01)
    return left


def test_a_request_that_an_outage_left_without_answer_is_sent_again_after_its_end() -> None:
    async def live(world: World) -> None:
        left = await left_without_answer(world)
        await asyncio.sleep(1)
        world.answer = lambda _: HOUR
        await world.request("c")
        assert world.breaker.outage is None
        closed_at = world.clock.monotonic()
        await left
        assert world.clock.monotonic() - closed_at <= LATE_S + 1
        assert [name for _, name in world.begun] == ["a", "b", "c", "b"]

    simulate(live)


def test_an_outage_may_end_in_the_moment_in_which_another_request_takes_too_long() -> None:
    async def live(world: World) -> None:
        left = await left_without_answer(world)
        ends_at = world.begun[1][0] + PROBE_LIMIT_S - 5e-10  # in the same turn of the loop, and before it

        async def call() -> str:
            await asyncio.sleep(ends_at - world.clock.monotonic())
            return "answered"

        assert await world.breaker.run("c", call) == "answered"
        assert world.breaker.outage is None
        world.answer = lambda _: HOUR
        with contextlib.suppress(TokenFetchError):
            await left

    simulate(live)


def test_the_retry_after_of_a_503_is_obeyed() -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(503, retry_after_s=40)
        world.keep("a", "b")
        await asyncio.sleep(39)
        assert len(world.begun) <= 2
        world.answer = lambda _: HOUR
        assert await world.ready_after_s() <= 3

    simulate(live)


@pytest.mark.parametrize("asked_for", [1, 50])
def test_a_person_has_the_endpoint_tried_at_most_once_a_second(asked_for: int) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(503)
        world.keep("a", "b", "c")
        await asyncio.sleep(60)
        sent, began_at = len(world.begun), world.clock.monotonic()
        for _ in range(asked_for):
            world.breaker.hurry("b")
            await asyncio.sleep(0.1)
        took_s = world.clock.monotonic() - began_at
        assert len(world.begun) - sent <= took_s / HURRY_GAP_S + 1
        if asked_for > 1:
            assert [name for _, name in world.begun[sent:]].count("b") >= 4

    simulate(live)


def test_a_success_that_a_person_asked_for_wakes_all() -> None:
    """Also while another request is under way, which fails."""
    for ms in range(0, 3000, 50):

        async def live(world: World, during_s: float = 60 + ms / 1000) -> None:
            world.answer = lambda _: answered(503)
            world.keep("a", "b", "c")
            await asyncio.sleep(during_s)
            world.answer = lambda _: HOUR
            world.breaker.hurry("b")
            assert await world.ready_after_s() <= HURRY_GAP_S + 3 * LATENCY_S

        simulate(live)


# Callers, and requests that end early


def test_callers_wait_for_the_end_of_a_young_outage_and_are_told_at_once_in_an_old_one() -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(503)
        world.keep("a")
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(world.keepers["a"].get(10))
        await asyncio.sleep(2)
        world.answer = lambda _: HOUR
        assert (await waiting).access_token == "token"
        world.answer = lambda _: answered(503)
        world.keep("b")
        await asyncio.sleep(30)
        began_at = world.clock.monotonic()
        with pytest.raises(TokenUnavailable) as caught:
            await world.keepers["b"].get(10)
        assert world.clock.monotonic() == began_at
        assert "answered 503" in caught.value.message
        assert "tried again every few seconds" in caught.value.message
        assert caught.value.retry_after_s

    simulate(live)


def test_a_lease_in_use_is_fresh_in_an_outage_until_its_own_refresh_has_to_wait() -> None:
    async def live(world: World) -> None:
        world.keep("early")
        await asyncio.sleep(1000)
        world.keep("late")
        await world.ready_after_s()
        world.answer = lambda _: answered(503)
        await asyncio.sleep(1100)
        assert world.keepers["early"].status().state == "stale"
        late = world.keepers["late"].status()
        assert (late.state, late.last_error) == ("fresh", None)

    simulate(live)


@pytest.mark.parametrize("when", ["waiting", "at its turn", "under way"])
def test_a_request_that_is_cancelled_holds_nothing_up(when: str) -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(503)
        with pytest.raises(TokenFetchError):
            await world.request("a")
        tasks = [asyncio.create_task(world.request("a")) for _ in range(20)]
        await asyncio.sleep(0 if when == "waiting" else GAP_S[0])
        if when == "under way":
            await asyncio.sleep(LATENCY_S / 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        world.answer = lambda _: HOUR
        await asyncio.gather(*(world.request(name) for name in "abcdefghijkl"))
        assert world.under_way == 0

    simulate(live)


# New requests: for ids that never got a token


def named_by(*callers: str) -> NamedBy:
    """The callers that named a new request's id."""
    named = NamedBy()
    for caller in callers:
        named.add(caller)
    return named


def test_new_requests_wait_for_others_have_little_room_and_are_not_sent_in_vain() -> None:
    sent: list[str] = []

    async def live(world: World) -> None:
        async def call(name: str) -> None:
            sent.append(name)
            await asyncio.sleep(5)

        async def new(number: int) -> None:
            with contextlib.suppress(TokenNotWanted):
                await world.breaker.run(
                    "acme",
                    lambda: call(f"new-{number}"),
                    new_for=named_by("mallory"),
                    is_wanted=lambda: number < 10,
                )

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(new(number))
            await asyncio.sleep(1)
            assert sent == ["new-0", "new-1"]  # a quarter of the room
            await world.breaker.run("acme", lambda: call("proven"))
            assert sent[2] == "proven"

    simulate(live)
    assert sorted(sent) == sorted(["proven", *(f"new-{number}" for number in range(10))])


def new_requests(
    world: World, group: asyncio.TaskGroup, sent: list[str], credentials: str, names: list[str], *callers: str
) -> None:
    """New requests for these ids, which are answered with a refusal after 2 s."""

    async def refused(name: str) -> None:
        sent.append(name)
        await asyncio.sleep(2)
        raise answered(403)

    async def new(name: str) -> None:
        with contextlib.suppress(TokenFetchError):
            await world.breaker.run(credentials, lambda: refused(name), new_for=named_by(*callers))

    for name in names:
        group.create_task(new(name))


@pytest.mark.parametrize("account", ["acme", "other"])
def test_a_caller_with_many_new_ids_does_not_delay_the_new_id_of_another_caller(account: str) -> None:
    sent: list[str] = []

    async def live(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            for other in ("acme", "else"):
                names = [f"{other}-{number}" for number in range(64)]
                new_requests(world, group, sent, other, names, "mallory")
            await asyncio.sleep(1)
            assert len(sent) == 2  # a quarter of the room, with all of the caller's accounts
            new_requests(world, group, sent, account, ["first", "second", "third"], "alice")
            await asyncio.sleep(0.1)
            assert sent[2:] == ["first", "second"]

    simulate(live)
    assert len(sent) == len(set(sent)) == 131


def test_callers_take_turns_at_new_ids_where_all_of_their_room_is_taken() -> None:
    sent: list[str] = []

    async def live(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            for caller in ("mallory", "malice"):
                names = [f"{caller}-{number}" for number in range(64)]
                new_requests(world, group, sent, "acme", names, caller)
            await asyncio.sleep(1)
            assert len(sent) == 4
            for caller in ("alice", "bob"):
                new_requests(
                    world, group, sent, "acme", [f"{caller}-{number}" for number in range(2)], caller
                )
            await asyncio.sleep(1.5)  # the next answers have come
            assert sorted(sent[4:6]) == ["alice-0", "bob-0"]

    simulate(live)


def test_an_id_that_several_callers_named_takes_the_first_turn_of_any_of_them() -> None:
    sent: list[str] = []

    async def live(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            new_requests(world, group, sent, "acme", [f"flood-{number}" for number in range(64)], "mallory")
            callers = named_by("mallory")

            async def shared() -> None:
                sent.append("shared")

            group.create_task(world.breaker.run("acme", shared, new_for=callers))
            await asyncio.sleep(1)
            assert "shared" not in sent
            callers.add("alice")
            await asyncio.sleep(0.1)
            assert sent[2:] == ["shared"]

    simulate(live)


def test_in_an_outage_the_callers_of_new_ids_take_turns_too() -> None:
    async def live(world: World) -> None:
        world.answer = lambda _: answered(503)
        with pytest.raises(TokenFetchError):
            await world.request("acme")
        sent: list[str] = []
        async with asyncio.TaskGroup() as group:
            new_requests(world, group, sent, "acme", [f"flood-{number}" for number in range(64)], "mallory")
            await asyncio.sleep(7)
            before = len(sent)
            assert before
            new_requests(world, group, sent, "acme", ["first"], "alice")
            await asyncio.sleep(2 * GAP_S[1])
            assert "first" in sent[: before + 2]

    simulate(live)
