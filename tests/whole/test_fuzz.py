"""Random mutations of requests and of answers: no crash, no other project, no connection out of step.

Each example is made from ``FUZZ_SEED`` and its number alone, and a failure names both. ``FUZZ_EXAMPLES`` sets
how many each test runs on each loop (some hundreds by default), ``FUZZ_FIRST`` the number of the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog
from support.harness import WAIT_S, Gateway, RawServer, TokenServer, gateway, read_message
from support.mutations import (
    ANSWER_WORDS,
    ANSWERS,
    REQUESTS,
    WORDS,
    mutate,
    pieces,
)
from support.strict import Malformed, Parsed, options, parse_request, parse_response, values_of

from proxy.upstream.loop import VIA_NAME

SEED = os.environ.get("FUZZ_SEED", "1")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))

SHOP, OTHER = b"shop", b"zz-other"
NOT_FORWARDED = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade",
    b"http2-settings", b"host", b"authorization", b"proxy-authorization", b"x-csq-project", b"x-csq-api",
    b"x-api-key", b"cookie", b"referer",
}  # fmt: skip


class Caller(asyncio.Protocol):
    """A caller's connection: all bytes that came, and how it ended."""

    def __init__(self) -> None:
        self.data = b""
        self.has_eof = False
        self.is_lost = False
        self.is_reset = False
        self._moved = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._moved.set()

    def eof_received(self) -> bool:
        self.has_eof = True
        self._moved.set()
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        self.is_lost = True
        self.is_reset = exc is not None
        self._moved.set()

    @property
    def has_ended(self) -> bool:
        return self.has_eof or self.is_lost

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def send(self, parts: list[bytes]) -> None:
        for part in parts:
            if self.transport.is_closing():
                break
            self.transport.write(part)
            if part is not parts[-1]:
                await asyncio.sleep(0)

    def finish(self) -> None:
        """Close the sending side."""
        if not self.transport.is_closing():
            with contextlib.suppress(OSError):  # the proxy has reset it
                self.transport.write_eof()


@contextlib.asynccontextmanager
async def caller_of(port: int) -> AsyncIterator[Caller]:
    """One caller's connection; it is reset at the end."""
    _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", port)
    try:
        yield caller
    finally:
        caller.transport.abort()


async def settle() -> None:
    """Let the event loop read all bytes that have arrived."""
    for _ in range(10):
        await asyncio.sleep(0)


class BothClouds(TokenServer):
    """Gives each project its own token and its own cloud."""

    clouds: dict[str, str]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads((await read_message(reader)).body)
        self.requests.append(asked)
        name = asked["client_id"]
        answer = {"access_token": f"token-{name}", "token_type": "bearer", "expires_in": 86400}
        content = json.dumps({**answer, "endpoint": self.clouds[name]}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        )
        await writer.drain()


@dataclass
class Cloud:
    """Parses requests strictly and keeps them; ``answer`` sends the answer."""

    answer: Callable[[Parsed, asyncio.StreamWriter], Any]
    requests: list[Parsed] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    open: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self._serve(reader, writer)
        finally:
            self.open -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, continued = b"", False
        while True:
            try:
                parsed = parse_request(buffer)
            except Malformed as exc:
                self.faults.append(f"{exc}: {buffer!r}")
                return
            if parsed is None:
                if not continued and b"\r\n\r\n" in buffer and b"100-continue" in buffer.lower():
                    continued = True
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                piece = await reader.read(1 << 16)
                if not piece:
                    return
                buffer += piece
                continue
            if buffer.startswith(b"\r"):
                self.faults.append(f"an empty line before {parsed}")
            buffer, continued = buffer[parsed.size :], False
            self.requests.append(parsed)
            await self.answer(parsed, writer)


@dataclass
class Bench:
    """A running proxy with two projects, each with its own cloud, and the errors in it so far."""

    proxy: Gateway
    shop: Cloud
    other: Cloud
    ports: dict[str, int]
    events: list[Any]
    loop_errors: list[dict[str, Any]]
    records: list[logging.LogRecord]

    async def quiet(self) -> None:
        """Wait until no request is in progress and all sent bytes have arrived."""
        async with asyncio.timeout(WAIT_S):
            # The proxy reads the remaining bytes before the end of the connection.
            while any(True for _ in self.proxy.app._listeners.connections()):
                await asyncio.sleep(0)
            while any(project.slots.in_use for project in self.proxy.app.projects()):
                await asyncio.sleep(0)
            # The cloud may still hold a request whose caller has left, on an abandoned connection.
            while self.shop.open + self.other.open > self._held():
                await asyncio.sleep(0)
        await settle()

    def _held(self) -> int:
        pools = self.proxy.app._generation.outward.upstreams._pools.values()
        return sum(len(pool._idle) + len(pool._busy) for pool in pools)

    def check(self) -> None:
        """Assert that no bug appeared, and that each cloud received only requests for its project."""
        assert not self.shop.faults
        assert not self.other.faults
        assert not self.loop_errors
        assert not self.records, [logging.Formatter().format(record) for record in self.records]
        assert not [e for e in self.events if e["event"] == "request_failed_by_bug" or "exc_info" in e]
        self.events.clear()
        for name, cloud in (("shop", self.shop), ("zz-other", self.other)):
            for got in cloud.requests:
                assert got.values(b"authorization") == [b"Bearer token-" + name.encode()]
                assert got.values(b"host") == [b"127.0.0.1:%d" % self.ports[name]]
                assert options(got.lines, b"connection") <= {b"te"}


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "asyncio" or record.levelno >= logging.ERROR:  # debug mode names slow callbacks
            self.records.append(record)


@contextlib.asynccontextmanager
async def bench(shop: Cloud, other: Cloud) -> AsyncIterator[Bench]:
    loop_errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: loop_errors.append(context))
    token = BothClouds()
    handler = _Records()
    logging.getLogger().addHandler(handler)
    try:
        with structlog.testing.capture_logs() as events:
            async with RawServer(shop) as shop_server, RawServer(other) as other_server:
                token.endpoint = shop_server.url
                token.clouds = {"shop": shop_server.url, "zz-other": other_server.url}
                projects = {
                    name: {
                        "client_id": name,
                        "client_secret": "secret-1",
                        "apis": ["metrics"],
                        "default": name == "shop",
                    }
                    for name in token.clouds
                }
                vendor = {"allowed_endpoints": [url.partition("://")[2] for url in token.clouds.values()]}
                async with gateway(token=token, projects=projects, contentsquare=vendor) as proxy:
                    ports = {"shop": shop_server.port, "zz-other": other_server.port}
                    yield Bench(proxy, shop, other, ports, events, loop_errors, handler.records)
                    await settle()
            assert not shop_server.errors
            assert not other_server.errors
    finally:
        logging.getLogger().removeHandler(handler)
        loop.set_exception_handler(None)


# Requests


def origin_form(target: bytes) -> bytes:
    """The origin-form of a target that is in absolute-form with the proxy's authority."""
    if target.startswith(b"/"):
        return target
    _, mark, rest = target.partition(b"://")
    found = re.search(rb"[/?]", rest)
    rest = rest[found.start() :] if mark and found else b""
    return rest if rest.startswith(b"/") else b"/" + rest


def routed(sent: Parsed) -> tuple[bytes, bytes]:
    """The project that a request is for, and the target without its prefix."""
    target = origin_form(sent.target)
    path, mark, query = target.partition(b"?")
    first, slash, rest = path[1:].partition(b"/")
    if first in (SHOP, OTHER):
        return first, b"/" + (rest if slash else b"") + mark + query
    names = sent.values(b"x-csq-project")
    return (names[-1] if names else SHOP), target


def forwarded_lines(sent: Parsed) -> list[bytes]:
    """The field lines that the proxy sends on."""
    drop = NOT_FORWARDED | (options(sent.lines, b"connection") - {b"content-length"})
    if not sent.minor:
        drop |= {b"expect"}
    return [line for line in sent.lines if line.partition(b":")[0].lower() not in drop]


def own_lines(sent: Parsed, token: bytes) -> list[bytes]:
    """The field lines that the proxy adds at the end."""
    lines = [b"Transfer-Encoding: chunked"] if sent.framing == "chunked" else []
    if b"trailers" in options(sent.lines, b"te"):
        lines += [b"TE: trailers", b"Connection: TE"]
    return [*lines, b"Via: 1.%d %b" % (sent.minor, VIA_NAME), b"Authorization: Bearer token-" + token]


def is_forwarded_as(sent: Parsed, got: Parsed, project: bytes) -> bool:
    """Whether the proxy must turn ``sent`` into ``got``, at the cloud of ``project``."""
    wanted, target = routed(sent)
    lines = [*forwarded_lines(sent), *own_lines(sent, project)]
    arrived = got.lines[1:]
    if sent.method == b"OPTIONS":  # Max-Forwards is counted down
        lines, arrived = (
            [line for line in some if not line.lower().startswith(b"max-forwards")]
            for some in (lines, arrived)
        )
    return (wanted, sent.method, target, sent.content, lines) == (
        project,
        got.method,
        got.target,
        got.content,
        arrived,
    ) or b"csq_key=" in sent.target


def split_requests(raw: bytes) -> tuple[list[Parsed], str]:
    """The requests in ``raw`` by the strict parser, and what follows: "nothing", "a part" or "malformed"."""
    found: list[Parsed] = []
    while raw.strip(b"\r\n"):
        try:
            parsed = parse_request(raw)
        except Malformed:
            return found, "malformed"
        if parsed is None:
            return found, "a part"
        found.append(parsed)
        raw = raw[parsed.size :]
    return found, "nothing"


def split_answers(caller: Caller, sent: list[Parsed]) -> list[Parsed]:
    """The final answers that a caller received. Raises Malformed."""
    answers: list[Parsed] = []
    at = 0
    while at < len(caller.data):
        assert not answers or answers[-1].keep_alive, "an answer after the last one"
        method = sent[len(answers)].method if len(answers) < len(sent) else b""
        closed = caller.has_eof and not caller.is_reset
        answer = parse_response(caller.data[at:], method, closed=closed)
        if answer is None:
            break
        at += answer.size
        if answer.status >= 200:
            answers.append(answer)
    return answers


@dataclass
class Echo:
    """Answers with the number of their request in them."""

    served: dict[bytes, tuple[bytes, Parsed]] = field(default_factory=dict)
    count: int = 0

    def of(self, project: bytes) -> Callable[[Parsed, asyncio.StreamWriter], Any]:
        async def answer(got: Parsed, writer: asyncio.StreamWriter) -> None:
            self.count += 1
            serial = b"%d" % self.count
            self.served[serial] = (project, got)
            content = hashlib.sha256(got.target + got.content).hexdigest().encode()
            head = b"HTTP/1.1 200 OK\r\nX-Serial: " + serial
            if got.method == b"HEAD":
                raw = head + b"\r\nContent-Length: 64\r\n\r\n"
            elif self.count % 2:
                raw = head + b"\r\nContent-Length: 64\r\n\r\n" + content
            else:
                raw = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n%b\r\n0\r\n\r\n" % content
            writer.write(raw)
            await writer.drain()

        return answer


def check_answers(echo: Echo, sent: list[Parsed], rest: str, caller: Caller) -> list[Parsed]:
    """Assert that each answer belongs to the request in its place, and that the clouds received no others."""
    answers = split_answers(caller, sent)
    assert len(answers) <= len(sent) + 1
    for place, answer in enumerate(answers):
        serials = answer.values(b"x-serial")
        if not serials:
            assert answer.values(b"proxy-status") or answer.status in (200, 204, 404, 405), answer
            continue
        assert place < len(sent), "an answer to what is no request"
        project, got = echo.served[serials[0]]
        assert is_forwarded_as(sent[place], got, project), (sent[place], got)
        if sent[place].method != b"HEAD":
            assert answer.content == hashlib.sha256(got.target + got.content).hexdigest().encode()
    if rest == "malformed" and len(answers) > len(sent):
        assert answers[-1].status >= 400
        assert not answers[-1].keep_alive
    left = iter(sent)
    for project, got in echo.served.values():
        assert any(is_forwarded_as(one, got, project) for one in left), ("not sent by the caller", got)
    return answers


LAST: list[object] = []
"""The example that is running, for the note of a failure."""


async def fuzz_requests(rng: random.Random, place: Bench, echo: Echo, number: int) -> str:
    """Run one example; its kind.

    Some examples use a connection that has carried a similar request: its parser remembers fields.
    """
    host = place.proxy.host
    raws = [rng.choice(REQUESTS) for _ in range(rng.choice((1, 1, 2)))]
    known = raws[-1].replace(b"@HOST@", host) if rng.random() < 0.4 else b""
    raws[-1] = mutate(rng, raws[-1], WORDS, REQUESTS)
    raw = b"".join(raws).replace(b"@HOST@", host)
    mark = b"GET /shop/v1/mark?n=%d HTTP/1.1\r\nHost: %b\r\n\r\n" % (number, host)
    in_one_go = rng.random() < 0.5
    before, _ = split_requests(known)
    sent, rest = split_requests(known + raw + mark if in_one_go else known + raw)
    LAST[:] = [known, raw, "in one go" if in_one_go else "in turn", rest]
    async with caller_of(place.proxy.port) as caller:
        await caller.send([known])
        await caller.until(lambda: caller.has_ended or len(split_answers(caller, before)) >= len(before))
        if in_one_go:
            await caller.send(pieces(rng, raw + mark))
            caller.finish()
            await caller.until(lambda: caller.has_ended)
        else:
            await caller.send(pieces(rng, raw))
            if rest == "nothing":
                await caller.until(lambda: caller.has_ended or len(split_answers(caller, sent)) >= len(sent))
            elif rest == "malformed":
                caller.finish()
                await caller.until(lambda: caller.has_ended)
            else:
                await settle()
            if rest == "nothing" and not caller.has_ended and split_answers(caller, sent)[-1:] != []:
                sent, rest = split_requests(known + raw + mark)
                await caller.send([mark])
                await caller.until(lambda: caller.has_ended or len(split_answers(caller, sent)) >= len(sent))
        answers = check_answers(echo, sent, rest, caller)
        if sent and rest == "nothing" and not caller.is_reset:
            assert len(answers) == len(sent) or (answers and not answers[-1].keep_alive), (
                "an answer is missing"
            )
            if len(answers) == len(sent) and sent[-1].start in mark:
                assert answers[-1].values(b"x-serial"), "the marked request was not answered by the cloud"
    await place.quiet()
    check_answers(echo, sent, rest, caller)
    return rest if rest != "nothing" else f"{len(answers)} answers"


async def run_examples(
    what: str,
    place: Bench,
    example: Callable[[random.Random, int], Any],
) -> None:
    kinds: dict[str, int] = {}
    for number in range(FIRST, FIRST + EXAMPLES):
        try:
            kind = await example(random.Random(f"{SEED}:{what}:{number}"), number)
            place.check()
        except (AssertionError, Malformed, TimeoutError) as exc:
            exc.add_note(f"FUZZ_SEED={SEED} FUZZ_FIRST={number} FUZZ_EXAMPLES=1 ({what}): {LAST}")
            raise
        kinds[kind] = kinds.get(kind, 0) + 1
        place.shop.requests.clear()
        place.other.requests.clear()
    print(f"seed {SEED}, {EXAMPLES} {what} from {FIRST}:", *(f"{k}: {n};" for k, n in sorted(kinds.items())))


async def test_mutated_requests_crash_nothing_reach_their_own_project_only_and_keep_connections_in_step() -> (
    None
):
    echo = Echo()
    async with bench(Cloud(echo.of(SHOP)), Cloud(echo.of(OTHER))) as place:

        async def example(rng: random.Random, number: int) -> str:
            echo.served.clear()
            return await fuzz_requests(rng, place, echo, number)

        await run_examples("requests", place, example)


# Answers


@dataclass
class MutatedAnswers:
    """Answers requests marked ``fuzz`` with ``parts`` and ``ending``, and others by their target."""

    parts: list[bytes] = field(default_factory=list)
    ending: str = "open"
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, got: Parsed, writer: asyncio.StreamWriter) -> None:
        if b"fuzz" not in got.target:
            writer.write(
                b"HTTP/1.1 200 OK\r\nX-Mark: 1\r\nContent-Length: %d\r\n\r\n" % len(got.target) + got.target
            )
            return
        try:
            for part in self.parts:
                if writer.is_closing():
                    break
                writer.write(part)
                await asyncio.sleep(0)
            if self.ending == "reset" and not writer.is_closing():
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            elif self.ending == "fin":
                writer.close()
        finally:
            self.done.set()
        if self.ending != "open":
            raise ConnectionResetError  # this connection carries no further request


def verdict(raw: bytes, method: bytes, ending: str) -> tuple[str, Parsed | None, bytes]:
    """The strict parser's verdict ("whole", "cut", "malformed"), the answer, and the bytes after it."""
    while True:
        try:
            answer = parse_response(raw, method, closed=ending == "fin")
        except Malformed:
            return "malformed", None, b""
        if answer is None:
            return "cut", None, b""
        raw = raw[answer.size :]
        if answer.status >= 200:
            return "whole", answer, raw


def passed_on(answer: Parsed) -> list[bytes]:
    """The field lines of an answer for a caller that didn't ask for trailers."""
    drop = {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
    drop |= {b"proxy-authenticate", b"proxy-authentication-info", b"trailer"}
    drop |= options(answer.lines, b"connection") - {b"content-length"}
    if answer.status == 204:
        drop |= {b"content-length"}
    return [line for line in answer.lines if line.partition(b":")[0].lower() not in drop]


def check_answer(
    cloud: tuple[str, Parsed | None, bytes], ending: str, caller: Caller, sent: Parsed
) -> Parsed | None:
    """Assert that the caller's answer is whole only if the cloud's was; the answer, None where it was cut."""
    what, answer, rest = cloud
    is_clean = caller.has_eof and not caller.is_reset
    raw = caller.data
    got: Parsed | None = None
    while got is None or got.status < 200:
        got = parse_response(raw, sent.method, closed=is_clean)
        if got is None:
            assert what != "whole" or ending == "reset" or rest, "a whole answer was cut"
            return None
        raw = raw[got.size :]
    assert not raw, "bytes after the end of an answer"
    if got.values(b"proxy-status")[:1] and got.values(b"proxy-status")[0].startswith(b"csq-proxy"):
        assert got.status == 502
        assert what != "whole" or ending == "reset" or rest, ("a whole answer was refused", got.content)
        return got
    assert answer is not None, "a broken answer looks whole"
    assert got.start[9:].rstrip() == answer.start[9:].rstrip()
    assert got.content == answer.content
    expected = passed_on(answer)
    own = {b"transfer-encoding", b"connection", b"keep-alive"}
    if not values_of(expected, b"date"):
        own.add(b"date")
        assert len(got.values(b"date")) == 1
    assert expected == [line for line in got.lines if line.partition(b":")[0].lower() not in own]
    return got


async def fuzz_answers(rng: random.Random, place: Bench, cloud: MutatedAnswers, number: int) -> str:
    """Run one example; its kind."""
    method = rng.choice((b"GET", b"GET", b"GET", b"HEAD", b"POST"))
    version = rng.choice((b"1.1", b"1.1", b"1.1", b"1.0"))
    raw = mutate(rng, rng.choice(ANSWERS), ANSWER_WORDS, ANSWERS)
    if re.search(rb"HTTP/1\.[01] 401", raw):
        return "left out: 401 means a new token"
    ending = rng.choice(("open", "fin", "fin", "reset"))
    judged = verdict(raw, method, ending)
    if ending == "open" and judged[0] != "whole":
        ending = "fin"
        judged = verdict(raw, method, ending)
    cloud.parts, cloud.ending = pieces(rng, raw), ending
    LAST[:] = [raw, ending, method, version, judged]
    cloud.done.clear()
    head = b"%b /shop/v1/fuzz HTTP/%b\r\nHost: %b\r\nContent-Length: 0\r\n\r\n" % (
        method,
        version,
        place.proxy.host,
    )
    sent = parse_request(head)
    assert sent is not None
    async with caller_of(place.proxy.port) as caller:
        await caller.send([head])

        def is_over() -> bool:
            if caller.is_lost or caller.has_eof:
                return True
            what, answer, _ = verdict(caller.data, method, "open")
            return what == "whole" and answer is not None and answer.keep_alive

        await caller.until(is_over)
        if caller.has_eof and not caller.is_lost:
            await settle()  # a reset may follow
        got = check_answer(judged, ending, caller, sent)
        await cloud.done.wait()
        await settle()
        if got is not None and got.keep_alive and not caller.has_ended:
            await ask_for_mark(caller, place, number)
        else:
            async with caller_of(place.proxy.port) as another:
                await ask_for_mark(another, place, number)
    if got is None:
        return f"{judged[0]} -> cut"
    return f"{judged[0]} -> {'refused' if got.values(b'proxy-status') else 'passed on'}"


async def ask_for_mark(caller: Caller, place: Bench, number: int) -> None:
    """Assert that the next request gets its own answer."""
    caller.data = b""
    await caller.send([b"GET /shop/v1/mark?n=%d HTTP/1.1\r\nHost: %b\r\n\r\n" % (number, place.proxy.host)])
    await caller.until(lambda: caller.has_ended or caller.data.endswith(b"/v1/mark?n=%d" % number))
    assert parse_response(caller.data, b"GET", closed=False) is not None, caller.data
    assert b"X-Mark: 1\r\n" in caller.data


async def test_mutated_answers_crash_nothing_never_look_whole_and_leave_the_next_answer_alone() -> None:
    cloud = MutatedAnswers()
    async with bench(Cloud(cloud), Cloud(cloud)) as place:

        async def example(rng: random.Random, number: int) -> str:
            kind = await fuzz_answers(rng, place, cloud, number)
            assert not place.other.requests
            return kind

        await run_examples("answers", place, example)


@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "nothing"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "a part"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "malformed",
        ),
        (b"GET / HTTP/1.1\r\nHost: x\n\r\n\r\n", "malformed"),
    ],
)
def test_the_second_opinion_is_strict(raw: bytes, rest: str) -> None:
    assert split_requests(raw)[1] == rest


async def test_a_caller_that_sends_nonsense_and_leaves_at_once_is_no_error_of_ours() -> None:
    echo = Echo()
    async with bench(Cloud(echo.of(SHOP)), Cloud(echo.of(OTHER))) as place:
        with socket.create_connection(("127.0.0.1", place.proxy.port)) as caller:
            caller.sendall(b"NONSENSE\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            while not place.proxy.app.overview.refusals.all:
                await asyncio.sleep(0)
        await settle()
        place.check()
