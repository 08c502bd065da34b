"""The proxy's answer to a caller whose request failed on its way to the cloud."""

from __future__ import annotations

from typing import Final

from proxy.errors import (
    ConnectFailed,
    LoopDetected,
    ProxyError,
    ProxyLoop,
    Stopping,
    UpstreamError,
    UpstreamSilent,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.gateway.exchange import Exchange
from proxy.tokens import Lease

RETRY_AFTER_S: Final = 5
"""Seconds, for a cloud that could not be reached, or sent nothing, and for a proxy that stops."""


def answer_for(error: UpstreamError | ProxyError, lease: Lease, *, changes: bool) -> ProxyError:
    """The answer to a request that failed before the cloud's answer came.

    It asks the caller to try again, unless the request may change data (``changes``) and may have arrived.
    """
    if isinstance(error, ProxyError):
        return error
    if isinstance(error, LoopDetected):
        return ProxyLoop(f"{error}.")
    host = lease.origin.authority
    may_be_done = changes and not isinstance(error, ConnectFailed)
    retry_after_s = None if may_be_done else RETRY_AFTER_S
    advice = "The call may have been made: check before you send it again" if may_be_done else "Try again"
    if isinstance(error, UpstreamSilent):
        return UpstreamTimeout(
            f"Contentsquare ({host}) did not answer: {error}. {advice}, ask for less,"
            " or raise contentsquare.idle_timeout.",
            retry_after_s=retry_after_s,
        )
    return UpstreamUnreachable(
        f"No answer from Contentsquare ({host}): {error}. {advice};"
        " `csq-proxy check --live` helps to find why.",
        proxy_status=error.proxy_status,
        retry_after_s=retry_after_s,
    )


def answer_at_stop(exchange: Exchange | None) -> Stopping:
    """The answer to a request that waits when the drain is over; ``exchange`` None: it is not forwarded."""
    if exchange is not None and exchange.changes and exchange.request.facts.sent_at:
        return Stopping(
            "The proxy stops, and did not wait any longer for Contentsquare's answer. The call may have been"
            " made: check before you send it again."
        )
    return Stopping(
        "The proxy stops, and did not wait any longer for the answer; try again in a moment.",
        retry_after_s=RETRY_AFTER_S,
    )
