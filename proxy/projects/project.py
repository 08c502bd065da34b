"""A project at run time: its slots, and one lease keeper for each API in use.

Hides which APIs are kept fresh from the start, how those are found out where the configuration
doesn't say, and that others join on first use; all tasks are handed to ``spawn``, so that they
live and die with the project. Every token is redacted from the log while it is in use. Must not
know HTTP, routing, or configuration files.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.errors import Forbidden, TokenFetchError
from proxy.logs.events import OnEvent
from proxy.logs.setup import redactor
from proxy.projects.measures import ProjectMeasures
from proxy.projects.shared_answers import SharedAnswers
from proxy.projects.slots import Slots
from proxy.tokens import SYSTEM_CLOCK, Clock, Lease, LeaseKeeper, TokenEndpoint, TokenRequest
from proxy.tokens.answer import TokenAnswer
from proxy.tokens.endpoint import apis_named
from proxy.tokens.schedule import retry_delay_s
from proxy.tokens.standby import Failover, PairName

Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]
REDACTED_TOKENS = 3
"""Of each lease: the current token, and those before it that an error message may still quote."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a project's tokens are asked with.

    ``project_id`` goes with account-level credentials, ``integration_id`` with Enrichment; None
    leaves them out. ``apis`` None means: those that ``/v1/oauth/me`` names. ``standby`` is taken when
    ``credentials`` are refused.
    """

    credentials: Credentials
    project_id: int | None = None
    integration_id: int | None = None
    apis: tuple[Api, ...] | None = None
    standby: Credentials | None = None

    def is_for_the_same_data(self, other: Grant) -> bool:
        """Whether a token of the one will do for the other: its secret may be another."""
        return (self.credentials.client_id, self.project_id, self.integration_id) == (
            other.credentials.client_id,
            other.project_id,
            other.integration_id,
        )


class Project:
    """One project of Contentsquare, as callers address it by ``name`` (``acme/42`` below an account).

    ``from_start`` False is for one that comes into being when it is first called: nothing is fetched
    before it is used, and so it is never what the proxy's readiness waits for. ``slots_of`` gives the
    slots that a Contentsquare project has in common, whatever its names here: where the id isn't
    configured, a token answer tells it. ``on_event`` hears what `LeaseKeeper` tells, and
    ``apis_discovered``, ``api_discovery_failed`` and ``credentials_switched``.
    Whoever forwards a request counts it in ``running`` meanwhile. ``expires`` is for people.
    ``shared_answers`` None: each request is forwarded by itself.
    """

    def __init__(
        self,
        name: str,
        grant: Grant,
        *,
        endpoint: TokenEndpoint,
        slots: Slots,
        spawn: Spawn,
        read_only: bool = False,
        from_start: bool = True,
        on_event: OnEvent | None = None,
        on_lease: Callable[[Lease], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        slots_of: Callable[[int], Slots] | None = None,
        expires: dt.date | None = None,
        shared_answers: SharedAnswers | None = None,
    ) -> None:
        self.name = name
        self.slots = slots
        self.read_only = read_only
        self.grant = grant
        self.project_id = grant.project_id
        """The Contentsquare project that tokens are asked for, None where the credentials say it."""
        self.expires = expires
        self.shared_answers = shared_answers
        self.running = 0
        self.requests: Counter[Api] = Counter()
        self.measures = ProjectMeasures()
        pairs = (grant.credentials,) if grant.standby is None else (grant.credentials, grant.standby)
        self._failover = Failover(pairs, self._on_switch)
        self._slots_of = slots_of
        self._learnt_id: int | None = None
        self._inherited: dict[Api, Lease] = {}  # until somebody asks for them
        self._tokens: dict[Api, deque[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._endpoint = endpoint
        self._spawn_in_app = spawn
        self._on_event = on_event
        self._on_lease = on_lease
        self._clock = clock
        self._keepers: dict[Api, LeaseKeeper] = {}
        self._discovers = from_start and grant.apis is None
        # What is to be kept from the start; None: not known yet.
        self._wanted = None if self._discovers else (grant.apis or ()) if from_start else ()
        self._discovery: asyncio.Task[None] | None = None
        self._discovery_error: TokenFetchError | None = None

    @property
    def keepers(self) -> Mapping[Api, LeaseKeeper]:
        """The keepers that exist, by API."""
        return MappingProxyType(self._keepers)

    @property
    def contentsquare_id(self) -> int | None:
        """The Contentsquare project that it is, by configuration or a token answer; None: not known yet."""
        return self.grant.project_id if self._learnt_id is None else self._learnt_id

    @property
    def first_api(self) -> Api:
        """The API that a path in no row of the vendor's table goes with."""
        return next(iter(self._wanted or self.grant.apis or (Api.DATA_EXPORT,)))

    @property
    def credentials(self) -> Credentials:
        """The pair in use."""
        return self._failover.credentials

    @property
    def credentials_in_use(self) -> PairName:
        """Which pair is in use."""
        return self._failover.in_use

    @property
    def has_lease(self) -> bool:
        """Whether any API has a usable token now, or may have one that was taken over."""
        return bool(self._inherited) or any(keeper.current() is not None for keeper in self._keepers.values())

    @property
    def is_ready(self) -> bool:
        """Whether every token wanted from the start is usable now."""
        return not self.missing()

    @property
    def is_settled(self) -> bool:
        """Whether every token wanted from the start was fetched, or failed to be, at least once."""
        if self._wanted is None:
            return self._discovery_error is not None
        statuses = [self._keepers[api].status() for api in self._wanted if api in self._keepers]
        tried = [status for status in statuses if status.usable or status.failures_in_a_row]
        return len(tried) == len(self._wanted)

    def missing(self) -> list[str]:
        """What is wanted from the start and not usable now, each with the reason, for people."""
        if self._wanted is None:
            return [
                f"{self.name}: {self._discovery_error or 'what its credentials are for is not known yet'}"
            ]
        usable = {api for api in self._wanted if api in self._keepers and self._keepers[api].current()}
        return [f"{self.name}/{api.value}: {self._why(api)}" for api in self._wanted if api not in usable]

    def _why(self, api: Api) -> str:
        error = self._keepers[api].status().last_error if api in self._keepers else None
        return error or "no token yet"

    def start(self) -> None:
        """Begin to fetch what is wanted from the start; comes back at once."""
        self._keep(self._wanted or ())
        if self._discovers:
            self._discovery = self._spawn(self._discover())

    async def me_answer(self) -> TokenAnswer:
        """What Contentsquare says about the pair of credentials in use. Raises `TokenFetchError`."""
        return await self._endpoint.me_answer(self.credentials)

    def start_over(self) -> None:
        """Ask with the first pair of credentials again, when the next token is due."""
        self._failover.start_over()

    def inherit(self, before: Project) -> None:
        """Take over from a project of the same name, which is about to be retired, what is still good.

        Its numbers and, where they are for the same data, its slots, its leases and what it discovered:
        until our own tokens are here, callers needn't wait.
        """
        self.requests.update(before.requests)
        self.measures = before.measures
        if not self.grant.is_for_the_same_data(before.grant):
            return
        self.slots, self._learnt_id = before.slots, before._learnt_id
        if self._discovers:
            self._wanted = before._wanted
        self._inherited.update(before._inherited)
        for api, keeper in before.keepers.items():
            lease = keeper.current()
            if lease is not None:
                self._inherited[api] = lease
        for api, tokens in before._tokens.items():
            for token in tokens:
                self._redact(api, token)

    def forget_answers(self) -> None:
        """Share none of the answers that are here or on their way with a request that comes later."""
        if self.shared_answers is not None:
            self.shared_answers.forget()

    def retire(self) -> None:
        """No new requests come: fetch only what a running one still needs. `close` it when none is left."""
        if self._discovery is not None:
            self._discovery.cancel()
        for keeper in self._keepers.values():
            keeper.retire()

    def close(self) -> None:
        """End its tasks. No request may be running."""
        for task in self._tasks:
            task.cancel()
        self.forget_answers()
        for tokens in self._tokens.values():
            for token in tokens:
                redactor.discard(token)
        self._tokens.clear()

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._spawn_in_app(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def keeper(self, api: Api) -> LeaseKeeper:
        """The keeper of this API's lease, made and started on first use. Raises Forbidden."""
        keeper = self._keepers.get(api)
        if keeper is None:
            if api is Api.ENRICHMENT and self.grant.integration_id is None:
                raise Forbidden(f"Enrichment needs integration_id in the configuration of {self.name}.")
            keeper = self._keepers[api] = LeaseKeeper(
                functools.partial(self._fetch, api),
                name=f"{self.name}/{api.value}",
                clock=self._clock,
                on_event=functools.partial(self._hear, api),
                inherited=self._inherited.pop(api, None),
            )
            self._spawn(keeper.run())
        return keeper

    def _keep(self, apis: tuple[Api, ...]) -> None:
        for api in apis:
            self.keeper(api)

    async def _discover(self) -> None:
        """Learn what the credentials are for, and keep that fresh.

        Where it can't be learnt, what was known before, else nothing.
        """
        found = await self._apis_named()
        if found is not None:
            usable = found if self.grant.integration_id is not None else found - {Api.ENRICHMENT}
            self._wanted = tuple(api for api in Api if api in usable)
        self._wanted = self._wanted or ()
        self._keep(self._wanted)
        self._emit("apis_discovered", apis=[api.value for api in self._wanted])

    async def _apis_named(self) -> frozenset[Api] | None:
        """The endpoint's answer, None where it has none; asked for until there is one."""
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        failures = 0
        while True:
            try:
                return await apis_named(self._failover.fetch("me", self._endpoint.me_members))
            except TokenFetchError as error:
                failures += 1
                self._discovery_error = error
                delay_s = retry_delay_s(error, failures, 0.0, rng)
                self._emit(
                    "api_discovery_failed",
                    error=str(error),
                    cause=error.cause,
                    failures_in_a_row=failures,
                    next_try_in_s=round(delay_s, 1),
                )
            await self._clock.sleep(delay_s)

    def _hear(self, api: Api, event: str, values: Mapping[str, object]) -> None:
        if event == "token_fetch_failed":
            self.measures.of(api).token_failures[str(values["cause"])] += 1
        if self._on_event is not None:
            self._on_event(event, values)

    def _emit(self, event: str, **values: object) -> None:
        if self._on_event is not None:
            self._on_event(event, {"project": self.name, **values})

    # Tokens

    async def _fetch(self, api: Api) -> Lease:
        grant = self.grant

        async def ask(credentials: Credentials) -> Lease:
            request = TokenRequest(credentials, api, grant.project_id, grant.integration_id)
            return await self._endpoint.fetch(request)

        lease = await self._failover.fetch(api, ask)
        self._redact(api, lease.access_token)
        if self._on_lease is not None:
            self._on_lease(lease)
        if grant.project_id is None and lease.project_id is not None:
            self._learn(lease.project_id)
        return lease

    def _redact(self, api: Api, token: str) -> None:
        tokens = self._tokens.setdefault(api, deque())
        redactor.add(token, is_token=True)
        tokens.append(token)
        if len(tokens) > REDACTED_TOKENS:
            redactor.discard(tokens.popleft())

    def _learn(self, project_id: int) -> None:
        """Share the slots of the Contentsquare project that these credentials turn out to be for."""
        if self._slots_of is None or project_id == self._learnt_id:
            return
        shared = self._slots_of(project_id)
        if self._learnt_id is None:  # until now they were ours alone
            self.slots.move_to(shared)
        self._learnt_id, self.slots = project_id, shared

    def _on_switch(self, to: PairName, why: TokenFetchError) -> None:
        self._emit("credentials_switched", to=to, cause=why.cause, error=str(why))
        for keeper in self._keepers.values():
            if keeper.status().failures_in_a_row:
                keeper.refresh_now()
