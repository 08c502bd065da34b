"""The slots of a project over the last hour."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from proxy.projects.slot_minutes import HOUR, SlotMinute, SlotMinutes
from proxy.projects.slots import SharedSlots, Slots

if TYPE_CHECKING:
    import pytest

T0 = 1_800_000_000


async def test_a_minute_has_the_most_in_use_and_waiting_and_the_refusals() -> None:
    slots = Slots(2)
    assert [slots.try_acquire() for _ in range(3)] == [True, True, False]
    waiting = asyncio.create_task(slots.acquire("a", 5))
    while not slots.waiting:
        await asyncio.sleep(0)
    slots.note_refusal()
    slots.release()
    slots.release()
    await waiting
    slots.release()
    assert slots.minutes.hour(T0 + 7) == [SlotMinute(T0, 2, 1, 1)]


async def test_a_minute_in_which_nothing_ended_shows_the_slots_that_were_in_use() -> None:
    minutes = SlotMinutes()
    minutes.note(10, 30)
    for number in range(3):
        minutes.end(T0 + 60 * number, 10, 30)
    assert minutes.hour(T0 + 180) == [SlotMinute(T0 + 60 * number, 10, 30) for number in range(4)]


def test_an_idle_minute_leaves_nothing_and_no_more_than_an_hour_is_kept() -> None:
    minutes = SlotMinutes()
    minutes.end(T0, 0, 0)
    assert minutes.hour(T0 + 60) == []
    for number in range(3 * HOUR):
        minutes.note(1, 0)
        minutes.end(T0 + 60 * number, 0, 0)
    now = T0 + 60 * 3 * HOUR
    assert [one.at for one in minutes.hour(now)] == [now - 60 * left for left in range(HOUR - 1, 0, -1)]
    assert minutes.hour(now + 3600) == []


async def test_slots_that_become_those_of_another_name_are_counted_there() -> None:
    mine, shared = Slots(2), Slots(2)
    mine.try_acquire()
    shared.try_acquire()
    mine.move_to(shared)
    mine.note_refusal()
    assert shared.minutes.hour(T0) == [SlotMinute(T0, 2, 0, 1)]


async def test_the_end_of_a_minute_is_told_to_all_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    now = T0 + 59.995
    monkeypatch.setattr(time, "time", lambda: now)
    shared = SharedSlots(10)
    lone, of_project = shared.of(None), shared.of(42)
    for slots in (lone, of_project):
        slots.try_acquire()
        slots.release()
    task = asyncio.create_task(shared.count_minutes())
    await asyncio.sleep(0)
    now = T0 + 60.0
    async with asyncio.timeout(10):
        while lone.minutes.in_use:
            await asyncio.sleep(0.005)
    assert lone.minutes.hour(now) == of_project.minutes.hour(now) == [SlotMinute(T0, 1)]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
