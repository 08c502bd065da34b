"""A dashboard that is refreshed every second in several windows, with and without sharing answers.

    python tests/long/dashboard/tiles.py [--seconds 60]

Each tile has a connection of its own, as with tools that ask from a server (Grafana), and leaves a refresh
out while its last answer is still to come. The cloud takes 300 ms and ten requests at once. Some tiles show
the same figures (a number here, a chart there), and every window shows the same tiles. Proxy, cloud and
tiles are this process, so times are a little worse than with a proxy of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from support.harness import Gateway, Message, gateway, read_message

from proxy.contentsquare import MAX_CONCURRENCY
from proxy.logs import setup as log
from proxy.projects import Slots

SHOP: Mapping[str, object] = {"client_id": "id", "client_secret": "secret-1", "apis": ["metrics"]}
WAYS: Mapping[str, Mapping[str, object]] = {
    "as it is": {},
    "coalesce = true": {"coalesce": True},
    'cache = "10s"': {"cache": "10s"},
}


@dataclass(frozen=True)
class Load:
    """What is asked for. ``distinct`` of the tiles differ; times in seconds."""

    seconds: float = 60.0
    windows: int = 3
    tiles: int = 40
    distinct: int = 25
    every_s: float = 1.0
    latency_s: float = 0.3

    def target(self, tile: int) -> bytes:
        return b"/v1/metrics/site/visits?startDate=2026-11-01&goalId=%d" % (tile % self.distinct)


class Watching(Slots):
    """Keeps what each request waited for a slot, in seconds, where it did."""

    def __init__(self) -> None:
        super().__init__(MAX_CONCURRENCY)
        self.waits_s: list[float] = []

    async def acquire(self, caller: Hashable, timeout_s: float, *, first: bool = False) -> None:
        began_at = asyncio.get_running_loop().time()
        try:
            await super().acquire(caller, timeout_s, first=first)
        finally:
            self.waits_s.append(asyncio.get_running_loop().time() - began_at)


@dataclass
class Seen:
    """What came of one way. Times in seconds."""

    way: str
    calls: int = 0
    most_at_once: int = 0
    took_s: list[float] = field(default_factory=list)
    waits_s: Sequence[float] = ()
    left_out: int = 0
    wrong: int = 0

    @property
    def row(self) -> tuple[str, ...]:
        waits, took = self.waits_s or [0.0], self.took_s or [0.0]
        return (
            self.way,
            f"{len(self.took_s)}",
            f"{self.left_out}",
            f"{self.calls}",
            f"{self.most_at_once}",
            f"{len(self.waits_s)}",
            f"{statistics.mean(waits):.2f}",
            f"{max(waits):.2f}",
            f"{statistics.median(took):.3f}",
            f"{max(took):.3f}",
            f"{self.wrong}",
        )


HEAD = (
    "way",
    "answers",
    "left out",
    "calls",
    "at once",
    "slot waits",
    "mean s",
    "worst s",
    "answer s",
    "worst s",
    "wrong",
)


class Cloud:
    """Answers each call with its target, after a while."""

    def __init__(self, load: Load, seen: Seen) -> None:
        self._load = load
        self._seen = seen
        self._at_once = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            self._seen.calls += 1
            self._at_once += 1
            self._seen.most_at_once = max(self._seen.most_at_once, self._at_once)
            try:
                await asyncio.sleep(self._load.latency_s)
            finally:
                self._at_once -= 1
            content = _content(request.start_line.split(b" ")[1])
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(content) + content)
            await writer.drain()


def _content(target: bytes) -> bytes:
    return json.dumps({"success": True, "payload": target.decode() * 8}).encode()


async def _tile(proxy: Gateway, load: Load, target: bytes, seen: Seen) -> None:
    """One tile in one window."""
    loop = asyncio.get_running_loop()
    reader, writer = await proxy.connect()
    raw, due = proxy.request(b"GET " + target), loop.time()
    ends_at = due + load.seconds
    while due < ends_at:
        await asyncio.sleep(max(0.0, due - loop.time()))
        began_at = loop.time()
        writer.write(raw)
        answer: Message = await read_message(reader)
        seen.took_s.append(loop.time() - began_at)
        seen.wrong += answer.content != _content(target)
        due += load.every_s
        while due < min(loop.time(), ends_at):
            due += load.every_s
            seen.left_out += 1


async def measured(way: str, load: Load) -> Seen:
    """Run the dashboard in one of `WAYS`."""
    seen, watching = Seen(way), Watching()
    async with gateway(Cloud(load, seen), projects={"shop": {**SHOP, **WAYS[way]}}) as proxy:
        (project,) = proxy.app.projects()
        project.slots = watching
        targets = [load.target(tile) for tile in range(load.tiles)] * load.windows
        await asyncio.gather(*(_tile(proxy, load, target, seen) for target in targets))
        assert project.slots.in_use == 0
    seen.waits_s = watching.waits_s
    return seen


def main() -> None:
    """Run all ways, one after the other, and print a table."""
    default = Load()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="for each way")
    parser.add_argument("--windows", type=int, default=default.windows)
    parser.add_argument("--tiles", type=int, default=default.tiles)
    parser.add_argument("--distinct", type=int, default=default.distinct, help="tiles that differ")
    options = parser.parse_args()
    log.configure("warning", "text")
    load = Load(options.seconds, options.windows, options.tiles, options.distinct)
    print(f"{load.windows} windows of {load.tiles} tiles, {load.distinct} different, {load.seconds:g} s\n")
    rows = [HEAD, *(asyncio.run(measured(way, load)).row for way in WAYS)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    main()
