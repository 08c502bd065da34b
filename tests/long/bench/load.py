"""The load: wrk with a new URL for each request, and single bulk transfers; what it says as figures."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import HOST, pinned
from bench.upstream import CONTENT_BYTES, DOWNLOAD_PATH, GIB, TOKEN, UPLOAD_PATH, connect

CALLER_FIELDS = {
    "User-Agent": "python-requests/2.32.5",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Accept-Language": "en-GB,en;q=0.8,fr;q=0.6",
    "Connection": "keep-alive",
    "Cache-Control": "no-cache",
    "X-Request-Id": "7f3c2a90-5b1e-4a47-9d5e-0f6f2d1c8b3a",
    "X-Correlation-Id": "report-2026-10-18-weekly",
    "Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "Cookie": "session=3f9d1f0c2e7a4b58; theme=light",
}
"""Ten, as a program of a company sends them; Host, and what frames a POST, come on top."""

_CHUNK = 1 << 20
_MARK = "BENCH "
_SCRIPT = """
local count, before, after = 0, "", ""
function init(args)
  local method, run, authorization = args[1], args[2], args[3] or ""
  local body = method == "POST" and string.rep("b", {content_bytes}) or ""
  local framing = method == "POST"
    and "Content-Type: application/json\\r\\nContent-Length: " .. #body .. "\\r\\n" or ""
  before = method .. " /v1/metrics/" .. run .. "-"
  after = "?period=last-week HTTP/1.1\\r\\nHost: " .. wrk.headers["Host"] .. "\\r\\n{fields}"
    .. authorization .. framing .. "\\r\\n" .. body
end
function request()
  count = count + 1
  return before .. count .. after
end
function done(summary, latency)
  local e = summary.errors
  print(string.format(
    '{mark}{{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "refused": %d, "broken": %d}}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


class LoadError(Exception):
    """The load could not be run, or its target didn't do its job."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load: a method, and how many connections send it at once."""

    method: str
    connections: int

    @property
    def title(self) -> str:
        size = " 1 KiB" if self.method == "POST" else ""
        return f"{self.method}{size}, {self.connections} connection{'s' * (self.connections > 1)}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What wrk saw. ``refused`` are statuses of 400 and more, ``broken`` failed connections."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a load goes: a proxy, or the upstream itself, which is to be given the token."""

    port: int
    is_tls: bool = False
    authorized: bool = False

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{HOST}:{self.port}"


def write_script(folder: Path) -> Path:
    """The script that wrk makes its requests with."""
    fields = "".join(f"{name}: {value}\\r\\n" for name, value in CALLER_FIELDS.items())
    path = folder / "load.lua"
    path.write_text(_SCRIPT.format(content_bytes=CONTENT_BYTES, fields=fields, mark=_MARK))
    return path


def run_wrk(script: Path, target: Target, work: Workload, *, seconds: float, run: str, core: int) -> Sample:
    """Load ``target`` for whole seconds; ``run`` makes the URLs differ from those of other runs."""
    command = ["wrk", "-t1", f"-c{work.connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    arguments = [work.method, run, *([f"Authorization: Bearer {TOKEN}\r\n"] if target.authorized else [])]
    done = subprocess.run(
        pinned(core, [*command, target.url, "--", *arguments]),
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=False,
    )
    if done.returncode:
        raise LoadError(f"wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")
    return parse_wrk(done.stdout)


def parse_wrk(text: str) -> Sample:
    """The figures in what wrk printed. Raises LoadError where there are none."""
    for line in text.splitlines():
        if line.startswith(_MARK):
            return Sample(**json.loads(line.removeprefix(_MARK)))
    raise LoadError(f"wrk said nothing of its requests: {text[-500:]}")


def fetch(target: Target, path: str = "/v1/metrics/first") -> tuple[int, int]:
    """One request as the load makes it: the answer's status and the length of its content."""
    with connect(target.port) as sock:
        return ask(sock, target, path)


def ask(sock: socket.socket, target: Target, path: str) -> tuple[int, int]:
    """As `fetch`, on an open connection."""
    sock.sendall(_head("GET", path, target))
    status, length, begun = _answer_head(sock)
    return status, begun + _drain(sock, length - begun)


@contextlib.contextmanager
def held_open(target: Target, count: int) -> Iterator[None]:
    """That many callers' connections, each after one answer, within."""
    with contextlib.ExitStack() as stack:
        for number in range(count):
            sock = stack.enter_context(connect(target.port))
            ask(sock, target, f"/v1/metrics/held-{number}")
        yield


def download(target: Target) -> None:
    """Take 1 GiB from the upstream."""
    with connect(target.port) as sock:
        sock.sendall(_head("GET", DOWNLOAD_PATH, target))
        status, length, begun = _answer_head(sock)
        if (status, length) != (200, GIB) or begun + _drain(sock, GIB - begun) != GIB:
            raise LoadError(f"the download ended early, or with status {status}")


def upload(target: Target) -> None:
    """Give 1 GiB to the upstream."""
    chunk = bytes(_CHUNK)
    with connect(target.port) as sock:
        sock.sendall(_head("PUT", UPLOAD_PATH, target, f"Content-Length: {GIB}"))
        for _ in range(GIB // _CHUNK):
            sock.sendall(chunk)
        status, _, _ = _answer_head(sock)
        if status != 200:
            raise LoadError(f"the upload was answered with {status}")


def _head(method: str, path: str, target: Target, *lines: str) -> bytes:
    fields = [f"{name}: {value}" for name, value in CALLER_FIELDS.items()]
    start = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{target.port}"]
    return "\r\n".join([*start, *fields, *lines, "\r\n"]).encode()


def _answer_head(sock: socket.socket) -> tuple[int, int, int]:
    """Status, Content-Length, and how much content has come with the head."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = sock.recv(_CHUNK)
        if not more:
            raise LoadError("the connection was closed before an answer")
        received += more
    head, _, content = received.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(head.split()[1]), int(value), len(content)
    raise LoadError(f"an answer without its Content-Length: {head[:200]!r}")


def _drain(sock: socket.socket, length: int) -> int:
    """Read and forget ``length`` bytes, or what comes of them."""
    buffer = memoryview(bytearray(_CHUNK))
    left = length
    while left and (count := sock.recv_into(buffer[: min(left, _CHUNK)])):
        left -= count
    return length - left
