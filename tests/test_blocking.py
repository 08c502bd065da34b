from __future__ import annotations

import asyncio
import threading

import pytest

from proxy.blocking import NoThread, in_thread, within
from proxy.errors import ConfigError


async def test_what_runs_in_a_thread_gives_its_result_or_its_error_and_may_be_left_alone() -> None:
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ConfigError, match="a fault"):
        await in_thread(lambda: (_ for _ in ()).throw(ConfigError("a fault")))
    go_on = threading.Event()
    left = in_thread(go_on.wait)
    await asyncio.sleep(0.005)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    go_on.set()
    await asyncio.sleep(0.005)


async def test_a_thread_that_cannot_be_started_is_an_error_of_the_systems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    outcome = in_thread(lambda: 7)
    with pytest.raises(OSError, match="can't start new thread") as caught:
        await outcome
    assert isinstance(caught.value, NoThread)


def test_work_within_a_limit_gives_its_result_or_its_error() -> None:
    assert within(10, "key", lambda: 7) == 7
    with pytest.raises(ConfigError, match="a fault"):
        within(10, "key", lambda: (_ for _ in ()).throw(ConfigError("a fault")))


def test_work_that_hangs_is_left_behind_and_costs_one_thread() -> None:
    go_on, begun = threading.Event(), []

    def hang() -> None:
        begun.append(threading.current_thread())
        go_on.wait(15)

    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            within(0.05, "hung", hang)
    assert len(begun) == 1
    assert within(10, "another", lambda: 7) == 7
    go_on.set()
    begun[0].join(15)
    assert within(10, "hung", lambda: 8) == 8
