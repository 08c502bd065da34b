"""One project's shared answers: those that are stored, and those that are on their way to a caller.

Holds the state that lasts longer than one request. A request that is forwarded, and whose answer others may
have too, leads. An identical request that comes meanwhile follows: it takes no slot, and waits for the
leader's answer. Hides how long followers wait, and that `SharedAnswers.forget` keeps earlier answers from
later requests. `proxy.gateway.sharing` decides which request may have which answer.
"""

from __future__ import annotations

import asyncio
import time

from proxy.contentsquare import Api
from proxy.projects.stored import Answer, Shelf
from proxy.server.request import Request

Key = tuple[str | None, Api, bytes, bytes]
"""The caller's name (None where no callers are defined), API, target, and the fields that go upstream.

Requests with the same key have the same answer.
"""
PATIENCE_S = 30.0
"""Followers are let go if the answer isn't whole this time after the leader's request went out."""


class RunningAnswer:
    """The answer to the request ``leader``, on its way; requests that `follow` it get it as well.

    ``why`` is the reason in Cache-Status why the leader was forwarded. ``answer`` is set once it is
    whole and may be shared. ``is_vacant``: the followers were let go because of the leader's caller, so that
    one of them should lead in its place. ``is_over``: no request can follow it any more.
    """

    __slots__ = (
        "_answers",
        "_began_at",
        "_ended",
        "_epoch",
        "_key",
        "_leader",
        "_sent_at",
        "_timer",
        "_waited_before_s",
        "answer",
        "is_over",
        "is_vacant",
        "why",
    )

    def __init__(self, answers: SharedAnswers, key: Key, leader: Request, why: bytes, epoch: int) -> None:
        self.why = why
        self.answer: Answer | None = None
        self.is_vacant = False
        self.is_over = False
        self._answers = answers
        self._key = key
        self._leader = leader
        self._epoch = epoch
        self._began_at, self._waited_before_s = time.perf_counter(), leader.facts.waited_s
        self._sent_at: float | None = None
        self._ended: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_followers(self) -> bool:
        """Whether a request has followed it."""
        return self._ended is not None

    @property
    def leader_had_no_slot(self) -> bool:
        """Whether the leader's request waited for a slot and was never sent."""
        return self._sent_at is None and self._leader.facts.waited_s > self._waited_before_s

    async def follow(self, request: Request) -> Answer | None:
        """Wait for the answer; None where the request was let go and has to be forwarded.

        The time during which the leader waited for a slot counts as the follower's wait for a slot.
        """
        joined_at = time.perf_counter()
        if self._ended is None:
            self._ended = request.connection.loop.create_future()
            self._limit()
        # The follower's own caller may leave, which must not end the wait of the others.
        await asyncio.wait((self._ended,))
        if self.answer is not None:
            return self.answer
        slot_at = self._began_at + self._leader.facts.waited_s - self._waited_before_s
        request.facts.waited_s += max(0.0, min(slot_at, time.perf_counter()) - joined_at)
        return None

    def sent(self, at: float) -> None:
        """The leader's request went out at this time of the event loop, perhaps not for the first time."""
        self._sent_at = at
        if self._ended is not None:
            self._limit()

    def let_go(self, *, vacant: bool) -> None:
        """End the wait of the followers, without the answer."""
        if not self.is_over:
            self.is_vacant = vacant
            self._end()

    def complete(self, answer: Answer) -> None:
        """The answer is whole: followers get it, and it is stored if that is allowed."""
        self.answer = answer
        self._end()
        self._answers.store(self._key, answer, self._epoch)

    def _end(self) -> None:
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._answers.leave(self._key, self)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _limit(self) -> None:
        """Bound the followers' wait, once the leader's request is out and one of them is there."""
        if self._sent_at is not None and self._timer is None and not self.is_over:
            loop = self._leader.connection.loop
            self._timer = loop.call_at(self._sent_at + PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self.let_go(vacant=False)


class SharedAnswers:
    """The answers of one project. ``keep_s``: how long one may be stored, in seconds; 0: not at all."""

    def __init__(self, shelf: Shelf, keep_s: float) -> None:
        self.shelf = shelf
        self.keep_s = keep_s
        self._running: dict[Key, RunningAnswer] = {}
        self._epoch = 0
        """How often `forget` was called."""

    def forget(self) -> None:
        """Share no answer that is stored or on its way now with a request that comes later."""
        self._epoch += 1
        self._running.clear()
        self.shelf.clear()

    def running(self, key: Key) -> RunningAnswer | None:
        """The answer on its way that a request with this key can follow, None where there is none."""
        return self._running.get(key)

    def lead(self, key: Key, leader: Request, why: bytes, *, alone: bool) -> RunningAnswer:
        """The answer to ``leader``, which is about to be forwarded; ``alone``: no request may follow it."""
        running = RunningAnswer(self, key, leader, why, self._epoch)
        if not alone:
            self._running[key] = running
        return running

    def leave(self, key: Key, running: RunningAnswer) -> None:
        """No request can follow this answer any more."""
        if self._running.get(key) is running:
            del self._running[key]

    def store(self, key: Key, answer: Answer, epoch: int) -> None:
        """Store an answer whose request went out in ``epoch``, where it is fresh and the latest."""
        if epoch != self._epoch or not answer.is_fresh_at(asyncio.get_running_loop().time()):
            return
        stored = self.shelf.get(key)
        if stored is None or stored.asked_at <= answer.asked_at:
            self.shelf.put(key, answer, len(key[2]) + len(key[3]))
