"""The targets of the fuzzer: each takes any bytes and raises where an invariant is broken."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

from support.codings import CODINGS
from support.mutations import ANSWER_WORDS, ANSWERS, REQUESTS, WORDS, pieces
from support.readers import BETWEEN, PREFIXES, SPELLINGS, SUFFIXES, VALUES, projects_read
from support.readers import TARGETS as GRAMMAR
from support.strict import Malformed, parse_request, parse_response
from support.token_answers import GOOD

from proxy.errors import BadTarget, Forbidden, ProtocolViolation, ProxyError, TokenFetchError, UpstreamError
from proxy.foreign import gives_away, shown
from proxy.gateway import policy
from proxy.http1 import Field, ResponseHead, parse_request_head
from proxy.logs.leaks import LeakSearch
from proxy.server.parser import RequestParser
from proxy.server.request import Request
from proxy.tokens.answer import MAX_LIFETIME_S, TokenAnswer, failure_of, lease_of, quotable
from proxy.tokens.lease import Lease
from proxy.upstream.parser import ResponseParser

_PRIVATE: Final = ("an-id-5f1c", "hush-hush-1234567890")
_STATUSES: Final = (200, 200, 200, 200, 400, 401, 403, 429, 500, 502)
_LONG_SECRET: Final = _PRIVATE[1].encode()
_LEAKS: Final = LeakSearch()
_LEAKS.add(_PRIVATE[1])
_LEAKS.add("short")
_CUTS_BYTES: Final = 2
"""The first bytes of an input decide how the others are cut; no engine needs to know that."""
_LONGEST_OF_GRAMMAR: Final = 200
"""Bytes of a target; the pattern of the grammar takes too long for more."""


def _cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The bytes of a connection, and a way to cut them into packets."""
    stream = data[_CUTS_BYTES:]
    return stream, pieces(random.Random(data[:_CUTS_BYTES]), stream)


# The request parser


@dataclass
class _Taken:
    """A sink of one request's content, and that request."""

    request: Request
    content: bytes = b""
    trailers: list[bytes] = field(default_factory=list)

    def on_request_body(self, data: bytes) -> None:
        assert data
        self.content += data

    def on_request_end(self, trailers: list[Field]) -> None:
        self.trailers = [one.line for one in trailers]

    def on_request_broken(self, error: ProxyError) -> None:
        pass

    def told(self) -> object:
        """All that must not depend on the packets.

        Of a request that can't be read, the error may: packets decide which fault is found first.
        """
        head, body = self.request.head, self.request.body
        if self.request.error is not None:
            assert isinstance(self.request.error, ProxyError)
            return "refused"
        lines = [one.line for one in head.fields]
        if body.broken is not None:
            assert isinstance(body.broken, ProxyError)
            return head.method, head.target, lines, "broken"
        return head.method, head.target, head.minor, lines, body.complete, self.content, self.trailers


def _requests_of(packets: list[bytes]) -> list[_Taken]:
    timer = SimpleNamespace(cancel=lambda: None)
    connection: Any = SimpleNamespace(
        loop=SimpleNamespace(call_later=lambda *_: timer),
        transport=None,
        pause_body=lambda: None,
        resume_body=lambda: None,
    )
    queue: deque[Request] = deque()
    parser = RequestParser(connection, queue)
    taken: list[_Taken] = []
    for packet in packets:
        parser.feed(packet)
        while queue:
            taken.append(_Taken(queue.popleft()))
            taken[-1].request.body.attach(taken[-1])
            if not queue:
                parser.feed(b"")
    return taken


def requests(data: bytes) -> None:
    """A caller's bytes: the same requests however they are cut, those that the strict parser finds."""
    stream, packets = _cut(data)
    taken = _requests_of([stream] if stream else [])
    assert [one.told() for one in taken] == [one.told() for one in _requests_of(packets)]
    for one in taken:
        head, body = one.request.head, one.request.body
        if one.request.error is not None:
            break  # the strict parser knows fewer reasons
        expected, fault = None, ""
        try:
            expected = parse_request(stream)
        except Malformed as exc:
            fault = str(exc)
        # The proxy may refuse an incomplete request earlier than the strict parser.
        assert body.complete == (expected is not None), fault
        if expected is None:
            break
        assert (head.method, head.target) == (expected.method, expected.target)
        assert [line.line for line in head.fields] == expected.lines
        assert one.content == expected.content
        assert one.trailers == expected.trailers
        stream = stream[expected.size :]


# The parser of answers


@dataclass
class _Sink:
    """Collects the parts of answers."""

    heads: list[object] = field(default_factory=list)
    status: int = 0
    content: bytes = b""

    def on_informational(self, head: ResponseHead) -> None:
        self.heads.append((head.status, [one.line for one in head.fields]))

    def on_head(self, head: ResponseHead) -> None:
        self.on_informational(head)
        self.status = head.status

    def on_body(self, data: bytes) -> None:
        self.content += data

    def on_end(self, trailers: list[Field]) -> None: ...

    def on_failure(self, error: UpstreamError) -> None: ...

    def on_flush(self) -> None: ...

    def on_writable(self, *, writable: bool) -> None: ...


def _answer_of(packets: list[bytes], *, to_head: bool) -> tuple[object, _Sink, str]:
    """What must not depend on the packets, the sink, and how the answer ended so far."""
    parser, sink = ResponseParser(), _Sink()
    parser.start(is_head_request=to_head)
    ending = "incomplete"
    for packet in packets:
        if ending == "complete":
            return "broken", sink, "broken"
        try:
            ending = "complete" if parser.feed(packet, sink) else ending
        except ProtocolViolation:
            return "broken", sink, "broken"
    if ending == "incomplete" and parser.ends_at_close:
        ending = "until close"
    return (ending, sink.heads, sink.content, [one.line for one in parser.trailers]), sink, ending


def responses(data: bytes) -> None:
    """A cloud's bytes: the same answer however they are cut, and none that the strict parser refuses."""
    to_head = data[:1] < b"\x20"
    stream, packets = _cut(data)
    told, sink, ending = _answer_of([stream] if stream else [], to_head=to_head)
    assert told == _answer_of(packets, to_head=to_head)[0]
    if ending not in ("complete", "until close"):
        return
    expected, rest = None, stream
    while expected is None or expected.status < 200:
        try:
            expected = parse_response(rest, b"HEAD" if to_head else b"GET", closed=True)
        except Malformed as exc:
            raise AssertionError(f"a malformed answer was accepted: {exc}") from None
        assert expected is not None, "an incomplete answer counts as complete"
        rest = rest[expected.size :]
    assert (sink.status, sink.content, rest) == (expected.status, expected.content, b"")


# The rules about targets


@dataclass
class _Limits:
    name: str = "shop"
    read_only: bool = True
    project_id: int | None = 42


def rules(data: bytes) -> None:
    """A target passes, or is refused; both rules together refuse what one of them refuses.

    Where a project's number is limited, no lenient server reads another one in a target that passes.
    """
    try:
        head = parse_request_head(b"GET %b HTTP/1.1\r\nHost: h" % data)
    except ProxyError:
        return
    verdicts = []
    for limits in (_Limits(), _Limits(read_only=False), _Limits(project_id=None)):
        try:
            changes = policy.may_change_data(head, head.target)
            policy.check(head, head.target, limits, None, changes=changes)
        except (BadTarget, Forbidden):
            verdicts.append(False)
        else:
            verdicts.append(True)
    both, by_number, by_reading = verdicts
    assert both == (by_number and by_reading)
    if by_number and len(data) < _LONGEST_OF_GRAMMAR and GRAMMAR.fullmatch(data.decode("latin-1")):
        assert set().union(*projects_read(data).values()) <= {_Limits.project_id}


# The token endpoint's answer


def tokens(data: bytes) -> None:
    """An answer: a lease that can be used, or `TokenFetchError`; no message repeats the credentials."""
    answer = TokenAnswer(
        _STATUSES[data[0] % len(_STATUSES)] if data else 200,
        {"Retry-After": data[1:12].decode("latin-1"), "Date": "Sun, 06 Nov 1994 08:49:37 GMT"},
        data[1:],
        sent_at=1000.0,
        sent_at_wall=1_800_000_000.0,
    )
    answer.repeats(_PRIVATE[1])
    try:
        if (failure := failure_of(answer, "https://auth", _PRIVATE)) is not None:
            raise failure
        lease = lease_of(
            answer,
            allowed_endpoints=("*.contentsquare.com",),
            scope="metrics",
            project_id=None,
            private=_PRIVATE,
        )
    except TokenFetchError as exc:
        error = exc
    else:
        _check_lease(lease)
        return
    assert error.retry_after_s is None or error.retry_after_s >= 0
    assert shown(str(error)) == str(error)
    assert not gives_away(str(error), _PRIVATE)


def _check_lease(lease: Lease) -> None:
    assert 0 < lease.lifetime_s <= MAX_LIFETIME_S
    assert lease.access_token.isascii()
    assert lease.access_token.isprintable()
    assert lease.origin.is_tls
    assert lease.origin.host.endswith(".contentsquare.com")


def _with_secret(data: bytes) -> tuple[str, bytes]:
    """The secret in a coding, which the first byte chooses, and a text around it, cut at the second one."""
    coded = list(CODINGS.values())[data[0] % len(CODINGS)](_PRIVATE[1])
    text = data[_CUTS_BYTES:]
    return coded, b"%b/%b&%b" % (text[: data[1]], coded.encode(), text[data[1] :])


def quotes(data: bytes) -> None:
    """A foreign text: fit to be shown, or withheld, and never a part of the credentials in any coding."""
    said = quotable(data.decode("utf-8", "replace"), _PRIVATE)
    assert said.isprintable()
    assert not gives_away(said, _PRIVATE)
    if len(data) >= _CUTS_BYTES:
        coded, text = _with_secret(data)
        assert coded not in quotable(text.decode("utf-8", "replace"), _PRIVATE)


def leaks(data: bytes) -> None:
    """A text, as a target and as field lines: a secret in it is found as it is, in any case and coding."""
    for found in (_LEAKS.is_in_target(data), _LEAKS.is_in_fields(data)):
        assert found or _LONG_SECRET not in data.lower()
    if len(data) >= _CUTS_BYTES:
        assert _LEAKS.is_in_target(_with_secret(data)[1])


@dataclass(frozen=True)
class Target:
    """A function to fuzz, the inputs to begin with, words of its grammar, and the longest input in bytes."""

    run: Callable[[bytes], None]
    seeds: list[bytes]
    words: list[bytes]
    max_bytes: int


def _started(seeds: list[bytes]) -> list[bytes]:
    return [start + seed for seed in seeds for start in (b"\xff\0", b"\xff\x01")]


def _token_seeds() -> list[bytes]:
    failed = {"error": "invalid_client", "error_description": f"{_PRIVATE[1]} is wrong"}
    ends = ("https://[::1]:1/x", "https://evilcontentsquare.com", "https://contentsquare.com.evil.example")
    bodies = [GOOD, failed, {**GOOD, "expires_in": 1}, *({**GOOD, "endpoint": end} for end in ends)]
    texts = [json.dumps(body).encode() for body in bodies]
    return [bytes((status,)) + text for text in texts for status in (0, 4, 9)]


_NUMBERS = [b"0", b"-1", b"1e999", b"NaN", b"null", b'"1"', b"{}"]
_HOSTED = [seed.replace(b"@HOST@", b"h") for seed in REQUESTS]
TARGETS: Final = {
    "requests": Target(
        requests, _started([*_HOSTED, b"".join(_HOSTED[:6]), b"".join(_HOSTED[13:19])]), WORDS, 1 << 12
    ),
    "responses": Target(
        responses, [start + seed for seed in ANSWERS for start in (b"\xff\0", b"\0\0")], ANSWER_WORDS, 1 << 12
    ),
    "policy": Target(
        rules,
        [spelling.encode() for spelling in SPELLINGS],
        [
            b"projectId",
            b"projects",
            b"%25",
            b"%u0070",
            b"[",
            b"]",
            b"&",
            b";",
            b"=42",
            b"=43",
            b"_method",
            *(word.encode() for word in (*BETWEEN, *PREFIXES, *SUFFIXES) if word),
            *(value.format("43").encode() for value in VALUES),
        ],
        1 << 14,
    ),
    "tokens": Target(
        tokens,
        _token_seeds(),
        [
            *(json.dumps(word).encode() for word in ("access_token", "expires_in", "endpoint", "error")),
            *_NUMBERS,
            *(b"https://", b".contentsquare.com", b"evil", b"@", b"#", b"\\", b"\\u002e"),
        ],
        1 << 11,
    ),
    "leaks": Target(
        leaks,
        [b"/v1/x?a=" + _LONG_SECRET, b"/v1/x?a=short", b"X-Api-Key: short\r\nX-A: &#104;ush", b"a=%2568ush"],
        [_LONG_SECRET, b"%68", b"%25", b"&#x68;", b"\\u0068", b"\\", b"aHVzaC1odXNoLQ"],
        1 << 14,
    ),
    "quotes": Target(
        quotes,
        [
            _PRIVATE[1].encode(),
            _PRIVATE[1].encode().hex().encode(),
            _PRIVATE[1][::-1].encode(),
            b"\x1b[31m%68ush",
        ],
        [b"\\u0068", b"&#104;", b"%68", b"aHVzaC1odXNoLQ"],
        1 << 10,
    ),
}
