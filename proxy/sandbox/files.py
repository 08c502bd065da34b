"""Export files: their bytes, of any length, with a length that is known before they are sent.

A file is its rows' header, groups of rows, and an end. Only some groups are made: a longer file has the same
groups again, so its length is a sum, any part of it can be sent, and a file of 1 GiB takes little memory.
Each group is compressed for itself (with a full flush behind it), so the same holds for a gzip file, which
is still one member (RFC 1952).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from proxy.sandbox.rows import Rows

ROWS_PER_GROUP = 500
GROUPS = 8
"""The groups that differ: behind these, rows come again."""

_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # without a time and a name, made by the fastest way
_LAST_BLOCK = b"\x03\x00"  # an empty block with the mark of the last one (RFC 1951, section 3.2.3)


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file of a run: its place, everything that decides its bytes, and its times (Unix time, seconds).

    ``cut_after``: each answer's connection is closed after this many bytes of content; None: never.
    """

    path: str
    rows: Rows
    count: int
    compressed: bool
    made_at: float
    expires_at: float
    cut_after: int | None = None

    @property
    def content_type(self) -> str:
        """By the format and the compression."""
        if self.compressed:
            return "application/gzip"
        return "text/csv" if self.rows.format == "CSV" else "application/x-ndjson"

    @property
    def etag(self) -> str:
        """An entity tag like those of S3 for files uploaded in parts: it says nothing of the bytes."""
        named = f"{self.rows}{self.count}{self.compressed}".encode(errors="replace")
        return f'"{hashlib.blake2b(named, digest_size=16).hexdigest()}-1"'

    def content(self) -> Content:
        """The file's bytes, ready to be sent; takes up to a second."""
        full, rest = divmod(self.count, ROWS_PER_GROUP)
        texts = [self.rows.group(n, ROWS_PER_GROUP) for n in range(min(full, GROUPS))]
        order = [n % GROUPS for n in range(full)]
        if rest:
            order.append(len(texts))
            texts.append(self.rows.group(full, rest))
        head = self.rows.header()
        if not self.compressed:
            return Content(head, texts, order, b"")
        checksum, size = zlib.crc32(head), len(head)
        for number in order:
            checksum = zlib.crc32(texts[number], checksum)
            size += len(texts[number])
        end = _LAST_BLOCK + checksum.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
        return Content(_GZIP_HEAD + _deflated(head), [_deflated(text) for text in texts], order, end)


class Content:
    """Bytes that are ``head``, the ``parts`` in their ``order``, and ``end``."""

    def __init__(self, head: bytes, parts: list[bytes], order: list[int], end: bytes) -> None:
        self._head = head
        self._parts = parts
        self._order = order
        self._end = end
        self.size = len(head) + sum(len(parts[number]) for number in order) + len(end)

    def pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from ``start`` to before ``stop``."""
        at = 0
        for whole in self._whole():
            if at >= stop:
                return
            if at + len(whole) > start:
                yield memoryview(whole)[max(0, start - at) : stop - at]
            at += len(whole)

    def _whole(self) -> Iterator[bytes]:
        yield self._head
        yield from (self._parts[number] for number in self._order)
        yield self._end


def shares(total: int, files: int) -> list[int]:
    """``total`` rows divided between ``files`` files, as evenly as possible."""
    bounds = [total * number // files for number in range(files + 1)]
    return [last - first for first, last in pairwise(bounds)]


def _deflated(text: bytes) -> bytes:
    """Compressed, with an end at a byte, and without a use of what stands before (RFC 1951)."""
    if not text:
        return b""
    packer = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)
