"""HTTP's dates: the three forms that are read, and the one that is written (RFC 9110, section 5.6.7)."""

from __future__ import annotations

import calendar
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.http1 import date_now, parse_date

NOV_6 = 784111777.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", NOV_6),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", NOV_6),
        (b"Sun Nov  6 08:49:37 1994", NOV_6),
        (b"Sun Nov 06 08:49:37 1994", NOV_6),
        (b"SUN, 06 nov 1994 08:49:37 gmt", NOV_6),
        (b"sunday, 06-NOV-94 08:49:37 GMT", NOV_6),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (b"Sun, 06 Nov 1994 08:49:60 GMT", NOV_6 + 23),
        (b"Thu, 29 Feb 2024 00:00:00 GMT", 1709164800.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 253402300799.0),
    ],
)
def test_a_date_is_read_in_each_of_its_forms(value: bytes, seconds: float) -> None:
    assert parse_date(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"-1",
        b"784111777",
        b"never",
        b"Sun, 06 Nov 1994 08:49:37",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"Sun, 06 Nov 1994 08:49:37 GMT+1",
        b"Sun, 06 Nov 1994 08:49:37 GMT ",
        b"Sun, 06 Nov 94 08:49:37 GMT",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 8:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49 GMT",
        b"Sun,  06 Nov 1994 08:49:37 GMT",
        b"Sun, 06-Nov-1994 08:49:37 GMT",
        b"Sun, 06-Nov-94 08:49:37 GMT",
        b"06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:60:00 GMT",
        b"Sun, 06 Nov 1994 08:49:61 GMT",
        b"Sun, 31 Nov 1994 08:49:37 GMT",
        b"Wed, 29 Feb 2023 00:00:00 GMT",
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT",
        b"Sun, 06 Nov 10000 08:49:37 GMT",
        b"Sun Nov 6 08:49:37 1994",
        b"Sun Nov  6 08:49:37 1994 GMT",
        b"Sun, 06 November 1994 08:49:37 GMT",
        b"1994-11-06T08:49:37Z",
    ],
)
def test_anything_else_is_no_date(value: bytes) -> None:
    assert parse_date(value) is None


@pytest.mark.parametrize("years", [-49, -1, 0, 1, 49, 50])
def test_a_year_of_two_digits_is_at_most_50_years_in_the_future(years: int) -> None:
    year = time.gmtime().tm_year + years
    told = parse_date(b"Sunday, 06-Nov-%02d 08:49:37 GMT" % (year % 100))
    assert told == calendar.timegm((year, 11, 6, 8, 49, 37))


@given(st.integers(0, 253402300799))
def test_all_forms_of_a_second_are_read_alike(second: int) -> None:
    at = time.gmtime(second)
    assert parse_date(time.strftime("%a, %d %b ", at).encode() + b"%04d" % at.tm_year + _rest(at)) == second
    asctime = time.asctime(at)
    assert parse_date(asctime.encode()) == second


def _rest(at: time.struct_time) -> bytes:
    return time.strftime(" %H:%M:%S GMT", at).encode()


def test_the_present_date_has_the_first_form() -> None:
    before = int(time.time())
    value = date_now()
    assert re.fullmatch(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT", value)
    told = parse_date(value)
    assert told is not None
    assert before <= told <= time.time()
