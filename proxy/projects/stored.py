"""Whole answers in memory, for all projects of the process within one bound of bytes.

Hides the bound, which answer is dropped for a new one (the longest unused answer), and how much
memory an answer takes beside its content. Knows nothing of HTTP's rules, callers, or why an answer may be
stored. Each project has a `Shelf` of its own, so that no project can find or drop another's answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MAX_BYTES = 64 << 20
"""The bound of all stored answers together, with `OVERHEAD_BYTES` for each."""
OVERHEAD_BYTES = 1024
"""The memory that an answer takes beside its content, head and key; estimated on the high side."""


class Answer:
    """One whole answer.

    ``age_s`` is the Age that the cloud sent, in seconds, None if it sent none; ``lifetime_s`` is the age up
    to which the answer is fresh. ``asked_at``, when its request was sent, and ``fresh_until`` are times of
    the event loop. ``head`` holds the lines for a caller, each with its CRLF, without Age and the fields of
    the connection.
    """

    __slots__ = ("age_s", "asked_at", "content", "fresh_until", "head", "key", "shelf", "size")

    def __init__(
        self, head: bytes, content: bytes, *, asked_at: float, age_s: float | None, lifetime_s: float
    ) -> None:
        self.head = head
        self.content = content
        self.asked_at = asked_at
        self.age_s = age_s
        self.fresh_until = asked_at + (lifetime_s - (age_s or 0.0))  # in this order rounding gains no time
        self.shelf: Shelf | None = None
        """The shelf that holds it under ``key``, None if none does; it takes ``size`` bytes there."""
        self.key: Hashable = None
        self.size = 0

    def is_fresh_at(self, now: float) -> bool:
        """Whether a caller may get it."""
        return now < self.fresh_until

    def age_at(self, now: float) -> float:
        """Its age in seconds (RFC 9111, section 4.2.3)."""
        return (self.age_s or 0.0) + (now - self.asked_at)  # in this order rounding loses no time


class Store:
    """Makes shelves, and keeps the answers on all of them within one bound."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._answers: OrderedDict[Answer, None] = OrderedDict()  # the longest unused answer is first

    def __len__(self) -> int:
        return len(self._answers)

    def shelf(self) -> Shelf:
        """A new shelf."""
        return Shelf(self)

    def sweep(self, now: float) -> None:
        """Drop the answers that aren't fresh any more."""
        for answer in [answer for answer in self._answers if not answer.is_fresh_at(now)]:
            self._drop(answer)

    def added(self, answer: Answer) -> None:
        """A shelf holds one more answer; above the bound, the longest unused answers are dropped."""
        self._answers[answer] = None
        self.bytes += answer.size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def used(self, answer: Answer) -> None:
        """A caller got this answer."""
        self._answers.move_to_end(answer)

    def dropped(self, answer: Answer) -> None:
        """A shelf holds one answer less."""
        del self._answers[answer]
        self.bytes -= answer.size

    def _drop(self, answer: Answer) -> None:
        if answer.shelf is not None:
            answer.shelf.drop(answer.key)


class Shelf:
    """One project's answers, which take ``bytes`` of memory."""

    def __init__(self, store: Store) -> None:
        self.answers: dict[Hashable, Answer] = {}
        self.bytes = 0
        self._store = store

    def get(self, key: Hashable) -> Answer | None:
        """The answer with this key, fresh or not; None if there is none."""
        return self.answers.get(key)

    def used(self, answer: Answer) -> None:
        """A caller got this answer, which is on this shelf."""
        self._store.used(answer)

    def put(self, key: Hashable, answer: Answer, key_bytes: int) -> None:
        """Store an answer in place of the one with the same key; the key takes ``key_bytes``."""
        if key in self.answers:
            self.drop(key)
        answer.shelf, answer.key = self, key
        answer.size = len(answer.content) + len(answer.head) + key_bytes + OVERHEAD_BYTES
        self.answers[key] = answer
        self.bytes += answer.size
        self._store.added(answer)

    def drop(self, key: Hashable) -> None:
        """Drop the answer with this key."""
        answer = self.answers.pop(key)
        answer.shelf = None
        self.bytes -= answer.size
        self._store.dropped(answer)

    def clear(self) -> None:
        """Drop all answers."""
        for key in tuple(self.answers):
            self.drop(key)
