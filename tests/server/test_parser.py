"""A caller's bytes cut into requests: how they are cut into packets must make no difference."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.server.parser import RequestParser
from proxy.server.request import Connection, Request

FIELDS = b"Host: x\r\nAccept: a\r\n\r\n"
PIECES = [
    *(b"GET /%d HTTP/1.1\r\n" % number + FIELDS for number in range(3)),
    b"GET /old HTTP/1.0\r\n" + FIELDS,
    b"GET /other HTTP/1.1\r\nHost: x\r\nAccept: b\r\n\r\n",
    b"POST /sized HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"POST /chunked/again HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\r\n",
    b"GET /bad target HTTP/1.1\r\n" + FIELDS,
    b"GET /version HTTP/2.0\r\n" + FIELDS,
    FIELDS,
    b"GET /half",
]


class Timer:
    def cancel(self) -> None: ...


class Loop:
    def call_later(self, *_: object) -> Timer:
        return Timer()


class Silent:
    """A connection of which the parser needs hardly anything."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.transport: Any = None

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...


def told(request: Request) -> object:
    head = request.head
    if request.error is not None:
        return type(request.error), str(request.error)
    fields = [field.line for field in head.fields]
    return head.method, head.target, head.minor, fields, request.body.complete, request.body.received


def parser_and_queue() -> tuple[RequestParser, deque[Request]]:
    queue: deque[Request] = deque()
    return RequestParser(cast(Connection, Silent()), queue), queue


def cut(packets: Iterable[bytes]) -> list[object]:
    parser, queue = parser_and_queue()
    requests: list[Request] = []
    for packet in packets:
        parser.feed(packet)
        requests += queue
        queue.clear()
    return [told(request) for request in requests]


@given(st.lists(st.sampled_from(PIECES), max_size=6), st.data())
@example([PIECES[0], PIECES[1], PIECES[1]], None)
@example([PIECES[6], PIECES[7], PIECES[7]], None)
def test_packets_make_no_difference(pieces: list[bytes], data: st.DataObject | None) -> None:
    stream = b"".join(pieces)
    bytewise = cut(stream[place : place + 1] for place in range(len(stream)))
    assert cut(pieces) == bytewise
    if data is not None:
        places = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=4)))
        ends = [0, *places, len(stream)]
        assert cut(stream[a:b] for a, b in itertools.pairwise(ends)) == bytewise


def test_a_request_with_the_fields_of_the_last_one_shares_them() -> None:
    parser, queue = parser_and_queue()
    for piece in PIECES[:3]:
        parser.feed(piece)
    assert [request.head.target for request in queue] == [b"/0", b"/1", b"/2"]
    assert len({id(request.head.section) for request in queue}) == 1


def test_a_full_queue_holds_the_next_requests_back() -> None:
    parser, queue = parser_and_queue()
    for _ in range(20):
        parser.feed(PIECES[0])
    assert len(queue) == 8
    queue.popleft()
    parser.feed(b"")
    assert len(queue) == 8


def test_an_empty_line_that_comes_in_two_is_no_head_that_is_late() -> None:
    parser, queue = parser_and_queue()
    parser.feed(b"\r")
    assert parser.in_head
    parser.feed(b"\n")
    assert not parser.in_head
    assert not queue
