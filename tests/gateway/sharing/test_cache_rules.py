"""What HTTP's rules for caches say of requests and answers."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import together

from proxy.gateway.sharing.cache_rules import MAX_CONTENT_BYTES, Terms, Verdict, key_of, terms_of, verdict_of
from proxy.http1 import RequestHead, parse_request_head, parse_response_head


def request(*lines: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((b"GET /v1/segments HTTP/1.1", b"Host: localhost", *lines)))


def key(*lines: bytes) -> bytes | None:
    return key_of(request(*lines).section)


def terms(*lines: bytes) -> Terms:
    return terms_of(request(*lines).fields)


def verdict(*lines: bytes, status: int = 200, length: bytes = b"Content-Length: 2") -> Verdict:
    fields = (b"Content-Type: application/json", length, *lines)
    return verdict_of(parse_response_head(b"\r\n".join((b"HTTP/1.1 %d X" % status, *fields))))


@pytest.mark.parametrize(
    "line",
    [
        b'If-None-Match: "a"',
        b"If-Modified-Since: Tue, 24 Nov 2026 00:00:00 GMT",
        b"If-Match: *",
        b'If-Range: "a"',
        b"If-Unmodified-Since: x",
        b"Expect: 100-continue",
        b"Upgrade: websocket",
        b"Content-Length: 1",
        b"Transfer-Encoding: chunked",
    ],
)
def test_a_request_for_something_of_its_own_is_not_shared(line: bytes) -> None:
    assert key(line) is None


def test_a_request_for_a_part_is_told_from_others() -> None:
    assert terms(b"Range: bytes=0-1") == Terms(is_of_part=True)
    assert terms(b"Range: bytes=0-1", b"Cache-Control: max-age=3") == Terms(is_of_part=True, max_age_s=3)


def test_an_answer_that_varies_with_range_is_not_shared() -> None:
    assert verdict(b"Vary: Range").refusal == b"vary"


@pytest.mark.parametrize(
    "line",
    [
        b"X-Request-Id: 7",
        b"traceparent: 00-a-b-01",
        b"tracestate: a=b",
        b"Cache-Control: max-age=3",
        b"Range: bytes=0-1",
    ],
)
def test_what_is_the_callers_or_the_caches_own_makes_no_difference(line: bytes) -> None:
    assert key(line, b"Accept: a/b") == key(b"Accept: a/b")


@pytest.mark.parametrize("line", [b"Accept-Language: fr", b"Prefer: a=b", b"User-Agent: x", b"accept: a/b"])
def test_any_other_field_does(line: bytes) -> None:
    assert key(b"Accept: a/b") not in (key(b"Accept: a/b", line), key(line))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"Cache-Control: No-Cache", {"is_alone": True}),
        (b"Pragma: no-cache", {"is_alone": True}),
        (b"Cache-Control: foo, no-store", {"is_alone": True, "no_store": True}),
        (b"Cache-Control: max-age=5", {"max_age_s": 5.0}),
        (b'Cache-Control: max-age="5"', {"max_age_s": 5.0}),
        (b"Cache-Control: max-age=-1", {"is_alone": True, "max_age_s": 0.0}),
        (b"Cache-Control: max-age", {"is_alone": True, "max_age_s": 0.0}),
        (b"Cache-Control: max-age=999999999999", {"max_age_s": 2.0**31}),  # RFC 9111, section 1.2.2
        (b"Cache-Control: max-age=2147483649", {"max_age_s": 2.0**31}),
        (b"Cache-Control: max-age=" + b"9" * 5000, {"max_age_s": 2.0**31}),
        (b"Cache-Control: max-age=00000000000000000005", {"max_age_s": 5.0}),
        (b"Cache-Control: max-age=5, max-age=60", {"max_age_s": 5.0}),
        (b"Cache-Control: max-age=60, MAX-AGE=5", {"max_age_s": 5.0}),
        (b"Cache-Control: max-age=60, max-age=soon", {"is_alone": True, "max_age_s": 0.0}),
        (b"Cache-Control: max-age=9, min-fresh=9", {"is_alone": True, "max_age_s": 9.0}),
        (b"Cache-Control: only-if-cached", {"is_alone": True}),
        (b'Cache-Control: x="a, no-cache"', {}),
        (b"Cache-Control: max-stale=600", {}),
    ],
)
def test_what_the_caller_demands_is_read(line: bytes, expected: dict[str, object]) -> None:
    assert terms(line) == Terms(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"Cache-Control: no-store", b"no-store"),
        (b"Cache-Control: public, No-Cache", b"no-cache"),
        (b'Cache-Control: no-cache="set-cookie"', b"no-cache"),
        (b"Set-Cookie: a=b", b"set-cookie"),
        (b"Content-Disposition: attachment; filename=a.json", b"content-disposition"),
        (b"Trailer: X-Sum", b"trailer"),
        (b"Vary: Accept, *", b"vary"),
        (b"Vary: X-Request-ID", b"vary"),
        (b"Content-Type: application/json", b"not-json"),
    ],
)
def test_an_answer_that_is_not_for_others_says_so_in_its_head(line: bytes, refusal: bytes) -> None:
    assert verdict(line).refusal == refusal


@pytest.mark.parametrize("status", [203, 204, 206, 301, 401, 403, 404, 429, 500, 503])
def test_only_200_is_shared(status: int) -> None:
    assert verdict(status=status).refusal == b"status"


@pytest.mark.parametrize(
    "content_type",
    [b"text/event-stream", b"application/octet-stream", b"text/csv", b"application/x-ndjson", b""],
)
def test_only_json_is_shared(content_type: bytes) -> None:
    lines = (b"HTTP/1.1 200 OK", b"Content-Type: " + content_type, b"Content-Length: 2")
    assert verdict_of(parse_response_head(b"\r\n".join(lines))).refusal == b"not-json"
    assert verdict_of(parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 2")).refusal == b"not-json"


def test_the_end_must_be_known_and_near() -> None:
    assert verdict(length=b"Content-Length: %d" % MAX_CONTENT_BYTES).refusal is None
    assert verdict(length=b"Content-Length: %d" % (MAX_CONTENT_BYTES + 1)).refusal == b"too-long"
    assert verdict(length=b"Transfer-Encoding: chunked").refusal is None
    assert verdict(length=b"X-None: 1").refusal == b"no-length"


DATE = b"Date: Tue, 24 Nov 2026 10:00:00 GMT"


@together(
    ("lines", "lifetime_s"),
    [
        ((), math.inf),
        ((b"Cache-Control: private",), math.inf),
        ((b"Cache-Control: private, max-age=7",), 7),
        ((b"Cache-Control: max-age=7", b"Cache-Control: s-maxage=3"), 3),
        ((b"Cache-Control: max-age=soon",), 0),
        # RFC 9111, section 4.2.1: several values of a directive never lengthen an answer's life
        ((b"Cache-Control: max-age=1, max-age=3600",), 1),
        ((b"Cache-Control: max-age=3600, max-age=1",), 1),
        ((b"Cache-Control: max-age=3600", b"Cache-Control: Max-Age=1"), 1),
        ((b'Cache-Control: max-age="3600", x, max-age=1',), 1),
        ((b'Cache-Control: max-age=1, max-age="3600"',), 1),
        ((b"Cache-Control: max-age=3600, max-age=soon",), 0),
        ((b"Cache-Control: max-age=soon, max-age=3600",), 0),
        ((b"Cache-Control: max-age, max-age=3600",), 0),
        ((b"Cache-Control: s-maxage=2, s-maxage=3600",), 2),
        ((b"Cache-Control: s-maxage=3600, s-maxage=2, max-age=9",), 2),
        ((b"Cache-Control: s-maxage=3600, max-age=3600, s-maxage",), 0),
        ((DATE, b"Expires: 0", b"Cache-Control: s-maxage=3600"), 0),
        ((DATE, b"Expires: 0", b"Cache-Control: max-age=3600"), 3600),
        # section 1.2.2: too many seconds count as 2^31
        ((b"Cache-Control: max-age=999999999999",), 2**31),
        ((b"Cache-Control: max-age=" + b"9" * 5000,), 2**31),
        ((b"Cache-Control: max-age=2147483647",), 2**31 - 1),
        ((b"Cache-Control: s-maxage=99999999999999999999, max-age=7",), 7),
        ((b"Cache-Control: max-age=0000000000000007",), 7),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 GMT"), 9),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 GMT", b"Cache-Control: max-age=2"), 2),
        ((DATE, b"Expires: Tue, 24 Nov 2026 09:00:00 GMT"), 0),
        ((DATE, b"Expires: 0"), 0),
        # section 5.3: any value that is no date is in the past
        ((DATE, b"Expires:"), 0),
        ((DATE, b"Expires: -1"), 0),
        ((DATE, b"Expires: 3600"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 UTC"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 +0000"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 EST"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 26 10:00:09 GMT"), 0),
        ((DATE, b"Expires: 24 Nov 2026 10:00:09 GMT"), 0),
        ((DATE, b"Expires: Tue 24 Nov 2026 10:00:09 GMT"), 0),
        ((DATE, b"Expires: Tue, 31 Nov 2026 10:00:09 GMT"), 0),
        ((DATE, b"Expires: Thu, 01 Jan 1970 00:00:00 GMT"), 0),
        ((DATE, b"Expires: 2026-11-24T10:00:09Z"), 0),
        # RFC 9110, section 5.6.7: the other two forms; a cache ignores the case
        ((DATE, b"Expires: Tue Nov 24 10:00:09 2026"), 9),
        ((DATE, b"Expires: Tuesday, 24-Nov-26 10:00:09 GMT"), 9),
        ((DATE, b"Expires: tue, 24 NOV 2026 10:00:09 gmt"), 9),
        ((b"Date: Tue Nov 24 10:00:00 2026", b"Expires: Tuesday, 24-Nov-26 10:00:09 GMT"), 9),
        # several lines
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 GMT", b"Expires: Tue, 24 Nov 2026 10:00:03 GMT"), 3),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 GMT", b"Expires: 0"), 0),
        ((DATE, b"Expires: 0", b"Expires: Tue, 24 Nov 2026 10:00:09 GMT"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 GMT, Tue, 24 Nov 2026 10:00:09 GMT"), 0),
        ((DATE, b"Date: Tue, 24 Nov 2026 10:00:05 GMT", b"Expires: Tue, 24 Nov 2026 10:00:09 GMT"), 4),
        ((DATE, b"Date: then", b"Expires: Tue, 24 Nov 2026 10:00:09 GMT"), 0),
        ((b"Expires: Tue, 24 Nov 2020 10:00:09 GMT",), 0),
        ((b"Date: never", b"Expires: Tue, 24 Nov 2026 10:00:09 GMT"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 20260000000 10:00:09 GMT"), 0),
        ((DATE, b"Expires: Tue, 24 Nov 2026 10:00:09 +99999999999999"), 0),
    ],
)
def test_the_cloud_can_say_how_long_an_answer_is_fresh(lines: tuple[bytes, ...], lifetime_s: float) -> None:
    assert verdict(*lines) == Verdict(None, lifetime_s)


def test_without_a_date_an_answer_was_sent_now() -> None:
    # RFC 9111, section 4.2.1
    ends = formatdate(time.time() + 1000, usegmt=True).encode()
    assert 900 < verdict(b"Expires: " + ends).lifetime_s <= 1000


@pytest.mark.parametrize(
    ("lines", "age_s"),
    [
        ((b"Age: 4",), 4),
        ((b"Age: 0",), 0),
        ((b"Age: 5, 9",), 5),
        ((b"Age: 9,5",), 9),
        ((b"Age: 4", b"Age: 9"), 4),
        ((b"Age: 1", b"Age: 999999999999"), 1),
        ((b"Age: 5, old",), 5),
        ((b"Age: , 5",), 5),
        ((b"Age: old",), None),
        ((b"Age: old, 5",), None),
        ((b"Age: -5, 9",), None),
        ((b"Age: 1.5",), None),
        ((b'Age: "5"',), None),
        ((b"Age: 5;a",), None),
        ((b"Age:",), None),
        ((b"Age: 999999999999",), 2**31),
        ((b"Age: " + b"9" * 5000,), 2**31),
    ],
)
def test_the_cloud_can_say_how_old_an_answer_is(lines: tuple[bytes, ...], age_s: float | None) -> None:
    # RFC 9111, section 5.1
    assert verdict(*lines) == Verdict(None, math.inf, age_s)


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_no_value_of_any_field_makes_the_rules_fail(values: list[bytes]) -> None:
    clean = [bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F) for value in values]
    for name in (b"Cache-Control", b"Expires", b"Vary", b"Age", b"Content-Disposition"):
        verdict(DATE, *(name + b": " + value for value in clean))
    for name in (b"Cache-Control", b"Pragma"):
        terms(*(name + b": " + value for value in clean))
