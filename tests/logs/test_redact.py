"""`proxy.logs.redact.Redactor` with many secrets at once: as right as with one, and hardly slower."""

from __future__ import annotations

import base64
import secrets
import time
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from support.texts import texts

from proxy.logs.redact import REDACTED, SHORTEST_SECRET, Redactor

TEXTS = texts(max_size=20)
SECRETS = st.one_of(
    texts(min_size=SHORTEST_SECRET, max_size=40),
    st.text("abcXYZ-_.0", min_size=SHORTEST_SECRET, max_size=60),
)


def a_token() -> str:
    """Something like a JWT: every one begins the same."""
    return f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{secrets.token_urlsafe(300)}.{secrets.token_urlsafe(32)}"


@given(st.lists(SECRETS, max_size=8), st.lists(TEXTS, min_size=9, max_size=9))
def test_none_of_many_secrets_is_left_wherever_it_stands(hidden: list[str], between: list[str]) -> None:
    redactor = Redactor()
    for secret in hidden:
        redactor.add(secret)
    line = "|".join(text + secret for text, secret in zip(between, [*hidden, ""], strict=False))
    redacted = redactor.redact(line)
    assert not [secret for secret in hidden if secret in redacted.replace(REDACTED, "\0")]
    for secret in hidden:
        redactor.discard(secret)
    assert redactor.redact(line) == line


def test_a_secret_within_another_leaves_nothing_of_it_standing() -> None:
    redactor = Redactor()
    inner = "abcdefghijklmnopqrstuvwxyz"
    for secret in (inner, f"{inner}-and-more-of-it", f"before-it.{inner}"):
        redactor.add(secret)
    assert redactor.redact(f"x {inner}-and-more-of-it y before-it.{inner} z {inner}").count(REDACTED) == 3
    assert "and-more" not in redactor.redact(f"{inner}-and-more-of-it")


def test_two_secrets_that_look_alike_when_quoted_are_taken_back_one_by_one() -> None:
    redactor = Redactor()
    plain, quoted = "a secret of its own kind/1", quote("a secret of its own kind/1", safe="")
    redactor.add(plain)
    redactor.add(quoted)
    redactor.discard(plain)
    assert redactor.redact(f"{plain} {quoted}") == f"{plain} {REDACTED}"
    redactor.discard(quoted)
    assert redactor.redact(quoted) == quoted


def test_a_token_is_found_as_it_is_and_a_secret_in_base64_too() -> None:
    redactor = Redactor()
    token, secret = a_token(), secrets.token_urlsafe(32)
    redactor.add(token, is_token=True)
    redactor.add(secret)
    pair = base64.b64encode(f"id:{secret}".encode()).decode()
    line = redactor.redact(f"Authorization: Bearer {token}, Basic {pair}")
    assert token not in line
    assert pair not in line


def test_thousands_of_tokens_cost_a_line_no_more_than_a_few() -> None:
    line = '{"timestamp": "2026-11-24T07:27:39.123456Z", "level": "info", "event": "request_answered"}'

    def line_s(count: int) -> float:
        redactor = Redactor()
        for _ in range(count):
            redactor.add(a_token(), is_token=True)
        rounds = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(50):
                redactor.redact(line)
            rounds.append(time.perf_counter() - start)
        return min(rounds)

    assert line_s(3000) < 10 * line_s(5)
