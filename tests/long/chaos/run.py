"""A chaos run: one proxy, a hostile cloud, many callers, and a count of what they saw.

    python tests/long/chaos/run.py --seconds 300

The sandbox stands for the cloud: tokens live 10 s, the token endpoint fails for 30 % of the time,
connections are reset, answers take a while, ten requests at once are allowed, and foreign clients
use the same project. Meanwhile the configuration is rewritten, with other credentials each time. The
project moves to the other cloud while its old one refuses connections. Some readers take nothing of a
big answer. As root on Linux this machine's address changes, so that connections die in silence.
The proxy is a process of its own. Fails (exit code 1) if a caller saw what the contract doesn't
allow, if an expired token was sent, if the cloud ever served more than ten requests at once, or if
a secret or a token is in the log, the start-up summary, the status or an error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import random
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from support.canary import Canaries
from support.programs import forget_http_proxies, logged_url

from chaos.addresses import CLOUDS_HOST, change_address, enter_namespace
from chaos.door import Door
from proxy.sandbox import DemoProject, Sandbox, SandboxOptions, bytes_sha256

TOKEN_LIFETIME_S = 10
TROUBLE_S, PERIOD_S = 3.0, 10.0
"""The token endpoint fails for so long of every period: 30 %."""
RELOAD_EVERY_S = 4.0
LATENCY_S = 0.03
RESET_RATE = 0.002
MOVE_EVERY_S = 7.0
"""After so long the project moves to the other cloud, and its old one refuses connections."""
ADDRESS_FIRST_S, ADDRESS_EVERY_S = 5.0, 30.0
"""After so long, and then every so long, this machine gets another address, and its connections to
the clouds are dead in silence."""
STALLED_READERS = 3
STALLED_BYTES = 20 << 20
STALLED_AFTER_S = 2
"""The ``server.min_rate_after`` of the run; 30 by default."""
STALLED_GIVES_UP_S = 20.0
CALL_LIMIT_S = 100.0
"""A call that takes longer is a failure of the run."""
FOREIGN_CLIENTS = 3
DOWNLOAD_BYTES = 200_000
DIGEST = bytes_sha256(DOWNLOAD_BYTES)
ALLOWED = frozenset(("PROXY_UPSTREAM_UNREACHABLE", "PROXY_QUEUE_TIMEOUT", "PROXY_TOKEN_UNAVAILABLE"))
"""What the contract lets a caller see when the cloud behaves like this."""


class Run:
    """One run's servers, callers and counts."""

    def __init__(self, seconds: float, callers: int, folder: Path, seed: int, *, addresses: bool) -> None:
        self.addresses = addresses
        """Whether this machine's address changes."""
        self.address_changes = 0
        self.doors: dict[str, Door] = {}
        self.seconds = seconds
        self.callers = callers
        self.config = folder / "config.toml"
        self.log = folder / "log.jsonl"
        self.rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.foreign: Counter[str] = Counter()
        self.reloads = 0
        self.moves = 0
        self.cloud = "eu"
        self.stalled: Counter[str] = Counter()
        self.longest_s = 0.0
        self.heard: set[bytes] = set()
        """Errors, and all else that the proxy said of itself."""
        self.token_start = ""
        self.traces: dict[str, int] = {}
        self.rss_kib: list[int] = []

    async def run(self) -> int:
        options = SandboxOptions(
            token_lifetime_s=TOKEN_LIFETIME_S, latency_s=LATENCY_S, reset_rate=RESET_RATE
        )
        async with Sandbox(options) as sandbox:
            self.sandbox = sandbox
            self.project = sandbox.projects["demo-eu"]
            await self._build_doors()
            self._configure()
            with self.log.open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "proxy", "serve", "--config", str(self.config)),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=log,
                )
            try:
                await self._drive(process)
                process.terminate()
                code = await asyncio.wait_for(process.wait(), 40)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        self.traces = await asyncio.to_thread(self._search)
        self._report(code)
        return (
            1
            if self.wrong or self.traces or code or sandbox.counters.expired_tokens_seen or self._peak() > 10
            else 0
        )

    async def _build_doors(self) -> None:
        host = CLOUDS_HOST if self.addresses else "127.0.0.1"
        if self.addresses:
            change_address(1)
        for cloud in ("eu", "us"):
            self.doors[cloud] = await Door(self.sandbox.endpoints[cloud], host).open()
            self.sandbox.endpoints[cloud] = self.doors[cloud].url
        self.auth_url = (await Door(self.sandbox.auth_url, host).open()).url
        await self.doors["us"].close()

    async def _drive(self, process: asyncio.subprocess.Process) -> None:
        self.url = await logged_url(self.log, 10)
        ends_at = time.monotonic() + self.seconds
        connector = aiohttp.TCPConnector(limit=0, local_addr=("127.0.0.1", 0))
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=CALL_LIMIT_S),
        ) as session:
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(self._call(session, ends_at)) for _ in range(self.callers)]
                work += [group.create_task(self._foreign(session, ends_at)) for _ in range(FOREIGN_CLIENTS)]
                disturbing = [
                    group.create_task(job)
                    for job in (
                        self._trouble(),
                        self._reload(),
                        self._move(),
                        self._change_address(),
                        self._watch(process.pid),
                        *(self._stall() for _ in range(STALLED_READERS)),
                    )
                ]
                await asyncio.wait(work)
                for task in disturbing:
                    task.cancel()
            async with session.get(f"{self.url}/-/status") as answer:
                self.status: dict[str, Any] = await answer.json()
                self.heard.add(await answer.read())

    # Trouble

    def _configure(self) -> None:
        """Write the configuration anew, by an atomic rename, with the other credentials of the project."""
        sandbox, project = self.sandbox, self.project
        account = self.reloads % 2 == 1
        client_id = sandbox.account.client_id if account else project.client_id
        secret = sandbox.account.client_secret if account else project.client_secret
        new = self.config.with_suffix(".new")
        new.write_text(
            f"[server]\nport = 0\nmin_rate_after = {STALLED_AFTER_S}\n"
            f"[contentsquare]\nauth_url = {json.dumps(self.auth_url)}\n"
            f"allowed_endpoints = {json.dumps(sandbox.hosts)}\n"
            f"[projects.shop]\nclient_id = {json.dumps(client_id)}\nclient_secret = {json.dumps(secret)}\n"
            f'project_id = {project.project_id}\napis = ["metrics", "data-export"]\n'
        )
        new.chmod(0o600)
        new.replace(self.config)

    async def _trouble(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S - TROUBLE_S)
            self._token_failures(1.0)
            await asyncio.sleep(TROUBLE_S)
            self._token_failures(0.0)

    def _token_failures(self, rate: float) -> None:
        self.sandbox.options = dataclasses.replace(self.sandbox.options, token_failure_rate=rate)

    async def _reload(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_EVERY_S)
            self.reloads += 1
            self._configure()

    async def _move(self) -> None:
        while True:
            await asyncio.sleep(MOVE_EVERY_S)
            old, self.cloud = self.cloud, "us" if self.cloud == "eu" else "eu"
            await self.doors[self.cloud].open()
            self.sandbox.move_project(self.project.name, self.cloud)
            await self.doors[old].close()
            self.moves += 1

    async def _change_address(self) -> None:
        await asyncio.sleep(ADDRESS_FIRST_S)
        while self.addresses:
            self.address_changes += 1
            await asyncio.to_thread(change_address, 1 + self.address_changes)
            await asyncio.sleep(ADDRESS_EVERY_S)

    async def _stall(self) -> None:
        """Ask for a big answer again and again, and take nothing of it until the connection is reset."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        target = f"/shop/v1/x-sandbox/bytes?size={STALLED_BYTES}"
        request = f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        while True:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(request)
                poll = select.poll()
                poll.register(connection, 0)  # a reset alone is reported
                ends_at = time.monotonic() + STALLED_GIVES_UP_S
                while time.monotonic() < ends_at and not (cut := bool(poll.poll(0))):
                    await asyncio.sleep(0.1)
            self.stalled["cut" if cut else "not cut"] += 1

    async def _watch(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                status = await asyncio.to_thread(Path(f"/proc/{pid}/status").read_text)
                self.rss_kib.append(int(status.partition("VmRSS:")[2].split()[0]))
                await asyncio.sleep(0.5)

    # Callers

    async def _call(self, session: aiohttp.ClientSession, ends_at: float) -> None:
        calls = (self._segments, self._series, self._download, self._create)
        while time.monotonic() < ends_at:
            call = self.rng.choices(calls, (50, 30, 15, 5))[0]
            started = time.monotonic()
            try:
                await call(session)
            except aiohttp.ClientPayloadError:
                self.seen["answer aborted (the cloud reset it)"] += 1
            except (aiohttp.ClientError, TimeoutError) as exc:
                self.wrong[f"no answer: {type(exc).__name__}"] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - started)

    async def _segments(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self.url}/shop/v1/segments") as answer:
            await self._judge(answer, await answer.read())

    async def _series(self, session: aiohttp.ClientSession) -> None:
        query = "startDate=2026-06-01T00:00:00.000Z&endDate=2026-06-08T00:00:00.000Z&period=daily"
        async with session.get(f"{self.url}/shop/v1/metrics/site/visits?{query}") as answer:
            await self._judge(answer, await answer.read())

    async def _download(self, session: aiohttp.ClientSession) -> None:
        async with session.get(f"{self.url}/shop/v1/x-sandbox/bytes?size={DOWNLOAD_BYTES}") as answer:
            content = await answer.read()
            await self._judge(answer, content)
            if answer.status == 200 and hashlib.sha256(content).hexdigest() != DIGEST:
                self.wrong["a download that differs"] += 1

    async def _create(self, session: aiohttp.ClientSession) -> None:
        job = {
            "name": "chaos",
            "format": "CSV",
            "scope": "sessions",
            "frequency": {"value": "once", "dateRange": {"from": "2026-05-01", "to": "2026-05-03"}},
            "fields": [{"fieldName": "session_id"}],
        }
        self.seen["export jobs asked for"] += 1
        async with session.post(f"{self.url}/shop/v1/exports", json=job) as answer:
            await self._judge(answer, await answer.read())

    async def _judge(self, answer: aiohttp.ClientResponse, content: bytes) -> None:
        if answer.status in (200, 201):
            self.seen["good"] += 1
            return
        self.heard.add(content + str(answer.headers).encode())
        try:
            code = str(json.loads(content)["errorCode"])
        except (ValueError, KeyError, TypeError):
            code = "no errorCode"
        (self.seen if code in ALLOWED else self.wrong)[f"{answer.status} {code}"] += 1
        if answer.status == 503 and not answer.headers.get("Retry-After", "").isdigit():
            self.wrong["503 without Retry-After"] += 1

    async def _foreign(self, session: aiohttp.ClientSession, ends_at: float) -> None:
        """Another program on the same project, that knows nothing of us."""
        project, token, taken_at = self.project, "", -1e9
        while time.monotonic() < ends_at:
            if time.monotonic() - taken_at > TOKEN_LIFETIME_S / 2:
                fresh = await self._foreign_token(session, project)
                token, taken_at = fresh or token, time.monotonic() if fresh else taken_at
            with contextlib.suppress(aiohttp.ClientError):
                headers = {"Authorization": f"Bearer {token}"}
                async with session.get(
                    f"{self.sandbox.endpoints[self.cloud]}/v1/segments", headers=headers
                ) as answer:
                    self.foreign[str(answer.status)] += 1
                    await answer.read()
            await asyncio.sleep(self.rng.uniform(0, 0.1))

    async def _foreign_token(self, session: aiohttp.ClientSession, project: DemoProject) -> str | None:
        request = {
            "client_id": project.client_id,
            "client_secret": project.client_secret,
            "grant_type": "client_credentials",
            "scope": "metrics",
        }
        async with session.post(f"{self.sandbox.auth_url}/v1/oauth/token", json=request) as answer:
            if answer.status != 200:
                return None
            with contextlib.suppress(ValueError, KeyError, aiohttp.ContentTypeError):
                token = str((await answer.json())["access_token"])
                self.token_start = token.partition(".")[0]  # all of them begin so
                return token
            return None

    # Report

    def _search(self) -> dict[str, int]:
        """Traces of secrets in all that the proxy said."""
        sandbox = self.sandbox
        secrets = {
            "client_secret": self.project.client_secret,
            "account's client_secret": sandbox.account.client_secret,
            "token": self.token_start,
        }
        canaries = Canaries(secrets)
        for name, secret in secrets.items():
            assert canaries.search(f"xx{secret}yy".encode()), f"the search does not find {name}"
        return canaries.search(b"\n".join((self.log.read_bytes(), *self.heard)))

    def _peak(self) -> int:
        return max(self.sandbox.counters.peak_concurrency.values(), default=0)

    def _report(self, code: int) -> None:
        counters, foreign = self.sandbox.counters, sum(self.foreign.values())
        reload = self.status.get("reload", {})
        shown: list[tuple[str, object]] = [
            ("seconds, callers, foreign clients", f"{self.seconds:g}, {self.callers}, {FOREIGN_CLIENTS}"),
            *sorted(self.seen.items()),
            *((f"NOT ALLOWED: {what}", count) for what, count in sorted(self.wrong.items())),
            ("longest call, s", f"{self.longest_s:.1f}"),
            ("moves to the other cloud", self.moves),
            (
                "changes of this machine's address",
                self.address_changes if self.addresses else "not as this user",
            ),
            ("readers that took nothing: cut, not cut", f"{self.stalled['cut']}, {self.stalled['not cut']}"),
            ("requests of foreign clients, refused for concurrency", f"{foreign}, {self.foreign['429']}"),
            ("most requests at once at the cloud", self._peak()),
            ("refusals for concurrency at the cloud, all clients", counters.concurrency_refusals),
            ("expired tokens sent", counters.expired_tokens_seen),
            ("token requests, all clients", counters.token_requests),
            ("configurations written, taken over", f"{self.reloads}, {reload.get('count', '-')}"),
            ("traces of secrets in log and answers", sum(self.traces.values())),
            ("bytes searched for them", self.log.stat().st_size + sum(map(len, self.heard))),
            ("proxy's resident memory at start, peak, end, MiB", self._memory()),
            ("exit code", code),
        ]
        for what, value in shown:
            print(f"{what:<58} {value}")

    def _memory(self) -> str:
        if not self.rss_kib:
            return "-"
        start, peak, end = self.rss_kib[0], max(self.rss_kib), self.rss_kib[-1]
        return ", ".join(f"{kib / 1024:.1f}" for kib in (start, peak, end))


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="Chaos run: one proxy, a hostile cloud, many callers.")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep-log", type=Path, help="where the proxy's log goes")
    arguments = parser.parse_args()
    forget_http_proxies()
    addresses = enter_namespace()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(arguments.seconds, arguments.callers, Path(folder), arguments.seed, addresses=addresses)
        code = asyncio.run(run.run())
        if arguments.keep_log:
            arguments.keep_log.write_bytes(run.log.read_bytes())
    return code


if __name__ == "__main__":
    sys.exit(main())
