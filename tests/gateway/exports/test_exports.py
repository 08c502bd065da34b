"""An export's files by one URL: the paths, the rights, the pinned run, and the answer's fields."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import itertools
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator

import pytest
from support.harness import WAIT_S, Gateway, Message, free_port, gateway, read_message, until
from support.storage import LAST_MODIFIED, Exporting, Stored, error, exporting

from proxy.contentsquare import Api
from proxy.gateway import entrance
from proxy.gateway.exports import exports, pins
from proxy.gateway.exports.content import Spool
from proxy.logs.setup import configure
from proxy.sandbox import Sandbox, SandboxOptions

CSV = b"session_id,country\n1,FR\n2,DE\n"
MORE = b"session_id,country\n3,IT\n"
BOTH = CSV + b"3,IT\n"
JSONL = b'{"session_id": "1"}\n{"session_id": "2"}\n'
KEY = "the-key-of-the-analyst"
CALLERS = {"analyst": {"key": KEY}, "other": {"key": "the-key-of-the-other"}}
NOTHING = {"export_spool": 0}
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def etag(answer: Message) -> bytes:
    return answer.values(b"etag")[0]


# What comes


async def test_one_plain_file_is_answered_with_all_fields() -> None:
    async with exporting(CSV) as run:
        answer = await run.get()
        assert (answer.status, answer.body) == (200, CSV)
        assert answer.values(b"content-type") == [b"text/csv; charset=utf-8"]
        assert answer.values(b"content-length") == [b"%d" % len(CSV)]
        assert answer.values(b"content-disposition") == [b'attachment; filename="shop-1001-100001.csv"']
        assert answer.values(b"accept-ranges") == [b"bytes"]
        assert answer.values(b"last-modified") == [LAST_MODIFIED.encode()]
        assert etag(answer).startswith(b'"')
        assert not answer.values(b"content-encoding")
        assert not answer.values(b"location")


@pytest.mark.parametrize("spool", [{}, NOTHING])
@pytest.mark.parametrize("packed", [True, False])
async def test_csv_files_are_joined_with_one_header(packed: bool, spool: dict[str, int]) -> None:
    async with exporting(CSV, MORE, packed=packed, contentsquare=spool) as run:
        answer = await run.get("latest.csv", b"Accept-Encoding: gzip")
        assert (answer.status, answer.content) == (200, BOTH)
        assert not answer.values(b"content-encoding")
        made = await run.get("latest.csv.gz")
        assert gzip.decompress(made.content) == BOTH
        assert made.values(b"content-type") == [b"application/gzip"]
        assert made.values(b"content-disposition")[0].endswith(b'100001.csv.gz"')


@pytest.mark.parametrize("packed", [True, False])
async def test_jsonl_files_are_joined(packed: bool) -> None:
    async with exporting(JSONL.rstrip(b"\n"), JSONL, format="JSONL", packed=packed) as run:
        answer = await run.get("latest.jsonl")
        assert (answer.status, answer.content) == (200, 2 * JSONL)
        assert gzip.decompress((await run.get("latest.jsonl.gz")).content) == 2 * JSONL


async def test_a_gzip_file_is_passed_on_as_the_storage_has_it() -> None:
    async with exporting(CSV, packed=True) as run:
        [stored] = run.storage.objects.values()
        answer = await run.get("latest.csv.gz")
        assert answer.body == stored.content
        assert (await run.get()).content == CSV


async def test_the_parts_stand_in_the_order_of_their_numbers() -> None:
    async with exporting(CSV, MORE) as run:
        run.cloud.runs[0]["files"].reverse()
        assert (await run.get()).content == BOTH


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("latest.jsonl", "/-/exports/shop/1001/latest.csv"),
        ("latest.jsonl.gz", "/-/exports/shop/1001/latest.csv.gz"),
        ("latest.jsonl?run=100001", "/-/exports/shop/1001/latest.csv?run=100001"),
    ],
)
async def test_another_format_is_refused_with_the_right_url(name: str, right: str) -> None:
    async with exporting(CSV) as run:
        answer = await run.get(name)
        assert (answer.status, answer.error_code) == (404, "PROXY_NOT_FOUND")
        assert right in answer.content.decode()
        assert not run.storage.requests


# Length, ranges and methods


FORMS = [("latest.csv", (CSV,), False), ("latest.csv", (CSV, MORE), True), ("latest.csv.gz", (CSV,), False)]


@pytest.mark.parametrize(("name", "parts", "packed"), FORMS)
async def test_head_has_the_fields_of_get(name: str, parts: tuple[bytes, ...], packed: bool) -> None:
    async with exporting(*parts, packed=packed) as run:
        head = await run.get(name, method="HEAD")
        answer = await run.get(name)
        assert {line for line in head.lines if not line.startswith(b"Date")} == {
            line for line in answer.lines if not line.startswith(b"Date")
        }
        assert head.values(b"content-length") == [b"%d" % len(answer.body)]
        assert not any(request.start_line.startswith(b"HEAD") for request in run.storage.requests)


@pytest.mark.parametrize(("name", "parts", "packed"), FORMS)
async def test_a_range_is_a_part_of_the_content(name: str, parts: tuple[bytes, ...], packed: bool) -> None:
    async with exporting(*parts, packed=packed) as run:
        first = await run.get(name)
        whole = first.body
        size = len(whole)
        for value, part in (
            (b"bytes=0-0", whole[:1]),
            (b"bytes=3-", whole[3:]),
            (b"bytes=5-9", whole[5:10]),
            (b"bytes=-4", whole[-4:]),
            (b"bytes=2-999999", whole[2:]),
            (b"bytes=-999999", whole),
        ):
            answer = await run.get(name, b"Range: " + value)
            assert (answer.status, answer.body) == (206, part), value
            start = whole.find(part)
            span = b"bytes %d-%d/%d" % (start, start + len(part) - 1, size)
            assert answer.values(b"content-range") == [span]
        beyond = await run.get(name, b"Range: bytes=%d-" % size)
        assert beyond.status == 416
        assert beyond.values(b"content-range") == [b"bytes */%d" % size]
        for ignored in (b"bytes=4-2", b"bytes=0-1,3-4", b"lines=1-2", b"bytes=-"):
            assert (await run.get(name, b"Range: " + ignored)).status == 200
        assert (await run.get(name, b"Range: bytes=0-1", b"If-Range: " + etag(first))).status == 206
        assert (await run.get(name, b"Range: bytes=0-1", b'If-Range: "other"')).status == 200
        dated = b"If-Range: " + LAST_MODIFIED.encode()
        assert (await run.get(name, b"Range: bytes=0-1", dated)).status == 206
        assert (await run.get(name, b"Range: bytes=0-1", method="HEAD")).status == 200


async def test_a_content_without_room_on_disk_is_chunked_and_has_no_ranges() -> None:
    async with exporting(CSV, MORE, contentsquare={"export_spool": len(BOTH) - 1}) as run:
        for method, content in (("HEAD", b""), ("GET", BOTH)):
            answer = await run.get("latest.csv", b"Range: bytes=0-1", method=method)
            assert (answer.status, answer.content) == (200, content)
            assert answer.values(b"transfer-encoding") == [b"chunked"]
            assert not answer.values(b"content-length")
            assert not answer.values(b"accept-ranges")
        old = await run.proxy.send(
            b"GET /-/exports/shop/1001/latest.csv HTTP/1.0\r\nHost: %b\r\n\r\n" % run.proxy.host
        )
        assert old.body == BOTH
        assert not old.values(b"transfer-encoding")


async def test_a_storage_that_tells_no_length_is_read_for_it() -> None:
    async with exporting(CSV) as run:
        [stored] = run.storage.objects.values()
        stored.has_length = stored.takes_ranges = False
        head = await run.get(method="HEAD")
        assert head.values(b"content-length") == [b"%d" % len(CSV)]
        assert (await run.get("latest.csv", b"Range: bytes=1-3")).body == CSV[1:4]


async def test_an_empty_file_is_an_empty_answer() -> None:
    async with exporting(b"") as run:
        answer = await run.get()
        assert (answer.status, answer.body) == (200, b"")
    async with exporting(CSV, b"", MORE) as run:
        assert (await run.get()).content == BOTH


async def test_options_and_other_methods() -> None:
    async with exporting(CSV) as run:
        answer = await run.get(method="OPTIONS")
        assert (answer.status, answer.values(b"allow")) == (204, [b"GET, HEAD, OPTIONS"])
        for method in ("POST", "PUT", "DELETE", "PROPFIND"):
            answer = await run.get(method=method)
            assert (answer.status, answer.values(b"allow")) == (405, [b"GET, HEAD, OPTIONS"])
        assert not run.cloud.requests


# Validators and the pinned run


async def test_conditional_requests() -> None:
    async with exporting(CSV) as run:
        same, date = etag(await run.get()), LAST_MODIFIED.encode()
        expected: dict[int, list[tuple[bytes, ...]]] = {
            304: [
                (b"If-None-Match: " + same,),
                (b"If-None-Match: W/" + same,),
                (b'If-None-Match: "a", ' + same,),
                (b"If-None-Match: *",),
                (b"If-Modified-Since: " + date,),
            ],
            200: [
                (b'If-None-Match: "other"', b"If-Modified-Since: " + date),
                (b"If-Modified-Since: Fri, 27 Nov 2026 10:00:00 GMT",),
                (b"If-Match: " + same,),
            ],
            412: [(b'If-Match: "other"',), (b"If-Unmodified-Since: Fri, 27 Nov 2026 10:00:00 GMT",)],
        }
        for status, cases in expected.items():
            for lines in cases:
                for method in ("GET", "HEAD"):
                    answer = await run.get("latest.csv", *lines, method=method)
                    assert answer.status == status, lines
                    if status == 304:
                        assert etag(answer) == same
                        assert not answer.values(b"content-length")


async def test_the_etag_is_that_of_run_files_and_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "PINNED_S", 0.0)
    async with exporting(CSV) as run:
        tags = [etag(await run.get()), etag(await run.get("latest.csv.gz"))]
        path, _ = run.storage.objects.popitem()
        run.storage.objects[path] = Stored(MORE)
        tags.append(etag(await run.get()))
        run.cloud.add_run(100_002, path)
        tags.append(etag(await run.get()))
        assert len(set(tags)) == 4
        assert etag(await run.get()) == tags[-1]


async def test_a_run_stays_the_same_for_a_caller_and_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async with exporting(CSV, callers=CALLERS) as run:

        async def content(key: str = KEY, query: str = "") -> bytes:
            return (await run.get(f"latest.csv?csq_key={key}{query}")).content

        assert await content() == CSV
        calls = len(run.cloud.calls)
        run.storage.objects["/new.csv"] = Stored(MORE)
        run.cloud.add_run(100_002, "/new.csv")
        assert await content() == CSV
        assert len(run.cloud.calls) == calls
        assert await content("the-key-of-the-other") == MORE
        assert await content(query="&run=100002") == MORE
        assert await content(query="&run=100001") == CSV
        monkeypatch.setattr(pins, "PINNED_S", 0.0)
        assert await content() == MORE


async def test_a_run_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async with exporting(CSV) as run:
        assert (await run.get()).content == CSV
        run.storage.objects["/new.csv"] = Stored(MORE)
        run.cloud.add_run(100_002, "/new.csv")
        monkeypatch.setattr(pins, "LONGEST_S", 0.0)
        assert (await run.get()).content == MORE


async def test_requests_at_once_share_one_look_up() -> None:
    async with exporting(CSV, MORE, packed=True) as run:
        answers = await asyncio.gather(*(run.get() for _ in range(5)))
        assert [answer.content for answer in answers] == 5 * [BOTH]
        assert len(run.cloud.calls) == 3


async def test_a_pinned_url_that_ran_out_is_asked_for_anew() -> None:
    async with exporting(CSV) as run:
        assert (await run.get()).content == CSV
        run.storage.objects.clear()
        run.storage.objects["/moved.csv"] = Stored(CSV)
        run.cloud.runs.clear()
        run.cloud.add_run(100_001, "/moved.csv")
        assert (await run.get()).content == CSV


async def test_what_was_made_on_disk_goes_with_its_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "SWEEP_S", 0.01)
    monkeypatch.setattr(pins, "PINNED_S", 0.01)
    async with exporting(CSV, MORE) as run:
        await run.get()
        kept = pins_of(run)
        await until(lambda: not kept._pins and not kept.spools.used and kept._timer is None)


# Rights


@pytest.mark.parametrize(
    ("lines", "query"),
    [
        ((b"Authorization: Bearer " + KEY.encode(),), ""),
        ((b"Authorization: Basic " + b"eDp0aGUta2V5LW9mLXRoZS1hbmFseXN0",), ""),
        ((b"X-API-Key: " + KEY.encode(),), ""),
        ((), f"?csq_key={KEY}"),
    ],
)
async def test_the_storage_gets_no_key_token_or_field_of_the_caller(
    lines: tuple[bytes, ...], query: str
) -> None:
    async with exporting(CSV, MORE, packed=True, callers=CALLERS) as run:
        private = (b"Cookie: c=mine", b"Referer: http://127.0.0.1/mine", b"X-Mine: mine")
        answer = await run.get(f"latest.csv{query}", *lines, b"Range: bytes=0-9", *private[:1], private[2])
        assert answer.status == 206
        assert run.storage.requests
        for request in run.storage.requests:
            names = {line.partition(b":")[0].lower() for line in request.lines}
            assert names <= {
                *(b"host", b"accept", b"accept-encoding", b"user-agent"),
                *(b"range", b"if-match"),
            }
            for secret in (KEY.encode(), b"token-", b"secret-1", b"csq_key", b"mine"):
                assert secret not in request.head
        for request in run.cloud.requests:
            assert request.values(b"authorization")[0].startswith(b"Bearer token-")
            assert KEY.encode() not in request.head


async def test_a_key_is_needed_and_its_projects_hold() -> None:
    callers = {
        "reader": {"key": KEY, "read_only": True},
        "elsewhere": {"key": "the-key-of-elsewhere", "projects": ["lab"]},
    }
    lab = {"client_id": "id-2", "client_secret": "secret-2", "apis": []}
    async with exporting(CSV, callers=callers, projects={"lab": lab}) as run:
        assert (await run.get()).status == 401
        assert (await run.get("latest.csv?csq_key=wrong")).status == 401
        assert (await run.get(f"latest.csv?csq_key={KEY}")).content == CSV
        refused = await run.get("latest.csv?csq_key=the-key-of-elsewhere")
        assert (refused.status, refused.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert b"shop" not in refused.content.replace(b"'shop'", b"")


async def test_a_read_only_project_may_be_read() -> None:
    shop = {"client_id": "id-1", "client_secret": "secret-1", "apis": [], "read_only": True}
    async with exporting(CSV, projects={"shop": shop}) as run:
        assert (await run.get()).content == CSV


async def test_answers_are_not_stored() -> None:
    shop = {"client_id": "id-1", "client_secret": "secret-1", "apis": [], "cache": "60s", "coalesce": True}
    async with exporting(CSV, projects={"shop": shop}) as run:
        for _ in range(2):
            assert (await run.get()).content == CSV
        gets = [one for one in run.storage.requests if not one.values(b"range")]
        assert len(gets) == 2
        assert not run.proxy.app._generations.answers._answers


async def test_an_account_has_a_path_of_its_own() -> None:
    account = {"client_id": "id-2", "client_secret": "secret-2", "projects": [43]}
    async with exporting(CSV, accounts={"acme": account}) as run:
        answer = await run.proxy.call(b"GET /-/exports/acme/43/1001/latest.csv")
        assert (answer.status, answer.content) == (200, CSV)
        assert b'filename="acme-43-1001-100001.csv"' in answer.values(b"content-disposition")[0]
        for path in (b"acme/44/1001/latest.csv", b"acme/1001/latest.csv", b"shop/43/1001/latest.csv"):
            answer = await run.proxy.call(b"GET /-/exports/" + path)
            assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")


async def test_the_port_of_a_project_has_that_projects_exports_alone() -> None:
    port = free_port()
    lab = {"client_id": "id-2", "client_secret": "secret-2", "apis": [], "port": port}
    async with exporting(CSV, projects={"lab": lab}):
        for name, status in ((b"lab", 200), (b"shop", 404)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                b"GET /-/exports/%b/1001/latest.csv HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % (name, port)
            )
            assert (await read_message(reader)).status == status
            writer.close()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/-/exports/", "PROXY_NOT_FOUND"),
        ("/-/exports/shop", "PROXY_NOT_FOUND"),
        ("/-/exports/shop/1001/", "PROXY_NOT_FOUND"),
        ("/-/exports/shop/1001/newest.csv", "PROXY_NOT_FOUND"),
        ("/-/exports/shop/1001/latest.xlsx", "PROXY_NOT_FOUND"),
        ("/-/exports/shop/10.01/latest.csv", "PROXY_NOT_FOUND"),
        ("/-/exports/shop/..%2f1001/latest.csv", "PROXY_NOT_FOUND"),
        ("/-/exports/shop/1001%3Fx/latest.csv", "PROXY_NOT_FOUND"),
        ("/-/exports/../1001/latest.csv", "PROXY_BAD_TARGET"),
        ("/-/exports/shop%2f../1001/latest.csv", "PROXY_UNKNOWN_PROJECT"),
        ("/-/exports/shop/../1001/latest.csv", "PROXY_BAD_TARGET"),
        ("/-/exports/nowhere/1001/latest.csv", "PROXY_UNKNOWN_PROJECT"),
        ("/-/exports/v1/1001/latest.csv", "PROXY_UNKNOWN_PROJECT"),
        ("/-/exports/shop/1001/latest.csv?run=", "PROXY_BAD_TARGET"),
        ("/-/exports/shop/1001/latest.csv?run=1/../2", "PROXY_BAD_TARGET"),
        ("/-/exports/shop/1001/latest.csv?run=1&run=2", "PROXY_BAD_TARGET"),
    ],
)
async def test_other_paths_reach_neither_cloud_nor_storage(path: str, code: str) -> None:
    async with exporting(CSV) as run:
        answer = await run.proxy.call(f"GET {path}".encode())
        assert answer.error_code == code
        assert not run.cloud.requests


async def test_a_secret_in_the_path_is_not_sent_on() -> None:
    async with exporting(CSV, callers=CALLERS) as run:
        answer = await run.proxy.call(f"GET /-/exports/shop/{KEY}/latest.csv?csq_key={KEY}".encode())
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_REQUEST")
        assert not run.cloud.requests


# Bounds


async def unread(run: Exporting, *lines: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller that gets an export's head."""
    reader, writer = await run.proxy.connect()
    writer.write(run.proxy.request(b"GET /-/exports/shop/1001/latest.csv", *lines))
    async with asyncio.timeout(WAIT_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    return reader, writer


def busy(run: Exporting) -> int:
    """How many downloads are under way."""
    pools = run.proxy.app._generation.outward.downloads._pools.values()
    return sum(len(pool._busy) for pool in pools)


def leave(writer: asyncio.StreamWriter) -> None:
    """Reset the connection, as a system does for a program that ends before it has read all."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()


@pytest.fixture
def gate() -> asyncio.Event:
    return asyncio.Event()


def hold(run: Exporting, gate: asyncio.Event) -> None:
    for stored in run.storage.objects.values():
        stored.gate = gate


async def test_no_slot_is_held_while_the_storage_streams(gate: asyncio.Event) -> None:
    async with exporting(CSV, contentsquare={"max_concurrency": 1, "queue_timeout": 0.2}) as run:
        hold(run, gate)
        reader, _ = await unread(run)
        assert (await run.proxy.call(b"GET /v1/exports/1001")).status == 200
        [project] = run.proxy.app.projects()
        assert (project.slots.in_use, project.running) == (0, 1)
        gate.set()
        async with asyncio.timeout(WAIT_S):
            assert await reader.readexactly(len(CSV)) == CSV
        await until(lambda: not project.running)


async def test_the_look_up_takes_a_slot() -> None:
    async with exporting(CSV, contentsquare={"max_concurrency": 1, "queue_timeout": 0.2}) as run:
        [project] = run.proxy.app.projects()
        await project.slots.acquire("another", 1)
        answer = await run.get()
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        assert answer.values(b"retry-after")
        project.slots.release()
        assert (await run.get()).content == CSV
        assert project.slots.in_use == 0


async def test_a_caller_has_so_many_streams(gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "ROOM_S", 0.1)
    async with exporting(CSV, callers=CALLERS) as run:
        hold(run, gate)
        mine, other = b"X-API-Key: " + KEY.encode(), b"X-API-Key: the-key-of-the-other"
        streams = [await unread(run, mine) for _ in range(exports.MOST_AT_ONCE)]
        refused = await run.get("latest.csv", mine)
        assert (refused.status, refused.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        await unread(run, other)
        leave(streams.pop()[1])
        await until(lambda: busy(run) == len(streams) + 1)
        await unread(run, mine)
        gate.set()


@pytest.mark.parametrize(("packed", "spool"), [(False, {}), (True, NOTHING)])
async def test_a_caller_that_leaves_ends_the_download(
    packed: bool, spool: dict[str, int], gate: asyncio.Event
) -> None:
    noise = b"".join(b"%d,%032x\n" % (n, n * 7919**9) for n in range(40_000))
    async with exporting(b"a,b\n" + noise, packed=packed, contentsquare=spool) as run:
        hold(run, gate)
        _, writer = await unread(run)
        assert busy(run) == 1
        leave(writer)
        await until(lambda: not busy(run))
        gate.set()
        [project] = run.proxy.app.projects()
        await until(lambda: not project.running)


async def test_a_caller_that_leaves_ends_the_making(gate: asyncio.Event) -> None:
    async with exporting(CSV, MORE) as run:
        hold(run, gate)
        _, writer = await run.proxy.connect()
        writer.write(run.proxy.request(b"GET /-/exports/shop/1001/latest.csv"))
        await until(lambda: len(run.storage.requests) == 3)
        leave(writer)
        [project] = run.proxy.app.projects()
        await until(lambda: not project.running)
        assert not pins_of(run).spools.used
        gate.set()


PART = b"Range: bytes=1-3"


def pins_of(run: Exporting) -> pins.Pins:
    return run.proxy.app._gateway._exports._pins


async def test_a_head_does_not_wait_for_all_of_a_slow_storage(
    gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "HEAD_WAIT_S", 0.05)
    async with exporting(CSV, MORE) as run:
        hold(run, gate)
        head = await run.get(method="HEAD")
        assert (head.status, head.values(b"transfer-encoding")) == (200, [b"chunked"])
        assert not head.values(b"content-length")
        assert not head.values(b"accept-ranges")
        gate.set()
        assert (await run.get("latest.csv", PART)).body == BOTH[1:4]
        assert len(run.storage.requests) == 4  # the work of the HEAD went on
        again = await run.get(method="HEAD")
        assert again.values(b"content-length") == [b"%d" % len(BOTH)]
        assert etag(again) == etag(head)


async def test_what_was_begun_for_a_head_ends_with_its_pin(
    gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SWEEP_S", 0.01), ("PINNED_S", 0.01)):
        monkeypatch.setattr(pins, name, value)
    monkeypatch.setattr(exports, "HEAD_WAIT_S", 0.0)
    async with exporting(CSV, MORE) as run:
        hold(run, gate)
        assert (await run.get(method="HEAD")).status == 200
        await until(lambda: not busy(run) and not pins_of(run)._pins and not pins_of(run).spools.used)
        gate.set()


async def test_the_making_ends_with_the_last_caller_that_waits_for_it(gate: asyncio.Event) -> None:
    async with exporting(CSV, MORE) as run:
        hold(run, gate)
        writers = []
        for _ in range(3):
            _, writer = await run.proxy.connect()
            writer.write(run.proxy.request(b"GET /-/exports/shop/1001/latest.csv", PART))
            writers.append(writer)
        [project] = run.proxy.app.projects()
        await until(lambda: project.running == 3 and len(run.storage.requests) == 3)
        leave(writers[0])
        await until(lambda: project.running == 2)
        assert busy(run) == 1
        leave(writers[1])
        leave(writers[2])
        await until(lambda: not project.running and not busy(run) and not pins_of(run).spools.used)
        gate.set()
        assert (await run.get("latest.csv", PART)).body == BOTH[1:4]


async def test_a_caller_that_leaves_takes_nothing_from_another(gate: asyncio.Event) -> None:
    async with exporting(CSV, MORE) as run:
        hold(run, gate)
        _, writer = await run.proxy.connect()
        writer.write(run.proxy.request(b"GET /-/exports/shop/1001/latest.csv", PART))
        await until(lambda: len(run.storage.requests) == 3)
        other = asyncio.create_task(run.get("latest.csv", PART))
        [project] = run.proxy.app.projects()
        await until(lambda: project.running == 2)
        leave(writer)
        await until(lambda: project.running == 1)
        gate.set()
        assert (await other).body == BOTH[1:4]
        assert len(run.storage.requests) == 4


async def test_a_run_that_is_dropped_while_it_is_read_leaves_nothing_on_disk(
    gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with exporting(CSV, MORE) as run:
        hold(run, gate)
        reading = asyncio.create_task(run.get("latest.csv", PART))
        await until(lambda: len(run.storage.requests) == 3)
        [pin] = pins_of(run)._pins.values()
        with monkeypatch.context() as patch:
            patch.setattr(pins, "LONGEST_S", 0.0)
            other = asyncio.create_task(run.get("latest.csv", PART))
            await until(lambda: list(pins_of(run)._pins.values()) != [pin])
        gate.set()
        assert (await reading).body == (await other).body == BOTH[1:4]
        await until(lambda: not pin.users and not pin.spools)
        assert pins_of(run).spools.used == len(BOTH)


async def test_a_slow_caller_slows_the_storage_down() -> None:
    content = b"a,b\n" + bytes(64 << 20)
    async with exporting(content) as run:
        reader, _ = await unread(run)
        [pool] = run.proxy.app._generation.outward.downloads._pools.values()
        [busy] = pool._busy
        await until(lambda: busy._paused)
        sent = 0
        async with asyncio.timeout(WAIT_S):
            while sent < len(content):
                sent += len(await reader.read(1 << 20))
        assert sent == len(content)


async def test_a_slow_caller_may_be_slower_than_the_idle_timeout() -> None:
    content = b"a,b\n" + bytes(32 << 20)
    async with exporting(content) as run:
        reader, _ = await unread(run)
        [pool] = run.proxy.app._generation.outward.downloads._pools.values()
        [connection] = pool._busy
        await until(lambda: connection._paused)
        connection.fail_if_silent(-1.0)  # as after that time
        async with asyncio.timeout(WAIT_S):
            assert await reader.readexactly(len(content)) == content
        assert run.storage.requests[-1].values(b"if-match")


async def test_a_download_outlives_a_reload(gate: asyncio.Event) -> None:
    async with exporting(CSV) as run:
        hold(run, gate)
        reader, _ = await unread(run)
        app = run.proxy.app
        old, settings = app._generation, app._generation.settings
        vendor = settings.contentsquare.model_copy(update={"connect_timeout": 9.0})
        app._prepare(settings.model_copy(update={"contentsquare": vendor}))()
        assert app._generation.outward is not old.outward
        assert (await run.proxy.call(b"GET /v1/exports/1001")).status == 200
        gate.set()
        async with asyncio.timeout(WAIT_S):
            assert await reader.readexactly(len(CSV)) == CSV
        await until(lambda: not app._old_outwards)
        assert (await run.get()).content == CSV


@contextlib.asynccontextmanager
async def before_sandbox(duration_s: float = 0.0, **more: object) -> AsyncIterator[tuple[Gateway, bytes]]:
    """A proxy before the sandbox, and the path of a new job's files there, without the name's end."""
    async with Sandbox(SandboxOptions(export_duration_s=duration_s)) as sandbox:
        project = sandbox.projects["demo-eu"]
        vendor = {
            "auth_url": sandbox.auth_url,
            "allowed_endpoints": sandbox.hosts,
            "allowed_downloads": [sandbox.storage_host],
        }
        shop = {"client_id": project.client_id, "client_secret": project.client_secret, "apis": []}
        async with gateway(contentsquare=vendor, projects={"shop": shop}) as proxy:
            job = {
                "name": "all",
                "format": "CSV",
                "scope": "sessions",
                "frequency": {"value": "daily"},
                "fields": [{"fieldName": "session_id"}, {"fieldName": "country_code"}],
                "deviceLabel": "all",
                "rows": 500,
                **more,
            }
            content = json.dumps(job).encode()
            length = b"Content-Length: %d" % len(content)
            made = await proxy.call(b"POST /v1/exports", length, body=content)
            yield proxy, f"/-/exports/shop/{json.loads(made.content)['payload']['jobId']}/latest.".encode()


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize(("kind", "suffix"), [("CSV", b"csv"), ("JSONL", b"jsonl")])
async def test_an_export_of_the_sandbox_is_read(kind: str, suffix: bytes, compression: str) -> None:
    async with before_sandbox(format=kind, compression=compression) as (proxy, start):
        path = start + suffix
        plain = await proxy.call(b"GET " + path)
        assert plain.status == 200
        assert plain.content.count(b"\n") == 500 + (kind == "CSV")
        assert gzip.decompress((await proxy.call(b"GET %b.gz" % path)).content) == plain.content
        head = await proxy.call(b"HEAD " + path)
        assert head.values(b"content-length") == [b"%d" % len(plain.content)]
        part = await proxy.call(b"GET " + path, b"Range: bytes=10-19")
        assert (part.status, part.body) == (206, plain.content[10:20])


async def test_a_poll_of_the_sandbox_takes_one_call() -> None:
    async with before_sandbox(1e6) as (proxy, path):
        [project] = proxy.app.projects()
        counts = [project.requests[Api.DATA_EXPORT]]
        for _ in range(4):
            answer = await proxy.call(b"GET %bcsv" % path)
            assert (answer.status, answer.error_code) == (404, "PROXY_EXPORT_NOT_READY")
            counts.append(project.requests[Api.DATA_EXPORT])
        assert [after - before for before, after in itertools.pairwise(counts)] == [2, 1, 1, 1]


async def test_a_stop_takes_no_new_ones(gate: asyncio.Event) -> None:
    async with exporting(CSV) as run:
        run.proxy.app.overview.is_stopping = True
        answer = await run.get()
        assert (answer.status, answer.error_code) == (503, "PROXY_STOPPING")


# Counts


async def test_an_error_counts_for_its_project_and_not_among_the_requests_that_reached_none() -> None:
    async with before_sandbox(1e6) as (proxy, path):
        for _ in range(3):
            answer = await proxy.call(b"GET %bcsv" % path)
            assert answer.error_code == "PROXY_EXPORT_NOT_READY"
        await proxy.call(b"GET /-/exports/nobody/7/latest.csv")
        [project] = proxy.app.projects()
        assert project.measures.errors == {"PROXY_EXPORT_NOT_READY": 3}
        assert proxy.app.overview.refusals.all == {"PROXY_UNKNOWN_PROJECT": 1}


async def test_the_calls_to_contentsquare_are_counted_and_the_stream_is_logged() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    async with exporting(CSV, callers=CALLERS) as run:
        await run.get("latest.csv", b"X-API-Key: " + KEY.encode())
        [project] = run.proxy.app.projects()
        [(kind, how, count)] = [
            answers for measures in project.measures.apis.values() for answers in measures.answers()
        ]
        assert (kind, how, count) == ("2xx", "read", 3)
        assert project.calls.made == 3
        assert [*project.measures.usage()] == ["analyst"]
        await until(lambda: "/-/exports/" in stream.getvalue())
        lines = [json.loads(line) for line in stream.getvalue().splitlines() if "route" in line]
        line = lines[-1]
        assert line["route"] == "/-/exports/shop/{id}/latest.csv"
        assert (line["project"], line["caller"], line["status"]) == ("shop", "analyst", 200)
        assert line["bytes_out"] == len(CSV)
        assert [one["route"] for one in lines[:-1]] == [
            "/v1/exports/{id}",
            "/v1/exports/{id}/runs",
            "/v1/exports/{id}/runs/{id}",
        ]
        assert len({one["request_id"] for one in lines}) == 1


async def test_contentsquares_refusal_is_relayed() -> None:
    async with exporting(CSV) as run:
        answer = await run.proxy.call(b"GET /-/exports/shop/2002/latest.csv")
        assert (answer.status, answer.error_code) == (404, "NOT_FOUND")
        run.cloud.answers["/v1/exports/1001"] = error(403, "no")
        answer = await run.get()
        assert (answer.status, answer.values(b"content-type")) == (403, [b"application/xml"])


@pytest.mark.parametrize("ends", ["stop", "leave"])
async def test_a_call_that_gets_no_answer_is_logged_as_a_caller_s_is(ends: str) -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    async with exporting(CSV, server={"port": 0, "drain_timeout": 0.01}) as run:
        run.cloud.answers["/v1/exports/1001"] = b""  # none comes
        reader, writer = await run.proxy.connect()
        writer.write(run.proxy.request(b"GET /-/exports/shop/1001/latest.csv"))
        await until(lambda: run.cloud.requests)
        if ends == "leave":
            leave(writer)
        else:
            await asyncio.wait_for(run.proxy.app.drain(asyncio.Event()), WAIT_S)
            assert (await read_message(reader)).error_code == "PROXY_STOPPING"
        await until(lambda: "/-/exports/" in stream.getvalue())
    lines = [json.loads(line) for line in stream.getvalue().splitlines() if "route" in line]
    event = "request_abandoned" if ends == "leave" else "request_answered"
    end = (event, None, None) if ends == "leave" else (event, 503, "PROXY_STOPPING")
    assert [one["route"] for one in lines] == ["/v1/exports/{id}", "/-/exports/shop/{id}/latest.csv"]
    assert [(one["event"], one.get("status"), one.get("error")) for one in lines] == [end, end]


async def test_a_call_that_the_proxy_refuses_is_logged_with_its_error() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    async with exporting(CSV, contentsquare={"max_concurrency": 1, "queue_timeout": 0.05}) as run:
        [project] = run.proxy.app.projects()
        assert project.slots.try_acquire()
        answer = await run.get()
        assert (answer.status, answer.error_code) == (503, "PROXY_QUEUE_TIMEOUT")
        await until(lambda: "/-/exports/" in stream.getvalue())
    lines = [json.loads(line) for line in stream.getvalue().splitlines() if "route" in line]
    assert [(one["status"], one["error"]) for one in lines] == [(503, "PROXY_QUEUE_TIMEOUT")] * 2


async def test_an_answer_that_a_fault_of_the_proxys_disk_cuts_is_told_as_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(spool: Spool, at: int, size: int) -> bytes:
        if at:
            raise OSError(errno.EIO, "no such sector")
        return whole(spool, at, size)

    whole = Spool._read
    monkeypatch.setattr(Spool, "_read", read)
    async with exporting(CSV + b"3,IT\n" * 200_000, MORE) as run:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await run.get()
        shown = json.loads((await run.proxy.call(b"GET /-/requests")).content)["requests"]
        [export] = [one for one in shown if one["route"].startswith("/-/exports/")]
        assert (export["status"], export["error"], export["source"]) == (200, "PROXY_ANSWER_CUT", "proxy")


async def test_an_export_that_its_storage_does_not_hand_over_is_a_trouble_of_its_project() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    async with exporting(CSV) as run:
        [stored] = run.storage.objects.values()
        stored.answer = error(503, "SlowDown")
        for _ in range(3):
            assert (await run.get()).status == 502
        status = json.loads((await run.proxy.call(b"GET /-/status?hour=1")).content)["projects"]["shop"]
        await until(lambda: "request_failed" in stream.getvalue())
        assert status["health"]["side"] == "contentsquare"
        assert status["health"]["reason"].startswith("3 of ")
        assert "The export's files can't be fetched" in status["health"]["reason"]
        assert [one["code"] for one in status["last_errors"]] == ["PROXY_UPSTREAM_UNREACHABLE"] * 3
        assert sum(one["errors_proxy"] for one in status["hour"]) == 3
        [project] = run.proxy.app.projects()
        calls = project.calls.made
        assert status["responses"]["contentsquare"]["2xx"] == calls
        assert status["responses"]["proxy"] == {"4xx": 0, "5xx": 3}
    [line] = [
        one for one in map(json.loads, stream.getvalue().splitlines()) if one["event"] == "request_failed"
    ]
    assert (line["project"], line["api"], line["cause"]) == (
        "shop",
        "data-export",
        "PROXY_UPSTREAM_UNREACHABLE",
    )
    assert "The export's files can't be fetched" in line["error"]


async def test_an_export_that_was_cut_is_a_trouble_of_its_project() -> None:
    async with exporting(CSV + b"3,IT\n" * 200_000) as run:
        [stored] = run.storage.objects.values()
        stored.cut_after = 150_000
        for _ in range(3):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await run.get()
        status = json.loads((await run.proxy.call(b"GET /-/status")).content)["projects"]["shop"]
        metrics = (await run.proxy.call(b"GET /-/metrics")).content
    assert (status["health"]["state"], status["health"]["summary"]) == ("failing", "answers cut")
    assert status["last_errors"][0]["code"] == "PROXY_ANSWER_CUT"
    assert b'csq_proxy_answers_cut_total{api="data-export",project="shop"} 3.0' in metrics
    assert b'csq_proxy_errors_total{code="PROXY_ANSWER_CUT",project="shop"} 3.0' in metrics
    assert b'csq_proxy_responses_total{class="5xx",project="shop",source="proxy"} 3.0' in metrics
    assert b'csq_proxy_responses_total{class="2xx",project="shop",source="contentsquare"} ' in metrics


async def test_a_failed_call_for_an_export_is_one_failure_with_its_message() -> None:
    async with exporting(CSV, contentsquare={"max_concurrency": 1, "queue_timeout": 0.05}) as run:
        [project] = run.proxy.app.projects()
        assert project.slots.try_acquire()
        assert (await run.get()).error_code == "PROXY_QUEUE_TIMEOUT"
        assert project.measures.recent().requests == 1
        assert project.measures.recent().troubles == {"PROXY_QUEUE_TIMEOUT": 1}
        [error] = project.measures.last_errors
        assert error.code == "PROXY_QUEUE_TIMEOUT"
