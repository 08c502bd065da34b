"""Several copies of the proxy share one project of the sandbox, as processes of their own.

    python tests/long/sharing/run.py --busy 2 --light 1 --seconds 60

A busy copy has thirty callers without pauses; a light one has one caller, who thinks for a second after each
answer. The round trip is this machine's own. Prints what the callers saw, and fails (exit code 1) if one of
them was answered with anything but 200.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.programs import forget_http_proxies, logged_url

from proxy.sandbox import Sandbox, SandboxOptions

LATENCY_S = 0.3
CALLERS = 30
WARM_UP_S = 10.0
SIZES = itertools.count(1000)
"""Each request asks for another size, so that no copy answers two requests with one answer."""


@asynccontextmanager
async def copy_of_the_proxy(sandbox: Sandbox, folder: Path, number: int) -> AsyncIterator[str]:
    """Start a proxy for the sandbox's project; its URL."""
    project = sandbox.projects["demo-eu"]
    config = folder / f"{number}.toml"
    config.write_text(
        f"[server]\nport = 0\n[contentsquare]\nauth_url = {json.dumps(sandbox.auth_url)}\n"
        f"allowed_endpoints = {json.dumps(sandbox.hosts)}\n"
        f"[projects.shop]\nclient_id = {json.dumps(project.client_id)}\n"
        f'client_secret = {json.dumps(project.client_secret)}\napis = ["metrics", "data-export"]\n'
    )
    config.chmod(0o600)
    log = folder / f"{number}.log"
    with log.open("wb") as lines:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(config)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=lines,
        )
    try:
        yield await logged_url(log, 20)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 40)


class Caller:
    """The callers of one copy: what they saw after the warm-up."""

    def __init__(self, url: str, think_s: float) -> None:
        self.url = url
        self.think_s = think_s
        self.statuses: Counter[int] = Counter()
        self.worst_wait_s = 0.0

    async def call_until(self, session: aiohttp.ClientSession, from_s: float, to_s: float) -> None:
        """One request after the other; count those that ended within these times."""
        while (asked_at := time.monotonic()) < to_s:
            async with session.get(f"{self.url}/shop/v1/x-sandbox/bytes?size={next(SIZES)}") as answer:
                await answer.read()
            now = time.monotonic()
            if from_s <= now < to_s:
                self.statuses[answer.status] += 1
                self.worst_wait_s = max(self.worst_wait_s, now - asked_at - LATENCY_S)
            await asyncio.sleep(self.think_s)


async def run(busy: int, light: int, seconds: float, folder: Path) -> bool:
    """Print what happened; whether every answer was 200."""
    async with AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox(SandboxOptions(latency_s=LATENCY_S)))
        callers = [
            Caller(await stack.enter_async_context(copy_of_the_proxy(sandbox, folder, number)), think_s)
            for number, think_s in enumerate([0.0] * busy + [1.0] * light)
        ]
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        from_s = time.monotonic() + WARM_UP_S
        async with asyncio.TaskGroup() as group:
            for caller in callers:
                for _ in range(1 if caller.think_s else CALLERS):
                    group.create_task(caller.call_until(session, from_s, from_s + seconds))
            await asyncio.sleep(WARM_UP_S)
            before = sandbox.counters.concurrency_refusals
            await asyncio.sleep(seconds)
            refusals = sandbox.counters.concurrency_refusals - before
    for caller in callers:
        print(
            f"{'light' if caller.think_s else 'busy':6} {dict(caller.statuses)} {caller.worst_wait_s:.1f} s"
        )
    answers = [caller.statuses[200] for caller in callers]
    shares = answers[:busy]
    use = sum(answers) * LATENCY_S / (seconds * sandbox.options.max_concurrency)
    jain = sum(shares) ** 2 / max(1, busy * sum(n * n for n in shares))
    print(f"use {use:.3f}, refused {refusals / (refusals + sum(answers)):.1%}, Jain of the busy {jain:.2f}")
    return all(set(caller.statuses) == {200} for caller in callers)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Several proxies share one project of the sandbox.")
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--light", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    forget_http_proxies()
    with tempfile.TemporaryDirectory() as folder:
        passed = asyncio.run(run(arguments.busy, arguments.light, arguments.seconds, Path(folder)))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
