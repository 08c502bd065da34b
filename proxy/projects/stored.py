"""Whole answers in memory, for all projects of the process within one bound of bytes.

Hides the bound, who has to go (the one that nobody asked for longest), and what a stored answer takes
beside its content. Knows nothing of HTTP's rules, callers, or why an answer may be kept; each project
has a `Shelf`, so that one's answers can't be found, or dropped, by way of another's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MAX_BYTES = 64 << 20
"""Of all stored answers together, `OVERHEAD_BYTES` for each of them included."""
OVERHEAD_BYTES = 1024
"""What an answer takes beside the bytes of its content, head and key; an estimate from above."""


class Answer:
    """One whole answer.

    ``age_s`` is what the cloud said when it was asked, None for nothing, and ``lifetime_s`` how old it
    may become; ``asked_at`` and ``fresh_until`` are by the event loop's clock. ``head`` are its lines for
    a caller, each with its end, but for Age and those of the connection.
    """

    __slots__ = ("age_s", "asked_at", "content", "fresh_until", "head", "key", "shelf", "size")

    def __init__(
        self, head: bytes, content: bytes, *, asked_at: float, age_s: float | None, lifetime_s: float
    ) -> None:
        self.head = head
        self.content = content
        self.asked_at = asked_at
        self.age_s = age_s
        self.fresh_until = asked_at + (lifetime_s - (age_s or 0.0))  # so nothing is won by rounding
        self.shelf: Shelf | None = None
        """Where it is stored, by ``key``, and takes ``size`` bytes."""
        self.key: Hashable = None
        self.size = 0

    def is_fresh_at(self, now: float) -> bool:
        """Whether it may be given to somebody."""
        return now < self.fresh_until

    def age_at(self, now: float) -> float:
        """How old it is, in seconds (RFC 9111, section 4.2.3)."""
        return (self.age_s or 0.0) + (now - self.asked_at)  # in this order none is lost to rounding


class Store:
    """Makes shelves, and keeps what is on them all within one bound."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._answers: OrderedDict[Answer, None] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._answers)

    def shelf(self) -> Shelf:
        """A new one."""
        return Shelf(self)

    def sweep(self, now: float) -> None:
        """Drop what isn't fresh any longer."""
        for answer in [answer for answer in self._answers if not answer.is_fresh_at(now)]:
            self._drop(answer)

    def added(self, answer: Answer) -> None:
        """A shelf has one more; if that is too much, the longest unused have to go."""
        self._answers[answer] = None
        self.bytes += answer.size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def used(self, answer: Answer) -> None:
        """It was given to somebody."""
        self._answers.move_to_end(answer)

    def dropped(self, answer: Answer) -> None:
        """A shelf has one less."""
        del self._answers[answer]
        self.bytes -= answer.size

    def _drop(self, answer: Answer) -> None:
        if answer.shelf is not None:
            answer.shelf.drop(answer.key)


class Shelf:
    """One project's answers. ``bytes`` is what they take."""

    def __init__(self, store: Store) -> None:
        self.answers: dict[Hashable, Answer] = {}
        self.bytes = 0
        self._store = store

    def get(self, key: Hashable) -> Answer | None:
        """The answer with this key, fresh or not, None where there is none."""
        return self.answers.get(key)

    def used(self, answer: Answer) -> None:
        """One that is here was given to somebody."""
        self._store.used(answer)

    def put(self, key: Hashable, answer: Answer, key_bytes: int) -> None:
        """Keep an answer, in place of the one with this key, which takes ``key_bytes``."""
        if key in self.answers:
            self.drop(key)
        answer.shelf, answer.key = self, key
        answer.size = len(answer.content) + len(answer.head) + key_bytes + OVERHEAD_BYTES
        self.answers[key] = answer
        self.bytes += answer.size
        self._store.added(answer)

    def drop(self, key: Hashable) -> None:
        """Forget one that is here."""
        answer = self.answers.pop(key)
        answer.shelf = None
        self.bytes -= answer.size
        self._store.dropped(answer)

    def clear(self) -> None:
        """Forget all."""
        for key in tuple(self.answers):
            self.drop(key)
