"""The counts of each project: requests, durations, bytes, replays and errors.

Plain numbers without a library; one call at the end of each request updates them, in well under a
microsecond. `proxy.admin.metrics` and `proxy.admin.status` show them. Their size is bounded: a project has
five APIs, the configured callers, sixty minutes and twenty errors. Durations are in seconds, sizes in bytes
of content.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import Final

from proxy.contentsquare import SAFE_METHODS, Api
from proxy.errors import Side
from proxy.projects.usage import NO_CALLER, CallerUse, Use
from proxy.server.facts import Cut
from proxy.server.request import Request

# fmt: off
BOUNDS_S: Final[tuple[float, ...]] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)
# fmt: on
"""The upper bounds of a histogram's buckets, which include them; one more bucket holds longer durations."""
HOUR: Final = 60
"""How many minutes are kept."""
MOST_ERRORS: Final = 20
"""How many errors are kept with their message."""
SHARED: Final = ("hit", "collapsed")
"""The values of `Facts.shared` for a request that got the answer to another request."""
RECENT_MINUTES: Final = 5
"""The window of `Recent` is this one and the minutes before it, until there are `ENOUGH` answers."""
ENOUGH: Final = 20
"""With so many answers in the last one to two minutes, older ones tell nothing of the present state."""
LEFT_AFTER_S: Final = 10.0
"""A caller that leaves after so long without an answer tells of trouble; one that leaves sooner doesn't."""
LEFT: Final = "left"
"""In place of a status or code: the caller left after `LEFT_AFTER_S` without an answer."""
LEFT_QUEUE: Final = "left the queue"
"""The same, where most of the time was a wait for a slot."""
CUT: Final = "PROXY_ANSWER_CUT"
ERROR_CLASSES: Final = ("4xx", "5xx")
CLASSES: Final = ("2xx", "3xx", *ERROR_CLASSES)
_STATUSES: Final = {status.value: str(status.value) for status in HTTPStatus if status >= 400}
"""The names of statuses as troubles. Others are counted together: a strange cloud can't fill the memory."""


_NONE: Final = (0,) * (len(BOUNDS_S) + 1)


class Histogram:
    """How often a duration fell into each bucket, and the sum of all, in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


def quantile_s(counts: Sequence[int], share: float) -> float:
    """An estimate of the duration that ``share`` (0 to 1) of the durations don't exceed; 0.0 without any."""
    wanted = share * sum(counts)
    if not wanted:
        return 0.0
    place = bisect_left(tuple(accumulate(counts)), wanted)
    if place == len(BOUNDS_S):
        return BOUNDS_S[-1]
    low, high = BOUNDS_S[place - 1] if place else 0.0, BOUNDS_S[place]
    return low + (high - low) * (wanted - sum(counts[:place])) / counts[place]


class ApiMeasures:
    """The counts of one API of a project, and of each caller there. ``cut``: answers that ended too early."""

    __slots__ = ("by_kind", "callers", "cut", "duration", "token_failures")

    def __init__(self) -> None:
        self.by_kind = [0] * 20
        """How many requests ended, by status class (0: the caller left before the head) and write or read."""
        self.callers: dict[str | None, CallerUse] = {}
        self.cut = 0
        self.duration = Histogram()
        self.token_failures: Counter[str] = Counter()  # by cause

    @property
    def received_bytes(self) -> int:
        """The content of all callers' requests."""
        return sum(use.bytes_in for use in self.callers.values())

    @property
    def sent_bytes(self) -> int:
        """The content of the answers to all callers."""
        return sum(use.bytes_out for use in self.callers.values())

    def answers(self) -> Iterator[tuple[str, str, int]]:
        """Status class ("2xx"; "abandoned" if the caller left first), "read" or "write", and count."""
        for place, count in enumerate(self.by_kind):
            if count:
                kind, is_read = divmod(place, 2)
                yield f"{kind}xx" if kind else "abandoned", "read" if is_read else "write", count


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of a project. ``at`` is its start in seconds since 1970; p50 and p95 are estimates.

    ``silent`` counts the requests that tell nothing of the project's state: they got the answer to another
    request, or their callers left soon. ``troubles`` counts the answers of 4xx and 5xx, by Contentsquare's
    status ("500") or the code of the proxy's error, and the callers that `LEFT` or `LEFT_QUEUE`.
    """

    at: int
    requests: int = 0
    errors: int = 0
    errors_proxy: int = 0
    p50_s: float = 0.0
    p95_s: float = 0.0
    silent: int = 0
    troubles: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recent:
    """The requests that ended in the last ``minutes`` minutes, without those that are `Minute.silent`.

    ``troubles`` is as in `Minute`, of all those minutes. ``good_in_a_row`` counts Contentsquare's answers
    below 500 since the last trouble between the proxy and Contentsquare.
    """

    minutes: int = 1
    requests: int = 0
    troubles: Mapping[str, int] = field(default_factory=dict)
    good_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class OwnError:
    """An error of the proxy's own that a caller got, ``at`` seconds since 1970."""

    at: float
    code: str
    message: str
    proxy_status: str = ""
    """The error type of RFC 9209, section 2.3."""
    side: Side | None = None
    """Of an answer that was cut: whose trouble it was."""


class ProjectMeasures:
    """The counts of one project."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self.apis: dict[Api, ApiMeasures] = {}
        self.slot_wait = Histogram()
        self.replays: Counter[str] = Counter()
        self.shared = dict.fromkeys(SHARED, 0)
        self.errors: Counter[str] = Counter()
        self.last_errors: deque[OwnError] = deque(maxlen=MOST_ERRORS)
        self.refused = 0
        """Requests that the proxy's own rules refused: they were not forwarded."""
        self.slow_callers = 0
        """Answers that were cut because their callers were slow, and other requests waited for the slot."""
        self._now = wall_clock
        self._past: deque[Minute] = deque(maxlen=HOUR)
        self._minute = -1.0
        self._before: list[int] = []
        """How many requests had each duration when the minute began; empty before the first minute."""
        self._errors = 0
        self._errors_proxy = 0
        self._failed_exports = 0
        self._silent = 0
        self._troubles: Counter[str] = Counter()
        self._good_in_a_row = 0
        self._by_proxy = [0] * 10  # the proxy's own answers, by status class
        self._not_theirs = [0] * 10  # the same, and answers that were cut, by the class that the APIs count

    def of(self, api: Api) -> ApiMeasures:
        """The counts of one API."""
        measures = self.apis.get(api)
        if measures is None:
            measures = self.apis[api] = ApiMeasures()
        return measures

    def count_request(self, api: Api, request: Request, took_s: float) -> None:
        """Count a request of this project that has ended: answered, cut or abandoned."""
        measures = self.apis.get(api) or self.of(api)
        status = request.status
        minute = self._now() // 60
        if minute != self._minute:
            self._begin_minute(minute)
        measures.by_kind[status // 100 * 2 + (request.head.method in SAFE_METHODS)] += 1
        duration = measures.duration
        duration.counts[bisect_left(BOUNDS_S, took_s)] += 1
        duration.sum_s += took_s
        facts = request.facts
        use = measures.callers.get(facts.caller)
        if use is None:
            use = measures.callers[facts.caller] = CallerUse()
        use.requests += 1
        use.bytes_in += request.body.received
        use.bytes_out += request.answer_bytes
        if 0 < status < 400 and facts.cut is None:
            self._good_in_a_row += 1
        else:
            self._count_trouble(measures, request, took_s)
        if facts.waited_s:
            use.waited_s += facts.waited_s
            self.slot_wait.add(facts.waited_s)
        if facts.shared is not None:
            self.shared[facts.shared] += 1
            if facts.cut is None:
                self._silent += 1
                self._good_in_a_row -= 1  # it tells nothing of Contentsquare's state
        if facts.replays:
            self.replays.update(facts.replays)

    def _count_trouble(self, measures: ApiMeasures, request: Request, took_s: float) -> None:
        """The answer was an error, was cut, or the caller left before it."""
        status, facts = request.status, request.facts
        if facts.cut is not None:
            measures.cut += 1
            self._count_cut(facts.cut)
            self._count_own(CUT, status // 100, 5)
        elif status:
            if facts.error_code is None:
                self._count_theirs(status)
            else:
                self._count_own(facts.error_code, status // 100, status // 100)
        elif took_s >= LEFT_AFTER_S and request.body.complete:
            self._troubles[LEFT_QUEUE if facts.waited_s > took_s / 2 else LEFT] += 1
            self._good_in_a_row = 0
        else:
            self._silent += 1

    def _count_theirs(self, status: int) -> None:
        """Contentsquare answered with 4xx or 5xx."""
        self._errors += 1
        self._troubles[_STATUSES.get(status) or f"{status // 100}xx"] += 1
        self._good_in_a_row = 0 if status >= 500 else self._good_in_a_row + 1

    def _count_own(self, code: str, counted_as: int, kind: int) -> None:
        """The proxy itself answered with an error of class ``kind``, or cut Contentsquare's answer."""
        self._errors += 1
        self._errors_proxy += 1
        self._troubles[code] += 1
        self._by_proxy[kind] += 1
        self._not_theirs[counted_as] += 1
        if kind >= 5:
            self._good_in_a_row = 0

    def count_failed_export(self, code: str, cut: Cut | None = None) -> None:
        """Count an export whose files were not handed over, or whose answer was cut.

        The calls to Contentsquare for an export are counted as requests, and the export itself only if it
        failed though these calls didn't.
        """
        minute = self._now() // 60
        if minute != self._minute:
            self._begin_minute(minute)
        self._failed_exports += 1
        if cut is not None:
            self.of(Api.DATA_EXPORT).cut += 1
            self._count_cut(cut)
        self._count_own(code, 0, 5)

    def _count_cut(self, cut: Cut) -> None:
        self.count_error(CUT, f"The answer was cut: {cut.why}. Send it again.", side=cut.side)

    def count_error(self, code: str, message: str, proxy_status: str = "", side: Side | None = None) -> None:
        """Count an answer that was an error of the proxy's own, and keep its message."""
        self.errors[code] += 1
        self.last_errors.append(OwnError(self._now(), code, message, proxy_status, side))

    def responses(self) -> dict[str, dict[str, int]]:
        """How many answers were Contentsquare's and how many the proxy's, each by status class ("2xx").

        Of the proxy's own, 4xx and 5xx are its errors, and all that there are. A shared answer is
        Contentsquare's. An answer that was cut is the proxy's, and a 5xx: the caller got a reset in place of
        its end.
        """
        theirs = {kind: -self._not_theirs[int(kind[0])] for kind in CLASSES}
        for measures in self.apis.values():
            for kind, _, count in measures.answers():
                if kind in theirs:
                    theirs[kind] += count
        return {
            "contentsquare": theirs,
            "proxy": {kind: self._by_proxy[int(kind[0])] for kind in ERROR_CLASSES},
        }

    def recent(self) -> Recent:
        """The requests that ended of late: in this minute and the one before, or else in more minutes."""
        now = self._now() // 60
        requests, taken = 0, 0
        troubles: Counter[str] = Counter()
        minutes = {one.at // 60: one for one in self.hour()}
        while taken < 2 or (taken < RECENT_MINUTES and requests < ENOUGH):
            if (one := minutes.get(int(now) - taken)) is not None:
                requests += one.requests - one.silent
                troubles.update(one.troubles)
            taken += 1
        return Recent(taken, requests, troubles, self._good_in_a_row)

    def hour(self) -> list[Minute]:
        """The minutes of the last hour in which requests ended, the oldest first."""
        now = self._now() // 60
        minutes = [*self._past, *self._current()]
        return [minute for minute in minutes if now - HOUR < minute.at // 60 <= now]

    def usage(self, only: str | None = None) -> dict[str, dict[Api, tuple[Use, Use]]]:
        """By caller and API, what it used since the start and in the last hour; ``only``: of this caller."""
        used: dict[str, dict[Api, tuple[Use, Use]]] = {}
        before = self._now() // 60 - HOUR
        for api, measures in self.apis.items():
            for caller, use in measures.callers.items():
                if only is None or caller == only:
                    hour = use.after(before) if self._minute > before else Use(0, 0, 0, 0.0)
                    used.setdefault(caller or NO_CALLER, {})[api] = use.total(), hour
        return used

    def _begin_minute(self, minute: float) -> None:
        for measures in self.apis.values():
            for use in measures.callers.values():
                use.end_minute(self._minute)
        self._past.extend(self._current())
        self._minute, self._before = minute, self._durations()
        self._errors = self._errors_proxy = self._failed_exports = self._silent = 0
        self._troubles = Counter()

    def _durations(self) -> list[int]:
        """How many requests had each duration, of all APIs since the start."""
        return [
            sum(each)
            for each in zip(_NONE, *(one.duration.counts for one in self.apis.values()), strict=True)
        ]

    def _current(self) -> Iterator[Minute]:
        if self._before:
            counts = [now - before for now, before in zip(self._durations(), self._before, strict=True)]
            yield Minute(
                at=int(self._minute) * 60,
                requests=sum(counts) + self._failed_exports,
                errors=self._errors,
                errors_proxy=self._errors_proxy,
                p50_s=quantile_s(counts, 0.5),
                p95_s=quantile_s(counts, 0.95),
                silent=self._silent,
                troubles=self._troubles,
            )
