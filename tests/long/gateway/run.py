"""Three replicas behind HAProxy, nginx and Envoy, configured as ``snippets --for gateway`` prints it.

    python tests/long/gateway/run.py --balancer haproxy --requests 15000

Twelve projects with a dozen callers each, over TLS, against a cloud here that refuses the eleventh request at
once of a project. Three phases for each balancer: nothing happens; one replica is killed and comes back; a
rolling restart. Prints what the callers saw and what the cloud saw. Fails (exit code 1) if a caller's GET
failed, or if without an incident a project was in two processes or had more than ten requests at once.

A caller sends one request after the other, a twentieth of them POST, and never sends one again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import signal
import ssl
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import yaml
from support.balancers import FILES, balancer, parts, program
from support.harness import Message, RawServer, free_port, read_message
from support.programs import forget_http_proxies, logged_url
from support.snippets import settings_of, text

from proxy.contentsquare import CONCURRENT_API_CALL, TOKEN_PATH

NAMES = [f"shop-{number}" for number in range(12)]
CALLERS = 12
LATENCY_S = 0.2
LIMIT = 10
REPLICAS = 3
KEY, MONITOR_KEY = "key-of-the-team-1", "key-of-monitor-1"
METHODS = ("GET", "POST")
TIMES = (("p50", 0.5), ("p99", 0.99), ("worst", 1.0))
SPARE_S = 6.0
"""After a start, like ``minReadySeconds`` of the StatefulSet: the balancer sees the replica."""


class Cloud:
    """Tokens, and answers after `LATENCY_S`; it knows a replica by its pseudonym in Via."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.homes: defaultdict[str, set[str]] = defaultdict(set)
        self.refusals = self.tokens = 0
        self.url = ""

    def forget(self) -> None:
        """A new phase begins."""
        self.peaks.clear()
        self.homes.clear()
        self.refusals = self.tokens = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            request = Message(head[:-4])
            for length in request.values(b"content-length"):
                request.body = await reader.readexactly(int(length))
            status, content = await self._answer(request)
            writer.write(b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\n" % status)
            writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))

    async def _answer(self, request: Message) -> tuple[int, bytes]:
        if TOKEN_PATH in request.start_line.decode():
            self.tokens += 1
            name = str(json.loads(request.body)["client_id"])
            told = {"access_token": name, "token_type": "bearer", "expires_in": 3600, "endpoint": self.url}
            return 200, json.dumps(told).encode()
        name = request.values(b"authorization")[0].decode().removeprefix("Bearer ")
        self.homes[name].update(via.decode() for via in request.values(b"via"))
        if self.running[name] >= LIMIT:
            self.refusals += 1
            refusal = {"success": False, "errorCode": CONCURRENT_API_CALL, "errorMessage": "Too many"}
            return 429, json.dumps(refusal).encode()
        self.running[name] += 1
        self.peaks[name] = max(self.peaks[name], self.running[name])
        try:  # it works on, also for a replica that was killed
            await asyncio.shield(asyncio.ensure_future(asyncio.sleep(LATENCY_S)))
        finally:
            self.running[name] -= 1
        return 200, b'{"success":true}'


@dataclass
class Replica:
    """A proxy of the three: its command, port and process."""

    number: int
    port: int
    config: Path
    process: asyncio.subprocess.Process | None = None
    starts: itertools.count[int] = field(default_factory=itertools.count)

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        log = self.config.with_name(f"{self.number}-{next(self.starts)}.log")
        with log.open("wb") as lines:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", "serve", "--config", str(self.config)),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=lines,
            )
        await logged_url(log, 60)

    async def stop(self, by: signal.Signals) -> None:
        """End it by a signal."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(by)
        await asyncio.wait_for(self.process.wait(), 60)


@dataclass
class Seen:
    """What the callers saw in a phase."""

    answers: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        took = sorted(self.took)
        told = [f"{self.answers[one]:,} {one} ({self.answers[f'{one} failed']} failed)" for one in METHODS]
        told += [f"{name} {took[int((len(took) - 1) * share)] * 1000:,.0f} ms" for name, share in TIMES]
        return ", ".join(told + [f"{times} x {what}" for what, times in self.errors.items()])


class Callers:
    """The callers of all projects, over TLS."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.port, self.context = port, context
        self.seen = Seen()
        self.numbers = itertools.count(1)

    async def call_on(self, name: str) -> None:
        """One request after the other, until cancelled."""
        stream = None
        try:
            while True:
                number = next(self.numbers)
                method = "GET" if number % 20 else "POST"
                began = time.monotonic()
                try:
                    stream = stream or await asyncio.open_connection(
                        "127.0.0.1", self.port, ssl=self.context, server_hostname="localhost"
                    )
                    answer = await self._ask(*stream, method, name, number)
                    what = "" if answer.status == 200 else f"{method} {answer.status} {answer.body[:90]!r}"
                except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                    answer, what = None, f"{method} {type(error).__name__}"
                seen = self.seen
                seen.took.append(time.monotonic() - began)
                seen.answers[method] += 1
                if what:
                    seen.answers[f"{method} failed"] += 1
                    seen.errors[what] += 1
                if stream and (answer is None or answer.values(b"connection") == [b"close"]):
                    stream[1].close()
                    stream = None
        finally:
            if stream is not None:
                stream[1].close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, name: str, number: int
    ) -> Message:
        path = "v1/exports" if method == "POST" else f"v1/metrics/site/visits?number={number}"
        length = "Content-Type: application/json\r\nContent-Length: 2\r\n" if method == "POST" else ""
        content = "{}" if method == "POST" else ""
        writer.write(
            f"{method} /{name}/{path} HTTP/1.1\r\nHost: csq-proxy.example.com\r\nX-API-Key: {KEY}\r\n"
            f"{length}\r\n{content}".encode()
        )
        return await read_message(reader)


async def steady(callers: Callers, replicas: list[Replica], requests: int) -> None:
    """Nothing happens."""
    del replicas
    while callers.seen.answers["GET"] < requests:
        await asyncio.sleep(0.05)


async def kill(callers: Callers, replicas: list[Replica], requests: int) -> None:
    """Kill a replica after a third of the requests, and start it again after two thirds."""
    await steady(callers, [], requests // 3)
    await replicas[1].stop(signal.SIGKILL)
    await steady(callers, [], requests * 2 // 3)
    await replicas[1].start()
    await steady(callers, [], requests)


async def rolling(callers: Callers, replicas: list[Replica], requests: int) -> None:
    """One after the other ends by SIGTERM and is started again."""
    for replica in replicas:
        await asyncio.sleep(SPARE_S)
        await replica.stop(signal.SIGTERM)
        await replica.start()
    await asyncio.sleep(SPARE_S)
    await steady(callers, [], requests)


PHASES: list[Callable[[Callers, list[Replica], int], Awaitable[None]]] = [steady, kill, rolling]


@contextlib.asynccontextmanager
async def three(cloud: Cloud, folder: Path) -> AsyncIterator[tuple[list[Replica], dict[str, str]]]:
    """Three replicas with the printed configuration, and the printed files."""
    settings = settings_of(
        contentsquare={"auth_url": cloud.url, "allowed_endpoints": [cloud.url.removeprefix("http://")]},
        projects={name: {"client_id": name, "client_secret": f"secret-of-{name}"} for name in NAMES},
        callers={"team": {"key": KEY}},
    )
    files = parts(text("gateway", settings))
    [config] = [
        one["data"]["config.toml"]
        for one in yaml.safe_load_all(files["kubernetes.yaml"])
        if one["kind"] == "ConfigMap"
    ]
    for name in re.findall(r'"/run/secrets/csq-proxy/([^"]+)"', config):
        secret = folder / name
        secret.touch(mode=0o600)
        known = {"caller_team": KEY, "caller_monitor": MONITOR_KEY}
        secret.write_text(known.get(name, f"secret-of-{name}"))
    path = folder / "config.toml"
    path.write_text(config.replace("/run/secrets/csq-proxy", str(folder)))
    replicas = [Replica(number, free_port(), path) for number in range(REPLICAS)]
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield replicas, files
    finally:
        for replica in replicas:
            if replica.process is not None:
                await replica.stop(signal.SIGKILL)


async def measure(kind: str, requests: int, folder: Path) -> bool:
    """Print the three phases of a balancer; whether all was well."""
    cloud, is_well = Cloud(), True
    async with AsyncExitStack() as stack:
        cloud.url = (await stack.enter_async_context(RawServer(cloud.serve))).url
        replicas, files = await stack.enter_async_context(three(cloud, folder))
        ports = [replica.port for replica in replicas]
        port, context = await stack.enter_async_context(
            balancer(kind, files[FILES[kind]], folder, ports, MONITOR_KEY)
        )
        await asyncio.sleep(SPARE_S)
        callers = Callers(port, context)
        tasks = [asyncio.create_task(callers.call_on(name)) for name in NAMES for _ in range(CALLERS)]
        await asyncio.sleep(SPARE_S)  # tokens, connections
        for phase in PHASES:
            cloud.forget()
            callers.seen = Seen()
            began = time.monotonic()
            await phase(callers, replicas, requests)
            seen, homes = callers.seen, max(map(len, cloud.homes.values()))
            peak = max(cloud.peaks.values())
            print(f"{kind:8} {phase.__name__:8} {time.monotonic() - began:.0f} s, {seen.line()}")
            print(
                f"{'':17} a project was in at most {homes} processes, and had at most {peak} requests"
                f" at once; the cloud refused {cloud.refusals} calls, and gave {cloud.tokens} tokens",
                flush=True,
            )
            is_well = is_well and not seen.answers["GET failed"]
            is_well = is_well and (phase is not steady or (homes == 1 and not cloud.refusals))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return is_well


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Three replicas behind a balancer.")
    parser.add_argument("--balancer", choices=list(FILES), action="append")
    parser.add_argument("--requests", type=int, default=15_000, help="GETs in each phase")
    arguments = parser.parse_args()
    forget_http_proxies()
    is_well = True
    for kind in arguments.balancer or FILES:
        if program(kind) is None:
            print(f"{kind}: not installed, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            is_well = asyncio.run(measure(kind, arguments.requests, Path(folder))) and is_well
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
