"""Facts about the vendor: its APIs, scopes, paths, the calls that change data, limits and error codes.

No I/O and no state. The sandbox simulates exactly these facts, and the proxy relies on them.
Sources: Contentsquare's API documentation (authentication, Data Export, Metrics, Enrichment,
Speed Analysis Lab, Voice of Customer), 2025-2026.
"""

from __future__ import annotations

import enum
import re
from typing import Final

AUTH_URL: Final = "https://api.contentsquare.com"
TOKEN_PATH: Final = "/v1/oauth/token"  # noqa: S105 - a path, not a password
ME_PATH: Final = "/v1/oauth/me"
GRANT_TYPE: Final = "client_credentials"
TOKEN_LIFETIME_S: Final = 3600
MAX_CONCURRENCY: Final = 10
"""Requests at once per Contentsquare project, over all its credentials and APIs."""

DOWNLOAD_HOSTS: Final = (
    "*.amazonaws.com",
    "*.blob.core.windows.net",
    "*.storage.googleapis.com",
    "*.contentsquare.com",
)
"""The hosts that the signed URLs of an export's files lead to."""
PROJECT_ID: Final = re.compile(r"[1-9][0-9]{0,17}\Z")
"""The id of a project, as text."""
FILES_LIVE_S: Final = 7 * 86_400
"""How long the files of an export's run stay in their storage."""

JWT_EXPIRED: Final = "JWT_EXPIRED"
CONCURRENT_API_CALL: Final = "CONCURRENT_API_CALL"


class Api(enum.Enum):
    """One of Contentsquare's public APIs; the value is its name in the configuration."""

    DATA_EXPORT = "data-export"
    METRICS = "metrics"
    ENRICHMENT = "enrichment"
    SPEED_ANALYSIS = "speed-analysis"
    SURVEYS = "surveys"

    __hash__ = object.__hash__  # members are compared by identity, and Enum's own takes ten times as long

    @property
    def scope(self) -> str:
        """The OAuth2 scope in a request for a token of this API (RFC 6749, section 3.3)."""
        return self.value


_VERSION: Final = b"/v1/"
_ROWS: Final = {
    Api.DATA_EXPORT: (b"exports", b"exportable-fields", b"custom-vars", b"dynamic-var-keys"),
    Api.METRICS: (b"segments", b"goals", b"mappings", b"page-groups", b"zonings", b"metrics"),
    Api.ENRICHMENT: (b"enrichments",),
    Api.SPEED_ANALYSIS: (b"speed-analysis",),
}
_BY_SEGMENT: Final = {segment: api for api, segments in _ROWS.items() for segment in segments}
_SURVEYS: Final = re.compile(rb"/v1/public/projects/[^/?]+/surveys(?=[/?]|\Z)")
SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_READ_BY_POST: Final = re.compile(
    rb"/v1/(?:oauth/(?:token|me)"
    rb"|speed-analysis/(?:analysis/(?:report|har)|monitoring/(?:list|last-report|reports)"
    rb"|scenario/(?:list|report|reports|step/report|report/har)|event/list))(?:\?|\Z)"
)
_EVENT: Final = b"/v1/speed-analysis/event/"
_CHANGED_BY_ANY_METHOD: Final = re.compile(_EVENT + rb"(?:create|delete)(?:\?|\Z)")
"""Older pages of the vendor show these calls as GETs with a body."""

_MAY_BE_STORED: Final = re.compile(
    rb"/v1/(?:exportable-fields|custom-vars|dynamic-var-keys"
    rb"|segments|goals|mappings|page-groups|zonings|metrics|public/projects/[A-Za-z0-9_-]+/surveys)"
    rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*(?:\?|\Z)"
)
"""Only paths that all servers read in the same way: no percent-coding, parameters, empty or dot segments."""
_OAUTH: Final = b"/v1/oauth/"
_TOKEN_OR_ME: Final = re.compile(rb"((?:/+[^/?]+){0,2})/+v1/+oauth/+(token|me)/*(?:\?|\Z)")


def oauth_path(target: bytes) -> re.Match[bytes] | None:
    """Find `TOKEN_PATH` or `ME_PATH` in a target, behind at most two segments and with any repeated slashes.

    Group 1 is the part before the path, group 2 is ``token`` or ``me``.
    """
    return _TOKEN_OR_ME.match(target) if target.find(b"oauth") >= 0 else None


def may_be_shared(target: bytes) -> bool:
    """Whether the answer to a GET may go to another request of the same caller."""
    return not target.startswith((_OAUTH, _EVENT))


def may_be_stored(target: bytes) -> bool:
    """Whether the answer to a GET may be stored, where the configuration asks for that.

    Answers below ``/v1/exports`` may not: programs wait for the states in them, and the signatures of the
    files' URLs end. An unknown path could have such answers, too, so only known paths match, and only in
    their plain spelling.
    """
    return _MAY_BE_STORED.match(target) is not None


def api_of(target: bytes) -> Api | None:
    """The API that a request target (origin-form, prefix removed) belongs to; None for an unknown path.

    The vendor adds APIs, so None doesn't mean that the target is wrong.
    """
    if target[:4] != _VERSION:
        return None
    segment = target.split(b"/", 3)[2]
    api = _BY_SEGMENT.get(segment) or _BY_SEGMENT.get(segment.partition(b"?")[0])
    if api is None and _SURVEYS.match(target):
        return Api.SURVEYS
    return api


def changes_data(method: bytes, target: bytes) -> bool:
    """Whether a request may change data.

    By the vendor's documentation, all POSTs of Speed Analysis but two only read, and so do those for
    OAuth. Those two count as a change by any method. For all other paths the method decides (RFC 9110,
    section 9.2.1), so any other POST counts as a change.
    """
    if method in SAFE_METHODS:
        return target.startswith(_EVENT) and _CHANGED_BY_ANY_METHOD.match(target) is not None
    if method == b"POST":
        return not _READ_BY_POST.match(target)
    return True
