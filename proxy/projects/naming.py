"""Names of projects and accounts that a caller may have meant."""

from __future__ import annotations

import difflib
import functools
import heapq
from collections.abc import Collection

CLOSEST = 8
"""The names with the most pairs in common; only these are compared letter by letter: 20 us each."""


def names_like(name: str, known: Collection[str]) -> list[str]:
    """Up to three known names that are like this one; without any, the first ten known names."""
    pairs = _pairs(name)

    def share(other: str) -> float:
        return len(pairs & _known_pairs(other)) / (len(name) + len(other) + 2)

    closest = heapq.nlargest(CLOSEST, sorted(known), key=share)
    return difflib.get_close_matches(name, closest, n=3, cutoff=0.5) or sorted(known)[:10]


def _pairs(name: str) -> frozenset[tuple[str, str]]:
    """The pairs of neighbouring letters, with a blank before the first letter and one after the last."""
    return frozenset(zip(f" {name}", f"{name} ", strict=True))


_known_pairs = functools.lru_cache(4096)(_pairs)
"""Not for the names that callers send: they would take the place of the known ones."""
