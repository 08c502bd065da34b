"""What each caller uses of a project, and the counter of its calls."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from support.requests import request

from proxy.contentsquare import Api
from proxy.projects.measures import ProjectMeasures
from proxy.projects.usage import NO_CALLER, Calls, Use

START = 1_800_000_000


class Wall:
    """A wall clock that tests turn."""

    def __init__(self) -> None:
        self.s = float(START)

    def __call__(self) -> float:
        return self.s


def use(mine: ProjectMeasures, caller: str | None = None, *, waited_s: float = 0.0) -> None:
    """A request of the caller that sends 10 bytes and gets 100."""
    one = request()
    one.facts.caller, one.facts.waited_s, one.answer_bytes = caller, waited_s, 100
    one.body.received = 10
    mine.count_request(Api.METRICS, one, 0.02)


def test_each_caller_has_its_own_counts_and_requests_without_a_caller_are_one() -> None:
    mine = ProjectMeasures(Wall())
    use(mine)
    use(mine, "bi", waited_s=1.5)
    use(mine, "bi", waited_s=0.25)
    used = mine.usage()
    assert used == {
        NO_CALLER: {Api.METRICS: (Use(1, 10, 100, 0.0), Use(1, 10, 100, 0.0))},
        "bi": {Api.METRICS: (Use(2, 20, 200, 1.75), Use(2, 20, 200, 1.75))},
    }
    assert mine.usage("bi") == {"bi": used["bi"]}
    assert mine.usage("nobody") == {}


@given(st.lists(st.integers(0, 4000), max_size=150))
def test_the_last_hour_has_the_requests_of_its_sixty_minutes_whenever_they_came(pauses_s: list[int]) -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    ended = []
    for pause_s in pauses_s:
        wall.s += pause_s
        use(mine)
        ended.append(wall.s // 60)
        [(total, hour)] = mine.usage()[NO_CALLER].values()
        of_hour = sum(1 for minute in ended if minute > wall.s // 60 - 60)
        assert (total.requests, hour.requests, hour.bytes_out) == (len(ended), of_hour, 100 * of_hour)
    wall.s += 3600
    assert all(hour.requests == 0 for apis in mine.usage().values() for _, hour in apis.values())


def test_a_wall_clock_that_was_wrong_for_a_while_loses_no_request() -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    for at in (START, START + 10_000_000, START, START + 60):
        wall.s = at
        use(mine)
    [(total, hour)] = mine.usage()[NO_CALLER].values()
    assert (total.requests, hour.requests) == (4, 4)


def test_the_counts_of_an_hour_take_little_memory() -> None:
    wall = Wall()
    mine = ProjectMeasures(wall)
    for number in range(20):
        use(mine, f"caller-{number}")
    tracemalloc.start()
    for _ in range(200):
        wall.s += 60
        for number in range(20):
            mine.apis[Api.METRICS].callers[f"caller-{number}"].requests += 1
            mine.apis[Api.METRICS].callers[f"caller-{number}"].end_minute(wall.s // 60)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 20 * 4096


def test_a_counter_is_in_the_list_once_while_it_has_new_calls() -> None:
    new: list[Calls] = []
    shop, other = Calls("shop", new), Calls("other", new)
    shop.add()
    shop.add()
    other.add()
    assert new == [shop, other]
    new.clear()
    assert (shop.take(), other.take(), shop.take()) == (2, 1, 0)
    shop.add()
    assert (new, shop.made, shop.take()) == ([shop], 3, 1)
