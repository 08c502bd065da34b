"""Searches for the requests that cost the rules and parsers the most CPU time for their length.

    python tests/long/worst_case/run.py --seconds 600 [--part policy|leaks|fields|heads|chunks]

Hypothesis looks for inputs of up to the greatest size that take the most CPU time for each byte. Prints the
worst input of each part as its units, and exits with 1 where one takes more than its 5 ms: a request, or a
read of 64 KiB of chunks. Times are those of a quiet machine: see `scale`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[3]))

from proxy.errors import ProtocolViolation, ProxyError
from proxy.gateway import policy
from proxy.http1 import ChunkedDecoder, parse_request_head
from proxy.http1.parser import MAX_HEAD_BYTES, MAX_LINE_BYTES
from proxy.logs.leaks import LeakSearch

BUDGET_S = 0.005
READ_BYTES = 64 * 1024
TRIES = 3
"""The least of so many measurements counts."""
HEAD = parse_request_head(b"GET / HTTP/1.1\r\nHost: h")
LEAKS = LeakSearch()
for number in range(300):
    LEAKS.add(hashlib.sha256(b"%d" % number).hexdigest())  # secrets at random: a stranger knows no part
LEAKS.add("short-one")


@dataclass
class Limited:
    """A project with a number; a read-only one would refuse some requests before their numbers are read."""

    name: str = "shop"
    read_only: bool = False
    project_id: int | None = 42


def judge(target: bytes) -> None:
    """All rules about a target, in the gateway's order; none ends the request early."""
    changes = policy.may_change_data(HEAD, target)
    with contextlib.suppress(ProxyError):
        policy.check_secrets(HEAD, target)
    with contextlib.suppress(ProxyError):
        policy.check(HEAD, target, Limited(), None, changes=changes)


def parse(lines: bytes) -> None:
    """A whole head."""
    with contextlib.suppress(ProxyError):
        parse_request_head(b"GET /v1/x HTTP/1.1\r\nHost: h" + lines)


def decode(data: bytes) -> None:
    """One read of chunks."""
    with contextlib.suppress(ProtocolViolation):
        ChunkedDecoder().feed(data)


@dataclass(frozen=True)
class Part:
    """A function, the start of its input, the words that inputs are made of, and their size in bytes."""

    run: Callable[[bytes], object]
    start: bytes
    words: list[bytes]
    size: int


TARGET_WORDS = [
    *b"projectId project projects method _method http override oauth token me =42 =43 42".split(),
    *b"& ; ? # / // /../ /./".split(),
    *b"\\ . _ - + % %25 %2525 %26 %2526 %3b %70 %2570 %u0070 %uff50 \\u0070".split(),
    *b"%c1 %b0 %cc%81 %ef%bd%90 %00".split(),
    *b'[ ] { } " , : ( ) \xff \xc1\xb0'.split(),
    *("\uff50".encode(), "\u0301\u0323".encode()),
]
LEAK_WORDS = [
    *b"6b86b273 ff34fce1 short-one =short-one & &# &#115; &#x73; &#0 + - _ /".split(),
    *b"\\ \\x73 \\u0073 % %25 %2525 %73 %2573 %u0073 %5C c2VjcmV0 736563726574".split(),
]
HEAD_WORDS = [
    b"\r\nA: b",
    b"\r\nx-a:",
    b"\r\nConnection: ",
    b"a,",
    b", ",
    b" ",
    b"\t",
    b"\r\nTE: ",
    b"\r\nHost:",
]
CHUNKS = [
    *(
        b"1\r\nx\r\n",
        b"01\r\nx\r\n",
        b"1;\r\nx\r\n",
        b"1;a=b\r\nx\r\n",
        b"1 ;\r\nx\r\n",
        b"0\r\n",
        b"A: b\r\n",
    ),
    *(b"F\r\n" + b"x" * 15 + b"\r\n", b"10\r\n" + b"x" * 16 + b"\r\n", b"0" * 65 + b"1\r\nx\r\n"),
    b"1;" + b"a" * 65 + b"\r\nx\r\n",
]
PARTS = {
    "policy": Part(judge, b"/v1/", TARGET_WORDS, MAX_LINE_BYTES),
    "leaks": Part(LEAKS.is_in_target, b"/v1/x?a=", LEAK_WORDS, MAX_LINE_BYTES),
    "fields": Part(
        LEAKS.is_in_fields, b"A: ", [*LEAK_WORDS, b"\r\nX-A: ", b"\r\nx:short-one"], MAX_HEAD_BYTES
    ),
    "heads": Part(parse, b"", HEAD_WORDS, MAX_HEAD_BYTES - 100),
    "chunks": Part(decode, b"", CHUNKS, READ_BYTES),
}


def cpu_s(run: Callable[[bytes], object], data: bytes, tries: int = TRIES) -> float:
    """The CPU time of one call, in seconds."""
    taken = []
    for _ in range(tries):
        began = time.thread_time()
        run(data)
        taken.append(time.thread_time() - began)
    return min(taken)


def scale() -> float:
    """How many times slower than a quiet machine this one is now."""
    return max(1.0, cpu_s(lambda _: [number * number for number in range(100_000)], b"", 5) / 0.0045)


def made(part: Part, units: list[bytes]) -> bytes:
    """The input that repeats these units up to the greatest size."""
    unit = b"".join(units)
    return part.start + unit * (part.size // len(unit))


def search(name: str, seconds: float) -> bool:
    """Look for the worst input of a part; whether it is within the budget."""
    part = PARTS[name]
    worst: tuple[float, list[bytes]] = (0.0, [])
    count, ends_at = 0, time.monotonic() + seconds

    @hypothesis.settings(
        max_examples=300, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(st.lists(st.sampled_from(part.words), min_size=1, max_size=8))
    def once(units: list[bytes]) -> None:
        nonlocal worst, count
        if time.monotonic() > ends_at:
            return
        count += 1
        data = made(part, units)
        taken_s = cpu_s(part.run, data)
        hypothesis.target(1e9 * taken_s / len(data))
        worst = max(worst, (taken_s, units))

    while time.monotonic() < ends_at:
        once()
    taken_s = cpu_s(part.run, made(part, worst[1]), 20) / scale()
    print(f"{name}: {count} inputs, worst {1e3 * taken_s:.2f} ms of CPU: {worst[1]}", flush=True)
    return taken_s <= BUDGET_S


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    names = [options.part] if options.part else list(PARTS)
    good = [search(name, options.seconds / len(names)) for name in names]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
