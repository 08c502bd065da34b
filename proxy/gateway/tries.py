"""The loop of tries: sends one request until its answer is with the caller, and waits meanwhile.

Decides when a request may be sent again: after a refused token, on a connection that had gone stale, and
when the cloud refuses it because too many run at once. Must not know how tokens are fetched, or how slots are
shared.
"""

from __future__ import annotations

import asyncio
from typing import Final

from proxy.errors import (
    ConnectFailed,
    ConnectionLost,
    ProxyError,
    QueueTimeout,
    RequestTimeout,
    TokenRefused,
    TokenUnavailable,
    UpstreamError,
)
from proxy.gateway.attempt import Attempt, Outcome
from proxy.gateway.exchange import Exchange
from proxy.gateway.failures import answer_for
from proxy.tokens import Lease, LeaseKeeper
from proxy.upstream.connection import CloudConnection

TOKEN_WAIT_S: Final = 10.0
"""How long a request waits for a usable token."""


async def run(exchange: Exchange) -> bool:
    """Go on until an answer is with the caller or was cut; whether the caller's connection can be kept.

    Raises ProxyError only while nothing of an answer went to the caller.
    """
    body = exchange.request.body
    tries = _Tries(exchange)
    if body.complete:
        return await tries.until_answered()
    slots = exchange.project.slots
    uploads = slots.uploads
    try:
        await uploads.enter(body, max(1, slots.limit // 2), exchange.queue_timeout_s)
    except TimeoutError:
        # The proxy itself reads no further, or the caller waits for the cloud's 100 (Continue).
        if body.is_paused or (exchange.request.head.expects_continue and not body.received):
            raise QueueTimeout(
                "Requests whose content is still coming use half of this project's slots already:"
                " send the request again.",
                retry_after_s=2,
            ) from None
        raise RequestTimeout("The request's content did not come in time; send it again.") from None
    try:
        return await tries.until_answered()
    finally:
        uploads.leave(body)


class _Tries:
    """The tries of one exchange. The first may be the attempt that `Exchange.try_now` made, and is over."""

    __slots__ = ("_exchange", "_keeper", "_max_idle_s", "_token_was_replaced")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._keeper: LeaseKeeper = exchange.project.keeper(exchange.api)
        self._max_idle_s = exchange.max_idle_s
        self._token_was_replaced = False

    async def until_answered(self) -> bool:
        """Send the request until it is answered; its content is there, or has a place among the uploads."""
        exchange = self._exchange
        wait_s = max(0.0, exchange.queue_timeout_s - exchange.request.facts.waited_s)
        deadline = asyncio.get_running_loop().time() + wait_s
        try:
            if not exchange.has_slot:
                await self._usable_lease()  # the token's answer may tell which project's slots these are
                await exchange.take_slot(wait_s, first=False)
            while True:
                attempt = await self._answered_attempt()
                if attempt.outcome is not Outcome.CROWDED:
                    exchange.note_answer()
                    return attempt.keep
                exchange.note_crowding()
                exchange.release_slot()
                self._prepare_after_crowding()
                wait_s = max(0.0, deadline - asyncio.get_running_loop().time())
                try:
                    await exchange.take_slot(wait_s, first=True)
                except QueueTimeout as timeout:
                    raise self._crowded_out(timeout) from None
        finally:
            exchange.attempt = None
            exchange.release_slot()

    async def _answered_attempt(self) -> Attempt:
        """Try until the answer is with the caller or was cut, or the cloud says that too many run at once."""
        exchange = self._exchange
        while True:
            attempt = exchange.attempt or await self._try()
            if attempt.error is not None:
                raise self._failure(attempt.error, attempt.lease) from None
            if attempt.outcome is Outcome.STALE:
                self._prepare_after_stale(attempt.lease)
            elif attempt.outcome is Outcome.UNAUTHORIZED:
                self._prepare_after_refusal(attempt.lease)
            else:
                return attempt

    async def _try(self) -> Attempt:
        connection, lease, reused = await self._connection()
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(_attempt: Attempt) -> None:
            if not over.done():
                over.set_result(None)

        attempt = self._exchange.send(connection, lease, ended, reused=reused)
        try:
            await over
        finally:
            attempt.abandon()
        return attempt

    async def _connection(self) -> tuple[CloudConnection, Lease, bool]:
        """A connection, the lease to send on it, and whether the connection was used before."""
        exchange = self._exchange
        while True:
            lease = await self._usable_lease()
            pool = exchange.upstreams.pool(lease.origin)
            connection = pool.take_idle(self._max_idle_s)
            if connection is not None:
                return connection, lease, True
            try:
                connection = await pool.connect()
            except UpstreamError as exc:
                raise self._failure(exc, lease) from None
            fresh = self._keeper.current()  # connecting took a while
            if fresh is not None and fresh.origin == lease.origin:
                return connection, fresh, False
            pool.give_back(connection)

    async def _usable_lease(self) -> Lease:
        return self._keeper.current() or await self._keeper.get(TOKEN_WAIT_S)

    def _failure(self, error: UpstreamError | ProxyError, lease: Lease) -> ProxyError:
        """The answer to the request; a cloud without connections may have moved, which a new token tells."""
        if isinstance(error, ConnectFailed | ConnectionLost):
            self._keeper.note_unreachable(lease)
        return answer_for(error, lease, changes=self._exchange.changes)

    # Ready to send the request again

    def _prepare_after_stale(self, lease: Lease) -> None:
        """The connection had ended before the request came: the next try is on a new one."""
        if not self._exchange.request.body.replayable:  # more content has come since than is held
            lost = ConnectionLost("the connection was closed before an answer")
            raise self._failure(lost, lease)
        self._rewind("stale")
        self._max_idle_s = 0.0

    def _prepare_after_refusal(self, lease: Lease) -> None:
        """The cloud said 401: the next try is with another token."""
        if self._token_was_replaced or not self._keeper.reject(lease):
            raise TokenRefused(
                "Contentsquare answers 401 even to a fresh token. Check in its console that the"
                " credentials still have access to this project and API."
            )
        if not self._exchange.request.body.replayable:
            raise TokenUnavailable(
                "Contentsquare refused the token, and the content is too long to be sent again"
                " by the proxy. A fresh token is on its way: send the request again.",
                retry_after_s=2,
            )
        self._token_was_replaced = True
        self._rewind("token")

    def _prepare_after_crowding(self) -> None:
        """The cloud runs too many requests of this project: the next try is in another slot."""
        if not self._exchange.request.body.replayable:
            raise QueueTimeout(
                "Other programs use this Contentsquare project too, and the content is too long to be"
                " sent again by the proxy: send the request again.",
                retry_after_s=2,
            )
        self._rewind("concurrency")
        self._max_idle_s = self._exchange.max_idle_s
        self._token_was_replaced = False

    def _crowded_out(self, timeout: QueueTimeout) -> QueueTimeout:
        """The answer where the cloud's refusals, and not our slots, took the time that a request may wait."""
        exchange = self._exchange
        n = exchange.request.facts.replays.count("concurrency")
        return QueueTimeout(
            f"Contentsquare refused this request {n} time{'s'[: n > 1]} in {exchange.queue_timeout_s:g} s,"
            " because too many of its project ran at once: other programs use the project, too. Send fewer"
            " requests at once, or raise contentsquare.queue_timeout",
            retry_after_s=timeout.retry_after_s,
        )

    def _rewind(self, why: str) -> None:
        request = self._exchange.request
        request.facts.replays += (why,)
        request.body.rewind()
        self._exchange.attempt = None
