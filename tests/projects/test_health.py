"""The rules of health: a table of evidence and what follows from it."""

from __future__ import annotations

import re
from datetime import date

import pytest

from proxy.errors import TokenFetchError, WayDied
from proxy.projects.health import Evidence, Token, health_of
from proxy.projects.measures import CUT, ENOUGH, LEFT, LEFT_QUEUE, OwnError, Recent

END = date(2027, 1, 31)
DOWN = "No answer from Contentsquare (host): the connection was refused. Try again; `csq-proxy` helps."


def fresh(*apis: str) -> list[Token]:
    return [Token(api, "fresh", seconds_left=3000.0) for api in apis or ("metrics",)]


def failed(cause: str, words: str = "it broke", status: int | None = None) -> TokenFetchError:
    return TokenFetchError(words, cause=cause, permanent=cause == "credentials_refused", status=status)


def test_the_next_step_fits_the_reason_why_there_is_no_token() -> None:
    lacking = failed("credentials_refused", status=403)
    for error, step in (
        (REFUSED, "Correct the credentials in the proxy's configuration"),
        (lacking, "Ask your Contentsquare administrator for these rights"),
        (failed("endpoint_refused"), "add it to contentsquare.allowed_endpoints"),
        (failed("timeout"), "Check this computer's network"),
    ):
        health = health_of(Evidence(tokens=[Token("metrics", "refused", error)]))
        assert step in (health.next_step or "")


def answers(requests: int, good_in_a_row: int = 0, **troubles: int) -> Recent:
    """Statuses of Contentsquare's are given as ``_500``."""
    counts = {code.lstrip("_"): n for code, n in troubles.items()}
    return Recent(2 if requests >= ENOUGH else 5, requests, counts, good_in_a_row)


def unreachable(proxy_status: str) -> dict[str, OwnError]:
    code = "PROXY_UPSTREAM_UNREACHABLE"
    return {code: OwnError(0.0, code, DOWN, proxy_status)}


REFUSED = failed("credentials_refused", "the token endpoint answered 401: check client_id and client_secret")
CASES: dict[str, tuple[Evidence, tuple[str, str | None, str]]] = {
    # Tokens
    "no request yet": (Evidence(tokens=fresh()), ("working", None, "")),
    "nothing is fetched from the start": (Evidence(), ("working", None, "")),
    "tokens on first use": (Evidence(tokens=[Token("metrics", "idle")]), ("working", None, "")),
    "tokens still being fetched": (
        Evidence(is_ready=False, tokens=[Token("metrics", "fetching")]),
        ("waiting", "contentsquare", "aren't answered yet"),
    ),
    "the APIs are being asked for": (Evidence(is_ready=False), ("waiting", "contentsquare", "yet")),
    "wrong secret": (
        Evidence(is_ready=False, tokens=[Token("metrics", "refused", REFUSED)]),
        ("failing", "proxy", "No token: the token endpoint answered 401"),
    ),
    "wrong secret, and the APIs aren't known": (
        Evidence(is_ready=False, apis_error=REFUSED),
        ("failing", "proxy", "No token: "),
    ),
    "token refused for one API": (
        Evidence(is_ready=False, tokens=[*fresh(), Token("surveys", "refused", REFUSED)]),
        ("degraded", "proxy", "No token for surveys: "),
    ),
    "the credentials lack rights": (
        Evidence(tokens=[Token("metrics", "refused", failed("credentials_refused", status=403))]),
        ("failing", "contentsquare", "No token: it broke."),
    ),
    "the endpoint isn't allowed": (
        Evidence(tokens=[Token("metrics", "failing", failed("endpoint_refused"))]),
        ("failing", "proxy", "No token: it broke."),
    ),
    "token endpoint answers 503": (
        Evidence(is_ready=False, tokens=[Token("metrics", "failing", failed("server_error", status=503))]),
        ("failing", "contentsquare", "No token: it broke."),
    ),
    "token endpoint away, and no token": (
        Evidence(is_ready=False, tokens=[Token("metrics", "failing", failed("connection_refused"))]),
        ("failing", "network", "No token: it broke."),
    ),
    "token endpoint away, token still valid": (
        Evidence(tokens=[Token("metrics", "stale", failed("timeout"), 2, 1500.0)], recent=answers(9, 9)),
        ("degraded", "contentsquare", "ends in 25 min"),
    ),
    "one refresh failed, token still valid": (
        Evidence(tokens=[Token("metrics", "stale", failed("timeout"), 1, 1500.0)]),
        ("working", None, ""),
    ),
    "no name server, and no token": (
        Evidence(is_ready=False, tokens=[Token("metrics", "failing", failed("dns"))]),
        ("failing", "network", "No token"),
    ),
    # Answers, many
    "all is well": (Evidence(tokens=fresh(), recent=answers(1000, 1000)), ("working", None, "")),
    "one stray error among many": (Evidence(recent=answers(1000, 0, _500=1)), ("working", None, "")),
    "one stray error among twenty": (Evidence(recent=answers(20, 0, _500=1)), ("working", None, "")),
    "two stray errors among twenty": (Evidence(recent=answers(20, 0, _500=2)), ("working", None, "")),
    "a twentieth fails": (
        Evidence(recent=answers(100, 3, _500=4, _503=1)),
        (
            "degraded",
            "contentsquare",
            "5 of 100 requests in the last 2 minutes failed: Contentsquare answered 4 with 500, 1 with 503",
        ),
    ),
    "the cloud answers 500": (
        Evidence(tokens=fresh(), recent=answers(100, 0, _500=80, _503=7)),
        ("failing", "contentsquare", "87 of 100 .* answered 80 with 500, 7 with 503"),
    ),
    "the cloud can't be reached": (
        Evidence(
            tokens=fresh(),
            recent=answers(30, 0, PROXY_UPSTREAM_UNREACHABLE=30),
            last_errors=unreachable("connection_refused"),
        ),
        ("failing", "contentsquare", r"No answer from Contentsquare \(host\): the connection was refused\.$"),
    ),
    "neither the cloud nor the token endpoint can be reached": (
        Evidence(
            tokens=[Token("metrics", "stale", failed("connection_refused"), 1, 3000.0)],
            recent=answers(30, 0, PROXY_UPSTREAM_UNREACHABLE=30),
            last_errors=unreachable("connection_refused"),
        ),
        ("failing", "network", "30 of 30"),
    ),
    "the cloud's name can't be resolved": (
        Evidence(
            tokens=fresh(),
            recent=answers(30, 0, PROXY_UPSTREAM_UNREACHABLE=30),
            last_errors=unreachable("dns_error"),
        ),
        ("failing", "network", "30 of 30"),
    ),
    "no name server answers": (
        Evidence(
            tokens=fresh(),
            recent=answers(30, 0, PROXY_UPSTREAM_UNREACHABLE=30),
            last_errors=unreachable("dns_timeout"),
        ),
        ("failing", "network", "30 of 30"),
    ),
    "this computer has no network": (
        Evidence(
            tokens=fresh(),
            recent=answers(30, 0, PROXY_UPSTREAM_UNREACHABLE=30),
            last_errors=unreachable("destination_ip_unroutable"),
        ),
        ("failing", "network", "30 of 30"),
    ),
    "no local ports are left": (
        Evidence(
            recent=answers(30, 0, PROXY_UPSTREAM_UNREACHABLE=30),
            last_errors=unreachable("proxy_internal_error"),
        ),
        ("failing", "proxy", "30 of 30"),
    ),
    "the cloud is silent": (
        Evidence(recent=answers(4, 0, PROXY_UPSTREAM_TIMEOUT=4)),
        ("failing", "contentsquare", "4 of 4 requests in the last 5 minutes failed: Contentsquare is silent"),
    ),
    "callers leave without an answer": (
        Evidence(recent=answers(5, 0, **{LEFT: 5})),
        ("failing", "contentsquare", "left after 10 s"),
    ),
    "callers leave without a slot": (
        Evidence(recent=answers(5, 0, **{LEFT_QUEUE: 5})),
        ("failing", "caller", "without a slot"),
    ),
    "slow callers are cut": (
        Evidence(
            recent=answers(5, 0, **{CUT: 3}),
            last_errors={
                CUT: OwnError(0.0, CUT, "The answer was cut: its caller took less. Send it.", side="caller")
            },
        ),
        ("degraded", "caller", "its caller took less"),
    ),
    "the network loses connections": (
        Evidence(
            recent=answers(5, 0, **{CUT: 5}),
            last_errors={
                CUT: OwnError(0.0, CUT, f"The answer was cut: {WayDied()}. Send it again.", side="network")
            },
        ),
        ("failing", "network", "the network lost the connection"),
    ),
    "even a fresh token is refused": (
        Evidence(tokens=fresh(), recent=answers(3, 0, PROXY_TOKEN_REFUSED=3)),
        ("failing", "contentsquare", "3 of 3"),
    ),
    "a bug": (
        Evidence(recent=answers(30, 0, PROXY_INTERNAL_ERROR=3)),
        ("degraded", "proxy", "3 of 30"),
    ),
    # Answers, few
    "the only request failed": (
        Evidence(recent=answers(1, 0, _500=1)),
        ("degraded", "contentsquare", "1 of 1 request in"),
    ),
    "one of two failed": (Evidence(recent=answers(2, 0, _500=1)), ("working", None, "")),
    "three in a row failed": (
        Evidence(recent=answers(5, 0, _500=3)),
        ("failing", "contentsquare", "Contentsquare answered 3 of 5 requests in the last 5 minutes with 500"),
    ),
    "one good answer after a trouble": (
        Evidence(recent=answers(9, 1, _500=8)),
        ("degraded", "contentsquare", "8 of 9"),
    ),
    "three good answers after a trouble": (Evidence(recent=answers(11, 3, _500=8)), ("working", None, "")),
    "requests without a token, which is there now": (
        Evidence(tokens=fresh(), recent=answers(8, 0, PROXY_TOKEN_UNAVAILABLE=8)),
        ("working", None, ""),
    ),
    # Slots
    "no slot in time": (
        Evidence(recent=answers(40, 0, PROXY_QUEUE_TIMEOUT=8)),
        ("degraded", "caller", "8 of 40"),
    ),
    "other programs take the slots": (
        Evidence(tokens=fresh(), recent=answers(40, 40), allowance=3, refused=12),
        ("degraded", "caller", "leave about 3 of its 10 slots. Contentsquare refused 12 requests"),
    ),
    "other programs took slots a while ago": (Evidence(allowance=3), ("working", None, "")),
    "another program takes one slot": (Evidence(allowance=9, refused=1), ("working", None, "")),
    # Callers' mistakes
    "one mistake": (Evidence(recent=answers(1, 1, _404=1)), ("working", None, "")),
    "some mistakes among many requests": (Evidence(recent=answers(100, 100, _400=40)), ("working", None, "")),
    "one caller makes only mistakes": (
        Evidence(recent=answers(40, 40, _404=30)),
        ("degraded", "caller", "30 of 40 .* by Contentsquare with 404"),
    ),
    "a caller without rights": (
        Evidence(
            recent=answers(30, 3, PROXY_FORBIDDEN=27),
            last_errors={
                "PROXY_FORBIDDEN": OwnError(0.0, "PROXY_FORBIDDEN", "The caller etl is read-only.", "")
            },
        ),
        ("degraded", "caller", "27 of 30 .* by the proxy: The caller etl is read-only"),
    ),
    "the API isn't enabled": (
        Evidence(recent=answers(6, 6, _403=6)),
        ("degraded", "contentsquare", "6 of 6 .* with 403"),
    ),
    "one caller's mistakes hide no failure of the others": (
        Evidence(recent=answers(1000, 0, PROXY_FORBIDDEN=900, _500=100)),
        ("failing", "contentsquare", "100 of 100"),
    ),
    # Credentials
    "credentials end in 30 days": (Evidence(days_left=30, expires=END), ("working", None, "")),
    "credentials end in 14 days": (
        Evidence(days_left=14, expires=END),
        ("degraded", "proxy", "end in 14 days, on 2027-01-31"),
    ),
    "credentials end tomorrow": (Evidence(days_left=1, expires=END), ("degraded", "proxy", "in 1 day,")),
    "credentials end today": (Evidence(days_left=0, expires=END), ("degraded", "proxy", "end today")),
    "credentials have ended": (
        Evidence(days_left=-3, expires=END),
        ("degraded", "proxy", "The credentials ended, on 2027-01-31"),
    ),
    "the standby credentials are in use": (Evidence(on_standby=True), ("degraded", "proxy", "standby")),
}


@pytest.mark.parametrize(("evidence", "expected"), CASES.values(), ids=CASES)
def test_the_table_of_rules(evidence: Evidence, expected: tuple[str, str | None, str]) -> None:
    health, (state, side, reason) = health_of(evidence), expected
    assert (health.state, health.side) == (state, side)
    if not reason:
        assert (health.reason, health.next_step) == (None, None)
        return
    assert health.reason is not None
    assert health.next_step is not None
    assert re.search(reason, health.reason), health.reason
    assert health.summary != "working"
    for sentence in (health.reason, health.next_step):
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert sentence.endswith(".")
        assert ".." not in sentence
