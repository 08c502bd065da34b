"""One request's way to a cloud and back.

Two engines do the work, because most requests wait for nothing but the cloud, and a task and its waiting
would cost each of them a sixth more CPU time:

- `Exchange.try_now` is called from the event loop, for a request whose content is there. If a token, a
  slot and an idle connection are there as well, this function sends the request at once; if all slots are in
  use, the request is sent in the moment in which it gets one. Callbacks then pass the cloud's answer on to
  the caller, and the last of them ends the exchange.
- `proxy.gateway.tries.run` is a coroutine for every other request. This coroutine waits for a token, a
  slot and a connection, and sends a request again where that is safe; also one that `try_now` sent in vain.

Must not know OAuth, configuration, or how a caller's connection works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Protocol

from proxy.contentsquare import Api
from proxy.errors import ProxyError, QueueTimeout
from proxy.gateway.attempt import Attempt, Recorder
from proxy.gateway.policy import may_change_data
from proxy.gateway.rewrite import request_head
from proxy.projects import Project, Slots, Turn
from proxy.server.request import Request
from proxy.tokens import Lease
from proxy.upstream.connection import CloudConnection
from proxy.upstream.pool import KEEP_ALIVE_S, SURE_REUSE_S, Upstreams


class Waits(Protocol):
    """Hears of each request that waits for a slot."""

    def begin_wait(self) -> None:
        """A request begins to wait."""

    def end_wait(self) -> None:
        """A request has its slot, or waits no longer."""


class Exchange:
    """One request on its way to the cloud and back; meanwhile it holds at most one slot.

    ``target`` lacks the project's prefix. ``queue_timeout_s`` is how long the request may wait for a slot.
    ``ended`` is called once where `try_now` returned True and `attend` was not called since: the answer is
    with the caller or was cut, or the caller has left.
    """

    __slots__ = (
        "_ended",
        "_is_attended",
        "_queued_at",
        "_slots",
        "_turn",
        "_wait_began_at",
        "_waits",
        "api",
        "attempt",
        "changes",
        "is_counted",
        "keep",
        "project",
        "queue_timeout_s",
        "recorder",
        "request",
        "target",
        "upstreams",
    )

    def __init__(  # noqa: PLR0917 - keywords take longer
        self,
        request: Request,
        project: Project,
        api: Api,
        target: bytes,
        upstreams: Upstreams,
        waits: Waits,
        queue_timeout_s: float,
        ended: Callable[[Exchange], None],
    ) -> None:
        self.request = request
        self.project = project
        self.api = api
        self.target = target
        self.upstreams = upstreams
        self.queue_timeout_s = queue_timeout_s
        self.changes = may_change_data(request.head, target)
        """Whether the request may change data, so that it isn't sent again where it may have arrived."""
        self.recorder: Recorder | None = None
        """Hears of the answer, where the project shares answers."""
        self.attempt: Attempt | None = None
        """The last one, until the request is answered or about to be sent again."""
        self.is_counted = False
        """Whether the gateway counts the request as running."""
        self.keep = False
        """Whether the caller's connection can be kept, once the answer is written."""
        self._ended = ended
        self._is_attended = False
        self._waits = waits
        self._turn: Turn | None = None
        """The place in the queue of ``_queued_at``, while the request waits there without a task."""
        self._slots: Slots | None = None

    @property
    def max_idle_s(self) -> float:
        """How long a connection that carries the request may have been idle, in seconds."""
        return SURE_REUSE_S if self.changes else KEEP_ALIVE_S

    def try_now(self) -> bool:
        """Send the request now, or as soon as it gets a slot; False: it has to wait for something else.

        After False the request may hold a slot already.
        """
        lease = self.project.keeper(self.api).current()
        if lease is None:  # the token's answer may tell which project's slots these are
            return False
        slots = self.project.slots
        if slots.try_acquire():
            self._slots = slots
            return self._send_on_idle(lease)
        self._begin_wait()
        self._queued_at = slots
        self._turn = slots.enqueue(self._turn_key(), self.queue_timeout_s, self._on_turn)
        return True

    def _send_on_idle(self, lease: Lease) -> bool:
        connection = self.upstreams.pool(lease.origin).take_idle(self.max_idle_s)
        if connection is None:
            return False
        try:
            self.send(connection, lease, self._on_attempt_ended)
        except BaseException:
            self.attempt = None
            self.release_slot()
            raise
        return True

    def _on_turn(self, error: QueueTimeout | None) -> bool:
        """The wait in the queue is over; ``error`` None: with a slot."""
        self._turn = None
        self._end_wait()
        is_sent = False
        if error is not None:
            self.request.facts.refusal = error
        else:
            self._slots = self._queued_at
            lease = self.project.keeper(self.api).current()
            try:
                is_sent = lease is not None and self._send_on_idle(lease)
            except Exception:  # noqa: BLE001 - `run` meets the same error again and answers it
                is_sent = False
        if not is_sent:
            self.request.connection.interrupted()
        return True

    def send(
        self,
        connection: CloudConnection,
        lease: Lease,
        ended: Callable[[Attempt], None],
        reused: bool = True,
    ) -> Attempt:
        """Send the request; ``reused``: the connection carried another one before, and may be closing."""
        # Once, because a way may die of the request itself: too big for a tunnel, for example.
        may_outlive_way = not self.changes and "stale" not in self.request.facts.replays
        may_be_stale = reused and not self.changes
        self.attempt = attempt = Attempt(
            self.request, connection, lease, ended, self.recorder, may_be_stale, may_outlive_way
        )
        self.project.calls.add()
        attempt.send(request_head(self.request.head, self.target, lease))
        return attempt

    def _on_attempt_ended(self, attempt: Attempt) -> None:
        if attempt.is_final:
            self.note_answer()
            self.finish(attempt.keep)
        else:
            self.request.connection.interrupted()

    def finish(self, keep: bool) -> None:
        """An answer is with the caller, or was cut; ``keep``: the caller's connection can be kept."""
        self.keep = keep
        self._is_attended = True
        self.attempt = None
        self.release_slot()
        self._ended(self)

    def attend(self) -> None:
        """From now on a coroutine goes on with the exchange, and is cancelled if the caller leaves."""
        self._is_attended = True

    def abandon(self) -> None:
        """The caller has left: end the exchange, unless a coroutine attends to it."""
        if not self._is_attended:
            if self.attempt is not None:
                self.attempt.abandon()
            self._leave_queue()
            self.finish(keep=False)

    def stop(self, error: ProxyError) -> bool:
        """End the request with ``error``, or cut its answer; False: its coroutine has to be cancelled."""
        if self._leave_queue():
            self.request.facts.refusal = error
            self.request.connection.interrupted()
            return True
        if self.attempt is None or self.attempt.is_over:
            return False
        self.attempt.stop(error)
        return True

    def _leave_queue(self) -> bool:
        """Whether the request was waiting for a slot without a task; it isn't any more."""
        if self._turn is None:
            return False
        self._queued_at.leave(self._turn)
        self._turn = None
        self._end_wait()
        return True

    # The slot

    async def take_slot(self, wait_s: float, *, first: bool) -> None:
        """Take a slot within ``wait_s`` seconds; ``first``: before the requests that wait already.

        Raises QueueTimeout.
        """
        slots = self.project.slots
        if first or not slots.try_acquire():
            self._begin_wait()
            try:
                await slots.acquire(self._turn_key(), wait_s, first=first)
            finally:
                self._end_wait()
        self._slots = slots

    def _begin_wait(self) -> None:
        self._wait_began_at = time.perf_counter()
        self._waits.begin_wait()

    def _end_wait(self) -> None:
        self._waits.end_wait()
        self.request.facts.waited_s += time.perf_counter() - self._wait_began_at

    @property
    def others_wait(self) -> bool:
        """Whether other requests wait for the slot that this one holds."""
        return self._slots is not None and self.project.slots.waiting > 0

    @property
    def has_slot(self) -> bool:
        """Whether the request holds a slot."""
        return self._slots is not None

    def _turn_key(self) -> Hashable:
        """Requests with different keys take turns at the slots: the caller, or else its connection."""
        return self.request.facts.caller or id(self.request.connection)

    def release_slot(self) -> None:
        """Give the slot back, if one is held."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()

    def note_answer(self) -> None:
        """Tell the slots that the cloud answered, before the slot is given back."""
        if self._slots is not None:
            self._slots.note_answer()

    def note_crowding(self) -> None:
        """Tell the slots that too many requests ran at once at the cloud, before the slot is given back."""
        if self._slots is not None:
            self._slots.note_refusal()


def exchange_of(request: Request) -> Exchange | None:
    """The exchange of a request, None for one that is not forwarded."""
    exchange = request.exchange
    return exchange if isinstance(exchange, Exchange) else None
