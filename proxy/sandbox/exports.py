"""The Data Export API: fields, export jobs, their runs, and the files behind signed URLs.

Jobs live in memory. A run's state follows from the clock alone: scheduled, running, success.
Files aren't stored but made when they are asked for; their content follows from the job's id and
its definition. Beyond the vendor's parameters a job has ``rows`` (how many in all), ``files`` (how many
they are divided between), ``compression`` ("gzip" or "none") and ``cutAfter`` (bytes after which storage
ends each answer's connection).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from proxy.contentsquare import FILES_LIVE_S
from proxy.sandbox.fields import CUSTOM_VARS, DYNAMIC_VARS, FIELDS, Column, column
from proxy.sandbox.files import ExportFile, shares
from proxy.sandbox.parameters import integer, is_integer, iso, moment
from proxy.sandbox.rows import Rows
from proxy.sandbox.storage import Storage
from proxy.sandbox.wire import Call, Router, bad_request, not_found, success

if TYPE_CHECKING:
    from aiohttp import web

MAX_ROWS = 100_000_000
MAX_FILES = 1000
DEFAULT_ROWS, DEFAULT_FILES = 1000, 3
MAX_DAYS = 7
_DEVICES = ("all", "desktop", "mobile", "tablet")
_SCHEDULED_SHARE = 0.2  # of a run's duration, before it is running


@dataclass(frozen=True, slots=True)
class Job:
    """An export job as defined; ``created_at`` is Unix time, ``start`` and ``end`` are its one run's."""

    job_id: int
    project_id: int
    name: str
    format: str
    scope: str
    frequency: Mapping[str, Any]
    columns: tuple[Column, ...]
    device: str
    segment_id: int | None
    rows: int
    parts: int
    compression: str
    cut_after: int | None
    created_at: float
    start: datetime
    end: datetime

    @property
    def run_id(self) -> int:
        """The id of the job's run."""
        return 100_000 + self.job_id

    def described(self) -> dict[str, object]:
        """The job as the API shows it."""
        return {
            "jobId": self.job_id,
            "name": self.name,
            "state": "active",
            "format": self.format,
            "scope": self.scope,
            "frequency": self.frequency,
            "fields": [column.described() for column in self.columns],
            "deviceLabel": self.device,
            "segmentId": self.segment_id,
            "createdAt": iso(datetime.fromtimestamp(self.created_at, UTC)),
        }

    def files(self, finished_at: float) -> list[ExportFile]:
        """The run's files, in order; an export without rows has one, too."""
        kind = self.format.lower() + (".gz" if self.compression == "gzip" else "")
        cut = f"/cut/{self.cut_after}" if self.cut_after is not None else ""
        return [
            ExportFile(
                path=f"{cut}/exports/{self.project_id}/{self.job_id}/{self.run_id}/part-{part:04d}.{kind}",
                rows=Rows(
                    format=self.format,
                    columns=self.columns,
                    seed=f"{self.project_id} {self.job_id} {part}",
                    start=self.start,
                    end=self.end,
                    project_id=self.project_id,
                    device=self.device,
                ),
                count=count,
                compressed=self.compression == "gzip",
                made_at=finished_at,
                expires_at=finished_at + FILES_LIVE_S,
                cut_after=self.cut_after,
            )
            for part, count in enumerate(shares(self.rows, max(1, min(self.parts, self.rows))), 1)
        ]


class ExportJobs:
    """The API's routes, and the jobs of every project."""

    def __init__(self, storage: Storage, now: Callable[[], float], duration_s: float) -> None:
        self._storage = storage
        self._now = now
        self._duration_s = duration_s
        self._jobs: dict[int, Job] = {}
        self._ids = itertools.count(1001)

    def add_routes(self, router: Router) -> None:
        """The paths of the Data Export API."""
        router.add("GET", "/v1/exportable-fields", exportable_fields)
        router.add("GET", "/v1/custom-vars", custom_vars)
        router.add("GET", "/v1/dynamic-var-keys", dynamic_var_keys)
        router.add("POST", "/v1/exports", self.create)
        router.add("GET", "/v1/exports", self.list_jobs)
        router.add("GET", "/v1/exports/successful-runs", self.successful_runs)
        router.add("GET", "/v1/exports/{job_id}", self.one_job)
        router.add("GET", "/v1/exports/{job_id}/runs", self.runs)
        router.add("GET", "/v1/exports/{job_id}/runs/{run_id}", self.one_run)

    async def create(self, call: Call) -> web.Response:
        """Creates a job, and its run; 201. Raises Fault 400, naming the parameter."""
        content = await call.json()
        now = self._now()
        frequency, start, end = _frequency(content.get("frequency"), now)
        scope = _one_of(content.get("scope", "sessions"), "scope", tuple(FIELDS))
        job = Job(
            job_id=next(self._ids),
            project_id=call.project.project_id,
            name=_name(content.get("name")),
            format=_one_of(content.get("format"), "format", ("JSONL", "CSV")),
            scope=scope,
            frequency=frequency,
            columns=_columns(content.get("fields"), scope),
            device=_one_of(content.get("deviceLabel", "all"), "deviceLabel", _DEVICES),
            segment_id=_whole_number(content.get("segmentId"), "segmentId"),
            rows=_number(content.get("rows", DEFAULT_ROWS), "rows", 0, MAX_ROWS),
            parts=_number(content.get("files", DEFAULT_FILES), "files", 1, MAX_FILES),
            compression=_one_of(content.get("compression", "gzip"), "compression", ("gzip", "none")),
            cut_after=_cut_after(content.get("cutAfter")),
            created_at=now,
            start=start,
            end=end,
        )
        self._jobs[job.job_id] = job
        return success(job.described(), status=201)

    async def list_jobs(self, call: Call) -> web.Response:
        """A page of jobs, the newest first; ``format``, ``frequency``, ``scope`` and ``state`` pick."""
        jobs = [job.described() for job in self._own(call)]
        for name in ("format", "scope", "state"):
            if name in call.query:
                jobs = [job for job in jobs if str(job[name]).lower() == call.query[name].lower()]
        if "frequency" in call.query:
            wanted = {
                job.job_id for job in self._own(call) if job.frequency["value"] == call.query["frequency"]
            }
            jobs = [job for job in jobs if job["jobId"] in wanted]
        return success(_page(call, jobs))

    async def one_job(self, call: Call) -> web.Response:
        """One job."""
        return success(self._job(call).described())

    async def runs(self, call: Call) -> web.Response:
        """A page of a job's runs, without files; ``state`` picks."""
        runs = [self._run(self._job(call))]
        if "state" in call.query:
            runs = [run for run in runs if run["state"] == call.query["state"].lower()]
        return success(_page(call, runs))

    async def one_run(self, call: Call) -> web.Response:
        """One run; ``files`` is empty until it is a success."""
        job = self._job(call)
        if call.path["run_id"] != str(job.run_id):
            raise not_found(f"No run {call.path['run_id']} of job {job.job_id}.")
        run = self._run(job)
        files = job.files(self._finished_at(job)) if run["state"] == "success" else []
        described = [
            {
                "partId": part,
                "url": self._storage.sign(file),
                "expirationDate": iso(datetime.fromtimestamp(file.expires_at, UTC)),
            }
            for part, file in enumerate(files, 1)
        ]
        return success({**run, "files": described})

    async def successful_runs(self, call: Call) -> web.Response:
        """A page of the successful runs of every job of the project, the newest first."""
        runs = [run for run in map(self._run, self._own(call)) if run["state"] == "success"]
        return success(_page(call, runs))

    def _own(self, call: Call) -> list[Job]:
        own = [job for job in self._jobs.values() if job.project_id == call.project.project_id]
        return own[::-1]

    def _job(self, call: Call) -> Job:
        text = call.path["job_id"]
        for job in self._own(call):
            if str(job.job_id) == text:
                return job
        raise not_found(f"No export job {text} in this project.")

    def _finished_at(self, job: Job) -> float:
        return job.created_at + self._duration_s

    def _run(self, job: Job) -> dict[str, object]:
        """The run as lists show it; ``completionRate`` is in percent."""
        age_s = self._now() - job.created_at
        share = min(1.0, age_s / self._duration_s) if self._duration_s else 1.0
        if self._now() >= self._finished_at(job):
            state = "success"
        else:
            state = "running" if share >= _SCHEDULED_SHARE else "scheduled"
        return {
            "jobRunId": job.run_id,
            "jobId": job.job_id,
            "state": state,
            "completionRate": int(100 * share) if state == "running" else 100 * (state == "success"),
            "startDate": iso(job.start),
            "endDate": iso(job.end),
            "createdAt": iso(datetime.fromtimestamp(job.created_at, UTC)),
        }


async def exportable_fields(call: Call) -> web.Response:
    """The fields that a job may name; ``scope`` picks those of "sessions" or "views"."""
    scope = call.query.get("scope")
    scopes = (_one_of(scope, "scope", tuple(FIELDS)),) if scope else tuple(FIELDS)
    return success(
        [{"name": name, "type": type_, "scope": s} for s in scopes for name, type_ in FIELDS[s].items()]
    )


async def custom_vars(call: Call) -> web.Response:
    """The project's custom variables."""
    return success(
        [
            {"position": position, "name": name, "projectId": call.project.project_id}
            for position, name in enumerate(CUSTOM_VARS, 1)
        ]
    )


async def dynamic_var_keys(call: Call) -> web.Response:
    """The keys of the project's dynamic variables seen between ``from`` and ``to``, where these are given."""
    given = {name: call.query[name] for name in ("from", "to") if name in call.query}
    moments = {name: moment(text, name) for name, text in given.items()}
    if len(moments) > 1 and moments["from"] >= moments["to"]:
        raise bad_request("from must be before to.")
    return success([{"key": key, "type": type_} for key, type_ in DYNAMIC_VARS.items()])


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise bad_request("name must not be empty.")
    return value


def _one_of(value: object, name: str, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise bad_request(f"{name} must be one of {', '.join(choices)}.")
    return value


def _whole_number(value: object, name: str) -> int | None:
    if value is None:
        return None
    if not is_integer(value):
        raise bad_request(f"{name} must be an integer.")
    return value


def _number(value: object, name: str, least: int, most: int) -> int:
    number = _whole_number(value, name)
    if number is None or not least <= number <= most:
        raise bad_request(f"{name} must be between {least} and {most}.")
    return number


def _cut_after(value: object) -> int | None:
    return None if value is None else _number(value, "cutAfter", 1, 2**40)


def _columns(value: object, scope: str) -> tuple[Column, ...]:
    if not isinstance(value, list) or not value:
        raise bad_request("fields must be a list that isn't empty.")
    columns = tuple(column(item, scope) for item in value)
    for names in ([(item.field, item.of) for item in columns], [item.label for item in columns]):
        if len(set(names)) < len(names):
            raise bad_request("fields must not name a field, or a column, more than once.")
    return columns


def _frequency(value: object, now: float) -> tuple[dict[str, Any], datetime, datetime]:
    """The frequency as given, and the date range of the job's first run."""
    if not isinstance(value, dict):
        raise bad_request("frequency must be an object.")
    kind = _one_of(value.get("value"), "frequency.value", ("once", "daily", "hourly"))
    if kind != "once":
        hour = datetime.fromtimestamp(now, UTC).replace(minute=0, second=0, microsecond=0)
        end = hour if kind == "hourly" else hour.replace(hour=0)
        return value, end - timedelta(hours=1 if kind == "hourly" else 24), end
    date_range = value.get("dateRange")
    if not isinstance(date_range, dict):
        raise bad_request("frequency.dateRange is required with frequency.value once.")
    start = moment(date_range.get("from"), "frequency.dateRange.from")
    end = moment(date_range.get("to"), "frequency.dateRange.to")
    if not start < end <= start + timedelta(days=MAX_DAYS):
        raise bad_request(f"frequency.dateRange must span more than 0 and at most {MAX_DAYS} days.")
    return value, start, end


def _page(call: Call, items: list[dict[str, object]]) -> list[dict[str, object]]:
    """The page that ``page`` (from 1), ``limit`` and ``order`` ask for; ``items`` come newest first."""
    limit = integer(call.query.get("limit", "50"), "limit")
    number = integer(call.query.get("page", "1"), "page")
    order = _one_of(call.query.get("order", "desc").lower(), "order", ("asc", "desc"))
    if limit < 1 or number < 1:
        raise bad_request("limit and page must be at least 1.")
    ordered = items if order == "desc" else items[::-1]
    return ordered[(number - 1) * limit : number * limit]
