"""A project at run time: its slots, and one lease keeper for each API in use.

Hides which APIs are kept fresh from the start and that others join on first use; the keepers'
tasks are handed to ``spawn``, so that they live and die with the application. Must not know
HTTP, routing, or configuration files.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from proxy.contentsquare import Api
from proxy.errors import Forbidden
from proxy.lease import LeaseKeeper, OnEvent
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
    """One project of Contentsquare, as callers address it by ``name`` (``acme/42`` below an account)."""

    def __init__(
        self,
        name: str,
        grant: Grant,
        *,
        endpoint: TokenEndpoint,
        slots: Slots,
        spawn: Spawn,
        read_only: bool = False,
        on_event: OnEvent | None = None,
    ) -> None:
        self.name = name
        self.slots = slots
        self.read_only = read_only
        self.grant = grant
        self.requests: Counter[Api] = Counter()
        self._endpoint = endpoint
        self._spawn = spawn
        self._on_event = on_event
        self._keepers: dict[Api, LeaseKeeper] = {}
        self._wanted = grant.apis or ()
        self._discovering = grant.apis is None

    @property
    def keepers(self) -> Mapping[Api, LeaseKeeper]:
        """The keepers that exist, by API."""
        return MappingProxyType(self._keepers)

    @property
    def first_api(self) -> Api:
        """The API that a path in no row of the vendor's table goes with."""
        return self._wanted[0] if self._wanted else Api.DATA_EXPORT

    @property
    def is_ready(self) -> bool:
        """Whether every token wanted from the start is usable now."""
        return not self._discovering and all(self._keepers[api].current() is not None for api in self._wanted)

    @property
    def is_settled(self) -> bool:
        """Whether every token wanted from the start was fetched, or failed to be, at least once."""
        if self._discovering:
            return False
        statuses = [self._keepers[api].status() for api in self._wanted]
        return all(status.usable or status.failures_in_a_row for status in statuses)

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
                on_event=self._on_event,
            )
            self._spawn(keeper.run())
        return keeper

    def _keep(self, apis: tuple[Api, ...]) -> None:
        for api in apis:
            self.keeper(api)

    async def _discover(self) -> None:
        found = await self._endpoint.describe(self.grant.credentials)
        usable = (api for api in Api if api in (found or ()))
        self._wanted = tuple(
            a for a in usable if a is not Api.ENRICHMENT or self.grant.integration_id is not None
        )
        self._keep(self._wanted)
        self._discovering = False

    def _token_request(self, api: Api) -> TokenRequest:
        grant = self.grant
        return TokenRequest(grant.credentials, api, grant.project_id, grant.integration_id)
