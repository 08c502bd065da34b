"""What a project counts of its requests."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from support.requests import request

from proxy.contentsquare import Api
from proxy.projects.measures import (
    BOUNDS_S,
    CUT,
    ENOUGH,
    HOUR,
    LEFT,
    LEFT_AFTER_S,
    LEFT_QUEUE,
    MOST_ERRORS,
    Histogram,
    ProjectMeasures,
    quantile_s,
)
from proxy.server.body import RequestBody
from proxy.server.facts import Cut


class Wall:
    """A wall clock that tests turn."""

    def __init__(self) -> None:
        self.s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.s


@given(st.lists(st.floats(0, 299), min_size=1), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_that_the_true_one_lies_in(
    durations: list[float], share: float
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    wanted = share * len(durations)
    true = next(d for n, d in enumerate(sorted(durations), 1) if n >= wanted)
    high = next(bound for bound in BOUNDS_S if bound >= true)
    low = max((bound for bound in BOUNDS_S if bound < high), default=0.0)
    assert low <= quantile_s(histogram.counts, share) <= high


def test_no_durations_have_no_quantile_and_those_beyond_the_buckets_have_the_last_bound() -> None:
    histogram = Histogram()
    assert quantile_s(histogram.counts, 0.5) == 0
    histogram.add(10_000)
    assert quantile_s(histogram.counts, 0.5) == BOUNDS_S[-1]


def test_the_last_hour_has_a_cell_for_each_minute_with_requests_and_no_more_than_sixty() -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    for minute in range(3 * HOUR):
        wall.s = 1_800_000_000 + 60 * minute
        mine.count_request(Api.METRICS, request(500 if minute % 2 else 200), 0.02)
    hour = mine.hour()
    assert len(hour) == HOUR
    assert [one.at for one in hour] == [1_800_000_000 + 60 * minute for minute in range(2 * HOUR, 3 * HOUR)]
    assert [one.errors for one in hour[:2]] == [0, 1]
    assert 0.01 < hour[0].p50_s <= hour[0].p95_s <= 0.025
    wall.s += 3600
    assert mine.hour() == []


def test_a_wall_clock_that_was_wrong_for_a_while_does_not_stop_the_counting() -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    wall.s += 10_000_000
    mine.count_request(Api.METRICS, request(), 0.02)
    wall.s -= 10_000_000
    mine.count_request(Api.METRICS, request(), 0.02)
    assert [(one.at, one.requests) for one in mine.hour()] == [(1_800_000_000, 1)]


def test_only_the_last_errors_are_kept_and_all_are_counted() -> None:
    mine = ProjectMeasures()
    for number in range(MOST_ERRORS + 5):
        mine.count_error("PROXY_X", f"error {number}")
    assert [one.message for one in mine.last_errors] == [f"error {n}" for n in range(5, MOST_ERRORS + 5)]
    assert mine.errors == {"PROXY_X": MOST_ERRORS + 5}


def test_a_cut_answer_is_an_error_though_its_status_was_good() -> None:
    mine = ProjectMeasures()
    mine.count_request(Api.METRICS, request(cut=Cut("the connection ended", "contentsquare")), 0.1)
    assert (mine.of(Api.METRICS).cut, mine.hour()[0].errors) == (1, 1)
    assert mine.last_errors[0].code == "PROXY_ANSWER_CUT"


def test_an_answer_that_was_cut_is_the_proxys_error_and_a_shared_one_is_contentsquares() -> None:
    mine = ProjectMeasures()
    mine.count_request(Api.METRICS, request(cut=Cut("the connection ended", "contentsquare")), 0.1)
    mine.count_request(Api.METRICS, request(shared="hit"), 0.1)
    mine.count_request(Api.METRICS, request(0), 0.1)
    mine.count_request(Api.METRICS, request(502, error_code="PROXY_LOOP"), 0.1)
    mine.count_request(Api.METRICS, request(502), 0.1)
    assert mine.responses() == {
        "contentsquare": {"2xx": 1, "3xx": 0, "4xx": 0, "5xx": 1},
        "proxy": {"4xx": 0, "5xx": 2},
    }
    [minute] = mine.hour()
    assert (minute.errors, minute.errors_proxy) == (3, 2)
    assert minute.troubles == {CUT: 1, "PROXY_LOOP": 1, "502": 1}


def test_the_window_is_two_minutes_of_a_busy_project_and_five_of_another() -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    mine.count_request(Api.METRICS, request(500), 0.02)
    wall.s += 4 * 60
    for _ in range(ENOUGH - 2):
        mine.count_request(Api.METRICS, request(), 0.02)
    recent = mine.recent()
    assert (recent.minutes, recent.requests, recent.troubles) == (5, ENOUGH - 1, {"500": 1})
    mine.count_request(Api.METRICS, request(), 0.02)
    mine.count_request(Api.METRICS, request(), 0.02)
    recent = mine.recent()
    assert (recent.minutes, recent.requests, recent.troubles) == (2, ENOUGH, {})
    wall.s += 5 * 60
    assert mine.recent().requests == 0


def test_shared_answers_and_callers_that_leave_soon_tell_nothing() -> None:
    mine = ProjectMeasures()
    mine.count_request(Api.METRICS, request(500), 0.02)
    for _ in range(9):
        mine.count_request(Api.METRICS, request(shared="hit"), 0.02)
        mine.count_request(Api.METRICS, request(0), LEFT_AFTER_S / 2)
    recent = mine.recent()
    assert (recent.requests, recent.troubles, recent.good_in_a_row) == (1, {"500": 1}, 0)
    mine.count_request(Api.METRICS, request(0), LEFT_AFTER_S)
    assert mine.recent().troubles == {"500": 1, LEFT: 1}
    queued = request(0)
    queued.facts.waited_s = LEFT_AFTER_S - 1
    mine.count_request(Api.METRICS, queued, LEFT_AFTER_S)
    assert mine.recent().troubles == {"500": 1, LEFT: 1, LEFT_QUEUE: 1}
    upload = request(0)
    upload.body = RequestBody(None)  # its end never came
    mine.count_request(Api.METRICS, upload, LEFT_AFTER_S)
    assert mine.recent().troubles == {"500": 1, LEFT: 1, LEFT_QUEUE: 1}


def test_good_answers_in_a_row_begin_anew_at_each_trouble_and_go_on_at_a_callers_mistake() -> None:
    mine = ProjectMeasures()
    for status, code, row in (
        (200, None, 1),
        (404, None, 2),
        (403, "PROXY_FORBIDDEN", 2),
        (503, "PROXY_QUEUE_TIMEOUT", 0),
        (200, None, 1),
        (500, None, 0),
        (304, None, 1),
    ):
        mine.count_request(Api.METRICS, request(status, error_code=code), 0.02)
        assert mine.recent().good_in_a_row == row


def test_strange_statuses_take_little_memory() -> None:
    mine = ProjectMeasures()
    for status in range(400, 1000):
        mine.count_request(Api.METRICS, request(status), 0.02)
    [minute] = mine.hour()
    assert minute.errors == 600
    assert len(minute.troubles) < 60


def test_counting_a_request_costs_next_to_nothing() -> None:
    mine, one = ProjectMeasures(), request()
    least_s = 1.0
    for _ in range(20):
        began_at = time.perf_counter()
        for _ in range(1000):
            mine.count_request(Api.METRICS, one, 0.02)
        least_s = min(least_s, (time.perf_counter() - began_at) / 1000)
    assert least_s < 5e-6  # about 0.6 us on a machine of 2024; traced by coverage it is more


def test_a_failed_export_is_one_failed_request_of_its_minute() -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    mine.count_request(Api.DATA_EXPORT, request(200), 0.02)
    mine.count_failed_export("PROXY_UPSTREAM_UNREACHABLE")
    wall.s += 60
    mine.count_failed_export(CUT, Cut("its storage broke off", "contentsquare"))
    assert [(one.requests, one.errors, one.errors_proxy) for one in mine.hour()] == [(2, 1, 1), (1, 1, 1)]
    assert mine.recent().troubles == {"PROXY_UPSTREAM_UNREACHABLE": 1, CUT: 1}
    assert (mine.recent().requests, mine.recent().good_in_a_row) == (3, 0)
    assert mine.responses() == {
        "contentsquare": {"2xx": 1, "3xx": 0, "4xx": 0, "5xx": 0},
        "proxy": {"4xx": 0, "5xx": 2},
    }
    assert (mine.apis[Api.DATA_EXPORT].cut, mine.errors) == (1, {CUT: 1})
