"""The gateway's rules: one request's way to a cloud and back.

Takes a slot and a lease, tries, and decides when a request may be sent again: after a refused token,
on a connection that had gone stale, and when the cloud refuses it because too many run at once.
Knows leases and slots only as things to take and give back; must not know OAuth, configuration, or
aiohttp beyond `Request`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol
from weakref import WeakKeyDictionary

from proxy.attempt import Attempt, Outcome
from proxy.contentsquare import Api, changes_data
from proxy.errors import (
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
from proxy.fields import request_head
from proxy.lease import Lease, LeaseKeeper
from proxy.request import Request
from proxy.slots import Slots
from proxy.uploads import Uploads
from proxy.upstream import KEEP_ALIVE_S, SURE_REUSE_S, Upstreams

TOKEN_WAIT_S = 10.0
"""How long a request waits for a first lease."""


class Project(Protocol):
    """What a project looks like from here."""

    name: str
    slots: Slots

    def keeper(self, api: Api | None) -> LeaseKeeper:
        """The keeper of this API's lease; of the project's first API where None."""
        ...


class Forwarder:
    """Forwards requests. ``stopping`` makes callers' connections close after their answer."""

    def __init__(
        self, upstreams: Upstreams, *, queue_timeout_s: float, token_wait_s: float = TOKEN_WAIT_S
    ) -> None:
        self._upstreams = upstreams
        self._queue_timeout_s = queue_timeout_s
        self._token_wait_s = token_wait_s
        self._uploads: WeakKeyDictionary[Slots, Uploads] = WeakKeyDictionary()
        self.stopping = False

    async def forward(self, request: Request, project: Project, api: Api | None, target: bytes) -> bool:
        """Answer ``request`` with what the cloud says to ``target``; whether the connection can be kept.

        Raises ProxyError only while nothing of an answer went to the caller.
        """
        body = request.body
        if body.complete:
            return await self._in_turn(request, project, api, target)
        uploads = self._uploads.setdefault(project.slots, Uploads())
        try:
            room = max(1, project.slots.limit // 2)
            holds_place = await uploads.enter(body, room, self._queue_timeout_s)
        except TimeoutError:
            raise RequestTimeout("The request's content did not come in time; send it again.") from None
        try:
            return await self._in_turn(request, project, api, target)
        finally:
            if holds_place:
                uploads.leave()

    async def _in_turn(self, request: Request, project: Project, api: Api | None, target: bytes) -> bool:
        """As `forward`, for a request that may take a slot."""
        changes = changes_data(request.head.method, target)
        keeper = project.keeper(api)
        slots, wait_s, again = project.slots, self._queue_timeout_s, False
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            if again or not slots.try_acquire(request.caller):
                asked_at = time.perf_counter()
                try:
                    await slots.acquire(request.caller, wait_s, first=again)
                finally:
                    request.waited_s += time.perf_counter() - asked_at
            began_in = slots.round
            try:
                attempt = await self._deliver(request, keeper, target, changes=changes)
                if attempt.outcome is not Outcome.CROWDED:
                    slots.answered()
                    return attempt.keep
                slots.refused(began_in)
            finally:
                slots.release()
            if not request.body.replayable:
                raise QueueTimeout(
                    "Other programs use this Contentsquare project too, and the content is too long to be"
                    " sent again by the proxy: send the request again.",
                    retry_after_s=2,
                )
            request.body.rewind()
            request.replays += ("concurrency",)
            slots, again = project.slots, True
            wait_s = max(0.0, deadline - asyncio.get_running_loop().time())

    async def _deliver(
        self, request: Request, keeper: LeaseKeeper, target: bytes, *, changes: bool
    ) -> Attempt:
        """Try until the answer is with the caller or was cut, or the cloud says that too many run at once."""
        lease = keeper.current() or await keeper.get(self._token_wait_s)
        max_idle_s = SURE_REUSE_S if changes else KEEP_ALIVE_S
        replayed = False
        while True:
            attempt = await self._attempt(
                request, lease, target, max_idle_s=max_idle_s, repeatable=not changes
            )
            outcome = attempt.outcome
            if outcome in (Outcome.DELIVERED, Outcome.ABORTED, Outcome.CROWDED):
                return attempt
            if outcome is Outcome.STALE:
                request.replays += ("stale",)
                max_idle_s = 0.0
            else:
                if replayed or not keeper.reject(lease):
                    raise TokenRefused(
                        "Contentsquare answers 401 even to a fresh token. Check in its console that the"
                        " credentials still have access to this project and API."
                    )
                if not request.body.replayable:
                    raise TokenUnavailable(
                        "Contentsquare refused the token, and the content is too long to be sent again"
                        " by the proxy. A fresh token is on its way: send the request again.",
                        retry_after_s=2,
                    )
                replayed = True
                request.replays += ("token",)
                lease = await keeper.get(self._token_wait_s)
            request.body.rewind()

    async def _attempt(
        self, request: Request, lease: Lease, target: bytes, *, max_idle_s: float, repeatable: bool
    ) -> Attempt:
        pool = self._upstreams.pool(lease.origin)
        connection = pool.take_idle(max_idle_s, surely=not repeatable)
        reused = connection is not None
        try:
            if connection is None:
                connection = await pool.connect()
            attempt = Attempt(
                request, connection, may_be_stale=reused and repeatable, close_after=self.stopping
            )
            await attempt.run(request_head(request.head, target, lease))
        except UpstreamError as exc:
            raise _as_answer(exc, lease) from None
        return attempt


def _as_answer(error: UpstreamError, lease: Lease) -> ProxyError:
    """What the caller is told of a failure before an answer."""
    host = lease.origin.authority
    if isinstance(error, UpstreamSilent):
        return UpstreamTimeout(
            f"Contentsquare ({host}) did not answer: {error}. Try again, ask for less,"
            " or raise contentsquare.idle_timeout.",
        )
    return UpstreamUnreachable(
        f"No answer from Contentsquare ({host}): {error}. Try again; `csq-proxy check` helps to find why.",
        proxy_status=error.proxy_status,
    )
