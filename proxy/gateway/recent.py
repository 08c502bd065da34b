"""Keeps a request that has ended for `proxy.projects.recent`: what the proxy knows of it, but no content.

Requests for the proxy's own pages are not kept, unless they were refused.
"""

from __future__ import annotations

from proxy.contentsquare import Api
from proxy.gateway.exchange import Exchange
from proxy.gateway.request_log import METHODS
from proxy.projects.recent import RecentRequest, RecentRequests, cut_target, kept_code, kept_id, kept_target
from proxy.server.request import Request
from proxy.server.request_id import sent_id


def keep(recent: RecentRequests, request: Request, exchange: Exchange | None, took_s: float) -> None:
    """Keep a request that ended ``took_s`` seconds after its beginning; ``exchange`` None: not forwarded."""
    facts, head = request.facts, request.head
    # Where there is no log, an id of the proxy's may be in no answer, either: then none is made.
    if facts.request_id is None:
        facts.request_id = sent_id(request)
    if facts.vendor_code is not None:
        facts.vendor_code = kept_code(facts.vendor_code)
    if exchange is not None and exchange.is_counted:
        project: str | None = exchange.project.name
        api: Api | None = exchange.api
        # `proxy.gateway.policy` has found no secret: the target can wait until somebody reads it.
        target = cut_target(head.target)
    else:
        project, api = facts.project, None
        if exchange is not None:
            project, api = exchange.project.name, exchange.api
        elif project is None and facts.error_code is None:
            return
        target = kept_target(head.target)
        if facts.request_id is not None:
            facts.request_id = kept_id(facts.request_id)
    method = METHODS.get(head.method) or ("{other}" if head.method else "")
    recent.add(
        RecentRequest(
            project, api, method, target, request.status, took_s, request.body.received, request.answer_bytes, facts
        )
    )
