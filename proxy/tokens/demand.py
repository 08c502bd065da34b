"""Whether requests need a lease that is fetched on first use, so that its keeper goes on to refresh it.

A lease that requests have used is kept fresh until no request has used it for two lifetimes. Then it lasts to
its end, and the next request that finds none fetches a new one. A lease that never came is requested only
while a request waits for it, or once for a person: the id of its project may be invented.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.tokens.lease import Lease

IDLE_LIVES = 2.0
"""A lease that no request has used for so many of its lifetimes is refreshed no more."""


class Demand:
    """The demand for one lease.

    ``is_kept``: the lease is kept fresh, whether used or not. ``uses`` counts the requests so far, and
    ``is_running``: a request runs now. ``monotonic`` gives seconds.
    """

    def __init__(
        self,
        is_kept: Callable[[], bool],
        uses: Callable[[], int],
        is_running: Callable[[], bool],
        monotonic: Callable[[], float],
    ) -> None:
        self._is_kept = is_kept
        self._uses = uses
        self._is_running = is_running
        self._monotonic = monotonic
        self._seen = uses()
        self._used_at = monotonic()
        self._is_asked_for = False

    def use(self) -> None:
        """A person asks for the lease, also for one that never came."""
        self._is_asked_for = True
        self._used_at = self._monotonic()

    def is_there(self, lease: Lease | None) -> bool:
        """Whether to fetch a lease when one is due; ``lease`` is the last one, None if none ever came."""
        is_asked_for, self._is_asked_for = self._is_asked_for, False
        if self._is_kept() or self._is_running():
            self._used_at = self._monotonic()
            return True
        if lease is None:
            return is_asked_for
        if (uses := self._uses()) != self._seen:
            self._seen = uses
            self._used_at = self._monotonic()
        return self._monotonic() - self._used_at < IDLE_LIVES * lease.lifetime_s


ALWAYS = Demand(lambda: True, lambda: 0, lambda: False, lambda: 0.0)
"""The lease is kept fresh, whether used or not."""
