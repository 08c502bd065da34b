"""Codings of text in URLs, undone by C code, so that long texts of strangers cost little."""

from __future__ import annotations

import re
from typing import Final

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
