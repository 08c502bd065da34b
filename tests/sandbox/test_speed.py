"""`sandbox.speed` and `sandbox.reports`: the Speed Analysis Lab, by the shapes that public clients read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from support.sandbox_caller import Caller, signed_in

pytestmark = pytest.mark.asyncio(
    loop_factories=["asyncio"]
)  # answers don't depend on the loop; test_sandbox.py has both
BASE = "/v1/speed-analysis"


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with signed_in() as one:
        yield one


async def test_monitorings_are_picked_by_name_and_url(caller: Caller) -> None:
    path = f"{BASE}/monitoring/list"
    every = (await caller.post(path, {}))["monitorings"]
    assert len(every) == 6
    for picked in ({"name": "cart"}, {"url": "/CART"}):
        found = (await caller.post(path, picked))["monitorings"]
        assert [monitoring["name"] for monitoring in found] == ["Cart page"]
    assert every[0]["config"]["browser"]["name"] == "Chrome"


async def test_a_monitorings_reports_come_with_their_averages(caller: Caller) -> None:
    path = f"{BASE}/monitoring/reports"
    wanted = {"monitoringId": 4204}
    dates = {"dateFrom": "2026-06-01T00:00:00.000Z", "dateTo": "2026-06-02T23:59:59.999Z"}
    payload = await caller.post(path, wanted | dates)
    reports, averages = payload["monitoringData"], payload["statistics"]
    assert len(reports) == 8
    assert await caller.post(path, wanted | dates) == payload
    for name in ("score", "loadTime", "weight", "requests"):
        mean = sum(report["summary"][name] for report in reports) / 8
        assert averages[f"average{name[0].upper()}{name[1:]}"] == pytest.approx(mean)
        assert all(report[name] == report["summary"][name] for report in reports)
    assert set(averages["averageTimings"]) == set(reports[0]["timings"])
    days = await caller.post(path, wanted | {"lastDays": 30, "limit": 0, "error": False})
    assert len(days["monitoringData"]) == 120
    newest = await caller.post(path, wanted | {"lastDays": 30, "limit": 5})
    assert newest["monitoringData"] == days["monitoringData"][-5:]
    assert len((await caller.post(path, wanted))["monitoringData"]) == 28
    none = await caller.post(
        path, wanted | {"dateFrom": "2026-06-01T01:00:00Z", "dateTo": "2026-06-01T02:00:00Z"}
    )
    assert (none["monitoringData"], none["statistics"]["averageScore"]) == ([], 0)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({}, 400),
        ({"monitoringId": "4201"}, 400),
        ({"monitoringId": 1}, 404),
        ({"monitoringId": 4201, "dateFrom": "2020-01-01"}, 400),
        ({"monitoringId": 4201, "lastDays": 0}, 400),
        ({"monitoringId": 4201, "limit": -1}, 400),
    ],
)
async def test_wrong_requests_for_reports_are_refused(
    caller: Caller, content: dict[str, object], status: int
) -> None:
    assert await caller.refused("POST", f"{BASE}/monitoring/reports", json=content) == status


async def test_a_report_that_a_list_names_is_the_same_everywhere(caller: Caller) -> None:
    wanted = {"monitoringId": 4203}
    listed = (await caller.post(f"{BASE}/monitoring/reports", wanted))["monitoringData"][3]
    report = (await caller.post(f"{BASE}/analysis/report", {"reportId": listed["id"]}))["report"]
    for name in ("date", "publicReportUrl", "harFileUrl", "summary", "timings"):
        assert report[name] == listed[name]
    monitoring = (await caller.post(f"{BASE}/monitoring/list", {"name": "Product"}))["monitorings"][0]
    assert (report["url"], report["lang"]) == (monitoring["url"], "en")
    assert report["config"] == monitoring["config"] | {"adblock": False}


async def test_the_last_report_and_its_tips(caller: Caller) -> None:
    path = f"{BASE}/monitoring/last-report"
    whole = (await caller.post(path, {"monitoringId": 4201}))["report"]
    short = (await caller.post(path, {"monitoringId": 4201, "metricsOnly": True}))["report"]
    named = (await caller.post(path, {"monitoringId": 4201, "getUniqueIDsForTips": True}))["report"]
    assert {"tips", "categories", "technos"} == set(whole) - set(short)
    assert [tip.pop("id") for tip in named["tips"]]
    assert named == whole


async def test_scenarios_and_their_steps(caller: Caller) -> None:
    scenario = (await caller.post(f"{BASE}/scenario/list", {}))["scenarios"][0]
    wanted = {"scenarioId": scenario["id"]}
    report = (await caller.post(f"{BASE}/scenario/report", wanted))["report"]
    assert len(report["steps"]) == len(scenario["steps"])
    assert (await caller.post(f"{BASE}/scenario/reports", wanted))["reports"]
    step = (await caller.post(f"{BASE}/scenario/step/report", wanted | {"stepId": 2}))["report"]
    assert step["summary"] == report["steps"][1]["summary"]
    assert await caller.refused("POST", f"{BASE}/scenario/step/report", json=wanted | {"stepId": 9}) == 404


@pytest.mark.parametrize("path", ["scenario/report/har", "analysis/har"])
async def test_har_files_are_har_1_2(caller: Caller, path: str) -> None:
    assert (await caller.post(f"{BASE}/{path}", {"reportId": "r1"}))["log"]["entries"]
    assert await caller.refused("POST", f"{BASE}/{path}", json={}) == 400


async def test_an_analysis_may_have_any_id(caller: Caller) -> None:
    for id_ in ("r1", "a/b?c", 'ü"', 7):
        report = (await caller.post(f"{BASE}/analysis/report", {"reportId": id_}))["report"]
        assert report["summary"]["score"] > 0


async def test_events_are_created_listed_and_deleted_per_project(caller: Caller) -> None:
    path = f"{BASE}/event"
    new = {"key": "r4", "text": "Release 4.2", "date": "2026-06-01T12:00:00+02:00"}
    event = (await caller.post(f"{path}/create", new))["event"]
    later = new | {
        "key": "r5",
        "date": "2026-07-01T23:59:59.999Z",
        "monitorings": [4201],
        "scenarios": [4202],
    }
    named = (await caller.post(f"{path}/create", later))["event"]

    assert event == {"key": "r4", "text": "Release 4.2", "date": "2026-06-01T10:00:00.000Z"}
    assert named["date"] == "2026-07-01T23:59:59.999Z"
    for picks, found in (
        ({"key": ""}, [event, named]),
        ({"key": "r5"}, [named]),
        ({"dateFrom": "2026-06-15"}, [named]),
        ({"monitoringId": 4201}, [event, named]),
        ({"monitoringId": 4202}, [event]),
        ({"scenarioId": 4201}, [event]),
    ):
        assert (await caller.post(f"{path}/list", picks))["events"] == found, picks
    other = await caller.of("demo-us")
    assert (await other.post(f"{path}/list", {}))["events"] == []
    assert (await caller.post(f"{path}/delete", {"key": "r4"}))["event"] == event
    assert (await caller.post(f"{path}/list", {}))["events"] == [named]
    assert await caller.refused("POST", f"{path}/delete", json={"key": "r4"}) == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"key": None}, 400),
        ({"key": ""}, 400),
        ({"text": 5}, 400),
        ({"date": None}, 400),
        ({"monitorings": 4201}, 400),
        ({"monitorings": ["4201"]}, 400),
        ({"monitorings": [4301]}, 404),
        ({"scenarios": [9]}, 404),
    ],
)
async def test_an_event_needs_a_key_a_text_and_a_date(
    caller: Caller, changes: dict[str, object], status: int
) -> None:
    new = {"key": "r4", "text": "Release", "date": "2026-06-01"} | changes
    assert await caller.refused("POST", f"{BASE}/event/create", json=new) == status


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("analysis/report", {"reportId": "r1"}),
        ("analysis/har", {"reportId": "r1"}),
        ("monitoring/list", {}),
        ("monitoring/last-report", {"monitoringId": 4201}),
        ("monitoring/reports", {"monitoringId": 4201}),
        ("scenario/list", {}),
        ("scenario/report", {"scenarioId": 4201}),
        ("scenario/reports", {"scenarioId": 4201}),
        ("scenario/step/report", {"scenarioId": 4201, "stepId": 1}),
        ("scenario/report/har", {"reportId": "r1"}),
        ("event/create", {"key": "r4", "text": "Release", "date": "2026-06-01"}),
        ("event/list", {}),
        ("event/delete", {"key": "r4"}),
    ],
)
async def test_get_with_a_body_is_answered_as_older_pages_show_it(
    caller: Caller, path: str, content: dict[str, object]
) -> None:
    new = {"key": "r4", "text": "Release", "date": "2026-06-01"}
    await caller.post(f"{BASE}/event/create", new)
    got, by_get = await caller.call("GET", f"{BASE}/{path}", data=json.dumps(content))
    assert got == 200
    await caller.post(f"{BASE}/event/create", new)
    assert await caller.call("POST", f"{BASE}/{path}", json=content) == (200, by_get)


async def test_events_are_deleted_by_delete_too(caller: Caller) -> None:
    new = {"key": "r4", "text": "Release", "date": "2026-06-01"}
    await caller.post(f"{BASE}/event/create", new)
    assert (await caller.call("DELETE", f"{BASE}/event/delete", json={"key": "r4"}))[0] == 200
    assert (await caller.post(f"{BASE}/event/list", {}))["events"] == []
    assert await caller.refused("DELETE", f"{BASE}/event/create", json=new) == 405
