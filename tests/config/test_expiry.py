"""`proxy.config.expiry`: when the end of credentials is announced."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping

from hypothesis import given
from hypothesis import strategies as st

from proxy.config.expiry import ExpiryWatch, days_left, step_of

END = dt.date(2027, 1, 31)


def told(days: list[int]) -> list[int]:
    """The warnings of a watch that looks ``days`` before the end, in turn."""
    said: list[int] = []
    today = [END]

    def on_event(event: str, values: Mapping[str, object]) -> None:
        assert (event, values["name"], values["expires"]) == ("credentials_expire", "shop", "2027-01-31")
        assert isinstance(values["days_left"], int)
        said.append(values["days_left"])

    watch = ExpiryWatch(on_event, lambda: today[0])
    for left in days:
        today[0] = END - dt.timedelta(days=left)
        watch.look([("shop", END)])
    return said


def test_the_end_is_announced_30_14_and_7_days_before_and_then_daily() -> None:
    assert told([*range(60, -4, -1)]) == [30, 14, 7, 0, -1, -2, -3]


def test_at_the_start_it_is_said_at_once_and_looking_often_says_no_more() -> None:
    assert told([20, 20, 20, 19, 14, 14]) == [20, 14]
    assert told([-5, -5, -6, -6]) == [-5, -6]
    assert told([31]) == []


def test_a_new_date_is_a_new_matter() -> None:
    said: list[object] = []
    watch = ExpiryWatch(lambda _, values: said.append(values["expires"]), lambda: END)
    for date in (END, END, END + dt.timedelta(days=400), END + dt.timedelta(days=3)):
        watch.look([("shop", date)])
    assert said == ["2027-01-31", "2027-02-03"]
    watch.look([])
    watch.look([("shop", END)])
    assert said[-1] == "2027-01-31"


@given(st.integers(-1000, 1000))
def test_a_step_is_never_left_for_a_looser_one(left: int) -> None:
    assert days_left(END, END - dt.timedelta(days=left)) == left
    order: Callable[[int], float] = lambda days: float("inf") if (s := step_of(days)) is None else s  # noqa: E731
    assert order(left - 1) <= order(left)
