"""Many projects come through an outage of their token endpoint, with a proxy that is a process of its own.

    python tests/long/outage/run.py --projects 1000 --seconds 120 --failure refused

Each project has credentials of its own. The token endpoint fails from the start for so many seconds: no
program listens there (`refused`), connections are closed (`closed`) or never answered (`silence`), or the
answer is a status (`503`, `500`). Then the endpoint is well. Prints what the endpoint, callers and the log
saw. Fails (exit code 1) if that is worse than the targets: 60 requests in two minutes of outage, 100 a second
afterwards, every project ready 15 s after its end, 20 log lines.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.programs import logged_url

POLL_S = 0.5
LIMIT_S = 120.0
FAILURES = ("refused", "closed", "silence", "503", "500")


class Endpoint:
    """A token endpoint on a port of its own, which counts its connections."""

    def __init__(self, failure: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self.failure: str | None = failure
        self.times: list[float] = []

    async def serve(self) -> asyncio.Server:
        """Listen."""
        return await asyncio.start_server(self._answer, "127.0.0.1", self.port, backlog=1000)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.times.append(time.monotonic())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if self.failure == "silence":
                await reader.read()
            elif self.failure != "closed":
                content = json.dumps(
                    {"access_token": "a-token", "expires_in": 3600, "endpoint": "http://127.0.0.1:1"}
                ).encode()
                status = self.failure or "200"
                writer.write(
                    b"HTTP/1.1 %s X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                    % (status.encode(), len(content))
                    + content
                )
                await writer.drain()
        writer.close()

    def most_in_a_second(self, since: float) -> int:
        """The most connections within one second."""
        times = [at for at in self.times if at >= since]
        return max(bisect.bisect_left(times, at + 1) - place for place, at in enumerate(times))


def configuration(endpoint: Endpoint, projects: int) -> str:
    """The text of a configuration file."""
    tables = "".join(
        f'[projects.p{number}]\nclient_id = "id-{number}"\nclient_secret = "secret-{number}"\n'
        'apis = ["metrics"]\n'
        for number in range(projects)
    )
    return (
        f'[server]\nport = 0\n[log]\nformat = "json"\n[contentsquare]\nauth_url = "http://127.0.0.1:{endpoint.port}"\n'
        f'allowed_endpoints = ["127.0.0.1:1"]\n{tables}'
    )


async def failed_requests(session: aiohttp.ClientSession, url: str) -> int:
    """By the proxy's own count, which knows of connections that were refused, too."""
    async with session.get(f"{url}/-/metrics") as answer:
        text = await answer.text()
    counts = re.findall(r"^csq_proxy_token_failures_total\{.*\} ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(int(float(count)) for count in counts)


async def states(session: aiohttp.ClientSession, url: str) -> Counter[str]:
    """How many leases are in each state."""
    async with session.get(f"{url}/-/status") as answer:
        status = await answer.json()
    found = re.findall(r'"state": "(\w+)"', json.dumps(status))
    return Counter(found)


async def run(options: argparse.Namespace, folder: Path) -> bool:
    """Print what happened; whether the targets are met."""
    endpoint = Endpoint(options.failure)
    config, log = folder / "config.toml", folder / "log"
    config.write_text(configuration(endpoint, options.projects))
    config.chmod(0o600)
    server = None if options.failure == "refused" else await endpoint.serve()
    with log.open("wb") as lines:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(config)), stdout=lines, stderr=lines
        )
    try:
        async with aiohttp.ClientSession() as session:
            url = await logged_url(log, 60)
            await asyncio.sleep(options.seconds)
            failed = await failed_requests(session, url)
            print(f"outage: {failed} failed requests; leases: {dict(await states(session, url))}")
            asked_at = time.monotonic()
            async with session.get(f"{url}/p7/v1/metrics/x") as answer:
                took_s = time.monotonic() - asked_at
                print(f"a call: {answer.status} after {took_s:.2f} s: {await answer.text()}")
            ended_at = time.monotonic()
            endpoint.failure = None
            server = server or await endpoint.serve()
            times_s: list[float] = []
            while len(times_s) < options.projects and time.monotonic() < ended_at + LIMIT_S:
                await asyncio.sleep(POLL_S)
                fresh = (await states(session, url))["fresh"]
                times_s += [time.monotonic() - ended_at] * (fresh - len(times_s))
            await asyncio.sleep(65)  # what was counted is told once a minute
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 40)
        if server is not None:
            server.close()
    events = Counter(line["event"] for line in lines_of(log))
    rate = endpoint.most_in_a_second(ended_at)
    print(
        f"ready: {len(times_s)}, half after {statistics.median(times_s):.1f} s,"
        f" the last after {times_s[-1]:.1f} s; at most {rate} requests in a second"
    )
    print(f"log: {sum(events.values())} lines: {dict(events)}")
    return (
        failed <= max(60, options.seconds / 2)
        and len(times_s) == options.projects
        and times_s[-1] <= 15
        and rate <= 100
        and sum(events.values()) <= 20
    )


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Many projects, and an outage of their token endpoint.")
    parser.add_argument("--projects", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--failure", choices=FAILURES, default="refused")
    options = parser.parse_args()
    os.environ.pop("CSQ_PROXY_CONFIG", None)
    with tempfile.TemporaryDirectory() as folder:
        return 0 if asyncio.run(run(options, Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
