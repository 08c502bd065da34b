"""A lease: one token with its origin and its life; and the state of a lease. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from proxy.errors import TokenFetchError
from proxy.origin import Origin

MARGIN_S = 30.0
"""A lease goes out of use this long before its end; if its life is short, for the last tenth of it."""

State = Literal["fetching", "fresh", "stale", "failing", "refused", "idle"]


@dataclass(frozen=True, slots=True)
class Lease:
    """A token, the origin that it is for, and its life: always from one and the same token answer.

    ``lifetime_s`` counts from ``received_at``, the monotonic second in which the request for it
    was *sent*, so that a slow answer can't stretch it. ``expires_at`` is UTC, for people and for
    noticing a suspend. ``project_id`` is the one that the answer named, None where it named none.
    ``authorization`` is the value of the field Authorization (RFC 6750, section 2.1), made here unless
    it is given; ``host`` is the value of Host for the origin.
    """

    access_token: str = field(repr=False)
    origin: Origin
    scope: str
    project_id: int | None
    lifetime_s: float
    received_at: float
    expires_at: datetime
    authorization: bytes = field(default=b"", repr=False)
    host: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", self.origin.authority.encode())
        if not self.authorization:
            object.__setattr__(self, "authorization", b"Bearer " + self.access_token.encode("ascii"))

    @property
    def usable_until(self) -> float:
        """The monotonic second from which on this lease is out of use."""
        return self.received_at + self.lifetime_s - safety_margin_s(self.lifetime_s)

    def seconds_left(self, now: float) -> float:
        """The life that is left at a monotonic second; 0.0 at and after its end."""
        return max(0.0, self.received_at + self.lifetime_s - now)


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """The state of a lease, for ``/-/status`` and ``/-/ready``; holds no token.

    ``state``: "fetching" (no usable lease, and no failure yet), "fresh", "stale" (usable, but the last
    refresh failed), "failing" (not usable, after a transient failure), "refused" (not usable, after a
    permanent failure), "idle" (not usable, no failure, and fetched when a request needs it).
    ``is_wanted`` False: it is not refreshed, as no request has needed it for long, and lasts to its end.
    ``endpoint``, ``seconds_left`` and ``expires_at`` are None without a lease. ``last_error`` and
    ``last_error_at`` stay after a later success; ``permanent`` and ``failures_in_a_row`` are about now.
    ``next_try_in_s`` is None while a fetch is under way, and infinite if none is due.
    """

    name: str
    state: State
    usable: bool
    is_wanted: bool
    endpoint: str | None
    seconds_left: float | None
    expires_at: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    permanent: bool
    failures_in_a_row: int
    refreshes: int
    next_try_in_s: float | None


def safety_margin_s(lifetime_s: float) -> float:
    """How long before its end a lease goes out of use, in seconds."""
    return min(MARGIN_S, lifetime_s / 10)


def state_of(error: TokenFetchError | None, *, usable: bool, is_due: bool = True) -> State:
    """The state of a lease; ``error`` is that of the last fetch, None if it succeeded or none ended yet.

    ``is_due`` False: none is fetched before a request needs it.
    """
    if usable:
        return "fresh" if error is None else "stale"
    if error is None:
        return "fetching" if is_due else "idle"
    return "refused" if error.permanent else "failing"
