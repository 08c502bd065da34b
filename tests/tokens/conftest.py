"""A running keeper, with its clock, its events, and a token endpoint whose tokens live an hour."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.clocks import FakeClock
from support.keeping import HOUR, Endpoint, Events, make_keeper, running

from proxy.tokens import LeaseKeeper


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def endpoint(clock: FakeClock) -> Endpoint:
    return Endpoint(clock, HOUR)


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
async def keeper(endpoint: Endpoint, events: Events) -> AsyncIterator[LeaseKeeper]:
    """Its first fetch has succeeded."""
    keeper = make_keeper(endpoint, events)
    async with running(keeper):
        yield keeper
