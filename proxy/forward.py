"""The gateway's rules: one request's way to a cloud and back.

Hides what RFC 9110 and 9112 ask of a gateway: which fields go on, framing on both sides,
streaming with back-pressure both ways, when a request may be sent again, and what a cut answer
looks like to the caller. Knows leases and slots only as things to take and give back; must not
know OAuth, configuration, or aiohttp beyond `Request`.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

from proxy.contentsquare import Api, changes_data
from proxy.errors import (
    ConnectionLost,
    Forbidden,
    ProxyError,
    RequestTimeout,
    TokenRefused,
    TokenUnavailable,
    UpstreamError,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.http1 import LAST_CHUNK, Field, RequestHead, ResponseHead, chunk, last_chunk
from proxy.lease import Lease, LeaseKeeper
from proxy.server import Request
from proxy.slots import Slots
from proxy.upstream import KEEP_ALIVE_S, SURE_REUSE_S, Connection, Upstreams

TOKEN_WAIT_S = 10.0
"""How long a request waits for a first lease."""

_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
_NOT_TO_UPSTREAM = _HOP_BY_HOP | {
    b"host",
    b"authorization",
    b"proxy-authorization",
    b"x-csq-project",
    b"x-csq-api",
    b"x-api-key",
}
_NOT_TO_CALLER = _HOP_BY_HOP | {b"proxy-authenticate", b"proxy-authentication-info"}
_NOT_WITHOUT_TRAILERS = _NOT_TO_CALLER | {b"trailer"}
_FRAMING_FIELD = frozenset((b"content-length",))
"""Never dropped because ``Connection`` names it: the content would lose its bounds."""
_BODYLESS = (204, 304)


class Project(Protocol):
    """What a project looks like from here."""

    name: str
    slots: Slots
    read_only: bool

    def keeper(self, api: Api | None) -> LeaseKeeper:
        """The keeper of this API's lease; of the project's first API where None."""
        ...


class Outcome(enum.Enum):
    """How one attempt ended, where it did not fail."""

    DELIVERED = "the answer is with the caller, whole"
    ABORTED = "the answer was cut, and so was the caller's connection"
    REFUSED = "401: nothing went to the caller"
    STALE = "a reused connection closed before a byte of an answer"


class Forwarder:
    """Forwards requests. ``stopping`` makes callers' connections close after their answer."""

    def __init__(
        self, upstreams: Upstreams, *, queue_timeout_s: float, token_wait_s: float = TOKEN_WAIT_S
    ) -> None:
        self._upstreams = upstreams
        self._queue_timeout_s = queue_timeout_s
        self._token_wait_s = token_wait_s
        self.stopping = False

    async def forward(self, request: Request, project: Project, api: Api | None, target: bytes) -> bool:
        """Answer ``request`` with what the cloud says to ``target``; whether the connection can be kept.

        Raises ProxyError only while nothing of an answer went to the caller.
        """
        changes = changes_data(request.head.method, target)
        if changes and project.read_only:
            raise Forbidden(f"Project {project.name} is read-only here (read_only = true).")
        keeper = project.keeper(api)
        slots = project.slots
        if not slots.try_acquire(request.connection):
            await slots.acquire(request.connection, self._queue_timeout_s)
        try:
            return await self._deliver(request, keeper, target, changes=changes)
        finally:
            slots.release()

    async def _deliver(self, request: Request, keeper: LeaseKeeper, target: bytes, *, changes: bool) -> bool:
        lease = keeper.current() or await keeper.get(self._token_wait_s)
        max_idle_s = SURE_REUSE_S if changes else KEEP_ALIVE_S
        replayed = False
        while True:
            attempt = await self._attempt(
                request, lease, target, max_idle_s=max_idle_s, repeatable=not changes
            )
            outcome = attempt.outcome
            if outcome is Outcome.DELIVERED:
                return attempt.keep
            if outcome is Outcome.ABORTED:
                return False
            if outcome is Outcome.STALE:
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
                lease = await keeper.get(self._token_wait_s)
            request.body.rewind()

    async def _attempt(
        self, request: Request, lease: Lease, target: bytes, *, max_idle_s: float, repeatable: bool
    ) -> Attempt:
        pool = self._upstreams.pool(lease.origin)
        connection = pool.take_idle(max_idle_s)
        reused = connection is not None
        try:
            if connection is None:
                connection = await pool.connect()
            attempt = Attempt(
                request, connection, may_be_stale=reused and repeatable, close_after=self.stopping
            )
            await attempt.run(_request_head(request.head, target, lease))
        except UpstreamError as exc:
            raise _as_answer(exc, lease) from None
        return attempt


class Attempt:
    """One try of one request on one upstream connection, in both directions.

    Implements `ResponseSink` for what the cloud sends, `BodySink` for what the caller sends, and
    `WritingPeer` for a caller that is slow. ``outcome`` and ``keep`` hold once `run` is over.
    """

    __slots__ = (
        "_caller_chunked",
        "_caller_transport",
        "_close_after",
        "_connection",
        "_done",
        "_may_be_stale",
        "_out",
        "_refused",
        "_request",
        "_starting",
        "_upstream_chunked",
        "keep",
        "outcome",
    )

    def __init__(
        self, request: Request, connection: Connection, *, may_be_stale: bool, close_after: bool
    ) -> None:
        self._request = request
        self._connection = connection
        self._caller_transport = request.transport
        self._may_be_stale = may_be_stale
        self._close_after = close_after
        self._upstream_chunked = request.head.chunked
        self._caller_chunked = False
        self._refused: Outcome | None = None
        self._out: list[bytes] = []
        self._starting: list[bytes] | None = None
        self._done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.outcome = Outcome.ABORTED
        self.keep = False

    async def run(self, head: bytes) -> None:
        """Send the request and wait for the end. Raises UpstreamError while the caller has got nothing."""
        request = self._request
        body = request.body
        if body.complete and not body.received:
            content = LAST_CHUNK if self._upstream_chunked else b""
            self._connection.start(
                self, head + content, is_head_request=request.head.method == b"HEAD", request_done=True
            )
        else:
            self._starting = [head]
            body.attach(self)
            first, self._starting = b"".join(self._starting), None
            if not self._done.done():
                self._connection.start(
                    self, first, is_head_request=request.head.method == b"HEAD", request_done=body.complete
                )
        request.connection.peer = self._connection
        try:
            self.outcome = await self._done
        except asyncio.CancelledError:
            self._connection.abandon(self)
            raise
        finally:
            request.connection.peer = None
            body.detach()

    def _settle(self, outcome: Outcome) -> None:
        if not self._done.done():
            self._done.set_result(outcome)

    # BodySink: from the caller to the cloud

    def on_request_body(self, data: bytes) -> None:
        """Content from the caller."""
        if self._upstream_chunked:
            data = chunk(data)
        if self._starting is not None:
            self._starting.append(data)
        else:
            self._connection.write(data)

    def on_request_end(self, trailers: list[Field]) -> None:
        """The caller's content is complete."""
        if self._upstream_chunked:
            drop = _NOT_TO_UPSTREAM | _nominated(self._request.head.connection)
            end = last_chunk([field for field in trailers if field.name not in drop])
            if self._starting is not None:
                self._starting.append(end)
            else:
                self._connection.write(end)
        if self._starting is None:
            self._connection.finish_request()

    def on_request_broken(self, error: ProxyError) -> None:
        """The caller's framing is malformed: the cloud must not take the request for whole."""
        self._connection.abandon(self)
        if self._request.head_sent:
            self._abort_caller()
        elif not self._done.done():
            self._done.set_exception(error)

    # ResponseSink: from the cloud to the caller

    def on_informational(self, head: ResponseHead) -> None:
        """Pass an interim answer on (RFC 9110, section 15.2)."""
        if self._request.head.minor == 1:
            drop = _NOT_TO_CALLER | _nominated(head.connection)
            lines = [field.line for field in head.fields if field.name not in drop]
            self._write(b"\r\n".join((_status_line(head), *lines, b"\r\n")))

    def on_head(self, head: ResponseHead) -> None:
        """The final answer's head: hold it until its first bytes are here."""
        if head.status == 401:
            self._refused = Outcome.REFUSED
            return
        if head.status == 408 and self._may_be_stale and not head.keep_alive:
            # Sent to an idle connection, most likely (RFC 9110, section 15.5.9).
            self._refused = Outcome.STALE
            return
        request = self._request
        bodyless = head.status in _BODYLESS or request.head.method == b"HEAD"
        self._caller_chunked = not bodyless and head.content_length is None and request.head.minor == 1
        self.keep = (
            request.head.keep_alive
            and request.body.complete
            and not self._close_after
            and (bodyless or head.content_length is not None or self._caller_chunked)
        )
        request.status = head.status
        self._out.append(_response_head(head, request.head, keep=self.keep, chunked=self._caller_chunked))
        if request.connection.writing_paused:
            self._connection.pause()

    def on_body(self, data: bytes) -> None:
        """Content from the cloud."""
        if self._refused:
            return
        self._request.answer_bytes += len(data)
        self._out.append(chunk(data) if self._caller_chunked else data)

    def on_flush(self) -> None:
        """Send what has come so far."""
        if self._refused:
            # What is left of a refused answer isn't worth waiting for.
            self._connection.close()
            self._settle(self._refused)
        elif self._out:
            out, self._out = self._out, []
            self._request.head_sent = True
            self._write(out[0] if len(out) == 1 else b"".join(out))

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is complete."""
        self._request.connection.peer = None
        if self._refused:
            self._settle(self._refused)
            return
        if self._caller_chunked:
            wanted = trailers if self._request.head.wants_trailers else []
            self._out.append(last_chunk([field for field in wanted if field.name not in _NOT_TO_CALLER]))
        self.on_flush()
        self._settle(Outcome.DELIVERED)

    def on_failure(self, error: UpstreamError) -> None:
        """The answer will never be complete: what went to the caller must not look whole."""
        if self._request.head_sent:
            self._abort_caller()
        elif (
            self._may_be_stale
            and not self._connection.answered
            and isinstance(error, ConnectionLost)
            and self._request.body.replayable
        ):
            self._settle(Outcome.STALE)
        elif not self._done.done():
            self._done.set_exception(self._whose_silence(error))

    def _whose_silence(self, error: UpstreamError) -> UpstreamError | RequestTimeout:
        body = self._request.body
        if isinstance(error, UpstreamSilent) and not body.complete and not body.is_paused:
            return RequestTimeout("The request's content did not come in time; send it again.")
        return error

    def on_writable(self, *, writable: bool) -> None:
        """The cloud takes the content more slowly than the caller sends it, or has caught up."""
        if writable:
            self._request.body.resume()
        else:
            self._request.body.pause()

    def _abort_caller(self) -> None:
        self._request.connection.abort()
        self._settle(Outcome.ABORTED)

    def _write(self, data: bytes) -> None:
        if not self._caller_transport.is_closing():
            self._caller_transport.write(data)


def _nominated(options: frozenset[bytes]) -> frozenset[bytes]:
    """The fields that ``Connection`` names (RFC 9110, section 7.6.1)."""
    return options - _FRAMING_FIELD


def _request_head(head: RequestHead, target: bytes, lease: Lease) -> bytes:
    """The head to send upstream: what the caller sent, less what is between it and us, plus ours."""
    drop = _NOT_TO_UPSTREAM | _nominated(head.connection) if head.connection else _NOT_TO_UPSTREAM
    if head.minor == 0:
        drop = drop | {b"expect"}
    lines = [b"%b %b HTTP/1.1" % (head.method, target), b"Host: " + lease.origin.authority.encode()]
    lines += [field.line for field in head.fields if field.name not in drop]
    if head.method == b"OPTIONS" and head.steering:
        lines = [_one_hop_less(line) for line in lines]
    if head.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if head.wants_trailers:
        lines.append(b"TE: trailers\r\nConnection: TE")
    lines.append(b"Via: 1.%d csq-proxy" % head.minor)
    lines.append(b"Authorization: " + lease.authorization)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def _one_hop_less(line: bytes) -> bytes:
    """``Max-Forwards`` counted down (RFC 9110, section 7.6.2); at 0 the request doesn't come here."""
    name, _, value = line.partition(b":")
    hops = value.strip(b" \t")
    if name.lower() != b"max-forwards" or not (hops.isdigit() and int(hops)):
        return line
    return b"%b: %d" % (name, int(hops) - 1)


def _status_line(head: ResponseHead) -> bytes:
    # RFC 9112, section 4: the space stays where the reason is missing
    return b"HTTP/1.1 " + head.status_line + (b" " if len(head.status_line) == 3 else b"")


def _response_head(head: ResponseHead, request: RequestHead, *, keep: bool, chunked: bool) -> bytes:
    """The head to send to the caller: the cloud's, less hop-by-hop fields, plus the framing."""
    drop = _NOT_TO_CALLER if request.wants_trailers else _NOT_WITHOUT_TRAILERS
    if head.connection:
        drop = drop | _nominated(head.connection)
    if head.status == 204:
        drop = drop | _FRAMING_FIELD
    lines = [_status_line(head)]
    lines += [field.line for field in head.fields if field.name not in drop]
    if chunked or (head.chunked and request.method == b"HEAD" and request.minor == 1):
        lines.append(b"Transfer-Encoding: chunked")
    if not keep:
        lines.append(b"Connection: close")
    elif request.minor == 0:
        lines.append(b"Connection: keep-alive")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


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
