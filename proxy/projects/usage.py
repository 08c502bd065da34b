"""Who uses what: the requests, bytes and waits of each caller at one API, and a project's calls.

`proxy.projects.measures` keeps the counts of a caller for each API, and `proxy.projects.calls` adds up calls
by month. Bytes are those of content, and waits are for slots, in seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Final

NO_CALLER: Final = "-"
"""The name of all requests together where no callers are defined."""
_FIELDS: Final = 5
_MOST_ENDS: Final = 61
"""The ends of minutes that are kept: of the last hour, and the one before it."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a caller had, over some time."""

    requests: int
    bytes_in: int
    bytes_out: int
    waited_s: float


class CallerUse:
    """The counts of one caller at one API of a project, since the start and in the last hour."""

    __slots__ = ("_ends", "bytes_in", "bytes_out", "requests", "waited_s")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.waited_s = 0.0
        # The counts at the ends of minutes, one after another: an array takes a tenth of the objects' memory.
        self._ends: MutableSequence[float] = array("d")

    def end_minute(self, minute: float) -> None:
        """Keep the counts at the end of ``minute`` (since 1970), for `hour`."""
        ends = self._ends
        if ends and ends[-_FIELDS + 1] == self.requests:
            return
        ends.extend((minute, self.requests, self.bytes_in, self.bytes_out, self.waited_s))
        if len(ends) > _MOST_ENDS * _FIELDS:
            del ends[:_FIELDS]

    def total(self) -> Use:
        """The counts since the start."""
        return Use(self.requests, self.bytes_in, self.bytes_out, self.waited_s)

    def after(self, minute: float) -> Use:
        """The counts of the requests that ended after that minute, as far as minutes are kept."""
        ends = self._ends
        for place in range(len(ends) - _FIELDS, -1, -_FIELDS):
            if ends[place] <= minute:
                requests, bytes_in, bytes_out, waited_s = ends[place + 1 : place + _FIELDS]
                return Use(
                    self.requests - int(requests),
                    self.bytes_in - int(bytes_in),
                    self.bytes_out - int(bytes_out),
                    max(0.0, self.waited_s - waited_s),
                )
        return self.total()


class Calls:
    """The requests of one project that were sent to Contentsquare.

    ``name`` is that of the project. ``made`` counts since the start; those beyond ``taken`` are not in the
    month's count yet, and then this object is in the list ``new``.
    """

    __slots__ = ("_new", "made", "name", "taken")

    def __init__(self, name: str, new: list[Calls]) -> None:
        self.name = name
        self.made = 0
        self.taken = 0
        self._new = new

    def add(self) -> None:
        """Count a request that is sent."""
        if self.made == self.taken:
            self._new.append(self)
        self.made += 1

    def take(self) -> int:
        """How many are new since the last time."""
        new = self.made - self.taken
        self.taken = self.made
        return new
