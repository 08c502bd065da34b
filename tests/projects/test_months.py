"""Sums and differences of months."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from proxy.projects.months import MOST_MONTHS, Month, Months, difference, month_of, start_of, total

if TYPE_CHECKING:
    import pytest

COUNTS = st.dictionaries(st.sampled_from(["shop", "acme", "acme/42"]), st.integers(1, 9))
NAMES = st.integers(0, 30).map(lambda number: f"{2026 + number // 12}-{number % 12 + 1:02}")
MONTHS = st.dictionaries(NAMES, st.builds(Month, st.just(0.0), COUNTS, COUNTS), max_size=MOST_MONTHS)


@given(MONTHS, MONTHS)
def test_what_changed_since_a_state_leads_from_it_to_the_state_now(known: Months, more: Months) -> None:
    now = total(known, more)
    seen = total({name: month for name, month in known.items() if name in now}, difference(now, known))
    assert {name: (one.calls, one.warned) for name, one in seen.items()} == {
        name: (one.calls, one.warned) for name, one in now.items()
    }


@given(MONTHS, MONTHS)
def test_a_sum_is_another_value_and_keeps_the_months_that_changed_last(known: Months, more: Months) -> None:
    before = {name: dict(one.calls) for name, one in known.items()}
    both = total(known, more)
    assert [*both][-len(more) :] == [*more] or not more
    assert len(both) <= MOST_MONTHS
    for one in both.values():
        one.calls["shop"] = -1
    assert {name: one.calls for name, one in known.items()} == before


@given(MONTHS)
def test_a_state_has_no_difference_to_itself(months: Months) -> None:
    assert difference(months, months) == {}


def test_the_earlier_begin_of_a_count_holds() -> None:
    both = total({"2026-11": Month(start_of("2026-11") + 5)}, {"2026-11": Month(start_of("2026-11") + 9)})
    assert both["2026-11"].since == start_of("2026-11") + 5


def test_a_month_after_a_counted_one_is_counted_from_its_first_second() -> None:
    late = {"2026-12": Month(start_of("2026-12") + 86_400)}
    assert total({"2026-11": Month(0)}, late)["2026-12"].since == start_of("2026-12")
    assert total({"2026-10": Month(0)}, late)["2026-12"].since == start_of("2026-12") + 86_400


def test_a_clock_at_1970_asks_for_no_time_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gmtime = time.gmtime

    def of_windows(at: float) -> time.struct_time:
        if at < 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        return gmtime(at)

    monkeypatch.setattr(time, "gmtime", of_windows)
    assert total({}, {"1970-01": Month(100.0, {"shop": 1})})["1970-01"] == Month(100.0, {"shop": 1})


@given(st.floats(0, 4e9))
def test_a_time_is_in_the_month_that_it_names(now: float) -> None:
    assert start_of(month_of(now)) <= now
    assert now < start_of(month_of(start_of(month_of(now)) + 32 * 86_400))
