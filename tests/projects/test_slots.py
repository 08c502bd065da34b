"""`proxy.projects.slots`: a project's ten slots, shared fairly."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.crowd import in_virtual_time

from proxy.errors import QueueTimeout
from proxy.projects.slots import SharedSlots, Slots


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def taken(limit: int) -> Slots:
    slots = Slots(limit)
    for _ in range(limit):
        assert slots.try_acquire()
    return slots


class Queue:
    """Callers that wait for a slot, and the order in which they got one."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def join(self, *names: str, timeout_s: float = 5) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._wait(name, timeout_s))
            await settle()

    async def _wait(self, name: str, timeout_s: float) -> None:
        await self.slots.acquire(name[0], timeout_s)
        self.order.append(name)

    async def release_all(self) -> None:
        while self.slots.in_use:
            self.slots.release()
            await settle()


async def test_as_many_as_the_limit_are_let_in_at_once_and_no_more() -> None:
    slots = Slots(2)
    assert [slots.try_acquire() for _ in range(3)] == [True, True, False]
    assert (slots.in_use, slots.waiting, slots.limit) == (2, 0, 2)
    slots.release()
    await slots.acquire("a", 1)
    assert slots.in_use == 2


async def test_a_free_slot_costs_no_wait_even_without_time() -> None:
    slots = Slots(1)
    await slots.acquire("a", 0)
    assert slots.in_use == 1


async def test_one_callers_requests_are_served_in_the_order_they_came() -> None:
    queue = Queue(taken(1))
    await queue.join("a1", "a2", "a3")
    assert queue.slots.waiting == 3
    await queue.release_all()
    assert queue.order == ["a1", "a2", "a3"]


async def test_a_dashboard_of_many_queries_doesnt_starve_another_caller() -> None:
    queue = Queue(taken(1))
    await queue.join("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    await queue.release_all()
    assert queue.order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_no_caller_overtakes_a_waiter() -> None:
    queue = Queue(taken(1))
    await queue.join("a1")
    queue.slots.release()
    assert not queue.slots.try_acquire()
    await settle()
    assert queue.order == ["a1"]


async def test_who_waits_too_long_is_told_so_and_when_to_come_back() -> None:
    slots = taken(3)
    with pytest.raises(QueueTimeout) as caught:
        await slots.acquire("a", 0.01)
    assert (caught.value.code, caught.value.status) == ("PROXY_QUEUE_TIMEOUT", 503)
    assert caught.value.retry_after_s == 1
    assert "all 3 slots" in caught.value.message
    assert (slots.in_use, slots.waiting) == (3, 0)


async def test_a_slot_that_comes_free_while_the_process_stands_still_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.projects.turns.STALLED_S", 0.1)
    slots, loop = Slots(1), asyncio.get_running_loop()
    assert slots.try_acquire()
    waiting = asyncio.create_task(slots.acquire("a", 0.02))
    await settle()
    loop.call_later(0.04, slots.release)
    time.sleep(0.3)  # noqa: ASYNC251 - as SIGSTOP and SIGCONT
    await waiting
    with pytest.raises(QueueTimeout):
        await slots.acquire("a", 0.02)


async def test_no_time_at_all_means_no_wait() -> None:
    slots = taken(1)
    with pytest.raises(QueueTimeout):
        await slots.acquire("a", 0)
    assert (slots.in_use, slots.waiting) == (1, 0)


def test_each_waiting_request_is_told_at_its_own_deadline() -> None:
    told: dict[float, float] = {}

    async def wait(slots: Slots, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        with pytest.raises(QueueTimeout):
            await slots.acquire(timeout_s, timeout_s)
        told[timeout_s] = loop.time() - began_at

    async def all_wait() -> None:
        slots = taken(1)
        await asyncio.gather(*(wait(slots, timeout_s) for timeout_s in (3.0, 1.0, 2.0, 4.0)))
        assert slots.waiting == 0

    in_virtual_time(all_wait())
    assert told == {timeout_s: pytest.approx(timeout_s, abs=0.002) for timeout_s in (1.0, 2.0, 3.0, 4.0)}


async def test_the_time_to_come_back_follows_the_pace_and_the_length_of_the_queue() -> None:
    slots = taken(1)
    queue = Queue(slots)
    slots._release_every_s = 4.0  # a slot comes free each four seconds
    await queue.join("a1", "a2")
    with pytest.raises(QueueTimeout) as caught:
        await slots.acquire("b", 0.01)
    assert caught.value.retry_after_s == 12
    assert "2 more wait" in caught.value.message
    await queue.release_all()


async def test_the_time_to_come_back_has_a_bound() -> None:
    slots = taken(1)
    slots._release_every_s = 1e6
    with pytest.raises(QueueTimeout) as caught:
        await slots.acquire("b", 0.01)
    assert caught.value.retry_after_s == 120


async def test_the_pace_is_measured_while_someone_waits() -> None:
    queue = Queue(taken(1))
    began_at = asyncio.get_running_loop().time()
    await queue.join("a1", "a2")
    await asyncio.sleep(0.02)
    queue.slots.release()
    assert queue.slots._release_every_s is not None
    assert 0.018 < queue.slots._release_every_s <= asyncio.get_running_loop().time() - began_at
    await queue.release_all()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    queue = Queue(taken(1))
    await queue.join("a1", "a2", "b1")
    queue.tasks["a1"].cancel()
    await settle()
    assert queue.slots.waiting == 2
    await queue.release_all()
    assert queue.order == ["a2", "b1"]


async def test_a_slot_granted_in_the_moment_of_cancellation_goes_to_the_next() -> None:
    queue = Queue(taken(1))
    await queue.join("a1", "b1")
    queue.slots.release()
    queue.tasks["a1"].cancel()
    await settle()
    assert queue.order == ["b1"]
    assert (queue.slots.in_use, queue.slots.waiting) == (1, 0)


async def test_a_release_in_the_moment_of_cancellation_passes_over_the_leaving_waiter() -> None:
    queue = Queue(taken(1))
    await queue.join("a1", "b1")
    queue.tasks["a1"].cancel()
    queue.slots.release()
    await settle()
    assert queue.order == ["b1"]
    assert (queue.slots.in_use, queue.slots.waiting) == (1, 0)


async def test_a_slot_granted_in_the_moment_of_the_deadline_is_kept_and_used() -> None:
    slots = taken(1)
    loop = asyncio.get_running_loop()
    waiter = asyncio.create_task(slots.acquire("a", 0.5))
    await settle()

    def keep_the_loop_busy() -> None:
        while loop.time() < started + 0.52:
            pass

    started = loop.time()
    loop.call_later(0.25, keep_the_loop_busy)  # so that both calls that follow happen in one turn of the loop
    loop.call_later(0.3, slots.release)
    await waiter
    assert (slots.in_use, slots.waiting) == (1, 0)


async def test_a_larger_limit_lets_waiters_in_at_once() -> None:
    queue = Queue(taken(1))
    await queue.join("a1", "a2", "a3")
    queue.slots.limit = 3
    await settle()
    assert (queue.order, queue.slots.waiting) == (["a1", "a2"], 1)
    await queue.release_all()


async def test_a_smaller_limit_takes_effect_as_slots_come_back() -> None:
    queue = Queue(taken(3))
    await queue.join("a1")
    queue.slots.limit = 1
    for _ in range(2):
        queue.slots.release()
        await settle()
        assert queue.order == []
    queue.slots.release()
    await settle()
    assert queue.order == ["a1"]
    assert queue.slots.in_use == 1


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_a_bug(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Slots(limit)


async def test_releasing_a_slot_that_is_not_in_use_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="none was in use"):
        Slots(1).release()


async def test_nothing_is_kept_about_callers_that_left() -> None:
    queue = Queue(taken(1))
    await queue.join(*(f"{letter}1" for letter in "abcdef"))
    for task in queue.tasks.values():
        task.cancel()
    await settle()
    assert not queue.slots._turns


async def test_a_thousand_waiters_share_ten_slots_without_loss() -> None:
    slots = Slots(10)
    peak = 0
    served: Counter[int] = Counter()

    async def one(caller: int) -> None:
        nonlocal peak
        await slots.acquire(caller, 30)
        try:
            peak = max(peak, slots.in_use)
            await asyncio.sleep(0)
            served[caller] += 1
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        for number in range(1000):
            group.create_task(one(number % 7))
    assert (peak, served.total(), slots.in_use, slots.waiting) == (10, 1000, 0, 0)


@settings(max_examples=150, deadline=None)
@given(
    limit=st.integers(1, 4),
    moves=st.lists(
        st.tuples(
            st.sampled_from(["join", "join", "hasty", "release", "cancel", "resize", "settle", "time"]),
            st.integers(0, 30),
        ),
        max_size=60,
    ),
)
async def test_no_slot_is_ever_lost_or_doubled(limit: int, moves: list[tuple[str, int]]) -> None:
    slots = Slots(limit)
    holders: set[int] = set()
    tasks: dict[int, asyncio.Task[None]] = {}
    numbers = iter(range(1000))

    async def one(number: int, caller: int, timeout_s: float) -> None:
        with suppress(QueueTimeout):
            await slots.acquire(caller, timeout_s)
            holders.add(number)

    for move, value in moves:
        match move:
            case "join" | "hasty":
                number = next(numbers)
                timeout_s = 0.0 if move == "hasty" else 60.0
                tasks[number] = asyncio.create_task(one(number, value % 3, timeout_s))
            case "release" if holders:
                holders.remove(random.Random(value).choice(sorted(holders)))
                slots.release()
            case "cancel" if tasks:
                tasks[value % len(tasks)].cancel()
            case "resize":
                slots.limit = 1 + value % 4
            case "time":
                await asyncio.sleep(0.0001)
            case _:
                await asyncio.sleep(0)
        assert len(holders) <= slots.in_use
    await settle()
    await asyncio.sleep(0.001)
    await settle()
    assert slots.in_use == len(holders)
    assert not slots.waiting or slots.in_use >= slots.limit
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert (slots.waiting, len(slots._turns)) == (0, 0)
    for _ in range(slots.in_use):
        slots.release()
    assert all(slots.try_acquire() for _ in range(slots.limit))
    assert not slots.try_acquire()


async def test_the_first_refusal_in_a_while_leaves_at_most_half_of_the_slots() -> None:
    slots = taken(10)
    slots.note_refusal()
    assert slots.allowance == 5
    for _ in range(5):
        slots.release()
        assert not slots.try_acquire()
    slots.release()
    assert slots.try_acquire()


async def test_a_refusal_of_a_few_leaves_the_others() -> None:
    slots = Slots(10)
    for _ in range(4):
        assert slots.try_acquire()
    slots.note_refusal()
    assert slots.allowance == 3


@pytest.mark.parametrize("refused", range(5, 11))
async def test_a_burst_leaves_as_many_slots_as_the_cloud_accepted(refused: int) -> None:
    slots = taken(10)
    for _ in range(refused):
        slots.note_refusal()
        slots.release()
    assert slots.allowance == max(1, 10 - refused)


async def test_if_no_request_is_at_the_cloud_a_refused_one_waits_for_a_pause() -> None:
    slots = taken(1)
    slots.note_refusal()
    slots.release()
    assert not slots.try_acquire()
    await slots.acquire("a", 1)
    assert slots.in_use == 1


def test_a_full_allowance_leaves_one_slot_empty_for_others_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.projects.slots.GAP_EVERY_S", 0.0)
    monkeypatch.setattr("proxy.projects.slots.GAP_S", 0.02)

    async def three_slots() -> None:
        slots = taken(3)
        slots.release()
        assert slots.try_acquire()  # from now on all slots are in use
        queue = Queue(slots)
        await queue.join("a1", "b1")
        slots.release()
        await settle()
        assert (slots.in_use, slots.waiting) == (2, 2)
        slots.release()
        await settle()
        assert queue.order == ["a1"]  # only one slot is left empty
        await asyncio.sleep(0.03)
        assert queue.order == ["a1", "b1"]
        assert (slots.in_use, slots.allowance) == (3, 3)

    in_virtual_time(three_slots())


async def test_the_allowance_never_falls_below_one() -> None:
    slots = taken(2)
    for _ in range(20):
        slots.note_refusal()
    assert slots.allowance == 1


async def test_answers_let_the_allowance_grow_back_to_the_limit_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.projects.slots.COOL_DOWN_S", (0.0, 0.0))
    slots = Slots(4)
    await slots.acquire("a", 1)
    slots.note_refusal()
    assert slots.allowance == 1
    slots.release()
    for _ in range(100):
        await slots.acquire("a", 1)
        slots.note_answer()
        slots.release()
    assert slots.allowance == slots.limit == 4
    assert [slots.try_acquire() for _ in range(5)] == [True] * 4 + [False]


async def test_the_allowance_does_not_grow_while_it_cools_down() -> None:
    slots = Slots(4)
    await slots.acquire("a", 1)
    slots.note_refusal()
    for _ in range(100):
        slots.note_answer()
    assert slots.allowance == 1


async def test_a_refused_request_goes_before_all_waiters() -> None:
    slots = taken(1)
    queue = Queue(slots)
    await queue.join("a1", "b1")
    first = asyncio.create_task(slots.acquire("c", 5, first=True))
    await settle()
    slots.release()
    await settle()
    assert first.done()
    assert queue.order == []
    await queue.release_all()
    await asyncio.gather(*queue.tasks.values())


def test_an_answer_ends_a_row_of_refusals_where_nothing_can_shrink_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.projects.slots.PAUSE_S", (0.05, 2.0))
    monkeypatch.setattr("proxy.projects.slots.PAUSE_GROWTH", 2.0)
    pauses = []

    async def six_refusals() -> None:
        loop, slots = asyncio.get_running_loop(), Slots(1)
        for _ in range(6):
            await slots.acquire("a", 10)
            slots.note_refusal()
            slots.release()
            begun_at = loop.time()
            await slots.acquire("a", 10)
            pauses.append(loop.time() - begun_at)
            slots.note_answer()
            slots.release()

    in_virtual_time(six_refusals())
    assert max(pauses) < 0.5  # in a row, the last would be 1.6 s


async def test_who_waits_during_a_pause_is_served_after_it() -> None:
    slots = taken(3)
    queue = Queue(slots)
    await queue.join("a1", "a2", "a3")
    for _ in range(3):
        slots.note_refusal()
        slots.release()
    assert slots.in_use == 0
    async with asyncio.timeout(10):
        while not slots.in_use:
            await asyncio.sleep(0.005)
    assert slots.in_use == slots.allowance == 1
    await queue.release_all()
    await asyncio.gather(*queue.tasks.values())


async def test_a_smaller_limit_takes_the_allowance_along() -> None:
    slots = Slots(10)
    slots.limit = 4
    assert slots.allowance == 4
    slots.limit = 8
    assert slots.allowance == 8


# Two names that turn out to be one project


async def test_a_slot_taken_before_two_projects_become_one_is_given_back_to_the_shared_slots() -> None:
    old, shared = Slots(3), Slots(3)
    for slots in (old, old, shared):
        assert slots.try_acquire()
    old.move_to(shared)
    assert (shared.in_use, old.in_use) == (3, 0)
    assert not shared.try_acquire()
    assert not old.try_acquire()
    old.release()
    assert shared.in_use == 2
    assert old.try_acquire()
    for slots in (old, old, shared):
        slots.release()
    assert shared.in_use == 0
    with pytest.raises(RuntimeError):
        old.release()


async def test_more_than_the_limit_may_run_on_but_none_is_added() -> None:
    old, shared = taken(2), taken(2)
    queue = Queue(old)
    await queue.join("a1", "b1")
    old.move_to(shared)
    assert (shared.in_use, shared.waiting) == (4, 2)
    for left in (3, 2):
        shared.release()
        await settle()
        assert (shared.in_use, shared.waiting) == (left, 2)
    shared.release()
    await settle()
    assert queue.order == ["a1"]
    old.release()
    await settle()
    assert queue.order == ["a1", "b1"]


async def test_who_waited_may_leave_or_run_out_of_time_after_the_move() -> None:
    old, shared = taken(1), taken(1)
    queue = Queue(old)
    await queue.join("a1", "b1")
    await queue.join("c1", timeout_s=0.02)
    old.move_to(shared)
    queue.tasks["a1"].cancel()
    with pytest.raises(QueueTimeout):
        await queue.tasks["c1"]
    assert shared.waiting == 1
    old.release()
    shared.release()
    await settle()
    assert queue.order == ["b1"]
    assert (shared.in_use, shared.waiting) == (1, 0)
    old.release()
    assert shared.in_use == 0


async def test_what_the_cloud_says_after_the_move_is_the_shared_slots_business() -> None:
    old, shared = taken(4), Slots(10)
    old.move_to(shared)
    for _ in range(3):
        old.note_refusal()
        old.release()
    assert shared.allowance == 1
    old.note_answer()
    old.release()
    old.move_to(old)
    assert shared.in_use == 0


async def test_one_project_has_the_same_slots_under_all_its_names_and_a_new_limit_is_for_all() -> None:
    shared = SharedSlots(10)
    shop, same, other, unknown = shared.of(42), shared.of(42), shared.of(43), shared.of(None)
    assert shop is same
    assert len({shop, other, unknown, shared.of(None)}) == 4
    shared.limit = 5
    assert [slots.limit for slots in (shop, other, unknown, shared.of(44))] == [5] * 4
