"""Slow callers cost a bounded amount of memory and delay no other caller: a short `memory.slow_callers`."""

from __future__ import annotations

import asyncio
import sys

import pytest
from memory.slow_callers import measured

BOUND_KIB = 512
"""A connection: 64 KiB to send again, one read of 64 to 256 KiB in a full write buffer, and its objects."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_slow_callers_cost_a_bounded_amount_and_hold_nobody_up() -> None:
    got = asyncio.run(measured("mixed", 51, 0.6))
    assert got.per_connection_kib < BOUND_KIB, got
    assert got.meanwhile_ms[0] < 300, got  # half of the time that the slow ones are slow
    assert got.whole == 5, got
