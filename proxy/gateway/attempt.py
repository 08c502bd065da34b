"""One try of one request on one upstream connection, in both directions.

Hides streaming with back-pressure both ways, framing on the caller's side, which part of an answer is held
back because the request may be sent again, and how the caller is told that an answer was cut. Doesn't decide
whether the request is sent again: an `Attempt` only says how it ended.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Final, Protocol

from proxy.contentsquare import CONCURRENT_API_CALL
from proxy.errors import ConnectionLost, ProxyError, RequestTimeout, UpstreamError, UpstreamSilent, WayDied
from proxy.gateway.held_error import HeldError
from proxy.gateway.rewrite import interim_head, response_head, trailers_to_caller, trailers_to_upstream
from proxy.http1 import BODYLESS, Field, ResponseHead, chunk, last_chunk
from proxy.server.body import RequestBody
from proxy.server.facts import Cut
from proxy.server.request import Request, WritingPeer
from proxy.tokens import Lease
from proxy.upstream.connection import CloudConnection


class Outcome(enum.Enum):
    """How one attempt ended."""

    DELIVERED = "the answer is with the caller, whole"
    CUT = "the answer was cut, and so was the caller's connection"
    UNAUTHORIZED = "401: nothing went to the caller"
    CROWDED = "too many requests ran at once at the cloud: nothing went to the caller"
    STALE = "a reused connection closed before a byte of an answer: nothing went to the caller"
    FAILED = "there will be no answer: nothing went to the caller"


# Of each request; a look-up in an enumeration takes as long as three calls.
_DELIVERED: Final = Outcome.DELIVERED
_CUT: Final = Outcome.CUT
_FINAL: Final = (_DELIVERED, _CUT)


class Recorder(Protocol):
    """Hears of the answer as it comes, try by try, where the proxy shares answers."""

    def on_start(self, source: WritingPeer) -> WritingPeer:
        """The request goes out; returns the peer to slow down when the caller is slow."""
        ...

    def on_head(self, head: ResponseHead) -> bytes:
        """An answer's head; returns the field line to add to it for the caller."""
        ...

    def on_body(self, data: bytes) -> None:
        """Content."""

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is complete."""

    def on_over(self) -> None:
        """Nothing more will come: the request was answered, or its caller has left."""


class Attempt:
    """One try of one request on one upstream connection, with the token of one lease.

    Implements `ResponseSink` for what the cloud sends, and `BodySink` for what the caller sends.
    ``may_be_stale``: the connection may have been closing, so that the request can be sent again if no answer
    comes; ``may_outlive_way``: also if the way to the cloud died. ``ended`` is called when the attempt is
    over, unless it was abandoned. Then ``outcome`` says how it ended, and ``error`` why it is a failure.
    """

    __slots__ = (
        "_caller_chunked",
        "_connection",
        "_ended",
        "_held",
        "_may_be_stale",
        "_may_outlive_way",
        "_no_answer",
        "_out",
        "_recorder",
        "_request",
        "_starting",
        "error",
        "is_final",
        "is_over",
        "keep",
        "lease",
        "outcome",
    )

    def __init__(  # noqa: PLR0917 - keywords take longer
        self,
        request: Request,
        connection: CloudConnection,
        lease: Lease,
        ended: Callable[[Attempt], None],
        recorder: Recorder | None,
        may_be_stale: bool,
        may_outlive_way: bool,
    ) -> None:
        self.lease = lease
        self._request = request
        self._connection = connection
        self._ended = ended
        self._may_be_stale = may_be_stale
        self._may_outlive_way = may_outlive_way
        self._recorder = recorder
        self._caller_chunked = False
        self._no_answer: Outcome | None = None
        """Why the cloud's answer isn't for the caller; None where it is."""
        self._out: list[bytes] = []
        """For the caller, at the next flush."""
        self._held: HeldError | None = None
        """A small error until it is whole; meanwhile, one of 4xx is held back together with ``_out``."""
        self._starting: list[bytes] | None = None
        """The first bytes for the cloud, while they are put together."""
        self.is_over = False
        self.outcome = _CUT
        self.is_final = True
        """Whether the answer is with the caller or was cut, so that no other try can follow."""
        self.error: UpstreamError | ProxyError | None = None
        self.keep = False
        """Whether the caller's connection can be kept."""

    def send(self, head: bytes) -> None:
        """Send the request's head; its content follows as it comes from the caller."""
        request = self._request
        body = request.body
        is_head_request = request.head.method == b"HEAD"
        request.facts.sent_at = time.perf_counter()
        request.facts.upstream = self.lease.origin
        recorder = self._recorder
        request.connection.peer = (
            self._connection if recorder is None else recorder.on_start(self._connection)
        )
        if body.complete and not body.received:
            if request.head.chunked:
                head += last_chunk(trailers_to_upstream(body.trailers, request.head))
            self._connection.start(self, head, is_head_request, True)
            return
        self._starting = [head]
        body.attach(self)
        first, self._starting = b"".join(self._starting), None
        if self.is_over:  # the content is malformed; the connection didn't know of this attempt yet
            self._connection.close()
        else:
            self._connection.start(self, first, is_head_request, body.complete)

    def abandon(self) -> None:
        """End the attempt at once, without calling ``ended``; does nothing if the attempt is over."""
        if not self.is_over:
            self._detach()
            self._connection.abandon(self)

    def stop(self, error: ProxyError) -> None:
        """End the attempt: with ``error`` if no part of an answer went to the caller, else cut the answer."""
        self._connection.abandon(self)
        if self._request.head_sent:
            self._abort_caller()
        else:
            self._end(Outcome.FAILED, error)

    def _end(self, outcome: Outcome, error: UpstreamError | ProxyError | None = None) -> None:
        if not self.is_over:
            self._detach()
            self.outcome, self.error = outcome, error
            self.is_final = outcome in _FINAL
            self._ended(self)

    def _detach(self) -> None:
        self.is_over = True
        self._request.connection.peer = None
        self._request.body.detach()

    # BodySink: from the caller to the cloud

    def on_request_body(self, data: bytes) -> None:
        """Content from the caller."""
        if self._request.head.chunked:
            data = chunk(data)
        if self._starting is not None:
            self._starting.append(data)
        else:
            self._connection.write(data)

    def on_request_end(self, trailers: list[Field]) -> None:
        """The caller's content is complete."""
        if self._request.head.chunked:
            end = last_chunk(trailers_to_upstream(trailers, self._request.head))
            if self._starting is not None:
                self._starting.append(end)
            else:
                self._connection.write(end)
        if self._starting is None:
            self._connection.finish_request()

    def on_request_broken(self, error: ProxyError) -> None:
        """The caller's framing is malformed: the cloud must not take the request for whole."""
        if self._request.head_sent:
            self._request.facts.cut = Cut(error.message.rstrip("."), "caller")
        self.stop(error)

    # ResponseSink: from the cloud to the caller

    def on_informational(self, head: ResponseHead) -> None:
        """Pass an interim answer on (RFC 9110, section 15.2)."""
        if self._request.head.minor == 1:
            self._request.write(interim_head(head))

    def on_head(self, head: ResponseHead) -> None:
        """The final answer's head: hold it until its first bytes are here."""
        if head.status == 401:
            self._no_answer = Outcome.UNAUTHORIZED
            return
        request = self._request
        if head.status == 408 and not head.keep_alive and self._may_be_stale and request.body.replayable:
            # The cloud sent it before the request came, most likely (RFC 9110, section 15.5.9).
            self._no_answer = Outcome.STALE
            return
        asked, connection = request.head, request.connection
        bodyless = head.status in BODYLESS or asked.method == b"HEAD"
        ends = bodyless or head.content_length is not None
        self._caller_chunked = chunked = not ends and asked.minor == 1
        self.keep = keep = (
            (ends or chunked) and asked.keep_alive and not connection.is_ending and request.body.complete
        )
        if head.status >= 400 and not bodyless:
            self._held = HeldError.of(head)
        request.status = head.status
        added = b"" if self._recorder is None else self._recorder.on_head(head)
        self._out.append(response_head(head, asked, keep, chunked, added))
        if connection.writing_paused:
            self._connection.pause()

    def on_body(self, data: bytes) -> None:
        """Content from the cloud."""
        if self._no_answer:
            return
        self._request.answer_bytes += len(data)
        self._out.append(chunk(data) if self._caller_chunked else data)
        if self._recorder is not None:
            self._recorder.on_body(data)
        if self._held is not None and not self._held.feed(data):
            self._held = None

    def on_flush(self) -> None:
        """Send the caller the bytes that have come so far."""
        if self._no_answer:
            # The rest of such an answer isn't worth a wait.
            self._connection.close()
            self._end(self._no_answer)
        elif self._out and (self._held is None or self._request.status >= 500):
            out, self._out = self._out, []
            self._request.head_sent = True
            self._request.write(b"".join(out))

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is complete."""
        request = self._request
        request.connection.peer = None
        if self._no_answer:
            self._end(self._no_answer)
            return
        if self._held is not None:
            code = self._held.error_code()
            if code == CONCURRENT_API_CALL and request.status < 500:
                request.status = request.answer_bytes = 0
                self._end(Outcome.CROWDED)
                return
            request.facts.vendor_code = code
            self._held = None
        if self._recorder is not None:
            self._recorder.on_end(trailers)
        if self._caller_chunked:
            self._out.append(last_chunk(trailers_to_caller(trailers, request.head)))
        self.on_flush()
        self._end(_DELIVERED)

    def on_failure(self, error: UpstreamError) -> None:
        """The answer will never be complete: if a part went to the caller, it must not look whole."""
        if self._request.head_sent:
            self._request.facts.cut = Cut(str(error), error.side)
            self._abort_caller()
        elif (
            (self._may_be_stale or (self._may_outlive_way and isinstance(error, WayDied)))
            and not self._connection.answered
            and isinstance(error, ConnectionLost)
            and self._request.body.replayable
        ):
            self._end(Outcome.STALE)
        else:
            self._end(Outcome.FAILED, _blamed(error, self._request.body))

    def on_writable(self, *, writable: bool) -> None:
        """The cloud takes the content more slowly than the caller sends it, or has caught up."""
        if writable:
            self._request.body.resume()
        else:
            self._request.body.pause()

    def _abort_caller(self) -> None:
        self.keep = False
        self._request.connection.abort()
        self._end(_CUT)


def _blamed(error: UpstreamError, body: RequestBody) -> UpstreamError | RequestTimeout:
    """The error; if the cloud was silent because content is missing, an error that blames the caller."""
    if isinstance(error, UpstreamSilent) and not body.complete and not body.is_paused:
        return RequestTimeout("The request's content did not come in time; send it again.")
    return error
