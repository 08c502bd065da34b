"""One breaker per token endpoint: all requests to it take turns here, and an outage is noticed once for all.

While the breaker is closed, requests go at a bounded rate. A failure that is the endpoint's own opens it:
no answer, or a status above 500. Another failure may be the fault of the credentials (a wrong secret may
get 500), so it opens the breaker only if `SUSPECTS` different credentials failed so within `SUSPICION_S`,
and no request succeeded meanwhile. A refusal or a 429 is about its own credentials and never opens it.

While the breaker is open, one request at a time tries the endpoint, with other credentials each time, and
all others wait. The first success closes the breaker.

A caller can invent ids of an account's projects. Requests for an id that never got a token are *new*: they go
after all others, take a part of the room alone, and are not sent if no caller waits any more. The callers
take turns at them, so that a caller with many new ids delays no other caller. Knows nothing of connections or
of leases.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from proxy.errors import TokenFetchError, TokenNotWanted
from proxy.logs import OnEvent
from proxy.tokens.schedule import RETRY_AFTER_CAP_S

T = TypeVar("T")

RATE = 91.0
"""Requests a second, when many wait."""
BURST = 2
"""Requests that may go at once before `RATE` holds them back."""
ROOM = (8, 32)
"""Requests under way at once: at first and after an outage, and at most. Each success makes room for one."""
NEW_SHARES = (4, 2)
"""New requests of one caller may take a quarter of the room, and those of all callers a half of it."""
GAP_S = (0.25, 3.0)
"""While the breaker is open: from one request to the next, at first and at most; it doubles meanwhile.

A request that has no answer after the longest gap doesn't hold up the next one; a late answer still counts.
The first gap is also the least time from a failure to the next request.
"""
PROBE_LIMIT_S = 11.0
"""A request that is sent while the breaker is open fails if it has no answer after so many seconds.

If the endpoint is silent and few leases use it, each of them may wait for an answer when the outage ends.
"""
LATE_S = 2.0
"""A request that was sent in an outage is sent again if it has no answer so many seconds after its end."""
HURRY_GAP_S = 1.0
"""The least time between two requests that people ask for while the breaker is open."""
SUSPECTS = 3
SUSPICION_S = 60.0
_NO_ANSWER = frozenset(
    (
        "connection_failed",
        "connection_lost",
        "connection_refused",
        "dns",
        "forbidden",
        "http_proxy",
        "loop",
        "no_descriptors",
        "no_memory",
        "no_network",
        "no_port",
        "timeout",
        "tls",
    )
)
_OF_THE_CREDENTIALS = frozenset(
    ("credentials_refused", "endpoint_missing", "endpoint_refused", "rate_limited")
)


def always() -> bool:
    """For a token request that is wanted whether or not a caller waits for it."""
    return True


class NamedBy:
    """The callers that named an id which never got a token, in order; more may come while requests wait."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.on_more: Callable[[], None] = lambda: None

    def add(self, caller: str) -> None:
        """A caller named the id; "" where no callers are defined."""
        if caller not in self.callers:
            self.callers.append(caller)
            self.on_more()


@dataclass(slots=True, eq=False)
class _Turn:
    """The turn of one request. The result of ``came`` is a second of the event loop's clock.

    ``new_for`` is None for a request that is not new; ``of`` is the caller whose turn a new request takes.
    """

    came: asyncio.Future[float]
    new_for: NamedBy | None
    is_wanted: Callable[[], bool]
    is_under_way: bool = False
    of: str | None = None


_Lines = dict[str, deque[_Turn]]
"""The turns that are waited for, by credentials."""


@dataclass(slots=True)
class Outage:
    """An outage of the token endpoint, with the error of its last request."""

    error: TokenFetchError
    began: float
    """A second of the event loop's clock."""
    last_at: datetime
    failures: int = 0

    @property
    def lasts_s(self) -> float:
        """Seconds since its begin."""
        return asyncio.get_running_loop().time() - self.began


class Breaker:
    """The turns of all requests to the token endpoint ``name``, a base URL.

    ``outage`` is None while the breaker is closed. ``on_event`` is called with ``token_endpoint_failed`` when
    it opens, and with ``token_endpoint_recovered`` when it closes.
    """

    def __init__(
        self, name: str, on_event: OnEvent = lambda *_: None, rng: random.Random | None = None
    ) -> None:
        self.outage: Outage | None = None
        self._name = name
        self._on_event = on_event
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._lines: tuple[_Lines, _Lines] = ({}, {})  # the second is for new requests
        self._under_way = 0
        self._new_under_way: Counter[str] = Counter()  # by caller
        self._new_at: dict[str, float] = {}  # when each caller had its last turn
        self._room = ROOM[0]
        self._next_at = self._not_before = self._closed_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._limits: set[asyncio.Timeout] = set()  # of calls under way
        self._suspects: dict[str, float] = {}  # when each failed
        # While the breaker is open:
        self._probe: _Turn | None = None
        self._probed_at: dict[str, float] = {}
        self._gap_s = 0.0
        self._preferred: str | None = None

    async def run(
        self,
        credentials: str,
        call: Callable[[], Awaitable[T]],
        *,
        new_for: NamedBy | None = None,
        is_wanted: Callable[[], bool] = always,
    ) -> T:
        """The result of ``call``, which is made when its turn comes; ``credentials`` is their name.

        ``new_for`` is for a new request; None: the request is not new. Raises `TokenFetchError`, with
        ``is_outage`` if the credentials are to take a next turn at once; `TokenNotWanted` if ``is_wanted``
        says so when the turn comes.
        """
        while True:
            turn = await self._turn(credentials, _Turn(_future(), new_for, is_wanted))
            try:
                result = await self._limited(call)
            except TokenFetchError as error:
                if not self._is_late(turn, error):
                    self._failed(turn, credentials, error)
                    raise
            else:
                self._succeeded()
                return result
            finally:
                self._leave(turn)

    async def _limited(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of ``call``. In an outage it has `PROBE_LIMIT_S`, and `LATE_S` after the end."""
        try:
            async with asyncio.timeout(None if self.outage is None else PROBE_LIMIT_S) as limit:
                self._limits.add(limit)
                try:
                    return await call()
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            raise TokenFetchError(f"{self._name}: no answer in time", cause="timeout") from None

    def hurry(self, credentials: str) -> None:
        """A person asks for a request with these credentials: an open breaker lets it go next, and soon."""
        if self.outage is not None:
            self._preferred = credentials
            soon = max(max(self._probed_at.values(), default=-math.inf) + HURRY_GAP_S, self._not_before)
            self._next_at = min(self._next_at, soon)
            self._admit()

    async def _turn(self, credentials: str, turn: _Turn) -> _Turn:
        lines = self._lines[turn.new_for is not None]
        if turn.new_for is not None:
            turn.new_for.on_more = self._admit
        turns = lines.setdefault(credentials, deque())
        turns.append(turn)
        self._admit()
        try:
            await turn.came
        except asyncio.CancelledError:
            if turn in turns:
                turns.remove(turn)
                if not turns and lines.get(credentials) is turns:
                    del lines[credentials]
            self._leave(turn)
            raise
        return turn

    def _leave(self, turn: _Turn) -> None:
        """The turn is over, or is not waited for any more."""
        if turn.is_under_way:
            turn.is_under_way = False
            self._under_way -= 1
            if turn.of is not None:
                self._new_under_way[turn.of] -= 1
        self._admit()

    def _admit(self) -> None:
        """Let those requests go that may go now, and look again when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while any(self._lines) and (self.outage is not None or self._under_way < self._room):
            now = loop.time()
            if now < self._next_at:
                self._timer = loop.call_at(self._next_at, self._admit)
                return
            due = self._due() if self._lines[0] else self._due_of_new()
            if due is None:
                return
            self._begin(*due, now)

    def _due(self) -> tuple[str, _Turn]:
        """The credentials that are the longest without a turn, and their first request, which is not new."""
        lines = self._lines[0]
        credentials = next(iter(lines)) if self.outage is None else min(lines, key=self._order_in_outage)
        return credentials, lines[credentials][0]

    def _due_of_new(self) -> tuple[str, _Turn] | None:
        """The first new request of the caller that is the longest without a turn; None: they have no room."""
        room = self._room if self.outage is None else math.inf
        of_each, of_all = (room / share for share in NEW_SHARES)
        if self._new_under_way.total() + 1 > of_all:
            return None
        waiting = (
            (credentials, turn, caller)
            for credentials, turns in self._lines[1].items()
            for turn in turns
            for caller in (turn.new_for and turn.new_for.callers) or [""]
            if self._new_under_way[caller] + 1 <= of_each
        )
        due = min(waiting, key=self._order_of_new, default=None)
        if due is None:
            return None
        credentials, turn, caller = due
        turn.of = caller
        return credentials, turn

    def _order_of_new(self, one: tuple[str, _Turn, str]) -> tuple[tuple[bool, float], float]:
        credentials, _, caller = one
        return self._order_in_outage(credentials), self._new_at.get(caller, -math.inf)

    def _order_in_outage(self, credentials: str) -> tuple[bool, float]:
        return credentials != self._preferred, self._probed_at.get(credentials, -math.inf)

    def _begin(self, credentials: str, turn: _Turn, now: float) -> None:
        lines = self._lines[turn.new_for is not None]
        turns = lines.pop(credentials)
        turns.remove(turn)
        if turns:
            lines[credentials] = turns  # at the end of the line
        if turn.came.cancelled():
            return
        if not turn.is_wanted():
            turn.came.set_exception(TokenNotWanted(self._name))
            return
        turn.is_under_way = True
        self._under_way += 1
        if turn.of is not None:
            self._new_under_way[turn.of] += 1
            self._new_at[turn.of] = now
        if self.outage is None:
            self._next_at = max(self._next_at, now - BURST / RATE) + 1 / RATE
        else:
            self._probe, self._probed_at[credentials] = turn, now
            self._next_at = now + GAP_S[1]
            self._preferred = None
        turn.came.set_result(now)

    def _succeeded(self) -> None:
        self._suspects.clear()
        self._room = min(self._room + 1, max(self._room, ROOM[1]))
        if (outage := self.outage) is None:
            return
        self._closed_at = asyncio.get_running_loop().time()
        unanswered, self._limits = self._limits, set()
        due = self._closed_at + LATE_S
        for limit in unanswered:
            if not limit.expired():  # else its call ends in a moment
                limit.reschedule(due if (when := limit.when()) is None else min(when, due))
        self.outage = self._probe = self._preferred = None
        self._room = self._under_way + ROOM[0]  # requests that got no answer may still be under way
        self._next_at = self._not_before = -math.inf
        self._probed_at.clear()
        self._on_event(
            "token_endpoint_recovered",
            {
                "endpoint": self._name,
                "failed_for_s": round(outage.lasts_s, 1),
                "failed_requests": outage.failures,
                "waiting": sum(len(turns) for lines in self._lines for turns in lines.values()),
            },
        )

    def _failed(self, turn: _Turn, credentials: str, error: TokenFetchError) -> None:
        now = asyncio.get_running_loop().time()
        if error.cause in _OF_THE_CREDENTIALS:
            if turn is self._probe:  # an answer at least: other credentials may soon get a token
                self._gap_s = 0.0
                self._plan_probe(turn, now, error)
            return
        outage = self.outage
        if outage is None:
            if not self._is_outage(credentials, error, now):
                return
            outage = self._open(credentials, error, now)
            self._probe = turn
        error.is_outage = True
        outage.error, outage.last_at = error, datetime.now(UTC)
        outage.failures += 1
        if turn is self._probe:
            self._plan_probe(turn, now, error)

    def _is_late(self, turn: _Turn, error: TokenFetchError) -> bool:
        """Whether the failure is of an outage that is over, so that the request is due again."""
        return self.outage is None and _is_of_the_endpoint(error) and turn.came.result() < self._closed_at

    def _is_outage(self, credentials: str, error: TokenFetchError, now: float) -> bool:
        if _is_of_the_endpoint(error):
            return True
        self._suspects[credentials] = now
        return sum(now - at <= SUSPICION_S for at in self._suspects.values()) >= SUSPECTS

    def _open(self, credentials: str, error: TokenFetchError, now: float) -> Outage:
        self.outage = outage = Outage(error, now, datetime.now(UTC))
        self._probed_at[credentials] = now
        self._gap_s = 0.0
        values = {"endpoint": self._name, "cause": error.cause, "error": str(error)}
        self._on_event("token_endpoint_failed", values)
        return outage

    def _plan_probe(self, turn: _Turn, now: float, error: TokenFetchError) -> None:
        least, most = GAP_S
        self._gap_s = min(most, max(least, 2 * self._gap_s))
        if (error.status or 0) > 500:  # the Retry-After of a lower status is for these credentials
            self._not_before = now + min(error.retry_after_s or 0.0, RETRY_AFTER_CAP_S)
        gap_s = self._gap_s * self._rng.uniform(0.9, 1.0)
        if self._preferred is not None:  # a person asked meanwhile
            gap_s = min(gap_s, HURRY_GAP_S)
        self._next_at = max(turn.came.result() + gap_s, now + least, self._not_before)


def _future() -> asyncio.Future[float]:
    return asyncio.get_running_loop().create_future()


def _is_of_the_endpoint(error: TokenFetchError) -> bool:
    return error.cause in _NO_ANSWER or (error.status or 0) > 500
