"""A proxy for all cases of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.harness import Gateway, Upstream, gateway


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with gateway(upstream) as running:
        yield running
