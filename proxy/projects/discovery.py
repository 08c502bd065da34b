"""Finds out which APIs a project's credentials are for, where the configuration doesn't say."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping

from proxy.contentsquare import Api
from proxy.errors import TokenFetchError
from proxy.tokens import Clock
from proxy.tokens.endpoint import apis_named
from proxy.tokens.schedule import retry_delay_s


class Discovery:
    """Calls ``/v1/oauth/me`` until an answer comes.

    ``me_members`` sends one request. ``are_accepted`` tells whether the credentials are good for tokens.
    ``emit`` is called with ``api_discovery_failed`` and its values; an outage is the breaker's event.
    ``error`` is the last failure, or None.
    """

    def __init__(
        self,
        me_members: Callable[[], Awaitable[Mapping[str, object]]],
        are_accepted: Callable[[], Awaitable[bool]],
        clock: Clock,
        emit: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self.error: TokenFetchError | None = None
        self._me_members = me_members
        self._are_accepted = are_accepted
        self._clock = clock
        self._emit = emit

    async def apis(self) -> frozenset[Api] | None:
        """The APIs that the answer names; None if it names none, or if no try can bring an answer."""
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        failures = 0
        while True:
            try:
                return await apis_named(self._me_members())
            except TokenFetchError as exc:
                self.error = error = exc
            failures += 1
            if error.is_outage:
                continue  # the next request waits at the breaker
            if error.status == 401 and await self._are_accepted():  # a refusal of this question alone
                return None
            delay_s = retry_delay_s(error, failures, 0.0, rng)
            self._emit(
                "api_discovery_failed",
                {
                    "error": str(error),
                    "cause": error.cause,
                    "failures_in_a_row": failures,
                    "next_try_in_s": round(delay_s, 1),
                },
            )
            await self._clock.sleep(delay_s)
