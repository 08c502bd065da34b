"""The gateway's rules: one request's way to a cloud and back.

Takes a slot and a lease, tries, and decides when a request may be sent again: after a refused token,
on a connection that had gone stale, and when the cloud refuses it because too many run at once.
Knows leases and slots only as things to take and give back; must not know OAuth, configuration, or
aiohttp beyond `Request`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Final

from proxy.contentsquare import Api
from proxy.errors import (
    ConnectFailed,
    ConnectionLost,
    ProxyError,
    QueueTimeout,
    RequestTimeout,
    TokenRefused,
    TokenUnavailable,
    UpstreamError,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.gateway.attempt import Attempt, Outcome, Recorder
from proxy.gateway.policy import may_change_data
from proxy.gateway.rewrite import request_head
from proxy.projects.project import Project
from proxy.projects.slots import Slots
from proxy.server.request import Request
from proxy.tokens import Lease, LeaseKeeper
from proxy.upstream.connection import CloudConnection
from proxy.upstream.pool import KEEP_ALIVE_S, SURE_REUSE_S, Upstreams

TRY_AGAIN_S: Final = 5
"""Retry-After where a cloud could not be reached, or said nothing."""
TOKEN_WAIT_S: Final = 10.0
"""How long a request waits for a first lease."""


class Exchange:
    """One request's way to a cloud and back.

    `try_now` sends it at once where nothing has to be waited for, as is the rule: then ``ended`` is called
    when the answer is with the caller or was cut. Whatever takes more than that is for `run`, which does
    all of it, or goes on from where `try_now` came to. Holds at most one slot, and gives it back however
    it ends.
    """

    __slots__ = (
        "_attempt",
        "_began_in",
        "_changes",
        "_ended",
        "_is_attended",
        "_lease",
        "_max_idle_s",
        "_over",
        "_queue_timeout_s",
        "_replayed",
        "_slots",
        "_upstreams",
        "api",
        "is_counted",
        "keep",
        "project",
        "recorder",
        "request",
        "target",
    )

    def __init__(
        self,
        request: Request,
        project: Project,
        api: Api,
        target: bytes,
        upstreams: Upstreams,
        *,
        queue_timeout_s: float,
        ended: Callable[[Exchange], None],
    ) -> None:
        self.request = request
        self.project = project
        self.api = api
        self.target = target
        self.is_counted = False
        """Whether whoever made it counts it as running."""
        self.keep = False
        """Whether the caller's connection can be kept, once it is over."""
        self.recorder: Recorder | None = None
        """Hears of the answer, where the project shares answers."""
        self._upstreams = upstreams
        self._queue_timeout_s = queue_timeout_s
        self._ended = ended
        self._is_attended = False
        head = request.head
        self._changes = may_change_data(head, target)
        self._max_idle_s = SURE_REUSE_S if self._changes else KEEP_ALIVE_S
        self._slots: Slots | None = None
        self._began_in = 0
        self._lease: Lease | None = None
        self._replayed = False
        self._attempt: Attempt | None = None
        self._over: asyncio.Future[None] | None = None

    # Without waiting

    def try_now(self) -> bool:
        """Send the request now; False where something has to be waited for, and then nothing was done."""
        lease = self.project.keeper(self.api).current()
        slots = self.project.slots
        if lease is None or not slots.try_acquire(_in_line_as(self.request)):
            return False
        pool = self._upstreams.pool(lease.origin)
        connection = pool.take_idle(self._max_idle_s)
        if connection is None:
            slots.release()
            return False
        self._slots, self._began_in, self._lease = slots, slots.round, lease
        try:
            self._send(connection, lease, reused=True)
        except BaseException:
            self._attempt = None
            self._release()
            raise
        return True

    def answered(self, *, keep: bool) -> None:
        """It was begun, and another request's answer is with the caller."""
        self.keep = keep
        self._finish()

    def attend(self) -> None:
        """From now on `run` is what goes on, and ends when it is cancelled."""
        self._is_attended = True

    def abandon(self) -> None:
        """The caller has left: end what `run` doesn't attend to."""
        if not self._is_attended:
            if self._attempt is not None:
                self._attempt.abandon()
            self._finish()

    def _attempt_ended(self, attempt: Attempt) -> None:
        if self._over is not None:
            if not self._over.done():
                self._over.set_result(None)
        elif attempt.is_final:
            self._settle(attempt)
            self._finish()
        else:
            self.request.connection.interrupted()

    def _finish(self) -> None:
        self._is_attended = True
        self._attempt = None
        self._release()
        self._ended(self)

    # With waiting

    async def run(self) -> bool:
        """Go on until the answer is with the caller or was cut; whether the connection can be kept.

        Raises ProxyError only while nothing of an answer went to the caller.
        """
        body = self.request.body
        if body.complete:
            return await self._in_turn()
        slots = self.project.slots
        uploads = slots.uploads
        try:
            room = max(1, slots.limit // 2)
            holds_place = await uploads.enter(body, room, self._queue_timeout_s)
        except TimeoutError:
            if body.is_paused:  # it is we who didn't read on
                raise QueueTimeout(
                    "Requests whose content is still coming use half of this project's slots already:"
                    " send the request again.",
                    retry_after_s=2,
                ) from None
            raise RequestTimeout("The request's content did not come in time; send it again.") from None
        try:
            return await self._in_turn()
        finally:
            if holds_place:
                uploads.leave()

    async def _in_turn(self) -> bool:
        """As `run`, for a request that may take a slot."""
        wait_s = max(0.0, self._queue_timeout_s - self.request.facts.waited_s)
        deadline = asyncio.get_running_loop().time() + wait_s
        try:
            if self._slots is None:
                await self._token(self.project.keeper(self.api))  # it may tell whose slots these are
                await self._take_slot(wait_s, first=False)
            while True:
                attempt = await self._deliver()
                if self._settle(attempt):
                    return self.keep
                self._release()
                self._repeat_crowded()
                wait_s = max(0.0, deadline - asyncio.get_running_loop().time())
                await self._take_slot(wait_s, first=True)
        finally:
            self._attempt = None
            self._release()

    async def _take_slot(self, wait_s: float, *, first: bool) -> None:
        request, slots = self.request, self.project.slots
        if first or not slots.try_acquire(_in_line_as(request)):
            asked_at = time.perf_counter()
            try:
                await slots.acquire(_in_line_as(request), wait_s, first=first)
            finally:
                request.facts.waited_s += time.perf_counter() - asked_at
        self._slots, self._began_in = slots, slots.round

    def _settle(self, attempt: Attempt) -> bool:
        """Tell the slots what the cloud said; whether that is the end."""
        slots = self._slots
        assert slots is not None  # noqa: S101 - held since before the attempt
        if attempt.outcome is Outcome.CROWDED:
            slots.note_refusal(self._began_in)
            return False
        slots.note_answer()
        self.keep = attempt.keep
        return True

    def _release(self) -> None:
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()

    def _repeat_crowded(self) -> None:
        """The cloud runs too many requests already: get ready to send this one again."""
        if not self.request.body.replayable:
            raise QueueTimeout(
                "Other programs use this Contentsquare project too, and the content is too long to be"
                " sent again by the proxy: send the request again.",
                retry_after_s=2,
            )
        self._repeat("concurrency")
        self._max_idle_s = SURE_REUSE_S if self._changes else KEEP_ALIVE_S
        self._replayed = False
        self._lease = None

    def _repeat(self, why: str) -> None:
        self.request.facts.replays += (why,)
        self.request.body.rewind()
        self._attempt = None

    async def _deliver(self) -> Attempt:
        """Try until the answer is with the caller or was cut, or the cloud says that too many run at once."""
        keeper = self.project.keeper(self.api)
        while True:
            attempt = self._attempt or await self._try(keeper)
            lease = self._lease
            assert lease is not None  # noqa: S101 - there was an attempt with it
            if attempt.error is not None:
                raise _as_answer(attempt.error, lease, changes=self._changes) from None
            outcome = attempt.outcome
            if outcome is Outcome.STALE:
                self._repeat_stale(lease)
            elif outcome is Outcome.REFUSED:
                self._repeat_refused(keeper, lease)
            else:
                return attempt

    def _repeat_stale(self, lease: Lease) -> None:
        """The connection had ended before: get ready to send the request again, on a new one."""
        if not self.request.body.replayable:  # more of it than is held has come since
            lost = ConnectionLost("the connection was closed before an answer")
            raise _as_answer(lost, lease, changes=self._changes)
        self._repeat("stale")
        self._max_idle_s = 0.0

    def _repeat_refused(self, keeper: LeaseKeeper, lease: Lease) -> None:
        """The cloud said 401: give the token up, and get ready to send the request again."""
        if self._replayed or not keeper.reject(lease):
            raise TokenRefused(
                "Contentsquare answers 401 even to a fresh token. Check in its console that the"
                " credentials still have access to this project and API."
            )
        if not self.request.body.replayable:
            raise TokenUnavailable(
                "Contentsquare refused the token, and the content is too long to be sent again"
                " by the proxy. A fresh token is on its way: send the request again.",
                retry_after_s=2,
            )
        self._replayed = True
        self._repeat("token")

    async def _token(self, keeper: LeaseKeeper) -> Lease:
        return keeper.current() or await keeper.get(TOKEN_WAIT_S)

    async def _way(self, keeper: LeaseKeeper) -> tuple[CloudConnection, bool]:
        """A connection for the lease that is set then, and whether it was used before."""
        while True:
            self._lease = lease = await self._token(keeper)
            pool = self._upstreams.pool(lease.origin)
            connection = pool.take_idle(self._max_idle_s)
            if connection is not None:
                return connection, True
            try:
                connection = await pool.connect()
            except UpstreamError as exc:
                raise _as_answer(exc, lease, changes=self._changes) from None
            fresh = keeper.current()  # connecting takes a while
            if fresh is not None and fresh.origin == lease.origin:
                self._lease = fresh
                return connection, False
            pool.give_back(connection)

    async def _try(self, keeper: LeaseKeeper) -> Attempt:
        connection, reused = await self._way(keeper)
        assert self._lease is not None  # noqa: S101 - the way's
        self._over = asyncio.get_running_loop().create_future()
        attempt = self._send(connection, self._lease, reused=reused)
        try:
            await self._over
        finally:
            self._over = None
            attempt.abandon()
        return attempt

    def _send(self, connection: CloudConnection, lease: Lease, *, reused: bool) -> Attempt:
        self._attempt = attempt = Attempt(
            self.request,
            connection,
            self._attempt_ended,
            may_be_stale=reused and not self._changes,
            recorder=self.recorder,
        )
        attempt.begin(request_head(self.request.head, self.target, lease))
        return attempt


def exchange_of(request: Request) -> Exchange | None:
    """The exchange of a request, None for one that is not forwarded."""
    exchange = request.exchange
    return exchange if isinstance(exchange, Exchange) else None


def _in_line_as(request: Request) -> Hashable:
    """What shares a project's slots fairly with others: the caller where it is known, else the connection."""
    return request.facts.caller or id(request.connection)


def _as_answer(error: UpstreamError | ProxyError, lease: Lease, *, changes: bool) -> ProxyError:
    """What the caller is told of a failure before an answer; to try again where that can do no harm."""
    if isinstance(error, ProxyError):
        return error
    host = lease.origin.authority
    may_be_done = changes and not isinstance(error, ConnectFailed)
    retry_after_s = None if may_be_done else TRY_AGAIN_S
    if isinstance(error, UpstreamSilent):
        what = (
            "It may be done all the same: look before you send it again, " if may_be_done else "Try again, "
        )
        return UpstreamTimeout(
            f"Contentsquare ({host}) did not answer: {error}. {what}ask for less,"
            " or raise contentsquare.idle_timeout.",
            retry_after_s=retry_after_s,
        )
    what = "It may be done all the same: look before you send it again" if may_be_done else "Try again"
    return UpstreamUnreachable(
        f"No answer from Contentsquare ({host}): {error}. {what};"
        " `csq-proxy check --live` helps to find why.",
        proxy_status=error.proxy_status,
        retry_after_s=retry_after_s,
    )
