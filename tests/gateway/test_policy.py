"""`gateway.policy`: what may be sent, by the very bytes, as the most lenient server would read them."""

from __future__ import annotations

import asyncio
import base64
import functools
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import WAIT_S, Upstream, gateway

from proxy.contentsquare import changes_data, oauth_path
from proxy.errors import BadTarget, Forbidden
from proxy.gateway import policy
from proxy.gateway.callers import Caller
from proxy.http1 import parse_request_head

READS = frozenset(
    b"/v1/speed-analysis/" + path
    for path in (
        b"analysis/report",
        b"analysis/har",
        b"monitoring/list",
        b"monitoring/last-report",
        b"monitoring/reports",
        b"scenario/list",
        b"scenario/report",
        b"scenario/reports",
        b"scenario/step/report",
        b"scenario/report/har",
        b"event/list",
    )
)
"""All that the vendor's table knows to be a read by POST."""
CHANGES = (
    b"/v1/exports",
    b"/v1/enrichments",
    b"/v1/speed-analysis/event/create",
    b"/v1/speed-analysis/event/delete",
)


@dataclass
class Shop:
    name: str = "shop"
    read_only: bool = False
    project_id: int | None = None


READER = Caller("powerbi", None, read_only=True)


def is_refused(
    start: bytes, *lines: bytes, project: policy.ProjectLimits | None = None, caller: Caller | None = None
) -> bool:
    head = parse_request_head(b"\r\n".join((start + b" HTTP/1.1", b"Host: h", *lines)))
    changes = policy.may_change_data(head, head.target)
    try:
        policy.check(head, head.target, project or Shop(), caller, changes=changes)
    except Forbidden:
        return True
    return False


# Read-only

spellings = st.sampled_from(
    [
        lambda path: path.replace(b"e", b"%65"),
        lambda path: path.replace(b"/", b"//"),
        lambda path: path.replace(b"/v1/", b"/v1/./"),
        lambda path: path.replace(b"/v1/", b"/v1/speed-analysis/../"),
        lambda path: path.replace(b"/v1/", b"/v1/speed-analysis/event/list/../../../"),
        lambda path: path.replace(b"/", b"\\"),
        lambda path: path.replace(b"/", b"%2f"),
        lambda path: path.replace(b"/", b"%2F"),
        lambda path: path.replace(b"/", b"%252f"),
        lambda path: path + b";x",
        lambda path: path + b";/v1/speed-analysis/event/list",
        lambda path: path + b"/",
        lambda path: path + b"#",
        lambda path: path + b"%00",
        lambda path: path + b"%20",
        lambda path: path + b"?",
        lambda path: path + b"?/v1/speed-analysis/event/list",
        lambda path: path + b"%3f",
        lambda path: path.upper(),
        lambda path: path.title(),
        lambda path: b"/v1/speed-analysis/event/list#/../.." + path,
        lambda path: b"/v1/speed-analysis/event/list;/../.." + path,
        lambda path: b"/v1/speed-analysis/event/list%23/../.." + path,
    ]
)


@given(st.sampled_from(CHANGES), st.lists(spellings, max_size=3), st.sampled_from([b"POST", b"PUT", b"post"]))
def test_no_spelling_hides_a_changing_path_from_read_only(path: bytes, how: list, method: bytes) -> None:  # type: ignore[type-arg]
    for spell in how:
        path = spell(path)
    assert is_refused(method + b" " + path, caller=READER)
    assert is_refused(method + b" " + path, project=Shop(read_only=True))


@given(
    st.sampled_from([path for path in CHANGES if b"/event/" in path]),
    st.lists(spellings, max_size=3),
    st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"DELETE"]),
)
def test_no_spelling_hides_a_change_of_events_from_read_only_by_whatever_method(
    path: bytes,
    how: list,  # type: ignore[type-arg]
    method: bytes,
) -> None:
    for spell in how:
        path = spell(path)
    assert is_refused(method + b" " + path, caller=READER)
    assert is_refused(method + b" " + path, project=Shop(read_only=True))
    assert not is_refused(method + b" " + path)


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/speed-analysis/event/list",
        b"/v1/speed-analysis/event/list?then=/event/create",
        b"/v1/speed-analysis/event/created",
        b"/v1/exports?event=create",
    ],
)
def test_read_only_may_read_what_only_resembles_a_change_of_events(target: bytes) -> None:
    assert not is_refused(b"GET " + target, caller=READER)


@given(
    st.sampled_from([b"POST", b"PUT", b"PATCH", b"DELETE", b"get", b"Post", b"QUERY", b"MERGE", b"COPY"]),
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.sampled_from(sorted(READS)), st.binary(max_size=8)).map(b"".join),
    ),
)
def test_read_only_lets_through_safe_methods_and_the_listed_reads_to_the_byte(
    method: bytes, target: bytes
) -> None:
    listed = method == b"POST" and target.partition(b"?")[0] in READS
    assert changes_data(method, target) is not listed


@pytest.mark.parametrize(
    "field",
    [
        b"X-HTTP-Method-Override: DELETE",
        b"X-Method-Override: POST",
        b"X-HTTP-Method: PUT",
        b"x-http-method-override: GET",
        b"X_HTTP_Method_Override: DELETE",
        b"X-HTTP-METHOD-OVERRIDE:",
        b"X-HTTPMethodOverride: DELETE",
        b"Content-Type: application/x-www-form-urlencoded",
        b"Content-Type: multipart/form-data; boundary=x",
        b"Content_Type: application/x-www-form-urlencoded",
    ],
)
def test_read_only_refuses_fields_that_override_the_method(field: bytes) -> None:
    for start in (b"GET /v1/exports", b"POST /v1/speed-analysis/event/list"):
        assert is_refused(start, field, caller=READER)
        assert is_refused(start, field, project=Shop(read_only=True))
        assert not is_refused(start, field)
        assert not is_refused(start, b"X-Method: 1", caller=READER)


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (b"Content-Type: \t",),
        (b"Content-Type: application/json", b"Connection: Content-Type"),
        (b"Content-Type: application/json", b"Connection: close, content-type"),
        (b"Content-Type: application/json", b"Content-Type:"),
    ],
)
def test_read_only_takes_content_of_no_certain_type_for_a_form(lines: tuple[bytes, ...]) -> None:
    start, length = b"POST /v1/speed-analysis/event/list", b"Content-Length: 14"
    assert is_refused(start, length, *lines, caller=READER)
    assert not is_refused(start, length, b"Content-Type: application/json", caller=READER)
    assert not is_refused(start, length, *lines)


@pytest.mark.parametrize("read_only", ["caller", "project"])
async def test_a_hidden_changing_call_of_a_read_only_one_never_reaches_the_cloud(read_only: str) -> None:
    upstream = Upstream()
    project = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}
    sections: dict[str, Any] = {
        "projects": {"shop": {**project, "read_only": read_only == "project"}},
        "callers": {"bi": {"key": "key-of-bi", "read_only": read_only == "caller"}},
    }
    async with gateway(upstream, **sections) as proxy:
        for target in (
            b"/v1/%65xports",
            b"/v1//exports",
            b"/v1/./exports",
            b"/v1/exports;x",
            b"/v1/exports/",
            b"/V1/EXPORTS",
            b"/v1\\exports",
            b"/v1%2fexports",
            b"/v1/speed-analysis/event/list/../create",
            b"/v1/speed-analysis/event/list/%2e%2e/create",
            b"GET /v1/speed-analysis/event/create",
            b"GET /v1/speed-analysis/event/%64elete",
        ):
            method, _, path = target.rpartition(b" ")
            for prefix in (b"/shop", b""):
                key = b"X-API-Key: key-of-bi"
                start = (method or b"POST") + b" " + prefix + path
                answer = await proxy.call(start, key, b"Content-Length: 0")
                assert (answer.status, answer.error_code) in (
                    (403, "PROXY_FORBIDDEN"),
                    (404, "PROXY_UNKNOWN_PROJECT"),
                )
        assert not upstream.requests


async def test_a_refused_request_is_judged_once_and_its_connection_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream = Upstream()
    compared: list[bool] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(True)
        return compare(one, other)

    async with gateway(upstream, callers={"bi": {"key": "key-of-bi-1", "read_only": True}}) as proxy:
        monkeypatch.setattr(hmac, "compare_digest", counted)
        for start, key, status in (
            (b"DELETE /v1/exports", b"key-of-bi-1", 403),
            (b"GET /v1/exports?_method=PUT", b"key-of-bi-1", 403),
            (b"GET /elsewhere/v1/exports", b"key-of-bi-1", 404),
            (b"GET /v1/exports", b"wrong-key-1", 401),
        ):
            compared.clear()
            answer = await proxy.call(start, b"X-API-Key: " + key)
            assert (answer.status, len(compared)) == (status, 1)
            assert not answer.values(b"connection")
    assert not upstream.requests


# One project

NUMBERS = st.integers(1, 10**9).filter(lambda number: number != 42)


def escaped(text: str) -> st.SearchStrategy[str]:
    """Each character as it is, percent-encoded, or so twice."""
    one = [
        st.sampled_from([char, f"%{ord(char):02x}", f"%{ord(char):02X}", f"%25{ord(char):02x}"])
        for char in text
    ]
    return st.tuples(*one).map("".join)


NAMES = st.sampled_from(
    ["projectId", "projectid", "PROJECTID", "project_id", "projectId[]", "filter[projectId]"]
)


@given(NAMES.flatmap(escaped), NUMBERS.flatmap(lambda number: escaped(str(number))), st.sampled_from("&;"))
def test_no_spelling_of_projectid_in_the_query_crosses_to_another_project(
    name: str, number: str, mark: str
) -> None:
    pinned = Shop(project_id=42)
    for query in (
        f"{name}={number}",
        f"projectId=42&{name}={number}",
        f"a=1{mark}{name}={number}{mark}projectId=42",
        f"a?{name}={number}",
    ):
        start = f"GET /v1/segments?{query}".encode()
        assert is_refused(start, project=pinned)
        assert not is_refused(start, project=Shop())


@given(
    escaped("projects"),
    NUMBERS.flatmap(lambda number: escaped(str(number))),
    st.sampled_from(["/", "//", "%2f", "\\", "/./", ";x/", "/42/../"]),
)
def test_no_spelling_of_a_projects_number_in_the_path_crosses_to_another_project(
    word: str, number: str, mark: str
) -> None:
    start = f"GET /v1/public/{word}{mark}{number}/surveys".encode()
    assert is_refused(start, project=Shop(project_id=42))


@pytest.mark.parametrize(
    "target",
    [
        "/v1/segments",
        "/v1/segments?projectId=42",
        "/v1/segments?projectId=42&projectId=42",
        "/v1/segments?project%49d=4%32",
        "/v1/public/projects/42/surveys",
        "/v1/public/projects/42/surveys/7/responses?cursor=a%2Fb%3Dc&with=projectId",
        "/v1/metrics/site?startDate=2026-01-01T00%3A00%3A00Z&name=my+project%20no.+43",
        f"/v1/x?q={quote('a project of 43 & more')}",
    ],
)
def test_a_projects_own_number_passes_and_so_does_what_names_none(target: str) -> None:
    assert not is_refused(f"GET {target}".encode(), project=Shop(project_id=42))


@given(st.binary(max_size=80), st.one_of(st.none(), st.integers(1, 99)))
def test_any_target_is_judged_without_an_error(target: bytes, number: int | None) -> None:
    head = parse_request_head(b"GET / HTTP/1.1\r\nHost: h")
    changes = policy.may_change_data(head, target)
    try:
        policy.check(head, target, Shop(project_id=number), READER, changes=changes)
    except Forbidden:
        assert number is not None or b"%" in target or not target.isascii()


async def test_a_pinned_project_cannot_be_left_by_prefix_escape_field_or_projectid() -> None:
    upstream = Upstream()
    pair = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}
    sections: dict[str, Any] = {
        "projects": {"shop": {**pair, "project_id": 42}, "other": {**pair, "project_id": 43}},
        "accounts": {"acme": pair},
        "callers": {"bi": {"key": "key-of-bi", "projects": ["shop"]}},
    }
    async with gateway(upstream, **sections) as proxy:
        for target in (
            b"/shop/v1/segments?projectId=43",
            b"/shop/v1/segments?project%49d=43",
            b"/shop/v1/segments?projectId=42&projectId=43",
            b"/shop/v1/public/projects/43/surveys",
            b"/other/v1/segments",
            b"/acme/43/v1/segments",
            b"/shop/../other/v1/segments",
            b"/shop/%2e%2e/other/v1/segments",
            b"/shop/..%2fother/v1/segments",
            b"/shop\\..\\other/v1/segments",
            b"/%6fther/v1/segments",
            b"//other/v1/segments",
            b"/OTHER/v1/segments",
        ):
            for field in (b"A: 1", b"X-CSQ-Project: other", b"X-CSQ-Project: acme/43"):
                answer = await proxy.call(b"GET " + target, field, b"X-API-Key: key-of-bi")
                assert answer.status in (400, 403, 404), target
        assert not upstream.requests
        mine = await proxy.call(b"GET /shop/v1/segments?projectId=42", b"X-API-Key: key-of-bi")
        assert mine.status == 200


# Keys and secrets

KEY = "Key/of+BI=1234567890"
LEAKS = [
    (b"/v1/x?a=1", b"X_API_KEY: " + KEY.encode()),
    (b"/v1/x?a=1", b"Authorisation: Basic " + base64.b64encode(b"bi:" + KEY.encode())),
    (b"/v1/x?a=1", b"secret-of-the-shop-1: 1"),
    (b"/v1/x?csq%5Fkey=" + KEY.encode(), b"A: 1"),
    (b"/v1/x?CSQ_KEY=" + quote(KEY).encode(), b"A: 1"),
    (b"/v1/x?a=1;csq_key=" + quote(quote(KEY)).encode(), b"A: 1"),
    (b"/v1/" + quote(KEY, safe="").encode() + b"/x", b"A: 1"),
    (b"/v1/x?secret=secret-of-the-shop-1", b"A: 1"),
    (b"/v1/x", b"A: secret%2dof%2Dthe-shop-1"),
]


@pytest.mark.parametrize(("target", "line"), LEAKS)
async def test_a_key_or_secret_in_the_head_is_refused_and_not_repeated(target: bytes, line: bytes) -> None:
    upstream = Upstream()
    sections: dict[str, Any] = {
        "projects": {"shop": {"client_id": "id-1", "client_secret": "secret-of-the-shop-1"}},
        "callers": {"bi": {"key": KEY}},
    }
    async with gateway(upstream, **sections) as proxy:
        key = b"X-API-Key: " + KEY.encode()
        answer = await proxy.call(b"GET /shop" + target, line, key)
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
        assert b"-1" not in answer.body
        assert b"1234567890" not in answer.body
        assert not upstream.requests
        for lines in (
            (key, b"Cookie: a=" + KEY.encode()),
            (key, b"Referer: http://%b/?" % proxy.host + KEY.encode()),
        ):
            assert (await proxy.call(b"GET /shop/v1/x?csq_key=" + KEY.encode(), *lines)).status == 200
        assert not any(KEY.encode() in one.head for one in upstream.requests)


@pytest.mark.parametrize("method", [b"key-of-a-program-1", b"KEY-OF-A-PROGRAM-1"])
async def test_a_key_in_the_place_of_the_method_is_refused_and_not_repeated(method: bytes) -> None:
    upstream = Upstream()
    async with gateway(upstream, callers={"bi": {"key": "key-of-a-program-1"}}) as proxy:
        answer = await proxy.call(method + b" /v1/x", b"X-API-Key: key-of-a-program-1")
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
        assert b"program-1" not in answer.body.lower()
        assert not upstream.requests


async def test_a_key_or_secret_in_a_trailer_is_refused_and_not_repeated() -> None:
    upstream = Upstream()
    secret = b"secret-of-the-shop-1"
    sections: dict[str, Any] = {
        "projects": {"shop": {"client_id": "id-1", "client_secret": secret.decode()}},
        "callers": {"bi": {"key": KEY}},
    }
    key = b"X-API-Key: " + KEY.encode()
    chunked = b"Transfer-Encoding: chunked"
    async with gateway(upstream, **sections) as proxy:
        for content in (
            b"2\r\nok\r\n0\r\nA: %b\r\n\r\n" % secret,
            b"0\r\nA-%b: 1\r\n\r\n" % secret,
            b"0\r\nA: 1\r\nX-API-Key: %b\r\n\r\n" % KEY.encode(),
        ):
            answer = await proxy.call(b"POST /shop/v1/x", key, chunked, body=content)
            assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
            assert secret not in answer.body.lower()
        assert not upstream.requests
        body = b"2\r\nok\r\n0\r\nA: 1\r\n\r\n"
        assert (await proxy.call(b"POST /shop/v1/x", key, chunked, body=body)).status == 200


async def test_a_secret_in_a_trailer_ends_a_request_that_is_on_its_way() -> None:
    secret = b"secret-of-the-shop-1"
    started, taken = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"ok\r\n")
        started.set()
        taken.set_result(await reader.read())

    projects = {"shop": {"client_id": "id-1", "client_secret": secret.decode()}}
    async with gateway(script, projects=projects) as proxy, asyncio.timeout(WAIT_S):
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /shop/v1/x", b"Transfer-Encoding: chunked") + b"2\r\nok\r\n")
        await started.wait()
        writer.write(b"0\r\nA: %b\r\n\r\n" % secret)
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        assert await taken == b""  # without the last chunk, the request isn't whole
        writer.close()


async def test_a_secret_that_a_source_gave_later_is_refused_too(tmp_path: Path) -> None:
    upstream = Upstream()
    file = tmp_path / "secret"
    file.write_text("secret-of-the-shop-1")
    file.chmod(0o600)
    projects = {"shop": {"client_id": "id-1", "client_secret_file": str(file)}}
    async with gateway(upstream, projects=projects) as proxy:
        later = "secret-of-the-shop-2"
        assert (await proxy.call(b"GET /shop/v1/x?a=" + later.encode())).status == 200
        file.write_text(later)
        next(iter(proxy.app.projects())).refresh_now()
        async with asyncio.timeout(WAIT_S):
            while (await proxy.call(b"GET /shop/v1/x?a=" + later.encode())).status != 400:
                await asyncio.sleep(0.1)


OAUTH_PATHS = st.sampled_from(["/v1/oauth/token", "/v1/oauth/me"]).flatmap(
    lambda path: st.lists(
        st.sampled_from(
            [
                lambda text: text + "/",
                lambda text: text + ";x=1",
                lambda text: text + "%00",
                lambda text: text + ".json",
                lambda text: text.replace("/", "//", 2),
                lambda text: text.replace("/oauth", "/./oauth"),
                lambda text: text.replace("/oauth", "/x/../oauth"),
                lambda text: text.replace("/oauth", "/x/%2e%2e/oauth"),
                lambda text: text.replace("oauth/", "oauth;a/"),
                lambda text: text.replace("/", "\\"),
                lambda text: text.replace("t", "%74").replace("m", "%6d"),
                lambda text: text.replace("o", "%256f"),
                lambda text: text.replace("/", "%2f"),
                str.upper,
            ]
        ),
        min_size=1,
        max_size=3,
    ).map(lambda spells: functools.reduce(lambda text, spell: spell(text), spells, path))
)


@given(OAUTH_PATHS, st.sampled_from(["", "/shop", "/a/b"]), st.sampled_from(["", "?a=1", "?"]))
def test_no_spelling_of_oauths_paths_is_forwarded(path: str, prefix: str, query: str) -> None:
    target = (prefix + path + query).encode()
    for head in (
        parse_request_head(method + b" / HTTP/1.1\r\nHost: h\r\nContent-Type: application/json")
        for method in (b"GET", b"POST")
    ):
        if oauth_path(target) is None:  # else it is answered here
            with pytest.raises(BadTarget):
                policy.check(head, target, Shop(), None, changes=policy.may_change_data(head, target))


@pytest.mark.parametrize(
    "target",
    [
        "/v1/oauth",
        "/v1/oauth/tokens",
        "/v1/oauth/token-info",
        "/v1/metrics?a=/v1/oauth/token",
        "/v1/x%20y/token",
    ],
)
def test_other_paths_are_forwarded(target: str) -> None:
    head, raw = parse_request_head(b"GET / HTTP/1.1\r\nHost: h"), target.encode()
    policy.check_secrets(head, raw)
    policy.check(head, raw, Shop(), None, changes=policy.may_change_data(head, raw))
