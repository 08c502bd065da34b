"""One breaker per token endpoint: all requests to it take turns here, and an outage is noticed once for all.

While the breaker is closed, requests go at a bounded rate. A failure that is the endpoint's own opens it:
no answer, or a status above 500. Another failure may be the fault of the credentials (a wrong secret may
get 500), so it opens the breaker only if `SUSPECTS` different credentials failed so within `SUSPICION_S`,
and no request succeeded meanwhile. A refusal or a 429 is about its own credentials and never opens it.

While the breaker is open, one request at a time tries the endpoint, with other credentials each time, and
all others wait. The first success closes the breaker. Knows nothing of connections or of leases.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from proxy.errors import TokenFetchError
from proxy.logs import OnEvent
from proxy.tokens.schedule import RETRY_AFTER_CAP_S

T = TypeVar("T")

RATE = 91.0
"""Requests a second, when many wait."""
BURST = 2
"""Requests that may go at once before `RATE` holds them back."""
ROOM = (8, 32)
"""Requests under way at once: at first and after an outage, and at most. Each success makes room for one."""
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
        "http_proxy",
        "loop",
        "timeout",
        "tls",
    )
)
_OF_THE_CREDENTIALS = frozenset(
    ("credentials_refused", "endpoint_missing", "endpoint_refused", "rate_limited")
)
_Turn = asyncio.Future[float]
"""Its result is the second of the event loop's clock at which the turn came."""


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
        self._waiting: dict[str, deque[_Turn]] = {}  # by credentials
        self._under_way = 0
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

    async def run(self, credentials: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of ``call``, which is made when its turn comes; ``credentials`` is their name.

        Raises `TokenFetchError`, with ``is_outage`` if the credentials are to take a next turn at once.
        """
        while True:
            turn = await self._turn(credentials)
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
                self._under_way -= 1
                self._admit()

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

    async def _turn(self, credentials: str) -> _Turn:
        turn: _Turn = asyncio.get_running_loop().create_future()
        turns = self._waiting.setdefault(credentials, deque())
        turns.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this turn just now
                self._under_way -= 1
            elif turn in turns:
                turns.remove(turn)
                if not turns and self._waiting.get(credentials) is turns:
                    del self._waiting[credentials]
            self._admit()
            raise
        return turn

    def _admit(self) -> None:
        """Let those requests go that may go now, and look again when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting and (self.outage is not None or self._under_way < self._room):
            now = loop.time()
            if now < self._next_at:
                self._timer = loop.call_at(self._next_at, self._admit)
                return
            self._begin(self._first_in_line(), now)

    def _first_in_line(self) -> str:
        """The credentials whose turn it is: the longest without a turn, while the breaker is open."""
        if self.outage is None:
            return next(iter(self._waiting))
        preferred, self._preferred = self._preferred, None
        if preferred is not None and preferred in self._waiting:
            return preferred
        return min(self._waiting, key=lambda name: self._probed_at.get(name, -math.inf))

    def _begin(self, credentials: str, now: float) -> None:
        turns = self._waiting.pop(credentials)
        turn = turns.popleft()
        if turns:
            self._waiting[credentials] = turns  # at the end of the line
        if turn.cancelled():
            return
        self._under_way += 1
        if self.outage is None:
            self._next_at = max(self._next_at, now - BURST / RATE) + 1 / RATE
        else:
            self._probe, self._probed_at[credentials] = turn, now
            self._next_at = now + GAP_S[1]
        turn.set_result(now)

    def _succeeded(self) -> None:
        self._suspects.clear()
        self._room = min(self._room + 1, max(self._room, ROOM[1]))
        if (outage := self.outage) is None:
            return
        self._closed_at = asyncio.get_running_loop().time()
        unanswered, self._limits = self._limits, set()
        for limit in unanswered:
            due = self._closed_at + LATE_S
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
                "waiting": sum(map(len, self._waiting.values())),
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
        return self.outage is None and _is_of_the_endpoint(error) and turn.result() < self._closed_at

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
        self._next_at = max(turn.result() + gap_s, now + least, self._not_before)


def _is_of_the_endpoint(error: TokenFetchError) -> bool:
    return error.cause in _NO_ANSWER or (error.status or 0) > 500
