"""Runs as Contentsquare's answers tell of them, in each spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.texts import texts

from proxy.contentsquare import FILES_LIVE_S
from proxy.export_runs import RunReport, listed, newest, payload_of

NAMES = ("jobRunId", "runId", "id", "state", "status", "completionRate", "createdAt", "endDate", "files")
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts(max_size=8)
    | st.sampled_from(("success", "2026-11-28T10:00:00Z", "0001-01-01", "9999-12-31T23:59:59-14:00")),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(NAMES), values, max_size=9),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("members", "run_id", "state", "words"),
    [
        ({"jobRunId": 7, "state": "success"}, "7", "success", "success"),
        ({"runId": "r-7", "status": "SUCCEEDED"}, "r-7", "succeeded", "succeeded"),
        ({"id": "7/../8", "state": "Running", "completionRate": 40}, None, "running", "running (40 % done)"),
        ({"id": True, "state": "in_progress", "completionRate": 10**400}, None, "in_progress", "in_progress"),
        ({"id": 7.5, "state": "<script>"}, None, "<script>", "not finished"),
        ({}, None, "", "not finished"),
    ],
)
def test_a_run_in_each_spelling(
    members: dict[str, object], run_id: str | None, state: str, words: str
) -> None:
    run = RunReport.of(members)
    assert (run.run_id, run.state, run.words) == (run_id, state, words)
    assert run.is_success == state.startswith("succe")


@pytest.mark.parametrize("state", ["failed", "CANCELED", "cancelled", "error", "expired"])
def test_a_run_that_gets_no_files(state: str) -> None:
    run = RunReport.of({"state": state})
    assert run.is_failure
    assert not run.is_success


def test_the_files_stand_in_the_order_of_their_parts() -> None:
    files = [{"partId": 2}, {"partId": 1}, "no file"]
    assert RunReport.of({"files": files}).files == [{"partId": 1}, {"partId": 2}]
    assert RunReport.of({"files": [{"partId": 2}, {}]}).files == [{"partId": 2}, {}]


def test_the_files_are_gone_at_the_first_date() -> None:
    of_run = {"createdAt": "2026-11-28T10:00:00Z"}
    run = RunReport.of(of_run)
    assert run.expires_at == run.ended_at + FILES_LIVE_S
    files = [{"expirationDate": "2026-11-29T00:00:00"}, {"expirationDate": "2026-11-29T01:00:00+01:00"}]
    assert RunReport.of({**of_run, "files": files}).expires_at == run.ended_at + 14 * 3600
    assert RunReport.of({}).expires_at == float("inf")


def test_the_newest_success_else_the_newest() -> None:
    runs = [
        {"jobRunId": 10, "state": "running"},
        {"jobRunId": 9, "state": "success", "endDate": "2026-11-27"},
        {"jobRunId": 8, "state": "success", "endDate": "2026-11-28"},
        {"jobRunId": "a/b", "state": "success", "endDate": "2026-11-29"},
    ]
    for payload in (runs, runs[::-1], {"count": 4, "runs": runs}):
        found = newest(listed(payload) or [])
        assert found is not None
        assert found.run_id == "8"
    found = newest(listed([runs[0], {"jobRunId": 11, "state": "failed"}]) or [])
    assert found is not None
    assert found.run_id == "11"
    assert listed([]) == []
    assert newest([]) is None
    assert listed({"a": 1}) is None
    assert listed("x") is None


@given(ANYTHING)
def test_no_answer_breaks_the_reading(answer: object) -> None:
    runs = listed(payload_of(answer))
    for run in runs or ():
        assert len(run.words) < 64
