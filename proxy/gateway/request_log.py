"""The line of a request in the log: its keys, and how texts that a caller chose stay out of it.

The keys are a contract with operators (README, "The log"). Of the target, the line holds no query,
and no segment that doesn't look like a word of an API.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from proxy.foreign import METHODS
from proxy.gateway.exchange import exchange_of
from proxy.logs import is_enabled_for, log_soon
from proxy.server.request import Request
from proxy.server.request_id import request_id, trace_id

LONGEST_ROUTE: Final = 128
_PROBES: Final = frozenset((b"/-/healthy", b"/-/ready", b"/-/metrics", b"/-/status", b"/-/requests"))
_USUAL: Final = {b"/-/ready": 503, b"/-/healthy": 401}
"""Answers that tell a probe all that it asks for: not ready; alive, though callers need a key."""
# Up to four short words of letters that aren't a number in base 16.
_WORD: Final = re.compile(rb"(?![a-f]{8,}\Z)(?![a-z-]{41})[a-z]{1,20}(?:-[a-z]{1,20}){0,3}")
_IN_WORDS: Final = b"abcdefghijklmnopqrstuvwxyz-"
_MOST_WORDS: Final = 512
_words: Final = {
    word.encode(): word
    for word in (
        *("", "-", "page.css", "page.js"),
        *("latest.csv", "latest.csv.gz", "latest.jsonl", "latest.jsonl.gz"),
        *(f"v{number}" for number in range(100)),
    )
}
"""Segments that identify nothing. Words of an API are added when they are found; an API has few words."""


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
        # Most of these segments are identifiers, which this test finds without the regex.
        if segment.translate(None, _IN_WORDS) or not _WORD.fullmatch(segment):
            return "{id}"
        word = segment.decode("ascii")
        if len(_words) < _MOST_WORDS:
            _words[segment] = word
    return word


def log_request(request: Request, took_s: float) -> None:
    """Write the line of a request that ended ``took_s`` seconds after its beginning."""
    if not is_enabled_for(logging.INFO):
        return
    level = "info"
    if request.exchange is None and is_probe(request, request.status):
        if not is_enabled_for(logging.DEBUG):
            return
        level = "debug"
    log_soon("proxy", level, _event(request), _values(request, took_s))


def _values(request: Request, took_s: float) -> dict[str, object]:
    """The line's own keys, in their order; a key without a value is left out."""
    exchange, facts = exchange_of(request), request.facts
    values: dict[str, object] = {}
    if exchange is not None:
        values["project"] = exchange.project.name
        values["api"] = exchange.api.value
    elif facts.project is not None:
        values["project"] = facts.project
    if facts.caller is not None:
        values["caller"] = facts.caller
    if request.head.method:
        values["method"] = METHODS.get(request.head.method, "{other}")
        values["route"] = route_of(request.head.target if exchange is None else exchange.target)
    if request.status:
        values["status"] = request.status
    values["bytes_in"] = request.body.received
    values["bytes_out"] = request.answer_bytes
    if exchange is not None or facts.waited_s:
        values["wait_ms"] = _ms(facts.waited_s)
    if facts.sent_at:
        values["upstream_ms"] = _ms(facts.began_at + took_s - facts.sent_at)
    values["total_ms"] = _ms(took_s)
    if facts.replays:
        values["replayed"] = list(facts.replays)
    if facts.shared is not None:
        values["shared"] = facts.shared
    if facts.error_code is not None:
        values["error"] = facts.error_code
    if (reason := request.cut_reason) is not None:
        values["reason"] = reason
    values["request_id"] = request_id(request)
    if (trace := trace_id(request.head)) is not None:
        values["trace_id"] = trace
    return values


def is_probe(request: Request, status: int) -> bool:
    """Whether the request is a regular look at the proxy's state, and its answer's status a usual one."""
    path = request.head.target.partition(b"?")[0]
    return path in _PROBES and (status < 400 or status == _USUAL.get(path))


def _event(request: Request) -> str:
    if not request.transport.is_closing():
        return "request_answered"
    # Closed by the caller, or by the proxy because the answer was cut.
    return "request_cut_short" if request.status or request.facts.cut else "request_abandoned"


def _ms(duration_s: float) -> float:
    """Milliseconds rounded to tenths; several times as fast as `round`."""
    return int(duration_s * 10_000 + 0.5) / 10
