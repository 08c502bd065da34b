"""Leases and projects that pass from one configuration to the next: what is inherited, and what retires."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from support.harness import WAIT_S, until

from proxy.errors import TokenFetchError, TokenUnavailable
from proxy.origin import Origin
from proxy.tokens import Lease, LeaseKeeper, SystemClock

ORIGIN = Origin.parse("http://127.0.0.1:1")


class Clock(SystemClock):
    """The machine's clocks, which tests put forward; a sleep ends when a test says so."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s

    def time(self) -> float:
        return super().time() + self.ahead_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))


class Source:
    """Makes leases, ``token-1`` and so on, or fails."""

    def __init__(self, clock: Clock, lifetime_s: float = 3600.0) -> None:
        self.clock = clock
        self.lifetime_s = lifetime_s
        self.count = 0
        self.error: TokenFetchError | None = None

    def make(self, name: str) -> Lease:
        now = self.clock.monotonic()
        end = datetime.fromtimestamp(self.clock.time() + self.lifetime_s, UTC)
        return Lease(name, ORIGIN, "metrics", None, self.lifetime_s, now, end)

    async def __call__(self) -> Lease:
        self.count += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.make(f"token-{self.count}")


@contextlib.asynccontextmanager
async def keeping(source: Source, **options: Any) -> AsyncIterator[LeaseKeeper]:
    keeper = LeaseKeeper(source, name="shop/metrics", clock=source.clock, **options)
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_inherited_lease_serves_until_the_first_one_of_its_own() -> None:
    source = Source(Clock())
    old = source.make("old")
    async with keeping(source, inherited=old) as keeper:
        assert keeper.current() is old
        assert keeper.status().state == "fresh"
        await until(lambda: keeper.status().refreshes)
        lease = keeper.current()
        assert lease is not None
        assert lease.access_token == "token-1"


async def test_an_inherited_lease_outlives_failures_but_not_its_end() -> None:
    source = Source(Clock(), lifetime_s=100)
    source.error = TokenFetchError("no", cause="credentials_refused", permanent=True)
    old = source.make("old")
    async with keeping(source, inherited=old) as keeper:
        await until(lambda: keeper.status().failures_in_a_row)
        assert keeper.current() is old
        assert keeper.status().state == "stale"
        source.clock.ahead_s = 95
        assert keeper.current() is None


async def test_a_retired_lease_is_not_refreshed_when_due() -> None:
    source = Source(Clock(), lifetime_s=100)
    async with keeping(source) as keeper:
        await keeper.get(WAIT_S)
        keeper.retire()
        source.clock.ahead_s = 80
        await asyncio.sleep(0.02)
        assert source.count == 1
        assert keeper.current() is not None


async def test_a_running_request_still_gets_a_lease_from_a_retired_keeper() -> None:
    source = Source(Clock(), lifetime_s=100)
    async with keeping(source) as keeper:
        first = await keeper.get(WAIT_S)
        keeper.retire()
        assert keeper.reject(first)  # a 401: it is replayed with another
        second = await keeper.get(WAIT_S)
        assert second is not first
        source.clock.ahead_s = 95  # and a long wait for a slot may outlive that one
        third = await keeper.get(WAIT_S)
        assert third is not second
        source.clock.ahead_s = 180
        await asyncio.sleep(0.02)
        assert source.count == 3


async def test_a_keeper_that_retires_before_its_first_lease_goes_on_until_there_is_one() -> None:
    source = Source(Clock())
    source.error = TokenFetchError("503", cause="server_error", status=503)
    async with keeping(source) as keeper:
        await until(lambda: source.count)
        keeper.retire()
        waiting = asyncio.create_task(keeper.get(WAIT_S))
        source.error = None
        source.clock.ahead_s = 2
        assert (await waiting).access_token == f"token-{source.count}"
        count = source.count
        await asyncio.sleep(0.02)
        assert source.count == count


async def test_a_retired_keeper_of_refused_credentials_says_so() -> None:
    source = Source(Clock(), lifetime_s=100)
    async with keeping(source) as keeper:
        await keeper.get(WAIT_S)
        keeper.retire()
        source.error = TokenFetchError("no", cause="credentials_refused", permanent=True)
        source.clock.ahead_s = 95
        with pytest.raises(TokenUnavailable, match="no usable token"):
            await keeper.get(WAIT_S)
