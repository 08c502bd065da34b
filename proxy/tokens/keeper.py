"""The keeper of one lease: it fetches the token, refreshes it in time, and hands it to requests.

`LeaseKeeper.run` is the only writer; a request reads `LeaseKeeper.current` and never fetches. So there
is one fetch at a time by construction, and a failed refresh can't take away a token that is still
valid. Knows nothing of OAuth or HTTP: a keeper is given a ``fetch`` and a clock.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from proxy.errors import ProxyLoop, TokenFetchError, TokenNotWanted, TokenUnavailable
from proxy.logs import OnEvent
from proxy.tokens.breaker import Outage
from proxy.tokens.clock import CLOCK_JUMP_S, SYSTEM_CLOCK, Clock, SuspendWatch
from proxy.tokens.demand import ALWAYS, Demand
from proxy.tokens.lease import Lease, LeaseStatus, safety_margin_s, state_of
from proxy.tokens.record import FetchRecord
from proxy.tokens.schedule import MIN_GAP_S, Schedule

FORCED_REFRESH_GAP_S = 30.0
"""The least time between two refreshes that a 401 forces: a cloud that always answers 401 makes no flood."""
SLICE_S = 15.0
"""The longest sleep in one piece while a fetch is due; the clocks are compared after each."""
IDLE_SLICE_S = 3600.0
"""The same while none is due."""
UNDER_WAY_S = 5
"""The ``Retry-After`` of our errors while a fetch is under way."""
PATIENCE_S = 10.0
"""After so many seconds of an outage, a request without a usable lease doesn't wait for its end."""

Fetch = Callable[[], Awaitable[Lease]]


class LeaseKeeper:
    """Keeps one lease fresh, and lets requests wait for the first lease.

    ``fetch`` makes a lease or raises `TokenFetchError`. ``name`` says whose lease it is, in messages
    and events. ``inherited`` is a lease of an earlier keeper, which is used until the first fetch
    succeeds. ``outage`` returns the outage of the token endpoint that holds fetches back, or None.
    ``on_event`` is called with past-tense events and their values (never a token): ``token_fetched``,
    ``base_url_changed``, ``token_fetch_failed``, ``token_rejected``, ``clock_jumped``.
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
        outage: Callable[[], Outage | None] = lambda: None,
        demand: Demand = ALWAYS,
    ) -> None:
        self.name = name
        self._current_outage, self._demand = outage, demand
        self._fetch = fetch
        self._monotonic, self._wall = clock.monotonic, clock.time
        self._schedule = Schedule(clock.monotonic, rng or random.Random())  # noqa: S311 - jitter, not a secret
        self._suspend_watch = SuspendWatch(clock)
        self._on_event = on_event
        self._lease: Lease | None = None
        self._usable_until = self._usable_until_wall = self._forced_at = -math.inf
        self._rejected = self._fetching = self._retired = False
        self._record = FetchRecord()
        self._is_wanted = True  # by a request, or because it is kept fresh anyway
        self._nap = _Nap(clock.sleep)
        self._fetch_ended = asyncio.Event()  # a new one for each fetch
        if inherited is not None:
            self._store(inherited)

    # For requests

    def current(self) -> Lease | None:
        """The lease to use now. None: there is none yet, it expired (less a margin), or it was rejected."""
        if self._lease is None or self._rejected or self._monotonic() >= self._usable_until:
            return None
        if self._wall() >= self._usable_until_wall:
            self._compare_clocks()
            return None
        return self._lease

    @property
    def is_settled(self) -> bool:
        """Whether a lease is usable or, if none is, a fetch has failed or waits for the end of an outage."""
        return self.current() is not None or self.record.error is not None

    async def get(self, wait_s: float) -> Lease:
        """The usable lease: at once if there is one, else within ``wait_s`` seconds.

        Raises `TokenUnavailable` if none came in time, and sooner if none can come in time: the
        credentials are refused, or the next try is later. `ProxyLoop`: the endpoint is this proxy itself.
        A cancelled call cancels no fetch.
        """
        if (lease := self.current()) is not None:
            return lease
        if self._retired or self._schedule.is_stopped:
            self._hurry()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self.current() is None and self._may_come_within(deadline - loop.time()):
                    await self._fetch_ended.wait()
        if (lease := self.current()) is None:
            raise self._unavailable()
        return lease

    def reject(self, lease: Lease) -> bool:
        """The cloud answered 401 to a request with this lease. Returns whether another lease can come.

        True: call `get` again, and send the request again if that is safe. False: a 401 forced the
        refresh that brought this lease less than `FORCED_REFRESH_GAP_S` ago, so the next token would be
        refused as well; this lease stays in use. A late 401 to an older lease changes nothing.
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

    def note_unreachable(self, lease: Lease) -> None:
        """No connection to this lease's origin: fetch now and then, for Contentsquare may have moved it."""
        if lease is self._lease and not self._retired and self._schedule.look_for_move():
            self._hurry()

    # For operators and reloads

    def refresh_now(self) -> None:
        """Fetch now, before a refresh is due; the token endpoint's ``Retry-After`` is still obeyed."""
        self._demand.use()
        self._hurry()

    def retire(self) -> None:
        """No new requests come: from now on fetch only if a running request needs it."""
        self._retired = True
        if self.current() is not None and not self._fetching:
            self._schedule.stop()

    # The task, which is the only writer

    async def run(self) -> None:
        """Keep the lease fresh until cancelled. Any other error than `TokenFetchError` ends the task."""
        while True:
            await self._fetch_once()
            await self._sleep_until_due()
            while not self._demand.is_there(self._lease):
                self._is_wanted = False
                self._schedule.idle(self.current())
                await self._sleep_until_due()
            self._is_wanted = True

    async def _fetch_once(self) -> None:
        self._fetching = True
        self._schedule.started()
        self._suspend_watch.restart()
        try:
            self._succeed(await self._fetch())
        except TokenFetchError as error:
            self._fail(error)
        except TokenNotWanted:  # `run` looks whether it is wanted now
            pass
        finally:
            self._fetching = False
        ended, self._fetch_ended = self._fetch_ended, asyncio.Event()
        ended.set()

    def _succeed(self, lease: Lease) -> None:
        now = self._monotonic()
        if lease.usable_until <= now:
            message = f"the token lives {lease.lifetime_s:g} s, and its request took longer than that"
            raise TokenFetchError(message, cause="expired_on_arrival")
        before = self._lease
        self._store(lease)
        self._rejected = False
        self._record.succeeded()
        self._schedule.succeeded(lease)
        if self._retired:
            self._schedule.stop()
        self._emit(
            "token_fetched",
            endpoint=str(lease.origin),
            lifetime_s=lease.lifetime_s,
            took_s=round(now - lease.received_at, 3),
            refresh_in_s=None if self._retired else round(self._schedule.due_in_s, 1),
        )
        if before is not None and before.origin != lease.origin:
            self._schedule.moved()
            self._emit("base_url_changed", endpoint=str(lease.origin), before=str(before.origin))

    def _store(self, lease: Lease) -> None:
        self._lease = lease
        self._usable_until = lease.usable_until
        self._usable_until_wall = lease.expires_at.timestamp()
        self._suspend_watch.threshold_s = min(CLOCK_JUMP_S, safety_margin_s(lease.lifetime_s))

    def _fail(self, error: TokenFetchError) -> None:
        self._record.failed(error, self._wall())
        failures = self._record.failures_in_a_row
        usable_for_s = 0.0 if self._rejected else max(0.0, self._usable_until - self._monotonic())
        delay_s = self._schedule.failed(error, failures, usable_for_s)
        self._emit(
            "token_fetch_failed",
            error=str(error),
            cause=error.cause,
            permanent=error.permanent,
            is_outage=error.is_outage,
            failures_in_a_row=failures,
            next_try_in_s=None if error.is_outage else round(delay_s, 1),
            token_usable_for_s=round(usable_for_s, 1),
        )

    async def _sleep_until_due(self) -> None:
        while (left_s := self._schedule.due_in_s) > 0:
            await self._nap.sleep(IDLE_SLICE_S if left_s == math.inf else min(left_s, SLICE_S))
            self._compare_clocks()

    def _hurry(self, *, gap_s: float = MIN_GAP_S) -> None:
        self._schedule.hurry(gap_s)
        self._nap.end()

    def _compare_clocks(self) -> None:
        """Refresh at once if the machine slept, or if its wall clock was put forward."""
        if jump_s := self._suspend_watch.jump_s():
            self._schedule.suspended(jump_s)
            self._emit("clock_jumped", by_s=round(jump_s, 1))
            self._hurry()

    # For errors, status and events

    def _may_come_within(self, wait_s: float) -> bool:
        if self._fetching:
            outage = self._outage()
            return outage is None or (outage.lasts_s < PATIENCE_S and outage.error.cause != "loop")
        return self._schedule.due_in_s <= (min(wait_s, MIN_GAP_S) if self._record.is_refused else wait_s)

    def _unavailable(self) -> TokenUnavailable | ProxyLoop:
        why = self.record.error or _why_not_usable(self._lease, is_rejected=self._rejected)
        when, retry_after_s = "a try is under way", UNDER_WAY_S
        if self._outage() is not None:
            when = "it is tried again every few seconds"
        elif not self._fetching:
            retry_after_s = max(1, math.ceil(self._schedule.due_in_s))
            when = f"the next try is in {retry_after_s} s"
        return _error_of(self.name, why, when, retry_after_s)

    def _outage(self) -> Outage | None:
        """The outage whose end the fetch waits for."""
        return self._current_outage() if self._fetching else None

    @property
    def record(self) -> FetchRecord:
        """How the fetches ended; see `FetchRecord.seen_during`."""
        return self._record.seen_during(self._outage())

    def status(self) -> LeaseStatus:
        """The state of the lease now."""
        lease, usable, record = self._lease, self.current() is not None, self.record
        return LeaseStatus(
            name=self.name,
            state=state_of(record.error, usable=usable, is_due=not self._schedule.is_stopped),
            usable=usable,
            is_wanted=self._is_wanted,
            endpoint=str(lease.origin) if lease else None,
            seconds_left=lease.seconds_left(self._monotonic()) if lease else None,
            expires_at=lease.expires_at if lease else None,
            last_error=record.last_error,
            last_error_at=record.last_error_at,
            permanent=record.is_refused,
            failures_in_a_row=record.failures_in_a_row,
            refreshes=record.refreshes,
            next_try_in_s=None if self._fetching else self._schedule.due_in_s,
        )

    def _emit(self, event: str, **values: object) -> None:
        if self._on_event is not None:
            self._on_event(event, {"lease": self.name, **values})


class _Nap:
    """A sleep that `end` ends, by a deadline that moves to now: so waking up needs no task and no queue."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._sleep = sleep
        self._limit: asyncio.Timeout | None = None

    async def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until `end`."""
        try:
            async with asyncio.timeout(None) as self._limit:
                await self._sleep(seconds)
        except TimeoutError:
            pass
        finally:
            self._limit = None

    def end(self) -> None:
        """End the sleep, if there is one."""
        if self._limit is not None:
            self._limit.reschedule(0)
            self._limit = None


def _error_of(
    name: str, why: TokenFetchError | str, when: str, retry_after_s: int
) -> TokenUnavailable | ProxyLoop:
    if isinstance(why, TokenFetchError) and why.cause == "loop":
        return ProxyLoop(f"no usable token for {name}: {why}")
    return TokenUnavailable(f"no usable token for {name}: {why}; {when}", retry_after_s=retry_after_s)


def _why_not_usable(lease: Lease | None, *, is_rejected: bool) -> str:
    """Why no lease is usable, where no fetch has failed."""
    if lease is None:
        return "the first token request isn't answered yet"
    if is_rejected:
        return "Contentsquare refused the last token, and its replacement isn't here yet"
    return "the last token expired, and its replacement isn't here yet"
