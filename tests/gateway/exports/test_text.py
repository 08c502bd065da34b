"""Joined, unpacked and packed texts: what comes is whole and right, or an error."""

from __future__ import annotations

import csv
import gzip
import io
import random
import zlib
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.storage import exporting

from proxy.gateway.exports import text
from proxy.gateway.exports.text import BadFile, joined, packed, unpacked

PARTS = st.lists(st.binary(max_size=200), max_size=5)
SIZE = st.integers(1, 50)


async def in_pieces(content: bytes, size: int = 7) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def whole(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def joined_csv(*files: bytes, size: int = 7) -> bytes:
    return await whole(joined([in_pieces(file, size) for file in files], is_csv=True))


# Packing


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), SIZE, st.integers(0, 20))
async def test_any_number_of_gzip_members_is_unpacked(members: list[bytes], size: int, padding: int) -> None:
    content = b"".join(map(gzip.compress, members)) + bytes(padding)
    assert await whole(unpacked(in_pieces(content, size))) == b"".join(members)


@given(st.binary(max_size=2000), SIZE)
async def test_what_is_packed_can_be_unpacked(content: bytes, size: int) -> None:
    made = await whole(packed(in_pieces(content, size)))
    assert gzip.decompress(made) == content
    assert made == await whole(packed(in_pieces(content, size)))


async def test_a_bomb_is_unpacked_in_bounded_steps() -> None:
    bomb = zlib.compressobj(9, wbits=31)
    content = bomb.compress(bytes(16 << 20)) + bomb.flush()
    sizes = [len(piece) async for piece in unpacked(in_pieces(content, 1 << 16))]
    assert sum(sizes) == 16 << 20
    assert max(sizes) <= text.PIECE_BYTES


@pytest.mark.parametrize("cut", [1, 5, 9, 40])
async def test_a_gzip_file_that_ends_too_early_or_is_damaged_is_an_error(cut: int) -> None:
    content = gzip.compress(random.Random(1).randbytes(400))
    with pytest.raises(BadFile, match="too early"):
        await whole(unpacked(in_pieces(content[:-cut])))
    with pytest.raises(BadFile, match=r"damaged|too early"):
        await whole(unpacked(in_pieces(content + content[:-cut])))
    broken = bytearray(content)
    broken[-cut] ^= 0xFF
    with pytest.raises(BadFile):
        await whole(unpacked(in_pieces(bytes(broken))))
    with pytest.raises(BadFile, match="damaged"):
        await whole(unpacked(in_pieces(content + b"garbage")))


# Joining


@given(st.lists(st.lists(st.text(alphabet='ab",\n é', max_size=6), min_size=2, max_size=2), max_size=8), SIZE)
async def test_joined_csv_files_have_the_rows_of_all(rows: list[list[str]], size: int) -> None:
    header = ['a "quoted"\nname', "b"]
    for end in ("\r\n", "\n"):
        files = []
        for part in (rows[:3], rows[3:5], rows[5:]):
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator=end).writerows([header, *part])
            files.append(text.getvalue().encode())
        files[1] = files[1].rstrip(b"\r\n") if rows[3:5] and any(rows[4:5]) else files[1]
        text_of_all = (await joined_csv(*files, size=size)).decode()
        assert list(csv.reader(io.StringIO(text_of_all, newline=""))) == [header, *rows]


@pytest.mark.parametrize(
    ("files", "joined_file"),
    [
        ([], b""),
        ([b""], b""),
        ([b"", b"a\n1\n", b""], b"a\n1\n"),
        ([b"a\n1\n", b"a\n", b"a"], b"a\n1\n"),
        ([b"a", b"a\n2\n"], b"a\n2\n"),
        ([b"a\n1", b"a\n2", b"a\n3"], b"a\n1\n2\n3"),
        ([b"\xef\xbb\xbfa\n1\n", b"\xef\xbb\xbfa\n2\n"], b"\xef\xbb\xbfa\n1\n2\n"),
        ([b"a\r\n1\r\n", b"a\r\n2\r\n"], b"a\r\n1\r\n2\r\n"),
    ],
)
async def test_joined_csv_files(files: list[bytes], joined_file: bytes) -> None:
    for size in (1, 3, 100):
        assert await joined_csv(*files, size=size) == joined_file


@pytest.mark.parametrize(
    "files", [[b"a,b\n1,2\n", b"a,c\n1,2\n"], [b"a\n1\n", b"1\n"], [b"a\n", b"a,b"], [b"a\n1\n", b'"a\n2\n']]
)
async def test_files_with_different_headers_are_never_joined(files: list[bytes]) -> None:
    with pytest.raises(BadFile, match="different columns"):
        await joined_csv(*files)


async def test_a_header_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_OF_HEADER", 1000)
    with pytest.raises(BadFile, match="too long"):
        await joined_csv(b"a" * 2000)


@given(PARTS)
async def test_joined_jsonl_files_have_the_lines_of_all(files: list[bytes]) -> None:
    made = await whole(joined([in_pieces(file) for file in files], is_csv=False))
    lines = [line for file in files for line in file.split(b"\n") if line]
    assert [line for line in made.split(b"\n") if line] == lines


# As a caller sees it


@pytest.mark.parametrize("packed_files", [False, True])
async def test_different_headers_end_in_an_error_or_a_reset(packed_files: bool) -> None:
    long = b"a,b\n" + b"1,2\n" * 3_000_000  # longer than what is made before the answer begins
    for first, vendor in ((b"a,b\n1,2\n", {}), (b"a,b\n1,2\n", {"export_spool": 0}), (long, {})):
        if first is long and packed_files:
            continue
        async with exporting(first, b"a,c\n3,4\n", packed=packed_files, contentsquare=vendor) as run:
            if vendor or first is long:
                with pytest.raises((ConnectionResetError, EOFError)):
                    await run.get()
            else:
                answer = await run.get()
                assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
                assert "different columns" in answer.content.decode()
