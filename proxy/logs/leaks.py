"""Refusal by value: registered secrets are found wherever they stand in the head of a request.

Hides the codings in which a secret is found, and how thousands of secrets are looked for at once. Knows
nothing of requests. `proxy.logs.redact` replaces the same secrets in texts.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from struct import Struct, unpack_from
from typing import Final, NamedTuple
from urllib.parse import quote

from proxy.codings import base64_forms, decodings, percent_decoded

SHORTEST_ANYWHERE: Final = 16
"""Bytes of the shortest secret that is looked for anywhere. A shorter one may be an ordinary word."""
_BLOCK: Final = 8
"""Bytes that are looked up together, at each multiple of 8 in a text: any 15 bytes have a whole block."""
_END: Final = 2 * _BLOCK - 1
_UNPACK: Final = [Struct(f"{count}Q").unpack_from for count in range(64)]
"""For short texts: reads so many blocks."""
_PERCENT: Final = ord("%")  # as a number: a search for bytes takes ten times as long
_HASH: Final = ord("#")
_BACKSLASH: Final = ord("\\")
_PERCENT_SIGNS: Final = re.compile(rb"%(?:25)+")
_REFERENCE: Final = re.compile(rb"&#(?:0*([0-9]{1,4})|[xX]0*([0-9A-Fa-f]{1,4}));?")
_MOST_REFERENCES: Final = 512
"""Character references of HTML are decoded one by one: a text with more of them is left as it is."""
_FOLD: Final = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ+-_", b"abcdefghijklmnopqrstuvwxyz  /")
"""The same: letters in any case, ``+`` and a blank, and base64's two alphabets (RFC 4648, section 5)."""
_DROPPED: Final = b"\\"
"""Marks that a server drops from a quoted string (RFC 9110, section 5.6.4)."""
_X_FIELD: Final = rb"\nx[ /][^:\n]*:[ \t]*(?:bearer |basic )?(?:%b)[ \t]*(?:[\r\n]|\Z)"
"""A short secret as the value of a field, whose name is folded, too."""


class _Patterns(NamedTuple):
    """``coded`` finds percent codes that may hide a secret, the others short secrets, if there are any."""

    coded: re.Pattern[bytes]
    parameter: re.Pattern[bytes] | None
    x_field: re.Pattern[bytes] | None


class LeakSearch:
    """The secrets that no request may carry to the cloud.

    A secret of at least `SHORTEST_ANYWHERE` bytes is found anywhere, in any case, and where it is
    percent-coded, escaped, in base64 or hexadecimal. A shorter one is found as the value of a parameter or
    of an ``X-`` field. The time depends on the text's length, and hardly on the number of secrets.
    """

    def __init__(self) -> None:
        self.version = 0
        """Another number after each change."""
        self._forms: dict[str, tuple[bytes, ...]] = {}  # by secret; one form where a secret is short
        self._blocks: dict[int, list[bytes]] = {}  # forms of long secrets, by blocks of their ends
        self._patterns: _Patterns | None = None

    def __repr__(self) -> str:
        return f"<LeakSearch secrets={len(self._forms)}>"

    def add(self, secret: str) -> None:
        """Find this secret, which is not empty, from now on; once, until it is discarded."""
        self._forms[secret] = forms = tuple(dict.fromkeys(_forms(secret.encode())))
        if len(forms) > 1:
            for form in forms:
                for block in _blocks_of(form):
                    self._blocks.setdefault(block, []).append(form)
        self._patterns = None
        self.version += 1

    def discard(self, secret: str) -> None:
        """Undo an `add`; an unknown secret is ignored."""
        if secret not in self._forms:
            return
        forms = self._forms.pop(secret)
        if len(forms) > 1:
            for form in forms:
                for block in _blocks_of(form):
                    self._blocks[block].remove(form)
                    if not self._blocks[block]:
                        del self._blocks[block]
        self._patterns = None
        self.version += 1

    def is_in_target(self, target: bytes) -> bool:
        """Whether a secret stands in this request target."""
        patterns = self._patterns or self._make_patterns()
        if _PERCENT not in target and _HASH not in target and _BACKSLASH not in target:  # it has one reading
            return self._holds(target.translate(_FOLD), patterns.parameter)
        return self._finds(target, patterns.coded, patterns.parameter)

    def is_in_fields(self, lines: bytes) -> bool:
        """Whether a secret stands in these field lines."""
        patterns = self._patterns or self._make_patterns()
        return self._finds(b"\n" + lines, patterns.coded, patterns.x_field)

    def _finds(self, text: bytes, coded: re.Pattern[bytes], short: re.Pattern[bytes] | None) -> bool:
        if self._holds(_folded(text), short):
            return True
        if not coded.search(text) and _HASH not in text and _BACKSLASH not in text:
            return False
        return any(self._holds(_folded(reading), short) for reading in _readings(text))

    def _holds(self, folded: bytes, short: re.Pattern[bytes] | None) -> bool:
        count = len(folded) // _BLOCK
        unpacked = _UNPACK[count](folded) if count < len(_UNPACK) else unpack_from(f"{count}Q", folded)
        if not self._blocks.keys().isdisjoint(unpacked):
            forms = {form for block in unpacked for form in self._blocks.get(block, ())}
            if any(form in folded for form in forms):
                return True
        return short is not None and short.search(folded) is not None

    def _make_patterns(self) -> _Patterns:
        forms = self._forms.values()
        letters = bytes(set(b"%".join(form for each in forms for form in each)))
        coded = (
            letters
            + letters.upper()
            + (b"+-" if b" " in letters else b"")
            + (b"_" if b"/" in letters else b"")
        )
        digits: dict[str, str] = {}  # the second ones by the first: 60 alternatives would be slow
        for code in sorted({*coded, *b"%&\\"}):
            digits[f"{code >> 4:x}"] = digits.get(f"{code >> 4:x}", "") + f"{code & 15:x}"
        codes = "|".join(f"{first}[{seconds}]" for first, seconds in digits.items())
        words = b"|".join(re.escape(each[0]) for each in forms if len(each) == 1)
        self._patterns = patterns = _Patterns(
            re.compile(rf"%(?:u00)?(?:{codes})".encode(), re.IGNORECASE),
            re.compile(rb"=(?:%b)(?=[&;#]|\Z)" % words) if words else None,
            re.compile(_X_FIELD % words) if words else None,
        )
        return patterns


def _folded(text: bytes) -> bytes:
    return text.translate(_FOLD).replace(_DROPPED, b"")


def _readings(text: bytes) -> Iterator[bytes]:
    """The results of repeated decoding, the last one without any number of codings of the percent sign."""
    last = text
    for last in decodings(text, _decoded):
        yield last
    if _PERCENT_SIGNS.search(last):
        yield percent_decoded(_PERCENT_SIGNS.sub(b"%", last))


def _decoded(text: bytes) -> bytes:
    decoded = percent_decoded(text)
    if 0 < decoded.count(b"&#") <= _MOST_REFERENCES:
        decoded = _REFERENCE.sub(_character, decoded)
    return decoded


def _character(reference: re.Match[bytes]) -> bytes:
    decimal, hexadecimal = reference.groups()
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return bytes((code,)) if code < 256 else b"?"


def _forms(secret: bytes) -> Iterator[bytes]:
    """The forms of a secret, folded: as it is, and if it is long, for HTML, hexadecimal, and in base64.

    OAuth's clients percent-code a secret before its base64 (RFC 6749, section 2.3.1).
    """
    yield _folded(secret)
    if len(secret) >= SHORTEST_ANYWHERE:
        yield _folded(html.escape(secret.decode()).encode())
        yield secret.hex().encode()
        yield from map(_folded, base64_forms(secret))
        yield from map(_folded, base64_forms(quote(secret, safe="").encode()))


def _blocks_of(form: bytes) -> Iterator[int]:
    """The blocks at the end of a form, one of which stands at a multiple of 8 in any text with the form."""
    end = form[-_END:]
    for at in range(len(end) - _BLOCK + 1):
        yield int.from_bytes(end[at : at + _BLOCK], sys.byteorder)
