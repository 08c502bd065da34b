"""A project's leases: one keeper for each API in use, and the tokens that no log line may hold."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from proxy.contentsquare import Api
from proxy.logs import redactor
from proxy.tokens import Clock, Lease, LeaseKeeper
from proxy.tokens.breaker import Outage
from proxy.tokens.demand import Demand

REDACTED_TOKENS = 3
"""For each API: the current token, and the tokens before it, which an error may still quote."""


class Leases:
    """The leases of the project ``name``, by API.

    ``fetch`` gets a new lease, or raises `TokenFetchError`; ``outage`` is that of the token endpoint, or
    None. ``demand`` makes the demand of an API. ``spawn`` starts a task. ``on_event`` is called with the
    events of each `LeaseKeeper` and its API.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[Api], Awaitable[Lease]],
        *,
        outage: Callable[[], Outage | None],
        demand: Callable[[Api], Demand],
        spawn: Callable[[Coroutine[object, object, None]], object],
        clock: Clock,
        on_event: Callable[[Api, str, Mapping[str, object]], None],
    ) -> None:
        self.keepers: dict[Api, LeaseKeeper] = {}
        self._name = name
        self._fetch = fetch
        self._outage = outage
        self._demand = demand
        self._spawn = spawn
        self._clock = clock
        self._on_event = on_event
        self._inherited: dict[Api, Lease] = {}  # until the keeper of the API is made
        self._tokens = RedactedTokens()

    @property
    def any_usable(self) -> bool:
        """Whether an API has a usable token now, perhaps an inherited one that no request has used yet."""
        now = self._clock.monotonic()
        return any(lease.usable_until > now for lease in self._inherited.values()) or any(
            keeper.current() is not None for keeper in self.keepers.values()
        )

    def make(self, api: Api) -> LeaseKeeper:
        """Make and start the keeper of an API that has none yet."""
        keeper = self.keepers[api] = LeaseKeeper(
            functools.partial(self._fetch_redacted, api),
            name=f"{self._name}/{api.value}",
            clock=self._clock,
            on_event=functools.partial(self._on_event, api),
            inherited=self._inherited.pop(api, None),
            outage=self._outage,
            demand=self._demand(api),
        )
        self._spawn(keeper.run())
        return keeper

    def inherit(self, before: Leases) -> None:
        """Use the usable leases of another object until new ones are here."""
        self._inherited.update(before._inherited)
        for api, keeper in before.keepers.items():
            lease = keeper.current()
            if lease is not None:
                self._inherited[api] = lease
        self._tokens.add_all(before._tokens)

    def retry_failed(self) -> None:
        """Fetch now for each API whose last fetch failed."""
        for keeper in self.keepers.values():
            if keeper.status().failures_in_a_row:
                keeper.refresh_now()

    def refresh_now(self) -> None:
        """Fetch now for each API in use."""
        for keeper in self.keepers.values():
            keeper.refresh_now()

    def retire(self) -> None:
        """No new requests come: fetch only if a running request needs a token."""
        for keeper in self.keepers.values():
            keeper.retire()

    def forget_tokens(self) -> None:
        """Forget all tokens, which are out of use: the log needn't look for them any more."""
        self._tokens.clear()

    async def _fetch_redacted(self, api: Api) -> Lease:
        lease = await self._fetch(api)
        self._tokens.add(api, lease.access_token)
        return lease


class RedactedTokens:
    """The tokens that the log redacts for one project, at most `REDACTED_TOKENS` of each API."""

    def __init__(self) -> None:
        self._by_api: dict[Api, deque[str]] = {}

    def add(self, api: Api, token: str) -> None:
        """Redact this token, and no longer the oldest one if there are too many."""
        tokens = self._by_api.setdefault(api, deque())
        redactor.add(token, is_token=True)
        tokens.append(token)
        if len(tokens) > REDACTED_TOKENS:
            redactor.discard(tokens.popleft())

    def add_all(self, other: RedactedTokens) -> None:
        """Redact the tokens of another project, too."""
        for api, tokens in other._by_api.items():
            for token in tokens:
                self.add(api, token)

    def clear(self) -> None:
        """Redact none of them any more."""
        for tokens in self._by_api.values():
            for token in tokens:
                redactor.discard(token)
        self._by_api.clear()
