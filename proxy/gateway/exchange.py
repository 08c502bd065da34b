"""One request's way to a cloud and back.

Two engines do the work, because most requests wait for nothing but the cloud, and a task and its waiting
would cost each of them a sixth more CPU time:

- `Exchange.try_now` is called from the event loop, for a request whose content is there. If a token, a
  slot and an idle connection are there as well, this function sends the request at once. Callbacks then
  pass the cloud's answer on to the caller, and the last of them ends the exchange.
- `proxy.gateway.tries.run` is a coroutine for every other request. This coroutine waits for a token, a
  slot and a connection, and sends a request again where that is safe; also one that `try_now` sent in vain.

Must not know OAuth, configuration, or how a caller's connection works.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from proxy.contentsquare import Api
from proxy.gateway.attempt import Attempt, Recorder
from proxy.gateway.policy import may_change_data
from proxy.gateway.rewrite import request_head
from proxy.projects import Project, Slots
from proxy.server.request import Request
from proxy.tokens import Lease
from proxy.upstream.connection import CloudConnection
from proxy.upstream.pool import KEEP_ALIVE_S, SURE_REUSE_S, Upstreams


class Exchange:
    """One request on its way to the cloud and back; meanwhile it holds at most one slot.

    ``target`` lacks the project's prefix. ``queue_timeout_s`` is how long the request may wait for a slot.
    ``ended`` is called once where `try_now` returned True and `attend` was not called since: the answer is
    with the caller or was cut, or the caller has left.
    """

    __slots__ = (
        "_ended",
        "_is_attended",
        "_slots",
        "api",
        "attempt",
        "changes",
        "is_counted",
        "keep",
        "max_idle_s",
        "project",
        "queue_timeout_s",
        "recorder",
        "request",
        "target",
        "upstreams",
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
        self.upstreams = upstreams
        self.queue_timeout_s = queue_timeout_s
        self.changes = may_change_data(request.head, target)
        """Whether the request may change data, so that it isn't sent again where it may have arrived."""
        self.max_idle_s = SURE_REUSE_S if self.changes else KEEP_ALIVE_S
        """How long a connection that carries the request may have been idle, in seconds."""
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
        self._slots: Slots | None = None

    def try_now(self) -> bool:
        """Send the request now; False if the request has to wait; then nothing has changed."""
        lease = self.project.keeper(self.api).current()
        slots = self.project.slots
        if lease is None or not slots.try_acquire(self.turn_key()):
            return False
        connection = self.upstreams.pool(lease.origin).take_idle(self.max_idle_s)
        if connection is None:
            slots.release()
            return False
        self.hold_slot(slots)
        try:
            self.send(connection, lease, self._on_attempt_ended, reused=True)
        except BaseException:
            self.attempt = None
            self.release_slot()
            raise
        return True

    def send(
        self, connection: CloudConnection, lease: Lease, ended: Callable[[Attempt], None], *, reused: bool
    ) -> Attempt:
        """Send the request; ``reused``: the connection carried another one before, and may be closing."""
        # Once, because a way may die of the request itself: too big for a tunnel, for example.
        may_outlive_way = not self.changes and "stale" not in self.request.facts.replays
        self.attempt = attempt = Attempt(
            self.request,
            connection,
            lease,
            ended,
            self.recorder,
            may_be_stale=reused and not self.changes,
            may_outlive_way=may_outlive_way,
        )
        self.project.calls.add()
        attempt.send(request_head(self.request.head, self.target, lease))
        return attempt

    def _on_attempt_ended(self, attempt: Attempt) -> None:
        if attempt.is_final:
            self.note_answer()
            self.finish(keep=attempt.keep)
        else:
            self.request.connection.interrupted()

    def finish(self, *, keep: bool) -> None:
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
            self.finish(keep=False)

    # The slot

    @property
    def others_wait(self) -> bool:
        """Whether other requests wait for the slot that this one holds."""
        return self._slots is not None and self.project.slots.waiting > 0

    @property
    def has_slot(self) -> bool:
        """Whether the request holds a slot."""
        return self._slots is not None

    def turn_key(self) -> Hashable:
        """Requests with different keys take turns at the slots: the caller, or else its connection."""
        return self.request.facts.caller or id(self.request.connection)

    def hold_slot(self, slots: Slots) -> None:
        """A slot of these was acquired for the request."""
        self._slots = slots

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
