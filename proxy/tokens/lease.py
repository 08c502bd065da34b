"""*When* a lease is fetched, kept, refused and replaced: one keeper per (project, API).

A lease is one immutable snapshot: the token, the base URL that belongs to it, and its life. A
keeper's `LeaseKeeper.run` is the only writer; a request reads `LeaseKeeper.current` and never
fetches. So there is one fetch at a time by construction, and a failed refresh can't take away a
token that is still valid. Knows nothing of OAuth or HTTP: it is given a ``fetch``, and a clock.
Life is counted on the monotonic clock, which a change of the wall clock can't stretch; the wall
clock is compared as well, because the monotonic one stands still while a laptop sleeps.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

from proxy.errors import TokenFetchError, TokenUnavailable
from proxy.logs.events import OnEvent
from proxy.origin import Origin

MARGIN_S = 30.0
"""A lease is out of use this long before its end, or for the last tenth of a short life."""
SLACK_S = 600.0
"""What is left of a life when its refresh begins: an outage that long passes unnoticed."""
MIN_REFRESH_S = 0.25
"""Between two fetches that succeed: not even an absurd ``expires_in`` makes a flood."""
BACKOFF_S = (0.2, 1.0, 60.0)
"""After a transient failure: the least delay, the first ceiling, the last ceiling."""
PERMANENT_BACKOFF_S = (60.0, 300.0)
"""After a failure that trying again can't cure: the first delay, the last."""
RETRY_AFTER_CAP_S = 300.0
"""What is obeyed of the token endpoint's ``Retry-After`` at most."""
FORCED_REFRESH_GAP_S = 30.0
"""Between two refreshes that a 401 forces: an upstream that says 401 to everything makes no flood."""
MIN_GAP_S = 1.0
"""Between the starts of two fetches that were asked for."""
SLICE_S = 15.0
"""The longest sleep in one piece; the clocks are compared after each."""
CLOCK_JUMP_S = 10.0
"""How far the wall clock may run ahead of the monotonic one before it counts as suspend; the safety
margin where that is less."""
UNDER_WAY_S = 5
"""``Retry-After`` while a fetch is under way."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A token, the origin it is for, and its life; never two generations mixed.

    ``lifetime_s`` counts from ``received_at``, the monotonic second in which the request for it
    was *sent*, so that a slow answer can't stretch it. ``expires_at`` is UTC, for people and for
    noticing suspend. ``project_id`` is the one that the answer named, None where it named none.
    ``authorization`` is the value of the field, made here unless given (RFC 6750, section 2.1), and
    ``host`` that of Host for its origin.
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


class Clock(Protocol):
    """Both clocks and a sleep, so that tests needn't wait."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back, and may stand still during suspend."""
        ...

    def time(self) -> float:
        """Wall clock: seconds since 1970 (UTC)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds of the monotonic clock."""
        ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = SystemClock()

Fetch = Callable[[], Awaitable[Lease]]
State = Literal["fetching", "fresh", "stale", "failing", "refused"]


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """How a keeper is doing, for ``/-/status`` and ``/-/ready``; holds no token.

    ``state``: "fetching" (none yet, or its replacement is on the way), "fresh", "stale" (usable, but
    the last refresh failed), "failing" (none usable, transient), "refused" (none usable, permanent).
    ``endpoint``, ``seconds_left`` and ``expires_at`` are None without a lease. ``last_error`` stays
    after it was overcome, ``permanent`` and ``failures_in_a_row`` speak of now. ``next_try_in_s`` is
    None while a try is under way.
    """

    name: str
    state: State
    usable: bool
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


def _usable_until(lease: Lease) -> float:
    return lease.received_at + lease.lifetime_s - safety_margin_s(lease.lifetime_s)


def refresh_delay_s(lifetime_s: float, rng: random.Random) -> float:
    """From receipt to refresh, in seconds: about half of the life, +-10 %; always > 0.

    Lives under 20 minutes are refreshed earlier than half, to leave `SLACK_S` for an outage, but
    not before a third of them. Jitter keeps many keepers from meeting at the token endpoint.
    """
    due = max(min(lifetime_s / 2, lifetime_s - SLACK_S), lifetime_s / 3)
    return max(MIN_REFRESH_S, due * rng.uniform(0.9, 1.1))


def retry_delay_s(
    error: TokenFetchError, failures_in_a_row: int, usable_for_s: float, rng: random.Random
) -> float:
    """From a failure to the next try, in seconds; always > 0.

    Transient: exponential with full jitter, and while a lease is still usable never past half of
    what is left of it. Permanent: slow. Never sooner than the token endpoint asked for.
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
    asked = min(error.retry_after_s or 0.0, RETRY_AFTER_CAP_S)
    return max(delay, asked * rng.uniform(1.0, 1.1))


class LeaseKeeper:
    """Keeps one lease fresh, and lets requests wait for the first one.

    ``fetch`` makes a lease or raises `TokenFetchError`. ``name`` says whose lease it is, in messages
    and events. ``inherited`` is a lease that somebody else fetched, good until the first one of our
    own is here. ``on_event`` hears past-tense events with their values (never a token):
    ``token_fetched``, ``token_endpoint_changed``, ``token_fetch_failed``, ``token_rejected``,
    ``clock_jumped``.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        name: str,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: OnEvent | None = None,
        inherited: Lease | None = None,
    ) -> None:
        self.name = name
        self._fetch = fetch
        self._monotonic, self._wall, self._sleep = clock.monotonic, clock.time, clock.sleep
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._on_event = on_event
        self._lease: Lease | None = None
        self._usable_until = -math.inf
        self._usable_until_wall = -math.inf
        self._rejected = False
        self._error: TokenFetchError | None = None
        self._last_error: str | None = None
        self._last_error_at: datetime | None = None
        self._failures = 0
        self._refreshes = 0
        self._fetching = False
        self._tried_at = -math.inf
        self._forced_at = -math.inf
        self._hold_until = -math.inf  # the token endpoint's Retry-After
        self._due_at = clock.monotonic()
        self._wall_ahead_s = self._wall_minus_monotonic()
        self._jump_s = CLOCK_JUMP_S
        self._nap: asyncio.Timeout | None = None
        self._attempt_done = asyncio.Event()  # a new one for each attempt
        self._retired = False
        if inherited is not None:
            self._take(inherited)

    # What requests call

    def current(self) -> Lease | None:
        """The lease to use now, or None: none yet, expired (less a margin), or rejected."""
        if self._lease is None or self._rejected or self._monotonic() >= self._usable_until:
            return None
        if self._wall() >= self._usable_until_wall:
            self._look_at_clocks()
            return None
        return self._lease

    async def get(self, wait_s: float) -> Lease:
        """A usable lease, at once where there is one, else within ``wait_s`` seconds.

        Raises `TokenUnavailable` when none came, or sooner when none can come within that time: the
        credentials are refused, or the next try is later. A cancelled waiter cancels nothing.
        """
        if (lease := self.current()) is not None:
            return lease
        if self._retired:
            self._hurry()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self.current() is None and self._may_come_within(deadline - loop.time()):
                    await self._attempt_done.wait()
        lease = self.current()
        if lease is None:
            raise self._unavailable()
        return lease

    def reject(self, lease: Lease) -> bool:
        """Upstream said 401 to this very lease. Returns whether another is here or on its way.

        True: ask `get` again and replay if that is safe. False: this lease is the fruit of a refresh
        that a 401 forced less than `FORCED_REFRESH_GAP_S` ago, so another would be refused as well;
        it stays in use. A late 401 for an older lease changes nothing.
        """
        if lease is not self._lease or self._rejected:
            return True
        now = self._monotonic()
        forced = now - self._forced_at >= FORCED_REFRESH_GAP_S
        self._emit("token_rejected", refresh=forced, age_s=round(now - lease.received_at, 1))
        if forced:
            self._forced_at = now
            self._rejected = True
            self._hurry(gap_s=0.0)  # `FORCED_REFRESH_GAP_S` is gap enough
        return forced

    def refresh_now(self) -> None:
        """Fetch now rather than when due; only the token endpoint's ``Retry-After`` goes first."""
        self._hurry()

    def retire(self) -> None:
        """Nothing new comes this way: from now on only fetch what a request that runs still needs."""
        self._retired = True
        if self.current() is not None and not self._fetching:
            self._due_at = math.inf

    # The one writer

    async def run(self) -> None:
        """Keep the lease fresh until cancelled. What ``fetch`` raises beside `TokenFetchError` ends it."""
        while True:
            await self._attempt()
            await self._sleep_until_due()

    async def _attempt(self) -> None:
        self._fetching = True
        self._tried_at = self._monotonic()
        self._wall_ahead_s = self._wall_minus_monotonic()
        try:
            self._accept(await self._fetch())
        except TokenFetchError as error:
            self._fail(error)
        finally:
            self._fetching = False
        done, self._attempt_done = self._attempt_done, asyncio.Event()
        done.set()

    def _accept(self, lease: Lease) -> None:
        now = self._monotonic()
        if _usable_until(lease) <= now:
            message = f"the token lives {lease.lifetime_s:g} s, and its request took longer than that"
            raise TokenFetchError(message, cause="expired_on_arrival")
        before = self._lease
        self._take(lease)
        self._rejected = False
        self._error = None
        self._failures = 0
        self._refreshes += 1
        self._hold_until = -math.inf
        delay = refresh_delay_s(lease.lifetime_s, self._rng)
        self._due_at = math.inf if self._retired else max(lease.received_at + delay, now + MIN_REFRESH_S)
        self._tell_accepted(before, lease, now)

    def _take(self, lease: Lease) -> None:
        self._lease = lease
        self._usable_until = _usable_until(lease)
        self._usable_until_wall = lease.expires_at.timestamp()
        self._jump_s = min(CLOCK_JUMP_S, safety_margin_s(lease.lifetime_s))

    def _tell_accepted(self, before: Lease | None, lease: Lease, now: float) -> None:
        endpoint = str(lease.origin)
        self._emit(
            "token_fetched",
            endpoint=endpoint,
            lifetime_s=lease.lifetime_s,
            took_s=round(now - lease.received_at, 3),
            refresh_in_s=None if self._retired else round(self._due_at - now, 1),
        )
        if before is not None and before.origin != lease.origin:
            self._emit("token_endpoint_changed", endpoint=endpoint, before=str(before.origin))

    def _fail(self, error: TokenFetchError) -> None:
        now = self._monotonic()
        self._error = error
        self._failures += 1
        self._last_error = str(error)
        self._last_error_at = datetime.fromtimestamp(self._wall(), UTC)
        usable_for_s = 0.0 if self._rejected else max(0.0, self._usable_until - now)
        delay = retry_delay_s(error, self._failures, usable_for_s, self._rng)
        self._due_at = now + delay
        self._hold_until = self._due_at if error.retry_after_s else -math.inf
        self._emit(
            "token_fetch_failed",
            error=str(error),
            cause=error.cause,
            permanent=error.permanent,
            failures_in_a_row=self._failures,
            next_try_in_s=round(delay, 1),
            token_usable_for_s=round(usable_for_s, 1),
        )

    async def _sleep_until_due(self) -> None:
        while (left := self._due_at - self._monotonic()) > 0:
            # No task and no queue for waking up: the deadline of this sleep is moved to now.
            try:
                async with asyncio.timeout(None) as self._nap:
                    await self._sleep(min(left, SLICE_S))
            except TimeoutError:
                pass
            finally:
                self._nap = None
            self._look_at_clocks()

    def _hurry(self, *, gap_s: float = MIN_GAP_S) -> None:
        earliest = max(self._monotonic(), self._tried_at + gap_s, self._hold_until)
        self._due_at = min(self._due_at, earliest)
        if self._nap is not None:
            self._nap.reschedule(0)
            self._nap = None

    # The clocks

    def _wall_minus_monotonic(self) -> float:
        return self._wall() - self._monotonic()

    def _look_at_clocks(self) -> None:
        """Refresh at once if the machine slept, or the wall clock was put forward."""
        ahead = self._wall_minus_monotonic()
        jumped_s = ahead - self._wall_ahead_s
        if jumped_s < self._jump_s:
            self._wall_ahead_s = min(ahead, self._wall_ahead_s)
            return
        self._wall_ahead_s = ahead
        self._hold_until -= jumped_s
        self._emit("clock_jumped", by_s=round(jumped_s, 1))
        self._hurry()

    # What is said about it

    def _may_come_within(self, wait_s: float) -> bool:
        if self._fetching:
            return True
        due_in = self._due_at - self._monotonic()
        permanent = self._error is not None and self._error.permanent
        return due_in <= (min(wait_s, MIN_GAP_S) if permanent else wait_s)

    def _unavailable(self) -> TokenUnavailable:
        next_try_in_s = self._next_try_in_s()
        if next_try_in_s is None:
            when, retry_after_s = "a try is under way", UNDER_WAY_S
        else:
            retry_after_s = max(1, math.ceil(next_try_in_s))
            when = f"the next try is in {retry_after_s} s"
        return TokenUnavailable(
            f"no usable token for {self.name}: {self._why()}; {when}", retry_after_s=retry_after_s
        )

    def _why(self) -> str:
        if self._error is not None:
            return str(self._error)
        if self._lease is None:
            return "the first token request isn't answered yet"
        if self._rejected:
            return "Contentsquare refused the last token, and its replacement isn't here yet"
        return "the last token expired, and its replacement isn't here yet"

    def _next_try_in_s(self) -> float | None:
        return None if self._fetching else max(0.0, self._due_at - self._monotonic())

    def _seconds_left(self, lease: Lease) -> float:
        return max(0.0, lease.received_at + lease.lifetime_s - self._monotonic())

    def _state(self, *, usable: bool) -> State:
        if usable:
            return "fresh" if self._error is None else "stale"
        if self._error is None:
            return "fetching"
        return "refused" if self._error.permanent else "failing"

    def status(self) -> LeaseStatus:
        """How it is doing now."""
        lease, usable = self._lease, self.current() is not None
        return LeaseStatus(
            name=self.name,
            state=self._state(usable=usable),
            usable=usable,
            endpoint=str(lease.origin) if lease else None,
            seconds_left=self._seconds_left(lease) if lease else None,
            expires_at=lease.expires_at if lease else None,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
            permanent=self._error is not None and self._error.permanent,
            failures_in_a_row=self._failures,
            refreshes=self._refreshes,
            next_try_in_s=self._next_try_in_s(),
        )

    def _emit(self, event: str, **values: object) -> None:
        if self._on_event is not None:
            self._on_event(event, {"lease": self.name, **values})
