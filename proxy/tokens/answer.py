"""Reads the token endpoint's answer: a lease, or an error with the next step.

Pure decisions about bytes from outside: no I/O, and nothing of aiohttp. Lenient about shapes, because
client programs in the wild accept several. Strict about what would do harm: a malformed token, a
malformed life, an ``endpoint`` that must not get the token (`endpoint_fault`), and texts that may
repeat the credentials (`quotable`). Sources: RFC 6749, section 5; RFC 6750, section 2.1;
Contentsquare's authentication pages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from proxy.contentsquare import Api
from proxy.errors import ProxyLoop, TokenFetchError
from proxy.foreign import decoded, gives_away
from proxy.logs import redactor
from proxy.origin import Origin
from proxy.tokens.lease import Lease
from proxy.tokens.schedule import RETRY_AFTER_CAP_S
from proxy.upstream.loop import ADVICE

DEFAULT_LIFETIME_S = 600.0
MAX_LIFETIME_S = 86400.0
MAX_TOKEN = 16 << 10
"""Characters of an access_token; a request with a longer one in a field would be refused."""
MIN_REPEATED = 16
"""Fewer characters of a secret may stand in an answer that is passed on: they may be ordinary words."""
MAX_QUOTE = 200
"""The most characters of an answer's text that a message quotes."""
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
    """An answer as it came.

    Its request was sent at ``sent_at`` (monotonic seconds), which is ``sent_at_wall`` (seconds since 1970).
    """

    status: int
    fields: Mapping[str, str]
    body: bytes = field(repr=False)
    sent_at: float
    sent_at_wall: float

    def retry_after_s(self) -> float | None:
        """Seconds (RFC 9110, section 10.2.3); a date is compared with the answer's own ``Date``."""
        value = self.fields.get("Retry-After", "").strip()
        if _DECIMAL.fullmatch(value):
            return min(float(value), RETRY_AFTER_CAP_S)
        until, now = http_date(value), http_date(self.fields.get("Date"))
        if until is None:
            return None
        return min(max(0.0, until - (self.sent_at_wall if now is None else now)), RETRY_AFTER_CAP_S)

    def repeats(self, secret: str) -> bool:
        """Whether the answer repeats the secret, or a half of it, in any spelling of `proxy.foreign`."""
        text = f"{self.fields.get('Content-Type', '')}\0{self.body.decode('utf-8', 'replace')}"
        return gives_away(text, (secret,), part=max(MIN_REPEATED, len(secret) // 2))

    def members(self) -> Mapping[str, object]:
        """The members of the body's JSON object. Raises `TokenFetchError` if the body is none."""
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

    ``scope`` and ``project_id`` are those of the request; they hold if the answer names none.
    ``private`` are the texts that no message may repeat.
    """
    members = answer.members()
    _check_token_type(members.get("token_type"))
    lifetime_s = _lifetime_s(members.get("expires_in"))
    return Lease(
        access_token=_access_token(members.get("access_token")),
        origin=_origin(members, allowed_endpoints, private),
        scope=_scope(members.get("scope"), private) or scope,
        project_id=_project_id(members.get("project_id"), project_id),
        lifetime_s=lifetime_s,
        received_at=answer.sent_at,
        expires_at=datetime.fromtimestamp(answer.sent_at_wall + lifetime_s, UTC),
    )


def failure_of(answer: TokenAnswer, sender: str, private: Collection[str]) -> TokenFetchError | None:
    """The error that a status other than 2xx means; None for 2xx. ``sender`` is its name in messages."""
    if 200 <= answer.status < 300:
        return None
    if answer.status == 502 and (_json_object(answer.body) or {}).get("errorCode") == ProxyLoop.code:
        return TokenFetchError(f"{sender} is this proxy itself: {ADVICE}", cause="loop", status=502)
    cause, permanent, advice = _meaning(answer.status)
    quote = _quote(answer.body, private)
    return TokenFetchError(
        f"{sender} answered {answer.status}{quote}: {advice}",
        cause=cause,
        permanent=permanent,
        retry_after_s=None if permanent else answer.retry_after_s(),
        status=answer.status,
        quote=quote,
    )


def endpoint_fault(
    origin: Origin, allowed: Sequence[str], setting: str = "contentsquare.allowed_endpoints"
) -> str | None:
    """Why the token must not be sent to this origin; None if it may be sent. ``setting`` is for the text.

    A pattern in ``allowed`` is "host" (the scheme's default port) or "host:port"; with "*." in front it
    means every host below that name, not the name itself. An IP address matches only an equal pattern.
    Plain http is for loopback only.
    """
    if not origin.is_tls and not origin.is_loopback:
        return "plain http is only allowed for this machine itself"
    default = 443 if origin.is_tls else 80
    ports = [port or default for host, port in map(host_and_port, allowed) if _host_fits(origin, host)]
    if not ports:
        return f"its host isn't in {setting}"
    if origin.port not in ports:
        return f"its port isn't in {setting}"
    return None


def apis_of(members: Mapping[str, object]) -> frozenset[Api] | None:
    """The APIs that an answer of ``/v1/oauth/me`` names; None if it names no scopes.

    The scopes are one string, separated by spaces or commas, or a list of strings. Scopes of no known API
    are passed over.
    """
    value = members.get("scopes", members.get("scope"))
    if isinstance(value, str):
        names: list[object] = list(value.replace(",", " ").split())
    elif isinstance(value, list):
        names = value
    else:
        return None
    return frozenset(api for api in Api if api.scope in names)


def quotable(text: str, private: Collection[str]) -> str:
    """A foreign text made fit for messages: one line, printable, short.

    It is withheld where it repeats a part of the ``private`` texts, or a whole secret that the log hides (of
    another project, or one that was renewed since), in any spelling of `proxy.foreign`.
    """
    text = text[: 5 * MAX_QUOTE]
    if gives_away(text, private) or any(redactor.redact(view) != view for view in decoded(text)):
        return "[withheld: it repeats the credentials]"
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_QUOTE]


def http_date(value: str | None) -> float | None:
    """A date of RFC 9110, section 5.6.7, as seconds since 1970; None if the value is no date."""
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
    """``expires_in`` as seconds, > 0 and at most a day; 10 minutes if it is missing."""
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


def _scope(value: object, private: Collection[str]) -> str | None:
    """The granted scopes; None where there are none, or where the text isn't fit to be shown."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_QUOTE:
        return None
    return None if gives_away(value, private) else value


def _project_id(value: object, asked: int | None) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else asked


def host_and_port(pattern: str) -> tuple[str, int | None]:
    """The host of a pattern, perhaps with ``*.`` in front, and its port; None where it names none."""
    match = _PATTERN.fullmatch(pattern.strip().lower())
    if match is None:
        return "", None  # fits no host; loading the configuration has reported it
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
        "a fault at Contentsquare, or a wrong client_id or client_secret: it may answer either with 500",
    ),
}
_REDIRECTED = (
    "redirected",
    False,
    "redirects aren't followed; check contentsquare.auth_url, or whether a login page is in between",
)
_SERVER_ERROR = ("server_error", False, "a fault at Contentsquare")
_UNEXPECTED = ("unexpected_status", True, "check contentsquare.auth_url")


def _meaning(status: int) -> tuple[str, bool, str]:
    """For a status other than 2xx: the cause, whether it is permanent, and its meaning or the next step."""
    if status in _MEANINGS:
        return _MEANINGS[status]
    if status > 500:
        return _SERVER_ERROR
    return _REDIRECTED if status < 400 else _UNEXPECTED


def _quote(body: bytes, private: Collection[str]) -> str:
    """The answer's own error texts, in both known shapes, in brackets to follow the status; "" for none."""
    members = _json_object(body) or {}
    texts = (members.get(name) for name in ERROR_NAMES)
    quotes = (quotable(text, private) for text in texts if isinstance(text, str))
    joined = "; ".join(dict.fromkeys(filter(None, quotes)))
    return f" ({joined})" if joined else ""
