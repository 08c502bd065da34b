"""Codings of text: of URLs, undone by C code, so that long texts of strangers cost little; and base64."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import Final

_MOST_DECODINGS: Final = 3
_NO_CODE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def percent_decoded(text: bytes) -> bytes:
    """The text without one level of percent coding; a percent sign that begins no code stays.

    ``%u0070`` counts as ``%70``, and so do JavaScript's forms of it, which begin with a backslash. In time
    linear to the text's length.
    """
    text = text.replace(b"\\u00", b"%").replace(b"\\x", b"%").replace(b"%u00", b"%")
    # Python has C code for its own escapes, and none for percent codes.
    escapes = _NO_CODE.sub(b"%25", text).replace(b"\\", b"\\\\").replace(b"%", b"\\x")
    return escapes.decode("unicode_escape").encode("latin-1")


def decodings(text: bytes, decode: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """The results of up to three decodings in a row, as long as each changes the text."""
    for _ in range(_MOST_DECODINGS):
        decoded = decode(text)
        if decoded == text:
            return
        text = decoded
        yield text


def base64_forms(secret: bytes) -> Iterator[bytes]:
    """The characters of a secret in base64 at any place, as in ``user:secret`` of Basic.

    Three bytes make four characters, so there are three alignments. Characters that depend also on
    neighbouring bytes are left out.
    """
    for before in range(3):
        start = (8 * before + 5) // 6
        end = 8 * (before + len(secret)) // 6
        yield base64.b64encode(b"\0" * before + secret)[start:end]
