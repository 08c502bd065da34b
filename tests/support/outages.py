"""Many leases at one token endpoint that has an outage, in virtual time: what both sides saw."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Self

from support.keeping import EU

from proxy.errors import TokenFetchError
from proxy.logs.events import EventLog
from proxy.tokens import Lease, LeaseKeeper
from proxy.tokens.breaker import Breaker

LATENCY_S = 0.15
NO_ANSWER = {
    "dns": 0.01,
    "connection_refused": 0.001,
    "connection_failed": 0.5,
    "connection_lost": 0.1,
    "http_proxy": 0.1,
    "loop": 0.001,
    "tls": 0.05,
    "timeout": 15.0,
}
"""Causes of failures without an answer, and the seconds that each takes."""

Answer = TokenFetchError | float
"""An error, or the life of a token in seconds."""


def no_answer(cause: str) -> TokenFetchError:
    """A failure without an answer."""
    said = "no answer in time" if cause == "timeout" else cause
    return TokenFetchError(f"https://auth.example: {said}", cause=cause)


def answered(status: int, retry_after_s: float | None = None) -> TokenFetchError:
    """A failure by an answer."""
    causes = {401: "credentials_refused", 429: "rate_limited", 302: "redirected"}
    return TokenFetchError(
        f"the token endpoint answered {status}",
        cause=causes.get(status, "server_error"),
        permanent=status == 401,
        retry_after_s=retry_after_s,
        status=status,
    )


class VirtualClock:
    """The clock of the event loop, which `support.crowd` makes virtual."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return asyncio.get_running_loop().time()

    def time(self) -> float:
        """See `Clock.time`."""
        return 1_800_000_000.0 + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


class Lines:
    """A logger that keeps the events' names and values."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Mapping[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        """A line."""
        self.lines.append((event, values))

    warning = error = info


class World:
    """A token endpoint with its breaker, and leases of many credentials.

    ``answer`` gives the endpoint's answer now for a credential's name. ``begun`` has the time and the
    credentials of each request.
    """

    def __init__(self, answer: Callable[[str], Answer] = lambda _: 3600.0) -> None:
        self.answer = answer
        self.clock = VirtualClock()
        self.begun: list[tuple[float, str]] = []
        self.under_way = self.most_under_way = 0
        self.log = Lines()
        self.events = EventLog(self.log, self.clock.monotonic)
        self.breaker = Breaker("https://auth.example", self.events)
        self.keepers: dict[str, LeaseKeeper] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def request(self, credentials: str) -> Lease:
        """One token request, when its turn comes."""
        return await self.breaker.run(credentials, lambda: self._exchange(credentials))

    async def _exchange(self, credentials: str) -> Lease:
        sent_at = self.clock.monotonic()
        self.begun.append((sent_at, credentials))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            answer = self.answer(credentials)
            takes_s = NO_ANSWER.get(answer.cause) if isinstance(answer, TokenFetchError) else None
            await asyncio.sleep(takes_s or LATENCY_S)
        finally:
            self.under_way -= 1
        if isinstance(answer, TokenFetchError):
            raise answer
        expires_at = datetime.fromtimestamp(self.clock.time() + answer, UTC)
        return Lease("token", EU, "metrics", None, answer, sent_at, expires_at)

    def keep(self, *names: str) -> None:
        """Make and start a keeper for each of these names, which are those of their credentials, too."""
        for name in names:
            keeper = LeaseKeeper(
                functools.partial(self.request, name),
                name=name,
                clock=self.clock,
                on_event=self.events,
                outage=lambda: self.breaker.outage,
            )
            self.keepers[name] = keeper
            self._tasks.append(asyncio.create_task(keeper.run()))

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self._sweep()))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(60)
            self.events.sweep()

    def ready(self, *names: str) -> int:
        """How many of these leases, or of all, are usable."""
        return sum(self.keepers[name].current() is not None for name in names or self.keepers)

    async def ready_after_s(self, *names: str) -> float:
        """Seconds until these leases, or all, are usable; gives up after 300 s."""
        began_at = self.clock.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(300):
                while any(self.keepers[name].current() is None for name in names or self.keepers):
                    await asyncio.sleep(0.05)
        return self.clock.monotonic() - began_at

    def most_in_a_second(self, since: float = 0.0) -> int:
        """The most requests that began within one second."""
        times = [at for at, _ in self.begun if at >= since]
        return max(bisect_left(times, at + 1) - bisect_left(times, at) for at in times)

    def repeats(self, since: float) -> int:
        """How often two requests in a row were of the same credentials."""
        names = [name for at, name in self.begun if at >= since]
        return sum(one == other for one, other in pairwise(names))
