"""A thousand callers that are slow, and what they cost: the proxy's memory, and a fast caller's patience.

    python tests/long/memory/slow_callers.py [--connections 1000] [--hold 15]

The proxy runs as a process of its own. Callers, their cloud and the token endpoint are this process; the fast
caller is a third one, with a cloud and a project of its own. Scenarios::

    readers   callers that take 2 KiB a second of a 10 MiB answer, through a small receive buffer
    senders   callers that sent 60 KiB of a 10 MiB upload at once, and then 256 bytes a second
    stalled   callers that send as fast as they can to a cloud that takes nothing
    mixed     a third of each

"Kernel" is what the machine's TCP sockets hold beyond what they held before, both ends of each connection: a
rough figure, which other work disturbs. ``ss -tmnp`` shows the proxy's own sockets (r and w of skmem).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from support.harness import KEPT, WAIT_S, RawServer, TokenServer, read_message
from support.programs import logged_url

CONTENT_BYTES = 10 << 20
FIRST_BYTES = 60 << 10
"""Below what a request keeps to be sent again: the most that a slow sender can make the proxy hold."""
SMALL_BUFFER = 128 << 10  # a window below one segment of loopback crawls
TICK_S = 0.5
ANSWER = b"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: %d\r\n\r\n" % CONTENT_BYTES
ANSWER_BYTES = len(ANSWER) + len(KEPT + b"\r\n") + CONTENT_BYTES
"""What a caller gets: the proxy adds how long it keeps the connection."""
BLOCK = bytes(64 << 10)
KINDS = ("readers", "senders", "stalled")
SCENARIOS = (*KINDS, "mixed")


Latencies = tuple[float, float, float]
"""Median, 99th percentile and worst, in milliseconds."""
Measure = Callable[[int, float], Coroutine[None, None, Latencies]]
"""Has the fast caller work at a port for some seconds."""


@dataclass(frozen=True)
class Figures:
    """What one scenario cost. Memory in MiB, latencies of the fast caller in milliseconds."""

    scenario: str
    connections: int
    before_mib: float
    peak_mib: float
    kernel_mib: float
    alone_ms: Latencies
    meanwhile_ms: Latencies
    whole: int
    """How many of five readers got the rest of their answers at once, when they asked for it."""

    @property
    def per_connection_kib(self) -> float:
        return (self.peak_mib - self.before_mib) * 1024 / self.connections


class Clouds(TokenServer):
    """A cloud of its own for each project, which is named like its client_id."""

    by_project: dict[str, str]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads((await read_message(reader)).body)
        answer = {"access_token": "token", "token_type": "bearer", "expires_in": 86400}
        content = json.dumps({**answer, "endpoint": self.by_project[asked["client_id"]]}).encode()
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(content)
        writer.write(head + content)
        await writer.drain()


async def slow_cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends 10 MiB to who reads; takes what is sent to ``/v1/upload`` and nothing that is sent elsewhere."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER
    )  # the kernel's part shall be the proxy's
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"GET "):
        writer.write(ANSWER)
        for _ in range(CONTENT_BYTES // len(BLOCK)):
            writer.write(BLOCK)
            await writer.drain()
    elif b"/v1/upload" in head:
        while await reader.read(1 << 16):
            pass
    await asyncio.Event().wait()  # until the server is left


def resident_mib(pid: int, key: str = "VmRSS") -> float:
    found = re.search(rf"{key}:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def kernel_mib() -> float:
    """What all TCP sockets of this machine hold in the kernel."""
    found = re.search(r"TCP: .* mem ([0-9]+)", Path("/proc/net/sockstat").read_text())
    assert found is not None
    return int(found[1]) * resource.getpagesize() / (1 << 20)


def forget_peak(pid: int) -> bool:
    """Reset VmHWM (proc(5)); False where only root may: the proxy can't be attached to."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except PermissionError:
        return False
    return True


@contextlib.contextmanager
def room_for_sockets() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.asynccontextmanager
async def running_proxy(
    auth_url: str, clouds: dict[str, str], folder: Path
) -> AsyncIterator[tuple[int, int]]:
    """A proxy process with a project for each cloud; its process id and port."""
    endpoints = ", ".join(f'"{url.partition("://")[2]}"' for url in clouds.values())
    config = f'[contentsquare]\nauth_url = "{auth_url}"\nallowed_endpoints = [{endpoints}]\n'
    config += "max_concurrency = 1000\n"
    for name in clouds:
        config += f'[projects.{name}]\nclient_id = "{name}"\nclient_secret = "secret-1"\napis = ["metrics"]\n'
    (folder / "config.toml").write_text(config + '[log]\nlevel = "warning"\n')
    (folder / "config.toml").chmod(0o600)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", "serve", "--config", str(folder / "config.toml"), "--port", "0",
            stdout=subprocess.DEVNULL, stderr=log, cwd=folder,
            env={key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        )  # fmt: skip
    try:
        url = await logged_url(folder / "log", 4 * WAIT_S)
        yield process.pid, int(url.rpartition(":")[2])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert "Traceback" not in (folder / "log").read_text()


# The fast caller, a process of its own


@contextlib.asynccontextmanager
async def fast_caller() -> AsyncIterator[tuple[str, Measure]]:
    """The URL of the fast caller's cloud, and a function that measures for some seconds at a proxy's port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--fast", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def measure(port: int, seconds: float) -> Latencies:
        stdin.write(b"%d %f\n" % (port, seconds))
        async with asyncio.timeout(seconds + 6 * WAIT_S):
            p50, p99, worst = json.loads(await stdout.readline())
        return p50, p99, worst

    try:
        async with asyncio.timeout(2 * WAIT_S):
            url = (await stdout.readline()).decode().strip()
        yield url, measure
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def be_fast() -> None:
    """Answers in a cloud of its own, and measures at the port and for the seconds that stdin says."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with RawServer(script) as cloud:
        print(cloud.url, flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            port, seconds = line.split()
            print(json.dumps(await latencies(int(port), float(seconds))), flush=True)


FEWEST_REQUESTS = 20


async def latencies(port: int, seconds: float) -> Latencies:
    """Median, 99th percentile and worst of small requests, one after another, in milliseconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < FEWEST_REQUESTS:
        began = time.perf_counter()
        writer.write(b"GET /fast/v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
        assert (await read_message(reader)).status == 200
        found.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.005)
    writer.close()
    cuts = statistics.quantiles(found, n=100, method="inclusive")
    return round(cuts[49], 2), round(cuts[98], 2), round(max(found), 2)


# The slow ones


async def connect(port: int, head: bytes) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, head.replace(b"@HOST@", b"127.0.0.1:%d" % port))
    return sock


def head_of(kind: str) -> bytes:
    if kind == "readers":
        return b"GET /slow/v1/x HTTP/1.1\r\nHost: @HOST@\r\n\r\n"
    path = b"upload" if kind == "senders" else b"stalled"
    start = b"POST /slow/v1/%b HTTP/1.1\r\nHost: @HOST@\r\nContent-Length: %d\r\n\r\n" % (path, CONTENT_BYTES)
    return start + bytes(FIRST_BYTES)


def tick(kind: str, sock: socket.socket) -> int:
    """What one slow caller does each `TICK_S`; how many bytes moved."""
    with contextlib.suppress(BlockingIOError):
        if kind == "readers":
            return len(sock.recv(int(2048 * TICK_S)))
        return sock.send(bytes(int(256 * TICK_S)) if kind == "senders" else BLOCK)
    return 0


async def read_whole(sock: socket.socket, already: int) -> bool:
    """Whether the rest of a slow reader's answer arrives, all of it."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2 * WAIT_S):
            while already < ANSWER_BYTES and (piece := await loop.sock_recv(sock, 1 << 20)):
                already += len(piece)
    return already == ANSWER_BYTES


async def run_scenario(
    scenario: str,
    connections: int,
    hold_s: float,
    proxy: tuple[int, int],
    measure: Measure,
) -> Figures:
    """Hold ``connections`` slow callers for ``hold_s`` seconds."""
    pid, port = proxy
    await measure(port, 0.5)  # warm
    alone = await measure(port, min(3.0, hold_s))
    before = resident_mib(pid)
    key = "VmHWM" if forget_peak(pid) else "VmRSS"
    kinds = [KINDS[number % 3] if scenario == "mixed" else scenario for number in range(connections)]
    socks = [await connect(port, head_of(kind)) for kind in kinds]
    moved = [0] * connections
    peak = before
    in_kernel = 0.0
    kernel_before = kernel_mib()
    try:
        measuring = asyncio.ensure_future(measure(port, hold_s))
        while not measuring.done():
            for number, sock in enumerate(socks):
                moved[number] += tick(kinds[number], sock)
            await asyncio.wait((measuring,), timeout=TICK_S)
            peak = max(peak, resident_mib(pid, key))
            in_kernel = max(in_kernel, kernel_mib() - kernel_before)
        meanwhile = await measuring
        readers = [number for number, kind in enumerate(kinds) if kind == "readers"]
        whole = sum([await read_whole(socks[number], moved[number]) for number in readers[:5]])
    finally:
        for sock in socks:
            sock.close()
    assert whole == len(readers[:5]), "a slow reader's answer did not arrive whole"
    return Figures(scenario, connections, before, peak, in_kernel, alone, meanwhile, whole)


async def measured(scenario: str, connections: int, hold_s: float) -> Figures:
    """One scenario with a proxy of its own."""
    with room_for_sockets(), tempfile.TemporaryDirectory() as folder:
        token = Clouds()
        async with (
            RawServer(slow_cloud) as cloud,
            RawServer(token) as token_server,
            fast_caller() as (url, measure),
        ):
            token.by_project = {"slow": cloud.url, "fast": url}
            async with running_proxy(token_server.url, token.by_project, Path(folder)) as proxy:
                return await run_scenario(scenario, connections, hold_s, proxy, measure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--hold", type=float, default=15.0, metavar="SECONDS")
    parser.add_argument("--only", choices=SCENARIOS)
    parser.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fast:
        asyncio.run(be_fast())
        return
    print(
        "| scenario | callers | before | peak | each | kernel | fast, alone | meanwhile (p50, p99, worst) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for scenario in KINDS if arguments.only is None else (arguments.only,):
        got = asyncio.run(measured(scenario, arguments.connections, arguments.hold))
        alone, meanwhile = (", ".join(f"{ms:g}" for ms in some) for some in (got.alone_ms, got.meanwhile_ms))
        print(
            f"| {scenario} | {got.connections} | {got.before_mib:.1f} MiB | {got.peak_mib:.1f} MiB"
            f" | {got.per_connection_kib:.0f} KiB | {got.kernel_mib:.0f} MiB | {alone} ms | {meanwhile} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
