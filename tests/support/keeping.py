"""A lease keeper, a token endpoint that answers by script, and what tests of both share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from support.clocks import FakeClock, settle

from proxy.errors import TokenFetchError
from proxy.origin import Origin
from proxy.tokens import Lease, LeaseKeeper

EU = Origin("https", "api.eu-west-1.production.contentsquare.com", 443)
HOUR = 3600.0

TRANSIENT = TokenFetchError("the token endpoint answered 503", cause="server_error")
PERMANENT = TokenFetchError("the token endpoint answered 401", cause="credentials_refused", permanent=True)

Events = list[tuple[str, Mapping[str, object]]]


class Endpoint:
    """A token endpoint. Its ``script`` holds a life in seconds or an error for each call; the last stays."""

    def __init__(self, clock: FakeClock, *script: float | TokenFetchError, takes_s: float = 0.0) -> None:
        self.clock = clock
        self.script = list(script)
        self.takes_s = takes_s
        self.origin = EU
        self.calls: list[float] = []
        self.under_way = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> Lease:
        self.calls.append(self.clock.now)
        self.under_way += 1
        assert self.under_way == 1, "one fetch at a time"
        try:
            return await self._answer()
        finally:
            self.under_way -= 1

    async def _answer(self) -> Lease:
        sent_at, sent_at_wall = self.clock.now, self.clock.wall
        if self.takes_s:
            await self.clock.sleep(self.takes_s)
        await self.gate.wait()
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, TokenFetchError):
            raise step
        return Lease(
            access_token=f"token-{len(self.calls)}",
            origin=self.origin,
            scope="metrics",
            project_id=42,
            lifetime_s=step,
            received_at=sent_at,
            expires_at=datetime.fromtimestamp(sent_at_wall + step, UTC),
        )


def make_keeper(endpoint: Endpoint, events: Events | None = None, seed: int = 1) -> LeaseKeeper:
    """A keeper that isn't running yet; its events are appended to ``events``."""

    def on_event(event: str, values: Mapping[str, object]) -> None:
        if events is not None:
            events.append((event, values))

    return LeaseKeeper(
        endpoint.fetch,
        name="shop-fr/metrics",
        clock=endpoint.clock,
        rng=random.Random(seed),
        on_event=on_event,
    )


@asynccontextmanager
async def running(keeper: LeaseKeeper) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the keeper; its first fetch has ended, unless it hangs."""
    task = asyncio.create_task(keeper.run())
    try:
        await settle()
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
