"""`proxy.tokens.answer`: what an answer of the token endpoint is taken for."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.texts import CHARACTERS, texts
from support.token_answers import GOOD

from proxy.errors import TokenFetchError
from proxy.logs import redactor
from proxy.origin import Origin
from proxy.tokens.answer import TokenAnswer, endpoint_fault, failure_of, http_date, lease_of, quotable
from proxy.tokens.lease import Lease

ALLOWED = ("*.contentsquare.com",)
CLIENT_ID = "an-id-5f1c"
SECRET = "hush-hush-1234567890"
PRIVATE = (CLIENT_ID, SECRET)
WALL = 1_800_000_000.0

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(), inner, max_size=3),
    max_leaves=5,
)


def answer(body: object, status: int = 200, **fields: str) -> TokenAnswer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-").title(): value for name, value in fields.items()}
    return TokenAnswer(status, named, raw, sent_at=1000.0, sent_at_wall=WALL)


def taken(body: object) -> Lease:
    return lease_of(answer(body), allowed_endpoints=ALLOWED, scope="metrics", project_id=7, private=PRIVATE)


def refused(body: object) -> TokenFetchError:
    with pytest.raises(TokenFetchError) as caught:
        taken(body)
    return caught.value


def good(**changes: object) -> dict[str, object]:
    return {**GOOD, **changes}


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in GOOD.items() if key != name}


# A lease


def test_the_documented_answer_makes_a_lease() -> None:
    lease = taken(GOOD)
    assert lease.access_token == "eyJ.abc.def"
    assert lease.authorization == b"Bearer eyJ.abc.def"
    assert lease.origin == Origin("https", "api.eu-west-1.production.contentsquare.com", 443)
    assert (lease.scope, lease.project_id, lease.lifetime_s) == ("data-export", 42, 3600.0)
    assert lease.received_at == 1000.0
    assert lease.expires_at == datetime.fromtimestamp(WALL + 3600, UTC)


@pytest.mark.parametrize("name", ["endpoint", "api_endpoint", "base_url"])
def test_the_endpoint_goes_by_three_names(name: str) -> None:
    body = without("endpoint") | {name: "https://enrichment-api.eu.contentsquare.com/"}
    assert taken(body).origin.host == "enrichment-api.eu.contentsquare.com"


def test_an_empty_endpoint_leaves_the_word_to_the_next_name() -> None:
    assert (
        taken(good(endpoint=" ", base_url="https://b.contentsquare.com")).origin.host == "b.contentsquare.com"
    )


@pytest.mark.parametrize("value", [None, "", 5, ["https://api.contentsquare.com"]])
def test_an_answer_without_an_endpoint_is_a_failure_that_says_so(value: object) -> None:
    error = refused(good(endpoint=value))
    assert (error.cause, error.permanent) == ("endpoint_missing", False)
    assert "names no endpoint" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example",
        "https://evilcontentsquare.com",
        "https://contentsquare.com",
        "https://api.contentsquare.com.evil.example",
        "https://api.contentsquare.com@evil.example",
        "https://evil.example/.contentsquare.com",
        "https://evil.example#.contentsquare.com",
        "https://evil.example?.contentsquare.com",
        "https://evil.example\\.contentsquare.com",
        "https://api.contentsquare.com:8443",
        "https://api.contentsquare.com/v1",
        "https://api.contentsquare.com:99999",
        "http://api.contentsquare.com",
        "ftp://api.contentsquare.com",
        "//api.contentsquare.com",
        "api.contentsquare.com",
        "https://",
        "https://[::1",
        "https://[::1]",
        "https://169.254.169.254",
        "https://127.0.0.1",
        "http://localhost",
        "https://api.contentsquare.com.",
        "https://\u0430pi.contentsquare.com",
        "https://api.contentsquare.com\r\nX: y",
        "javascript:alert(1)",
    ],
)
def test_an_endpoint_that_may_not_have_the_token_is_refused(url: str) -> None:
    error = refused(good(endpoint=url))
    assert error.cause == "endpoint_refused"
    assert not error.permanent
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "lifetime_s"),
    [
        (3600, 3600.0),
        (1, 1.0),
        (0.5, 0.5),
        (59.9, 59.9),
        ("3600", 3600.0),
        (" 3600 ", 3600.0),
        ("3600.5", 3600.5),
        (None, 600.0),
        (86_401, 86_400.0),
        (10**400, 86_400.0),
        ("99999999", 86_400.0),
    ],
)
def test_odd_lifetimes_that_can_be_used_are_used(value: object, lifetime_s: float) -> None:
    assert taken(good(expires_in=value)).lifetime_s == lifetime_s


def test_a_missing_lifetime_counts_as_ten_minutes() -> None:
    assert taken(without("expires_in")).lifetime_s == 600.0


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 0.0, -0.5, "0", "-5", "", "soon", "1e9", "0x10", "\u0663", "9" * 5000, True, False),
        *(math.nan, math.inf, -math.inf, [3600], {"s": 1}),
    ],
)
def test_lifetimes_that_are_none_are_a_failure(value: object) -> None:
    error = refused(good(expires_in=value))
    assert error.cause == "malformed"
    assert "expires_in" in str(error)


@given(value=json_values)
def test_any_lifetime_is_refused_or_positive_and_at_most_a_day(value: object) -> None:
    with suppress(TokenFetchError):
        assert 0 < taken(good(expires_in=value)).lifetime_s <= 86_400


@pytest.mark.parametrize("value", ["bearer", "Bearer", "BEARER", None])
def test_token_type_is_bearer_in_any_case_or_missing(value: object) -> None:
    assert taken(good(token_type=value)).access_token == "eyJ.abc.def"


@pytest.mark.parametrize("value", ["mac", "", 1, ["bearer"]])
def test_another_token_type_is_a_failure(value: object) -> None:
    assert "token_type" in str(refused(good(token_type=value)))


@pytest.mark.parametrize(
    "value",
    [None, "", 5, "two words", "line\r\nX-Evil: 1", "tab\t", "caf\u00e9", "x" * 20_000, ["a"], "\x00"],
)
def test_what_isnt_a_token_is_refused_and_not_repeated(value: object) -> None:
    error = refused(good(access_token=value))
    assert error.cause == "malformed"
    assert "access_token" in str(error)
    assert len(str(error)) < 200


@pytest.mark.parametrize(
    ("value", "project_id"), [(42, 42), ("42", 42), (None, 7), ("x", 7), (True, 7), (4.2, 7), ("9" * 5000, 7)]
)
def test_the_project_is_the_answers_or_else_the_asked_one(value: object, project_id: int) -> None:
    assert taken(good(project_id=value)).project_id == project_id


@pytest.mark.parametrize(
    ("value", "scope"),
    [("metrics surveys", "metrics surveys"), (None, "metrics"), ("", "metrics"), (5, "metrics")],
)
def test_the_scope_is_the_answers_or_else_the_asked_one(value: object, scope: str) -> None:
    assert taken(good(scope=value)).scope == scope


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><title>Sign in to the guest network</title>",
        b"{",
        b"null",
        b"[]",
        b'"token"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"expires_in": ' + b"9" * 10_000 + b"}",
    ],
    ids=[
        "empty",
        "html",
        "cut",
        "null",
        "array",
        "string",
        "not-utf-8",
        "deep-array",
        "deep-object",
        "huge-int",
    ],
)
def test_what_isnt_a_json_object_is_malformed_and_tried_again(body: bytes) -> None:
    error = refused(body)
    assert (error.cause, error.permanent) == ("malformed", False)
    assert "guest network" not in str(error)


@given(body=st.binary(max_size=200) | st.dictionaries(st.sampled_from([*GOOD, "base_url"]), json_values))
def test_no_answer_at_all_raises_anything_else(body: object) -> None:
    with suppress(TokenFetchError):
        taken(body)


# A refusal


def fault(status: int, body: object = b"", **fields: str) -> TokenFetchError:
    error = failure_of(answer(body, status, **fields), "the token endpoint", PRIVATE)
    assert error is not None
    return error


@pytest.mark.parametrize("status", [200, 201, 299])
def test_2xx_is_no_failure_of(status: int) -> None:
    assert failure_of(answer(b"", status), "x", PRIVATE) is None


@pytest.mark.parametrize(
    ("status", "cause", "permanent", "hint"),
    [
        (301, "redirected", False, "aren't followed"),
        (302, "redirected", False, "auth_url"),
        (304, "redirected", False, "auth_url"),
        (400, "credentials_refused", True, "project_id"),
        (401, "credentials_refused", True, "client_secret"),
        (403, "credentials_refused", True, "administrator"),
        (404, "unexpected_status", True, "auth_url"),
        (405, "unexpected_status", True, "auth_url"),
        (408, "unexpected_status", False, "too long"),
        (425, "unexpected_status", False, "another try"),
        (429, "rate_limited", False, "too many"),
        (500, "server_error", False, "wrong client_id or client_secret"),
        (502, "server_error", False, "fault at Contentsquare"),
        (503, "server_error", False, "fault at Contentsquare"),
        (599, "server_error", False, "fault at Contentsquare"),
    ],
)
def test_a_status_tells_whether_trying_again_helps_and_what_to_check(
    status: int, cause: str, permanent: bool, hint: str
) -> None:
    error = fault(status)
    assert (error.cause, error.permanent) == (cause, permanent)
    assert str(error).startswith(f"the token endpoint answered {status}")
    assert hint in str(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"error": "invalid_client", "error_description": "Unknown client"},
            "(invalid_client; Unknown client)",
        ),
        (
            {"success": False, "errorMessage": "Invalid scope", "errorCode": "BAD_SCOPE"},
            "(BAD_SCOPE; Invalid scope)",
        ),
        ({"error": "same", "errorCode": "same"}, "(same)"),
        ({"error": "a\r\n\x1b[31mb\u202e"}, "(a [31mb)"),
    ],
)
def test_the_endpoints_own_words_are_quoted_in_either_shape(body: Mapping[str, object], said: str) -> None:
    assert f"answered 401 {said}:" in str(fault(401, body))


@pytest.mark.parametrize("body", [b"<html>", {"error": {"a": 1}}, {"error": ""}, {"other": "x"}, []])
def test_a_body_without_such_words_is_not_quoted(body: object) -> None:
    assert "answered 401: " in str(fault(401, body))


def test_a_quote_is_short() -> None:
    assert len(str(fault(401, {"error": "x" * 10_000}))) < 400


@pytest.fixture
def another_secret() -> Iterator[None]:
    redactor.add("ANOTHER-PROJECTS-SECRET")
    yield
    redactor.discard("ANOTHER-PROJECTS-SECRET")


def test_scopes_that_repeat_the_credentials_are_not_kept() -> None:
    assert taken(good(scope=f"metrics {SECRET[::-1]}")).scope == "metrics"


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        SECRET.upper(),
        f"secret {SECRET} is wrong",
        f"secret {SECRET[:10]}... is wrong",
        "\u200b".join(SECRET),
        " ".join(SECRET),
        SECRET[::-1],
        SECRET.encode().hex(),
        base64.b64encode(f"id:{SECRET}".encode()).decode(),
        base64.urlsafe_b64encode(f"{SECRET}!".encode()).decode(),
        "".join(f"%{byte:02X}" for byte in SECRET.encode()),
        "ANOTHER-PROJECTS-SECRET",
        base64.b64encode(b"ANOTHER-PROJECTS-SECRET").decode(),
        f"unknown client {CLIENT_ID}",
    ],
)
def test_words_that_repeat_the_credentials_are_withheld(text: str, another_secret: None) -> None:
    message = str(fault(401, {"error": "invalid_client", "error_description": text}))
    assert "(invalid_client; [withheld: it repeats the credentials])" in message


def test_an_endpoint_that_repeats_the_credentials_is_withheld() -> None:
    assert SECRET not in str(refused(good(endpoint=f"https://{SECRET}.example")))


@given(secret=texts(min_size=1, max_size=40), before=texts(max_size=300), after=texts(max_size=300))
def test_no_secret_is_ever_quoted(secret: str, before: str, after: str) -> None:
    assert quotable(before + secret + after, (secret,)).startswith("[withheld") or len(before) > 900


@given(text=texts(max_size=2000))
def test_a_quote_is_one_printable_line(text: str) -> None:
    quoted = quotable(text, PRIVATE)
    assert len(quoted) <= 200
    assert quoted.isprintable()


# Times


def rfc_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("value", "retry_after_s"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("100000", 300.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        (rfc_date(WALL + 90), 90.0),
        (rfc_date(WALL - 90), 0.0),
        (rfc_date(WALL + 9000), 300.0),
    ],
)
def test_retry_after_is_read_in_both_forms_up_to_five_minutes(
    value: str, retry_after_s: float | None
) -> None:
    assert fault(429, retry_after=value).retry_after_s == retry_after_s


def test_a_retry_after_date_is_read_by_the_answers_own_clock() -> None:
    theirs = WALL + 86_400
    assert fault(503, retry_after=rfc_date(theirs + 60), date=rfc_date(theirs)).retry_after_s == 60.0


def test_a_refusal_that_lasts_has_no_retry_after() -> None:
    assert fault(401, retry_after="5").retry_after_s is None


@pytest.mark.parametrize("value", [None, "", "yesterday", "Tue, 99 Foo 2026 00:00:00 GMT", "0", "\x00"])
def test_what_isnt_a_date_is_none(value: str | None) -> None:
    assert http_date(value) is None


@given(value=texts())
def test_no_text_breaks_the_reading_of_a_date(value: str) -> None:
    assert http_date(value) is None or math.isfinite(http_date(value) or 0)


def test_a_date_without_a_zone_is_utc() -> None:
    assert http_date("Sun, 06 Nov 1994 08:49:37 -0000") == http_date("Sun, 06 Nov 1994 08:49:37 GMT")


# Which endpoint may have the token


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.contentsquare.com", ["*.contentsquare.com"]),
        ("https://a.b.c.contentsquare.com", ["*.contentsquare.com"]),
        ("https://api.contentsquare.com", ["*.CONTENTSQUARE.com"]),
        ("https://api.contentsquare.com", ["other.example", "api.contentsquare.com"]),
        ("https://api.contentsquare.com:8443", ["api.contentsquare.com:8443"]),
        ("https://api.contentsquare.com:8443", ["*.contentsquare.com:8443"]),
        ("https://127.0.0.1:9000", ["127.0.0.1:9000"]),
        ("https://[::1]:9000", ["[::1]:9000"]),
        ("https://[::1]", ["::1"]),
        ("http://127.0.0.1:9000", ["127.0.0.1:9000"]),
        ("http://localhost:9000", ["localhost:9000"]),
        ("http://localhost", ["localhost"]),
    ],
)
def test_these_endpoints_may_have_the_token(url: str, allowed: list[str]) -> None:
    assert endpoint_fault(Origin.parse(url), allowed) is None


@pytest.mark.parametrize(
    ("url", "allowed", "why"),
    [
        ("https://contentsquare.com", ["*.contentsquare.com"], "host"),
        ("https://api.contentsquare.com", [], "host"),
        ("https://api.contentsquare.com", ["*", "*.", "", "?", "[", "*.*"], "host"),
        ("https://sub.api.contentsquare.com", ["api.contentsquare.com"], "host"),
        ("https://api.contentsquare.com:444", ["*.contentsquare.com"], "port"),
        ("https://api.contentsquare.com", ["*.contentsquare.com:8443"], "port"),
        ("https://127.0.0.1", ["*.0.0.1"], "host"),
        ("https://10.0.0.1", ["10.0.0.2"], "host"),
        ("https://127.0.0.1:9000", ["127.0.0.1"], "port"),
        ("http://127.0.0.1:9000", ["127.0.0.1:9001"], "port"),
        ("http://127.0.0.1:9000", ["*.contentsquare.com"], "host"),
        ("http://api.contentsquare.com", ["api.contentsquare.com"], "plain http"),
        ("http://10.0.0.1:80", ["10.0.0.1:80"], "plain http"),
    ],
)
def test_these_endpoints_may_not_have_the_token(url: str, allowed: list[str], why: str) -> None:
    found = endpoint_fault(Origin.parse(url), allowed)
    assert found is not None
    assert why in found


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True, alphabet=CHARACTERS)


@given(parts=st.lists(labels, min_size=1, max_size=5))
def test_only_hosts_below_the_name_fit_a_wildcard(parts: list[str]) -> None:
    host = ".".join(parts)
    assert endpoint_fault(Origin("https", host, 443), ALLOWED) is not None or host.endswith(
        ".contentsquare.com"
    )
    assert endpoint_fault(Origin("https", f"{host}.contentsquare.com", 443), ALLOWED) is None
    assert endpoint_fault(Origin("https", f"contentsquare.com.{host}", 443), ALLOWED) is not None
