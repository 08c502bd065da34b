"""What the sandbox's APIs answer: plausible, deterministic, validated, in the vendor's shapes."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.sandbox_caller import JOB, Caller, signed_in

from proxy.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(
    loop_factories=["asyncio"]
)  # answers don't depend on the loop; test_sandbox.py has both
JUNE = "startDate=2026-06-01T00:00:00.000Z&endDate=2026-07-01T00:00:00.000Z"


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with signed_in() as one:
        yield one


async def page_group_and_zone(caller: Caller) -> tuple[int, int]:
    mapping = (await caller.get("/v1/mappings"))[0]["id"]
    page_group = (await caller.get(f"/v1/mappings/{mapping}/page-groups"))[2]["id"]
    zoning = (await caller.get(f"/v1/page-groups/{page_group}/zonings"))[1]["id"]
    zone = (await caller.get(f"/v1/zonings/{zoning}/zones"))[3]["id"]
    return page_group, zone


def by_name(payload: Any) -> dict[str, float]:
    return {value["name"]: value["value"] for value in payload["values"]}


# Metrics


async def test_objects_lead_from_mappings_down_to_zones(caller: Caller) -> None:
    page_group, _ = await page_group_and_zone(caller)
    assert (await caller.get(f"/v1/page-groups/{page_group}"))["name"] == "Product"
    mapping = (await caller.get("/v1/mappings"))[0]
    assert await caller.get(f"/v1/mappings/{mapping['id']}") == mapping
    assert {"id", "name", "source", "createdAt", "updatedAt"} <= set((await caller.get("/v1/segments"))[0])
    assert {"id", "name", "type"} <= set((await caller.get("/v1/goals"))[0])


async def test_segments_can_be_picked_by_their_ids(caller: Caller) -> None:
    ids = [segment["id"] for segment in await caller.get("/v1/segments")]
    picked = await caller.get(f"/v1/segments?ids={ids[3]},{ids[1]}")
    assert [segment["id"] for segment in picked] == [ids[1], ids[3]]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/mappings/1",
        "/v1/mappings/x/page-groups",
        "/v1/page-groups/42199",
        "/v1/page-groups/43101/zonings",
        "/v1/zonings/1/zones",
        "/v1/metrics/zone/0?" + JUNE,
        "/v1/metrics/page-group/" + "9" * 5000 + "?" + JUNE,
        "/v1/metrics/site/happiness?" + JUNE,
        "/v1/metrics/site?segmentIds=1&" + JUNE,
        "/v1/metrics/site?goalId=1&" + JUNE,
    ],
)
async def test_what_a_project_does_not_have_is_404(caller: Caller, path: str) -> None:
    assert await caller.refused("GET", path) == 404


async def test_site_metrics_have_the_documented_names_and_shape(caller: Caller) -> None:
    payload = await caller.get("/v1/metrics/site?" + JUNE)
    assert set(by_name(payload)) == {
        "bounceRate",
        "cartAverage",
        "conversionCount",
        "conversionRate",
        "pageviewAverage",
        "revenueSum",
        "sessionTimeAverage",
        "visits",
    }
    assert set(payload["values"][0]) == {"startDate", "endDate", "value", "name", "currency"}
    assert payload["values"][0]["startDate"] == "2026-06-01T00:00:00.000Z"
    assert payload["values"][0]["endDate"] == "2026-07-01T00:00:00.000Z"


async def test_the_same_request_gets_the_same_answer_from_any_sandbox(caller: Caller) -> None:
    page_group, zone = await page_group_and_zone(caller)
    paths = [f"/v1/metrics/{what}?{JUNE}" for what in ("site", f"page-group/{page_group}", f"zone/{zone}")]
    first = [await caller.get(path) for path in paths]
    async with Sandbox() as other:
        again = await Caller(other, caller.session, caller.clock).sign_in(caller.project)
        assert [await again.get(path) for path in paths] == first


async def test_projects_days_and_segments_differ(caller: Caller) -> None:
    segment = (await caller.get("/v1/segments"))[0]["id"]
    whole = by_name(await caller.get("/v1/metrics/site?" + JUNE))
    part = by_name(await caller.get(f"/v1/metrics/site?segmentIds={segment}&{JUNE}"))
    assert 0 < part["visits"] < whole["visits"]
    other = await caller.of("demo-us")
    assert by_name(await other.get("/v1/metrics/site?" + JUNE))["visits"] != whole["visits"]


async def test_days_add_up_to_the_whole_and_so_do_devices(caller: Caller) -> None:
    whole = by_name(await caller.get("/v1/metrics/site?" + JUNE))
    days = (await caller.get(f"/v1/metrics/site/visits?period=daily&{JUNE}"))["values"]
    devices = [
        by_name(await caller.get(f"/v1/metrics/site?device={device}&{JUNE}"))
        for device in ("desktop", "mobile", "tablet")
    ]
    assert len(days) == 30
    assert sum(day["value"] for day in days) == whole["visits"]
    assert sum(device["visits"] for device in devices) == whole["visits"]
    assert whole["conversionRate"] == pytest.approx(100 * whole["conversionCount"] / whole["visits"])


async def test_a_daily_series_has_a_weekly_season(caller: Caller) -> None:
    path = "/v1/metrics/site/visits?period=daily&startDate=2026-03-02&endDate=2026-05-24"
    values = [day["value"] for day in (await caller.get(path))["values"]]
    assert len(values) == 84
    fridays, sundays = values[4::7], values[6::7]
    assert sum(sundays) > 1.1 * sum(fridays)


async def test_a_goal_changes_conversions_and_not_visits(caller: Caller) -> None:
    goal = (await caller.get("/v1/goals"))[0]["id"]
    without = by_name(await caller.get("/v1/metrics/site?" + JUNE))
    with_goal = by_name(await caller.get(f"/v1/metrics/site?goalId={goal}&{JUNE}"))
    assert with_goal["conversionCount"] > without["conversionCount"]
    assert with_goal["visits"] == without["visits"]


async def test_a_single_metric_is_found_by_its_path_and_by_its_name(caller: Caller) -> None:
    page_group, zone = await page_group_and_zone(caller)
    for path, name in (
        ("site/bounce-rate", "bounceRate"),
        (f"page-group/{page_group}/scroll-rate", "scrollRate"),
        (f"zone/{zone}/number-of-clicks", "totalClicks"),
        (f"zone/{zone}/tap-rate", "tapRate"),
        (f"zone/{zone}/conversion-rate-per-click", "avgConversionAfterClick"),
        (f"zone/{zone}/conversion-rate-per-hover", "avgConversionAfterHover"),
    ):
        one = await caller.get(f"/v1/metrics/{path}?{JUNE}")
        assert list(by_name(one)) == [name]
        assert await caller.get(f"/v1/metrics/{path.rpartition('/')[0]}/{name}?{JUNE}") == one


async def test_rates_are_percentages_and_web_vitals_plausible(caller: Caller) -> None:
    page_group, zone = await page_group_and_zone(caller)
    for what in ("site", f"page-group/{page_group}", f"zone/{zone}"):
        for name, value in by_name(await caller.get(f"/v1/metrics/{what}?{JUNE}")).items():
            assert value > 0, name
            if name.endswith("Rate"):
                assert value <= 100, name
    vitals = by_name(await caller.get(f"/v1/metrics/page-group/{page_group}/web-vitals?{JUNE}"))
    assert 500 < vitals["firstContentfulPaint"] < vitals["largestContentfulPaint"] < 8000


async def test_web_vitals_have_the_first_input_delay(caller: Caller) -> None:
    page_group, _ = await page_group_and_zone(caller)
    vitals = by_name(await caller.get(f"/v1/metrics/page-group/{page_group}/web-vitals?{JUNE}"))
    assert 0 < vitals["firstInputDelay"] < vitals["interactionToNextPaint"]


async def test_a_quantile_changes_averages_and_no_counts_and_rates(caller: Caller) -> None:
    path = f"/v1/metrics/page-group/{(await page_group_and_zone(caller))[0]}"
    for of in (path, f"{path}/web-vitals"):
        average = by_name(await caller.get(f"{of}?metricType=average&quantile=10&{JUNE}"))
        assert average == by_name(await caller.get(f"{of}?{JUNE}"))
        usual = by_name(await caller.get(f"{of}?metricType=quantile&{JUNE}"))
        assert usual == by_name(await caller.get(f"{of}?metricType=quantile&quantile=75&{JUNE}"))
        high = by_name(await caller.get(f"{of}?metricType=quantile&quantile=95&{JUNE}"))
        low = by_name(await caller.get(f"{of}?metricType=quantile&quantile=25&{JUNE}"))
        for name, value in usual.items():
            if name.endswith("Rate") or name in ("views", "visits", "uniqueVisits"):
                assert low[name] == value == high[name] == average[name]
            else:
                assert low[name] < value < high[name]


async def test_an_end_of_a_day_keeps_its_milliseconds(caller: Caller) -> None:
    day = "startDate=2026-06-01T00:00:00.000Z&endDate=2026-06-01T23:59:59.999Z"
    (value,) = (await caller.get(f"/v1/metrics/site/visits?{day}"))["values"]
    assert value["endDate"] == "2026-06-01T23:59:59.999Z"
    whole = (await caller.get("/v1/metrics/site/visits?startDate=2026-06-01&endDate=2026-06-01"))["values"]
    assert whole[0]["value"] == value["value"]
    dates = {"from": "2026-05-01T00:00:00.000Z", "to": "2026-05-07T23:59:59.999Z"}
    job = await caller.post("/v1/exports", JOB | {"frequency": {"value": "once", "dateRange": dates}})
    (run,) = await caller.get(f"/v1/exports/{job['jobId']}/runs")
    assert run["endDate"] == dates["to"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "startDate=2026-06-01",
        "startDate=soon&endDate=2026-06-02",
        "startDate=2026-06-02&endDate=2026-06-01",
        "startDate=2026-06-01T10:00:00Z&endDate=2026-06-01T10:00:00Z",
        "startDate=2026-01-01&endDate=2026-04-04",
        "startDate=9999-12-31&endDate=9999-12-31",
        JUNE + "&device=watch",
        JUNE + "&period=hourly",
        JUNE + "&metricType=median",
        JUNE + "&metricType=quantile&quantile=100",
        JUNE + "&quantile=a",
        JUNE + "&segmentIds=a",
        JUNE + "&projectId=x",
    ],
)
async def test_wrong_parameters_are_400(caller: Caller, query: str) -> None:
    assert await caller.refused("GET", f"/v1/metrics/site?{query}") == 400


async def test_92_days_are_allowed_and_offsets_understood_encoded_or_not(caller: Caller) -> None:
    await caller.get("/v1/metrics/site?startDate=2026-01-01&endDate=2026-04-03")
    for offset in ("%2B02:00", "+02:00"):
        path = f"/v1/metrics/site?startDate=2026-06-01T00:00:00{offset}&endDate=2026-06-02T00:00:00{offset}"
        assert (await caller.get(path))["values"][0]["startDate"] == "2026-05-31T22:00:00.000Z"


async def test_project_id_has_to_be_the_tokens_project(caller: Caller) -> None:
    await caller.get(f"/v1/metrics/site?projectId=42&{JUNE}")
    assert await caller.refused("GET", f"/v1/metrics/site?projectId=43&{JUNE}") == 403


# Data Export


async def test_an_export_goes_from_scheduled_over_running_to_files(caller: Caller) -> None:
    job = await caller.post("/v1/exports", JOB | {"rows": 1234})
    path = f"/v1/exports/{job['jobId']}/runs"
    (run,) = await caller.get(path)
    run_path = f"{path}/{run['jobRunId']}"

    assert run["state"] == "scheduled"
    assert (run["startDate"], run["endDate"]) == ("2026-05-01T00:00:00.000Z", "2026-05-08T00:00:00.000Z")
    caller.clock.now += 0.5
    running = await caller.get(run_path)
    assert (running["state"], running["completionRate"], running["files"]) == ("running", 50, [])
    assert await caller.get("/v1/exports/successful-runs") == []
    caller.clock.now += 0.5
    done = await caller.get(run_path)
    assert done["state"] == "success"
    assert (await caller.get("/v1/exports/successful-runs"))[0]["jobRunId"] == run["jobRunId"]

    texts = [gzip.decompress(await caller.download(file["url"])) for file in done["files"]]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    assert len(rows) == 1234
    assert set(rows[0]) == {"session_id", "time"}
    assert all("2026-05-01" <= row["time"][:10] < "2026-05-08" for row in rows)


async def test_jobs_are_listed_newest_first_by_pages_and_filters_and_per_project(caller: Caller) -> None:
    daily = {"frequency": {"value": "daily"}, "format": "CSV"}
    ids = [(await caller.post("/v1/exports", JOB | extra))["jobId"] for extra in ({}, daily, {})]

    async def listed(query: str) -> list[int]:
        return [job["jobId"] for job in await caller.get(f"/v1/exports?{query}")]

    assert await listed("") == ids[::-1]
    assert await listed("order=asc&limit=2") == ids[:2]
    assert await listed("limit=2&page=2") == ids[:1]
    assert await listed("format=CSV") == await listed("frequency=daily") == [ids[1]]
    other = await caller.of("demo-us")
    assert await other.get("/v1/exports") == []
    assert await other.refused("GET", f"/v1/exports/{ids[0]}") == 404


async def test_a_daily_job_runs_for_yesterday(caller: Caller) -> None:
    job = await caller.post("/v1/exports", JOB | {"frequency": {"value": "daily"}})
    (run,) = await caller.get(f"/v1/exports/{job['jobId']}/runs")
    assert (run["startDate"], run["endDate"]) == ("2027-01-14T00:00:00.000Z", "2027-01-15T00:00:00.000Z")
    assert await caller.get(f"/v1/exports/{job['jobId']}") == job


@pytest.mark.parametrize(
    "changes",
    [
        {"name": " "},
        {"format": "XML"},
        {"scope": "clicks"},
        {"frequency": None},
        {"frequency": {"value": "yearly"}},
        {"frequency": {"value": "once"}},
        {"frequency": {"value": "once", "dateRange": {"from": "2026-05-01", "to": "2026-05-09"}}},
        {"frequency": {"value": "once", "dateRange": {"from": "2026-05-02", "to": "2026-05-01"}}},
        {"frequency": {"value": "once", "dateRange": {"from": 5, "to": "never"}}},
        {"fields": []},
        {"fields": ["session_id"]},
        {"fields": [{"fieldName": ["session_id"]}]},
        {"fields": [{"fieldName": "session_id", "aliasName": 1}]},
        {"fields": [{"fieldName": "session_id"}, {"fieldName": "session_id"}]},
        {"fields": [{"fieldName": "session_id"}, {"fieldName": "session_id", "aliasName": "id"}]},
        {"fields": [{"fieldName": "session_id"}, {"fieldName": "language", "aliasName": "session_id"}]},
        {"fields": [{"fieldName": "custom_var", "customVarPosition": 2}] * 2},
        {"fields": [{"fieldName": "custom_var", "customVarPosition": "9" * 5000}]},
        {"fields": [{"fieldName": "custom_var", "customVarPosition": 21}]},
        {"fields": [{"fieldName": "dynamic_var", "dynamicVarKey": {}}]},
        {"deviceLabel": "watch"},
        {"segmentId": "12"},
        {"rows": -1},
        {"compression": "zstd"},
    ],
)
async def test_a_wrong_export_job_is_400(caller: Caller, changes: dict[str, Any]) -> None:
    assert await caller.refused("POST", "/v1/exports", json=JOB | changes) == 400


async def test_the_field_that_refuses_a_job_is_named(caller: Caller) -> None:
    job = JOB | {"fields": [{"fieldName": "session_id"}, {"fieldName": "country"}]}
    _, answer = await caller.call("POST", "/v1/exports", json=job)
    assert "'country' is no fieldName" in answer["errorMessage"]
    assert "GET /v1/exportable-fields" in answer["errorMessage"]


async def test_fields_and_variables_are_listed(caller: Caller) -> None:
    fields = await caller.get("/v1/exportable-fields")
    assert {field["scope"] for field in fields} == {"sessions", "views"}
    assert await caller.get("/v1/custom-vars")
    keys = await caller.get("/v1/dynamic-var-keys?from=2026-01-01&to=2026-02-01")
    assert "ab_test" in [key["key"] for key in keys]
    assert await caller.refused("GET", "/v1/dynamic-var-keys?from=2026-02-01&to=2026-01-01") == 400


# Responses (Voice of Customer)


async def test_surveys_are_paged_by_cursor_until_it_is_null(caller: Caller) -> None:
    path = "/v1/public/projects/42/surveys"
    ids: list[str] = []
    sizes = []
    cursor = ""
    while True:
        _, page = await caller.call("GET", f"{path}?limit=20&cursor={cursor}")
        assert set(page) == {"results", "next_cursor"}
        ids += [survey["id"] for survey in page["results"]]
        sizes.append(len(page["results"]))
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sizes == [20, 20, 7]
    assert len(set(ids)) == 47


async def test_a_survey_has_questions_and_responses_to_them(caller: Caller) -> None:
    _, page = await caller.call("GET", "/v1/public/projects/42/surveys?limit=1")
    survey = page["results"][0]
    assert survey["questions"] is None
    _, whole = await caller.call("GET", survey["url"])
    assert whole | {"questions": None} == survey
    _, with_questions = await caller.call("GET", "/v1/public/projects/42/surveys?limit=1&with_questions=true")
    assert with_questions["results"] == [whole]
    _, responses = await caller.call("GET", survey["responses_url"])
    assert len(responses["results"]) == 20
    answered = {answer["question_id"] for answer in responses["results"][0]["answers"]}
    assert answered == {question["id"] for question in whole["questions"]}


async def test_wrong_survey_requests_are_refused(caller: Caller) -> None:
    path = "/v1/public/projects/42/surveys"
    _, page = await caller.call("GET", f"{path}?limit=1")
    for query in ("limit=0", "limit=101", "limit=x", "cursor=x", "cursor=!!!", "cursor=WzFd"):
        assert await caller.refused("GET", f"{path}?{query}") == 400
    responses = f"{page['results'][0]['responses_url']}?cursor={page['next_cursor']}"
    assert await caller.refused("GET", responses) == 400
    assert await caller.refused("GET", f"{path}/survey_none") == 404
    assert await caller.refused("GET", "/v1/public/projects/43/surveys") == 403


# Enrichment


async def test_enrichments_are_taken_in_batches_of_at_most_200(caller: Caller) -> None:
    await caller.sign_in(caller.project, "enrichment", integration_id=7)
    item = {"userId": "u", "sessionNumber": 1, "enrichment": {"calls": 2, "agent": 25 * "é", "sold": True}}
    content = {"integrationVersion": 1, "projectId": 42, "enrichments": [item] * 200}

    assert await caller.post("/v1/enrichments", content) == {"accepted": 200}
    for changes, status in (
        ({"enrichments": [item] * 201}, 400),
        ({"enrichments": []}, 400),
        ({"enrichments": [item, None]}, 400),
        ({"enrichments": [item, {"userId": "u"}]}, 400),
        ({"enrichments": [item | {"userId": 1}]}, 400),
        ({"enrichments": [item | {"enrichmentNumber": 4}]}, 400),
        ({"enrichments": [item | {"enrichment": {"agent": 26 * "é"}}]}, 400),
        ({"enrichments": [item | {"enrichment": {"agent": ["a"]}}]}, 400),
        ({"integrationVersion": "1"}, 400),
        ({"projectId": True}, 400),
        ({"projectId": 43}, 403),
    ):
        assert await caller.refused("POST", "/v1/enrichments", json=content | changes) == status


async def test_the_item_that_refuses_a_batch_is_named(caller: Caller) -> None:
    await caller.sign_in(caller.project, "enrichment", integration_id=7)
    item = {"userId": "u", "sessionNumber": 1, "enrichment": {"agent": 51 * "a"}}
    content = {"integrationVersion": 1, "projectId": 42, "enrichments": [item]}
    _, answer = await caller.call("POST", "/v1/enrichments", json=content)
    assert answer["errorMessage"] == "enrichments[0].enrichment.agent must have at most 50 bytes."


@pytest.mark.parametrize(
    "path",
    [
        "/v1/exports",
        "/v1/speed-analysis/analysis/report",
        "/v1/speed-analysis/analysis/har",
        "/v1/speed-analysis/monitoring/list",
        "/v1/speed-analysis/monitoring/last-report",
        "/v1/speed-analysis/monitoring/reports",
        "/v1/speed-analysis/scenario/report",
        "/v1/speed-analysis/scenario/reports",
        "/v1/speed-analysis/scenario/step/report",
        "/v1/speed-analysis/scenario/report/har",
        "/v1/speed-analysis/event/create",
        "/v1/speed-analysis/event/list",
        "/v1/speed-analysis/event/delete",
    ],
)
async def test_no_body_however_odd_is_answered_with_a_500(caller: Caller, path: str) -> None:
    names = ["reportId", "monitoringId", "scenarioId", "stepId", "key", "text", "date", "dateFrom", "dateTo"]
    odd: list[Any] = [None, True, -1, 1e308, 10**17, "", "\ud800", [], {}, [[]], {"value": []}]
    odd += ["0001-01-01T00:00:00+14:00", "9999-12-31"]
    bodies = [json.dumps(dict.fromkeys([*JOB, *names, "url"], value)).encode() for value in odd]
    bodies += [json.dumps(JOB | {name: value}).encode() for name in JOB for value in odd]
    bodies += [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"]
    for body in bodies:
        status, _ = await caller.call("POST", path, data=body)
        assert status < 500, body[:200]
