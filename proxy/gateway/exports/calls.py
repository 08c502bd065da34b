"""A call to Contentsquare that the proxy makes for an answer of its own.

The call is an `Exchange` like each caller's: it waits for a slot in its caller's turn, and is sent again
after a refused token or where too many run at once. Hides that its answer is collected in memory.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, cast

from proxy import __version__
from proxy.contentsquare import Api
from proxy.errors import ProxyError, UpstreamUnreachable
from proxy.gateway import policy, tries
from proxy.gateway.exchange import Exchange
from proxy.gateway.failures import answer_at_stop
from proxy.gateway.recent import keep
from proxy.gateway.request_log import log_request
from proxy.gateway.stalls import StallWatch
from proxy.http1 import ResponseHead, parse_request_head, parse_response_head
from proxy.projects import Project
from proxy.projects.recent import RecentRequests
from proxy.server.answer import write_error
from proxy.server.body import RequestBody
from proxy.server.request import Listener, Request, WritingPeer
from proxy.server.request_id import request_id
from proxy.upstream.pool import Upstreams

MOST_BYTES: Final = 8 << 20
"""Bytes of an answer; a longer one is an error."""
RETRY_AFTER_S: Final = 5
_FIELDS: Final = (
    # HTTP/1.0, so that the answer's content has no framing: its end is the end of the call.
    " HTTP/1.0\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
    f"User-Agent: csq-proxy/{__version__}"
).encode()


class OwnCalls:
    """Makes calls for one request of a caller: its caller has the turn, and its connection the name."""

    def __init__(
        self,
        request: Request,
        project: Project,
        upstreams: Upstreams,
        stalls: StallWatch,
        recent: RecentRequests,
        *,
        queue_timeout_s: float,
    ) -> None:
        self._request = request
        self.project = project
        self._upstreams = upstreams
        self._stalls = stalls
        self._recent = recent
        self._queue_timeout_s = queue_timeout_s

    async def get(self, api: Api, target: bytes) -> tuple[ResponseHead, bytes]:
        """The whole answer to a GET of ``target``. Raises ProxyError."""
        head = parse_request_head(b"GET " + target + _FIELDS)
        policy.check_secrets(head, target)
        policy.check_oauth(target)
        collector = _Collector(self._request.connection.listener)
        request = Request(head, RequestBody(collector), collector)
        request.body.complete = True
        request.facts.caller = self._request.facts.caller
        request.facts.request_id = request_id(self._request)
        request.facts.began_at = time.perf_counter()
        exchange = Exchange(
            request,
            self.project,
            api,
            target,
            self._upstreams,
            waits=self._stalls,
            queue_timeout_s=self._queue_timeout_s,
            ended=lambda _: None,
        )
        request.exchange = exchange
        exchange.attend()
        self.project.requests[api] += 1
        self.project.running += 1
        try:
            async with asyncio.timeout(None) as collector.limit:
                await tries.run(exchange)
        except TimeoutError:
            raise _unusable(f"it is longer than {MOST_BYTES >> 20} MiB") from None
        except (ProxyError, asyncio.CancelledError) as failure:
            self._end(exchange, failure)
            raise
        finally:
            took_s = time.perf_counter() - request.facts.began_at
            self.project.running -= 1
            self.project.measures.count_request(api, request, took_s)
            self._request.facts.waited_s += request.facts.waited_s
            log_request(request, took_s)
            if self._recent.is_on:
                keep(self._recent, request, exchange, took_s)
            request.exchange = None
        if collector.is_aborted:
            cut = request.facts.cut
            raise _unusable(f"it was cut ({'its caller left' if cut is None else cut.why})")
        lines, _, content = collector.answer.partition(b"\r\n\r\n")
        return parse_response_head(bytes(lines)), bytes(content)

    def _end(self, exchange: Exchange, failure: BaseException) -> None:
        """Let the call end as a caller's request does, for the log and the counts."""
        request = exchange.request
        error = answer_at_stop(exchange) if self._request.facts.is_stopped else failure
        if isinstance(error, ProxyError) and not request.head_sent:
            write_error(request, error)
        else:  # its caller has left
            request.connection.abort()


def _unusable(why: str) -> UpstreamUnreachable:
    return UpstreamUnreachable(
        f"Contentsquare's answer about the export can't be used: {why}. Try again.",
        retry_after_s=RETRY_AFTER_S,
    )


class _Collector:
    """Stands for the caller's connection, and for its transport: keeps the bytes of the answer."""

    peer: WritingPeer | None = None
    is_ending = True
    writing_paused = False
    is_known = True
    untaken = 0
    unanswered = 1
    is_reading_held = False

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.answer = bytearray()
        self.is_aborted = False
        self.limit: asyncio.Timeout | None = None
        self.transport: asyncio.Transport | None = cast(asyncio.Transport, self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def is_closing(self) -> bool:
        return self.is_aborted

    def write(self, data: bytes) -> None:
        if len(self.answer) + len(data) > MOST_BYTES:
            limit, self.limit = self.limit, None  # only once: a time limit that is over can't be changed
            if limit is not None:
                limit.reschedule(self.loop.time())
            return
        self.answer += data

    def abort(self) -> None:
        self.is_aborted = True

    def admit(self, *, whole: bool) -> bool:  # noqa: ARG002 - the interface of a connection, like the next
        return True

    async def room(self) -> None: ...

    def pause_body(self) -> None: ...

    def resume_body(self) -> None: ...

    def serve(self) -> None: ...

    def done(self, request: Request, keep: bool) -> None: ...

    def interrupted(self) -> None: ...

    def cancel(self) -> None: ...

    async def drained(self) -> None: ...
