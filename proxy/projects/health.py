"""The health of a project: a state, whose trouble it is, the reason with figures, and the next step.

Pure rules over an `Evidence`: the tokens, and the requests that ended of late. They are, in short:

- *failing*: no request can succeed now. No API has a token, or three or more requests failed, half of all
  at least and the last one too.
- *degraded*: some requests fail, or will soon. One failure among good answers changes nothing.
- *waiting*: the first tokens are still being fetched. *working*: all the rest, also without a request.

A failure is a 5xx of Contentsquare's or the proxy's, or a caller that left after a long wait. Callers'
mistakes (4xx) make a project *degraded* at most, if they are half of its requests. The window is the last two
minutes, or five where fewer than `ENOUGH` requests ended in them. So after a trouble a busy project is
*working* within two minutes, and another one at the third good answer in a row, or after five minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final, Literal

from proxy.errors import Side, TokenFetchError
from proxy.projects.measures import CUT, ENOUGH, LEFT, LEFT_QUEUE, RECENT_MINUTES, OwnError, Recent
from proxy.tokens.lease import State as TokenState

State = Literal["working", "waiting", "degraded", "failing"]
SEVERITY: Final[tuple[State, ...]] = ("failing", "degraded", "waiting", "working")
"""The worst state first."""
FEW: Final = 3
"""So many failures are no accident, and so many good answers in a row are a recovery."""
SHARE: Final = 0.05
"""The share of failures from which on a busy project is degraded."""
MISTAKES: Final = 5
"""Fewer mistakes of callers say nothing."""
END_DAYS: Final = 14
"""So many days before their end, credentials are a trouble."""

LIVE: Final = "`csq-proxy check --live` names the broken link"
_SUPPORT: Final = "Wait; if it goes on, ask Contentsquare's support, with a request_id of the log."
_FEWER: Final = "Send fewer requests at once. Slow requests and other programs take slots, too."
_REACH: Final = f"Check this computer's network, VPN and HTTP proxy: {LIVE}."
_FAR_CAUSES: Final = frozenset(("connection_failed", "connection_lost", "connection_refused", "timeout"))
_NEAR_CAUSES: Final = frozenset(("dns", "http_proxy", "no_network", "tls"))
_NEAR_STATUSES: Final = frozenset(
    (
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "dns_error",
        "dns_timeout",
        "proxy_configuration_error",
        "proxy_internal_response",
        "tls_certificate_error",
        "tls_protocol_error",
    )
)
"""RFC 9209's types of errors that arise before Contentsquare is reached."""
_OWN_CAUSES: Final = frozenset(
    ("credentials_refused", "endpoint_refused", "forbidden", "loop", "no_descriptors", "no_memory", "no_port")
)


@dataclass(frozen=True, slots=True)
class Health:
    """``summary`` is the trouble in a few words, for a list. The others are as in ``/-/status``."""

    state: State
    summary: str
    side: Side | None = None
    reason: str | None = None
    next_step: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """The token of one API. ``error`` is that of the last fetch, None if it succeeded or none ended yet."""

    api: str
    state: TokenState
    error: TokenFetchError | None = None
    failures_in_a_row: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts about a project that its health follows from.

    ``is_ready``: every token that is wanted from the start is usable. ``apis_error`` is why the APIs of the
    credentials aren't known. ``refused`` counts the requests of the last minutes that Contentsquare refused
    because too many ran at once. ``last_errors`` has the newest of the proxy's errors by its code.
    """

    is_ready: bool = True
    tokens: Sequence[Token] = ()
    apis_error: TokenFetchError | None = None
    recent: Recent = field(default_factory=Recent)
    last_errors: Mapping[str, OwnError] = field(default_factory=dict)
    allowance: int = 10
    limit: int = 10
    refused: int = 0
    days_left: int | None = None
    expires: date | None = None
    on_standby: bool = False


def health_of(evidence: Evidence) -> Health:
    """The worst trouble of a project; of troubles of one state, the one that explains more."""
    return worst((*_tokens(evidence), *_answers(evidence), *_slots(evidence), *_credentials(evidence)))


def worst(found: Iterable[Health]) -> Health:
    """The first one of the worst state; "working" without any."""
    return min(found, key=lambda one: SEVERITY.index(one.state), default=Health("working", "working"))


# Tokens


def _tokens(evidence: Evidence) -> Iterator[Health]:
    broken = [one for one in evidence.tokens if one.state in ("failing", "refused")]
    usable = [one for one in evidence.tokens if one.state in ("fresh", "stale")]
    if evidence.apis_error is not None and not usable:
        yield _no_token("failing", "no token", "No token", evidence.apis_error, evidence)
    elif broken and not usable:
        yield _no_token("failing", "no token", "No token", broken[0].error, evidence)
    elif broken:
        apis = ", ".join(one.api for one in broken)
        yield _no_token("degraded", f"no token for {apis}", f"No token for {apis}", broken[0].error, evidence)
    elif not evidence.is_ready:
        yield Health(
            "waiting",
            "waiting for tokens",
            "contentsquare",
            "The first token requests aren't answered yet.",
            "Wait some seconds.",
        )
    stale = [one for one in usable if one.state == "stale" and one.failures_in_a_row > 1]
    if stale:
        error, left_s = stale[0].error, min(one.seconds_left or 0.0 for one in stale)
        yield Health(
            "degraded",
            "token not renewed",
            _side_of_fetch(error, evidence),
            f"The token can't be renewed, and ends in {left_s / 60:.0f} min: {error}.",
            _step_of_fetch(error),
        )


def _no_token(
    state: State, summary: str, start: str, error: TokenFetchError | None, evidence: Evidence
) -> Health:
    return Health(
        state, summary, _side_of_fetch(error, evidence), f"{start}: {error}.", _step_of_fetch(error)
    )


def _side_of_fetch(error: TokenFetchError | None, evidence: Evidence) -> Side:
    cause = "" if error is None else error.cause
    if cause in _OWN_CAUSES and not _lacks_rights(error):
        return "proxy"
    if cause in _NEAR_CAUSES or (cause in _FAR_CAUSES and not evidence.recent.good_in_a_row):
        return "network"
    return "contentsquare"


def _lacks_rights(error: TokenFetchError | None) -> bool:
    """Whether the credentials are right, but not for this API or project."""
    return error is not None and error.status == 403


def _step_of_fetch(error: TokenFetchError | None) -> str:
    cause = "" if error is None else error.cause
    if _lacks_rights(error):
        return f"Ask your Contentsquare administrator for these rights: {LIVE}."
    if cause == "credentials_refused":
        return f"Correct the credentials in the proxy's configuration: {LIVE}."
    if cause == "endpoint_refused":
        return f"If that host is Contentsquare's, add it to contentsquare.allowed_endpoints: {LIVE}."
    if cause in _NEAR_CAUSES or cause in _FAR_CAUSES:
        return _REACH
    if cause in _OWN_CAUSES:
        return f"Correct this computer's or the proxy's settings: {LIVE}."
    if error is not None and error.status == 500:
        return f"Check the credentials, and wait: {LIVE}."
    return _SUPPORT


# Answers


def _answers(evidence: Evidence) -> Iterator[Health]:
    recent = evidence.recent
    troubles = {code: n for code, n in recent.troubles.items() if code != "PROXY_TOKEN_UNAVAILABLE"}
    failures = {code: n for code, n in troubles.items() if _is_failure(code)}
    mistakes = {code: n for code, n in troubles.items() if code not in failures}
    own_mistakes = sum(n for code, n in mistakes.items() if code.startswith("PROXY_"))
    # The tokens themselves tell of requests without one, and a refused call says nothing of Contentsquare.
    total = recent.requests - recent.troubles.get("PROXY_TOKEN_UNAVAILABLE", 0) - own_mistakes
    state = _storm(sum(failures.values()), total, recent.good_in_a_row)
    if state != "working":
        yield _failure(state, failures, total, evidence)
    made = sum(mistakes.values())
    if made >= MISTAKES and 2 * made >= total + own_mistakes:
        yield _mistake(mistakes, made, total + own_mistakes, evidence)


def _is_failure(code: str) -> bool:
    return code in _FAILURES or code.startswith("5")


def _storm(failed: int, total: int, good_in_a_row: int) -> State:
    """The state that so many failures of so many requests make."""
    if not failed or (total < ENOUGH and good_in_a_row >= FEW):
        return "working"
    if total >= ENOUGH:
        if failed >= FEW and 2 * failed >= total:
            return "failing"
        return "degraded" if failed >= FEW and failed >= SHARE * total else "working"
    if failed >= FEW:
        return "degraded" if good_in_a_row or 2 * failed < total else "failing"
    return "degraded" if failed == total else "working"


_FAILURES: Final[Mapping[str, tuple[str, Side, str, str]]] = {
    "PROXY_UPSTREAM_UNREACHABLE": ("Contentsquare not reached", "contentsquare", "", _REACH),
    "PROXY_UPSTREAM_TIMEOUT": (
        "Contentsquare is silent",
        "contentsquare",
        "",
        "Ask for less in one request, or raise contentsquare.idle_timeout.",
    ),
    "PROXY_TOKEN_REFUSED": (
        "token refused",
        "contentsquare",
        "",
        "Check in Contentsquare's console that the credentials still have access to this project and API.",
    ),
    "PROXY_QUEUE_TIMEOUT": (
        "no free slot",
        "caller",
        "",
        _FEWER,
    ),
    LEFT_QUEUE: (
        "no free slot",
        "caller",
        "their callers left after 10 s or more, most of it without a slot",
        _FEWER,
    ),
    "PROXY_LOOP": (
        "the proxy reached itself",
        "proxy",
        "",
        "Correct the hosts file or contentsquare.auth_url.",
    ),
    "PROXY_INTERNAL_ERROR": (
        "a bug of the proxy",
        "proxy",
        "",
        "Report this bug, with the traceback in the log.",
    ),
    CUT: (
        "answers cut",
        "contentsquare",
        "",
        "Send the requests again; the last errors tell why each was cut.",
    ),
    LEFT: (
        "slow answers",
        "contentsquare",
        "their callers left after 10 s or more without an answer",
        "Give the callers a longer time-out, or ask for less in one request.",
    ),
}
"""By code: in a few words, the side, the reason if the error's own message isn't used, and the next step."""


def _failure(state: State, failures: Mapping[str, int], total: int, evidence: Evidence) -> Health:
    failed = sum(failures.values())
    code = max(failures, key=lambda one: failures[one])
    start = f"{failed} of {_requests(total, evidence.recent)} failed"
    if code not in _FAILURES:
        reason = f"Contentsquare answered {failed} of {_requests(total, evidence.recent)} with {code}."
        if len(failures) > 1:
            each = ", ".join(f"{n} with {one}" for one, n in failures.items() if one not in _FAILURES)
            reason = f"{start}: Contentsquare answered {each}."
        return Health(state, "errors of Contentsquare", "contentsquare", reason, _SUPPORT)
    summary, side, why, step = _FAILURES[code]
    last = evidence.last_errors.get(code)
    if not why and last is not None:
        why = last.message.partition(". ")[0].rstrip(".")
    if code == "PROXY_UPSTREAM_UNREACHABLE":
        side = _side_of_reach(last, evidence)
        step = _REACH if side == "network" else f"Wait, and try again; {LIVE}."
    elif last is not None and last.side is not None:
        side = last.side
        if side == "caller":
            state = "degraded"
        elif side == "network":
            step = _REACH
    return Health(state, summary, side, f"{start}: {why or summary}.", step)


def _side_of_reach(last: OwnError | None, evidence: Evidence) -> Side:
    """Whose trouble it is that no answer comes; the network's if the token endpoint isn't reached either."""
    if last is not None and last.proxy_status in _NEAR_STATUSES:
        return "network"
    if last is not None and last.proxy_status == "proxy_internal_error":
        return "proxy"
    causes = {one.error.cause for one in evidence.tokens if one.error is not None}
    return "network" if causes & (_FAR_CAUSES | _NEAR_CAUSES) else "contentsquare"


def _mistake(mistakes: Mapping[str, int], made: int, total: int, evidence: Evidence) -> Health:
    code = max(mistakes, key=lambda one: mistakes[one])
    start = f"{made} of {_requests(total, evidence.recent)} were refused"
    if code.startswith("PROXY_"):
        last = evidence.last_errors.get(code)
        why = code if last is None else last.message.rstrip(".")
        return Health(
            "degraded",
            "callers' mistakes",
            "caller",
            f"{start}, most by the proxy: {why}.",
            f"Correct the calling program: README says what to do about {code}.",
        )
    side, step = _STEPS.get(
        code, ("caller", "Correct the calling program: Contentsquare's answers say what is wrong.")
    )
    summary = "refused by Contentsquare" if side == "contentsquare" else "callers' mistakes"
    reason = f"{start}, most by Contentsquare with {code}."
    return Health("degraded", summary, side, reason, step)


_STEPS: Final[Mapping[str, tuple[Side, str]]] = {
    "403": (
        "contentsquare",
        "Check in Contentsquare's console that the project has this API and the credentials may use it.",
    ),
    "404": ("caller", "Correct the address that the calling program asks for."),
    "429": ("caller", "Send fewer requests: Contentsquare limits how many there may be."),
}


def _requests(total: int, recent: Recent) -> str:
    return f"{total} request{'s' if total != 1 else ''} in the last {recent.minutes} minutes"


# Slots and credentials


def _slots(evidence: Evidence) -> Iterator[Health]:
    if evidence.refused and 2 * evidence.allowance <= evidence.limit:
        yield Health(
            "degraded",
            "other programs take slots",
            "caller",
            "Other programs use this Contentsquare project, too: they leave about"
            f" {evidence.allowance} of its {evidence.limit} slots. Contentsquare refused {evidence.refused}"
            f" requests in the last {RECENT_MINUTES} minutes, and the proxy sends these again.",
            "Have the other programs call through this proxy, or at other times.",
        )


def _credentials(evidence: Evidence) -> Iterator[Health]:
    left = evidence.days_left
    if left is not None and left <= END_DAYS:
        when = "ended" if left < 0 else "end today" if not left else f"end in {left} day{'s'[: left > 1]}"
        yield Health(
            "degraded",
            f"credentials {when}",
            "proxy",
            f"The credentials {when}, on {evidence.expires}." if left else f"The credentials {when}.",
            "Make new credentials in Contentsquare's console, and put them into the configuration.",
        )
    if evidence.on_standby:
        yield Health(
            "degraded",
            "on standby credentials",
            "proxy",
            "Contentsquare refused the first credentials, so the standby credentials are in use.",
            "Renew the first credentials in the configuration.",
        )
