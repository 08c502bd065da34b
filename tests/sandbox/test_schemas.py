"""The JSON schemas in proxy/sandbox/schemas: each path of the sandbox has one, and none lets anything pass.

That answers fit their schemas is checked wherever a test calls a path, by `support.sandbox_caller.Caller`.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support import shapes
from support.sandbox_caller import JOB, Caller, signed_in

from proxy.contentsquare import ME_PATH, TOKEN_PATH
from proxy.sandbox import Sandbox

JUNE = "?startDate=2026-06-01&endDate=2026-06-02"
SPEED = "/v1/speed-analysis"
OPEN = {
    "/v1/custom-vars",
    "/v1/dynamic-var-keys",
    "/v1/enrichments",
    f"{SPEED}/analysis/har",
    f"{SPEED}/scenario/list",
    f"{SPEED}/scenario/report",
    f"{SPEED}/scenario/report/har",
    f"{SPEED}/scenario/reports",
}
"""Paths whose members no page or client that we know shows in full, and HAR files, which may have more."""
OPEN_OBJECTS = ({"publicReportUrl", "summary"}, {"firstByte"}, {"advice"}, {"name"})
"""Objects of the other paths that may have more members, by some that they have: reports, timings, tips."""


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with signed_in() as one:
        yield one


def test_each_path_of_the_sandbox_has_a_schema_and_the_other_way_round() -> None:
    served = {("POST", TOKEN_PATH), ("POST", ME_PATH)}
    for router in Sandbox()._routers:
        for pattern, methods in router._by_pattern.items():
            if not pattern.startswith("/v1/x-sandbox/"):
                served |= {("POST" if pattern.startswith(SPEED) else method, pattern) for method in methods}
    assert set(shapes.names()) == served


async def answers(caller: Caller) -> AsyncIterator[tuple[str, str, Any]]:
    """An answer of each path: method, path, content."""
    job = await caller.post("/v1/exports", JOB)
    caller.clock.now += 2
    run = (await caller.get("/v1/exports/successful-runs"))[0]["jobRunId"]
    mapping = (await caller.get("/v1/mappings"))[0]["id"]
    group = (await caller.get(f"/v1/mappings/{mapping}/page-groups"))[0]["id"]
    zoning = (await caller.get(f"/v1/page-groups/{group}/zonings"))[0]["id"]
    zone = (await caller.get(f"/v1/zonings/{zoning}/zones"))[0]["id"]
    surveys = "/v1/public/projects/42/surveys"
    survey = (await caller.call("GET", f"{surveys}?limit=1"))[1]["results"][0]
    for path in (
        "/v1/exports",
        "/v1/exports/successful-runs",
        f"/v1/exports/{job['jobId']}",
        f"/v1/exports/{job['jobId']}/runs",
        f"/v1/exports/{job['jobId']}/runs/{run}",
        "/v1/exportable-fields",
        "/v1/custom-vars",
        "/v1/dynamic-var-keys",
        "/v1/segments",
        "/v1/goals",
        "/v1/mappings",
        f"/v1/mappings/{mapping}",
        f"/v1/mappings/{mapping}/page-groups",
        f"/v1/page-groups/{group}",
        f"/v1/page-groups/{group}/zonings",
        f"/v1/zonings/{zoning}/zones",
        f"/v1/metrics/site{JUNE}",
        f"/v1/metrics/site/visits{JUNE}",
        f"/v1/metrics/page-group/{group}{JUNE}",
        f"/v1/metrics/page-group/{group}/web-vitals{JUNE}",
        f"/v1/metrics/zone/{zone}{JUNE}",
        f"/v1/metrics/zone/{zone}/tap-rate{JUNE}",
        f"{surveys}?with_questions=true",
        survey["url"],
        survey["responses_url"],
    ):
        yield "GET", path, (await caller.call("GET", path))[1]
    event = {"key": "r", "text": "t", "date": "2026-01-01"}
    for path, content in (
        ("/v1/exports", JOB),
        (f"{SPEED}/analysis/report", {"reportId": "r"}),
        (f"{SPEED}/analysis/har", {"reportId": "r"}),
        (f"{SPEED}/monitoring/list", {}),
        (f"{SPEED}/monitoring/last-report", {"monitoringId": 4201, "getUniqueIDsForTips": True}),
        (f"{SPEED}/monitoring/reports", {"monitoringId": 4201}),
        (f"{SPEED}/scenario/list", {}),
        (f"{SPEED}/scenario/report", {"scenarioId": 4201}),
        (f"{SPEED}/scenario/reports", {"scenarioId": 4201}),
        (f"{SPEED}/scenario/step/report", {"scenarioId": 4201, "stepId": 1}),
        (f"{SPEED}/scenario/report/har", {"reportId": "r"}),
        (f"{SPEED}/event/create", event),
        (f"{SPEED}/event/list", {}),
        (f"{SPEED}/event/delete", event),
    ):
        yield "POST", path, (await caller.call("POST", path, json=content))[1]
    await caller.sign_in(caller.project, "enrichment", integration_id=7)
    items = [{"userId": "u", "sessionNumber": 1, "enrichment": {"calls": 2}}]
    batch = {"integrationVersion": 1, "projectId": 42, "enrichments": items}
    yield "POST", "/v1/enrichments", (await caller.call("POST", "/v1/enrichments", json=batch))[1]


def objects(content: Any) -> Iterator[dict[str, Any]]:
    """The objects in a JSON value, of a list only those of the first item."""
    if isinstance(content, dict):
        yield content
        for value in content.values():
            yield from objects(value)
    if isinstance(content, list) and content:
        yield from objects(content[0])


async def test_an_answer_without_a_needed_member_or_with_an_unknown_one_does_not_fit(caller: Caller) -> None:
    seen = set()
    async for method, path, content in answers(caller):
        shapes.hold(method, path, content)
        seen.add((method, path.partition("?")[0]))
        changed = copy.deepcopy(content)
        for one in objects(changed):
            is_open = path in OPEN or any(names <= set(one) for names in OPEN_OBJECTS)
            if not is_open and one:
                one["unknown"] = 1
                assert not shapes.fits(method, path, changed), (path, sorted(one))
                del one["unknown"]
        for name in content:
            assert not shapes.fits(method, path, {k: v for k, v in content.items() if k != name} or {"x": 1})
        strangers: tuple[object, ...] = ([], None, {}, {"success": True, "payload": None}, {"success": False})
        for wrong in strangers:
            assert not shapes.fits(method, path, wrong), path
    assert len(seen) == len(set(shapes.names())) - 2  # but for the token endpoint's, of test_sandbox.py


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"success": True, "errorMessage": "a", "errorCode": "B"},
        {"success": False, "errorMessage": "", "errorCode": "B"},
        {"success": False, "errorMessage": "a", "errorCode": "b"},
        {"success": False, "errorMessage": "a", "errorCode": "B", "payload": None},
    ],
)
def test_a_refusal_of_another_shape_does_not_fit(content: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        shapes.hold_refusal(content)
