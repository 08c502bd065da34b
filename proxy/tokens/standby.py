"""Which of a project's credentials its tokens are asked with: the first pair, or its standby.

Hides how a dead pair is told from a token endpoint in trouble. Contentsquare refuses a pair with
400, 401 or 403, and is known to answer wrong credentials with a generic 500, which an outage looks
like, too: so a few of those in a row are a reason to try the other pair, and only its success is
one to go over. Knows nothing of when a token is due (`proxy.tokens.lease`) or of the wire
(`proxy.tokens.endpoint`); one object is shared by all APIs of a project, so that they go over together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Literal, TypeVar

from proxy.errors import TokenFetchError
from proxy.tokens.endpoint import Credentials

T = TypeVar("T")

SUSPICIOUS_500S = 3
"""Answers of 500 in a row after which the other pair is tried; then again each time they have doubled."""

PairName = Literal["first", "standby"]
_NAMES: tuple[PairName, PairName] = ("first", "standby")
OnSwitch = Callable[[PairName, TokenFetchError], None]


class Rotation:
    """One or two ``pairs``, the first of them in use at first.

    ``on_switch`` hears which pair is in use from now on, and what the other one was refused with.
    """

    def __init__(self, pairs: Sequence[Credentials], on_switch: OnSwitch | None = None) -> None:
        if len(pairs) not in (1, 2):
            raise ValueError("a rotation has one or two pairs")
        self._pairs = tuple(pairs)
        self._on_switch = on_switch
        self._current = 0
        self._strange: Counter[Hashable] = Counter()

    @property
    def credentials(self) -> Credentials:
        """The pair in use."""
        return self._pairs[self._current]

    @property
    def in_use(self) -> PairName:
        """Which pair is in use."""
        return _NAMES[self._current]

    @property
    def has_standby(self) -> bool:
        """Whether there is a second pair."""
        return len(self._pairs) > 1

    def start_over(self) -> None:
        """Use the first pair again; it may have been put right."""
        self._current = 0
        self._strange.clear()

    async def ask(self, what: Hashable, fetch: Callable[[Credentials], Awaitable[T]]) -> T:
        """What ``fetch`` gets with the pair in use, or with the other where the first doesn't work.

        ``what`` tells questions apart: failures are counted for each. Raises `TokenFetchError`: of two
        failures the one that says more about when to try again.
        """
        used = self._current
        try:
            answer = await fetch(self._pairs[used])
        except TokenFetchError as error:
            if not self._is_other_worth_a_try(what, error):
                raise
            mine = error
        else:
            self._strange.pop(what, None)
            return answer
        return await self._ask_other(what, fetch, used, mine)

    async def _ask_other(
        self, what: Hashable, fetch: Callable[[Credentials], Awaitable[T]], used: int, mine: TokenFetchError
    ) -> T:
        # Another question may have gone over meanwhile; then this is simply the pair in use.
        other = 1 - used
        try:
            answer = await fetch(self._pairs[other])
        except TokenFetchError as theirs:
            if not _is_refusal(mine) or _speaks_of_credentials(theirs):
                raise mine from None
            # Ours is dead for sure, and the other only out of reach: next time it is asked first.
            self._go_over(used, mine)
            raise theirs from None
        self._strange.pop(what, None)
        self._go_over(used, mine)
        return answer

    def _is_other_worth_a_try(self, what: Hashable, error: TokenFetchError) -> bool:
        if not self.has_standby:
            return False
        if error.status != 500:
            return _is_refusal(error)
        self._strange[what] += 1
        times, rest = divmod(self._strange[what], SUSPICIOUS_500S)
        return not rest and times & (times - 1) == 0

    def _go_over(self, used: int, why: TokenFetchError) -> None:
        if self._current == used:
            self._current = 1 - used
            self._strange.clear()
            if self._on_switch is not None:
                self._on_switch(self.in_use, why)


def _is_refusal(error: TokenFetchError) -> bool:
    return error.cause == "credentials_refused"


def _speaks_of_credentials(error: TokenFetchError) -> bool:
    """Whether it may be the credentials' fault: see `token_answer` for what 500 may mean."""
    return _is_refusal(error) or error.status == 500
