"""One version of the running configuration, and how the next one is made from it.

A request reads one `Generation` and lives by it, so that it never meets half of a reload. Hides
what a new configuration leaves as it is: a project whose settings are the same keeps its object,
and so its tokens and slots, and what is on its way to Contentsquare is kept while the way there is
the same. Must not know listeners' sockets, files, or when a reload is due.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.config.settings import Access, AccountSettings, ContentsquareSettings, ProjectSettings, Settings
from proxy.config.watch import is_same
from proxy.errors import ConfigError
from proxy.gateway.callers import Callers
from proxy.gateway.exchange import Forwarder
from proxy.gateway.guard import Guard
from proxy.gateway.route import Router
from proxy.logs.events import OnEvent
from proxy.logs.setup import redactor
from proxy.origin import Origin
from proxy.projects import AccountProjects, Grant, Project, Services, SharedSlots, Spawn
from proxy.projects.shared_answers import SharedAnswers
from proxy.projects.stored import Store
from proxy.server.listeners import Listener, server_tls
from proxy.tokens import TokenEndpoint, make_session
from proxy.upstream.dial import Dialer
from proxy.upstream.http_proxy import http_proxy_for
from proxy.upstream.pool import Upstreams
from proxy.upstream.tls import tls_context

_WAY = ("auth_url", "allowed_endpoints", "ca_file", "connect_timeout", "idle_timeout")
"""The keys of [contentsquare] that need new connections; the others are numbers that can change."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings that were found good, with what took time to read.

    ``ca`` is a digest of ``contentsquare.ca_file``; ``context`` is None where the way that is in use will do.
    """

    settings: Settings
    ca: bytes
    context: ssl.SSLContext | None


def plan(settings: Settings, before: Generation | None) -> Plan:
    """What it takes to run with these settings. Blocks on files; raises ConfigError."""
    server, vendor = settings.server, settings.contentsquare
    server_tls(server.tls_cert, server.tls_key)
    ca = _digest(vendor.ca_file)
    if before is not None and before.outward.fits(vendor, ca):
        return Plan(settings, ca, None)
    return Plan(settings, ca, tls_context(vendor.ca_file))


def _digest(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        raise ConfigError("contentsquare.ca_file: can't be read") from None


class Outward:
    """The way to Contentsquare: its token endpoint, and connections to its clouds."""

    def __init__(
        self, vendor: ContentsquareSettings, ca: bytes, context: ssl.SSLContext, spawn: Spawn
    ) -> None:
        self._vendor = vendor
        self._ca = ca
        self._session = make_session(context)
        self.endpoint = TokenEndpoint(
            self._session,
            vendor.auth_url,
            allowed_endpoints=vendor.allowed_endpoints,
            find_proxy=http_proxy_for,
        )
        dialer = Dialer(context, connect_timeout_s=vendor.connect_timeout)
        self.upstreams = Upstreams(dialer, idle_timeout_s=vendor.idle_timeout)
        self._task = spawn(self.upstreams.run())

    def fits(self, vendor: ContentsquareSettings, ca: bytes) -> bool:
        """Whether it is the way that these settings ask for."""
        return ca == self._ca and all(getattr(vendor, key) == getattr(self._vendor, key) for key in _WAY)

    def trusts_like(self, other: Outward) -> bool:
        """Whether both ask the same endpoint and send tokens to the same hosts."""
        mine, theirs = self._vendor, other._vendor
        return (mine.auth_url, mine.allowed_endpoints) == (theirs.auth_url, theirs.allowed_endpoints)

    async def close(self) -> None:
        """End all that is left of it."""
        self._task.cancel()
        self.upstreams.close()
        await self._session.close()


@dataclass(frozen=True, slots=True)
class Generation:
    """What requests see. ``guards`` and ``owners`` go with the listeners, by index."""

    settings: Settings
    outward: Outward
    forwarder: Forwarder
    projects: Mapping[str, Project]
    router: Router
    callers: Callers
    guards: tuple[Guard, ...]
    owners: tuple[Project | None, ...]

    def secrets(self) -> Iterator[str]:
        """Everything in the settings that no log line may hold."""
        owners: list[Access] = [*self.settings.projects.values(), *self.settings.accounts.values()]
        for owner in owners:
            yield owner.client_secret.get_secret_value()
            if owner.standby is not None:
                yield owner.standby.client_secret.get_secret_value()
        for caller in self.settings.callers.values():
            yield caller.key.get_secret_value()

    def redact(self) -> None:
        """Keep its secrets out of the log, until `unredact`."""
        for secret in self.secrets():
            redactor.add(secret)

    def unredact(self) -> None:
        """Take `redact` back."""
        for secret in self.secrets():
            redactor.discard(secret)


@dataclass(frozen=True, slots=True)
class Step:
    """From one generation to the next: which projects have to be started, and which are on their way out."""

    generation: Generation
    fresh: Sequence[Project]
    leaving: Sequence[Project]


class Generations:
    """Makes them, from what outlives them all: listeners, slots, stored answers, and accounts' projects."""

    def __init__(self, listeners: Sequence[Listener], *, limit: int, spawn: Spawn, on_event: OnEvent) -> None:
        self.accounts = AccountProjects()
        self._listeners = listeners
        self._slots = SharedSlots(limit)
        self.answers = Store()
        self._spawn = spawn
        self._on_event = on_event

    def next(self, planned: Plan, before: Generation | None) -> Step:
        """The generation after ``before``, None for the first. Starts nothing, and ends nothing."""
        settings = planned.settings
        vendor = settings.contentsquare
        if planned.context is not None:
            outward = Outward(vendor, planned.ca, planned.context, self._spawn)
            if before is not None:
                outward.endpoint.take_over(before.outward.endpoint)
        elif before is not None:
            outward = before.outward
        else:
            raise ValueError("the first generation needs a context")
        projects, fresh = self._projects(settings, outward, before)
        leaving = [] if before is None else self._leaving(settings, outward, before, projects)
        if vendor.max_concurrency != self._slots.limit:
            self._slots.limit = vendor.max_concurrency
        default = settings.default_project
        generation = Generation(
            settings=settings,
            outward=outward,
            forwarder=Forwarder(outward.upstreams, queue_timeout_s=vendor.queue_timeout),
            projects=projects,
            router=Router(
                projects,
                default=projects[default] if default is not None else None,
                accounts=frozenset(settings.accounts),
                account_project=lambda account, number: self._of_account(settings, outward, account, number),
            ),
            callers=Callers(settings.callers),
            guards=tuple(
                Guard(one.port, (*_own_address(one), *settings.server.allowed_hosts))
                for one in self._listeners
            ),
            owners=tuple(projects.get(one.project) if one.project else None for one in self._listeners),
        )
        return Step(generation, fresh, leaving)

    def _projects(
        self, settings: Settings, outward: Outward, before: Generation | None
    ) -> tuple[dict[str, Project], list[Project]]:
        """All projects by name, and those of them that are new."""
        projects, fresh = {}, []
        for name, configured in settings.projects.items():
            old = before.projects.get(name) if before is not None else None
            if old is None or before is None:
                project = self._make(name, configured, outward, configured.project_id, from_start=True)
            elif before.outward is outward and is_same(before.settings.projects[name], configured):
                old.expires = configured.expires
                old.start_over()
                projects[name] = old
                continue
            else:
                project = self._make(name, configured, outward, configured.project_id, from_start=True)
                if before.outward.trusts_like(outward):
                    project.inherit(old)
            projects[name] = project
            fresh.append(project)
        return projects, fresh

    def _leaving(
        self, settings: Settings, outward: Outward, before: Generation, projects: Mapping[str, Project]
    ) -> list[Project]:
        leaving = [old for name, old in before.projects.items() if projects.get(name) is not old]
        for name, configured in before.settings.accounts.items():
            now = settings.accounts.get(name)
            if now is None or outward is not before.outward or not is_same(configured, now):
                make = functools.partial(self._successor, settings, outward, before)
                leaving += self.accounts.replace(name, make)
        for project in self.accounts:
            project.expires = settings.accounts[project.name.partition("/")[0]].expires
            project.start_over()
        return leaving

    def _make(
        self,
        name: str,
        access: ProjectSettings | AccountSettings,
        outward: Outward,
        project_id: int | None,
        *,
        from_start: bool,
    ) -> Project:
        return Project(
            name,
            Grant(
                access,
                project_id,
                access.integration_id if isinstance(access, ProjectSettings) else None,
                access.apis,
                access.standby,
            ),
            Services(
                endpoint=outward.endpoint,
                slots=self._slots,
                spawn=self._spawn,
                on_event=self._on_event,
                on_lease=lambda lease: outward.upstreams.warm(lease.origin),
            ),
            read_only=access.read_only,
            from_start=from_start,
            expires=access.expires,
            shared_answers=self._shared_answers(access),
        )

    def _shared_answers(self, access: Access) -> SharedAnswers | None:
        if not (access.coalesce or access.cache):
            return None
        return SharedAnswers(self.answers.shelf(), access.cache)

    def _of_account(
        self, settings: Settings, outward: Outward, account: str, project_id: int
    ) -> Project | None:
        configured = settings.accounts[account]
        if not _is_of(configured, project_id):
            return None
        return self.accounts.get(
            f"{account}/{project_id}",
            lambda name: self._make(name, configured, outward, project_id, from_start=False),
        )

    def _successor(
        self, settings: Settings, outward: Outward, before: Generation, old: Project
    ) -> Project | None:
        """What an account's project becomes when the account changes; None: nothing, or made anew on use."""
        configured = settings.accounts.get(old.name.partition("/")[0])
        if configured is None or not _is_of(configured, old.project_id):
            return None
        if not before.outward.trusts_like(outward):
            return None
        project = self._make(old.name, configured, outward, old.project_id, from_start=False)
        project.inherit(old)
        return project


def _is_of(account: AccountSettings, project_id: int | None) -> bool:
    """Whether callers may use the account's credentials for a project."""
    return account.projects is None or project_id in account.projects


def _own_address(listener: Listener) -> Iterator[str]:
    """The Host of a listener on a loopback address, on 127.0.0.2, say: that is no name to be rebound."""
    with contextlib.suppress(ValueError):  # a Unix socket, or a name, for which there is allowed_hosts
        origin = Origin.parse(listener.url)
        if origin.is_loopback:
            yield origin.authority
