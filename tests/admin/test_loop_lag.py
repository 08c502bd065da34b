"""`proxy.admin.loop_lag`: how late the event loop is."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.admin import loop_lag
from proxy.admin.loop_lag import LoopLag


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "LAG_EVERY_S", 0.001)
    monkeypatch.setattr(loop_lag, "SLOW_S", 0.02)


@pytest.mark.usefixtures("quick")
async def test_a_loop_that_is_held_up_is_measured_and_warned_of_once() -> None:
    told: list[float] = []
    lag = LoopLag(told.append)
    task = asyncio.create_task(lag.run())
    for _ in range(3):
        await asyncio.sleep(0.005)
        time.sleep(0.03)  # noqa: ASYNC251 - it is what is measured
    await asyncio.sleep(0.005)
    task.cancel()
    assert len(told) == 1
    assert 0.02 < told[0] <= lag.max_s
