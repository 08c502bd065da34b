"""The Speed Analysis Lab API: monitorings, scenarios, reports, HAR files, and events.

All calls are POSTs with a JSON body. Each is also answered as a GET with a body, as older pages of the vendor
show it, and ``event/delete`` as a DELETE, as a client sends it. Events are remembered in memory, per project.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from proxy.sandbox.options import DemoProject
from proxy.sandbox.parameters import is_integer, iso, moment
from proxy.sandbox.reports import PAGES, PRESENT, Report, config, har, statistics, unix_ms, url_of
from proxy.sandbox.wire import Call, Router, bad_request, not_found, success

if TYPE_CHECKING:
    from aiohttp import web

REPORTS_PER_DAY = 4
MAX_REPORT_DAYS = 366
_SCENARIOS = (("Buy as a guest", 4), ("Log in and reorder", 3), ("Search and compare", 3))


@dataclass(frozen=True, slots=True)
class Event:
    """An event, and the ids of what it belongs to."""

    key: str
    text: str
    date: datetime
    monitorings: tuple[int, ...]
    scenarios: tuple[int, ...]

    def described(self) -> dict[str, str]:
        """The event as the API shows it."""
        return {"key": self.key, "text": self.text, "date": iso(self.date)}


class SpeedAnalysis:
    """The API's routes, and the events of each project."""

    def __init__(self) -> None:
        self._events: dict[int, dict[str, Event]] = {}

    def add_routes(self, router: Router) -> None:
        """The paths below ``/v1/speed-analysis``."""
        handlers = {
            "analysis/report": analysis_report,
            "analysis/har": analysis_har,
            "monitoring/list": monitoring_list,
            "monitoring/last-report": monitoring_last_report,
            "monitoring/reports": monitoring_reports,
            "scenario/list": scenario_list,
            "scenario/report": scenario_report,
            "scenario/reports": scenario_reports,
            "scenario/step/report": scenario_step_report,
            "scenario/report/har": analysis_har,
            "event/list": self.event_list,
            "event/create": self.event_create,
            "event/delete": self.event_delete,
        }
        for path, handler in handlers.items():
            for method in ("POST", "GET"):
                router.add(method, f"/v1/speed-analysis/{path}", handler)
        router.add("DELETE", "/v1/speed-analysis/event/delete", self.event_delete)

    async def event_list(self, call: Call) -> web.Response:
        """The project's events; ``key``, ``dateFrom``, ``monitoringId`` and ``scenarioId`` pick some."""
        content = await call.json()
        events = list(self._own_events(call).values())
        if content.get("key") not in (None, ""):
            events = [event for event in events if event.key == content["key"]]
        if content.get("monitoringId") is not None:
            events = [event for event in events if content["monitoringId"] in event.monitorings]
        if content.get("scenarioId") is not None:
            events = [event for event in events if content["scenarioId"] in event.scenarios]
        if content.get("dateFrom"):
            start = moment(content["dateFrom"], "dateFrom")
            events = [event for event in events if event.date >= start]
        return success({"events": [event.described() for event in events]})

    async def event_create(self, call: Call) -> web.Response:
        """Remembers an event: ``key``, ``text``, ``date``; ``monitorings``, ``scenarios`` say of what."""
        content = await call.json()
        event = Event(
            _text(content, "key"),
            _text(content, "text"),
            moment(content.get("date"), "date"),
            _ids(content, "monitorings", _monitoring_ids(call.project)),
            _ids(content, "scenarios", _scenario_ids(call.project)),
        )
        self._own_events(call)[event.key] = event
        return success({"event": event.described()})

    async def event_delete(self, call: Call) -> web.Response:
        """Forgets the event with this ``key``. Raises Fault 404."""
        event = self._own_events(call).pop(_text(await call.json(), "key"), None)
        if event is None:
            raise not_found("No event with this key.")
        return success({"event": event.described()})

    def _own_events(self, call: Call) -> dict[str, Event]:
        return self._events.setdefault(call.project.project_id, {})


async def analysis_report(call: Call) -> web.Response:
    """The report named by ``reportId``: of an analysis, or one that a list of reports named."""
    content = await call.json()
    return _one_report(Report.named(call.project, _report_id(content)), content)


async def analysis_har(call: Call) -> web.Response:
    """The HAR 1.2 file of a report, named by ``reportId``."""
    return success(har(_report_id(await call.json())))


async def monitoring_list(call: Call) -> web.Response:
    """The monitorings; ``name`` and ``url`` pick those that contain a text."""
    content = await call.json()
    found = [_monitoring(id_) for id_ in _monitoring_ids(call.project)]
    for name in ("name", "url"):
        wanted = content.get(name)
        if isinstance(wanted, str):
            found = [item for item in found if wanted.lower() in str(item[name]).lower()]
    return success({"monitorings": found})


async def monitoring_last_report(call: Call) -> web.Response:
    """The last report of the monitoring ``monitoringId``."""
    content = await call.json()
    id_ = _own_id(content, "monitoringId", _monitoring_ids(call.project))
    return _one_report(Report.of(call.project, "monitoring", id_), content)


async def monitoring_reports(call: Call) -> web.Response:
    """The reports of ``monitoringId``: those between ``dateFrom`` and ``dateTo``, or of the ``lastDays``.

    ``limit`` picks the newest ones; 0 means all.
    """
    content = await call.json()
    id_ = _own_id(content, "monitoringId", _monitoring_ids(call.project))
    reports = _reports(call.project, "monitoring", id_, content)
    data = [report.in_list() for report in reports]
    return success({"monitoringData": data, "statistics": statistics(reports)})


async def scenario_list(call: Call) -> web.Response:
    """The scenarios."""
    await call.json()
    found = [
        {
            "id": id_,
            "name": name,
            "state": "OK",
            "enabled": True,
            "frequency": 60,
            "steps": [{"id": step + 1, "name": f"Step {step + 1}"} for step in range(steps)],
        }
        for id_, (name, steps) in zip(_scenario_ids(call.project), _SCENARIOS, strict=True)
    ]
    return success({"scenarios": found})


async def scenario_report(call: Call) -> web.Response:
    """A report of the scenario ``scenarioId``, with one part a step."""
    content = await call.json()
    id_ = _own_id(content, "scenarioId", _scenario_ids(call.project))
    steps = [_step_report(call.project, id_, step).in_list() for step in range(1, _steps(id_) + 1)]
    return success({"report": {"id": id_, "date": unix_ms(PRESENT), "state": "OK", "steps": steps}})


async def scenario_reports(call: Call) -> web.Response:
    """The reports of the scenario ``scenarioId``, picked as those of a monitoring."""
    content = await call.json()
    id_ = _own_id(content, "scenarioId", _scenario_ids(call.project))
    return success({"reports": [one.in_list() for one in _reports(call.project, "scenario", id_, content)]})


async def scenario_step_report(call: Call) -> web.Response:
    """The report of one step: ``scenarioId`` and ``stepId``."""
    content = await call.json()
    id_ = _own_id(content, "scenarioId", _scenario_ids(call.project))
    step = content.get("stepId")
    if not is_integer(step) or not 1 <= step <= _steps(id_):
        raise not_found("No such step in this scenario.")
    return _one_report(_step_report(call.project, id_, step), content)


def _one_report(report: Report, content: dict[str, Any]) -> web.Response:
    whole = report.whole(
        metrics_only=content.get("metricsOnly") is True,
        ids_for_tips=content.get("getUniqueIDsForTips") is True,
    )
    return success({"missing": [], "report": whole})


def _monitoring(id_: int) -> dict[str, object]:
    page = (id_ - 1) % 100
    return {
        "id": id_,
        "url": url_of(page),
        "name": f"{PAGES[page]} page",
        "state": "OK",
        "errorMessage": "",
        "lastExecution": unix_ms(PRESENT),
        "enabled": True,
        "frequency": 24 * 60 // REPORTS_PER_DAY,
        "lang": "en",
        "config": config(f"monitoring {id_}", page),
    }


def _step_report(project: DemoProject, id_: int, step: int) -> Report:
    return Report.of(project, "scenario", id_, PRESENT + timedelta(seconds=step))


def _reports(project: DemoProject, kind: str, id_: int, content: dict[str, Any]) -> list[Report]:
    """Some reports a day; those of the last week before the fixed present where nothing is asked for."""
    days = _count(content, "lastDays", 7)
    end = moment(content["dateTo"], "dateTo") if content.get("dateTo") else PRESENT
    start = moment(content["dateFrom"], "dateFrom") if content.get("dateFrom") else end - timedelta(days=days)
    if not start < end <= start + timedelta(days=MAX_REPORT_DAYS):
        raise bad_request(f"dateFrom must be before dateTo, by at most {MAX_REPORT_DAYS} days.")
    step = timedelta(days=1) / REPORTS_PER_DAY
    when = start.replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    while when < end:
        if when >= start:
            found.append(Report.of(project, kind, id_, when))
        when += step
    return found[-_count(content, "limit", 0) :]


def _monitoring_ids(project: DemoProject) -> range:
    return range(project.project_id * 100 + 1, project.project_id * 100 + 1 + len(PAGES))


def _scenario_ids(project: DemoProject) -> range:
    return range(project.project_id * 100 + 1, project.project_id * 100 + 1 + len(_SCENARIOS))


def _steps(scenario_id: int) -> int:
    return _SCENARIOS[scenario_id % 100 - 1][1]


def _text(content: dict[str, Any], name: str) -> str:
    text = content.get(name)
    if not isinstance(text, str) or not text:
        raise bad_request(f"{name} is required: a string.")
    return text


def _count(content: dict[str, Any], name: str, otherwise: int) -> int:
    count = content.get(name)
    if count is None:
        return otherwise
    if not is_integer(count) or not 0 <= count <= 10_000:
        raise bad_request(f"{name} must be a number from 0 to 10000.")
    return count


def _report_id(content: dict[str, Any]) -> str:
    id_ = content.get("reportId")
    if not isinstance(id_, str | int) or id_ == "":
        raise bad_request("reportId is required.")
    return str(id_)


def _ids(content: dict[str, Any], name: str, own: range) -> tuple[int, ...]:
    """Some ids of this project's; all of them where none are named."""
    ids = content.get(name)
    if ids is None or ids == []:
        return tuple(own)
    if not isinstance(ids, list) or not all(is_integer(id_) for id_ in ids):
        raise bad_request(f"{name} must be a list of numbers.")
    for id_ in ids:
        if id_ not in own:
            raise not_found(f"No {name.removesuffix('s')} {id_} in this project.")
    return tuple(ids)


def _own_id(content: dict[str, Any], name: str, own: range) -> int:
    id_ = content.get(name)
    if not is_integer(id_):
        raise bad_request(f"{name} must be a number.")
    if id_ not in own:
        raise not_found(f"No {name} {id_} in this project.")
    return id_
