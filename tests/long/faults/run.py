"""System calls that fail, injected by strace into a running proxy: its words, its answers, its recovery.

    python tests/long/faults/run.py [--only accept4,connect] [--seconds 4] [--verbose]

For each cell of `CELLS` a proxy starts, with the sandbox as its cloud and tokens that live 6 s. Then one
system call fails with one error for so many seconds, while callers ask and the configuration file is written
again. Afterwards the calls work again. Needs Linux, strace, and leave to trace. Fails (exit code 1) if a
caller saw anything but a whole answer, an error of the proxy's or, where its own socket failed, a lost
connection; if the log doesn't name the cause, or names a bug; if no token is fetched after the fault; or if
the proxy ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from support.programs import forget_http_proxies, logged_url

from proxy.sandbox import Sandbox, SandboxOptions

TOKEN_LIFETIME_S = 6
CALLERS = 4
RECOVERY_S = 40.0
"""After the fault: until calls work again, and a token was fetched."""
LIMIT_S, RELOAD_S = 20.0, 20.0
PLAIN = "import sys; sys.modules['uvloop'] = None; from proxy.cli.main import main; main()"
KEYS = ("event", "level", "cause", "error", "status")
BUGS = ("request_failed_by_bug", "loop_error", "Traceback")


@dataclass(frozen=True)
class Cell:
    """One fault: the system calls (of one purpose), the error, and strace's choice of calls to fail.

    ``named`` is a pattern for the log, "" where all must go on unnoticed; ``may_lose``: callers' own sockets
    fail, so that their connections may be lost.
    """

    calls: str
    error: str
    when: str = "1+"
    named: str = ""
    may_lose: bool = False


_NO_DESCRIPTORS = "no_descriptors|no free file descriptors"
CELLS = (
    *(Cell("accept4", error, named=f'"cause": ?"{error}"') for error in ("EMFILE", "ENFILE", "ENOMEM")),
    Cell("accept4", "EINTR", "1+2"),
    Cell("socket", "EMFILE", named=_NO_DESCRIPTORS),
    Cell("socket", "ENFILE", named=_NO_DESCRIPTORS),
    *(
        Cell("connect", error, named=f'no connection to [^"]*{error}|"cause": ?"{cause}"')
        for error, cause in (
            ("ENOMEM", "no_memory"),
            ("ENOBUFS", "no_memory"),
            ("EADDRNOTAVAIL", "no_port"),
            ("EPERM", "forbidden"),
        )
    ),
    Cell("connect", "EINTR", "1+2"),
    Cell("recvfrom", "ENOMEM", "2+3", named="ENOMEM", may_lose=True),
    Cell("recvfrom", "EINTR", "1+2"),
    Cell("sendto", "ENOBUFS", "2+3", named="ENOBUFS", may_lose=True),
    Cell("sendto", "EINTR", "1+2"),
    Cell("write", "ENOSPC", named='"log_lines_dropped", ?"count"'),
    Cell("write", "EINTR", "1+2"),
    Cell("openat", "EMFILE", named="Too many open files|no free file descriptors"),
    Cell("openat", "ENFILE", named="Too many open files in system|no free file descriptors"),
    Cell("openat", "ENOMEM", named="Cannot allocate memory|ENOMEM"),
    Cell("openat", "ENOSPC", named="No space left on device"),
    Cell("openat", "EINTR", "1+2"),
)


@dataclass
class Bench:
    """A running proxy, its log, and what callers saw."""

    process: asyncio.subprocess.Process
    url: str
    config: Path
    log: Path
    sandbox: Sandbox
    seen: Counter[str]

    async def call(self, session: aiohttp.ClientSession) -> str:
        """One call over a connection of its own: a status and an error's code, or how it was lost."""
        try:
            async with session.get(f"{self.url}/shop/v1/segments") as answer:
                content = await answer.read()
        except TimeoutError:
            return "late"
        except aiohttp.ClientError as exc:
            return f"lost: {type(exc).__name__}"
        code = json.loads(content).get("errorCode", "")
        return f"{answer.status} {code}".strip()

    async def keep_calling(self, session: aiohttp.ClientSession) -> None:
        while True:
            self.seen[await self.call(session)] += 1
            await asyncio.sleep(0.05)

    async def recovers(self, session: aiohttp.ClientSession) -> str:
        """The part that doesn't work again in time, "" for none."""
        before, ends_at = self.sandbox.counters.token_requests, time.monotonic() + RECOVERY_S
        works = 0
        while time.monotonic() < ends_at:
            if self.process.returncode is not None:
                return f"the proxy ended with {self.process.returncode}"
            works = works + 1 if await self.call(session) == "200" else 0
            if works >= 3 and self.sandbox.counters.token_requests > before:
                return ""
            await asyncio.sleep(0.2)
        return f"{works} good calls, {self.sandbox.counters.token_requests - before} token requests"

    async def has_reloaded(self, session: aiohttp.ClientSession) -> bool:
        """Whether the file that changed during the fault is in force within `RELOAD_S`."""
        ends_at = time.monotonic() + RELOAD_S
        while time.monotonic() < ends_at:
            async with session.get(f"{self.url}/-/status") as answer:
                if (await answer.json())["reload"]["count"]:
                    return True
            await asyncio.sleep(0.5)
        return False


def configure(path: Path, sandbox: Sandbox, comment: str) -> None:
    """Write the configuration file anew, with another comment."""
    project = sandbox.projects["demo-eu"]
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(
        f'# {comment}\n[server]\nport = 0\n[log]\nformat = "json"\n'
        f"[contentsquare]\nauth_url = {json.dumps(sandbox.auth_url)}\n"
        f"allowed_endpoints = {json.dumps(sandbox.hosts)}\n"
        f"[projects.shop]\nclient_id = {json.dumps(project.client_id)}\n"
        f"client_secret = {json.dumps(project.client_secret)}\n"
        f'project_id = {project.project_id}\napis = ["metrics"]\n'
    )
    new.replace(path)


@contextlib.asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Bench]:
    """A proxy in front of a sandbox."""
    async with Sandbox(SandboxOptions(token_lifetime_s=TOKEN_LIFETIME_S, latency_s=0.02)) as sandbox:
        config, log = folder / "configuration" / "config.toml", folder / "log"
        config.parent.mkdir()  # a reload is tried again when a neighbour changes, such as the log
        configure(config, sandbox, "")
        with log.open("wb") as lines:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PLAIN, "serve", "--config", str(config)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=lines,
            )
        try:
            url = await logged_url(log, LIMIT_S)
            yield Bench(process, url, config, log, sandbox, Counter())
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), LIMIT_S)
            except TimeoutError:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def failing(cell: Cell, pid: int) -> AsyncIterator[None]:
    """These system calls fail in the process, all of its threads included."""
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-q", "-o", "/dev/null", "-p", str(pid)),
        *("-e", f"trace={cell.calls}", "-e", f"inject={cell.calls}:error={cell.error}:when={cell.when}"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.sleep(0.5)
        if strace.returncode is not None:
            assert strace.stderr is not None
            raise RuntimeError((await strace.stderr.read()).decode())
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            strace.send_signal(signal.SIGINT)
        await asyncio.wait_for(strace.wait(), LIMIT_S)


async def faults_of(cell: Cell, seconds: float, folder: Path, *, verbose: bool) -> list[str]:
    """What went wrong in a cell."""
    wrong: list[str] = []
    async with (
        started(folder) as bench,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=LIMIT_S)
        ) as session,
    ):
        if trouble := await bench.recovers(session):
            return [f"before the fault: {trouble}"]
        begins_at = bench.log.stat().st_size
        async with failing(cell, bench.process.pid):
            callers = [asyncio.create_task(bench.keep_calling(session)) for _ in range(CALLERS)]
            configure(bench.config, bench.sandbox, "again")
            with contextlib.suppress(ProcessLookupError):
                bench.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(seconds)
        await asyncio.sleep(1)
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        if trouble := await bench.recovers(session):
            wrong.append(f"no recovery: {trouble}")
        if not await bench.has_reloaded(session):
            wrong.append("the changed file was never taken over")
        said = bench.log.read_bytes()[begins_at:].decode()
    bad = [one for one in bench.seen if not (one.startswith("200") or "PROXY_" in one)]
    wrong += [f"a caller saw: {one}" for one in bad if not (cell.may_lose and one.startswith("lost"))]
    if cell.named and not re.search(cell.named, said):
        wrong.append(f"the log doesn't name the cause ({cell.named})")
    # The pipe by which asyncio wakes itself fails with the callers' sockets.
    lines = [line for line in said.splitlines() if "_read_from_self" not in line]
    wrong += [f"the log has {bug}" for bug in BUGS if any(bug in line for line in lines)]
    print(
        f"{cell.calls:<9} {cell.error:<8} {'FAILED' if wrong else 'good':<7} {dict(bench.seen)}", flush=True
    )
    for line in summary(said) if verbose or wrong else ():
        print("   ", line)
    for one in wrong:
        print("    WRONG:", one, flush=True)
    return wrong


def summary(said: str) -> list[str]:
    """The events of a log and their causes, without those of requests that went well."""
    found: Counter[str] = Counter()
    for line in said.splitlines():
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            found[line] += 1
            continue
        kept = {
            key: event[key]
            for key in ("event", "level", "cause", "error", "message", "code", "status")
            if key in event
        }
        found[json.dumps(kept)] += 1
    return [f"{count:>4} {line}" for line, count in found.most_common(20)]


async def run(options: argparse.Namespace) -> int:
    """The exit code."""
    chosen = options.only.split(",") if options.only else [cell.calls for cell in CELLS]
    wrong: list[str] = []
    for cell in CELLS:
        if cell.calls in chosen:
            with tempfile.TemporaryDirectory() as folder:
                wrong += await faults_of(cell, options.seconds, Path(folder), verbose=options.verbose)
    return 1 if wrong else 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="system calls, separated by commas")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--verbose", action="store_true", help="print what each log says")
    options = parser.parse_args()
    if sys.platform != "linux" or shutil.which("strace") is None:
        print("This run needs strace (Linux).")
        return 2
    forget_http_proxies()
    return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
