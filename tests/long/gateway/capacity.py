"""How much CPU time a request takes in one process whose projects use all their slots.

    python tests/long/gateway/capacity.py --projects 100 --latency 0.5 --seconds 12

Each project has ten callers, without pauses, and a cloud here answers after the latency. Prints requests
a second, the share of the slots in use, and the process's CPU time (Linux). Fails (exit code 1) if an answer
was not 200. ``--source`` is a folder with another ``proxy``, such as an unpacked wheel.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.programs import forget_http_proxies, logged_url

from proxy.contentsquare import TOKEN_PATH

ROOT = Path(__file__).parents[3]
SLOTS = 10
KEYS = 10
"""A caller may have 256 requests at once."""
WARM_UP_S = 5.0


class Messages(asyncio.Protocol):
    """Calls `on_message` with each whole message's head and content."""

    def __init__(self) -> None:
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            head = self._got[:end]
            _, found, rest = head.lower().partition(b"content-length:")
            end += 4 + (int(rest.split(b"\r\n")[0]) if found else 0)
            if len(self._got) < end:
                return
            content, self._got = self._got[len(head) + 4 : end], self._got[end:]
            self.on_message(head, content)

    def on_message(self, head: bytes, content: bytes) -> None:
        raise NotImplementedError


class Cloud(Messages):
    """Gives tokens, and answers other requests after a time."""

    url = ""
    latency_s = 0.0

    def on_message(self, head: bytes, content: bytes) -> None:
        if TOKEN_PATH.encode() in head:
            name = json.loads(content)["client_id"]
            told = {"access_token": name, "token_type": "bearer", "expires_in": 3600, "endpoint": Cloud.url}
            self._answer(json.dumps(told).encode())
        else:
            asyncio.get_running_loop().call_later(Cloud.latency_s, self._answer, b"x" * 1024)

    def _answer(self, content: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        self.transport.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))


class Caller(Messages):
    """One request after the other; all callers count together."""

    answers = failures = 0

    def __init__(self, project: int) -> None:
        super().__init__()
        self._request = b"GET /p%d/v1/metrics/site/visits?n=%%d HTTP/1.1\r\n" % project
        self._request += b"Host: localhost\r\nX-API-Key: key-of-the-caller-%d\r\n\r\n" % (project % KEYS)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ask()

    def on_message(self, head: bytes, content: bytes) -> None:
        del content
        Caller.answers += 1
        Caller.failures += not head.startswith(b"HTTP/1.1 200")
        self._ask()

    def _ask(self) -> None:
        self.transport.write(self._request % Caller.answers)


def configuration(projects: int, level: str) -> str:
    """The configuration of the process."""
    callers = "".join(f'[callers.c{number}]\nkey = "key-of-the-caller-{number}"\n' for number in range(KEYS))
    return (
        f'[server]\nport = 0\n[log]\nlevel = "{level}"\n[contentsquare]\nauth_url = "{Cloud.url}"\n'
        f'allowed_endpoints = ["{Cloud.url.removeprefix("http://")}"]\n{callers}'
    ) + "".join(
        f'[projects.p{number}]\nclient_id = "p{number}"\nclient_secret = "secret-of-{number}"\napis = []\n'
        for number in range(projects)
    )


def cpu_s(pid: int) -> float:
    """The CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(arguments: argparse.Namespace, folder: Path) -> bool:
    """Print the figures; whether every answer was 200."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Cloud, "127.0.0.1", 0, backlog=4096)
    Cloud.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    Cloud.latency_s = arguments.latency
    config, log = folder / "config.toml", folder / "log"
    config.touch(mode=0o600)
    config.write_text(configuration(arguments.projects, arguments.level))
    with log.open("wb") as lines:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "serve", "--config", str(config)),
            env={**os.environ, "PYTHONPATH": str(arguments.source)},
            cwd=folder,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=lines,
        )
    try:
        port = int((await logged_url(log, 60)).rpartition(":")[2])
        for project in range(arguments.projects):
            for _ in range(SLOTS):
                await loop.create_connection(functools.partial(Caller, project), "127.0.0.1", port)
        await asyncio.sleep(WARM_UP_S)
        used_s, answers, at_s = cpu_s(process.pid), Caller.answers, time.monotonic()
        await asyncio.sleep(arguments.seconds)
        used_s, answers = cpu_s(process.pid) - used_s, Caller.answers - answers
        rate = answers / (time.monotonic() - at_s)
        print(
            f"{arguments.projects} projects: {rate:,.0f} requests/s, {Caller.failures} of all failed;"
            f" {rate * arguments.latency / (SLOTS * arguments.projects):.0%} of the slots in use;"
            f" {used_s / answers * 1e6:.0f} us of CPU a request, {rate * used_s / answers:.0%} of a core"
        )
    finally:
        process.kill()
        await process.wait()
        server.close()
    return not Caller.failures


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description="One process whose projects use all their slots.")
    parser.add_argument("--projects", type=int, default=100)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds until the cloud's answer")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--level", default="info", help="of the log")
    parser.add_argument("--source", type=Path, default=ROOT)
    arguments = parser.parse_args()
    forget_http_proxies()
    with tempfile.TemporaryDirectory() as folder:
        return 0 if asyncio.run(measure(arguments, Path(folder))) else 1


if __name__ == "__main__":
    sys.exit(main())
