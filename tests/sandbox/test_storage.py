"""`sandbox.storage` and `sandbox.files`: export files behind presigned URLs, as S3 has them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit
from xml.etree import ElementTree as ET

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sandbox_caller import JOB, Caller, signed_in

from proxy.sandbox.fields import FIELDS
from proxy.sandbox.files import GROUPS, ROWS_PER_GROUP, Content, shares

WEEK_S = 7 * 24 * 3600
PLAIN = {"compression": "none", "files": 1}


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with signed_in() as one:
        yield one


async def fetch(
    caller: Caller, url: str, method: str = "GET", **fields: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, header fields (by names in lower case) and body; a field's name is written with underscores."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    async with caller.session.request(method, url, headers=headers) as answer:
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()


def error_of(body: bytes) -> dict[str, str | None]:
    """The elements of an error in XML."""
    root = ET.fromstring(body)
    assert root.tag == "Error"
    return {element.tag: element.text for element in root}


# Files of a run


async def test_files_are_several_small_gzipped_ones_with_the_documented_members(caller: Caller) -> None:
    files = await caller.finished_files(rows=10)

    assert [file["partId"] for file in files] == [1, 2, 3]
    lines = []
    for file in files:
        status, fields, body = await fetch(caller, file["url"])
        assert (status, fields["content-type"]) == (200, "application/gzip")
        assert "content-encoding" not in fields
        lines += gzip.decompress(body).splitlines()
    assert len(lines) == 10
    assert len({json.loads(line)["session_id"] for line in lines}) == 10


async def test_each_csv_file_has_a_header_and_lists_as_in_the_vendors_examples(caller: Caller) -> None:
    names = [
        "device_id",
        "session_transaction_items.sku",
        "session_transaction_items.revenue_cents",
        "errors.message",
    ]
    fields = [
        *({"fieldName": name} for name in names),
        {"fieldName": "custom_var", "customVarPosition": 2},
        {"fieldName": "custom_var", "customVarPosition": 3, "aliasName": "language"},
        {"fieldName": "dynamic_var", "dynamicVarKey": "ab_test"},
    ]
    job = {"format": "CSV", "scope": "views", "fields": fields, "rows": 300, "deviceLabel": "mobile"}
    files = await caller.finished_files(**job, compression="none", files=2)
    rows = []
    for file in files:
        _, answer, body = await fetch(caller, file["url"])
        assert answer["content-type"] == "text/csv"
        header, *some = csv.reader(body.decode().splitlines())
        assert header == [*names, "custom_var_2", "language", "dynamic_var_ab_test"]
        rows += some
    assert len(rows) == 300
    assert {row[0] for row in rows} == {"2"}
    bought = [row for row in rows if row[1] != "[]"]
    assert bought
    assert all(row[1].startswith("['SKU-") and row[1].count(",") == row[2].count(",") for row in bought)
    assert r"['Uncaught TypeError: it\'s undefined']" in {row[3] for row in rows}


@pytest.mark.parametrize("scope", list(FIELDS))
@pytest.mark.parametrize("format_", ["JSONL", "CSV"])
async def test_every_exportable_field_can_be_exported_and_has_its_type(
    caller: Caller, scope: str, format_: str
) -> None:
    known = {
        field["name"]: field["type"] for field in await caller.get(f"/v1/exportable-fields?scope={scope}")
    }
    assert known == FIELDS[scope]
    names = [name for name in known if name not in ("custom_var", "dynamic_var")]
    job = {"scope": scope, "format": format_, "rows": 700, "fields": [{"fieldName": name} for name in names]}
    (file,) = await caller.finished_files(**job, **PLAIN)
    _, _, body = await fetch(caller, file["url"])
    if format_ == "CSV":
        assert next(csv.reader(body.decode().splitlines())) == names
        return
    types = {"integer": int, "number": float, "string": str, "boolean": bool, "array": list}
    for line in body.splitlines():
        row = json.loads(line)
        for name in names:
            assert type(row[name]) is types.get(known[name], str), name
        for group in {name.partition(".")[0] for name in names if "." in name}:
            assert len({len(row[name]) for name in names if name.startswith(f"{group}.")}) == 1
        if scope == "views":
            assert row["any_js_error_ind"] == len(row["errors.message"])
            assert row["any_api_error_ind"] >= row["api_error_after_click_ind"]
        revenue = sum(row["session_transaction_items.revenue_cents"])
        assert revenue == row["session_transactions_revenue_cents"]


@pytest.mark.parametrize(
    "name",
    [
        "url_no_query_param",
        "scroll_rate",
        "frustration_score",
        "is_first",
        "is_last",
        "session_date",
        "app_events.event_name",
        "session_transaction_items.sku",
        "device_id",
        "view_duration_msec",
        "page_interaction_time_msec",
        "rage_click_all_targets_ind",
        "multiple_button_interaction_ind",
        "any_js_error_ind",
        "any_api_error_ind",
        "api_error_after_click_ind",
    ],
)
def test_views_have_the_fields_that_public_scripts_ask_for(name: str) -> None:
    assert name in FIELDS["views"]


async def test_the_same_job_has_the_same_bytes_and_tag_in_any_sandbox(caller: Caller) -> None:
    async with signed_in(seed=7) as other:
        answers = [
            await fetch(one, (await one.finished_files(rows=2100))[1]["url"]) for one in (caller, other)
        ]
    assert answers[0][2] == answers[1][2]
    assert answers[0][1]["etag"] == answers[1][1]["etag"]


async def test_a_long_file_is_one_gzip_member_with_its_length_told_before(caller: Caller) -> None:
    rows = ROWS_PER_GROUP * (2 * GROUPS + 1) + 3
    (file,) = await caller.finished_files(rows=rows, files=1, format="CSV")
    _, fields, body = await fetch(caller, file["url"])
    assert int(fields["content-length"]) == len(body)
    reader = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    text = reader.decompress(body)
    assert (reader.eof, reader.unused_data) == (True, b"")
    assert len(text.splitlines()) == rows + 1


async def test_a_gigabyte_has_a_length_and_a_last_line_at_once(caller: Caller) -> None:
    (file,) = await caller.finished_files(rows=20_000_000, **PLAIN)
    status, fields, body = await fetch(caller, file["url"], Range="bytes=-60")
    assert status == 206
    assert int(fields["content-range"].rpartition("/")[2]) > 2**30
    assert body.endswith(b'"}\n')


async def test_an_empty_export_has_one_empty_file(caller: Caller) -> None:
    (file,) = await caller.finished_files(rows=0, compression="none")
    assert (await fetch(caller, file["url"]))[2] == b""
    (file,) = await caller.finished_files(rows=0)
    assert gzip.decompress((await fetch(caller, file["url"]))[2]) == b""


@given(st.integers(0, 10**8), st.integers(1, 1000))
def test_rows_are_divided_evenly(total: int, files: int) -> None:
    divided = shares(total, files)
    assert (sum(divided), len(divided)) == (total, files)
    assert max(divided) - min(divided) <= 1


@given(
    st.binary(max_size=5),
    st.lists(st.binary(max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), max_size=8),
    st.binary(max_size=5),
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_any_part_is_the_same_as_of_the_whole(
    head: bytes, parts: list[bytes], order: list[int], end: bytes, part: tuple[int, int]
) -> None:
    order = [number % len(parts) for number in order]
    content = Content(head, parts, order, end)
    whole = head + b"".join(parts[number] for number in order) + end
    assert content.size == len(whole)
    assert b"".join(content.pieces(*part)) == whole[slice(*part)]


# As S3


async def test_an_answer_has_the_fields_of_s3(caller: Caller) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    status, fields, body = await fetch(caller, file["url"])
    assert status == 200
    assert int(fields["content-length"]) == len(body)
    assert fields["accept-ranges"] == "bytes"
    assert fields["last-modified"] == "Fri, 15 Jan 2027 08:00:01 GMT"
    assert fields["etag"].startswith('"')


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-99", slice(5, 100)),
        ("bytes=500-", slice(500, None)),
        ("bytes=0-", slice(0, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=10-99999999", slice(10, None)),
        ("bytes=-99999999", slice(0, None)),
    ],
)
async def test_a_range_gets_its_part(caller: Caller, asked: str, part: slice) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    _, _, whole = await fetch(caller, file["url"])
    status, fields, body = await fetch(caller, file["url"], Range=asked)
    assert body == whole[part]
    start, stop, _ = part.indices(len(whole))
    assert (status, fields["content-range"]) == (206, f"bytes {start}-{stop - 1}/{len(whole)}")
    assert int(fields["content-length"]) == len(body)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-5", "bytes=-", "bytes=a-b", "lines=0-1"])
async def test_a_range_that_s3_does_not_understand_gets_the_whole(caller: Caller, asked: str) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    status, fields, body = await fetch(caller, file["url"], Range=asked)
    assert (status, len(body)) == (200, int(fields["content-length"]))
    assert "content-range" not in fields


async def test_a_range_behind_the_end_is_416_with_the_size(caller: Caller) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    size = len((await fetch(caller, file["url"]))[2])
    for asked in (f"bytes={size}-", "bytes=-0"):
        status, fields, body = await fetch(caller, file["url"], Range=asked)
        assert (status, fields["content-range"]) == (416, f"bytes */{size}")
        error = error_of(body)
        assert (error["Code"], error["ActualObjectSize"]) == ("InvalidRange", str(size))


async def test_conditions_are_those_of_rfc_9110(caller: Caller) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    url = file["url"]
    _, fields, whole = await fetch(caller, url)
    tag, made = fields["etag"], fields["last-modified"]
    earlier = "Fri, 15 Jan 2027 08:00:00 GMT"
    for conditions, status in (
        ({"If_None_Match": tag}, 304),
        ({"If_None_Match": f'"x", W/{tag}'}, 304),
        ({"If_None_Match": '"x"', "If_Modified_Since": made}, 200),
        ({"If_Modified_Since": made}, 304),
        ({"If_Modified_Since": earlier}, 200),
        ({"If_Modified_Since": "yesterday"}, 200),
        ({"If_Match": tag}, 200),
        ({"If_Match": '"x"'}, 412),
        ({"If_Match": tag, "If_Unmodified_Since": earlier}, 200),
        ({"If_Unmodified_Since": earlier}, 412),
        ({"Range": "bytes=0-3", "If_Range": tag}, 206),
        ({"Range": "bytes=0-3", "If_Range": made}, 206),
        ({"Range": "bytes=0-3", "If_Range": '"x"'}, 200),
    ):
        got, answer, body = await fetch(caller, url, **conditions)
        assert got == status, conditions
        assert body == {200: whole, 206: whole[:4], 304: b""}.get(status, body)
        assert status == 412 or answer["etag"] == tag


async def test_a_presigned_get_refuses_head_and_every_other_method(caller: Caller) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    assert (await fetch(caller, file["url"], "HEAD"))[0] == 403
    for method in ("PUT", "DELETE", "POST", "OPTIONS"):
        status, _, body = await fetch(caller, file["url"], method)
        assert (status, error_of(body)["Code"]) == (403, "SignatureDoesNotMatch")


async def test_storage_is_another_origin_and_refuses_an_authorization_field(caller: Caller) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    assert file["url"].startswith(caller.sandbox.storage_url)
    assert not file["url"].startswith(caller.endpoint)
    status, fields, body = await fetch(caller, file["url"], **caller.fields)
    assert (status, fields["content-type"]) == (400, "application/xml; charset=utf-8")
    assert error_of(body)["Code"] == "InvalidArgument"


async def test_a_signature_is_for_one_url(caller: Caller) -> None:
    (file,) = await caller.finished_files(**PLAIN)
    parts = urlsplit(file["url"])
    assert {"X-Amz-Algorithm", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature"} <= set(parse_qs(parts.query))
    for changes, code in (
        ({"query": ""}, "AccessDenied"),
        ({"path": parts.path + "x"}, "SignatureDoesNotMatch"),
        ({"query": parts.query.replace("Expires=6", "Expires=9")}, "SignatureDoesNotMatch"),
        ({"query": parts.query + "&more=1"}, "SignatureDoesNotMatch"),
    ):
        status, _, body = await fetch(caller, urlunsplit(parts._replace(**changes)))
        assert (status, error_of(body)["Code"]) == (403, code)


async def test_a_file_expires_after_seven_days_and_says_so_as_s3_does(caller: Caller) -> None:
    job = await caller.post("/v1/exports", JOB)
    caller.clock.now += 1
    path = (
        f"/v1/exports/{job['jobId']}/runs/{(await caller.get('/v1/exports/successful-runs'))[0]['jobRunId']}"
    )
    first = (await caller.get(path))["files"][0]
    assert first["expirationDate"] == "2027-01-22T08:00:01.000Z"
    caller.clock.now += WEEK_S - 10
    await caller.sign_in(caller.project)
    later = (await caller.get(path))["files"][0]
    assert later["expirationDate"] == first["expirationDate"]
    assert later["url"] != first["url"]
    for url in (first["url"], later["url"]):
        assert (await fetch(caller, url))[0] == 200
    caller.clock.now += 10
    last = (await caller.get(path))["files"][0]
    for url in (first["url"], later["url"], last["url"]):
        status, _, body = await fetch(caller, url)
        error = error_of(body)
        assert (status, error["Code"], error["Message"]) == (403, "AccessDenied", "Request has expired")
        assert (error["Expires"], error["ServerTime"]) == ("2027-01-22T08:00:01Z",) * 2


async def test_a_cut_file_ends_each_answer_after_some_bytes_and_can_be_resumed(caller: Caller) -> None:
    (cut,) = await caller.finished_files(rows=900, cutAfter=30_000, **PLAIN)
    assert urlsplit(cut["url"]).path.startswith("/cut/30000/exports/")
    got, size = b"", 1
    while len(got) < size:
        async with caller.session.get(cut["url"], headers={"Range": f"bytes={len(got)}-"}) as answer:
            size = len(got) + (answer.content_length or 0)
            part = await until_end(answer)
        assert len(part) == min(30_000, size - len(got))
        got += part
    assert size > 60_000
    assert got.count(b"\n") == 900


async def until_end(answer: aiohttp.ClientResponse) -> bytes:
    """What comes of a body before it ends or is cut."""
    got: list[bytes] = []
    with contextlib.suppress(aiohttp.ClientPayloadError):
        while piece := await answer.content.readany():
            got.append(piece)
    return b"".join(got)


@pytest.mark.parametrize("changes", [{"files": 0}, {"files": 1001}, {"cutAfter": 0}, {"cutAfter": "1"}])
async def test_wrong_parameters_of_the_sandbox_are_400(caller: Caller, changes: dict[str, Any]) -> None:
    assert await caller.refused("POST", "/v1/exports", json=JOB | changes) == 400
