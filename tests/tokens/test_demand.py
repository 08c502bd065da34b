"""A lease that was fetched on first use: refreshed until no request has used it for two lifetimes."""

from __future__ import annotations

from typing import cast

from support.keeping import EU

from proxy.tokens import Lease
from proxy.tokens.demand import IDLE_LIVES, Demand

LIFE_S = 100.0
LEASE = Lease("token", EU, "metrics", None, LIFE_S, 0.0, cast(object, None))  # type: ignore[arg-type]


class Requests:
    """The requests for one lease, and a clock."""

    def __init__(self) -> None:
        self.now, self.uses, self.running, self.kept = 0.0, 0, False, False
        self.demand = Demand(lambda: self.kept, lambda: self.uses, lambda: self.running, lambda: self.now)


def test_a_lease_is_wanted_until_no_request_has_used_it_for_two_lifetimes() -> None:
    requests = Requests()
    requests.now = IDLE_LIVES * LIFE_S - 1
    assert requests.demand.is_there(LEASE)
    requests.uses += 1
    assert requests.demand.is_there(LEASE)
    requests.now += IDLE_LIVES * LIFE_S - 1
    assert requests.demand.is_there(LEASE)
    requests.now += 1
    assert not requests.demand.is_there(LEASE)
    requests.demand.use()
    assert requests.demand.is_there(LEASE)


def test_a_lease_of_the_configuration_is_always_wanted() -> None:
    requests = Requests()
    requests.now, requests.kept = 1e6, True
    assert requests.demand.is_there(LEASE)
    assert requests.demand.is_there(None)


def test_a_lease_that_never_came_is_wanted_only_while_a_request_waits() -> None:
    requests = Requests()
    assert not requests.demand.is_there(None)
    requests.running = True
    assert requests.demand.is_there(None)


def test_a_lease_that_never_came_is_fetched_once_for_a_person_who_asks_for_it() -> None:
    requests = Requests()
    requests.demand.use()
    assert requests.demand.is_there(None)
    assert not requests.demand.is_there(None)
