"""The Speed Analysis Lab API: monitorings, scenarios, reports, HAR files, and events.

All calls are POSTs with a JSON body. Reports are made up for the day and the object asked for;
events are remembered in memory, per project.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from proxy.sandbox.catalog import noise
from proxy.sandbox.options import DemoProject
from proxy.sandbox.parameters import is_integer, iso, moment
from proxy.sandbox.wire import Call, Router, bad_request, not_found, success

if TYPE_CHECKING:
    from aiohttp import web

REPORTS_PER_DAY = 4
MAX_REPORT_DAYS = 31
_PAGES = ("Home", "Category", "Product", "Cart", "Checkout", "Search")
_SCENARIOS = (("Buy as a guest", 4), ("Log in and reorder", 3), ("Search and compare", 3))
_LOCATIONS = ("Paris", "London", "Frankfurt", "Virginia")
_EPOCH_DAY = datetime(2026, 1, 1, tzinfo=UTC)


class SpeedAnalysis:
    """The API's routes, and the events of each project."""

    def __init__(self) -> None:
        self._events: dict[int, dict[str, dict[str, Any]]] = {}

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
            "scenario/report/har": scenario_report_har,
            "event/list": self.event_list,
            "event/create": self.event_create,
            "event/delete": self.event_delete,
        }
        for path, handler in handlers.items():
            router.add("POST", f"/v1/speed-analysis/{path}", handler)

    async def event_list(self, call: Call) -> web.Response:
        """The project's events; ``key``, ``dateFrom``, ``monitoringId`` and ``scenarioId`` pick some."""
        content = await call.json()
        events = list(self._own_events(call).values())
        for name in ("key", "monitoringId", "scenarioId"):
            if content.get(name) not in (None, ""):
                events = [event for event in events if event.get(name) == content[name]]
        if content.get("dateFrom"):
            start = moment(content["dateFrom"], "dateFrom")
            events = [event for event in events if datetime.fromisoformat(event["date"]) >= start]
        return success({"events": events})

    async def event_create(self, call: Call) -> web.Response:
        """Remembers an event: ``text`` and ``date``, with a ``key`` of the caller's or a new one."""
        content = await call.json()
        text = content.get("text")
        if not isinstance(text, str) or not text:
            raise bad_request("text is required.")
        key = content.get("key") or uuid.uuid4().hex
        if not isinstance(key, str):
            raise bad_request("key must be a string.")
        event = {"key": key, "text": text, "date": iso(moment(content.get("date"), "date"))}
        event |= {name: content[name] for name in ("monitoringId", "scenarioId") if name in content}
        self._own_events(call)[key] = event
        return success({"event": event})

    async def event_delete(self, call: Call) -> web.Response:
        """Forgets the event with this ``key``. Raises Fault 404."""
        content = await call.json()
        key = content.get("key")
        if not isinstance(key, str) or self._own_events(call).pop(key, None) is None:
            raise not_found("No event with this key.")
        return success({"key": key})

    def _own_events(self, call: Call) -> dict[str, dict[str, Any]]:
        return self._events.setdefault(call.project.project_id, {})


async def analysis_report(call: Call) -> web.Response:
    """The report of an analysis, named by ``reportId``."""
    content = await call.json()
    report_id = content.get("reportId")
    if not isinstance(report_id, str | int) or report_id == "":
        raise bad_request("reportId is required.")
    return success({"report": _report(call.project, f"analysis {report_id}", _EPOCH_DAY, str(report_id))})


async def analysis_har(call: Call) -> web.Response:
    """The HAR 1.2 file of a report, named by ``reportId``."""
    return await _har(call, "analysis")


async def monitoring_list(call: Call) -> web.Response:
    """The monitorings; ``name`` and ``url`` pick those that contain a text."""
    content = await call.json()
    found = [_monitoring(call.project, number) for number in range(len(_PAGES))]
    for name in ("name", "url"):
        wanted = content.get(name)
        if isinstance(wanted, str):
            found = [item for item in found if wanted.lower() in str(item[name]).lower()]
    return success({"monitorings": found})


async def monitoring_last_report(call: Call) -> web.Response:
    """The last report of the monitoring ``monitoringId``."""
    content = await call.json()
    id_ = _own_id(call.project, content, "monitoringId", len(_PAGES))
    return success({"report": _report(call.project, f"monitoring {id_}", _EPOCH_DAY, f"m{id_}-0")})


async def monitoring_reports(call: Call) -> web.Response:
    """The reports of the monitoring ``monitoringId`` between ``dateFrom`` and ``dateTo``."""
    content = await call.json()
    id_ = _own_id(call.project, content, "monitoringId", len(_PAGES))
    return success({"reports": _reports(call.project, f"monitoring {id_}", content)})


async def scenario_list(call: Call) -> web.Response:
    """The scenarios."""
    await call.json()
    found = [
        {
            "id": call.project.project_id * 100 + number + 1,
            "name": name,
            "state": "OK",
            "enabled": True,
            "frequency": 60,
            "steps": [{"id": step + 1, "name": f"Step {step + 1}"} for step in range(steps)],
        }
        for number, (name, steps) in enumerate(_SCENARIOS)
    ]
    return success({"scenarios": found})


async def scenario_report(call: Call) -> web.Response:
    """A report of the scenario ``scenarioId``, with one part a step."""
    content = await call.json()
    id_ = _own_id(call.project, content, "scenarioId", len(_SCENARIOS))
    _, steps = _SCENARIOS[id_ % 100 - 1]
    parts = [_report(call.project, f"scenario {id_} {n}", _EPOCH_DAY, f"s{id_}-{n}") for n in range(steps)]
    return success({"report": {"id": f"s{id_}", "date": iso(_EPOCH_DAY), "state": "OK", "steps": parts}})


async def scenario_reports(call: Call) -> web.Response:
    """The reports of the scenario ``scenarioId`` between ``dateFrom`` and ``dateTo``."""
    content = await call.json()
    id_ = _own_id(call.project, content, "scenarioId", len(_SCENARIOS))
    return success({"reports": _reports(call.project, f"scenario {id_}", content)})


async def scenario_step_report(call: Call) -> web.Response:
    """The report of one step: ``scenarioId`` and ``stepId``."""
    content = await call.json()
    id_ = _own_id(call.project, content, "scenarioId", len(_SCENARIOS))
    _, steps = _SCENARIOS[id_ % 100 - 1]
    step = content.get("stepId")
    if step not in range(1, steps + 1):
        raise not_found("No such step in this scenario.")
    return success({"report": _report(call.project, f"scenario {id_} {step}", _EPOCH_DAY, f"s{id_}-{step}")})


async def scenario_report_har(call: Call) -> web.Response:
    """The HAR 1.2 file of a scenario's report, named by ``reportId``."""
    return await _har(call, "scenario")


async def _har(call: Call, kind: str) -> web.Response:
    content = await call.json()
    report_id = content.get("reportId")
    if not isinstance(report_id, str | int) or report_id == "":
        raise bad_request("reportId is required.")
    entries = [_har_entry(f"{kind} {report_id}", number) for number in range(12)]
    log = {
        "version": "1.2",
        "creator": {"name": "csq-proxy sandbox", "version": "1"},
        "pages": [
            {
                "startedDateTime": iso(_EPOCH_DAY),
                "id": "page_1",
                "title": "Shop",
                "pageTimings": {"onLoad": 1840},
            }
        ],
        "entries": entries,
    }
    return success({"log": log})


def _har_entry(key: str, number: int) -> dict[str, object]:
    time_ms = round(20 + 300 * noise("har", key, number), 1)
    size = round(2000 + 90000 * noise("size", key, number))
    url = f"https://shop.example/assets/{number}.js" if number else "https://shop.example/"
    return {
        "pageref": "page_1",
        "startedDateTime": iso(_EPOCH_DAY + timedelta(milliseconds=40 * number)),
        "time": time_ms,
        "request": {
            "method": "GET",
            "url": url,
            "httpVersion": "h2",
            "headers": [],
            "queryString": [],
            "cookies": [],
            "headersSize": -1,
            "bodySize": 0,
        },
        "response": {
            "status": 200,
            "statusText": "OK",
            "httpVersion": "h2",
            "headers": [],
            "cookies": [],
            "content": {"size": size, "mimeType": "text/html"},
            "redirectURL": "",
            "headersSize": -1,
            "bodySize": size,
        },
        "cache": {},
        "timings": {"send": 0, "wait": round(time_ms * 0.7, 1), "receive": round(time_ms * 0.3, 1)},
    }


def _monitoring(project: DemoProject, number: int) -> dict[str, object]:
    id_ = project.project_id * 100 + number + 1
    return {
        "id": id_,
        "url": f"https://shop.example/{_PAGES[number].lower()}",
        "name": f"{_PAGES[number]} page",
        "state": "OK",
        "errorMessage": "",
        "lastExecution": int(_EPOCH_DAY.timestamp()),
        "enabled": True,
        "frequency": 24 * 60 // REPORTS_PER_DAY,
        "lang": "en",
        "config": {
            "location": _LOCATIONS[int(noise("location", id_) * len(_LOCATIONS))],
            "browser": {"name": "Chrome", "version": "131"},
            "isMobile": number % 2 == 1,
            "bandwidth": {"upstream": 5000, "downstream": 20000},
            "latency": 40,
            "screen": {"height": 1080, "width": 1920},
        },
    }


def _report(project: DemoProject, what: str, when: datetime, id_: str) -> dict[str, object]:
    key = project.project_id, what, when
    slowness = 0.7 + 0.5 * noise("base", project.project_id, what) + 0.2 * noise("slow", *key)
    return {
        "id": id_,
        "date": iso(when),
        "state": "OK",
        "score": max(1, round(100 - 38 * slowness)),
        "metrics": {
            "timeToFirstByte": round(310 * slowness),
            "firstContentfulPaint": round(1100 * slowness),
            "largestContentfulPaint": round(2100 * slowness),
            "speedIndex": round(2400 * slowness),
            "totalBlockingTime": round(180 * slowness),
            "cumulativeLayoutShift": round(0.08 * slowness, 4),
            "fullyLoaded": round(4300 * slowness),
            "weight": round(1_900_000 * slowness),
            "requests": round(84 * slowness),
        },
    }


def _reports(project: DemoProject, what: str, content: dict[str, Any]) -> list[dict[str, object]]:
    """Some reports a day; the last week before the fixed present where no dates are given."""
    end = moment(content["dateTo"], "dateTo") if content.get("dateTo") else _EPOCH_DAY
    start = moment(content["dateFrom"], "dateFrom") if content.get("dateFrom") else end - timedelta(days=7)
    if not start < end <= start + timedelta(days=MAX_REPORT_DAYS):
        raise bad_request(f"dateFrom must be before dateTo, by at most {MAX_REPORT_DAYS} days.")
    step = timedelta(days=1) / REPORTS_PER_DAY
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    times = [midnight + step * n for n in range((MAX_REPORT_DAYS + 2) * REPORTS_PER_DAY)]
    return [
        _report(project, what, when, f"{what.replace(' ', '-')}-{int(when.timestamp())}")
        for when in times
        if start <= when < end
    ]


def _own_id(project: DemoProject, content: dict[str, Any], name: str, count: int) -> int:
    id_ = content.get(name)
    if not is_integer(id_):
        raise bad_request(f"{name} must be a number.")
    if id_ - project.project_id * 100 not in range(1, count + 1):
        raise not_found(f"No {name} {id_} in this project.")
    return id_
