"""Names of projects and accounts that a caller may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def names_like(name: str, known: Collection[str]) -> list[str]:
    """Up to three known names that are like this one; without any, the first ten known names."""
    return difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5) or sorted(known)[:10]
