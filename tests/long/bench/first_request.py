"""What a first request costs: after the start, and after a pause in which the cloud closed its connections.

The cloud, over TLS, and the token endpoint are a round trip of `ROUND_TRIP_S` away. Every peer is started
twice: one instance is asked by one caller, the other by `BURST` at once, as a dashboard asks. All peers
wait, and are asked, at the same time: 20 requests a second each don't disturb one another.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.load import LoadError, Target
from bench.peers import OURS, Peer
from bench.processes import Server, StartError
from bench.relay import relayed
from bench.report import BURST, FirstRequests
from bench.upstream import CONTENT_BYTES, Cloud, clouds, connect

PEERS = ("nginx", "envoy", "naive")
"""Beside ours, unless others are asked for."""
ROUND_TRIP_S = 0.05
REQUESTS = 100
SETTLE_S = 3.0
"""Between a start and the first request."""
READY_WAIT_S = 10.0

Start = Callable[[Peer, Cloud], Server]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is asked, how often, and how long nobody calls in between.

    The cloud closes connections that are idle for ``cloud_idle_s`` seconds: so pauses can be short.
    """

    peers: Sequence[Peer]
    rounds: int
    idle_s: float
    cloud_idle_s: int

    def pause_s(self, number: int) -> float:
        """The pause of a round; they differ, lest a peer is always met at its best, or at its worst."""
        return self.idle_s + self.cloud_idle_s * number / self.rounds

    @property
    def conditions(self) -> str:
        """What the figures are to be read with."""
        longest_s = self.pause_s(self.rounds - 1)
        return (
            f"TLS upstream and token endpoint, {ROUND_TRIP_S * 1000:.0f} ms of round trip,"
            f" {self.rounds} rounds."
            f" Each peer is started {SETTLE_S:.0f} s before it is first asked. In a pause nobody calls for"
            f" {self.idle_s:.0f} to {longest_s:.0f} s, and the upstream closes what is idle for"
            f" {self.cloud_idle_s} s. `later` is the median of requests 2 to {REQUESTS}."
            f" Of {BURST} at once, the slowest counts, and the second time is `later`."
        )


def measured(
    plan: Plan, folder: Path, core: int, start: Start, say: Callable[[str], None]
) -> Mapping[str, FirstRequests]:
    """All rounds on all peers, by name. The upstream runs on ``core``."""
    results = {peer.name: FirstRequests() for peer in plan.peers}
    far = functools.partial(relayed, one_way_s=ROUND_TRIP_S / 2)
    with clouds(folder, core, idle_s=plan.cloud_idle_s, way=far) as (_, cloud):
        for number in range(plan.rounds):
            pause_s = plan.pause_s(number)
            say(f"first requests, round {number + 1} of {plan.rounds}, with a pause of {pause_s:.0f} s")
            with ThreadPoolExecutor(2 * len(plan.peers)) as pool:
                asked = {
                    pool.submit(
                        ask, peer, functools.partial(start, peer, cloud), pause_s, results[peer.name]
                    ): peer
                    for peer in plan.peers
                    for ask in (_alone, _together)
                }
            for each, peer in asked.items():
                try:
                    each.result()
                except (StartError, LoadError, OSError) as exc:
                    say(f"{peer.name}: {exc}")
    return results


def _alone(peer: Peer, start: Callable[[], Server], pause_s: float, found: FirstRequests) -> None:
    """One caller: 100 requests on one connection, a pause, and one more."""
    with _started(peer, start) as target:
        first_ms, *later_ms = _asked_ms(target, REQUESTS, "start")
        time.sleep(pause_s)
        (idle_ms,) = _asked_ms(target, 1, "idle")
    found.first_ms.append(first_ms)
    found.later_ms.append(statistics.median(later_ms))
    found.idle_ms.append(idle_ms)


def _together(peer: Peer, start: Callable[[], Server], pause_s: float, found: FirstRequests) -> None:
    """`BURST` callers at once, twice, a pause, and again; the slowest counts."""
    with _started(peer, start) as target:
        first_ms, later_ms = _slowest_ms(target, "start"), _slowest_ms(target, "later")
        time.sleep(pause_s)
        idle_ms = _slowest_ms(target, "idle")
    found.burst_ms.append(first_ms)
    found.later_burst_ms.append(later_ms)
    found.idle_burst_ms.append(idle_ms)


@contextlib.contextmanager
def _started(peer: Peer, start: Callable[[], Server]) -> Iterator[Target]:
    """A fresh instance that has had the time to get ready."""
    with start() as server:
        target = Target(server.port)
        give_up_at = time.monotonic() + READY_WAIT_S
        while peer is OURS and load.fetch(target, "/-/ready")[0] != 200:
            if time.monotonic() > give_up_at:
                raise LoadError("not ready in time")
            time.sleep(0.05)
        time.sleep(SETTLE_S)
        yield target


def _asked_ms(target: Target, count: int, name: str) -> list[float]:
    """How long each of so many requests took on one connection; the first with its making."""
    took_ms = []
    begun_at = time.perf_counter()
    with connect(target.port) as sock:
        for number in range(count):
            answer = load.ask(sock, target, f"/v1/metrics/{name}-{number}")
            took_ms.append((time.perf_counter() - begun_at) * 1000)
            if answer != (200, CONTENT_BYTES):
                raise LoadError(f"answered {answer[0]} with {answer[1]} bytes")
            begun_at = time.perf_counter()
    return took_ms


def _slowest_ms(target: Target, name: str) -> float:
    barrier = threading.Barrier(BURST)

    def ask(number: int) -> float:
        barrier.wait()
        return _asked_ms(target, 1, f"{name}-{number}")[0]

    with ThreadPoolExecutor(BURST) as pool:
        return max(pool.map(ask, range(BURST)))
