"""Makes the next generation from settings and from the generation before.

Hides the parts that a new configuration doesn't change: a project with the same settings stays the same
object, with its tokens and slots, and so does the way out to Contentsquare. Must not know listeners'
sockets, files, or when a reload is due.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence

from proxy.config.changes import is_same
from proxy.config.settings import Access, AccountSettings, ProjectSettings, Settings
from proxy.gateway.callers import Callers
from proxy.gateway.generation import Generation, Step
from proxy.gateway.guard import LOOPBACK_NAMES, Guard
from proxy.gateway.outward import Outward, Plan
from proxy.gateway.route import Router
from proxy.logs import OnEvent
from proxy.origin import Origin
from proxy.projects import AccountProjects, Grant, Project, Services, SharedSlots, Spawn
from proxy.projects.calls import MonthlyCalls
from proxy.projects.renewals import Renewals
from proxy.projects.shared_answers import SharedAnswers
from proxy.projects.stored import Store
from proxy.server.request import Listener
from proxy.upstream.loop import OwnListeners


class Generations:
    """Makes generations, and holds the parts that outlive them: slots, stored answers, accounts' projects."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        calls: MonthlyCalls,
        *,
        limit: int,
        spawn: Spawn,
        on_event: OnEvent,
    ) -> None:
        self.accounts = AccountProjects()
        self._listeners = listeners
        self._calls = calls
        self.slots = SharedSlots(limit)
        self.renewals = Renewals(on_event=on_event)
        self.answers = Store()
        self._spawn = spawn
        self._on_event = on_event

    def next(self, planned: Plan, before: Generation | None) -> Step:
        """The generation after ``before``, None for the first. Starts nothing, and ends nothing."""
        settings = planned.settings
        vendor = settings.contentsquare
        outward = self._outward(planned, before)
        projects, fresh = self._projects(settings, outward, before)
        leaving = [] if before is None else self._leaving(settings, outward, before, projects)
        if vendor.max_concurrency != self.slots.limit:
            self.slots.limit = vendor.max_concurrency
        default = settings.default_project
        generation = Generation(
            settings=settings,
            outward=outward,
            queue_timeout_s=vendor.queue_timeout,
            projects=projects,
            router=Router(
                projects,
                default=projects[default] if default is not None else None,
                accounts=frozenset(settings.accounts),
                account_project=functools.partial(self._of_account, settings, outward),
            ),
            callers=Callers(settings.callers),
            guards=tuple(
                Guard(
                    listener.port,
                    (*_own_hosts(listener, settings.server.port), *settings.server.host_values),
                )
                for listener in self._listeners
            ),
            owners=tuple(
                None if listener.project is None else projects.get(listener.project)
                for listener in self._listeners
            ),
        )
        return Step(generation, fresh, leaving)

    def _outward(self, planned: Plan, before: Generation | None) -> Outward:
        """The way out of the generation before if ``planned`` keeps it, else a new one."""
        if planned.tls is None:
            if before is None:
                raise ValueError("the first generation needs a TLS context")
            return before.outward
        outward = Outward(
            planned.settings.contentsquare,
            planned.ca_digest,
            planned.tls,
            self._spawn,
            self._on_event,
            own=OwnListeners(address for one in self._listeners for address in one.addresses),
        )
        if before is not None:
            outward.endpoint.share_pauses(before.outward.endpoint)
        return outward

    def _projects(
        self, settings: Settings, outward: Outward, before: Generation | None
    ) -> tuple[dict[str, Project], list[Project]]:
        """All projects by name, and the new ones among them."""
        projects, fresh = {}, []
        for name, configured in settings.projects.items():
            old = None if before is None else before.projects.get(name)
            old_settings = None if before is None else before.settings.projects.get(name)
            is_kept = before is not None and before.outward is outward and is_same(old_settings, configured)
            if old is not None and is_kept:
                old.expires = configured.expires
                old.start_over()
                projects[name] = old
                continue
            project = self._make(name, configured, outward, configured.project_id, from_start=True)
            if before is not None and old is not None and before.outward.trusts_like(outward):
                project.inherit(old)
            projects[name] = project
            fresh.append(project)
        return projects, fresh

    def _leaving(
        self, settings: Settings, outward: Outward, before: Generation, projects: Mapping[str, Project]
    ) -> list[Project]:
        """The old projects that no new request will reach; projects of changed accounts are replaced."""
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
            Grant.of(access, project_id),
            Services(
                endpoint=outward.endpoint,
                slots=self.slots,
                spawn=self._spawn,
                on_event=self._on_event,
                on_lease=lambda lease: outward.upstreams.warm(lease.origin),
                renewals=self.renewals,
                calls=self._calls,
            ),
            read_only=access.read_only,
            from_start=from_start,
            is_proven=not isinstance(access, AccountSettings) or access.projects is not None,
            expires=access.expires,
            shared_answers=self._shared_answers(access),
        )

    def _shared_answers(self, access: Access) -> SharedAnswers | None:
        if not (access.coalesce or access.cache):
            return None
        return SharedAnswers(self.answers.shelf(), access.cache)

    def _of_account(
        self, settings: Settings, outward: Outward, account: str, project_id: int, caller: str
    ) -> Project | None:
        configured = settings.accounts[account]
        if not _is_of(configured, project_id):
            return None
        return self.accounts.get(
            f"{account}/{project_id}",
            lambda name: self._make(name, configured, outward, project_id, from_start=False),
            caller,
        )

    def _successor(
        self, settings: Settings, outward: Outward, before: Generation, old: Project
    ) -> Project | None:
        """The project that takes the place of an account's project when the account changes.

        None where the account allows it no longer, or where nothing of the old one can be inherited: a
        request will make a new one.
        """
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


def _own_hosts(listener: Listener, port: int) -> Iterator[str]:
    """The Host value of a listener on a loopback address such as 127.0.0.2, which DNS can't rebind.

    A Unix socket, which no web page reaches, is called by the URLs of the main ``port``, too.
    """
    if listener.is_unix:
        yield from (f"{name}:{port}" for name in LOOPBACK_NAMES)
    with contextlib.suppress(ValueError):  # a Unix socket, or a name: that needs server.allowed_hosts
        origin = Origin.parse(listener.url)
        if origin.is_loopback:
            yield origin.authority
