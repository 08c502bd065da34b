"""What Contentsquare's answers tell about an export's runs, however they spell it. Pure.

Lenient about shapes, as client programs in the wild are. Sources: Contentsquare's Data Export API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from proxy.contentsquare import FILES_LIVE_S

SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
"""The id of a job or of a run: one segment of a path."""
NEWEST_FIRST: Final = "order=desc&limit=20"
"""The query by which Contentsquare lists the newest runs of a job, the newest first."""
_SUCCESS: Final = frozenset(("success", "successful", "succeeded"))
_FAILURE: Final = frozenset(("failed", "failure", "error", "canceled", "cancelled", "expired"))
"""States of a run that gets no files any more."""
_STATE: Final = re.compile(r"[a-z][a-z _-]{0,31}\Z")
_DATES: Final = ("createdAt", "endDate", "startDate")
_UNKNOWN_DATE: Final = float("inf")
Members = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run as an answer tells of it. ``files`` are in their order.

    ``run_id`` None: the answer names no id that can stand in a path. ``state`` is in lower case, "" where
    none is told. ``done`` is in percent, None where it isn't told. Times are in seconds since 1970:
    ``ended_at`` is the latest that the answer names, infinite where it names none, and the files are gone
    after ``expires_at``.
    """

    run_id: str | None
    state: str
    done: float | None
    ended_at: float
    expires_at: float
    files: Sequence[Members]

    @classmethod
    def of(cls, run: Members) -> RunReport:
        """Read the members of a run."""
        run_id, done = text(run, "jobRunId", "runId", "id"), run.get("completionRate")
        dates = [date for name in _DATES if (date := _date(run, name)) is not None]
        ended_at = max(dates, default=_UNKNOWN_DATE)
        files = _objects(run.get("files"))
        if all(isinstance(file.get("partId"), int) for file in files):
            files.sort(key=lambda file: cast(int, file["partId"]))
        ends = [date for file in files if (date := _date(file, "expirationDate")) is not None]
        return cls(
            run_id if SEGMENT.match(run_id) else None,
            text(run, "state", "status").lower(),
            done if isinstance(done, int | float) and 0 <= done <= 100 else None,
            ended_at,
            min([ended_at + FILES_LIVE_S, *ends]),
            files,
        )

    @property
    def is_success(self) -> bool:
        """Whether the run has ended well."""
        return self.state in _SUCCESS

    @property
    def is_failure(self) -> bool:
        """Whether the run has ended, and never gets files."""
        return self.state in _FAILURE

    @property
    def words(self) -> str:
        """The run's state for people; a foreign text that looks like none is not repeated."""
        if not _STATE.match(self.state):
            return "not finished"
        return f"{self.state} ({self.done:g} % done)" if self.done else self.state


def payload_of(answer: object) -> object:
    """The payload of an answer; all of the answer where it has no envelope."""
    return answer.get("payload", answer) if isinstance(answer, dict) else answer


def listed(payload: object) -> list[RunReport] | None:
    """The runs of a list, the newest last; None where the payload has no list."""
    if isinstance(payload, dict):  # a list within an object
        payload = next((value for value in payload.values() if isinstance(value, list)), None)
    if not isinstance(payload, list):
        return None
    return sorted(map(RunReport.of, _objects(payload)), key=_age_key)


def newest(runs: Sequence[RunReport]) -> RunReport | None:
    """Of `listed` runs, the newest successful one that has an id, else the newest; None without a run."""
    good = [run for run in runs if run.is_success and run.run_id is not None]
    return next(reversed(good or runs), None)


def text(members: Members, *names: str) -> str:
    """The first member of one of these names that is a text or a whole number, as text; "" without one."""
    for name in names:
        value = members.get(name)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
    return ""


def _age_key(run: RunReport) -> tuple[float, int]:
    """Older runs sort before newer ones."""
    return run.ended_at, int(run.run_id) if run.run_id is not None and run.run_id.isdigit() else 0


def _objects(value: object) -> list[Members]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _date(members: Members, name: str) -> float | None:
    try:
        date = datetime.fromisoformat(text(members, name))
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
