"""A second parser of HTTP/1.1 messages to compare with: slow, strict, and independent of the proxy's parser.

It follows RFC 9112 to the letter, except where this gateway is more tolerant on purpose: in targets, bytes
above 0x7f and characters that URIs exclude; any text in chunk extensions. A message that two programs could
read in two ways is malformed, and so is a length that no content has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([0-9])")
STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})( [\t\x20-\x7e\x80-\xff]*)?")
BARE_LF = re.compile(rb"(?<!\r)\n")
TEXT = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
CHUNK_SIZE = re.compile(rb"0{0,241}([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
CODING = b"transfer-encoding"
LENGTH = b"content-length"
NOT_IN_TRAILERS = {CODING, LENGTH, b"connection", b"host", b"te", b"expect", b"max-forwards"}


class Malformed(Exception):
    """There is not exactly one way to read the message."""


@dataclass
class Parsed:
    """A whole message; ``size`` is how many bytes of the input it took, with the empty lines before it."""

    start: bytes
    minor: int
    lines: list[bytes]
    method: bytes = b""
    target: bytes = b""
    status: int = 0
    content: bytes = b""
    trailers: list[bytes] = field(default_factory=list)
    framing: str = "none"
    size: int = 0
    keep_alive: bool = True

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields with this lower-case name."""
        return values_of(self.lines, name)

    @property
    def names(self) -> list[bytes]:
        """All field names, in lower case."""
        return [line.partition(b":")[0].lower() for line in self.lines]


def values_of(lines: list[bytes], name: bytes) -> list[bytes]:
    """The values of the fields among ``lines`` with this lower-case name."""
    pairs = (line.partition(b":") for line in lines)
    return [value.strip(b" \t") for key, _, value in pairs if key.lower() == name]


def options(lines: list[bytes], name: bytes) -> set[bytes]:
    """The members of a list field, in lower case."""
    return {item.strip(b" \t").lower() for value in values_of(lines, name) for item in value.split(b",")} - {
        b""
    }


def parse_request(data: bytes, *, max_size: int = 1 << 30) -> Parsed | None:
    """The first request in ``data``, None where it is incomplete. Raises Malformed."""
    at = 0
    while data.startswith(b"\r\n", at):
        at += 2
    end = data.find(b"\r\n\r\n", at)
    if end < 0:
        _check_part(data[at:])
        return None
    first, *lines = data[at:end].split(b"\r\n")
    match = REQUEST_LINE.fullmatch(first)
    if match is None:
        raise Malformed("request line")
    _check_fields(lines)
    parsed = Parsed(first, min(int(match[3]), 1), lines, method=match[1], target=match[2])
    if len(parsed.values(b"host")) > 1 or (parsed.minor and not parsed.values(b"host")):
        raise Malformed("Host")
    _keep_alive(parsed)
    return _with_body(parsed, data, end + 4, bodyless=not _frame(parsed), closed=False, max_size=max_size)


def parse_response(data: bytes, method: bytes, *, closed: bool) -> Parsed | None:
    """The first answer in ``data``, interim answers included, None where it is incomplete.

    ``method`` is that of the request; ``closed`` means that a FIN came after ``data``. Raises Malformed.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        _check_part(data)
        return None
    first, *lines = data[:end].split(b"\r\n")
    match = STATUS_LINE.fullmatch(first)
    if match is None:
        raise Malformed("status line")
    _check_fields(lines)
    parsed = Parsed(first, min(int(match[1]), 1), lines, status=int(match[2]))
    if parsed.status == 101:
        raise Malformed("a switch of protocols that nobody asked for")
    _keep_alive(parsed)
    framed = _frame(parsed)
    bodyless = parsed.status < 200 or parsed.status in (204, 304) or method == b"HEAD"
    if not framed and not bodyless:
        parsed.framing, parsed.keep_alive = "close", False
        parsed.content, parsed.size = data[end + 4 :], len(data)
        return parsed if closed else None
    return _with_body(parsed, data, end + 4, bodyless=bodyless, closed=closed, max_size=1 << 30)


def _check_part(head: bytes) -> None:
    if BARE_LF.search(head):
        raise Malformed("a bare LF in the head")


def _check_fields(lines: list[bytes]) -> None:
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or TOKEN.fullmatch(name) is None or TEXT.fullmatch(value) is None:
            raise Malformed("field line")


def _keep_alive(parsed: Parsed) -> None:
    connection = options(parsed.lines, b"connection")
    parsed.keep_alive = b"close" not in connection and (parsed.minor == 1 or b"keep-alive" in connection)


def _frame(parsed: Parsed) -> bool:
    """Decide the framing; whether the message has content."""
    codings, lengths = parsed.values(CODING), parsed.values(LENGTH)
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked" or not parsed.minor:
            raise Malformed("Transfer-Encoding")
        parsed.framing = "chunked"
    elif lengths:
        if len(lengths) > 1 or re.fullmatch(rb"[0-9]{1,18}", lengths[0]) is None:
            raise Malformed("Content-Length")
        parsed.framing = "length"
    return bool(codings or lengths)


def _with_body(
    parsed: Parsed, data: bytes, at: int, *, bodyless: bool, closed: bool, max_size: int
) -> Parsed | None:
    if bodyless:
        parsed.size = at
    elif parsed.framing == "length":
        length = int(parsed.values(LENGTH)[0])
        if length > max_size or len(data) < at + length:
            return None
        parsed.content, parsed.size = data[at : at + length], at + length
    elif not _unchunk(parsed, data, at):
        return None
    return parsed


def _unchunk(parsed: Parsed, data: bytes, at: int) -> bool:
    """Remove the chunked framing; whether the content is complete."""
    while True:
        line, at = _line(data, at)
        if line is None:
            return False
        match = CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Malformed("chunk size")
        size = int(match[1], 16)
        if not size:
            break
        parsed.content += data[at : at + size]
        at += size
        if data[at : at + 2] != b"\r\n":
            if b"\r\n".startswith(data[at : at + 2]):
                return False
            raise Malformed("chunk end")
        at += 2
    while True:
        line, at = _line(data, at)
        if line is None:
            return False
        if not line:
            parsed.size = at
            return True
        _check_fields([line])
        if line.partition(b":")[0].lower() in NOT_IN_TRAILERS:
            raise Malformed("a field of the head among the trailers")
        parsed.trailers.append(line)


def _line(data: bytes, at: int) -> tuple[bytes | None, int]:
    end = data.find(b"\r\n", at)
    return (None, at) if end < 0 else (data[at:end], end + 2)
