"""Heads of requests and answers: what is refused, and that what is accepted means one thing only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import (
    BadRequest,
    FieldsTooLarge,
    NotImplementedCoding,
    ProtocolViolation,
    TargetTooLong,
    VersionNotSupported,
)
from proxy.http1 import RequestHead, ResponseHead, parse_request_head, parse_response_head
from proxy.http1.fields import MAX_FIELDS
from proxy.http1.parser import MAX_LINE_BYTES

GET = b"GET / HTTP/1.1\r\nHost: x"
OK = b"HTTP/1.1 200 OK"


def request(*lines: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((GET, *lines)))


def response(*lines: bytes, start: bytes = OK) -> ResponseHead:
    return parse_response_head(b"\r\n".join((start, *lines)))


# Request heads


def test_a_request_head_keeps_its_fields_as_they_came_and_compares_them_in_lower_case() -> None:
    head = parse_request_head(b"PurGe /a?b=%7E HTTP/1.1\r\nhOsT: x:1\r\nX-A:  v \t\r\nx-a:\r\nX-Latin: \xe9")
    assert (head.method, head.target, head.minor) == (b"PurGe", b"/a?b=%7E", 1)
    assert head.hosts == [b"x:1"]
    assert [field.name for field in head.fields] == [b"host", b"x-a", b"x-a", b"x-latin"]
    assert [field.value for field in head.fields] == [b"x:1", b"v", b"", b"\xe9"]
    assert [field.line for field in head.fields] == [b"hOsT: x:1", b"X-A:  v \t", b"x-a:", b"X-Latin: \xe9"]


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET /a b HTTP/1.1",
        b"GET / http/1.1",
        b"GET / HTTP/1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/1.1\x00",
        b"G(T / HTTP/1.1",
        b"\xc3\xa9 / HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET / HTTP/1.\xb2",
    ],
)
def test_a_malformed_request_line_is_a_400(start: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request_head(start + b"\r\nHost: x")
    assert caught.value.status == 400


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"2.1", b"3.0", b"9.9", b"0.0"])
def test_another_version_is_a_505(version: bytes) -> None:
    with pytest.raises(VersionNotSupported) as caught:
        parse_request_head(b"GET / HTTP/" + version + b"\r\nHost: x")
    assert caught.value.status == 505


@pytest.mark.parametrize(
    "line",
    [
        b"no colon",
        b": no name",
        b"Name : blank before the colon",
        b" Folded: as obs-fold",
        b"\tFolded: as obs-fold",
        b"Na(me: x",
        b"N\xc3\xa4me: x",
        b"Name: a\x00b",
        b"Name: a\rb",
        b"Name: a\nb",
        b"Name: a\x0bb",
        b"Name: a\x7fb",
        b"",
    ],
)
def test_a_malformed_field_line_is_refused_both_ways(line: bytes) -> None:
    with pytest.raises(BadRequest):
        request(line)
    with pytest.raises(ProtocolViolation):
        response(line)


@pytest.mark.parametrize(
    "lines",
    [
        [b"Content-Length: "],
        [b"Content-Length: +1"],
        [b"Content-Length: -1"],
        [b"Content-Length: 1_0"],
        [b"Content-Length: 0x1"],
        [b"Content-Length: 1.0"],
        [b"Content-Length: 1, 1"],
        [b"Content-Length: \xb2"],
        [b"Content-Length: 1000000000000000000"],
        [b"Content-Length: 1", b"Content-Length: 1"],
        [b"Content-Length: 1", b"content-length: 2"],
        [b"Content-Length: 1", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 1"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: chunked, gzip"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: chunked;a=b"],
        [b"Transfer-Encoding: \x0bchunked"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: "],
    ],
)
def test_framing_that_can_be_read_in_two_ways_is_refused_both_ways(lines: list[bytes]) -> None:
    with pytest.raises(BadRequest):
        request(*lines)
    with pytest.raises(ProtocolViolation):
        response(*lines)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"], 501),
        ([b"Transfer-Encoding: x-odd;a=b ,\tCHUNKED"], 501),
        ([b"Transfer-Encoding: gzip"], 400),
        ([b"Transfer-Encoding: chunked, gzip"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"], 400),
        ([b"Transfer-Encoding: chunked, chunked"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: gzip, chunked,"], 400),
        ([b"Transfer-Encoding: , chunked"], 400),
        ([b"Transfer-Encoding: @, chunked"], 400),
    ],
)
def test_an_unknown_coding_before_chunked_is_a_501_and_any_other_is_a_400(
    lines: list[bytes], status: int
) -> None:  # RFC 9112, sections 6.1 and 6.3
    with pytest.raises(BadRequest) as caught:
        request(*lines)
    assert caught.value.status == status
    assert isinstance(caught.value, NotImplementedCoding) == (status == 501)
    with pytest.raises(ProtocolViolation):
        response(*lines)


@pytest.mark.parametrize("minor", range(1, 10))
def test_a_later_minor_version_is_read_as_1_1(minor: int) -> None:  # RFC 9110, section 2.5
    head = parse_request_head(b"GET / HTTP/1.%d\r\nHost: x" % minor)
    assert (head.minor, head.keep_alive) == (1, True)
    with pytest.raises(BadRequest):
        parse_request_head(b"GET / HTTP/1.%d" % minor)  # Host is needed as in 1.1
    answer = response(start=b"HTTP/1.%d 299 Odd" % minor)
    assert (answer.minor, answer.keep_alive, answer.status_line) == (1, True, b"HTTP/1.1 299 Odd")


def test_transfer_encoding_in_http_1_0_is_refused_both_ways() -> None:
    with pytest.raises(BadRequest):
        parse_request_head(b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked")
    with pytest.raises(ProtocolViolation):
        response(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK")


def test_framing_is_told_by_fields() -> None:
    assert (request().chunked, request().content_length) == (False, None)
    assert request(b"Content-Length: 0012").content_length == 12
    assert request(b"Transfer-Encoding: CHUNKED").chunked
    assert response(b"Transfer-Encoding:\tchunked ").chunked
    assert response(b"Content-Length: 0").content_length == 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a",
        b"GET / HTTP/1.0\r\nHost: a\r\nhost: b",
    ],
)
def test_no_host_or_several_is_refused(head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request_head(head)


def test_http_1_0_may_come_without_host() -> None:
    assert parse_request_head(b"GET / HTTP/1.0").hosts == []


@pytest.mark.parametrize(
    ("version", "lines", "kept"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: close"], False),
        (b"1.1", [b"Connection: x, Close"], False),
        (b"1.1", [b"Connection: x", b"Connection: CLOSE"], False),
        (b"1.1", [b"Connection: closed"], True),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: Keep-Alive"], True),
        (b"1.0", [b"Connection: keep-alive, close"], False),
    ],
)
def test_connections_persist_as_rfc_9112_section_9_3_says(
    version: bytes, lines: list[bytes], kept: bool
) -> None:
    head = parse_request_head(b"\r\n".join((b"GET / HTTP/" + version, b"Host: x", *lines)))
    assert head.keep_alive is kept
    assert response(*lines, start=b"HTTP/" + version + b" 200 OK").keep_alive is kept


def test_connection_options_are_told_in_lower_case_and_without_empty_ones() -> None:
    assert request(b"Connection: , X-A ,\tTE", b"connection: b").connection == {b"x-a", b"te", b"b"}


def test_expect_and_te_are_told() -> None:
    head = request(b"Expect: 100-Continue", b"TE: gzip;q=0.5, Trailers")
    assert head.expects_continue
    assert head.wants_trailers
    assert not request().expects_continue
    assert not request(b"TE: gzip").wants_trailers
    assert not parse_request_head(b"GET / HTTP/1.0\r\nExpect: 100-continue").expects_continue


def test_a_target_of_32_kib_fits_and_one_over_the_limit_is_a_414() -> None:
    assert parse_request_head(b"GET /" + b"a" * 32768 + b" HTTP/1.1\r\nHost: x").target.endswith(b"aa")
    with pytest.raises(TargetTooLong) as caught:
        parse_request_head(b"GET /" + b"a" * MAX_LINE_BYTES + b" HTTP/1.1\r\nHost: x")
    assert caught.value.status == 414


def test_a_field_of_32_kib_fits_and_one_over_the_limit_is_a_431() -> None:
    assert len(request(b"Cookie: " + b"a" * 32768).fields) == 2
    with pytest.raises(FieldsTooLarge) as caught:
        request(b"Cookie: " + b"a" * MAX_LINE_BYTES)
    assert caught.value.status == 431


def test_too_many_fields_are_a_431_and_a_violation() -> None:
    with pytest.raises(FieldsTooLarge):
        request(*[b"a: b"] * MAX_FIELDS)
    with pytest.raises(ProtocolViolation):
        response(*[b"a: b"] * (MAX_FIELDS + 1))


def test_no_message_repeats_what_came() -> None:
    with pytest.raises(BadRequest) as refused:
        request(b"Canary-123 : Canary-456")
    with pytest.raises(ProtocolViolation) as violated:
        response(b"Canary-123 : Canary-456")
    assert "Canary" not in str(refused.value) + str(violated.value)


# Response heads


@pytest.mark.parametrize(
    ("start", "status", "line"),
    [
        (b"HTTP/1.1 200 OK", 200, b"HTTP/1.1 200 OK"),
        (b"HTTP/1.0 404 Not\tFound \xe9", 404, b"HTTP/1.1 404 Not\tFound \xe9"),
        (b"HTTP/1.1 299 ", 299, b"HTTP/1.1 299 "),
        (b"HTTP/1.1 599", 599, b"HTTP/1.1 599 "),
    ],
)
def test_a_status_line_keeps_its_reason(start: bytes, status: int, line: bytes) -> None:
    head = response(start=start)
    assert (head.status, head.status_line) == (status, line)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000",
        b"HTTP/1.1 099 X",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.10 200 OK",
        b"HTTP/1.x 200 OK",
        b"HTTP/0.9 200 OK",
        b"http/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 \xb2\xb2\xb2 OK",
        b"HTTP/1.1 200 O\x00K",
    ],
)
def test_a_malformed_status_line_is_a_violation(start: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        response(start=start)


# Every head that parses

NAMES = st.sampled_from(
    [
        b"Host",
        b"host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"TE",
        b"Origin",
        b"X",
        b"x!#~",
    ]
) | st.text("abC-_!~1", min_size=1, max_size=6).map(str.encode)
VALUES = st.sampled_from(
    [b"", b"0", b"12", b"chunked", b"close", b"keep-alive, x", b"trailers", b"a:b", b"\t", b"100-continue"]
) | st.binary(max_size=6)
FIELD_LINES = st.tuples(NAMES, st.sampled_from([b":", b": ", b":\t", b" :", b""]), VALUES).map(b"".join)
REQUEST_LINES = st.tuples(
    st.sampled_from([b"GET", b"PoSt", b"M!", b"", b"G T"]),
    st.sampled_from([b" ", b" ", b"\t", b"  "]),
    st.sampled_from([b"/", b"*", b"/%2e", b"http://x/", b"/\xe9", b"/a b"]) | st.binary(max_size=6),
    st.sampled_from([b" HTTP/1.1", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b""]),
).map(b"".join)
STATUS_LINES = st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 204", b"HTTP/1.1 103 \xe9", b"HTTP/2 200 OK"])


def heads(start_lines: st.SearchStrategy[bytes], common: bytes) -> st.SearchStrategy[bytes]:
    lines = st.lists(FIELD_LINES, max_size=4) | st.lists(FIELD_LINES, max_size=3).map(
        lambda ls: [common, *ls]
    )
    return st.tuples(start_lines, lines).map(lambda parts: b"\r\n".join((parts[0], *parts[1])))


def attributes_of(head: RequestHead | ResponseHead) -> dict[str, Any]:
    names = [name for name in dir(head) if not name.startswith("_") and name not in ("section", "unreadable")]
    return {name: getattr(head, name) for name in names}


@given(heads(REQUEST_LINES, b"Host: x"))
@example(b"GET / HTTP/1.1\r\nHost: x\r\nX:\t y ")
def test_a_request_head_that_parses_parses_equal_when_it_is_put_together_again(head: bytes) -> None:
    try:
        parsed = parse_request_head(head)
    except BadRequest:
        return
    start = b"%b %b HTTP/1.%d" % (parsed.method, parsed.target, parsed.minor)
    again = b"\r\n".join((start, *(field.line for field in parsed.fields)))
    assert again == head
    tidied = b"\r\n".join((start, *(field.name + b": " + field.value for field in parsed.fields)))
    first, second = attributes_of(parsed), attributes_of(parse_request_head(tidied))
    for told in (first, second):
        told["fields"] = [(field.name, field.value) for field in told["fields"]]
    assert first == second


@given(heads(STATUS_LINES, b"Content-Length: 0"))
def test_a_response_head_that_parses_parses_equal_when_it_is_put_together_again(head: bytes) -> None:
    try:
        parsed = parse_response_head(head)
    except ProtocolViolation:
        return
    start = parsed.status_line.replace(b"1.1", b"1.%d" % parsed.minor)
    again = b"\r\n".join((start, *(field.line for field in parsed.fields)))
    assert again in (head, head[:12] + b" " + head[12:])
    assert attributes_of(parse_response_head(again)) == attributes_of(parsed)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_an_error_of_ours(head: bytes) -> None:
    for parse, refusal in ((parse_request_head, BadRequest), (parse_response_head, ProtocolViolation)):
        try:
            parsed = parse(head)
        except refusal:
            continue
        assert isinstance(parsed, RequestHead | ResponseHead)


def test_a_section_is_shared_only_by_the_same_bytes_in_the_same_version() -> None:
    first = parse_request_head(b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close")
    same = parse_request_head(b"GET /2 HTTP/1.1\r\nHost: x\r\nConnection: close", first.section)
    assert same.section is first.section
    assert (same.method, same.target, same.keep_alive) == (b"GET", b"/2", False)
    for other in (
        b"GET /2 HTTP/1.0\r\nHost: x\r\nConnection: close",
        b"GET /2 HTTP/1.1\r\nHost: x\r\nconnection: close",
        b"GET /2 HTTP/1.1\r\nHost: x",
    ):
        assert parse_request_head(other, first.section).section is not first.section
