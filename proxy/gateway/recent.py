"""Keeps a request that has ended for `proxy.projects.recent`: what the proxy knows of it, but no content.

Requests for the proxy's own pages are not kept, unless they were refused.
"""

from __future__ import annotations

from proxy.contentsquare import Api
from proxy.gateway.exchange import Exchange
from proxy.gateway.request_log import METHODS
from proxy.projects.measures import CUT
from proxy.projects.recent import RecentRequest, RecentRequests, cut_target, kept_code, kept_id, kept_target
from proxy.server.request import Request
from proxy.server.request_id import sent_id


def keep(recent: RecentRequests, request: Request, exchange: Exchange | None, took_s: float) -> None:
    """Keep a request that ended ``took_s`` seconds after its beginning; ``exchange`` None: not forwarded."""
    facts, target = request.facts, request.head.target
    error = facts.error_code
    source: str | None = None
    api: Api | None = None
    if exchange is not None:
        project: str | None = exchange.project.name
        api = exchange.api
    else:
        project = facts.project
        if project is None and error is None:
            return
    if error is not None:
        source = "proxy"
    elif facts.shared is not None:
        source = "stored"
    elif request.status:
        source = "proxy" if exchange is None and not facts.is_relayed else "contentsquare"
        error = None if facts.vendor_code is None else kept_code(facts.vendor_code)
        if facts.cut_because is not None:  # the caller got a reset in place of the answer's end
            source, error = "proxy", CUT
    # Where there is no log, an id of the proxy's may be in no answer, either: then none is made.
    number = sent_id(request) if facts.request_id is None else facts.request_id
    is_checked = exchange is not None and exchange.is_counted
    recent.add(
        RecentRequest(
            project=project,
            caller=facts.caller,
            api=api,
            method=METHODS.get(request.head.method, "{other}") if request.head.method else "",
            # Where `proxy.gateway.policy` has found no secret, the target can wait until somebody reads it.
            target=cut_target(target) if is_checked else kept_target(target),
            status=request.status,
            source=source,
            error=error,
            waited_s=facts.waited_s,
            upstream=facts.upstream,
            upstream_s=facts.began_at + took_s - facts.sent_at if facts.upstream is not None else 0.0,
            took_s=took_s,
            bytes_in=request.body.received,
            bytes_out=request.answer_bytes,
            replays=facts.replays,
            request_id=number if is_checked or number is None else kept_id(number),
        )
    )
