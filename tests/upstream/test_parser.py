"""The parser of answers: the same parts reach the sink however the bytes are cut, and none after `stop`."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProtocolViolation, UpstreamError
from proxy.http1 import Field, ResponseHead
from proxy.upstream.parser import ResponseParser

INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


class Sink:
    """Collects the parts of an answer; stops the parser at ``stop_at``, the name of a part."""

    def __init__(self, parser: ResponseParser, stop_at: str = "") -> None:
        self.parser = parser
        self.stop_at = stop_at
        self.interim: list[int] = []
        self.status = 0
        self.content = b""

    def _stop(self, part: str) -> None:
        if part == self.stop_at:
            self.parser.stop()

    def on_informational(self, head: ResponseHead) -> None:
        self.interim.append(head.status)
        self._stop("interim")

    def on_head(self, head: ResponseHead) -> None:
        self.status = head.status
        self._stop("head")

    def on_body(self, data: bytes) -> None:
        assert data
        self.content += data
        self._stop("body")

    def on_end(self, trailers: list[Field]) -> None: ...

    def on_failure(self, error: UpstreamError) -> None: ...

    def on_flush(self) -> None: ...

    def on_writable(self, *, writable: bool) -> None: ...


def fed(
    *pieces: bytes, is_head_request: bool = False, stop_at: str = ""
) -> tuple[ResponseParser, Sink, list[bool]]:
    """The parser and the sink after these pieces, and for each piece whether it completed the answer."""
    parser = ResponseParser()
    parser.start(is_head_request=is_head_request)
    sink = Sink(parser, stop_at)
    return parser, sink, [parser.feed(piece, sink) for piece in pieces]


@given(
    st.sampled_from([LENGTH, CHUNKED, UNTIL_CLOSE, EMPTY]),
    st.integers(0, 2),
    st.lists(st.integers(1, 120), max_size=6),
)
def test_an_answer_is_read_alike_however_it_is_cut(answer: bytes, interim: int, cuts: list[int]) -> None:
    message = INTERIM * interim + answer
    ends = [0, *sorted({min(cut, len(message)) for cut in cuts} | {len(message)})]
    parser, sink, completed = fed(*(message[a:b] for a, b in itertools.pairwise(ends)))
    assert sink.interim == [103] * interim
    assert (sink.status, sink.content) == ((204, b"") if answer is EMPTY else (200, b"hello"))
    assert completed == [False] * (len(completed) - 1) + [answer is not UNTIL_CLOSE]
    assert parser.ends_at_close == (answer is UNTIL_CLOSE)
    assert [field.line for field in parser.trailers] == ([b"X-Sum: 1"] if answer is CHUNKED else [])


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, EMPTY])
def test_bytes_after_the_end_are_a_violation(answer: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="after the end"):
        fed(answer + b"x")


def test_an_answer_to_head_has_no_content() -> None:
    head, _, _ = LENGTH.partition(b"hello")
    _, sink, completed = fed(head, is_head_request=True)
    assert (sink.status, sink.content, completed) == (200, b"", [True])


@pytest.mark.parametrize("stop_at", ["interim", "head", "body"])
@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, UNTIL_CLOSE])
def test_nothing_reaches_the_sink_after_stop(answer: bytes, stop_at: str) -> None:
    _, sink, _ = fed(INTERIM + answer[:-1], answer[-1:], stop_at=stop_at)
    assert sink.interim == [103]
    assert sink.status == (0 if stop_at == "interim" else 200)
    assert (sink.content == b"") == (stop_at != "body")
    assert sink.content in (b"", b"hell", b"hello")


def test_one_answer_after_the_other_is_read() -> None:
    parser = ResponseParser()
    for answer in (LENGTH, CHUNKED, EMPTY, LENGTH):
        sink = Sink(parser)
        parser.start(is_head_request=False)
        assert parser.feed(answer, sink)
        assert parser.keep_alive
        assert (len(parser.trailers) == 1) == (answer is CHUNKED)
