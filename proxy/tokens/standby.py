"""Failover from one pair of credentials to the other: a project's first pair and its standby.

Hides how to tell a dead pair from a token endpoint in trouble. Contentsquare refuses a pair with 400,
401 or 403. It is known to answer wrong credentials with a generic 500, too, and an outage looks the
same: so after a few such answers in a row the other pair is tried, and only its success makes it the
pair in use. Knows nothing of when a token is due (`proxy.tokens.schedule`) or of the wire
(`proxy.tokens.endpoint`). All APIs of a project share one object, so that they switch together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Literal, TypeVar

from proxy.config.settings import Credentials
from proxy.errors import TokenFetchError

T = TypeVar("T")

SUSPICIOUS_500S = 3
"""The other pair is tried after so many answers of 500 in a row, then each time their number has doubled."""

PairName = Literal["first", "standby"]
_NAMES: tuple[PairName, PairName] = ("first", "standby")
OnSwitch = Callable[[PairName, TokenFetchError], None]


class Failover:
    """One or two ``pairs`` of credentials; at first, the first pair is in use.

    ``on_switch`` is called with the name of the pair that is in use from now on, and with the other
    pair's error.
    """

    def __init__(self, pairs: Sequence[Credentials], on_switch: OnSwitch | None = None) -> None:
        if len(pairs) not in (1, 2):
            raise ValueError("there must be one or two pairs")
        self._pairs = tuple(pairs)
        self._on_switch = on_switch
        self._current = 0
        self._suspicious: Counter[Hashable] = Counter()  # 500s in a row, by purpose

    @property
    def credentials(self) -> Credentials:
        """The pair in use."""
        return self._pairs[self._current]

    @property
    def in_use(self) -> PairName:
        """The name of the pair in use."""
        return _NAMES[self._current]

    @property
    def has_standby(self) -> bool:
        """Whether there is a second pair."""
        return len(self._pairs) > 1

    def start_over(self) -> None:
        """Use the first pair again: an administrator may have renewed it."""
        self._current = 0
        self._suspicious.clear()

    async def fetch(self, purpose: Hashable, fetch_with: Callable[[Credentials], Awaitable[T]]) -> T:
        """The result of ``fetch_with`` for the pair in use, or for the other pair if the pair in use is dead.

        Failures are counted for each ``purpose``. Raises `TokenFetchError`: if both pairs fail, the error
        that says more about when to try again.
        """
        used = self._current
        try:
            result = await fetch_with(self._pairs[used])
        except TokenFetchError as error:
            if not self._is_other_worth_a_try(purpose, error):
                raise
            first_error = error
        else:
            self._suspicious.pop(purpose, None)
            return result
        return await self._fetch_with_other(purpose, fetch_with, used, first_error)

    async def _fetch_with_other(
        self,
        purpose: Hashable,
        fetch_with: Callable[[Credentials], Awaitable[T]],
        used: int,
        first_error: TokenFetchError,
    ) -> T:
        # A fetch for another purpose may have switched meanwhile: then the other pair is in use already.
        try:
            result = await fetch_with(self._pairs[1 - used])
        except TokenFetchError as other_error:
            if not _is_refusal(first_error) or may_be_the_credentials(other_error):
                raise first_error from None
            # The pair in use is certainly dead, and the other may be well: it is used first next time.
            self._switch_from(used, first_error)
            raise other_error from None
        self._suspicious.pop(purpose, None)
        self._switch_from(used, first_error)
        return result

    def _is_other_worth_a_try(self, purpose: Hashable, error: TokenFetchError) -> bool:
        if not self.has_standby:
            return False
        if error.status != 500:
            return _is_refusal(error)
        self._suspicious[purpose] += 1
        times, rest = divmod(self._suspicious[purpose], SUSPICIOUS_500S)
        return not rest and times & (times - 1) == 0

    def _switch_from(self, used: int, error: TokenFetchError) -> None:
        if self._current == used:
            self._current = 1 - used
            self._suspicious.clear()
            if self._on_switch is not None:
                self._on_switch(self.in_use, error)


def _is_refusal(error: TokenFetchError) -> bool:
    return error.cause == "credentials_refused"


def may_be_the_credentials(error: TokenFetchError) -> bool:
    """Whether wrong credentials may be the reason; a 500 may mean that, see above."""
    return _is_refusal(error) or error.status == 500
