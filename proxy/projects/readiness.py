"""The tokens that a project wants from the start and has not: a line for people for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from proxy.contentsquare import Api
from proxy.errors import TokenFetchError
from proxy.tokens import LeaseKeeper
from proxy.tokens.breaker import Outage

NO_TOKEN, NO_APIS = NOT_YET = "no token yet", "the APIs of its credentials are not known yet"
"""The reasons that are no failures."""


def missing(
    name: str,
    wanted: Collection[Api] | None,
    keepers: Mapping[Api, LeaseKeeper],
    outage: Outage | None,
    error: TokenFetchError | None,
) -> list[str]:
    """A line for each of the ``wanted`` tokens that is not usable now: its reason.

    ``wanted`` None: the APIs of the credentials are not known yet, perhaps because of ``error``.
    """
    if wanted is None:
        why = outage.error if outage is not None else error
        return [f"{name}: {why or NO_APIS}"]
    lines = []
    for api in wanted:
        keeper = keepers.get(api)
        if keeper is None or keeper.current() is None:
            last = None if keeper is None else keeper.record.last_error
            lines.append(f"{name}/{api.value}: {last or NO_TOKEN}")
    return lines
