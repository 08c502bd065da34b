"""One version of the running configuration, as requests see it.

A request reads one `Generation` and lives by it, so that it never meets half of a reload. How the next one is
made is for `proxy.app.build` to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxy.config.settings import Access, Settings
from proxy.gateway.callers import Callers
from proxy.gateway.guard import Guard
from proxy.gateway.outward import Outward
from proxy.gateway.route import Router
from proxy.logs.setup import redactor
from proxy.projects import Project


@dataclass(frozen=True, slots=True)
class Generation:
    """The settings, and what was made of them for requests.

    ``queue_timeout_s`` is how long a request may wait for a slot. ``guards`` and ``owners`` go with the
    listeners, by index: an owner is the listener's own project, None where it has none.
    """

    settings: Settings
    outward: Outward
    queue_timeout_s: float
    projects: Mapping[str, Project]
    router: Router
    callers: Callers
    guards: tuple[Guard, ...]
    owners: tuple[Project | None, ...]

    def secrets(self) -> Iterator[str]:
        """Every value in the settings that no log line may hold."""
        owners: list[Access] = [*self.settings.projects.values(), *self.settings.accounts.values()]
        for owner in owners:
            yield owner.client_secret.get_secret_value()
            if owner.standby is not None:
                yield owner.standby.client_secret.get_secret_value()
        for caller in self.settings.callers.values():
            yield caller.key.get_secret_value()

    def redact(self) -> None:
        """Keep these secrets out of the log, until `unredact`."""
        for secret in self.secrets():
            redactor.add(secret)

    def unredact(self) -> None:
        """Undo one `redact`."""
        for secret in self.secrets():
            redactor.discard(secret)


@dataclass(frozen=True, slots=True)
class Step:
    """From one generation to the next: ``fresh`` projects have to be started, ``leaving`` ones retired."""

    generation: Generation
    fresh: Sequence[Project]
    leaving: Sequence[Project]
