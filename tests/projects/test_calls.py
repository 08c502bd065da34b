"""The calls of each month, and the warnings of quotas."""

from __future__ import annotations

import calendar
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.projects.calls import MonthlyCalls
from proxy.projects.months import month_of


def at(year: int, month: int, day: int = 1, time: str = "00:00:00") -> float:
    return calendar.timegm((year, month, day, *map(int, time.split(":"))))


class Counted:
    """Counts with a wall clock that tests turn, and the events that they sent."""

    def __init__(self, begun: float = at(2026, 11, 29), **quotas: int) -> None:
        self.s = begun
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.calls = MonthlyCalls(
            lambda event, values: self.events.append((event, values)), wall_clock=lambda: self.s
        )
        self.calls.set_quotas(quotas)

    def make(self, name: str, count: int = 1) -> None:
        one = self.calls.of(name)
        for _ in range(count):
            one.add()

    def seen(self, name: str) -> tuple[str, int]:
        count = self.calls.count(name)
        return count.month, count.calls

    def told(self) -> list[tuple[str, object]]:
        told = [(event, values["calls"]) for event, values in self.events]
        self.events.clear()
        return told


def test_calls_are_counted_by_project_and_for_an_account_in_all() -> None:
    counted = Counted()
    counted.make("shop", 2)
    counted.make("acme/42", 3)
    counted.make("acme/43", 4)
    assert [counted.seen(name)[1] for name in ("shop", "acme/42", "acme/43", "acme", "none")] == [
        2,
        3,
        4,
        7,
        0,
    ]


def test_a_month_ends_in_utc_and_the_next_begins_at_zero() -> None:
    counted = Counted(at(2026, 11, 30, "23:59:58"))
    counted.make("shop", 2)
    counted.s += 1
    counted.make("shop", 3)
    assert counted.seen("shop") == ("2026-11", 5)
    counted.s += 1
    assert counted.seen("shop") == ("2026-12", 0)
    counted.make("shop")
    assert counted.seen("shop") == ("2026-12", 1)
    counted.s = at(2027, 1, 1)
    assert counted.seen("shop") == ("2027-01", 0)


def test_a_look_after_the_turn_of_the_month_gives_the_calls_before_it_to_the_month_before() -> None:
    counted = Counted(at(2026, 12, 31, "23:59:59"))
    counted.make("shop", 2)
    counted.s += 1
    assert counted.seen("shop") == ("2027-01", 0)
    counted.s -= 1
    assert counted.seen("shop") == ("2026-12", 2)


@pytest.mark.parametrize("wrong", [at(1970, 1), at(2026, 12, 2), at(2038, 1, 20), at(2026, 10, 5)])
def test_a_clock_that_goes_wrong_and_comes_back_finds_the_months_counts_again(wrong: float) -> None:
    counted = Counted(shop=10)
    counted.make("shop", 9)
    assert counted.seen("shop") == ("2026-11", 9)
    before, counted.s = counted.s, wrong
    counted.make("shop")
    counted.calls.look()
    counted.make("shop")
    counted.calls.look()
    counted.s = before
    assert counted.seen("shop") == ("2026-11", 10)
    assert counted.told() == [("quota_nearly_reached", 9), ("quota_reached", 10)]


@given(st.lists(st.floats(0, 4e9)))
def test_any_clock_leaves_a_bounded_number_of_months(times: list[float]) -> None:
    counted = Counted()
    for counted.s in times:
        counted.make("shop")
        counted.calls.look()
    counted.make("shop")
    month, calls = counted.seen("shop")
    assert month == month_of(counted.s)
    assert calls >= 1
    assert len(counted.calls._months) <= 3


def test_the_count_says_when_it_began() -> None:
    counted = Counted(at(2026, 11, 29, "12:00:00"))
    count = counted.calls.count("shop")
    assert (count.since, count.is_whole) == (at(2026, 11, 29, "12:00:00"), False)
    counted.s = at(2026, 12, 3)
    count = counted.calls.count("shop")
    assert (count.since, count.is_whole) == (at(2026, 12, 1), True)


# Quotas


def test_a_quota_warns_once_at_80_and_once_at_100_percent_of_each_month() -> None:
    counted = Counted(shop=10)
    one = counted.calls.of("shop")
    for _ in range(30):
        one.add()
        counted.calls.look()
    assert counted.told() == [("quota_nearly_reached", 8), ("quota_reached", 10)]
    counted.s = at(2026, 12, 1)
    counted.calls.look()
    counted.make("shop", 8)
    counted.calls.look()
    assert counted.told() == [("quota_nearly_reached", 8)]


def test_many_calls_at_once_get_the_later_warning_alone() -> None:
    counted = Counted(shop=10)
    counted.make("shop", 25)
    counted.calls.look()
    assert counted.told() == [("quota_reached", 25)]


def test_an_event_names_the_project_its_calls_and_its_quota() -> None:
    counted = Counted(acme=10)
    counted.make("acme/42", 5)
    counted.make("acme/43", 4)
    counted.calls.look()
    assert counted.events == [
        ("quota_nearly_reached", {"name": "acme", "month": "2026-11", "calls": 9, "quota": 10})
    ]


def test_a_changed_quota_is_held_against_the_calls_so_far() -> None:
    counted = Counted()
    counted.make("shop", 9)
    counted.calls.set_quotas({"shop": 10})
    assert counted.told() == [("quota_nearly_reached", 9)]
    counted.calls.set_quotas({"shop": 100})
    counted.calls.set_quotas({"shop": 9})
    assert counted.told() == [("quota_reached", 9)]
    counted.calls.set_quotas({"shop": 9})
    assert counted.told() == []


@pytest.mark.parametrize(
    ("calls", "notice"),
    [
        (0, None),
        (11_999, None),
        (12_000, "12,000 of 15,000 calls of 2026-11 are used (80 %)"),
        (14_999, "14,999 of 15,000 calls of 2026-11 are used (99 %)"),
        (
            15_000,
            (
                "15,000 of 15,000 calls of 2026-11 are used (100 %);"
                " the proxy refuses none, but Contentsquare may"
            ),
        ),
    ],
)
def test_a_notice_tells_people_from_80_percent_on(calls: int, notice: str | None) -> None:
    counted = Counted(shop=15_000)
    counted.make("shop", calls)
    assert counted.calls.count("shop").notice == notice


def test_without_a_quota_there_is_no_notice() -> None:
    counted = Counted()
    counted.make("shop", 1000)
    assert (counted.calls.count("shop").notice, counted.calls.count("shop").quota) == (None, None)
    assert counted.told() == []
