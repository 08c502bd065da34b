"""A soak over TLS: clients that never read beside clients that do; memory, descriptors, the time of the stop.

    python tests/long/soak/run.py --seconds 3600

The proxy is a process of its own; this one is its cloud and its clients. `SILENT` clients ask for 1 MiB and
never read, in a project of their own; after a while each leaves and comes back. `READERS` clients read what
they ask for. Tokens live 20 s. In the first `WARM_UP_S` seconds memory grows to what the clients' buffers
need, and the allocator keeps it. Fails (exit code 1) if after that memory or descriptors grow from the first
third of the run to the last one, if a reader misses an answer, or if the stop takes longer than
``drain_timeout`` and 5 s. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import trustme

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.programs import forget_http_proxies, logged_url

ROOT = Path(__file__).resolve().parents[3]
SILENT, READERS = 60, 6
SILENT_FOR_S = 5.0, 40.0
CONTENT = bytes(1 << 20)
TOKEN_LIFETIME_S, DRAIN_S, SAMPLE_S, LIMIT_S = 20, 5, 2.0, 60.0
WARM_UP_S = 120.0
"""A run that is shorter than twice this time warms up for half of its time."""
GROWTH_MIB, GROWTH_DESCRIPTORS = 16.0, 50


async def cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The token endpoint and the API."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            content, kind = CONTENT, b"application/octet-stream"
            if head.startswith(b"POST"):
                length = re.search(rb"(?i)content-length: *([0-9]+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                endpoint = "http://127.0.0.1:{}".format(writer.get_extra_info("sockname")[1])
                answer = {"access_token": f"t{time.monotonic_ns()}", "expires_in": TOKEN_LIFETIME_S}
                content, kind = json.dumps({**answer, "endpoint": endpoint}).encode(), b"application/json"
            fields = b"Content-Type: %b\r\nContent-Length: %d" % (kind, len(content))
            writer.write(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n" + content)
            await writer.drain()
    writer.close()


def configuration(folder: Path, port: int) -> Path:
    """A configuration file and a certificate in the folder."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
    (folder / "tls.pem").chmod(0o600)
    path = folder / "config.toml"
    path.touch(mode=0o600)
    path.write_text(
        f'[server]\nport = 0\ntls_cert = "{folder}/tls.pem"\ntls_key = "{folder}/tls.pem"\n'
        f"drain_timeout = {DRAIN_S}\nmin_rate_after = 10\n"
        f'[contentsquare]\nauth_url = "http://127.0.0.1:{port}"\nallowed_endpoints = ["127.0.0.1:{port}"]\n'
        + "".join(
            f'[projects.{name}]\nclient_id = "{name}"\nclient_secret = "secret-1"\napis = ["metrics"]\n'
            for name in ("shop", "slow")
        )
    )
    return path


def sample(pid: int) -> tuple[float, int]:
    """Resident MiB, and open descriptors."""
    found = re.search(r"VmRSS:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Soak:
    """One run: what the clients saw, and the samples."""

    def __init__(self, pid: int, port: int, tls: ssl.SSLContext) -> None:
        self.pid, self.port, self.tls = pid, port, tls
        self.seen: Counter[str] = Counter()
        self.samples: list[tuple[float, int]] = []
        """Resident MiB, and open descriptors."""

    async def _ask(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=self.tls, server_hostname="localhost", limit=1 << 12
        )
        head = f"GET /{name}/v1/segments HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        return reader, writer

    async def be_silent(self) -> None:
        """Ask, never read, leave, and come back."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await self._ask("slow")
                self.seen["silent"] += 1
                try:
                    await asyncio.sleep(random.uniform(*SILENT_FOR_S))
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.1)

    async def read(self) -> None:
        """Ask, read all, and come back."""
        while True:
            try:
                async with asyncio.timeout(LIMIT_S):
                    reader, writer = await self._ask("shop")
                    head = await reader.readuntil(b"\r\n\r\n")
                    content = await reader.read(-1)
                    writer.close()
                is_whole = head.startswith(b"HTTP/1.1 200 ") and content == CONTENT
                self.seen["whole" if is_whole else f"NOT WHOLE: {head[:20]!r}, {len(content)} bytes"] += 1
            except (OSError, asyncio.IncompleteReadError) as exc:
                self.seen[f"LOST: {type(exc).__name__}"] += 1
            await asyncio.sleep(0.2)

    async def sample(self) -> None:
        """Note memory and descriptors now and then."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.samples.append(sample(self.pid))

    def faults(self, stop_s: float, code: int | None) -> list[str]:
        """Print the figures; what is wrong with them."""
        warm = self.samples[min(int(WARM_UP_S / SAMPLE_S), len(self.samples) // 2) :]
        third = max(1, len(warm) // 3)
        parts = warm[:third], warm[-third:]
        memory = [statistics.median(one[0] for one in part) for part in parts]
        descriptors = [statistics.median(one[1] for one in part) for part in parts]
        print(f"clients: {dict(self.seen)}")
        most_mib = max(self.samples)[0]
        print(f"memory, first and last third: {memory[0]:.1f}, {memory[1]:.1f} MiB; most {most_mib:.1f}")
        most = max(one[1] for one in self.samples)
        print(f"descriptors: {descriptors[0]:.0f}, {descriptors[1]:.0f}; most {most}")
        print(f"stop: {stop_s:.1f} s, exit code {code}")
        wrong = [what for what in self.seen if what not in ("silent", "whole")]
        wrong += ["memory grows"] if memory[1] > memory[0] + GROWTH_MIB else []
        wrong += ["descriptors grow"] if descriptors[1] > descriptors[0] + GROWTH_DESCRIPTORS else []
        wrong += ["the stop is late"] if stop_s > DRAIN_S + 5 else []
        return wrong + ([f"exit code {code}"] if code else [])


async def run(seconds: float, folder: Path) -> int:
    """The exit code."""
    server = await asyncio.start_server(cloud, "127.0.0.1", 0)
    config = configuration(folder, server.sockets[0].getsockname()[1])
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(config)),
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
    try:
        port = int((await logged_url(folder / "log", LIMIT_S)).rpartition(":")[2])
        tls = ssl.create_default_context(cafile=folder / "ca.pem")
        soak = Soak(process.pid, port, tls)
        work = [soak.be_silent() for _ in range(SILENT)] + [soak.read() for _ in range(READERS)]
        tasks = [asyncio.create_task(one) for one in (*work, soak.sample())]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks[SILENT:]:  # the silent ones are still there at the stop
            task.cancel()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), LIMIT_S)
        wrong = soak.faults(time.monotonic() - began, code)
        for task in tasks:
            task.cancel()
        wrong += [repr(task.exception()) for task in done]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        server.close()
    if wrong:
        lines = (folder / "log").read_text(errors="replace").splitlines()
        print(*[line for line in lines if '"level":"info"' not in line][-40:], sep="\n")
    for one in wrong:
        print("WRONG:", one)
    return 1 if wrong else 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args()
    forget_http_proxies()
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(options.seconds, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
