"""Networks that change below a running proxy, and clouds that take their time; with the times of real life.

    python tests/long/dead_ways/run.py

Linux only. Each case runs in a process and a network namespace of its own (root, or a system where users may
have namespaces), all at once, for two minutes. Prints what the callers saw, and fails (exit code 1) where
an answer was wrong or too late.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.harness import OK, Gateway, TokenServer, gateway
from support.ways import kill_way

CLOUD_HOST = "127.0.0.9"
FOUND_S = 15.0
"""A dead way is found, and the request answered, within this time."""
CONTENT = b"x" * 300_000
PIECE = b"y" * 1000
PIECES = 300


def change(rule: str) -> None:
    """Change the namespace's network by iproute2's command."""
    subprocess.run(["ip", *rule.split()], check=True)


class Cloud:
    """Answers GET /v1/fine at once, and other requests as their target says."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.tries: dict[bytes, int] = {}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.split(b" ")[1], reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def _answer(
        self, target: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.tries[target] = tries = self.tries.get(target, 0) + 1
        if target.startswith(b"/v1/first-try-hangs") and tries == 1:
            await reader.read()
        elif target.startswith(b"/v1/thinks"):
            await asyncio.sleep(float(target.rpartition(b"=")[2]))
        elif target == b"/v1/takes-nothing":
            await asyncio.sleep(60)
            await reader.readexactly(len(CONTENT))
        elif target == b"/v1/long":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (PIECES * len(PIECE)))
            for _ in range(PIECES):
                writer.write(PIECE)
                await asyncio.sleep(0.1)
            return
        writer.write(OK)


class World(NamedTuple):
    """A proxy, and the cloud that its project is at."""

    proxy: Gateway
    cloud: Cloud

    async def call(self, start: bytes, body: bytes = b"") -> tuple[int, float]:
        """One call: its status (0: cut, or not there after 200 s), and the seconds until its end."""
        asked_at = time.monotonic()
        reader, writer = await self.proxy.connect()
        length = b"Content-Length: %d" % len(body)
        writer.write(self.proxy.request(start, length, body=body))
        try:
            async with asyncio.timeout(200):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(size)
                status = int(head.split(b" ")[1])
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            status = 0
        return status, time.monotonic() - asked_at

    async def settled(self) -> None:
        """Some connections are idle, used or opened ahead."""
        for _ in range(2):
            await asyncio.gather(*(self.call(b"GET /v1/thinks=0.3") for _ in range(4)))
        await asyncio.sleep(12)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    cloud = Cloud()
    server = await asyncio.start_server(cloud, CLOUD_HOST, 0)
    authority = f"{CLOUD_HOST}:{server.sockets[0].getsockname()[1]}"
    token = TokenServer(endpoint=f"http://{authority}")
    async with gateway(
        token=token, contentsquare={"allowed_endpoints": [authority]}, log={"level": "error"}
    ) as proxy:
        yield World(proxy, cloud)
    for writer in cloud.writers:
        writer.transport.abort()
    await asyncio.sleep(0.1)
    server.close()


def verdict(answers: list[tuple[int, float]], status: int, limit_s: float) -> bool:
    """Print the answers; whether all have this status and came in time."""
    worst_s = max(seconds for _, seconds in answers)
    good = all(got == status for got, _ in answers) and worst_s <= limit_s
    statuses, mark = sorted(got for got, _ in answers), "ok " if good else "BAD"
    print(f"  {mark} {statuses} after {worst_s:.1f} s at the most; wanted {status}, {limit_s:g} s")
    return good


async def after(seconds: float, act: Callable[[], object]) -> None:
    await asyncio.sleep(seconds)
    act()


async def forgotten(there: World) -> bool:
    """A middlebox forgets all connections: those that are idle, and those whose request is with the cloud."""
    await there.settled()
    thinking = [b"GET /v1/first-try-hangs?%d" % number for number in range(3)]
    waiting = asyncio.gather(*map(there.call, thinking), there.call(b"POST /v1/first-try-hangs?post", b"{}"))
    await asyncio.sleep(1)
    for writer in there.cloud.writers:
        if not writer.is_closing():
            kill_way(writer)
    at_once = await asyncio.gather(*(there.call(b"GET /v1/fine") for _ in range(6)))
    *gets, post = await waiting
    return all([verdict([*gets, *at_once], 200, FOUND_S + 1), verdict([post], 502, FOUND_S + 1)])


async def moved(there: World) -> bool:
    """This machine's address changes."""
    await there.settled()
    thinking = [b"GET /v1/first-try-hangs?%d" % number for number in range(3)]
    waiting = asyncio.gather(*map(there.call, thinking), there.call(b"POST /v1/first-try-hangs?post", b"{}"))
    await asyncio.sleep(1)
    change(f"route replace local {CLOUD_HOST} dev lo table local src 127.0.1.2")
    change("rule add pref 10 from 127.0.1.1 blackhole")
    change("rule add pref 10 to 127.0.1.1 blackhole")
    at_once = await asyncio.gather(*(there.call(b"GET /v1/fine") for _ in range(3)))
    await asyncio.sleep(1.5)
    later = await asyncio.gather(*(there.call(b"GET /v1/fine") for _ in range(3)))
    *gets, post = await waiting
    return all(
        [
            verdict([*gets, *at_once], 200, FOUND_S + 1),
            verdict(later, 200, 1),
            verdict([post], 502, FOUND_S + 1),
        ]
    )


def gap_of(seconds: float) -> Callable[[World], Awaitable[bool]]:
    async def gap(there: World) -> bool:
        """The network is gone for a while, and comes back, while an answer is under way."""

        def network(verb: str) -> None:
            for direction in ("from", "to"):
                change(f"rule {verb} pref 10 {direction} {CLOUD_HOST} blackhole")

        answer = asyncio.create_task(there.call(b"GET /v1/long"))
        await after(5, lambda: network("add"))
        await after(seconds, lambda: network("del"))
        return verdict([await answer], 200, PIECES * 0.1 + 3 * seconds)

    return gap


async def slow(there: World) -> bool:
    """A cloud that thinks for 100 s, and one that takes nothing of an upload for 60 s."""
    thinking, upload = await asyncio.gather(
        there.call(b"GET /v1/thinks=100"), there.call(b"POST /v1/takes-nothing", CONTENT)
    )
    return all([verdict([thinking], 200, 105), verdict([upload], 200, 65)])


CASES: dict[str, Callable[[World], Awaitable[bool]]] = {
    "forgotten": forgotten,
    "moved": moved,
    "gap-12": gap_of(12),
    "gap-40": gap_of(40),
    "slow": slow,
}


async def run_case(name: str) -> bool:
    """Run a case in the namespace that this process is in."""
    for command in (
        "link set lo up",
        "rule add pref 100 lookup local",
        "rule del pref 0",
        f"route replace local {CLOUD_HOST} dev lo table local src 127.0.1.1",
    ):
        change(command)
    async with world() as there:
        return await CASES[name](there)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, help="run only this one, in the namespace that is there")
    case = parser.parse_args().case
    if case is not None:
        return 0 if asyncio.run(run_case(case)) else 1
    running = {
        name: subprocess.Popen(
            ["unshare", "--map-root-user", "--net", sys.executable, __file__, "--case", name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in CASES
    }
    for name, process in running.items():
        said, _ = process.communicate()
        print(f"{name}\n{said}", end="", flush=True)
    return max(process.returncode for process in running.values())


if __name__ == "__main__":
    sys.exit(main())
