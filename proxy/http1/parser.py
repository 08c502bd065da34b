"""Parses the heads of requests and answers (RFC 9112), strictly.

This is the trust boundary: a head that two programs could read in two ways is refused here, in both
directions, and framing is decided from parsed fields only. Must not know sockets, leases or aiohttp. Pure,
apart from the status lines of earlier answers, which are kept.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.errors import (
    BadRequest,
    FieldsTooLarge,
    NotImplementedCoding,
    ProtocolViolation,
    TargetTooLong,
    VersionNotSupported,
)
from proxy.http1.fields import (
    MAX_FIELDS,
    TOKEN,
    FieldNames,
    SyntaxFault,
    has_bare_break,
    parse_fields,
    split_lines,
)
from proxy.http1.heads import FieldSection, RequestHead, ResponseHead

MAX_HEAD_BYTES: Final = 128 * 1024
MAX_LINE_BYTES: Final = 40 * 1024
"""The most bytes of a request target or of one field line: signed URLs and JWTs of 32 KiB fit."""
MAX_METHOD_BYTES: Final = 512

_COMMON_METHODS: Final = frozenset((b"GET", b"POST", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_FOR_TARGETS: Final = bytes(byte if byte > 0x20 and byte != 0x7F else ord("?") for byte in range(0x100))
"""A table for `bytes.translate` that changes exactly the bytes that a target must not hold."""
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]\Z")
_VERSIONS: Final = {b"HTTP/1.0": 0, **{b"HTTP/1.%d" % minor: 1 for minor in range(1, 10)}}
"""The minor version by which a message is read: a later one is read as 1.1 (RFC 9110, section 2.5)."""
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_STATUS_LINE_START: Final = b"HTTP/1."
_TOO_LONG: Final = f"the answer's head is longer than {MAX_HEAD_BYTES} bytes"


def _check_line_breaks(part: bytes, start: int) -> None:
    if has_bare_break(part, start):
        raise SyntaxFault("a bare CR or LF in the head")


def _check_first_line(is_possible: bool, name: str) -> None:
    if not is_possible:
        raise SyntaxFault(f"a malformed {name}")


def check_request_start(part: bytes, start: int) -> None:
    """Raise what `parse_request_head` raises if ``part`` can't be the beginning of a request head.

    The first ``start`` bytes were checked before. A caller that speaks TLS or HTTP/0.9, or ends its lines
    with a bare LF, gets an answer at once and not after a time-out.
    """
    end = part.find(b"\r\n")
    try:
        _check_line_breaks(part, start)
        if end >= 0 and start <= end + 1:
            _parse_request_line(part[:end])
        elif not start:
            _check_first_line(TOKEN.match(part[:1]) is not None, "request line")
    except SyntaxFault as exc:
        raise _bad_request(exc) from None
    if (end if end >= 0 else len(part)) > MAX_LINE_BYTES:
        raise TargetTooLong(f"The request line is longer than {MAX_LINE_BYTES} bytes.")
    if len(part) > MAX_HEAD_BYTES:
        raise FieldsTooLarge(f"The request head is longer than {MAX_HEAD_BYTES} bytes.")


def check_response_start(part: bytes, start: int) -> None:
    """Raise ProtocolViolation if ``part`` can't be the beginning of a response head.

    The first ``start`` bytes were checked before.
    """
    try:
        _check_line_breaks(part, start)
        is_possible = part[: len(_STATUS_LINE_START)] == _STATUS_LINE_START[: len(part)]
        _check_first_line(is_possible, "status line")
    except SyntaxFault as exc:
        raise ProtocolViolation(f"the answer holds {exc}") from None
    if len(part) > MAX_HEAD_BYTES:
        raise ProtocolViolation(_TOO_LONG)


def parse_request_head(head: bytes, before: FieldSection | None = None) -> RequestHead:
    """Parse a request head, given without its final empty line.

    ``before`` is an earlier section, such as that of the last request on the connection. If the bytes of
    the section are the same, the result shares it; if only the names are, the result shares the names.
    Raises BadRequest (or TargetTooLong, FieldsTooLarge, NotImplementedCoding, VersionNotSupported) on a
    head that RFC 9112 forbids, sections 2.2, 3, 5 and 6.
    """
    try:
        line, _, raw = head.partition(b"\r\n")
        method, target, minor = _parse_request_line(line)
        if before is not None and before.raw == raw and before.minor == minor:
            return RequestHead(method, target, before)
        names = None if before is None else before.fields.names
        return RequestHead(method, target, _field_section(head, raw, minor, names))
    except SyntaxFault as exc:
        raise _bad_request(exc) from None


def _bad_request(why: SyntaxFault) -> BadRequest:
    return BadRequest(f"The request holds {why}; it was not forwarded.")


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """The method, the target, and the minor version."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise SyntaxFault("a malformed request line")
    method, target, version = parts
    is_token = method in _COMMON_METHODS or TOKEN.match(method)
    if not is_token or not target or target.translate(_FOR_TARGETS) != target:
        raise SyntaxFault("a malformed request line")
    minor = _VERSIONS.get(version)
    if minor is None:
        if not _VERSION.match(version):
            raise SyntaxFault("a malformed request line")
        raise VersionNotSupported("Only HTTP/1.x is spoken here.")
    if len(line) > MAX_METHOD_BYTES and (len(target) > MAX_LINE_BYTES or len(method) > MAX_METHOD_BYTES):
        raise TargetTooLong(
            f"The request target is longer than {MAX_LINE_BYTES} bytes, or the method is too long."
        )
    return method, target, minor


def _field_section(head: bytes, raw: bytes, minor: int, before: FieldNames | None) -> FieldSection:
    lines = split_lines(head)
    if len(head) > MAX_HEAD_BYTES:
        raise FieldsTooLarge(f"The request head is longer than {MAX_HEAD_BYTES} bytes.")
    if len(lines) > MAX_FIELDS:
        raise FieldsTooLarge(f"The request has more than {MAX_FIELDS} fields.")
    if len(raw) > MAX_LINE_BYTES and max(map(len, lines[1:])) > MAX_LINE_BYTES:
        raise FieldsTooLarge(f"A request field is longer than {MAX_LINE_BYTES} bytes.")
    parsed = FieldSection(raw, parse_fields(head, lines, before), minor)
    fields = parsed.fields
    parsed.hosts = fields.values(b"host")
    parsed.content_length = fields.content_length()
    transfer_codings = fields.values(b"transfer-encoding")
    connection = fields.members(b"connection")
    parsed.expects_continue = minor == 1 and any(
        value.lower() == b"100-continue" for value in fields.values(b"expect")
    )
    parsed.wants_trailers = b"trailers" in fields.members(b"te")
    if len(parsed.hosts) != 1 and (minor == 1 or parsed.hosts):
        raise SyntaxFault("no Host, or several")
    parsed.connection = connection
    parsed.chunked = bool(transfer_codings) and _is_chunked_request(parsed, transfer_codings)
    parsed.keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    return parsed


def _is_chunked_request(parsed: FieldSection, codings: list[bytes]) -> bool:
    if parsed.content_length is not None:
        raise SyntaxFault("Content-Length and Transfer-Encoding together")
    if parsed.minor == 0:
        raise SyntaxFault("Transfer-Encoding in HTTP/1.0")
    if len(codings) == 1 and codings[0].lower() == b"chunked":
        return True
    *others, last = [coding.strip(b" \t").lower() for coding in b",".join(codings).split(b",")]
    if last != b"chunked":  # RFC 9112, section 6.3: the end of the content can't be told
        raise SyntaxFault("a Transfer-Encoding whose last coding is not chunked")
    if last in others:  # section 6.1
        raise SyntaxFault("chunked twice in Transfer-Encoding")
    if not all(TOKEN.match(coding.partition(b";")[0].rstrip(b" \t")) for coding in others):
        raise SyntaxFault("a Transfer-Encoding that is no list of codings")
    raise NotImplementedCoding("The only transfer coding spoken here is chunked.")


def parse_response_head(head: bytes, before: FieldNames | None = None) -> ResponseHead:
    """Parse a response head, given without its final empty line.

    ``before`` are the names in an earlier head: if this head has the same names, it shares them. Raises
    ProtocolViolation on a head that RFC 9112 forbids or that can be read in two ways; the message names the
    reason and holds no bytes of the head.
    """
    if len(head) > MAX_HEAD_BYTES:
        raise ProtocolViolation(_TOO_LONG)
    try:
        lines = split_lines(head)
        if len(lines) > MAX_FIELDS:
            raise SyntaxFault(f"more than {MAX_FIELDS} fields")  # noqa: TRY301 - a call takes longer
        line = lines[0]
        minor, status, status_line = _status_lines.get(line) or _parse_status_line(line)
        fields = parse_fields(head, lines, before)
        parsed = ResponseHead(status, status_line, minor, fields)
        parsed.content_length = fields.content_length()
        if b"transfer-encoding" in fields.names.places:
            _check_response_codings(parsed, fields.values(b"transfer-encoding"))
            parsed.chunked = True
        parsed.connection = connection = fields.members(b"connection")
        parsed.keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    except SyntaxFault as exc:
        raise ProtocolViolation(f"the answer holds {exc}") from None
    return parsed


_status_lines: Final[dict[bytes, tuple[int, int, bytes]]] = {}
"""What `_parse_status_line` has found; bounded, because the cloud chooses the lines."""
_STATUS_LINES_LIMIT: Final = 256


def _parse_status_line(line: bytes) -> tuple[int, int, bytes]:
    """The minor version, the status, and the line to send on."""
    match = _STATUS_LINE.match(line)
    if match is None:
        raise SyntaxFault("a malformed status line")
    # RFC 9112, section 4: the space stays where the reason is missing
    to_send = b"HTTP/1.1 " + line[9:] + (b" " if len(line) == 12 else b"")
    parsed = (min(int(match[1]), 1), int(match[2]), to_send)
    if len(_status_lines) < _STATUS_LINES_LIMIT and len(line) <= 64:
        _status_lines[line] = parsed
    return parsed


def _check_response_codings(parsed: ResponseHead, codings: list[bytes]) -> None:
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        raise SyntaxFault("a Transfer-Encoding other than chunked")
    if parsed.content_length is not None:
        raise SyntaxFault("Content-Length and Transfer-Encoding together")
    if parsed.minor == 0:
        raise SyntaxFault("Transfer-Encoding in HTTP/1.0")
