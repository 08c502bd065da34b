"""The storage of export files: what is known of a file, and its bytes.

A file's URL is signed, and is all that its storage gets: no token, key, cookie or field of a caller goes
there. A presigned URL allows GET alone, so a file is looked at by a GET of its first bytes. Hides that a
download that breaks goes on where it broke, as long as the file is the same.
Sources: RFC 9110, sections 13 and 14; Amazon S3's and Azure's behaviour, as the tests show it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from proxy import __version__
from proxy.errors import ConnectionLost, LoopDetected, ProtocolViolation, UpstreamError
from proxy.gateway.exports.rules import place_of
from proxy.http1 import ResponseHead, parse_date
from proxy.origin import Origin
from proxy.upstream.download import Download
from proxy.upstream.pool import Upstreams

FIRST_BYTES: Final = 16
"""A look asks for so many."""
TRIES: Final = 4
"""How often a part of a file is asked for, before a download that breaks again and again is given up."""
PAUSE_S: Final = 0.25
ENOUGH_BYTES: Final = 1 << 20
"""A download that got so far since it broke has all its tries again."""
_GZIP: Final = b"\x1f\x8b"
_CONTENT_RANGE: Final = re.compile(rb"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)\Z")
_MOST_OF_ERROR: Final = 4096
_ANOTHER_PART: Final = "the storage sent other bytes of the file than were asked for"


Pieces = AsyncGenerator[bytes, None]
"""A content, piece by piece; never empty pieces. Close it where it isn't read to its end."""


class StorageRefused(Exception):
    """The storage answered, but not with the file. ``text`` is the beginning of its error."""

    def __init__(self, host: str, status: int, text: bytes) -> None:
        super().__init__(f"the storage {host} answered {status}")
        self.status = status
        self.says_expired = b"xpired" in text

    @property
    def may_be_gone(self) -> bool:
        """Whether the file may be there no more, or its URL be out of date."""
        return self.status in (403, 404, 410, 412) or self.says_expired


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as its storage showed it. ``target`` is the secret part of its URL.

    ``size`` None: not told. ``etag`` is a strong one, b"" where there is none. ``modified`` is in seconds
    since 1970, None: not told. ``takes_ranges``: whether the storage sends a part of it.
    """

    origin: Origin
    target: bytes
    size: int | None
    etag: bytes
    modified: float | None
    is_gzip: bool
    takes_ranges: bool

    @property
    def path(self) -> bytes:
        """The target without the signature."""
        return self.target.partition(b"?")[0]

    def __repr__(self) -> str:
        return f"<StoredFile on {self.origin}, {self.size} bytes>"


class Storage:
    """Fetches files whose host is in ``allowed``, over the connections of ``upstreams``."""

    def __init__(self, upstreams: Upstreams, allowed: Sequence[str]) -> None:
        self._upstreams = upstreams
        self._allowed = allowed

    async def look(self, url: object) -> StoredFile:
        """What the storage tells of a file. Raises StorageRefused, UpstreamError, UpstreamUnreachable."""
        origin, target = place_of(url, self._allowed)
        async with self._opened(origin, target, b"Range: bytes=0-%d\r\n" % (FIRST_BYTES - 1)) as opened:
            download, head = opened
            if head.status == 416:  # the file has no byte at all
                size: int | None = 0
                first = b""
            else:
                size = _total(head) if head.status == 206 else head.content_length
                first = await _first(download)
            etag = head.fields.only(b"etag") or b""
            return StoredFile(
                origin,
                target,
                size,
                b"" if etag.startswith(b"W/") else etag,
                parse_date(head.fields.only(b"last-modified") or b""),
                first.startswith(_GZIP),
                takes_ranges=head.status == 206,
            )

    async def pieces(self, file: StoredFile, start: int = 0, stop: int | None = None) -> Pieces:
        """The bytes of a file from ``start`` on; to ``stop``, or to its end.

        Raises StorageRefused, or UpstreamError where they can't be had; never ends too early.
        """
        at, stop, tries = start, file.size if stop is None else stop, 0
        counts_from = at
        while stop is None or at < stop:
            failure: UpstreamError | None = None
            try:
                async with self._opened(file.origin, file.target, _part(file, at, stop)) as (download, head):
                    _check_part(file, head, at, stop)
                    while piece := await download.read():
                        at += len(piece)
                        if stop is not None and at > stop:
                            raise ProtocolViolation(_ANOTHER_PART)
                        yield piece
                if stop is None or at == stop:
                    return
                failure = ConnectionLost(f"the storage sent {at} bytes of {stop}")
            except UpstreamError as error:
                failure = error
            if at - counts_from >= ENOUGH_BYTES:
                tries, counts_from = 0, at
            tries += 1
            if tries >= TRIES or not _can_go_on(file, failure, at):
                raise failure
            await asyncio.sleep(PAUSE_S * tries)

    @contextlib.asynccontextmanager
    async def _opened(
        self, origin: Origin, target: bytes, fields: bytes
    ) -> AsyncIterator[tuple[Download, ResponseHead]]:
        """A download whose answer is 200, 206, or 416 for an empty file."""
        download = Download(self._upstreams.pool(origin))
        try:
            head = await download.open(_request(origin, target, fields))
            is_empty = head.status == 416 and _total(head) == 0
            if head.status not in (200, 206) and not is_empty:
                raise StorageRefused(origin.host, head.status, await _error_text(download))
            yield download, head
        finally:
            download.close()


def _request(origin: Origin, target: bytes, fields: bytes) -> bytes:
    """A request's head. The storage must not pack the content once more, so it may use no coding."""
    return (
        b"GET %b HTTP/1.1\r\nHost: %b\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"
        b"User-Agent: csq-proxy/%b\r\n%b\r\n"
        % (target, origin.authority.encode(), __version__.encode(), fields)
    )


def _part(file: StoredFile, at: int, stop: int | None) -> bytes:
    """The fields that ask for a part of a file, and only as long as it is the same file."""
    fields = b""
    if file.etag:
        fields += b"If-Match: %b\r\n" % file.etag
    if at or (stop is not None and stop != file.size):
        fields += b"Range: bytes=%d-%b\r\n" % (at, b"" if stop is None else b"%d" % (stop - 1))
    return fields


def _check_part(file: StoredFile, head: ResponseHead, at: int, stop: int | None) -> None:
    """Raise ProtocolViolation where an answer has other bytes than those that were asked for."""
    if head.status == 206:
        match = _CONTENT_RANGE.match(head.fields.only(b"content-range") or b"")
        is_right = match is not None and match[1] is not None and int(match[1]) == at
    else:
        is_right = at == 0 and (stop is None or stop == file.size)
    length = head.content_length
    if not is_right or (stop is not None and length is not None and length != stop - at):
        raise ProtocolViolation(_ANOTHER_PART)


def _can_go_on(file: StoredFile, failure: UpstreamError, at: int) -> bool:
    """Whether another try may help, and can't mix two versions of a file."""
    if isinstance(failure, ProtocolViolation | LoopDetected):
        return False
    return at == 0 or bool(file.takes_ranges and file.etag)


def _total(head: ResponseHead) -> int | None:
    """The size of the whole file by ``Content-Range``; None where it isn't told."""
    match = _CONTENT_RANGE.match(head.fields.only(b"content-range") or b"")
    return None if match is None or match[3] == b"*" else int(match[3])


async def _first(download: Download) -> bytes:
    """The first bytes of a file, as many as a look asks for; the connection is free after a 206."""
    first = b""
    while piece := await download.read():
        first += piece
        if len(first) > FIRST_BYTES:  # the storage sends all of the file
            break
    return first


async def _error_text(download: Download) -> bytes:
    text = b""
    with contextlib.suppress(UpstreamError):
        while len(text) < _MOST_OF_ERROR and (piece := await download.read()):
            text += piece
    return text
