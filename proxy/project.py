"""A project at run time: its slots, and one lease keeper for each API in use.

Hides which APIs are kept fresh from the start, how those are found out where the configuration
doesn't say, and that others join on first use; all tasks are handed to ``spawn``, so that they
live and die with the application. Must not know HTTP, routing, or configuration files.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from proxy.contentsquare import Api
from proxy.errors import Forbidden, TokenFetchError
from proxy.lease import SYSTEM_CLOCK, Clock, LeaseKeeper, OnEvent, retry_delay_s
from proxy.oauth import Credentials, TokenEndpoint, TokenRequest
from proxy.slots import Slots

Spawn = Callable[[Coroutine[object, object, None]], object]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a project's tokens are asked with.

    ``project_id`` goes with account-level credentials, ``integration_id`` with Enrichment; None
    leaves them out. ``apis`` None means: those that ``/v1/oauth/me`` names.
    """

    credentials: Credentials
    project_id: int | None = None
    integration_id: int | None = None
    apis: tuple[Api, ...] | None = None


class Project:
    """One project of Contentsquare, as callers address it by ``name`` (``acme/42`` below an account).

    ``from_start`` False is for one that comes into being when it is first called: nothing is fetched
    before it is used, and so it is never what the proxy's readiness waits for. ``on_event`` hears what
    `LeaseKeeper` tells, and ``apis_discovered`` and ``api_discovery_failed``.
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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self.slots = slots
        self.read_only = read_only
        self.grant = grant
        self.requests: Counter[Api] = Counter()
        self._endpoint = endpoint
        self._spawn = spawn
        self._on_event = on_event
        self._clock = clock
        self._keepers: dict[Api, LeaseKeeper] = {}
        self._wanted = (grant.apis or ()) if from_start else ()
        self._discovering = from_start and grant.apis is None
        self._discovery_error: TokenFetchError | None = None

    @property
    def keepers(self) -> Mapping[Api, LeaseKeeper]:
        """The keepers that exist, by API."""
        return MappingProxyType(self._keepers)

    @property
    def first_api(self) -> Api:
        """The API that a path in no row of the vendor's table goes with."""
        return next(iter(self._wanted or self.grant.apis or (Api.DATA_EXPORT,)))

    @property
    def is_ready(self) -> bool:
        """Whether every token wanted from the start is usable now."""
        return not self.missing()

    @property
    def is_settled(self) -> bool:
        """Whether every token wanted from the start was fetched, or failed to be, at least once."""
        if self._discovering:
            return self._discovery_error is not None
        statuses = [self._keepers[api].status() for api in self._wanted if api in self._keepers]
        tried = [status for status in statuses if status.usable or status.failures_in_a_row]
        return len(tried) == len(self._wanted)

    def missing(self) -> list[str]:
        """What is wanted from the start and not usable now, each with the reason, for people."""
        if self._discovering:
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
        if self._discovering:
            self._spawn(self._discover())
        else:
            self._keep(self._wanted)

    def keeper(self, api: Api | None) -> LeaseKeeper:
        """The keeper of this API's lease, made and started on first use; None is the first API."""
        if api is None:
            api = self.first_api
        keeper = self._keepers.get(api)
        if keeper is None:
            if api is Api.ENRICHMENT and self.grant.integration_id is None:
                raise Forbidden(f"Enrichment needs integration_id in the configuration of {self.name}.")
            keeper = self._keepers[api] = LeaseKeeper(
                functools.partial(self._endpoint.fetch, self._token_request(api)),
                name=f"{self.name}/{api.value}",
                clock=self._clock,
                on_event=self._on_event,
            )
            self._spawn(keeper.run())
        return keeper

    def _keep(self, apis: tuple[Api, ...]) -> None:
        for api in apis:
            self.keeper(api)

    async def _discover(self) -> None:
        """Learn what the credentials are for, and keep that fresh; nothing where it can't be learnt."""
        found = await self._described() or frozenset()
        usable = found if self.grant.integration_id is not None else found - {Api.ENRICHMENT}
        self._wanted = tuple(api for api in Api if api in usable)
        self._keep(self._wanted)
        self._discovering = False
        self._emit("apis_discovered", apis=[api.value for api in self._wanted])

    async def _described(self) -> frozenset[Api] | None:
        """The endpoint's answer, None where it has none; asked for until there is one."""
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        failures = 0
        while True:
            try:
                return await self._endpoint.describe(self.grant.credentials)
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

    def _emit(self, event: str, **values: object) -> None:
        if self._on_event is not None:
            self._on_event(event, {"project": self.name, **values})

    def _token_request(self, api: Api) -> TokenRequest:
        grant = self.grant
        return TokenRequest(grant.credentials, api, grant.project_id, grant.integration_id)
