"""An answer on its way to its caller, kept as it comes for others who want the same one.

Hides when it stops being fit for them, and that they are told at once: it isn't whole JSON of status
200, or is too long; its caller leaves, or takes it slowly; it takes longer than anybody should wait.
Knows one answer and who waits for it; must not know projects, keys, or the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from proxy.contentsquare import Api
from proxy.gateway.rewrite import shared_head
from proxy.gateway.sharing.cache_rules import MAX_CONTENT_BYTES, Verdict, verdict_of
from proxy.http1.heads import Field, ResponseHead
from proxy.projects.stored import Answer
from proxy.server.request import Request, WritingPeer

Key = tuple[str | None, Api, bytes, bytes]
"""The caller's name (None where no callers are defined), API, target, and the fields that go upstream."""
PATIENCE_S = 30.0
"""Followers are let go when an answer isn't whole so long after its request went out."""


def cache_status(members: bytes) -> bytes:
    """Our field line; where the cloud sent one as well, ours comes after it (RFC 9211, section 2)."""
    return b"Cache-Status: csq-proxy; " + members


class Note:
    """In place of a recording, where the answer is one caller's alone: only says so to that one."""

    __slots__ = ("_line",)

    def __init__(self, members: bytes) -> None:
        self._line = cache_status(members)

    def on_start(self, source: WritingPeer) -> WritingPeer:
        """Leaves everything as it is."""
        return source

    def on_head(self, head: ResponseHead) -> bytes:  # noqa: ARG002 - a recorder's interface
        """The line for the caller."""
        return self._line

    def on_body(self, data: bytes) -> None:
        """Nothing to do."""

    def on_end(self, trailers: list[Field]) -> None:
        """Nothing to do."""

    def on_over(self) -> None:
        """Nothing to do."""


class Change(Note):
    """Of a request that may change data: ``forget`` is called before its caller knows how it ended."""

    __slots__ = ("_forget",)

    def __init__(self, members: bytes, forget: Callable[[], None]) -> None:
        super().__init__(members)
        self._forget = forget

    def on_head(self, head: ResponseHead) -> bytes:
        """It was carried out, or refused."""
        self._forget()
        return super().on_head(head)

    def on_end(self, trailers: list[Field]) -> None:  # noqa: ARG002 - a recorder's interface
        """It took until now, perhaps."""
        self._forget()

    def on_over(self) -> None:
        """It may have been carried out."""
        self._forget()


class Owner(Protocol):
    """Whose recording it is."""

    def ended(self, recording: Recording) -> None:
        """Nobody can follow it any more, and its answer is there or will never be."""


class Recording:
    """The answer to ``request``, which leads; those that `follow` get it as well.

    ``why`` it went forward, and what became of a running one before, is what Cache-Status says to its
    caller. ``keep_s`` is for how long the answer may be stored, in seconds. ``answer`` is there once it
    is whole and may be shared. ``is_vacant``: those who followed were let go because of the caller, and
    one of them should lead in its place.
    """

    __slots__ = (
        "_began_at",
        "_ended",
        "_is_over",
        "_keep_s",
        "_owner",
        "_parts",
        "_sent_at",
        "_shareable_head",
        "_size",
        "_source",
        "_timer",
        "_verdict",
        "_waited_before_s",
        "answer",
        "epoch",
        "is_vacant",
        "key",
        "request",
        "why",
    )

    def __init__(
        self, owner: Owner, request: Request, key: Key, epoch: int, why: bytes, *, keep_s: float
    ) -> None:
        self._owner = owner
        self.request = request
        self.key = key
        self.epoch = epoch
        self.why = why
        self._keep_s = keep_s
        self._began_at, self._waited_before_s = time.perf_counter(), request.waited_s
        self._ended: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._source: WritingPeer | None = None
        self._sent_at: float | None = None
        self._shareable_head: ResponseHead | None = None
        self._verdict: Verdict | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._is_over = False
        self.answer: Answer | None = None
        self.is_vacant = False

    # Recorder

    def on_start(self, source: WritingPeer) -> WritingPeer:
        """The request goes out, once more perhaps: this counts as when the answer was asked for."""
        self._source = source
        self._sent_at = self.request.connection.loop.time()
        if self._ended is not None:
            self._limit()
        return self

    def on_head(self, head: ResponseHead) -> bytes:
        """Judge the answer by its head."""
        verdict = verdict_of(head)
        if verdict.refusal is None:
            self._verdict, self._shareable_head = verdict, head
            if self.request.connection.writing_paused:
                self._let_go(vacant=True)
        elif head.status == 200:
            self._refuse()
            return cache_status(self.why) + b"; detail=" + verdict.refusal
        elif not 400 <= head.status < 500:  # one of those may still be asked again: `Attempt` knows
            self._refuse()
        return cache_status(self.why)

    def on_body(self, data: bytes) -> None:
        """Keep the content, within bounds."""
        if self._shareable_head is None:
            return
        self._size += len(data)
        if self._size > MAX_CONTENT_BYTES:
            self._refuse()
        else:
            self._parts.append(data)

    def on_end(self, trailers: list[Field]) -> None:
        """It is whole: who waits for it gets it."""
        head, verdict, sent_at = self._shareable_head, self._verdict, self._sent_at
        if head is None or verdict is None or sent_at is None:
            return
        if self._ended is None and not self._keep_s:  # nobody wants it
            self._let_go(vacant=False)
            return
        if trailers:
            self._refuse()
            return
        parts = self._parts
        self.answer = Answer(
            shared_head(head, self._size),
            parts[0] if len(parts) == 1 else b"".join(parts),
            asked_at=sent_at,
            age_s=verdict.age_s,
            lifetime_s=min(self._keep_s, verdict.lifetime_s),
        )
        self._end()

    def on_over(self) -> None:
        """Without a whole answer: who follows needn't wait any longer.

        If the caller left, or got no slot in time, the next one may have more luck.
        """
        if self._is_over:
            return
        request = self.request
        has_left = request.transport.is_closing() and request.cut_because is None
        had_no_turn = self._sent_at is None and request.waited_s > self._waited_before_s
        self._let_go(vacant=has_left or had_no_turn)

    # WritingPeer

    def pause(self) -> None:
        """The caller is slow: nobody else shall wait for it."""
        self._let_go(vacant=True)
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        """The caller has caught up."""
        if self._source is not None:
            self._source.resume()

    # Those who wait

    async def follow(self, request: Request) -> Answer | None:
        """The answer, once it is whole; None for who is let go, and has to see for itself.

        What was waited while the one who leads waited for a slot counts as waiting for a slot.
        """
        joined_at = time.perf_counter()
        if self._ended is None:
            self._ended = request.connection.loop.create_future()
            self._limit()
        # A follower's caller may leave, which must not end it for the others.
        await asyncio.wait((self._ended,))
        if self.answer is not None:
            return self.answer
        slot_at = self._began_at + self.request.waited_s - self._waited_before_s
        request.waited_s += max(0.0, min(slot_at, time.perf_counter()) - joined_at)
        return None

    def _let_go(self, *, vacant: bool) -> None:
        """Who waits shall wait no longer."""
        if not self._is_over:
            self.is_vacant = vacant
            if not self._keep_s:
                self._forget()
            self._end()

    def _refuse(self) -> None:
        """Nobody else can have this answer."""
        self._forget()
        self._let_go(vacant=False)

    def _forget(self) -> None:
        self._shareable_head = None
        self._parts = []

    def _end(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._owner.ended(self)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _limit(self) -> None:
        """Bound what followers wait, from when both the request is out and one of them is there."""
        if self._sent_at is not None and self._timer is None and not self._is_over:
            loop = self.request.connection.loop
            self._timer = loop.call_at(self._sent_at + PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._let_go(vacant=False)
