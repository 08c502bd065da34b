"""The type of a secret text."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NoReturn


class Secret:
    """A text that only `get_secret_value` shows: no repr, no log line and no pickle holds it.

    ``source`` is the file or command that gave it, which may give another text later; None for a text in the
    configuration itself. ``read_at`` is the monotonic second at which the source was asked.
    """

    __slots__ = ("_text", "read_at", "source")

    def __init__(self, text: str, source: Hashable = None, read_at: float = 0.0) -> None:
        self._text = text
        self.source = source
        self.read_at = read_at

    def get_secret_value(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('**********')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret isn't pickled")
