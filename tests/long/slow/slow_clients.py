"""slowhttptest against a running proxy, while a well-behaved caller goes on: is it served throughout?

    python tests/long/slow/slow_clients.py --seconds 30

Needs `slowhttptest` (Debian has it). Four attacks, one after the other, each with 300 connections
over loopback: request heads that never end, contents that never end, and answers, small and big, that
are read a few bytes at a time. The proxy and its simulated Contentsquare are a process of their own.
Fails (exit code 1) if a call of the good caller failed, or took longer than `BOUND_S`.

Big answers that nobody takes are the exception: nothing is stored on the way, so each keeps its slot
at Contentsquare, of which a project has ten. There the good caller calls another project.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.programs import logged_url

CONNECTIONS = 300
PATH = "/demo-eu/v1/segments?projectId=42"
OTHER = "/demo-us/v1/segments"
UPLOAD = "/demo-eu/v1/speed-analysis/event/list"
BIG = "/demo-eu/v1/x-sandbox/bytes?size=3000000"
BOUND_S = 5.0
PAUSE_S = 0.05
READ = ("-X", "-w", "10", "-y", "20", "-n", "5", "-z", "16", "-k", "3")


class Attack(NamedTuple):
    """``options`` are slowhttptest's; ``calls`` is what the good caller calls meanwhile."""

    name: str
    options: tuple[str, ...]
    path: str
    calls: tuple[str, ...]


ATTACKS = (
    Attack("heads that never end", ("-H", "-i", "5"), PATH, ("/-/healthy", PATH)),
    Attack(
        "contents that never end",
        ("-B", "-i", "5", "-s", "8192", "-t", "POST"),
        UPLOAD,
        ("/-/healthy", PATH, UPLOAD),
    ),
    Attack("small answers read slowly", READ, PATH, ("/-/healthy", PATH)),
    Attack("big answers read slowly", READ, BIG, ("/-/healthy", OTHER)),
)


@dataclass
class Seen:
    """What the good caller saw of one address."""

    times_s: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        ms = sorted(1000 * time_s for time_s in self.times_s) or [float("nan")]
        p99 = ms[int(len(ms) * 0.99)]
        statuses = ", ".join(f"{count} x {status}" for status, count in self.statuses.items())
        return f"{statuses}; ms: median {statistics.median(ms):.1f}, p99 {p99:.1f}, most {ms[-1]:.1f}"

    def is_good(self) -> bool:
        return set(self.statuses) == {"200"} and max(self.times_s) < BOUND_S


@contextlib.asynccontextmanager
async def proxy() -> AsyncIterator[str]:
    """A running proxy with a simulated Contentsquare."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as lines:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", "serve", "--sandbox", "--port", "0"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=lines,
            )
        try:
            yield await logged_url(log, 10)
        finally:
            process.terminate()
            await process.wait()


async def call(url: str, seen: Seen) -> None:
    """Call one address until cancelled, each time on a connection of its own."""
    method = "POST" if url.endswith(UPLOAD) else "GET"
    body: object = {} if method == "POST" else None
    timeout = aiohttp.ClientTimeout(total=2 * BOUND_S)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        while True:
            began = time.perf_counter()
            try:
                async with session.request(method, url, json=body) as answer:
                    await answer.read()
                    status = str(answer.status)
            except (aiohttp.ClientError, TimeoutError) as exc:
                status = type(exc).__name__
            seen.statuses[status] += 1
            seen.times_s.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE_S)


async def slowhttptest(url: str, options: tuple[str, ...], seconds: int) -> str:
    """Run it; what it says of its connections."""
    command = ("slowhttptest", "-c", str(CONNECTIONS), "-r", "150", "-l", str(seconds), "-p", "3", *options)
    process = await asyncio.create_subprocess_exec(
        *command, "-u", url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + 60)
    finally:
        if process.returncode is None:
            process.kill()
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.decode())
    most = max(map(int, re.findall(r"connected: +([0-9]+)", text)), default=0)
    lasted = re.findall(r"ended on ([0-9]+)", text)
    probe = sorted(set(re.findall(r"service available: +([A-Z]+)", text)))
    return f"at most {most} connections, {''.join(lasted[-1:])} s, its own probe: {'/'.join(probe)}"


async def run(seconds: int) -> int:
    bad = 0
    async with proxy() as url:
        for attack in ATTACKS:
            seen = {path: Seen() for path in attack.calls}
            calls = [asyncio.create_task(call(url + path, one)) for path, one in seen.items()]
            said = await slowhttptest(url + attack.path, attack.options, seconds)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            print(f"{attack.name}: {said}")
            for path, one in seen.items():
                bad += not one.is_good()
                print(f"  {'good' if one.is_good() else 'BAD ':4}  {path}: {one.line()}", flush=True)
    return 1 if bad else 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="slowhttptest against a running proxy.")
    parser.add_argument("--seconds", type=int, default=30, help="for each attack")
    arguments = parser.parse_args()
    if shutil.which("slowhttptest") is None:
        print("slowhttptest is missing; on Debian: apt-get install slowhttptest")
        return 2
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    return asyncio.run(run(arguments.seconds))


if __name__ == "__main__":
    sys.exit(main())
