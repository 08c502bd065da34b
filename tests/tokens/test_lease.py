"""`proxy.tokens.lease`: a lease and its state."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.keeping import EU, HOUR, PERMANENT, TRANSIENT

from proxy.errors import TokenFetchError
from proxy.tokens import Lease
from proxy.tokens.lease import State, safety_margin_s, state_of

LEASE = Lease("token-1", EU, "metrics", 42, HOUR, 1000.0, datetime(2027, 1, 15, 9, tzinfo=UTC))


def test_a_lease_holds_the_values_of_its_fields_and_hides_its_token() -> None:
    assert (LEASE.authorization, LEASE.host) == (b"Bearer token-1", EU.host.encode())
    assert "token-1" not in repr(LEASE)
    assert "api.eu-west-1" in repr(LEASE)


def test_a_lease_is_usable_until_half_a_minute_before_its_end() -> None:
    assert LEASE.usable_until == 1000 + HOUR - 30


@pytest.mark.parametrize(
    ("error", "usable", "state"),
    [
        (None, True, "fresh"),
        (TRANSIENT, True, "stale"),
        (PERMANENT, True, "stale"),
        (None, False, "fetching"),
        (TRANSIENT, False, "failing"),
        (PERMANENT, False, "refused"),
    ],
)
def test_the_state_tells_whether_it_is_usable_and_how_the_last_fetch_failed(
    error: TokenFetchError | None, usable: bool, state: State
) -> None:
    assert state_of(error, usable=usable) == state


@given(lifetime_s=st.floats(min_value=1e-6, max_value=86400))
def test_the_safety_margin_is_a_tenth_of_the_life_and_half_a_minute_at_most(lifetime_s: float) -> None:
    assert 0 < safety_margin_s(lifetime_s) <= min(30.0, lifetime_s / 10)
