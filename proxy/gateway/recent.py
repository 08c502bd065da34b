"""Keeps a request that has ended for `proxy.projects.recent`: what the proxy knows of it, but no content.

Requests for the proxy's own pages are not kept, unless they were refused.
"""

from __future__ import annotations

from proxy.contentsquare import Api
from proxy.gateway.exchange import Exchange
from proxy.gateway.request_log import is_probe
from proxy.projects.recent import RecentRequest, RecentRequests, cut_target, kept_code, kept_id, kept_target
from proxy.server.request import Request
from proxy.server.request_id import sent_id


def keep(recent: RecentRequests, request: Request, exchange: Exchange | None, took_s: float) -> None:
    """Keep a request that ended ``took_s`` seconds after its beginning; ``exchange`` None: not forwarded."""
    facts = request.facts
    # Where there is no log, an id of the proxy's may be in no answer, either: then none is made.
    if facts.request_id is None:
        facts.request_id = sent_id(request)
    if facts.vendor_code is not None:
        facts.vendor_code = kept_code(facts.vendor_code)
    project, is_checked = facts.project, False
    api: Api | None = None
    if exchange is not None:
        project, api, is_checked = exchange.project.name, exchange.api, exchange.is_counted
    elif project is None and (facts.error_code is None or is_probe(request, request.status)):
        return
    if is_checked:  # `proxy.gateway.policy` has found no secret: the target can wait until somebody reads it
        target = cut_target(request.head.target)
    else:
        target = kept_target(request.head.target)
        if facts.request_id is not None:
            facts.request_id = kept_id(facts.request_id)
    recent.add(RecentRequest(project, api, target, request, took_s))
