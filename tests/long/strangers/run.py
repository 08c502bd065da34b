"""Strangers without a key against one caller with a key, with a proxy that is a process of its own.

    python tests/long/strangers/run.py --places content,close --transports tls --floods burst

A cell is a place where the strangers stop, a transport and a flood: `burst` (2,000 connections at once) or
`steady` (250 a second for 20 s). Meanwhile a caller with a key makes ten calls a second, each on a connection
of its own. Then the proxy gets SIGTERM, while the strangers are still connected. Prints a row for each cell.
Fails (exit code 1) where a cell misses a target: the keyed caller's p99 within 0.5 s, a growth of memory of
at most 32 MiB, and an end within 1 s of SIGTERM. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import resource
import signal
import ssl
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import trustme

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.certificates import tls_files  # noqa: E402
from support.programs import logged_url  # noqa: E402
from support.strangers import PLACES, Address, stranger  # noqa: E402

TRANSPORTS = ("tcp", "tls", "unix")
FLOODS = ("burst", "steady")
LOOPS = ("uvloop", "asyncio")
BURST, PER_SECOND, FLOOD_S, AFTER_S = 2_000, 250, 20.0, 4.0
CALL_EVERY_S, CALL_LIMIT_S, STOP_LIMIT_S = 0.1, 30.0, 40.0
P99_S, GROWTH_MIB, STOP_S = 0.5, 32.0, 1.0
KEY = "the-key-of-the-caller"
START = {
    "uvloop": "from proxy.__main__ import main; main()",
    "asyncio": "import sys; sys.modules['uvloop'] = None; from proxy.__main__ import main; main()",
}


@dataclass
class Row:
    """The measures of one cell, in seconds and MiB. A call without an answer counts as `CALL_LIMIT_S`."""

    p99_s: float
    busy_p99_s: float
    """As ``p99_s``, of the proxy's CPU time during a call: other programs don't add to it."""
    worst_s: float
    failed: int
    growth_mib: float
    stop_s: float
    cpu_s: float
    """The CPU time of the proxy from the flood's begin to its stop."""
    flood_s: float
    """The time until the proxy's system had taken all strangers' connections, `FLOOD_S` at most is waited."""

    @property
    def is_good(self) -> bool:
        """Whether the cell meets the targets."""
        return self.p99_s <= P99_S and self.growth_mib <= GROWTH_MIB and self.stop_s <= STOP_S

    def __str__(self) -> str:
        """The measures in the order of `main`'s head line."""
        return (
            f"{self.p99_s:8.3f}{self.busy_p99_s:8.3f}{self.worst_s:8.3f}{self.failed:8}"
            f"{self.growth_mib:8.1f}{self.stop_s:8.2f}{self.cpu_s:8.2f}{self.flood_s:8.2f}"
        )


async def cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The token endpoint and Contentsquare in one."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            content = b"ok"
            if b"/v1/oauth/token" in head:
                url = f"http://127.0.0.1:{writer.get_extra_info('sockname')[1]}"
                content = json.dumps({"access_token": "t", "expires_in": 3600, "endpoint": url}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(content), content)
            )
    writer.close()


def configuration(folder: Path, cloud_port: int, transport: str) -> Path:
    """A configuration file with one caller."""
    server = {
        "tcp": "",
        "tls": f'tls_cert = "{folder / "cert.pem"}"\ntls_key = "{folder / "key.pem"}"\n',
        "unix": f'unix_socket = "{folder / "socket"}"\n',
    }[transport]
    path = folder / "config.toml"
    path.write_text(
        f'[server]\nport = 0\nhost = "127.0.0.1"\n{server}'
        f'[contentsquare]\nauth_url = "http://127.0.0.1:{cloud_port}"\n'
        f'allowed_endpoints = ["127.0.0.1:{cloud_port}"]\n'
        '[projects.shop]\nclient_id = "id"\nclient_secret = "a-secret"\napis = ["metrics"]\n'
        f'[callers.me]\nkey = "{KEY}"\n'
    )
    path.chmod(0o600)
    return path


async def flood(place: str, kind: str, where: str, ca: str) -> None:
    """A process of its own: strangers come from the first line of standard input on, until its end."""
    os.nice(5)  # on a small machine the flood must not take the proxy's CPU
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    address: Address = ("127.0.0.1", int(where)) if where.isdigit() else Path(where)
    tls = ssl.create_default_context(cafile=ca) if ca else None
    if tls is not None:  # strangers don't care, and are faster
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    await asyncio.to_thread(sys.stdin.readline)
    began_at = time.monotonic()
    coming = []
    for number in range(BURST if kind == "burst" else int(PER_SECOND * FLOOD_S)):
        coming.append(asyncio.create_task(stranger(place, address, tls)))
        late_s = 0.0 if kind == "burst" else began_at + number / PER_SECOND - time.monotonic()
        await asyncio.sleep(max(0.0, late_s))
    await asyncio.wait(coming)
    print(time.monotonic() - began_at, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for one in coming:
        one.cancel()


async def call(address: Address, tls: ssl.SSLContext | None) -> float:
    """The seconds that one call with a key takes. Raises OSError or TimeoutError."""
    began_at = time.monotonic()
    async with asyncio.timeout(CALL_LIMIT_S):
        if isinstance(address, Path):
            reader, writer = await asyncio.open_unix_connection(str(address))
        else:
            name = None if tls is None else "localhost"
            reader, writer = await asyncio.open_connection(*address, ssl=tls, server_hostname=name)
        writer.write(
            b"GET /v1/segments HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %b\r\nConnection: close\r\n\r\n"
            % KEY.encode()
        )
        line = await reader.readline()
        if b" 200 " not in line:
            raise ConnectionError(line)
        took_s = time.monotonic() - began_at
        writer.transport.abort()
    return took_s


def resident_mib(pid: int, name: str = "VmRSS") -> float:
    """The memory of a process; VmHWM is its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith(name + ":")]
    return int(kib) / 1024


def cpu_s(pid: int) -> float:
    """The CPU time that a process's event loop, its first thread, has taken."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def cell(place: str, transport: str, kind: str, loop: str) -> Row:
    """Measure one cell."""
    server = await asyncio.start_server(cloud, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = trustme.CA()
        pair = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        tls_files(folder, pair)
        config = configuration(folder, server.sockets[0].getsockname()[1], transport)
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", START[loop], "serve", "--config", str(config),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        try:
            return await _measure(process, folder, (place, transport, kind))
        finally:
            if process.returncode is None:
                process.kill()
            server.close()


async def _measure(process: asyncio.subprocess.Process, folder: Path, at: tuple[str, str, str]) -> Row:
    place, transport, kind = at
    port = int((await logged_url(folder / "log", 20)).rpartition(":")[2])
    address: Address = folder / "socket" if transport == "unix" else ("127.0.0.1", port)
    where = str(address if transport == "unix" else port)
    ca = str(folder / "ca.pem") if transport == "tls" else None
    tls = None if ca is None else ssl.create_default_context(cafile=ca)
    for _ in range(10):
        with contextlib.suppress(OSError):
            await call(address, tls)
        await asyncio.sleep(0.1)
    strangers = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--flood", place, kind, where, ca or "",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert strangers.stdin is not None
    assert strangers.stdout is not None
    try:
        await asyncio.sleep(1.0)
        before_mib = resident_mib(process.pid)
        cpu_before_s = cpu_s(process.pid)
        _forget_peak(process.pid)
        strangers.stdin.write(b"go\n")
        whole_flood = asyncio.create_task(strangers.stdout.readline())
        calls = await _calls(process.pid, address, tls, whole_flood)
        growth_mib = resident_mib(process.pid, "VmHWM") - before_mib
        took_cpu_s = cpu_s(process.pid) - cpu_before_s
        stopped_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
        stop_s = time.monotonic() - stopped_at
    finally:
        strangers.kill()
        await strangers.wait()
    came_after = (await whole_flood).decode()  # empty where the flood was cut short
    took, busy = (sorted(times) for times in zip(*calls, strict=True))
    at_99 = min(len(took) - 1, int(len(took) * 0.99))
    return Row(
        took[at_99], busy[at_99], took[-1], took.count(CALL_LIMIT_S),
        growth_mib, stop_s, took_cpu_s, float(came_after or math.inf),
    )  # fmt: skip


async def _calls(
    pid: int, address: Address, tls: ssl.SSLContext | None, whole_flood: asyncio.Task[bytes]
) -> list[tuple[float, float]]:
    """What each call took, and the proxy's CPU time meanwhile, until `AFTER_S` after the flood."""

    async def measured() -> tuple[float, float]:
        cpu_before_s = cpu_s(pid)
        try:
            took_s = await call(address, tls)
        except OSError:  # TimeoutError is one
            took_s = CALL_LIMIT_S
        return took_s, cpu_s(pid) - cpu_before_s

    calls = []
    ends_at = time.monotonic() + FLOOD_S + AFTER_S
    while time.monotonic() < ends_at:
        calls.append(asyncio.create_task(measured()))
        await asyncio.sleep(CALL_EVERY_S)
        if whole_flood.done():
            ends_at = min(ends_at, time.monotonic() + AFTER_S)
    return await asyncio.gather(*calls)


def main() -> int:
    """Measure the chosen cells."""
    parser = argparse.ArgumentParser()
    for name, values in (
        ("places", PLACES),
        ("transports", TRANSPORTS),
        ("floods", FLOODS),
        ("loops", LOOPS[:1]),
    ):
        parser.add_argument(f"--{name}", default=",".join(values), help="comma-separated")
    parser.add_argument("--flood", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.flood:
        asyncio.run(flood(*chosen.flood))
        return 0
    heads = ("p99 s", "busy s", "worst s", "failed", "MiB", "stop s", "CPU s", "flood s")
    print(f"{'cell':36}" + "".join(f"{head:>8}" for head in heads))
    is_good = True
    for loop in chosen.loops.split(","):
        for place in chosen.places.split(","):
            for transport in chosen.transports.split(","):
                for kind in chosen.floods.split(","):
                    row = asyncio.run(cell(place, transport, kind, loop))
                    is_good = is_good and row.is_good
                    name = f"{place} {transport} {kind} {loop}"
                    print(f"{name:36}{row}{'' if row.is_good else '  missed'}", flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
