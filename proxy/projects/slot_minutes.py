"""The slots of a project over the last hour: for each minute the most in use, the most waiting, the refusals.

`Slots` writes the highest values of the present minute here as they change, which costs less than a timer or
a look at the clock would. A task of the process tells the end of each minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

HOUR = 60
"""How many minutes are kept."""


@dataclass(frozen=True, slots=True)
class SlotMinute:
    """The most slots in use and requests waiting in the minute that begins ``at`` seconds since 1970.

    ``refused`` counts the requests that the cloud refused because too many ran at once.
    """

    at: int
    in_use: int = 0
    waiting: int = 0
    refused: int = 0


class SlotMinutes:
    """The minutes of one set of slots; ``in_use``, ``waiting`` and ``refused`` are of the present one."""

    __slots__ = ("_past", "in_use", "refused", "waiting")

    def __init__(self) -> None:
        self.in_use = self.waiting = self.refused = 0
        self._past: deque[SlotMinute] = deque(maxlen=HOUR)

    def note(self, in_use: int, waiting: int) -> None:
        """So many slots are in use, and so many requests wait."""
        if in_use > self.in_use:  # noqa: PLR1730 - a call of max takes three times as long
            self.in_use = in_use
        if waiting > self.waiting:  # noqa: PLR1730
            self.waiting = waiting

    def end(self, at: int, in_use: int, waiting: int) -> None:
        """The minute that began ``at`` seconds since 1970 is over; the next one begins with these values."""
        self._past.extend(self._present(at))
        self.in_use, self.waiting, self.refused = in_use, waiting, 0

    def hour(self, now: float) -> list[SlotMinute]:
        """The minutes of the last hour in which slots were in use, the oldest first; ``now`` since 1970."""
        this = int(now // 60) * 60
        past = [one for one in self._past if this - 60 * HOUR < one.at < this]
        return [*past, *self._present(this)]

    def _present(self, at: int) -> Iterator[SlotMinute]:
        if self.in_use or self.waiting or self.refused:  # nothing is kept of an idle minute
            yield SlotMinute(at, self.in_use, self.waiting, self.refused)
