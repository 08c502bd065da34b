"""What is counted while the proxy runs: requests, times, bytes, retries, errors, and the loop's lag.

Plain numbers, fed by one call at the end of each request (well under a microsecond), and no library:
who shows them (`proxy.admin.metrics`, ``/-/status``) turns them into what is shown. Bounded: a project has
its five APIs, sixty minutes and twenty errors, and takes them along when it goes.
Durations are in seconds, sizes in bytes of content.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from proxy.contentsquare import SAFE_METHODS, Api
from proxy.server.request import Request

# fmt: off
BOUNDS_S: Final[tuple[float, ...]] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)
# fmt: on
"""The upper bounds of a histogram's buckets, included; one more bucket takes what is beyond them."""
HOUR: Final = 60
"""Minutes that are kept."""
MOST_ERRORS: Final = 20
SHARED: Final = ("hit", "collapsed")
"""What `Facts.shared` says of an answer that was another request's."""


class Histogram:
    """How often a duration fell into each bucket, and the sum of all, in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


def quantile_s(counts: Sequence[int], share: float) -> float:
    """About the duration that ``share`` of them didn't exceed (even within a bucket); 0 for none."""
    wanted = share * sum(counts)
    if not wanted:
        return 0.0
    place = bisect_left(tuple(accumulate(counts)), wanted)
    if place == len(BOUNDS_S):
        return BOUNDS_S[-1]
    low, high = BOUNDS_S[place - 1] if place else 0.0, BOUNDS_S[place]
    return low + (high - low) * (wanted - sum(counts[:place])) / counts[place]


class ApiMeasures:
    """Of one API of a project. ``cut`` answers ended before their end."""

    __slots__ = ("_answers", "cut", "duration", "received_bytes", "sent_bytes", "token_failures")

    def __init__(self) -> None:
        self._answers = [0] * 20  # by status class, then by read or write
        self.cut = 0
        self.duration = Histogram()
        self.received_bytes = self.sent_bytes = 0
        self.token_failures: Counter[str] = Counter()

    def count(self, status: int, *, is_read: bool) -> None:
        """Count one answer."""
        self._answers[status // 100 * 2 + is_read] += 1

    def answers(self) -> Iterator[tuple[str, str, int]]:
        """Status class ("2xx", "abandoned" where the caller left first), "read" or "write", how many."""
        for place, count in enumerate(self._answers):
            if count:
                kind, is_read = divmod(place, 2)
                yield f"{kind}xx" if kind else "abandoned", "read" if is_read else "write", count


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of a project. ``at`` is its beginning, seconds since 1970; p50 and p95 are estimates."""

    at: int
    requests: int
    errors: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of the proxy's own that a caller got. ``at``: seconds since 1970."""

    at: float
    code: str
    message: str


class ProjectMeasures:
    """Of one project; ``ended`` once for each request, ``failed`` for an answer that was an error of ours."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self.apis: dict[Api, ApiMeasures] = {}
        self.slot_wait = Histogram()
        self.replays: Counter[str] = Counter()
        self.shared = dict.fromkeys(SHARED, 0)
        self.errors: Counter[str] = Counter()
        self.last_errors: deque[Failure] = deque(maxlen=MOST_ERRORS)
        self._now = wall_clock
        self._past: deque[Minute] = deque(maxlen=HOUR)
        self._minute = -1.0
        self._durations: list[int] = []
        self._errors = 0

    def of(self, api: Api) -> ApiMeasures:
        """The API's own measures."""
        one = self.apis.get(api)
        if one is None:
            one = self.apis[api] = ApiMeasures()
        return one

    def ended(self, api: Api, request: Request, took_s: float) -> None:
        """Count a request that was forwarded, or would have been: answered, cut or abandoned."""
        one = self.apis.get(api) or self.of(api)
        status = request.status
        one.count(status, is_read=request.head.method in SAFE_METHODS)
        place = bisect_left(BOUNDS_S, took_s)
        one.duration.counts[place] += 1
        one.duration.sum_s += took_s
        one.received_bytes += request.body.received
        one.sent_bytes += request.answer_bytes
        minute = self._now() // 60
        if minute != self._minute:
            self._turn(minute)
        self._durations[place] += 1
        if status >= 400:
            self._errors += 1
        facts = request.facts
        if facts.cut_because is not None:
            one.cut += 1
            self._errors += status < 400
            self.failed("PROXY_ANSWER_CUT", f"The answer was cut: {facts.cut_because}. Send it again.")
        if facts.waited_s:
            self.slot_wait.add(facts.waited_s)
        if facts.shared is not None:
            self.shared[facts.shared] += 1
        if facts.replays:
            self.replays.update(facts.replays)

    def failed(self, code: str, message: str) -> None:
        """Keep an error of ours."""
        self.errors[code] += 1
        self.last_errors.append(Failure(self._now(), code, message))

    def hour(self) -> list[Minute]:
        """The minutes of the last hour in which a request ended, in order."""
        now = self._now() // 60
        minutes = [*self._past, *self._current()]
        return [one for one in minutes if now - HOUR < one.at // 60 <= now]

    def _turn(self, minute: float) -> None:
        self._past.extend(self._current())
        self._minute, self._durations, self._errors = minute, [0] * (len(BOUNDS_S) + 1), 0

    def _current(self) -> Iterator[Minute]:
        if counts := self._durations:
            p50_s, p95_s = quantile_s(counts, 0.5), quantile_s(counts, 0.95)
            yield Minute(int(self._minute) * 60, sum(counts), self._errors, p50_s, p95_s)
