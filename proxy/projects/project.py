"""One project at run time: the face that the gateway and the admin pages work with.

Hides which tokens are fetched from the start and which on first use, and how the APIs are found out if
the configuration doesn't name them. All its tasks end with the project. Knows nothing of HTTP, routing
or configuration files.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from types import MappingProxyType

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.errors import Forbidden, TokenFetchError
from proxy.projects.discovery import Discovery
from proxy.projects.grant import Grant
from proxy.projects.leases import Leases
from proxy.projects.measures import ProjectMeasures
from proxy.projects.readiness import Readiness
from proxy.projects.renewals import ProjectSecrets
from proxy.projects.services import Services
from proxy.projects.shared_answers import SharedAnswers
from proxy.tokens import Lease, LeaseKeeper
from proxy.tokens.answer import TokenAnswer
from proxy.tokens.breaker import NamedBy
from proxy.tokens.demand import Demand
from proxy.tokens.standby import Failover, PairName


class Project:
    """One project of Contentsquare, which callers address by ``name`` (``acme/42`` for an account's).

    ``from_start`` False is for a project that is made when a caller first names it: it fetches nothing
    before a request needs it, and the proxy's readiness never waits for it. ``is_proven`` False: its id may
    be invented, until it gets its first token; ``named_by`` are the callers that named it until then.
    ``expires`` is for people.
    ``shared_answers`` None: each request is forwarded by itself. The gateway counts in ``running`` the
    requests that use the project now, in ``requests`` all requests by API, in ``calls`` each one sent.
    """

    def __init__(
        self,
        name: str,
        grant: Grant,
        services: Services,
        *,
        read_only: bool = False,
        from_start: bool = True,
        is_proven: bool = True,
        expires: dt.date | None = None,
        shared_answers: SharedAnswers | None = None,
    ) -> None:
        self.name = name
        self.grant = grant
        self.project_id = grant.project_id
        """The Contentsquare project to request tokens for; None if the credentials are for one alone."""
        self.read_only = read_only
        self.expires = expires
        self.shared_answers = shared_answers
        self.slots = services.slots.of(grant.project_id)
        self.is_proven = is_proven
        self.named_by = NamedBy()
        self.running = 0
        self.requests: Counter[Api] = Counter()
        self.measures, self.calls = ProjectMeasures(), services.calls.of(name)
        self._services = services
        self._id_by_token: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failover = Failover(grant.pairs, self._on_switch)
        self._leases = Leases(
            name,
            self._fetch,
            outage=services.endpoint.outage,
            demand=self._demand,
            spawn=self._spawn,
            clock=services.clock,
            on_event=self._on_lease_event,
        )
        self._secrets = ProjectSecrets(
            services.renewals,
            grant.pairs,
            clock=services.clock,
            spawn=self._spawn,
            on_changed=self._on_secret_changed,
        )
        self._discovery = Discovery(self._me_members, self._are_accepted, services.clock, self._emit)
        self._discovering: asyncio.Task[None] | None = None
        self._discovers = from_start and grant.apis is None
        wanted, outage = grant.apis if from_start else (), services.endpoint.outage
        self.readiness = Readiness(name, wanted, self._discovery, self._leases.keepers, outage)

    @property
    def keepers(self) -> Mapping[Api, LeaseKeeper]:
        """The lease keepers of the APIs in use."""
        return MappingProxyType(self._leases.keepers)

    @property
    def contentsquare_id(self) -> int | None:
        """The id of the Contentsquare project, by configuration or a token answer; None: not known yet."""
        return self.project_id if self._id_by_token is None else self._id_by_token

    @property
    def apis(self) -> Sequence[Api]:
        """The APIs that are wanted from the start; without such, all that may be used. Never empty."""
        return self.readiness.wanted or self.grant.usable_apis

    @property
    def credentials(self) -> Credentials:
        """The pair of credentials in use."""
        return self._secrets.latest(self._failover.credentials)

    @property
    def credentials_in_use(self) -> PairName:
        """The name of the pair in use."""
        return self._failover.in_use

    @property
    def has_lease(self) -> bool:
        """Whether an API has a usable token now."""
        return self._leases.any_usable

    @property
    def is_ready(self) -> bool:
        """Whether every token that is wanted from the start is usable now."""
        return not self.missing()

    @property
    def is_settled(self) -> bool:
        """Whether the first fetch of every token that is wanted from the start has ended, well or not."""
        return self.readiness.is_settled

    def missing(self) -> list[str]:
        """A line, for people, for each token that is wanted from the start and not usable now: its reason."""
        return self.readiness.missing()

    # Life

    def start(self) -> None:
        """Begin to fetch the tokens that are wanted from the start; returns at once."""
        self._keep_wanted()
        if self._discovers:
            self._discovering = self._spawn(self._discover())

    def inherit(self, before: Project) -> None:
        """Take over the state that stays good from a project of the same name, which is about to be retired.

        Always its counts; if both are for the same data also its slots, its leases and the APIs that it
        discovered. So callers needn't wait until new tokens are here.
        """
        self.requests.update(before.requests)
        self.measures, self.calls, self.named_by = before.measures, before.calls, before.named_by
        if not self.grant.is_for_the_same_data(before.grant):
            return
        self.slots, self._id_by_token = before.slots, before._id_by_token
        self.is_proven = self.is_proven or before.is_proven
        if self._discovers:
            self.readiness.wanted = before.readiness.wanted
        self._leases.inherit(before._leases)

    def start_over(self) -> None:
        """Use the first pair of credentials again when the next token is due."""
        self._failover.start_over()

    def refresh_now(self) -> None:
        """Ask the sources of the secrets, and fetch a new token for each API in use."""
        self._secrets.refresh(self._refresh_leases)

    def _refresh_leases(self) -> None:
        self._leases.refresh_now()
        self._discover_anew()
        self._services.endpoint.hurry(self.credentials)

    def forget_answers(self) -> None:
        """Share no answer that is stored or on its way now with a request that comes later."""
        if self.shared_answers is not None:
            self.shared_answers.forget()

    def retire(self) -> None:
        """No new requests come: fetch only for running ones. Call `close` once none runs."""
        if self._discovering is not None:
            self._discovering.cancel()
        self._secrets.stop()
        self._leases.retire()

    def close(self) -> None:
        """End the tasks. No request may be running."""
        for task in self._tasks:
            task.cancel()
        self.forget_answers()
        self._leases.forget_tokens()

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._services.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Tokens

    def keeper(self, api: Api) -> LeaseKeeper:
        """The keeper of this API's lease, made and started on first use. Raises Forbidden."""
        if (keeper := self._leases.keepers.get(api)) is not None:
            return keeper
        if not self.grant.allows(api):
            raise Forbidden(f"Enrichment needs integration_id in the configuration of {self.name}.")
        return self._leases.make(api)

    def _demand(self, api: Api) -> Demand:
        now, is_kept = self._services.clock.monotonic, lambda: api in (self.readiness.wanted or ())
        return Demand(is_kept, lambda: self.requests[api], lambda: self.running > 0, now)

    async def me_answer(self) -> TokenAnswer:
        """The answer of ``/v1/oauth/me`` to the pair in use, of any status. Raises `TokenFetchError`."""
        return await self._services.endpoint.me_answer(self.credentials)

    async def _me_members(self) -> Mapping[str, object]:
        me_members = self._services.endpoint.me_members
        return await self._failover.fetch(
            "me", lambda credentials: self._secrets.using_latest(credentials, me_members)
        )

    async def _are_accepted(self) -> bool:
        """Whether the credentials bring a token, or are refused one for another reason than themselves."""
        try:
            await self._fetch(self.apis[0])
        except TokenFetchError as error:
            return error.permanent and error.status != 401
        return True

    async def _fetch(self, api: Api) -> Lease:
        async def fetch_with(credentials: Credentials) -> Lease:
            fetch, request = self._services.endpoint.fetch, self.grant.request(api, credentials)
            new_for = None if self.is_proven else self.named_by
            return await fetch(request, new_for=new_for, is_wanted=lambda: self.is_proven or self.running > 0)

        lease = await self._failover.fetch(
            api, lambda credentials: self._secrets.using_latest(credentials, fetch_with)
        )
        self.is_proven = True
        self._services.on_lease(lease)
        if self.project_id is None and lease.project_id is not None:
            self._share_slots_of(lease.project_id)
        return lease

    def _share_slots_of(self, project_id: int) -> None:
        # The project that a token answer named has one set of slots, for all its names.
        if project_id == self._id_by_token:
            return
        shared = self._services.slots.of(project_id)
        if self._id_by_token is None:  # until now no other name had these slots
            self.slots.move_to(shared)
        self._id_by_token, self.slots = project_id, shared

    def _keep_wanted(self) -> None:
        for api in self.readiness.wanted or ():
            self.keeper(api)

    async def _discover(self) -> None:
        """Find out which APIs are wanted; without an answer, keep those that were known before."""
        found = await self._discovery.apis()
        if found is not None:
            self.readiness.wanted = tuple(api for api in Api if api in found and self.grant.allows(api))
        self.readiness.wanted = self.readiness.wanted or ()
        self._keep_wanted()
        self._emit("apis_discovered", {"apis": [api.value for api in self.readiness.wanted]})

    def _discover_anew(self) -> None:
        """Ask now for the wanted APIs, unless an answer has named them."""
        if self._discovering is not None and not (self._discovering.done() and self.readiness.wanted):
            self._discovering.cancel()
            self._discovering = self._spawn(self._discover())

    # Events

    def _on_secret_changed(self) -> None:
        self._failover.start_over()
        self._leases.retry_failed()
        self._discover_anew()

    def _on_switch(self, to: PairName, error: TokenFetchError) -> None:
        self._emit("credentials_switched", {"to": to, "cause": error.cause, "error": str(error)})
        self._leases.retry_failed()

    def _on_lease_event(self, api: Api, event: str, values: Mapping[str, object]) -> None:
        if event == "token_fetch_failed":
            self.measures.of(api).token_failures[str(values["cause"])] += 1
        self._services.on_event(event, values)

    def _emit(self, event: str, values: Mapping[str, object]) -> None:
        self._services.on_event(event, {"project": self.name, **values})
