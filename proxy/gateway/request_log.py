"""The line of a request in the log: its keys, and how texts that a caller chose stay out of it.

The keys are a contract with operators (README, "The log"). The line holds no identifier and no query of
the target, and no other word of it that doesn't look like a word of an API.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from proxy.contentsquare import Api
from proxy.gateway.exchange import exchange_of
from proxy.logs.setup import quick_logger
from proxy.server.request import Request
from proxy.server.request_id import request_id, trace_id

LONGEST_ROUTE: Final = 128
_PROBES: Final = frozenset((b"/-/healthy", b"/-/ready", b"/-/metrics", b"/-/status"))
_API_NAMES: Final = {api: api.value for api in Api}
_METHODS: Final = {
    name.encode(): name for name in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE")
}
# Up to four short words of letters that aren't a number in base 16.
_WORD: Final = re.compile(rb"(?![a-f]{8,}\Z)(?![a-z-]{41})[a-z]{1,20}(?:-[a-z]{1,20}){0,3}")
_IN_WORDS: Final = b"abcdefghijklmnopqrstuvwxyz-"
_MOST_WORDS: Final = 512
_words: Final = {
    word.encode(): word for word in ("", "-", "page.css", "page.js", *(f"v{number}" for number in range(100)))
}
"""Segments that identify nothing; those that were found to be words of an API, which has few, are added."""


def route_of(target: bytes) -> str:
    """The path of a request target with ``{id}`` for each segment that isn't plainly a word of an API.

    A path longer than `LONGEST_ROUTE` ends with ``/...``; a target without a path is ``{other}``.
    """
    path = target.partition(b"?")[0]
    if path[:1] != b"/":
        return "*" if path == b"*" else "{other}"
    if len(path) > 8 * LONGEST_ROUTE:
        path = path[: 8 * LONGEST_ROUTE].rpartition(b"/")[0] + b"/..."  # the cut segment becomes {id}
    route = "/".join([_shown(segment) for segment in path.split(b"/")])
    if len(route) > LONGEST_ROUTE:
        route = route[: LONGEST_ROUTE - 3].rpartition("/")[0] + "/..."
    return route


def _shown(segment: bytes) -> str:
    word = _words.get(segment)
    if word is None:
        # Mostly an identifier, which this test finds without the regex.
        if segment.translate(None, _IN_WORDS) or not _WORD.fullmatch(segment):
            return "{id}"
        word = segment.decode("ascii")
        if len(_words) < _MOST_WORDS:
            _words[segment] = word
    return word


class RequestLog:
    """Writes the line of each request that is over."""

    def __init__(self) -> None:
        self._log = log = quick_logger("proxy")
        self._project = log.key("project")
        self._api = log.key("api")
        self._caller = log.key("caller")
        self._method = log.key("method")
        self._route = log.key("route")
        self._status = log.key("status")
        self._bytes_in = log.key("bytes_in")
        self._bytes_out = log.key("bytes_out")
        self._wait = log.key("wait_ms")
        self._upstream = log.key("upstream_ms")
        self._total = log.key("total_ms")
        self._replayed = log.key("replayed")
        self._shared = log.key("shared")
        self._error = log.key("error")
        self._reason = log.key("reason")
        self._request_id = log.key("request_id")
        self._trace_id = log.key("trace_id")

    def tell(self, request: Request, took_s: float) -> None:
        """It ended ``took_s`` after its beginning."""
        if not self._log.is_enabled_for(logging.INFO):
            return
        level = "info"
        if request.exchange is None and _is_probe(request):
            if not self._log.is_enabled_for(logging.DEBUG):
                return
            level = "debug"
        line = self._log.begin(level, _event(request))
        self._fill(line, request, took_s)
        self._log.write(line)

    def _fill(self, line: list[str], request: Request, took_s: float) -> None:
        """Add the line's own keys, in their order; one that says nothing is left out."""
        exchange, facts = exchange_of(request), request.facts
        if exchange is not None:
            line.append(self._project.recurring(exchange.project.name))
            line.append(self._api.recurring(_API_NAMES[exchange.api]))
        if facts.caller is not None:
            line.append(self._caller.recurring(facts.caller))
        if request.head.method:
            line.append(self._method.recurring(_METHODS.get(request.head.method, "{other}")))
            target = request.head.target if exchange is None else exchange.target
            line.append(self._route.recurring(route_of(target)))
        if request.status:
            line.append(self._status.recurring(request.status))
        line.append(self._bytes_in.recurring(request.body.received))
        line.append(self._bytes_out.single(request.answer_bytes))
        if exchange is not None:
            line.append(self._wait.recurring(_ms(facts.waited_s)))
        if facts.sent_at:
            line.append(self._upstream.recurring(_ms(facts.began_at + took_s - facts.sent_at)))
        line.append(self._total.recurring(_ms(took_s)))
        if facts.replays:
            line.append(self._replayed.single(list(facts.replays)))
        if facts.shared is not None:
            line.append(self._shared.recurring(facts.shared))
        if facts.error_code is not None:
            line.append(self._error.recurring(facts.error_code))
        if facts.cut_because is not None:
            line.append(self._reason.recurring(facts.cut_because))
        line.append(self._request_id.single(request_id(request)))
        if (trace := trace_id(request.head)) is not None:
            line.append(self._trace_id.single(trace))


def _is_probe(request: Request) -> bool:
    """Whether it is one of those that come again and again, and was answered as it is meant to be."""
    path = request.head.target.partition(b"?")[0]
    return path in _PROBES and (request.status < 400 or (request.status == 503 and path == b"/-/ready"))


def _event(request: Request) -> str:
    if not request.transport.is_closing():
        return "request_answered"
    # By the caller who left, or by us because the answer was cut.
    return "request_cut_short" if request.status else "request_abandoned"


def _ms(duration_s: float) -> float:
    """Milliseconds rounded to tenths; several times as fast as `round`."""
    return int(duration_s * 10_000 + 0.5) / 10
