"""When a token is fetched next: the refresh of a lease, and the next try after a failure.

Decides about numbers only: no I/O and no tasks. All moments are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from proxy.errors import TokenFetchError
from proxy.tokens.lease import Lease

SLACK_S = 600.0
"""The rest of a life at the start of its refresh: callers don't notice an outage that is shorter."""
MIN_REFRESH_S = 0.25
"""The least time between two fetches that succeed: not even an absurd ``expires_in`` makes a flood."""
BACKOFF_S = (0.2, 1.0, 60.0)
"""After a transient failure: the least delay, the first ceiling, the last ceiling."""
PERMANENT_BACKOFF_S = (60.0, 300.0)
"""After a failure that a new try can't cure: the first delay, the last."""
RETRY_AFTER_CAP_S = 300.0
"""The longest ``Retry-After`` of the token endpoint that is obeyed."""
PATIENT_FAILURES = 12
"""Of a pair of credentials that was good, so many failures more than of another one have short delays."""
MOVE_GAP_S = (30.0, 600.0)
"""From one fetch because the cloud can't be reached to the next one: at first, and at most."""
LAST_LOOK = 0.8
"""When this share of an unused lease's life is over, its keeper looks once more whether it is used."""
MIN_GAP_S = 1.0
"""The least time from the start of one fetch to the start of the next, if `Schedule.hurry` asks for it."""


def refresh_delay_s(lifetime_s: float, rng: random.Random) -> float:
    """From receipt to refresh, in seconds: about half of the life, +-10 %; always > 0.

    A life under 20 minutes is refreshed before its half, to leave `SLACK_S` for an outage, but not
    before its third. The jitter keeps many keepers from meeting at the token endpoint.
    """
    due = max(min(lifetime_s / 2, lifetime_s - SLACK_S), lifetime_s / 3)
    return max(MIN_REFRESH_S, due * rng.uniform(0.9, 1.1))


def retry_delay_s(
    error: TokenFetchError, failures_in_a_row: int, usable_for_s: float, rng: random.Random
) -> float:
    """From a failure to the next try, in seconds; always > 0.

    Transient failures: exponential with full jitter and, while a lease is still usable, at most half of
    ``usable_for_s``. Permanent failures: slow. Never sooner than the token endpoint's ``Retry-After``.
    """
    doublings = min(failures_in_a_row - 1, 16)
    if error.permanent:
        first, last = PERMANENT_BACKOFF_S
        delay = max(first, min(last, math.ldexp(first, doublings)) * rng.uniform(0.9, 1.0))
    else:
        least, first, last = BACKOFF_S
        ceiling = min(last, math.ldexp(first, doublings))
        if usable_for_s > 0:
            ceiling = min(ceiling, usable_for_s / 2)
        delay = rng.uniform(least, max(least, ceiling))
    retry_after_s = min(error.retry_after_s or 0.0, RETRY_AFTER_CAP_S)
    return max(delay, retry_after_s * rng.uniform(1.0, 1.1))


class Schedule:
    """The time of one lease's next fetch: ``due_at``, which is infinite for never, and now at first."""

    def __init__(self, monotonic: Callable[[], float], rng: random.Random) -> None:
        self.due_at = monotonic()
        self._monotonic = monotonic
        self._rng = rng
        self._started_at = -math.inf
        self._paused_until = -math.inf  # by the token endpoint's Retry-After
        self._was_good = False
        self._looked_at = -math.inf
        self._look_gap_s = 0.0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next fetch; 0.0 if it is due."""
        return max(0.0, self.due_at - self._monotonic())

    def started(self) -> None:
        """A fetch starts now."""
        self._started_at = self._monotonic()

    def succeeded(self, lease: Lease) -> None:
        """The fetch brought this lease."""
        self._was_good = True
        self._paused_until = -math.inf
        refresh_at = lease.received_at + refresh_delay_s(lease.lifetime_s, self._rng)
        self.due_at = max(refresh_at, self._monotonic() + MIN_REFRESH_S)

    def failed(self, error: TokenFetchError, failures_in_a_row: int, usable_for_s: float) -> float:
        """The fetch failed, and the lease at hand is usable for so long. Returns the delay, in seconds.

        In an outage of the token endpoint there is none: the next fetch waits at the breaker.
        """
        if error.is_outage:
            self.due_at = self._monotonic()
            return 0.0
        if self._was_good:
            failures_in_a_row = max(min(failures_in_a_row, 4), failures_in_a_row - PATIENT_FAILURES)
        delay_s = retry_delay_s(error, failures_in_a_row, usable_for_s, self._rng)
        self.due_at = self._monotonic() + delay_s
        self._paused_until = self.due_at if error.retry_after_s else -math.inf
        return delay_s

    def hurry(self, gap_s: float = MIN_GAP_S) -> None:
        """Fetch as soon as the gap and the endpoint's ``Retry-After`` allow, and never later than planned."""
        earliest = max(self._monotonic(), self._started_at + gap_s, self._paused_until)
        self.due_at = min(self.due_at, earliest)

    def look_for_move(self) -> bool:
        """Whether to fetch because the cloud can't be reached: a new token may name another endpoint.

        False within a gap that doubles from one such fetch to the next, and begins anew after a pause.
        """
        now, (least, most) = self._monotonic(), MOVE_GAP_S
        since_s = now - self._looked_at
        if since_s < self._look_gap_s:
            return False
        self._look_gap_s = least if since_s >= 2 * most else min(most, 2 * self._look_gap_s)
        self._looked_at = now
        return True

    def moved(self) -> None:
        """The new lease names another endpoint: the gap of `look_for_move` begins anew."""
        self._look_gap_s = MOVE_GAP_S[0]

    def suspended(self, seconds: float) -> None:
        """The machine slept for so long: the pause of a ``Retry-After`` ends sooner by that time."""
        self._paused_until -= seconds

    @property
    def is_stopped(self) -> bool:
        """Whether no fetch is due."""
        return self.due_at == math.inf

    def idle(self, lease: Lease | None) -> None:
        """No request needs a lease now: look once more near the end of this usable one, then at no time."""
        look_at = -math.inf if lease is None else lease.received_at + LAST_LOOK * lease.lifetime_s
        self.due_at = look_at if look_at > self._monotonic() else math.inf

    def stop(self) -> None:
        """No fetch is due any more, until `hurry`."""
        self.due_at = math.inf
