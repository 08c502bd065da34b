"""Logs events, other than requests, each at its level, and repeated failures only now and then.

A new failure is logged at once. Equal failures, which may come by the thousand, are then counted, and a
line at growing intervals says how many there were. Knows only the names of events.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

OnEvent = Callable[[str, Mapping[str, object]], None]
"""A function that takes an event's name (past-tense snake_case) and its values."""


def ignore_event(_event: str, _values: Mapping[str, object]) -> None:
    """An `OnEvent` that does nothing."""


INTERVALS_S = (60.0, 300.0, 900.0, 3600.0)
"""Seconds between two lines about equal failures: first, second, ... The last one repeats."""
QUIET_S = 900.0
"""Seconds after which a failure without repetition is over; the longest wait for a next try is shorter."""
MOST_LINES = 4
"""The most lines a minute about one of these events, which come by the thousand; the others are counted."""
_FREQUENT = frozenset(("token_endpoint_recovered", "token_fetched"))
MOST_KINDS = 4096
"""The most different failures that are counted; for a further one, the least recent one is forgotten."""
_REPEATED = frozenset(
    (
        "accept_failed",
        "api_discovery_failed",
        "certificate_refused",
        "counts_not_saved",
        "loop_detected",
        "request_failed",
        "request_failed_by_bug",
        "secret_source_failed",
        "token_endpoint_failed",
        "token_fetch_failed",
        "token_rejected",
        "wrong_key_slowed_down",
    )
)
_WARNINGS = _REPEATED | {
    "configuration_passed_over",
    "counts_damaged",
    "credentials_expire",
    "credentials_switched",
    "event_loop_was_slow",
    "files_unchecked",
    "quota_nearly_reached",
    "quota_reached",
    "reload_needs_restart",
    "reload_refused",
    "secret_in_environment",
    "unix_socket_lost",
}
_ERRORS = frozenset(("request_failed_by_bug",))
_SAME = ("lease", "project", "api", "cause", "source")
"""Failures of one event are equal if these values are; in an outage, those of all leases with one cause."""
_ENDS = {
    "apis_discovered": "api_discovery_failed",
    "counts_saved": "counts_not_saved",
    "token_fetched": "token_fetch_failed",
}
"""Events that end a failure of the same lease or project."""


class Logger(Protocol):
    """The methods of structlog's logger that this module calls."""

    def info(self, event: str, **values: Any) -> object:
        """Log an event."""

    def warning(self, event: str, **values: Any) -> object:
        """Log an event as a warning."""

    def error(self, event: str, **values: Any) -> object:
        """Log an event as an error."""


@dataclass(slots=True)
class _Series:
    """Equal failures. ``untold`` of the ``count`` are in no line yet; times are the clock's seconds."""

    values: Mapping[str, object]
    first_at: float
    last_at: float
    told_at: float
    lines: int = 1
    count: int = 1
    untold: int = 0

    def is_due(self, now: float) -> bool:
        return now - self.told_at >= INTERVALS_S[min(self.lines, len(INTERVALS_S)) - 1]


class EventLog:
    """Logs events by name and values. ``clock`` gives monotonic seconds."""

    def __init__(self, logger: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = logger
        self._clock = clock
        self._series: dict[tuple[object, ...], _Series] = {}
        self._since_sweep: Counter[str] = Counter()

    def __call__(self, event: str, values: Mapping[str, object]) -> None:
        """Log an event, or only count it if an equal failure was logged."""
        if event in _REPEATED:
            self._count_failure(event, values)
        else:
            ended = self._values_of_end(event, values)
            if event in _FREQUENT and not ended:
                self._since_sweep[event] += 1
                if self._since_sweep[event] > MOST_LINES:
                    return
            self._log_at_level(event, {**values, **ended})

    def sweep(self) -> None:
        """Log the counts that are due, and the failures that are over; call this about once a minute."""
        now = self._clock()
        for event, count in self._since_sweep.items():
            if count > MOST_LINES:
                self._log_at_level(event, {"repeated": count - MOST_LINES})
        self._since_sweep.clear()
        for key, series in [*self._series.items()]:
            event = str(key[0])
            if series.untold and series.is_due(now):
                self._log_repeats(event, series, now)
            elif now - series.last_at >= QUIET_S:
                del self._series[key]
                if series.count > 1:
                    self._log_at_level("failure_ceased", _values_when_over(event, series))

    def _count_failure(self, event: str, values: Mapping[str, object]) -> None:
        now, key = self._clock(), _key(event, values)
        series = self._series.pop(key, None)
        kept = {name: value for name, value in values.items() if name != "exc_info"}  # it holds whole frames
        if series is None:
            if len(self._series) >= MOST_KINDS:
                del self._series[next(iter(self._series))]
            series = _Series(kept, now, now, now)
            self._log_at_level(event, values)
        else:
            series.values, series.last_at = kept, now
            series.count += 1
            series.untold += 1
            if series.is_due(now):
                self._log_repeats(event, series, now)
        self._series[key] = series  # the last one now

    def _log_repeats(self, event: str, series: _Series, now: float) -> None:
        since_s = round(now - series.first_at)
        self._log_at_level(event, {**series.values, "repeated": series.untold, "since_s": since_s})
        series.told_at, series.untold = now, 0
        series.lines += 1

    def _values_of_end(self, event: str, values: Mapping[str, object]) -> dict[str, object]:
        """The values to add about the failures that this event ends."""
        of = _ENDS.get(event)
        if of is None:
            return {}
        whose = (_key(of, values)[:3], (of, None, None))
        ended = [self._series.pop(key) for key in [*self._series] if key[:3] in whose]
        if not ended:
            return {}
        first_at = min(series.first_at for series in ended)
        return {
            "after_failures": sum(series.count for series in ended),
            "failed_for_s": round(self._clock() - first_at),
        }

    def _log_at_level(self, event: str, values: Mapping[str, object]) -> None:
        if event in _ERRORS:
            self._log.error(event, **values)
        elif event in _WARNINGS:
            self._log.warning(event, **values)
        else:
            self._log.info(event, **values)


def _key(event: str, values: Mapping[str, object]) -> tuple[object, ...]:
    is_outage = values.get("is_outage", False)
    return (event, *(None if is_outage and name != "cause" else values.get(name) for name in _SAME))


def _values_when_over(event: str, series: _Series) -> dict[str, object]:
    whose = {name: series.values[name] for name in _SAME if name in series.values}
    return {
        "failure": event,
        **whose,
        "failures": series.count,
        "failed_for_s": round(series.last_at - series.first_at),
    }
