"""One version of the running configuration, for requests.

A request uses one `Generation` from its start to its end, so that it never meets half of a reload.
`proxy.app.build` makes the generations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxy.config.settings import Access, Settings
from proxy.errors import UnknownProject
from proxy.gateway.callers import Caller, Callers
from proxy.gateway.guard import Guard
from proxy.gateway.outward import Outward
from proxy.gateway.route import Route, Router, named_by_fields
from proxy.http1.heads import RequestHead
from proxy.logs import redactor
from proxy.projects import Project
from proxy.server.request import Listener


@dataclass(frozen=True, slots=True)
class Generation:
    """The settings, and the objects for requests that were made from them.

    ``queue_timeout_s`` is how long a request may wait for a slot. ``guards`` and ``owners`` have one entry
    for each listener: an owner is the listener's own project, None if it has none.
    """

    settings: Settings
    outward: Outward
    queue_timeout_s: float
    projects: Mapping[str, Project]
    router: Router
    callers: Callers
    guards: tuple[Guard, ...]
    owners: tuple[Project | None, ...]

    def route(self, head: RequestHead, listener: Listener, caller: Caller | None, target: bytes) -> Route:
        """The route of a request that came through this listener. Raises ProxyError if there is none."""
        own = None if listener.project is None else self.owner(listener, caller)
        named = head.section.named or named_by_fields(head.section)
        return self.router.route(target, caller, own, named)

    def owner(self, listener: Listener, caller: Caller | None) -> Project | None:
        """The listener's own project; None if it has none. Raises UnknownProject."""
        own = self.owners[listener.index]
        if caller is not None and listener.project is not None and not caller.may_use(listener.project):
            raise UnknownProject("This port has no project that this caller may use; try another port.")
        if own is None and listener.project is not None:
            raise UnknownProject(f"The project {listener.project} of this port is no longer configured.")
        return own

    def project(self, name: str, caller: Caller | None) -> Project:
        """The project of this name, such as ``shop`` or ``acme/42``. Raises UnknownProject."""
        return self.router.project(name.encode(), caller)

    def secrets(self) -> Iterator[str]:
        """All values in the settings that must be in no log line."""
        owners: list[Access] = [*self.settings.projects.values(), *self.settings.accounts.values()]
        for owner in owners:
            yield owner.client_secret.get_secret_value()
            if owner.standby is not None:
                yield owner.standby.client_secret.get_secret_value()
        for caller in self.settings.callers.values():
            yield caller.key.get_secret_value()

    def redact(self) -> None:
        """Keep these secrets out of the log until `unredact` is called."""
        for secret in self.secrets():
            redactor.add(secret)

    def unredact(self) -> None:
        """Undo one `redact`."""
        for secret in self.secrets():
            redactor.discard(secret)


@dataclass(frozen=True, slots=True)
class Step:
    """A change to ``generation``: the ``fresh`` projects must be started, the ``leaving`` ones retired."""

    generation: Generation
    fresh: Sequence[Project]
    leaving: Sequence[Project]
