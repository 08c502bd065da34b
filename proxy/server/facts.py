"""Facts about one request for the log and the measures, beside those on the wire."""

from __future__ import annotations

from typing import NamedTuple

from proxy.errors import ProxyError, Side
from proxy.origin import Origin


class Cut(NamedTuple):
    """Why the proxy cut a connection before its answer was whole, and whose trouble that is."""

    why: str
    side: Side


class Facts:
    """Plain values that the handler of the request fills in. Times are by `time.perf_counter`, in seconds."""

    __slots__ = (
        "began_at",
        "caller",
        "cut",
        "error_code",
        "is_relayed",
        "is_stopped",
        "project",
        "refusal",
        "replays",
        "request_id",
        "sent_at",
        "shared",
        "upstream",
        "vendor_code",
        "waited_s",
    )

    def __init__(self) -> None:
        self.began_at = 0.0
        """When the handler began."""
        self.sent_at = 0.0
        """When the request's head last went upstream; 0 if it never did."""
        self.upstream: Origin | None = None
        """Where the request last went; None if it never did."""
        self.waited_s = 0.0
        """How long the request waited for a slot."""
        self.caller: str | None = None
        """The caller's name; None where no callers are defined, or the caller isn't known yet."""
        self.project: str | None = None
        """The project of a request that is not forwarded but answered for a project; None for all others."""
        self.request_id: str | None = None
        """As `proxy.server.request_id` gives it; None until it is first needed."""
        self.replays: tuple[str, ...] = ()
        """Why the request was sent once more, each time: "token", "stale" or "concurrency"."""
        self.shared: str | None = None
        """For another request's answer: "hit" if it was stored, "collapsed" if it was on its way."""
        self.refusal: ProxyError | None = None
        """Why the request is refused, where that is known before the answer."""
        self.error_code: str | None = None
        """The code of the proxy's own error answer, None for any other answer."""
        self.vendor_code: str | None = None
        """The errorCode of Contentsquare's answer, where that is a small JSON error."""
        self.is_relayed = False
        """Whether an answer without an exchange holds what Contentsquare, or its storage, answered."""
        self.cut: Cut | None = None
        """None if the proxy didn't cut the connection."""
        self.is_stopped = False
        """Whether the request has to end now, because the proxy has stopped."""
