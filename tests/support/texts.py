"""Texts for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

CHARACTERS = st.characters(exclude_categories=["Cs"])
"""Those that UTF-8 has. For `st.text()` Hypothesis finds the same by trying all 1.1 million, for seconds."""


def texts(*, min_size: int = 0, max_size: int | None = None) -> st.SearchStrategy[str]:
    return st.text(CHARACTERS, min_size=min_size, max_size=max_size)
