"""`logs.leaks`: secrets are found in each coding, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codings import CODINGS

from proxy.logs.leaks import SHORTEST_ANYWHERE, LeakSearch

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=SHORTEST_ANYWHERE, max_size=60)


@pytest.mark.parametrize("coding", CODINGS)
@given(KEYS, st.text("abcxyz/?=.", max_size=20), st.text("&abc/", max_size=20), st.integers(0, 9))
@settings(max_examples=20)
def test_a_long_secret_is_found_in_each_coding_at_each_place(
    coding: str, key: str, before: str, after: str, others: int
) -> None:
    search = LeakSearch()
    for number in range(others):
        search.add(f"another-secret-number-{number}")
    search.add(key)
    text = f"/{before}/{CODINGS[coding](key)}{after}"
    assert search.is_in_target(text.encode()), text
    assert search.is_in_fields(f"A: 1\r\nX-A: {text}\r\n".encode())
    search.discard(key)
    for number in range(others):
        search.discard(f"another-secret-number-{number}")
    assert not search.is_in_target(text.encode())


@given(KEYS, st.binary(max_size=400))
def test_a_text_without_the_secret_in_any_coding_passes(key: str, text: bytes) -> None:
    search = LeakSearch()
    search.add(f"never-in-a-text-{key}")
    assert not search.is_in_target(text)
    assert not search.is_in_fields(text)


@given(KEYS, st.integers(0, 1200), st.integers(0, 1200), st.sampled_from(["", "\\", "#", "%41", "&#65;"]))
def test_a_long_secret_is_found_in_a_text_of_any_length(key: str, before: int, after: int, mark: str) -> None:
    search = LeakSearch()
    search.add(key)
    text = f"/{'a' * before}{mark}{key}{mark}{'?' * after}".encode()
    assert search.is_in_target(text)
    assert search.is_in_fields(text)
    search.discard(key)
    assert not search.is_in_target(text)


def test_any_bytes_are_searched_without_an_error() -> None:
    search = LeakSearch()
    search.add("a-secret-of-many-letters")
    for text in (b"", b"%", b"%%%2", b"\\u00", b"\\", b"&#", b"&#xffffff;", b"%ff\xff\x00", b"%u00" * 9):
        assert not search.is_in_target(text)
        assert not search.is_in_fields(text)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/v1/metrics?scope=metrics", True),
        ("/v1/metrics?a=1&scope=Metric%73&b=2", True),
        ("/v1/metrics?csq%5Fkey=metrics", True),
        ("/v1/metrics?a=1;CSQ_KEY=metrics;b", True),
        ("/v1/metrics?q=metrics-2", False),
        ("/v1/metrics?metrics", False),
        ("/v1/metrics", False),
    ],
)
def test_a_short_secret_is_found_as_the_value_of_a_parameter_only(target: str, found: bool) -> None:
    search = LeakSearch()
    search.add("metrics")
    assert search.is_in_target(target.encode()) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("X_API_KEY: metrics", True),
        ("x-auth:metrics ", True),
        ("X-Authorization: Bearer metrics", True),
        ("X-Note: of metrics", False),
        ("Accept-Language: metrics", False),
    ],
)
def test_a_short_secret_is_found_as_the_value_of_an_x_field_only(line: str, found: bool) -> None:
    search = LeakSearch()
    search.add("metrics")
    assert search.is_in_fields(f"{line}\r\nA: 1\r\n".encode()) == found
    assert search.is_in_fields(f"A: 1\r\n{line}\r\n".encode()) == found


def test_each_change_is_another_version_and_shows_no_secret() -> None:
    search = LeakSearch()
    seen = {search.version}
    for secret in ("a-secret-of-many-letters", "short"):
        search.add(secret)
        seen.add(search.version)
        search.discard(secret)
        seen.add(search.version)
        search.discard(secret)
    assert len(seen) == 5
    assert "secret-of" not in repr(search)
