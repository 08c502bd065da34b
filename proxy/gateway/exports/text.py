"""The text of an export out of its files: unpacked, joined, and packed again where that is asked for.

Streams in, streams out: a few pieces are in memory at a time, whatever the size. zlib works in a thread.
Sources: RFC 1952 (gzip), RFC 4180 (CSV).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import Final

from proxy.blocking import in_thread
from proxy.errors import UpstreamError
from proxy.gateway.exports.storage import Pieces

PIECE_BYTES: Final = 1 << 20
"""The most bytes that one step of zlib makes."""
PACK_BYTES: Final = 256 * 1024
"""Bytes that are packed in one step."""
LEVEL: Final = 1
"""zlib's level: of higher ones, each costs more time than its bytes take on the way to the caller."""
MOST_OF_HEADER: Final = 1 << 20
"""Bytes of the first record of a CSV file."""
_GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS
_BOM: Final = b"\xef\xbb\xbf"


class BadFile(UpstreamError):
    """The files' content makes no whole text: a file is damaged, or the files don't fit together."""

    proxy_status = "http_protocol_error"


async def unpacked(pieces: Pieces) -> Pieces:
    """The content of a gzip file with any number of members. Raises BadFile."""
    unpacker = _Unpacker()
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            unpacker.feed(piece)
            while unpacker.has_more:
                if text := await in_thread(unpacker.step):
                    yield text
    if not unpacker.is_whole:
        raise BadFile("a file of the export ends too early")


class _Unpacker:
    """Unpacks in steps of `PIECE_BYTES` at most."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_FORMAT)
        self._rest = b""
        self.has_more = False
        """Whether `step` may give more text already."""
        self.is_whole = False
        """Whether the last member is complete."""

    def feed(self, packed: bytes) -> None:
        """Take more packed bytes; before that, all text was taken."""
        self._rest += packed
        self.has_more = True

    def step(self) -> bytes:
        """The next bytes of text, perhaps none. Raises BadFile."""
        while True:
            if self.is_whole:  # padding after the last member, as on tapes
                self._rest = self._rest.lstrip(b"\0")
                if not self._rest:
                    self.has_more = False
                    return b""
                self._member, self.is_whole = zlib.decompressobj(_GZIP_FORMAT), False
            try:
                text = self._member.decompress(self._rest, PIECE_BYTES)
            except zlib.error:
                raise BadFile("a file of the export is damaged: it can't be unpacked") from None
            self._rest = self._member.unconsumed_tail
            if self._member.eof:
                self._rest, self.is_whole = self._member.unused_data, True
            self.has_more = bool(self._rest) or len(text) == PIECE_BYTES
            if text or not self.has_more:
                return text


async def packed(pieces: Pieces) -> Pieces:
    """A gzip file with this content; the same bytes each time."""
    packer = zlib.compressobj(LEVEL, wbits=_GZIP_FORMAT)
    held: list[bytes] = []
    size = 0
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= PACK_BYTES:
                text, held, size = b"".join(held), [], 0
                if made := await in_thread(lambda text=text: packer.compress(text)):  # type: ignore[misc]
                    yield made
    yield await in_thread(lambda: packer.compress(b"".join(held)) + packer.flush())


async def joined(files: Sequence[Pieces], *, is_csv: bool) -> Pieces:
    """The text of several files, one after the other; the header of CSV files stands there once.

    A file that doesn't end with a line end gets one before the next. Raises BadFile where the headers
    differ.
    """
    header = b""
    last = b"\n"
    for pieces in files:
        glue = b"" if last == b"\n" else b"\n"
        async with contextlib.aclosing(pieces):
            if is_csv:
                record, piece = await _first_record(pieces)
                if not header:
                    header, piece = record, record + piece
                elif record and _columns(record) != _columns(header):
                    raise BadFile("the files of the export have different columns, so they make no table")
                if piece:
                    yield glue + piece
                    glue, last = b"", piece[-1:]
            async for piece in pieces:
                yield glue + piece
                glue, last = b"", piece[-1:]


async def _first_record(pieces: Pieces) -> tuple[bytes, bytes]:
    """The first record with its line end, and the bytes after it that have come. Raises BadFile."""
    text = b""
    start = quotes = 0
    async for piece in pieces:
        text += piece
        while (end := text.find(b"\n", start)) >= 0:
            quotes += text.count(b'"', start, end)
            start = end + 1
            if quotes % 2 == 0:  # a line end within quotes ends no record
                return text[:start], text[start:]
        if len(text) > MOST_OF_HEADER:
            raise BadFile("a file of the export has a header that is too long")
    return text, b""


def _columns(record: bytes) -> bytes:
    return record.removeprefix(_BOM).rstrip(b"\r\n")
