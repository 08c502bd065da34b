"""What the token endpoint's answer says: a lease, or what went wrong and what to do about it.

Pure decisions about bytes that came from outside; no I/O, and nothing of aiohttp. Lenient about
shapes (client programs in the wild read several), strict about what would do harm: a token that
isn't one, a life that isn't one, an ``endpoint`` that would be sent the token but isn't allowed to
have it (`endpoint_fault`), and texts that may repeat the credentials (`quotable`). Sources: RFC 6749,
section 5; RFC 6750, section 2.1; Contentsquare's authentication pages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from proxy.errors import TokenFetchError
from proxy.origin import Origin
from proxy.tokens.lease import RETRY_AFTER_CAP_S, Lease

DEFAULT_LIFETIME_S = 600.0
MAX_LIFETIME_S = 86400.0
MAX_TOKEN = 16 << 10
"""Characters of an access_token; a longer one would be refused as a request field."""
MAX_QUOTE = 200
"""Characters of an answer's own text that are quoted."""
ENDPOINT_NAMES = ("endpoint", "api_endpoint", "base_url")
ERROR_NAMES = ("error", "errorCode", "error_description", "errorMessage")

_DECIMAL = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_PATTERN = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<host>(?:\*\.)?[a-z0-9.-]+))(?::(?P<port>[0-9]{1,5}))?"
    r"|(?P<bare_ipv6>[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*)"
)


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """An answer as it came. ``sent_at`` (monotonic) and ``sent_at_wall`` (unix) are its request's."""

    status: int
    fields: Mapping[str, str]
    body: bytes = field(repr=False)
    sent_at: float
    sent_at_wall: float

    def retry_after_s(self) -> float | None:
        """RFC 9110, section 10.2.3: seconds, or a date, which is read by the answer's own clock."""
        value = self.fields.get("Retry-After", "").strip()
        if _DECIMAL.fullmatch(value):
            return min(float(value), RETRY_AFTER_CAP_S)
        until, now = http_date(value), http_date(self.fields.get("Date"))
        if until is None:
            return None
        return min(max(0.0, until - (self.sent_at_wall if now is None else now)), RETRY_AFTER_CAP_S)

    def members(self) -> Mapping[str, object]:
        """The JSON object that the body is. Raises `TokenFetchError` if it is none."""
        members = _json_object(self.body)
        if members is None:
            raise _malformed(
                "it isn't a JSON object; check contentsquare.auth_url,"
                " or whether a network's login page is in between"
            )
        return members


def lease_of(
    answer: TokenAnswer,
    *,
    allowed_endpoints: Sequence[str],
    scope: str,
    project_id: int | None,
    private: Collection[str],
) -> Lease:
    """The lease that a 2xx answer grants. Raises `TokenFetchError`.

    ``scope`` and ``project_id`` are what was asked for, and hold where the answer is silent.
    ``private`` are the texts that no message may repeat.
    """
    members = answer.members()
    _check_token_type(members.get("token_type"))
    lifetime_s = _lifetime_s(members.get("expires_in"))
    return Lease(
        access_token=_access_token(members.get("access_token")),
        origin=_origin(members, allowed_endpoints, private),
        scope=_scope(members.get("scope")) or scope,
        project_id=_project_id(members.get("project_id"), project_id),
        lifetime_s=lifetime_s,
        received_at=answer.sent_at,
        expires_at=datetime.fromtimestamp(answer.sent_at_wall + lifetime_s, UTC),
    )


def refusal(answer: TokenAnswer, who: str, private: Collection[str]) -> TokenFetchError | None:
    """What a status other than 2xx means, None for 2xx. ``who`` answered, in the message's words."""
    if 200 <= answer.status < 300:
        return None
    cause, permanent, advice = _meaning(answer.status)
    said = _said(answer.body, private)
    return TokenFetchError(
        f"{who} answered {answer.status}{said}: {advice}",
        cause=cause,
        permanent=permanent,
        retry_after_s=None if permanent else answer.retry_after_s(),
        status=answer.status,
        said=said,
    )


def endpoint_fault(origin: Origin, allowed: Sequence[str]) -> str | None:
    """Why the token must not be sent to this origin, or None if it may be.

    ``allowed``: "host" (the scheme's default port), "host:port", or the same with "*." in front for
    any host below that name, not the name itself. IP addresses only match when listed exactly. Plain
    http only goes to loopback.
    """
    if not origin.is_tls and not origin.is_loopback:
        return "plain http is only allowed for this machine itself"
    default = 443 if origin.is_tls else 80
    ports = [port or default for host, port in map(_host_and_port, allowed) if _host_fits(origin, host)]
    if not ports:
        return "its host isn't in contentsquare.allowed_endpoints"
    if origin.port not in ports:
        return "its port isn't in contentsquare.allowed_endpoints"
    return None


def quotable(text: str, private: Collection[str]) -> str:
    """A foreign text fit for messages: one line, printable, short, and without the ``private`` texts."""
    text = text[: 5 * MAX_QUOTE]
    if _gives_away(text, private):
        return "[withheld: it repeats the credentials]"
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_QUOTE]


def http_date(value: str | None) -> float | None:
    """A date of RFC 9110, section 5.6.7, as seconds since 1970; None if it isn't one."""
    try:
        date = parsedate_to_datetime(value or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _malformed(what: str) -> TokenFetchError:
    return TokenFetchError(f"the token endpoint's answer can't be used: {what}", cause="malformed")


def _json_object(body: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _access_token(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _malformed("access_token is missing")
    if not _VISIBLE.fullmatch(value) or len(value) > MAX_TOKEN:
        raise _malformed("access_token isn't a token (RFC 6750, section 2.1)")
    return value


def _check_token_type(value: object) -> None:
    if value is not None and not (isinstance(value, str) and value.lower() == "bearer"):
        raise _malformed("token_type isn't bearer")


def _lifetime_s(value: object) -> float:
    """``expires_in`` as seconds, > 0 and at most a day; 10 minutes where it is missing."""
    if value is None:
        return DEFAULT_LIFETIME_S
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed("expires_in isn't a number of seconds")
    if isinstance(value, float) and not math.isfinite(value):
        raise _malformed("expires_in isn't a finite number")
    if value <= 0:
        raise _malformed("expires_in isn't above 0")
    return float(min(value, MAX_LIFETIME_S))


def _origin(members: Mapping[str, object], allowed: Sequence[str], private: Collection[str]) -> Origin:
    values = (members.get(name) for name in ENDPOINT_NAMES)
    url = next((value.strip() for value in values if isinstance(value, str) and value.strip()), None)
    if url is None:
        message = "the token endpoint's answer names no endpoint, so there is no base URL to send requests to"
        raise TokenFetchError(message, cause="endpoint_missing")
    try:
        origin = Origin.parse(url)
        fault = endpoint_fault(origin, allowed)
    except ValueError:
        origin, fault = None, "it isn't a plain base URL"
    if origin is None or fault is not None:
        raise TokenFetchError(
            f"the token endpoint's answer names the endpoint {quotable(url, private)}, refused: {fault}",
            cause="endpoint_refused",
        )
    return origin


def _scope(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() and len(value) <= MAX_QUOTE else None


def _project_id(value: object, asked: int | None) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else asked


def _host_and_port(pattern: str) -> tuple[str, int | None]:
    match = _PATTERN.fullmatch(pattern.strip().lower())
    if match is None:
        return "", None  # fits no host; the configuration has complained about it
    return match["ipv6"] or match["bare_ipv6"] or match["host"], int(match["port"]) if match["port"] else None


def _host_fits(origin: Origin, host: str) -> bool:
    if host.startswith("*."):
        return not origin.is_ip and origin.host.endswith(host[1:])
    return origin.host == host


_MEANINGS = {
    400: (
        "credentials_refused",
        True,
        "check client_id, client_secret, project_id, integration_id, and that the credentials cover this API",
    ),
    401: (
        "credentials_refused",
        True,
        "check client_id and client_secret: they may be wrong, deleted, or over a year old",
    ),
    403: (
        "credentials_refused",
        True,
        "these credentials may not use this API or project; ask your Contentsquare administrator",
    ),
    408: ("unexpected_status", False, "the request took too long to reach it"),
    425: ("unexpected_status", False, "it asks for another try"),
    429: ("rate_limited", False, "too many token requests for these credentials"),
    500: (
        "server_error",
        False,
        "a fault at Contentsquare, or a wrong client_id or client_secret, which it is known to answer so",
    ),
}
_REDIRECTED = (
    "redirected",
    False,
    "redirects aren't followed; check contentsquare.auth_url, or for a network's login page in between",
)
_SERVER_ERROR = ("server_error", False, "a fault at Contentsquare")
_UNEXPECTED = ("unexpected_status", True, "check contentsquare.auth_url")


def _meaning(status: int) -> tuple[str, bool, str]:
    """A status other than 2xx as cause, whether it is permanent, and what it means or what to do."""
    if status in _MEANINGS:
        return _MEANINGS[status]
    if status > 500:
        return _SERVER_ERROR
    return _REDIRECTED if status < 400 else _UNEXPECTED


def _said(body: bytes, private: Collection[str]) -> str:
    """The answer's own words, in both shapes that are seen, ready to be put behind the status."""
    members = _json_object(body) or {}
    texts = (members.get(name) for name in ERROR_NAMES)
    quotes = (quotable(text, private) for text in texts if isinstance(text, str))
    said = "; ".join(dict.fromkeys(quote for quote in quotes if quote))
    return f" ({said})" if said else ""


def _gives_away(text: str, private: Collection[str]) -> bool:
    """Whether it holds eight characters in a row of a private text, also when spread out or quoted."""
    squeezed = "".join(character for character in text if character.isprintable() and not character.isspace())
    hays = (text.casefold(), squeezed.casefold())
    for secret in filter(None, private):
        parts = [secret[start : start + 8] for start in range(max(1, len(secret) - 7))]
        if any(part.casefold() in hay for part in (*parts, quote(secret, safe="")) for hay in hays):
            return True
    return False
