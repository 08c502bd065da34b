"""Records an answer on its way to its caller, for the requests that follow and for the store.

Hides when the answer can no longer be shared, and that the followers' wait then ends at once: the answer
isn't complete JSON of status 200, or is too long; the leader's caller leaves, or reads the answer slowly.
Knows one answer; must not know projects, keys, or the store.
Source: RFC 9211.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.gateway.rewrite import shared_head
from proxy.gateway.sharing.cache_rules import MAX_CONTENT_BYTES, Verdict, verdict_of
from proxy.http1 import Field, ResponseHead
from proxy.projects.shared_answers import RunningAnswer
from proxy.projects.stored import Answer
from proxy.server.request import Request, WritingPeer


def cache_status(members: bytes) -> bytes:
    """The proxy's Cache-Status line; it comes after the cloud's, if there is one (RFC 9211, section 2)."""
    return b"Cache-Status: csq-proxy; " + members


class Note:
    """Records nothing, for an answer that can't be shared; only adds the line that tells the caller why."""

    __slots__ = ("_line",)

    def __init__(self, members: bytes) -> None:
        self._line = cache_status(members)

    def on_start(self, source: WritingPeer) -> WritingPeer:
        """The caller's connection slows the cloud's down, as usual."""
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
    """For a request that may change data: calls ``forget`` before its caller learns how the request ended."""

    __slots__ = ("_forget",)

    def __init__(self, members: bytes, forget: Callable[[], None]) -> None:
        super().__init__(members)
        self._forget = forget

    def on_head(self, head: ResponseHead) -> bytes:
        """The cloud has carried the request out, or refused it."""
        self._forget()
        return super().on_head(head)

    def on_end(self, trailers: list[Field]) -> None:  # noqa: ARG002 - a recorder's interface
        """The change may have come into effect only now."""
        self._forget()

    def on_over(self) -> None:
        """The request may have been carried out, though no answer came."""
        self._forget()


class Recording:
    """Records the answer to ``request``, which leads, and ends ``running`` for the requests that follow.

    ``keep_s`` is for how long the answer may be stored, in seconds; 0: not at all.
    """

    __slots__ = (
        "_keep_s",
        "_parts",
        "_request",
        "_running",
        "_sent_at",
        "_shareable_head",
        "_size",
        "_source",
        "_verdict",
    )

    def __init__(self, request: Request, running: RunningAnswer, *, keep_s: float) -> None:
        self._request = request
        self._running = running
        self._keep_s = keep_s
        self._source: WritingPeer | None = None
        self._sent_at: float | None = None
        self._shareable_head: ResponseHead | None = None
        self._verdict: Verdict | None = None
        self._parts: list[bytes] = []
        self._size = 0

    # Recorder

    def on_start(self, source: WritingPeer) -> WritingPeer:
        """The request goes out, perhaps not for the first time: its answer's age is counted from now."""
        self._source = source
        self._sent_at = self._request.connection.loop.time()
        self._running.sent(self._sent_at)
        return self

    def on_head(self, head: ResponseHead) -> bytes:
        """Judge the answer by its head."""
        verdict = verdict_of(head)
        why = self._running.why
        if verdict.refusal is None:
            self._verdict, self._shareable_head = verdict, head
            if self._request.connection.writing_paused:
                self._let_go(vacant=True)
        elif head.status == 200:
            self._refuse()
            return cache_status(why) + b"; detail=" + verdict.refusal
        elif not 400 <= head.status < 500:  # after such an error the request may be sent again
            self._refuse()
        return cache_status(why)

    def on_body(self, data: bytes) -> None:
        """Keep the content, up to `MAX_CONTENT_BYTES`."""
        if self._shareable_head is None:
            return
        self._size += len(data)
        if self._size > MAX_CONTENT_BYTES:
            self._refuse()
        else:
            self._parts.append(data)

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is whole: followers get it, and the store."""
        head, verdict, sent_at = self._shareable_head, self._verdict, self._sent_at
        if head is None or verdict is None or sent_at is None:
            return
        if not (self._running.has_followers or self._keep_s):
            self._let_go(vacant=False)
            return
        if trailers:
            self._refuse()
            return
        parts = self._parts
        answer = Answer(
            shared_head(head, self._size),
            parts[0] if len(parts) == 1 else b"".join(parts),
            asked_at=sent_at,
            age_s=verdict.age_s,
            lifetime_s=min(self._keep_s, verdict.lifetime_s),
        )
        self._running.complete(answer)

    def on_over(self) -> None:
        """The request is over: where no whole answer came, the followers' wait ends.

        If the leader's caller left, or its request got no slot in time, a follower may succeed as leader.
        """
        if self._running.is_over:
            return
        request = self._request
        has_left = request.transport.is_closing() and request.facts.cut is None
        self._let_go(vacant=has_left or self._running.leader_had_no_slot)

    # WritingPeer

    def pause(self) -> None:
        """The leader's caller is slow: no other request may wait for this caller."""
        self._let_go(vacant=True)
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        """The leader's caller has caught up."""
        if self._source is not None:
            self._source.resume()

    def _let_go(self, *, vacant: bool) -> None:
        """No request may wait for this answer any longer; the answer may still be stored."""
        if not self._running.is_over:
            if not self._keep_s:
                self._drop_content()
            self._running.let_go(vacant=vacant)

    def _refuse(self) -> None:
        """No other request can have this answer."""
        self._drop_content()
        self._let_go(vacant=False)

    def _drop_content(self) -> None:
        self._shareable_head = None
        self._parts = []
