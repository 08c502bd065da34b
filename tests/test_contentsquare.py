"""`proxy.contentsquare`: which API a target belongs to, and which requests may change data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.contentsquare import Api, api_of, changes_data, may_be_shared

TARGETS = {
    Api.DATA_EXPORT: [
        b"/v1/exports",
        b"/v1/exports?page=2",
        b"/v1/exports/successful-runs",
        b"/v1/exports/17",
        b"/v1/exports/17/runs/3",
        b"/v1/exportable-fields",
        b"/v1/custom-vars",
        b"/v1/dynamic-var-keys",
    ],
    Api.METRICS: [
        b"/v1/segments",
        b"/v1/goals?projectId=42",
        b"/v1/mappings",
        b"/v1/mappings/5/page-groups",
        b"/v1/page-groups/5",
        b"/v1/page-groups/5/zonings",
        b"/v1/zonings/5/zones",
        b"/v1/metrics/site",
        b"/v1/metrics/site/visits",
        b"/v1/metrics/page-group/5/views",
        b"/v1/metrics/zone/5",
    ],
    Api.ENRICHMENT: [b"/v1/enrichments"],
    Api.SPEED_ANALYSIS: [
        b"/v1/speed-analysis/analysis/report",
        b"/v1/speed-analysis/event/create",
        b"/v1/speed-analysis/scenario/step/report",
    ],
    Api.SURVEYS: [
        b"/v1/public/projects/42/surveys",
        b"/v1/public/projects/42/surveys?limit=5&cursor=x",
        b"/v1/public/projects/42/surveys/9/responses",
    ],
}


@pytest.mark.parametrize(("api", "target"), [(api, target) for api in TARGETS for target in TARGETS[api]])
def test_each_row_of_the_table_finds_its_api(api: Api, target: bytes) -> None:
    assert api_of(target) is api


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"",
        b"/v1",
        b"/v1/",
        b"/v1/exportsx",
        b"/v1/exports-new",
        b"/v1/EXPORTS",
        b"/v2/exports",
        b"/v1/something-new",
        b"/v1/public/projects/surveys",
        b"/v1/public/projects/42",
        b"/v1/public/projects/4/2/surveys",
        b"/v1/oauth/token",
        b"x/v1/exports",
        b"//v1/exports",
        b"/v1//exports",
        b"/other?x=/v1/exports",
        b"/v1/exports\n",
    ],
)
def test_a_path_in_no_row_belongs_to_no_api(target: bytes) -> None:
    assert api_of(target) is None


@given(target=st.binary())
def test_any_bytes_are_looked_up_without_an_error(target: bytes) -> None:
    assert api_of(target) in {None, *Api}


@given(
    target=st.sampled_from([target for targets in TARGETS.values() for target in targets]), query=st.binary()
)
def test_a_query_never_changes_the_api(target: bytes, query: bytes) -> None:
    assert api_of(target.partition(b"?")[0] + b"?" + query) is api_of(target)


@pytest.mark.parametrize("api", Api)
def test_the_scope_is_the_apis_name(api: Api) -> None:
    assert api.scope == api.value
    assert Api(api.scope) is api


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/speed-analysis/analysis/report",
        b"/v1/speed-analysis/analysis/har",
        b"/v1/speed-analysis/monitoring/list",
        b"/v1/speed-analysis/monitoring/last-report",
        b"/v1/speed-analysis/monitoring/reports?x=1",
        b"/v1/speed-analysis/scenario/list",
        b"/v1/speed-analysis/scenario/report",
        b"/v1/speed-analysis/scenario/reports",
        b"/v1/speed-analysis/scenario/step/report",
        b"/v1/speed-analysis/scenario/report/har",
        b"/v1/speed-analysis/event/list",
    ],
)
def test_the_speed_analysis_posts_that_read_change_nothing(target: bytes) -> None:
    assert not changes_data(b"POST", target)
    assert changes_data(b"PUT", target)
    assert changes_data(b"DELETE", target)


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/exports",
        b"/v1/enrichments",
        b"/v1/speed-analysis/event/create",
        b"/v1/speed-analysis/event/delete",
        b"/v1/speed-analysis/event/list/x",
        b"/v1/speed-analysis/event/listing",
        b"/v1/something-new",
        b"/v1/metrics/site",
    ],
)
def test_every_other_post_may_change_data(target: bytes) -> None:
    assert changes_data(b"POST", target)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
def test_safe_methods_change_nothing_else(method: bytes) -> None:
    assert not changes_data(method, b"/v1/exports")
    assert not changes_data(method, b"/v1/something-new")
    assert not changes_data(method, b"/v1/speed-analysis/event/list")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"POST", b"DELETE"])
@pytest.mark.parametrize("path", [b"create", b"delete", b"create?key=1"])
def test_events_are_changed_by_any_method(method: bytes, path: bytes) -> None:
    target = b"/v1/speed-analysis/event/" + path
    assert changes_data(method, target)
    assert not may_be_shared(target)


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"DELETE", b"get", b"MERGE", b""])
def test_other_methods_may_change_data(method: bytes) -> None:
    assert changes_data(method, b"/v1/segments")
