"""Ranges and preconditions, as RFC 9110 has them; `gateway/exports/test_exports` shows them on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http1 import FieldLines, parse_request_head
from proxy.http1.ranges import NotSatisfiable, asked_range, failed_precondition

ETAG, WEAK = b'"abc"', b'W/"abc"'
AT = 1_700_000_000.0
DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = b"Tue, 14 Nov 2023 22:13:19 GMT"


def fields(*lines: bytes) -> FieldLines:
    return parse_request_head(b"\r\n".join((b"GET / HTTP/1.1", b"Host: x", *lines))).fields


@given(st.integers(0, 300), st.none() | st.integers(0, 300), st.none() | st.integers(0, 300))
def test_a_range_is_the_slice_of_its_bytes(length: int, first: int | None, last: int | None) -> None:
    value = b"bytes=%b-%b" % tuple(b"" if at is None else b"%d" % at for at in (first, last))
    if first is None:
        wanted = range(length)[max(0, length - (last or 0)) :] if last is not None else None
    elif last is not None and last < first:
        wanted = None
    else:
        wanted = range(length)[first : length if last is None else last + 1]
    if wanted is not None and not wanted:
        with pytest.raises(NotSatisfiable):
            asked_range(fields(b"Range: " + value), length, ETAG, None)
    else:
        assert asked_range(fields(b"Range: " + value), length, ETAG, None) == wanted


@pytest.mark.parametrize(
    "value",
    [b"", b"bytes", b"bytes=", b"bytes=-", b"bytes=a-b", b"bytes=1-2,4-5", b"bytes=1-2x", b"items=1-2"],
)
def test_other_values_are_ignored(value: bytes) -> None:
    assert asked_range(fields(b"Range: " + value), 10, ETAG, None) is None
    assert asked_range(fields(b"Range: bytes=0-1", b"Range: bytes=0-1"), 10, ETAG, None) is None


@pytest.mark.parametrize(
    ("value", "etag", "modified", "is_part"),
    [
        (ETAG, ETAG, None, True),
        (b'"other"', ETAG, AT, False),
        (WEAK, ETAG, AT, False),
        (WEAK, WEAK, AT, False),
        (DATE, ETAG, AT + 0.5, True),
        (EARLIER, ETAG, AT, False),
        (DATE, ETAG, None, False),
        (b"nonsense", ETAG, AT, False),
    ],
)
def test_if_range_needs_a_strong_match(
    value: bytes, etag: bytes, modified: float | None, is_part: bool
) -> None:
    found = asked_range(fields(b"Range: bytes=0-1", b"If-Range: " + value), 10, etag, modified)
    assert found == (range(2) if is_part else None)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), None),
        ((b"If-None-Match: " + ETAG,), 304),
        ((b"If-None-Match: " + WEAK,), 304),
        ((b'If-None-Match: "a,b" , ' + ETAG,), 304),
        ((b'If-None-Match: "x"', b"If-None-Match: " + ETAG), 304),
        ((b"If-None-Match: *",), 304),
        ((b"If-None-Match: abc",), None),
        ((b'If-None-Match: "x"abc"',), None),
        ((b'If-None-Match: "x"', b"If-Modified-Since: " + DATE), None),
        ((b"If-Modified-Since: " + DATE,), 304),
        ((b"If-Modified-Since: " + EARLIER,), None),
        ((b"If-Modified-Since: yesterday",), None),
        ((b"If-Match: " + ETAG,), None),
        ((b"If-Match: *",), None),
        ((b"If-Match: " + WEAK,), 412),
        ((b'If-Match: "x"', b"If-None-Match: " + ETAG), 412),
        ((b"If-Match: " + ETAG, b"If-Unmodified-Since: " + EARLIER), None),
        ((b"If-Unmodified-Since: " + EARLIER,), 412),
        ((b"If-Unmodified-Since: " + DATE,), None),
    ],
)
def test_preconditions_in_their_order(lines: tuple[bytes, ...], status: int | None) -> None:
    assert failed_precondition(fields(*lines), ETAG, AT + 0.9) == status


def test_without_a_date_dates_count_for_nothing() -> None:
    for name in (b"If-Modified-Since: ", b"If-Unmodified-Since: "):
        assert failed_precondition(fields(name + DATE), ETAG, None) is None
