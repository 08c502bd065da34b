"""The download of an export's files: breaks, wrong lengths, changed files, TLS; a cut never looks whole."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import ssl
from pathlib import Path

import pytest
import trustme
from support.harness import WAIT_S, read_message
from support.storage import CLOSE, S3, Exporting, Stored, error, exporting

from proxy.gateway.exports import storage

CHANCE = random.Random(1)
LINES = b"".join(b"%d,%032x\n" % (n, CHANCE.getrandbits(128)) for n in range(30_000))
CSV = b"id,value\n" + LINES
NOTHING = {"export_spool": 0}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSE_S", 0.0)


async def cut(run: Exporting, name: str = "latest.csv", *lines: bytes) -> bytes:
    """The bytes that come of an answer whose end never comes; its connection is reset."""
    reader, writer = await run.proxy.connect()
    writer.write(run.proxy.request(f"GET /-/exports/shop/1001/{name}".encode(), *lines))
    got = b""
    async with asyncio.timeout(WAIT_S):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")), head
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(1 << 16):
                got += piece
            pytest.fail("the connection was not reset")
    assert not got.endswith(b"0\r\n\r\n")
    return got


FORMS = [
    ("latest.csv", False, {}),
    ("latest.csv", True, NOTHING),
    ("latest.csv.gz", True, {}),
    ("latest.csv.gz", False, NOTHING),
]


@pytest.mark.parametrize(("name", "packed", "vendor"), FORMS)
async def test_a_download_that_breaks_goes_on_where_it_broke(
    name: str, packed: bool, vendor: dict[str, int]
) -> None:
    async with exporting(CSV, packed=packed, contentsquare=vendor) as run:
        [stored] = run.storage.objects.values()
        stored.cut_after, stored.cuts = 100_000, 3
        answer = await run.get(name)
        content = gzip.decompress(answer.content) if name.endswith("gz") else answer.content
        assert content == CSV
        for request in run.storage.requests[2:]:
            assert request.values(b"if-match") == [stored.etag.encode()]
            assert request.values(b"range")


@pytest.mark.parametrize(("name", "packed", "vendor"), FORMS)
async def test_a_storage_that_breaks_again_and_again_ends_in_a_reset(
    name: str, packed: bool, vendor: dict[str, int]
) -> None:
    async with exporting(CSV, packed=packed, contentsquare=vendor) as run:
        [stored] = run.storage.objects.values()
        stored.cut_after = 150_000
        await cut(run, name)
        stored.cuts = 0
        assert (await run.get(name)).status == 200


async def test_a_cut_before_the_first_byte_is_an_error() -> None:
    async with exporting(CSV) as run:
        [stored] = run.storage.objects.values()
        assert (await run.get(method="HEAD")).status == 200
        stored.answer = CLOSE
        answer = await run.get()
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
        assert answer.values(b"retry-after")


@pytest.mark.parametrize("part", [False, True])
async def test_a_file_that_changes_meanwhile_is_never_mixed(part: bool) -> None:
    async with exporting(CSV) as run:
        [(path, stored)] = run.storage.objects.items()
        stored.cut_after, stored.cuts = 100_000, 1
        lines = (b"Range: bytes=5-",) if part else ()
        original = run.storage._answer

        async def answer(request: object, to: asyncio.StreamWriter) -> None:
            if len(run.storage.requests) == 3:
                run.storage.objects[path] = Stored(CSV[::-1])
            await original(request, to)  # type: ignore[arg-type]

        run.storage._answer = answer  # type: ignore[method-assign, assignment]
        got = await cut(run, "latest.csv", *lines)
        assert CSV[5 if part else 0 :].startswith(got)


async def test_a_pinned_file_that_changed_before_the_first_byte_is_looked_up_anew() -> None:
    async with exporting(CSV) as run:
        assert (await run.get()).body == CSV
        [path] = run.storage.objects
        run.storage.objects[path] = Stored(CSV + b"1,2\n")
        answer = await run.get()
        assert (answer.status, answer.body) == (200, CSV + b"1,2\n")


class Lying(S3):
    """Tells other bytes than those that it sends, from the second request on."""

    wrong = b""

    async def _answer(self, request: object, writer: asyncio.StreamWriter) -> None:
        if len(self.requests) > 1:
            writer.write(self.wrong)
        else:
            await super()._answer(request, writer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\nid,value\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 2000000\r\n\r\nid,value\n",
        b"HTTP/1.1 206 X\r\nContent-Range: bytes 0-8/9\r\nContent-Length: 9\r\n\r\nid,value\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 9\r\n\r\nid,value\n",
        b"HTTP/1.1 204 X\r\n\r\n",
    ],
)
async def test_other_bytes_than_were_asked_for_are_an_error(wrong: bytes) -> None:
    async with exporting(CSV) as run:
        run.storage.__class__ = Lying
        run.storage.wrong = wrong  # type: ignore[attr-defined]
        answer = await run.get("latest.csv", b"Range: bytes=5-13")
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")


@pytest.mark.parametrize("extra", [-1, 1])
async def test_a_content_of_another_length_than_was_told_is_cut(extra: int) -> None:
    async with exporting(CSV) as run:
        run.storage.__class__ = Lying
        content = CSV[:-1] if extra < 0 else CSV + b"x"
        run.storage.wrong = (  # type: ignore[attr-defined]
            b"HTTP/1.1 200 X\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
            % (len(content), content)
        )
        reader, writer = await run.proxy.connect()
        writer.write(run.proxy.request(b"GET /-/exports/shop/1001/latest.csv"))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read_message(reader)


async def test_a_part_that_is_refused_on_the_way_is_a_cut() -> None:
    async with exporting(CSV, CSV, contentsquare=NOTHING) as run:
        last = run.storage.objects["/exports/1001/part-00001.csv"]
        original = run.storage._answer

        async def answer(request: object, to: asyncio.StreamWriter) -> None:
            if len(run.storage.requests) == 3:
                last.answer = error(503, "SlowDown")
            await original(request, to)  # type: ignore[arg-type]

        run.storage._answer = answer  # type: ignore[method-assign, assignment]
        got = await cut(run)
        assert CSV[-100:] in got


async def test_https_is_verified_with_the_ca_file(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    trusted = {"ca_file": str(tmp_path / "ca.pem")}
    async with exporting(CSV, tls=context, contentsquare=trusted) as run:
        assert (await run.get()).body == CSV
    async with exporting(CSV, tls=context) as run:
        answer = await run.get()
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
        assert "certificate" in answer.content.decode()
        assert not run.storage.requests
