"""`proxy.tokens.schedule`: how long from a token to its refresh, and from a failure to the next try."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.keeping import HOUR, PERMANENT, TRANSIENT

from proxy.errors import TokenFetchError
from proxy.tokens.lease import safety_margin_s
from proxy.tokens.schedule import (
    BACKOFF_S,
    MIN_REFRESH_S,
    PERMANENT_BACKOFF_S,
    RETRY_AFTER_CAP_S,
    refresh_delay_s,
    retry_delay_s,
)


@given(lifetime_s=st.floats(min_value=1e-9, max_value=1e6), seed=st.integers(0, 1000))
def test_the_refresh_delay_is_positive_for_any_lifetime(lifetime_s: float, seed: int) -> None:
    assert refresh_delay_s(lifetime_s, random.Random(seed)) >= MIN_REFRESH_S > 0


@given(lifetime_s=st.floats(min_value=1, max_value=86400), seed=st.integers(0, 1000))
def test_a_refresh_is_due_between_a_third_and_half_of_the_life_and_before_the_margin(
    lifetime_s: float, seed: int
) -> None:
    delay = refresh_delay_s(lifetime_s, random.Random(seed))
    assert lifetime_s * 0.29 <= delay <= lifetime_s * 0.551
    assert delay < lifetime_s - safety_margin_s(lifetime_s)


def test_an_hour_is_refreshed_at_half_and_fifteen_minutes_leave_ten_for_an_outage() -> None:
    rng = random.Random(1)
    hours = [refresh_delay_s(HOUR, rng) for _ in range(1000)]
    assert 1620 <= min(hours) < 1650
    assert 1950 < max(hours) <= 1980
    assert all(270 <= refresh_delay_s(900, rng) <= 330 for _ in range(100))


@given(
    failures=st.integers(1, 100_000),
    usable_for_s=st.floats(0, 86400),
    asked=st.one_of(st.none(), st.floats(0, 1e6)),
    permanent=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_retry_comes_neither_at_once_nor_sooner_than_asked_nor_later_than_needed(
    failures: int, usable_for_s: float, asked: float | None, permanent: bool, seed: int
) -> None:
    error = TokenFetchError("x", cause="x", permanent=permanent, retry_after_s=asked)
    delay = retry_delay_s(error, failures, usable_for_s, random.Random(seed))
    least, most = PERMANENT_BACKOFF_S if permanent else (BACKOFF_S[0], BACKOFF_S[2])
    assert delay >= max(least, min(asked or 0, RETRY_AFTER_CAP_S))
    assert delay <= max(most, min(asked or 0, RETRY_AFTER_CAP_S) * 1.1)
    if usable_for_s and not permanent and not asked:
        assert delay <= max(least, usable_for_s / 2)


def test_transient_backoff_grows_from_one_second_to_a_minute() -> None:
    ceilings = [
        max(retry_delay_s(TRANSIENT, n, 0, random.Random(seed)) for seed in range(500)) for n in range(1, 9)
    ]
    assert ceilings == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60], rel=0.02)


def test_a_retry_comes_before_half_of_what_is_left_of_a_usable_lease() -> None:
    delays = [retry_delay_s(TRANSIENT, 10, 10.0, random.Random(seed)) for seed in range(200)]
    assert 4.5 < max(delays) <= 5.0


def test_permanent_backoff_grows_from_one_minute_to_five() -> None:
    delays = [retry_delay_s(PERMANENT, n, 0, random.Random(3)) for n in range(1, 6)]
    assert delays[0] == 60
    assert delays == sorted(delays)
    assert 270 <= delays[-1] <= 300
