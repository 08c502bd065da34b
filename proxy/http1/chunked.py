"""Chunked framing (RFC 9112, section 7.1), strictly: decoded as bytes arrive, and encoded.

Pure; used in both directions.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import ProtocolViolation
from proxy.http1.fields import MAX_FIELDS, Field, has_bare_break, parse_trailers

MAX_CHUNK_LINE_BYTES: Final = 4 * 1024
MAX_TRAILER_BYTES: Final = 16 * 1024

_CHUNK_LINE: Final = re.compile(rb"(0{0,241}[0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\Z")
"""A size has at most 256 digits; all but the last 15 are leading zeros, which RFC 9112 does not limit."""
_NEXT_CHUNK: Final = re.compile(
    rb"\r\n0{0,64}+([1-9A-Fa-f][0-9A-Fa-f]{0,14})(?:[ \t]{0,64}+;[\t\x20-\x7e\x80-\xff]{0,64}+)?+\r\n"
)
"""The end of a chunk and the line of the next one, where that is short and not the last chunk's."""
_SHORT_SIZES: Final = {
    b"%b%b" % (first, second): int(first + second, 16)
    for first in (b"%c" % code for code in b"123456789abcdefABCDEF")
    for second in (b"", *(b"%c" % code for code in b"0123456789abcdefABCDEF"))
}
"""Sizes under 256: many of them fit into one read, and `int` takes a third of a chunk's time."""
_CR: Final = 0x0D

_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILER: Final = 3


def _line_end(data: bytes, pos: int) -> int:
    """Where the line that starts at ``pos`` ends; -1 where its end is missing. Raises ProtocolViolation."""
    end = data.find(b"\r\n", pos)
    if end < 0 and has_bare_break(data, pos):
        raise ProtocolViolation("a bare CR or LF in the chunked framing")
    return end


def _take_chunks(data: bytes, pos: int, pieces: list[bytes]) -> int:
    """Add the chunks that are whole in ``data`` to ``pieces``; ``pos`` is the end of a chunk's content.

    Returns the end of the last chunk's content. There may be 10,000 chunks in a read of 64 KiB.
    """
    size = len(data)
    while (line := _NEXT_CHUNK.match(data, pos)) is not None:
        digits = line[1]
        start = line.end()
        end = start + (_SHORT_SIZES.get(digits) or int(digits, 16))
        if end >= size:
            break
        pieces.append(data[start:end])
        pos = end
    return pos


class ChunkedDecoder:
    """Removes chunked framing as bytes arrive.

    When ``feed`` has set ``done``, ``trailers`` holds the trailer fields and ``rest`` the bytes after the
    end of the message.
    """

    __slots__ = (
        "_left",
        "_pending",
        "_state",
        "_trailer_bytes",
        "_trailer_lines",
        "done",
        "rest",
        "trailers",
    )

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        self._pending = b""
        self._trailer_lines: list[bytes] = []
        self._trailer_bytes = 0
        self.trailers: list[Field] = []
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The content bytes in ``data``. Raises ProtocolViolation on malformed framing."""
        if self._state == _DATA and len(data) < self._left:
            self._left -= len(data)
            return data
        if self._pending:
            data = self._pending + data
            self._pending = b""
        pieces: list[bytes] = []
        pos, size = 0, len(data)
        while pos < size and not self.done:
            if self._state == _DATA:
                taken = data[pos : pos + self._left]
                pieces.append(taken)
                pos += len(taken)
                self._left -= len(taken)
                if not self._left:
                    self._state = _DATA_END
            elif self._state == _DATA_END:
                pos = _take_chunks(data, pos, pieces)
                if size - pos == 1 and data[pos] == _CR:
                    break
                if data[pos : pos + 2] != b"\r\n":
                    raise ProtocolViolation("a chunk does not end where its size says")
                pos += 2
                self._state = _SIZE
            else:
                end = _line_end(data, pos)
                if end < 0:
                    break
                self._line(data[pos:end])
                pos = end + 2
        if self.done:
            self.rest = data[pos:]
        elif pos < size:
            self._pending = data[pos:]
            if len(self._pending) > (MAX_TRAILER_BYTES if self._state == _TRAILER else MAX_CHUNK_LINE_BYTES):
                raise ProtocolViolation("a chunk-size or trailer line is too long")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if self._state == _SIZE:
            match = _CHUNK_LINE.match(line)
            if match is None or len(line) > MAX_CHUNK_LINE_BYTES:
                raise ProtocolViolation("a malformed chunk size")
            self._left = int(match[1], 16)
            self._state = _DATA if self._left else _TRAILER
        elif line:
            if b"\n" in line or b"\r" in line:
                raise ProtocolViolation("a bare CR or LF in the trailer section")
            self._trailer_lines.append(line)
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES or len(self._trailer_lines) > MAX_FIELDS:
                raise ProtocolViolation("the trailer section is too large")
        else:
            self._finish()

    def _finish(self) -> None:
        self.done = True
        if self._trailer_lines:
            self.trailers = parse_trailers(self._trailer_lines)


def chunk(data: bytes) -> bytes:
    """``data`` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: list[Field]) -> bytes:
    """The end of a chunked message, with its trailer section."""
    return b"".join((b"0\r\n", *(field.line + b"\r\n" for field in trailers), b"\r\n"))
