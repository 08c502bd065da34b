"""Searches output for secrets that must not be in it, in every encoding that may appear there.

Must not know how the proxy redacts: it finds what an attacker would find.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus, unquote_to_bytes

PIECE = 12
"""This many characters of a secret in a row are a hit: even half a secret is too much."""


class Canaries:
    """Secrets by name; `search` counts their traces."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._spellings = {name: frozenset(_spellings(secret)) for name, secret in secrets.items()}

    def search(self, output: bytes) -> dict[str, int]:
        """The number of different traces of each secret in ``output``, without secrets that have none."""
        lower = (output + b"\n" + unquote_to_bytes(output)).lower()
        found = {
            name: sum(spelling.lower() in lower for spelling in spellings)
            for name, spellings in self._spellings.items()
        }
        return {name: count for name, count in found.items() if count}

    def count(self, outputs: Iterable[bytes]) -> int:
        """All traces in all outputs."""
        return sum(sum(self.search(output).values()) for output in outputs)


def _spellings(secret: str) -> Iterable[bytes]:
    pieces = {secret[start : start + PIECE] for start in range(max(1, len(secret) - PIECE + 1))}
    for text in pieces | {secret}:
        for spelt in (text, quote(text, safe=""), quote_plus(text), json.dumps(text)[1:-1], repr(text)[1:-1]):
            yield spelt.encode()
    raw = secret.encode()
    yield raw.hex().encode()
    yield secret[::-1].encode()
    for before in range(3):  # the three offsets that a secret can have within base64
        start, end = (8 * before + 5) // 6, 8 * (before + len(raw)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + raw)[start:end]
