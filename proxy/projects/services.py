"""The services that all projects of a process share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from proxy.logs import OnEvent, ignore_event
from proxy.projects.calls import MonthlyCalls
from proxy.projects.renewals import Renewals
from proxy.projects.slots import SharedSlots
from proxy.tokens import SYSTEM_CLOCK, Clock, Lease, TokenEndpoint

Spawn = Callable[[Coroutine[object, object, None]], asyncio.Task[None]]
"""Starts a background task."""


def _ignore_lease(lease: Lease) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the running proxy that a `Project` works with.

    ``on_event`` is called with the events of `LeaseKeeper`, and with ``apis_discovered``,
    ``api_discovery_failed`` and ``credentials_switched``. ``on_lease`` is called with each new lease.
    """

    endpoint: TokenEndpoint
    slots: SharedSlots
    spawn: Spawn
    on_event: OnEvent = ignore_event
    on_lease: Callable[[Lease], None] = _ignore_lease
    clock: Clock = SYSTEM_CLOCK
    renewals: Renewals = field(default_factory=Renewals)
    calls: MonthlyCalls = field(default_factory=MonthlyCalls)
