"""How the fetches of one lease ended: the errors that the status and the messages to callers tell."""

from __future__ import annotations

from datetime import UTC, datetime

from proxy.errors import TokenFetchError
from proxy.tokens.breaker import Outage


class FetchRecord:
    """``error`` is that of the last fetch, None after a success; ``last_error`` stays after a success."""

    def __init__(self) -> None:
        self.error: TokenFetchError | None = None
        self.failures_in_a_row = 0
        self.refreshes = 0
        self.last_error: str | None = None
        self.last_error_at: datetime | None = None

    @property
    def is_refused(self) -> bool:
        """Whether the last fetch failed so that a further one can't help soon."""
        return self.error is not None and self.error.permanent

    def succeeded(self) -> None:
        """A fetch brought a lease."""
        self.error = None
        self.failures_in_a_row = 0
        self.refreshes += 1

    def failed(self, error: TokenFetchError, at: float) -> None:
        """A fetch failed, at this second since 1970."""
        self.error = error
        self.failures_in_a_row += 1
        self.last_error, self.last_error_at = str(error), datetime.fromtimestamp(at, UTC)

    def seen_during(self, outage: Outage | None) -> FetchRecord:
        """This record, or what it is during an outage whose end the next fetch waits for.

        An error that is not the outage's stays, as a refusal of the credentials.
        """
        if outage is None or (self.error is not None and not self.error.is_outage):
            return self
        seen = FetchRecord()
        seen.error, seen.last_error, seen.last_error_at = outage.error, str(outage.error), outage.last_at
        seen.failures_in_a_row, seen.refreshes = self.failures_in_a_row, self.refreshes
        return seen
