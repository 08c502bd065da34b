"""`proxy.projects.leases`: which are kept fresh; the log redacts the tokens in use, and the last ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from support.clocks import FakeClock
from support.keeping import HOUR, Endpoint

from proxy.contentsquare import Api
from proxy.logs.setup import redactor
from proxy.projects.leases import REDACTED_TOKENS, Leases, RedactedTokens
from proxy.tokens import Lease
from proxy.tokens.demand import IDLE_LIVES, Demand

TOKENS = [f"token-number-{number}-of-this-test" for number in range(REDACTED_TOKENS + 1)]


@pytest.fixture
def tokens() -> Iterator[RedactedTokens]:
    made = RedactedTokens()
    yield made
    made.clear()


def hidden(token: str) -> bool:
    return token not in redactor.redact(f"the token {token} was refused")


def test_the_last_tokens_of_each_api_are_redacted(tokens: RedactedTokens) -> None:
    for token in TOKENS:
        tokens.add(Api.METRICS, token)
    tokens.add(Api.SURVEYS, "token-of-the-surveys")
    assert [hidden(token) for token in TOKENS] == [False, *[True] * REDACTED_TOKENS]
    assert hidden("token-of-the-surveys")


def test_a_token_that_two_projects_use_is_redacted_until_neither_does(tokens: RedactedTokens) -> None:
    tokens.add(Api.METRICS, TOKENS[0])
    successor = RedactedTokens()
    successor.add_all(tokens)
    tokens.clear()
    assert hidden(TOKENS[0])
    successor.clear()
    assert not hidden(TOKENS[0])


async def test_an_inherited_token_that_no_request_needs_is_usable_until_its_end_only() -> None:
    clock, tasks = FakeClock(), list[asyncio.Task[None]]()
    endpoint = Endpoint(clock, HOUR)

    async def fetch(_: Api) -> Lease:
        return await endpoint.fetch()

    before, after = (
        Leases(
            "acme/42",
            fetch,
            outage=lambda: None,
            demand=lambda _: Demand(lambda: False, lambda: 1, lambda: False, clock.monotonic),
            spawn=lambda work: tasks.append(asyncio.create_task(work)),
            clock=clock,
            on_event=lambda *_: None,
        )
        for _ in range(2)
    )
    before.make(Api.METRICS)
    await clock.advance(1)
    after.inherit(before)
    assert before.any_usable
    assert after.any_usable
    await clock.advance(4 * HOUR)
    assert not before.any_usable
    assert not after.any_usable
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for leases in (before, after):
        leases.forget_tokens()


async def test_in_a_day_a_replica_fetches_tokens_only_for_what_requests_use() -> None:
    clock = FakeClock()
    endpoints: dict[Api, Endpoint] = {}
    uses: Counter[Api] = Counter()
    tasks: list[asyncio.Task[None]] = []

    async def fetch(api: Api) -> Lease:
        return await endpoints.setdefault(api, Endpoint(clock, HOUR)).fetch()

    leases = Leases(
        "shop",
        fetch,
        outage=lambda: None,
        demand=lambda api: Demand(
            lambda: api is Api.METRICS, lambda: uses[api], lambda: False, clock.monotonic
        ),
        spawn=lambda work: tasks.append(asyncio.create_task(work)),
        clock=clock,
        on_event=lambda *_: None,
    )
    start, at_its_end = clock.now, dict[tuple[Api, bool], float]()
    for api in (Api.METRICS, Api.SURVEYS, Api.DATA_EXPORT):  # the first stands in apis
        leases.make(api)
    for _ in range(24 * 6):
        uses[Api.SURVEYS] += clock.now - start < 6 * HOUR  # every ten minutes for six hours
        await clock.advance(HOUR / 6)
        for api, keeper in leases.keepers.items():
            status = keeper.status()
            at_its_end[api, status.is_wanted] = min(
                status.seconds_left or 0.0, at_its_end.get((api, status.is_wanted), HOUR)
            )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    leases.forget_tokens()

    # A refresh is due at half of a lifetime, 10 % sooner or later, and the first lease is there at once.
    kept, used, once = (
        [(at - start) / HOUR for at in endpoints[api].calls]
        for api in (Api.METRICS, Api.SURVEYS, Api.DATA_EXPORT)
    )
    assert 24 / 0.55 - 1 <= len(kept) <= 24 / 0.45 + 2
    assert 6 <= used[-1] < 6 + IDLE_LIVES + 0.6
    assert once[-1] < IDLE_LIVES + 0.01
    assert 4 <= len(once) <= 5
    # README's alert at 1500 s is about tokens that are kept fresh: the others end without an alert.
    assert all(left_s > 1500 for (_, is_wanted), left_s in at_its_end.items() if is_wanted)
    assert at_its_end[Api.SURVEYS, False] == at_its_end[Api.DATA_EXPORT, False] == 0
    assert (Api.METRICS, False) not in at_its_end
