"""Several copies of the proxy share one Contentsquare project, in virtual time.

The project counts ten requests at once over all programs. The model has the round trip between a copy
and the project: a request counts from its arrival until its answer departs, and the copy's slot is free
when the answer has come back. A refusal is sent as soon as the request arrives.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from proxy.errors import QueueTimeout
from proxy.projects.slots import Slots

_T = TypeVar("_T")
LIMIT = 10
QUEUE_TIMEOUT_S = 60.0


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: the time that the loop would sleep is over at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen")
        self.now_s += max(0.0, timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


def in_virtual_time(main: Coroutine[Any, Any, _T]) -> _T:
    """Run ``main`` in a loop whose clock jumps to the next timer; nothing may wait for sockets or threads."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


class Cloud:
    """The project: it answers ``latency_s`` after a request's arrival, and refuses the eleventh at once."""

    def __init__(self, round_trip_s: float, latency_s: float, seed: int) -> None:
        self.round_trip_s = round_trip_s
        self.latency_s = latency_s
        self.running = 0
        """The requests that count now. A test adds those that other programs hold."""
        self._dice = random.Random(seed)

    async def call(self) -> bool:
        """Send a request and wait for the answer; False: it was refused, because ten ran already."""
        await asyncio.sleep(self.round_trip_s / 2)
        accepted = self.running < LIMIT
        if accepted:
            self.running += 1
            try:
                await asyncio.sleep(self.latency_s * self._dice.uniform(0.8, 1.2))
            finally:
                self.running -= 1
        await asyncio.sleep(self.round_trip_s / 2)
        return accepted


@dataclass(eq=False)
class Copy:
    """A copy of the proxy: what its callers saw."""

    cloud: Cloud
    slots: Slots = field(default_factory=lambda: Slots(LIMIT))
    answers: int = 0
    refusals: int = 0
    timeouts: int = 0
    """Answers 503, because no slot was free within the queue's time."""
    worst_wait_s: float = 0.0
    """Of a request, for anything but the cloud's work; of one without an answer, until the end."""
    waiting_since: dict[int, float] = field(default_factory=dict)

    async def request(self, caller: object) -> None:
        """As `proxy.gateway.tries`: a refused request is sent again, before all that wait."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        first, number = False, id(asyncio.current_task())
        self.waiting_since[number] = began_at
        try:
            while True:
                wait_s = max(0.0, began_at + QUEUE_TIMEOUT_S - loop.time())
                await self.slots.acquire(caller, wait_s, first=first)
                sent_at = loop.time()
                try:
                    if await self.cloud.call():
                        self.slots.note_answer()
                        self.answers += 1
                        break
                    self.refusals += 1
                    self.slots.note_refusal()
                finally:
                    self.slots.release()
                first = True
            self.worst_wait_s = max(self.worst_wait_s, sent_at - began_at)
        except QueueTimeout:
            self.timeouts += 1
            self.worst_wait_s = max(self.worst_wait_s, QUEUE_TIMEOUT_S)
        finally:
            del self.waiting_since[number]

    async def repeat(
        self, caller: object, think_s: Callable[[], float] | None = None, *, after_s: float = 0.0
    ) -> None:
        """One request after the other, without end."""
        await asyncio.sleep(after_s)
        while True:
            await self.request(caller)
            if think_s is not None:
                await asyncio.sleep(think_s())


@dataclass
class Crowd:
    """What came of some time of sharing; see `share`."""

    copies: list[Copy]
    use: float
    """The answers, relative to those that the slots left by other programs allow."""

    @property
    def refused(self) -> float:
        """The share of refused calls."""
        refusals = sum(copy.refusals for copy in self.copies)
        return refusals / max(1, refusals + sum(copy.answers for copy in self.copies))

    @property
    def worst_wait_s(self) -> float:
        return max(copy.worst_wait_s for copy in self.copies)

    @property
    def timeouts(self) -> int:
        return sum(copy.timeouts for copy in self.copies)

    @property
    def jain(self) -> float:
        """Jain's index of fairness over the copies' answers: 1 where all have the same."""
        answers = [copy.answers for copy in self.copies]
        return sum(answers) ** 2 / max(1, len(answers) * sum(n * n for n in answers))


def share(
    busy: int,
    *,
    round_trip_s: float,
    light: int = 0,
    held: int = 0,
    parallel: int = 30,
    duration_s: float = 60.0,
    latency_s: float = 0.3,
    start_s: float = 2.0,
    warm_up_s: float = 10.0,
    ending: int = 0,
    seed: int = 1,
) -> Crowd:
    """``busy`` copies with ``parallel`` requests of three callers each, then ``light`` ones with one caller.

    Other programs hold ``held`` slots all the time. The busy callers come within ``start_s``; a light
    caller thinks for a second after each answer. Answers and refusals count after ``warm_up_s``, waits from
    the start. The last ``ending`` copies end when the warm-up does.
    """

    async def run() -> Crowd:
        random.seed(seed)  # the jitter of the slots' pauses
        dice = random.Random(seed)
        cloud = Cloud(round_trip_s, latency_s, seed)
        cloud.running = held
        copies = [Copy(cloud) for _ in range(busy + light)]
        tasks = {
            copy: [
                asyncio.create_task(copy.repeat(number % 3, after_s=dice.uniform(0, start_s)))
                for number in range(parallel)
            ]
            for copy in copies[:busy]
        }
        for copy in copies[busy:]:
            tasks[copy] = [asyncio.create_task(copy.repeat("light", lambda: dice.uniform(0.5, 1.5)))]
        await asyncio.sleep(warm_up_s)
        for copy in copies:
            copy.answers = copy.refusals = 0
        for copy in copies[len(copies) - ending :]:
            await _end(tasks.pop(copy))
        await asyncio.sleep(duration_s)
        now = asyncio.get_running_loop().time()
        for copy in copies:
            waited_s = now - min(copy.waiting_since.values(), default=now)
            copy.worst_wait_s = max(copy.worst_wait_s, waited_s - latency_s - round_trip_s)
        possible = (LIMIT - held) * duration_s / (latency_s + round_trip_s)
        crowd = Crowd(copies, sum(copy.answers for copy in copies) / possible)
        for of_copy in tasks.values():
            await _end(of_copy)
        return crowd

    return in_virtual_time(run())


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def batch(requests: int, copies: int, *, round_trip_s: float, latency_s: float = 0.3, seed: int = 1) -> float:
    """The seconds that ``copies`` need for so many requests in all, which come at once."""

    async def run() -> float:
        random.seed(seed)
        cloud = Cloud(round_trip_s, latency_s, seed)
        sharing = [Copy(cloud) for _ in range(copies)]
        async with asyncio.TaskGroup() as group:
            for number in range(requests):
                group.create_task(sharing[number % copies].request("batch"))
        return asyncio.get_running_loop().time()

    return in_virtual_time(run())
