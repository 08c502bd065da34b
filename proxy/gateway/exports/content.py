"""An export's content in the form that a caller asks for: its bytes and, where it is known, its length.

A single file that its storage has in the asked-for form is passed on: the storage tells its length, and sends
its parts. Each other content is made: unpacked, joined or packed. Its length is known once it is made, so
where a caller needs the length, the content is made once into a temporary file, a `Spool`.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Final, Protocol

from proxy.blocking import in_thread
from proxy.gateway.exports.storage import Pieces, Storage, StoredFile
from proxy.gateway.exports.text import joined, packed, unpacked

READ_BYTES: Final = 512 * 1024
"""Bytes that are read of a temporary file at once."""


class Content(Protocol):
    """``length`` None: not known before the end; ``takes_ranges``: whether `pieces` can give a part."""

    @property
    def length(self) -> int | None:
        """In bytes."""
        ...

    @property
    def takes_ranges(self) -> bool:
        """As above."""
        ...

    def pieces(self, part: range | None) -> Pieces:
        """The bytes of a part; None: all of them. Never ends too early."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A single file as its storage has it, whose size is known."""

    storage: Storage
    file: StoredFile

    @property
    def length(self) -> int | None:
        """The file's size."""
        return self.file.size

    @property
    def takes_ranges(self) -> bool:
        """Whether the storage sends a part of it."""
        return self.file.takes_ranges

    def pieces(self, part: range | None) -> Pieces:
        """The bytes as the storage sends them."""
        if part is None:
            return self.storage.pieces(self.file)
        return self.storage.pieces(self.file, part.start, part.stop)


@dataclass(frozen=True, slots=True)
class Made:
    """The text of all files, one after the other; packed where ``is_gzip``."""

    storage: Storage
    files: Sequence[StoredFile]
    is_csv: bool
    is_gzip: bool
    length: int | None = None
    takes_ranges: bool = False

    def pieces(self, part: range | None) -> Pieces:  # noqa: ARG002 - only the whole is made
        """The bytes as they are made."""
        text = joined([self._text(file) for file in self.files], is_csv=self.is_csv)
        return packed(text) if self.is_gzip else text

    def _text(self, file: StoredFile) -> Pieces:
        pieces = self.storage.pieces(file)
        return unpacked(pieces) if file.is_gzip else pieces


class Spools:
    """The temporary files, which hold no more than ``limit`` bytes together."""

    def __init__(self) -> None:
        self.limit = 0
        self.used = 0

    async def make(self, content: Content) -> Spool | None:
        """The content in a temporary file; None where it has no room. Raises what ``content`` does."""
        opening: asyncio.Future[IO[bytes]] = in_thread(tempfile.TemporaryFile)
        try:
            await asyncio.wait((opening,))  # not asyncio.shield: see `proxy.upstream.dns`
            spool = Spool(self, opening.result())
        except OSError:  # no folder to write to, or no file descriptor is left
            return None
        except asyncio.CancelledError:
            opening.add_done_callback(_close)  # the file is on its way
            raise
        try:
            async with contextlib.aclosing(content.pieces(None)) as pieces:
                async for piece in pieces:
                    if self.used + len(piece) > self.limit or not await spool.append(piece):
                        spool.close()
                        return None
        except BaseException:
            spool.close()
            raise
        return spool


def _close(opened: asyncio.Future[IO[bytes]]) -> None:
    if not opened.exception():
        opened.result().close()


class Spool:
    """A content in a temporary file that has no name, or loses it with the process."""

    takes_ranges = True

    def __init__(self, spools: Spools, file: IO[bytes]) -> None:
        self._spools = spools
        self._file = file
        self._lock = threading.Lock()
        self._readers = 0
        self._is_closed = False
        self.length: int | None = 0

    async def append(self, piece: bytes) -> bool:
        """Write more content; False where the disk is full."""
        self._spools.used += len(piece)
        self.length = (self.length or 0) + len(piece)
        try:
            await in_thread(lambda: self._write(piece))
        except OSError:
            return False
        return True

    async def pieces(self, part: range | None) -> Pieces:
        """The bytes of a part, or all of them. The file stays until the last reader has ended."""
        part = range(self.length or 0) if part is None else part
        self._readers += 1
        try:
            for at in range(part.start, part.stop, READ_BYTES):
                size = min(READ_BYTES, part.stop - at)
                yield await in_thread(lambda at=at, size=size: self._read(at, size))  # type: ignore[misc]
        finally:
            self._readers -= 1
            self._close_unread()

    def _write(self, piece: bytes) -> None:
        with self._lock:
            self._file.write(piece)

    def _read(self, at: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(at)
            return self._file.read(size)

    def close(self) -> None:
        """Delete the file, as soon as no reader needs it."""
        self._is_closed = True
        self._close_unread()

    def _close_unread(self) -> None:
        if self._is_closed and not self._readers:
            self._spools.used -= self.length or 0
            self.length = 0
            with self._lock:
                self._file.close()
