"""`proxy.projects.leases`: the log redacts the tokens in use, and those of a moment ago."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.contentsquare import Api
from proxy.logs.setup import redactor
from proxy.projects.leases import REDACTED_TOKENS, RedactedTokens

TOKENS = [f"token-number-{number}-of-this-test" for number in range(REDACTED_TOKENS + 1)]


@pytest.fixture
def tokens() -> Iterator[RedactedTokens]:
    made = RedactedTokens()
    yield made
    made.clear()


def hidden(token: str) -> bool:
    return token not in redactor.redact(f"the token {token} was refused")


def test_the_last_tokens_of_each_api_are_redacted(tokens: RedactedTokens) -> None:
    for token in TOKENS:
        tokens.add(Api.METRICS, token)
    tokens.add(Api.SURVEYS, "token-of-the-surveys")
    assert [hidden(token) for token in TOKENS] == [False, *[True] * REDACTED_TOKENS]
    assert hidden("token-of-the-surveys")


def test_a_token_that_two_projects_use_is_redacted_until_neither_does(tokens: RedactedTokens) -> None:
    tokens.add(Api.METRICS, TOKENS[0])
    successor = RedactedTokens()
    successor.add_all(tokens)
    tokens.clear()
    assert hidden(TOKENS[0])
    successor.clear()
    assert not hidden(TOKENS[0])
