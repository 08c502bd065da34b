"""Every error that this program raises on purpose.

Imports no other module of the package. The tree::

    CsqProxyError
    |- ConfigError                     the configuration can't be used; exit code 2
    |  `- NothingConfigured            no place has a project or an account
    |- ListenError                     a listener can't be opened; exit code 1
    |- OutputLost                      a command's output can't be written; exit code 1
    |- TokenFetchError                 one token request failed: transient or permanent
    |- TokenNotWanted                  a token request was not sent, since no caller waits for it any more
    |- UpstreamError                   an upstream connection or its answer failed
    |  |- ConnectFailed                DNS, TCP, HTTP proxy or TLS: nothing was sent
    |  |  `- LoopDetected              the connection would lead to this proxy itself
    |  |- ConnectionLost               the connection ended before the answer did
    |  |  `- WayDied                   the network lost the connection, without FIN or RST
    |  |- ProtocolViolation            the answer isn't valid HTTP/1.1
    |  `- UpstreamSilent               no byte within idle_timeout
    `- ProxyError                      becomes an answer of the proxy's own: code, status, what to do

The codes and statuses of `ProxyError` are the contract with callers; the ``proxy_status``
values are the error types of RFC 9209, section 2.3.
"""

from __future__ import annotations

from typing import Literal

Side = Literal["caller", "proxy", "contentsquare", "network"]
"""Whose trouble a failure is."""


class CsqProxyError(Exception):
    """The root of this program's own errors."""


class ConfigError(CsqProxyError):
    """The configuration can't be used.

    ``faults`` holds one line for each fault: the key, what is wrong, and the way out.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class NothingConfigured(ConfigError):
    """The configuration is good, but no place of it has a project or an account."""


class ListenError(CsqProxyError):
    """A listener can't be opened: the port is taken, or the address isn't one of this computer."""


class OutputLost(CsqProxyError):
    """A command's output can't be written: the disk is full, for example."""


class TokenFetchError(CsqProxyError):
    """One token request failed.

    ``cause`` is a short stable word for logs and metrics ("timeout", "tls", "malformed", ...).
    ``permanent`` means that a further try can't help soon: the credentials are wrong, for example.
    ``retry_after_s`` is the wait that the token endpoint asked for, in seconds, or None. ``status`` is the
    answer's HTTP status; None means that there was no answer, or that a good answer couldn't be used.
    ``quote`` is the answer's own error text, safe to show. ``is_outage`` is set by the breaker: the token
    endpoint is in trouble, and the next try waits at the breaker.
    The message never holds a secret or a library's own text.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str,
        permanent: bool = False,
        retry_after_s: float | None = None,
        status: int | None = None,
        quote: str = "",
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.quote = quote
        self.permanent = permanent
        self.retry_after_s = retry_after_s
        self.status = status
        self.is_outage = False


class TokenNotWanted(CsqProxyError):
    """A token request was not sent: when its turn came, no caller waited for it any more."""


class UpstreamError(CsqProxyError):
    """An upstream connection, or the answer on it, failed.

    ``proxy_status`` is the error type of RFC 9209, section 2.3. ``side``: whose trouble an answer is that it
    cuts.
    """

    proxy_status = "proxy_internal_error"
    side: Side = "contentsquare"

    def __init__(self, message: str, *, proxy_status: str | None = None, side: Side | None = None) -> None:
        super().__init__(message)
        if proxy_status is not None:
            self.proxy_status = proxy_status
        if side is not None:
            self.side = side


class ConnectFailed(UpstreamError):
    """No connection could be made; nothing of the request was sent."""

    proxy_status = "connection_refused"


class LoopDetected(ConnectFailed):
    """The connection would lead to a listener of this proxy."""

    proxy_status = "proxy_loop_detected"


class ConnectionLost(UpstreamError):
    """The connection ended before the answer did."""

    proxy_status = "connection_terminated"


class WayDied(ConnectionLost):
    """The network lost the connection, without FIN or RST: the peer answers nothing any more."""

    side = "network"

    def __init__(self) -> None:
        super().__init__("the network lost the connection")


class ProtocolViolation(UpstreamError):
    """The answer isn't valid HTTP/1.1 (RFC 9112), so none of the bytes after it can be trusted."""

    proxy_status = "http_protocol_error"


class UpstreamSilent(UpstreamError):
    """No byte moved within ``contentsquare.idle_timeout``; ``side`` "caller": the caller took none."""

    proxy_status = "connection_read_timeout"

    def __init__(self, limit_s: float, side: Side = "contentsquare") -> None:
        silence = "its caller took no byte" if side == "caller" else "no byte"
        super().__init__(f"{silence} for {limit_s:g} s", side=side)


class ProxyError(CsqProxyError):
    """An answer of the proxy's own.

    ``code`` is one of the contract's ``PROXY_...`` codes, ``status`` the HTTP status,
    ``retry_after_s`` whole seconds for ``Retry-After`` or None, ``fields`` further response
    fields. The message says what happened and what to do; it goes to the caller.
    """

    code = "PROXY_ERROR"
    status = 500
    proxy_status = "proxy_internal_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: int | None = None,
        proxy_status: str | None = None,
        fields: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.fields = fields
        if proxy_status is not None:
            self.proxy_status = proxy_status


class UnknownProject(ProxyError):
    """No such project or account."""

    code, status, proxy_status = "PROXY_UNKNOWN_PROJECT", 404, "destination_not_found"


class NotFound(ProxyError):
    """The proxy has no such resource of its own below ``/-/``."""

    code, status, proxy_status = "PROXY_NOT_FOUND", 404, "destination_not_found"


class ExportNotReady(ProxyError):
    """The export has no finished run yet."""

    code, status, proxy_status = "PROXY_EXPORT_NOT_READY", 404, "destination_unavailable"


class ExportExpired(ProxyError):
    """The run's files are no longer in their storage."""

    code, status, proxy_status = "PROXY_EXPORT_EXPIRED", 410, "destination_not_found"


class BadTarget(ProxyError):
    """A request target that can't be forwarded safely (RFC 9112, section 3.2)."""

    code, status, proxy_status = "PROXY_BAD_TARGET", 400, "http_request_error"


class BadRequest(ProxyError):
    """The request isn't valid HTTP/1.1 (RFC 9112)."""

    code, status, proxy_status = "PROXY_BAD_REQUEST", 400, "http_request_error"


class TargetTooLong(BadRequest):
    """The request target is over the limit (RFC 9110, section 15.5.15)."""

    status = 414


class FieldsTooLarge(BadRequest):
    """The header section is over a limit (RFC 6585, section 5)."""

    status = 431


class NotImplementedCoding(BadRequest):
    """A transfer coding other than chunked (RFC 9112, section 6.1)."""

    status = 501


class VersionNotSupported(BadRequest):
    """Not HTTP/1.x (RFC 9110, section 15.6.6)."""

    status = 505


class PreconditionFailed(BadRequest):
    """The content is another one than the request wants (RFC 9110, section 15.5.13)."""

    status = 412


class RangeNotSatisfiable(BadRequest):
    """The content has none of the bytes that the request wants (RFC 9110, section 15.5.17)."""

    status = 416


class RequestTimeout(ProxyError):
    """The request stopped coming (RFC 9110, section 15.5.9); the caller may send it again at once."""

    code, status, proxy_status = "PROXY_REQUEST_TIMEOUT", 408, "http_request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=1)


class MethodRefused(ProxyError):
    """TRACE, TRACK or CONNECT, or a method that a path of the proxy's own hasn't."""

    code, status, proxy_status = "PROXY_METHOD_REFUSED", 405, "http_request_denied"


class HostRefused(ProxyError):
    """Host is neither a loopback name nor in ``server.allowed_hosts``."""

    code, status, proxy_status = "PROXY_HOST_REFUSED", 421, "http_request_denied"


class OriginRefused(ProxyError):
    """A web page of another site is calling."""

    code, status, proxy_status = "PROXY_ORIGIN_REFUSED", 403, "http_request_denied"


class CallerUnknown(ProxyError):
    """Callers are defined, and the key is missing or wrong."""

    code, status, proxy_status = "PROXY_CALLER_UNKNOWN", 401, "http_request_denied"


class Forbidden(ProxyError):
    """The caller or the project lacks the right for this request."""

    code, status, proxy_status = "PROXY_FORBIDDEN", 403, "http_request_denied"


class TokenUnavailable(ProxyError):
    """No usable token now."""

    code, status, proxy_status = "PROXY_TOKEN_UNAVAILABLE", 503, "destination_unavailable"


class TokenRefused(ProxyError):
    """Contentsquare answers 401 even to a fresh token."""

    code, status, proxy_status = "PROXY_TOKEN_REFUSED", 502, "proxy_configuration_error"


class QueueTimeout(ProxyError):
    """No slot became free within ``queue_timeout``."""

    code, status, proxy_status = "PROXY_QUEUE_TIMEOUT", 503, "connection_limit_reached"


class UpstreamUnreachable(ProxyError):
    """DNS, connect, TLS, an invalid answer, or the connection lost before an answer."""

    code, status, proxy_status = "PROXY_UPSTREAM_UNREACHABLE", 502, "connection_terminated"


class ExportFailed(UpstreamUnreachable):
    """The storage of an export's files doesn't hand them over, or they can't be used."""


class ProxyLoop(ProxyError):
    """The proxy reached itself: a person has to correct the hosts file or a setting."""

    code, status, proxy_status = "PROXY_LOOP", 502, "proxy_loop_detected"


class UpstreamTimeout(ProxyError):
    """Silence for ``idle_timeout`` before an answer."""

    code, status, proxy_status = "PROXY_UPSTREAM_TIMEOUT", 504, "connection_read_timeout"


class Stopping(ProxyError):
    """The proxy is draining."""

    code, status, proxy_status = "PROXY_STOPPING", 503, "destination_unavailable"


class Internal(ProxyError):
    """A bug; the log has the traceback."""

    code, status, proxy_status = "PROXY_INTERNAL_ERROR", 500, "proxy_internal_error"
