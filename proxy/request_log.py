"""The log's one line a request: what it holds, and how what a caller chose is kept out of it.

Its keys are a contract with operators (README, "Watching it"). The target's identifiers and query never
get here, nor does any other word of it that doesn't look like one of an API's own.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from proxy.contentsquare import Api
from proxy.forward import Exchange
from proxy.log import quick_logger
from proxy.project import Project
from proxy.request import Request
from proxy.request_id import request_id, trace_id

LONGEST_ROUTE = 128
_PROBES = frozenset((b"/-/healthy", b"/-/ready", b"/-/metrics", b"/-/status"))
_API_NAMES = {api: api.value for api in Api}
_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE")
}
# A version, or up to four short words of letters that aren't a number in base 16.
_WORD = rb"v[0-9]{1,2}|-|page\.(?:css|js)|(?![a-f]{8,}(?:/|\Z))(?![a-z-]{41})[a-z]{1,20}(?:-[a-z]{1,20}){0,3}"
_IDENTIFIER = re.compile(rb"(?<=/)(?!(?:" + _WORD + rb")(?:/|\Z))[^/]+")


def route_of(target: bytes) -> str:
    """The path of a request target with ``{id}`` for whatever isn't plainly a word of an API.

    A longer one than `LONGEST_ROUTE` ends with ``/...``; what is no path at all is ``{other}``.
    """
    path = target.partition(b"?")[0]
    return _short_route(path) if len(path) <= LONGEST_ROUTE else _route(path)


def _route(path: bytes) -> str:
    if path[:1] != b"/":
        return "*" if path == b"*" else "{other}"
    if len(path) > 8 * LONGEST_ROUTE:
        path = path[: 8 * LONGEST_ROUTE].rpartition(b"/")[0] + b"/..."  # of which an identifier is made
    route = _IDENTIFIER.sub(b"{id}", path).decode("ascii")
    if len(route) > LONGEST_ROUTE:
        route = route[: LONGEST_ROUTE - 3].rpartition("/")[0] + "/..."
    return route


_short_route = lru_cache(512)(_route)


class RequestLog:
    """Writes the line of each request that is over."""

    def __init__(self) -> None:
        self._log = quick_logger("proxy")

    def tell(self, request: Request, took_s: float) -> None:
        """It ended ``took_s`` after its beginning."""
        if not self._log.is_enabled_for(logging.INFO):
            return
        level = "info"
        if request.exchange is None and _is_probe(request):
            if not self._log.is_enabled_for(logging.DEBUG):
                return
            level = "debug"
        self._log.log(level, _event(request), _values(request, took_s))


def _is_probe(request: Request) -> bool:
    """Whether it is one of those that come again and again, and was answered as it is meant to be."""
    path = request.head.target.partition(b"?")[0]
    return path in _PROBES and (request.status < 400 or (request.status == 503 and path == b"/-/ready"))


def _event(request: Request) -> str:
    if not request.transport.is_closing():
        return "request_answered"
    # By the caller who left, or by us because the answer was cut.
    return "request_cut_short" if request.status else "request_abandoned"


def _values(request: Request, took_s: float) -> dict[str, object]:
    """The line's own keys, in their order; one that says nothing is left out."""
    values: dict[str, object] = {}
    exchange: Exchange[Project] | None = request.exchange
    if exchange is not None:
        values["project"] = exchange.project.name
        values["api"] = _API_NAMES[exchange.api]
    if type(request.caller) is str:
        values["caller"] = request.caller
    if request.head.method:
        values["method"] = _METHODS.get(request.head.method, "{other}")
        values["route"] = route_of(request.head.target if exchange is None else exchange.target)
    if request.status:
        values["status"] = request.status
    values["bytes_in"] = request.body.received
    values["bytes_out"] = request.answer_bytes
    if exchange is not None:
        values["wait_ms"] = _ms(request.waited_s)
    if request.sent_at:
        values["upstream_ms"] = _ms(request.began_at + took_s - request.sent_at)
    values["total_ms"] = _ms(took_s)
    if request.replays:
        values["replayed"] = list(request.replays)
    if request.shared is not None:
        values["shared"] = request.shared
    if request.error_code is not None:
        values["error"] = request.error_code
    if request.cut_because is not None:
        values["reason"] = request.cut_because
    values["request_id"] = request_id(request)
    if (trace := trace_id(request.head)) is not None:
        values["trace_id"] = trace
    return values


def _ms(duration_s: float) -> float:
    """Rounded to tenths; several times as fast as `round`."""
    return int(duration_s * 10_000 + 0.5) / 10
