"""`proxy.codings`: what Python's own decoder does, for each text."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from hypothesis import given
from hypothesis import strategies as st

from proxy.codings import percent_decoded


@given(st.lists(st.sampled_from([b"%41", b"%2f", b"%zz", b"%", b"%4", b"a", b"+", b"\x00", b"\xff", b"%FF"])))
def test_percent_codes_are_decoded_as_by_urllib(parts: list[bytes]) -> None:
    text = b"".join(parts)
    assert percent_decoded(text) == unquote_to_bytes(text)


def test_codes_of_javascript_are_decoded_too() -> None:
    assert percent_decoded(b"%u0070\\u0041\\x42\\n%u20ac") == b"pAB\\n%u20ac"
