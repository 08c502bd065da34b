"""The tokens that a project wants from the start: which of them are there, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from proxy.contentsquare import Api
from proxy.errors import TokenFetchError
from proxy.projects.discovery import Discovery
from proxy.tokens import LeaseKeeper
from proxy.tokens.breaker import Outage

NO_TOKEN, NO_APIS = NOT_YET = "no token yet", "the APIs of its credentials are not known yet"
"""The reasons that are no failures."""


class Readiness:
    """The ``wanted`` tokens of the project ``name``; None: the APIs of its credentials are not known yet.

    ``discovery`` finds them out. ``outage`` returns the present outage of the token endpoint, or None.
    """

    def __init__(
        self,
        name: str,
        wanted: Sequence[Api] | None,
        discovery: Discovery,
        keepers: Mapping[Api, LeaseKeeper],
        outage: Callable[[], Outage | None],
    ) -> None:
        self.wanted = wanted
        self._name = name
        self._discovery = discovery
        self._keepers = keepers
        self._outage = outage

    @property
    def is_settled(self) -> bool:
        """Whether the first fetch of every wanted token has ended, well or not."""
        if self.wanted is None:
            return self.apis_error is not None
        return all(api in self._keepers and self._keepers[api].is_settled for api in self.wanted)

    @property
    def apis_error(self) -> TokenFetchError | None:
        """Why the wanted APIs are not known; None if they are, or if no try has failed yet."""
        if self.wanted is not None:
            return None
        outage = self._outage()
        return self._discovery.error if outage is None else outage.error

    @property
    def outage_failures(self) -> int:
        """How many token requests have failed in the present outage of the token endpoint; 0 without one."""
        outage = self._outage()
        return 0 if outage is None else outage.failures

    def missing(self) -> list[str]:
        """A line, for people, for each wanted token that is not usable now: its reason."""
        if self.wanted is None:
            return [f"{self._name}: {self.apis_error or NO_APIS}"]
        lines = []
        for api in self.wanted:
            keeper = self._keepers.get(api)
            if keeper is None or keeper.current() is None:
                last = None if keeper is None else keeper.record.last_error
                lines.append(f"{self._name}/{api.value}: {last or NO_TOKEN}")
        return lines
