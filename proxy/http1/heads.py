"""HTTP/1.1 message syntax (RFC 9112), strictly, for requests and responses alike.

This is the trust boundary: whatever two programs could read in two ways is refused here, in
both directions, and framing is decided from parsed fields only. Pure but for what it remembers of
names and status lines seen before; knows nothing of sockets, leases or aiohttp. Field lines are kept
as the bytes that came, so that they can be sent on unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from functools import lru_cache
from itertools import compress, product
from typing import Final, NamedTuple

from proxy.errors import (
    BadRequest,
    FieldsTooLarge,
    NotImplementedCoding,
    ProtocolViolation,
    TargetTooLong,
    VersionNotSupported,
)

MAX_HEAD_BYTES: Final = 128 * 1024
MAX_LINE_BYTES: Final = 40 * 1024
"""Of a request target or one field line: signed URLs and JWTs of 32 KiB fit."""
MAX_METHOD_BYTES: Final = 512
MAX_FIELDS: Final = 512

_TCHAR: Final = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_TOKEN: Final = re.compile(rb"[" + _TCHAR + rb"]+\Z")
_FIELD_NAME: Final = re.compile(rb"\n([" + _TCHAR + rb"]+):")
_COMMON_METHODS: Final = frozenset((b"GET", b"POST", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_FOR_TARGETS: Final = bytes(byte if byte > 0x20 and byte != 0x7F else ord("?") for byte in range(0x100))
"""A table to translate by: what a target may hold stays as it is, and nothing else does."""
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]\Z")
_VERSIONS: Final = {b"HTTP/1.0": 0, b"HTTP/1.1": 1}
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\Z")
_MOST_DIGITS: Final = 18
BARE_BREAK: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_STATUS_LINE_START: Final = b"HTTP/1."
_CONTROLS: Final = bytes(set(range(0x20)) - {0x09}) + b"\x7f"

_FRAMING: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"host", b"expect", b"te")
)


def _spellings(name: bytes) -> Iterator[bytes]:
    """With hyphens or underscores: to CGI and its heirs both are one."""
    first, *others = name.split(b"-")
    for marks in product((b"-", b"_"), repeat=len(others)):
        yield first + b"".join(mark + word for mark, word in zip(marks, others, strict=True))


METHOD_OVERRIDES: Final = frozenset(
    spelling
    for name in (b"x-http-method-override", b"x-http-method", b"x-method-override")
    for spelling in _spellings(name)
)
"""Fields, in lower case, that make some servers take a request for one of another method."""
_NEVER_TRAILERS: Final = _FRAMING | METHOD_OVERRIDES | {b"origin", b"sec-fetch-site", b"max-forwards"}
"""Fields that change what a message means; a trailer section must not hold them (RFC 9110, section 6.5.1)."""
_NO_OPTIONS: Final[frozenset[bytes]] = frozenset()


class Field(NamedTuple):
    """One field line: lower-case ``name`` to compare, ``value`` without outer blanks, ``line`` as it came."""

    name: bytes
    value: bytes
    line: bytes


def _value(name: bytes, line: bytes) -> bytes:
    return line[len(name) + 1 :].strip(b" \t")


def _field(name: bytes, line: bytes) -> Field:
    return Field(name, _value(name, line), line)


class FieldNames:
    """The names of a section's fields, in lower case and their order, and where each of them stands.

    Heads mostly have the names of one before, so they share them, and what was found out about them.
    ``spelt`` are the names as they came, each of them a token.
    """

    __slots__ = ("_kept", "_places", "_starts", "names")

    def __init__(self, spelt: Sequence[bytes]) -> None:
        self.names = [name.lower() for name in spelt]
        self._starts = [name + b":" for name in spelt]
        self._places: dict[bytes, list[int]] = {}
        for place, name in enumerate(self.names):
            self._places.setdefault(name, []).append(place)
        self._kept: dict[frozenset[bytes], list[bool]] = {}

    def are_of(self, lines: list[bytes]) -> bool:
        """Whether these field lines have the same names, spelt in the same way."""
        starts = self._starts
        if len(lines) != len(starts):
            return False
        for place in range(len(lines)):  # noqa: SIM110 - compiled, a loop takes a fifth of a generator
            if not lines[place].startswith(starts[place]):
                return False
        return True

    def places(self, name: bytes) -> list[int]:
        """Where the fields with this name stand."""
        return self._places.get(name, _NOWHERE)

    def kept(self, drop: frozenset[bytes]) -> list[bool]:
        """For each name, whether it is not in ``drop``."""
        kept = self._kept.get(drop)
        if kept is None:
            kept = [name not in drop for name in self.names]
            if _is_small(drop):
                if len(self._kept) >= _MOST_DROPS:
                    self._kept.clear()
                self._kept[drop] = kept
        return kept

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether one of these names is among them."""
        return not names.isdisjoint(self._places)


_NOWHERE: Final[list[int]] = []
_MOST_DROPS: Final = 8
"""Our own few sets, and some that the other side's ``Connection`` adds to."""
_LARGEST_DROP: Final = 32


def _is_small(drop: frozenset[bytes]) -> bool:
    return len(drop) <= _LARGEST_DROP and sum(map(len, drop)) <= _LONGEST_NAMES


class FieldLines:
    """The field lines of a head, in their order: as they came, and with their lower-case names to compare."""

    __slots__ = ("_lines", "names")

    def __init__(self, names: FieldNames, lines: list[bytes]) -> None:
        self.names = names
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Field]:
        for name, line in zip(self.names.names, self._lines, strict=True):
            yield _field(name, line)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldLines) and self._lines == other._lines

    __hash__ = None  # type: ignore[assignment]  # made of lists

    def without(self, drop: frozenset[bytes]) -> list[bytes]:
        """The lines whose names are not in ``drop``."""
        return list(compress(self._lines, self.names.kept(drop)))

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields with this lower-case name, without outer blanks."""
        places = self.names.places(name)
        return [_value(name, self._lines[place]) for place in places] if places else []

    def only(self, name: bytes) -> bytes | None:
        """The value of the one field with this lower-case name; None where there is none, or several."""
        places = self.names.places(name)
        return _value(name, self._lines[places[0]]) if len(places) == 1 else None

    def among(self, names: Container[bytes]) -> list[Field]:
        """The fields with one of these lower-case names."""
        pairs = zip(self.names.names, self._lines, strict=True)
        return [_field(name, line) for name, line in pairs if name in names]

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether there is a field with one of these lower-case names."""
        return self.names.has_any(names)


class FieldSection:
    """What the field lines of a request say; the same bytes say the same, so it can be shared."""

    __slots__ = (
        "chunked",
        "connection",
        "content_length",
        "expects_continue",
        "fields",
        "hosts",
        "keep_alive",
        "minor",
        "raw",
        "to_upstream",
        "wants_trailers",
    )

    def __init__(self, raw: bytes, fields: FieldLines, minor: int) -> None:
        self.raw = raw
        self.fields = fields
        self.minor = minor
        self.hosts: list[bytes] = []
        """The fields that say who calls from where, for which project and API, and by which method indeed."""
        self.connection: frozenset[bytes] = _NO_OPTIONS
        """The lower-case options of ``Connection`` (RFC 9110, section 7.6.1)."""
        self.content_length: int | None = None
        self.chunked = self.expects_continue = self.wants_trailers = False
        self.keep_alive = False
        self.to_upstream: bytes | None = None
        """What of it goes upstream, once that was worked out."""


class RequestHead:
    """A parsed request head; ``chunked`` and ``content_length`` (None where absent) are its framing.

    The attributes beside ``method`` and ``target`` are those of its `FieldSection`.
    """

    __slots__ = (
        "chunked",
        "connection",
        "content_length",
        "expects_continue",
        "fields",
        "hosts",
        "keep_alive",
        "method",
        "minor",
        "section",
        "target",
        "wants_trailers",
    )

    def __init__(self, method: bytes, target: bytes, section: FieldSection) -> None:
        self.method = method
        self.target = target
        self.section = section
        self.minor = section.minor
        self.fields = section.fields
        self.hosts = section.hosts
        self.connection = section.connection
        self.content_length = section.content_length
        self.chunked = section.chunked
        self.keep_alive = section.keep_alive
        self.expects_continue = section.expects_continue
        self.wants_trailers = section.wants_trailers

    @classmethod
    def unreadable(cls) -> RequestHead:
        """Stands for a head that can't be read."""
        return cls(b"", b"", FieldSection(b"", FieldLines(FieldNames([]), []), 1))


class ResponseHead:
    """A parsed response head. ``status_line`` lacks the version: ``200 OK``."""

    __slots__ = (
        "chunked",
        "connection",
        "content_length",
        "fields",
        "keep_alive",
        "minor",
        "status",
        "status_line",
    )

    def __init__(self, status: int, status_line: bytes, minor: int, fields: FieldLines) -> None:
        self.status = status
        self.status_line = status_line
        self.minor = minor
        self.fields = fields
        self.connection: frozenset[bytes] = _NO_OPTIONS
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = False


class _Syntax(Exception):
    """What is wrong with a head, in words."""


def _split_lines(head: bytes) -> list[bytes]:
    lines = head.split(b"\r\n")
    # Every CR and LF must belong to a line break, and there may be no other control character but HTAB.
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * (len(lines) - 1):
        bare = BARE_BREAK.search(head) or head.endswith(b"\r")
        raise _Syntax("a bare CR or LF in the head" if bare else "a control character in the head")
    return lines


_names: Final[dict[tuple[bytes, ...], FieldNames]] = {}
"""Names seen together before, as they were spelt; bounded, since the other side chooses them."""
_NAMES_LIMIT: Final = 256
_LONGEST_NAMES: Final = 2048


def _learn(names: tuple[bytes, ...]) -> FieldNames:
    learnt = FieldNames(names)
    if sum(map(len, names)) <= _LONGEST_NAMES:
        if len(_names) >= _NAMES_LIMIT:
            _names.clear()  # so that nobody can fill it for good; what is common is soon back
        _names[names] = learnt
    return learnt


def _parse_fields(head: bytes, lines: list[bytes], before: FieldNames | None) -> FieldLines:
    """The field lines after the first line of ``head``, which `_split_lines` has taken apart.

    ``before`` are those of the head before on the same connection: they are tried first.
    """
    del lines[0]
    if before is not None and before.are_of(lines):
        return FieldLines(before, lines)
    names = tuple(_FIELD_NAME.findall(head))
    if len(names) != len(lines):
        raise _Syntax(_name_fault(lines))
    return FieldLines(_names.get(names) or _learn(names), lines)


def _name_fault(lines: list[bytes]) -> str:
    for line in lines:
        name, colon, _ = line.partition(b":")
        if line[:1] in (b" ", b"\t"):  # RFC 9112, section 5.2
            return "a folded field line"
        if not colon:
            return "a field line without a colon"
        if not _TOKEN.match(name):
            break
    return "a field name that is not a token"


def _check_line_breaks(part: bytes, start: int) -> None:
    if BARE_BREAK.search(part, max(0, start - 1)):
        raise _Syntax("a bare CR or LF in the head")


def _check_prefix(is_possible: bool, line: str) -> None:
    if not is_possible:
        raise _Syntax(f"a malformed {line}")


def check_request_start(part: bytes, start: int) -> None:
    """Refuse a part of a request head that can't become one; ``start`` bytes of it were seen before.

    Who speaks TLS, HTTP/0.9 or ends lines with a bare LF gets an answer now, not a time-out.
    Raises what `parse_request_head` raises.
    """
    end = part.find(b"\r\n")
    try:
        _check_line_breaks(part, start)
        if end >= 0 and start <= end + 1:
            _parse_request_line(part[:end])
        elif not start:
            _check_prefix(_TOKEN.match(part[:1]) is not None, "request line")
    except _Syntax as exc:
        raise _bad_request(exc) from None
    if (end if end >= 0 else len(part)) > MAX_LINE_BYTES:
        raise TargetTooLong(f"The request line is longer than {MAX_LINE_BYTES} bytes.")
    if len(part) > MAX_HEAD_BYTES:
        raise FieldsTooLarge(f"The request head is longer than {MAX_HEAD_BYTES} bytes.")


def check_response_start(part: bytes, start: int) -> None:
    """Refuse a part of a response head that can't become one; ``start`` bytes of it were seen before.

    Raises ProtocolViolation.
    """
    try:
        _check_line_breaks(part, start)
        _check_prefix(part[: len(_STATUS_LINE_START)] == _STATUS_LINE_START[: len(part)], "status line")
    except _Syntax as exc:
        raise ProtocolViolation(f"the answer holds {exc}") from None
    if len(part) > MAX_HEAD_BYTES:
        raise ProtocolViolation(f"the answer's head is longer than {MAX_HEAD_BYTES} bytes")


def _options(values: list[bytes]) -> frozenset[bytes]:
    """The members of a list field (RFC 9110, section 5.6.1), in lower case."""
    if not values:
        return _NO_OPTIONS
    joined = b",".join(values)
    return _common_members(joined) if len(joined) <= 64 else _members(joined)


def _members(joined: bytes) -> frozenset[bytes]:
    members = joined.lower().split(b",")
    return frozenset(option for member in members if (option := member.strip(b" \t")))


_common_members = lru_cache(128)(_members)


def _content_length(values: list[bytes]) -> int | None:
    if not values:
        return None
    if len(values) > 1:
        raise _Syntax("more than one Content-Length")
    if not values[0].isdigit() or len(values[0]) > _MOST_DIGITS:
        raise _Syntax("a Content-Length that is not a number")
    return int(values[0])


def parse_request_head(head: bytes, before: FieldSection | None = None) -> RequestHead:
    """Parse a request head, given without its final empty line.

    ``before`` is a section that was parsed before, such as that of the connection's last request: if the
    same bytes come again, it is shared, and if the same names come, they are. Raises BadRequest (or
    TargetTooLong, FieldsTooLarge, NotImplementedCoding, VersionNotSupported) on whatever RFC 9112 forbids,
    sections 2.2, 3, 5 and 6.
    """
    try:
        line, _, raw = head.partition(b"\r\n")
        method, target, minor = _parse_request_line(line)
        if before is not None and before.raw == raw and before.minor == minor:
            return RequestHead(method, target, before)
        names = None if before is None else before.fields.names
        return RequestHead(method, target, _field_section(head, raw, minor, names))
    except _Syntax as exc:
        raise _bad_request(exc) from None


def _bad_request(why: _Syntax) -> BadRequest:
    return BadRequest(f"The request holds {why}; it was not forwarded.")


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Method, target, and the minor version."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise _Syntax("a malformed request line")
    method, target, version = parts
    is_token = method in _COMMON_METHODS or _TOKEN.match(method)
    if not is_token or not target or target.translate(_FOR_TARGETS) != target:
        raise _Syntax("a malformed request line")
    minor = _VERSIONS.get(version)
    if minor is None:
        if not _VERSION.match(version):
            raise _Syntax("a malformed request line")
        raise VersionNotSupported("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if len(target) > MAX_LINE_BYTES or len(method) > MAX_METHOD_BYTES:
        raise TargetTooLong(
            f"The request target is longer than {MAX_LINE_BYTES} bytes, or the method is odd."
        )
    return method, target, minor


def _field_section(head: bytes, raw: bytes, minor: int, before: FieldNames | None) -> FieldSection:
    lines = _split_lines(head)
    if len(head) > MAX_HEAD_BYTES:
        raise FieldsTooLarge(f"The request head is longer than {MAX_HEAD_BYTES} bytes.")
    if len(lines) > MAX_FIELDS:
        raise FieldsTooLarge(f"The request has more than {MAX_FIELDS} fields.")
    if len(raw) > MAX_LINE_BYTES and max(map(len, lines[1:])) > MAX_LINE_BYTES:
        raise FieldsTooLarge(f"A request field is longer than {MAX_LINE_BYTES} bytes.")
    parsed = FieldSection(raw, _parse_fields(head, lines, before), minor)
    fields = parsed.fields
    parsed.hosts = fields.values(b"host")
    parsed.content_length = _content_length(fields.values(b"content-length"))
    transfer_codings = fields.values(b"transfer-encoding")
    connection = _options(fields.values(b"connection"))
    parsed.expects_continue = minor == 1 and any(
        value.lower() == b"100-continue" for value in fields.values(b"expect")
    )
    parsed.wants_trailers = b"trailers" in _options(fields.values(b"te"))
    if len(parsed.hosts) != 1 and (minor == 1 or parsed.hosts):
        raise _Syntax("no Host, or several")
    parsed.connection = connection
    parsed.chunked = bool(transfer_codings) and _is_chunked_request(parsed, transfer_codings)
    parsed.keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    return parsed


def _is_chunked_request(parsed: FieldSection, codings: list[bytes]) -> bool:
    if parsed.content_length is not None:
        raise _Syntax("Content-Length and Transfer-Encoding together")
    if parsed.minor == 0:
        raise _Syntax("Transfer-Encoding in HTTP/1.0")
    if len(codings) == 1 and codings[0].lower() == b"chunked":
        return True
    if b"" in codings or len(codings) > 1:
        raise _Syntax("an empty or repeated Transfer-Encoding")
    raise NotImplementedCoding("The only transfer coding spoken here is chunked.")


def parse_response_head(head: bytes, before: FieldNames | None = None) -> ResponseHead:
    """Parse a response head, given without its final empty line.

    ``before`` are the names in one that was parsed before: if the same come again, they are shared.
    Raises ProtocolViolation on whatever RFC 9112 forbids or could be read in two ways: its message
    names the reason and holds nothing of what came.
    """
    try:
        return _response_head(head, before)
    except _Syntax as exc:
        raise ProtocolViolation(f"the answer holds {exc}") from None


def _response_head(head: bytes, before: FieldNames | None) -> ResponseHead:
    lines = _split_lines(head)
    if len(lines) > MAX_FIELDS:
        raise _Syntax(f"more than {MAX_FIELDS} fields")
    minor, status = _status_lines.get(lines[0]) or _parse_status_line(lines[0])
    status_line = lines[0][9:]
    fields = _parse_fields(head, lines, before)
    parsed = ResponseHead(status, status_line, minor, fields)
    parsed.content_length = _content_length(fields.values(b"content-length"))
    transfer_codings = fields.values(b"transfer-encoding")
    if transfer_codings:
        _check_response_codings(parsed, transfer_codings)
        parsed.chunked = True
    parsed.connection = connection = _options(fields.values(b"connection"))
    parsed.keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    return parsed


_status_lines: Final[dict[bytes, tuple[int, int]]] = {}
"""Status lines seen before, as (minor version, status); bounded, since the cloud chooses them."""
_STATUS_LINES_LIMIT: Final = 256


def _parse_status_line(line: bytes) -> tuple[int, int]:
    match = _STATUS_LINE.match(line)
    if match is None:
        raise _Syntax("a malformed status line")
    parsed = (int(match[1]), int(match[2]))
    if len(_status_lines) < _STATUS_LINES_LIMIT and len(line) <= 64:
        _status_lines[line] = parsed
    return parsed


def _check_response_codings(parsed: ResponseHead, codings: list[bytes]) -> None:
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        raise _Syntax("a Transfer-Encoding other than chunked")
    if parsed.content_length is not None:
        raise _Syntax("Content-Length and Transfer-Encoding together")
    if parsed.minor == 0:
        raise _Syntax("Transfer-Encoding in HTTP/1.0")


def parse_trailers(lines: list[bytes]) -> list[Field]:
    """The fields of a trailer section (RFC 9110, section 6.5). Raises ProtocolViolation."""
    try:
        section = b"\r\n" + b"\r\n".join(lines)
        fields = _parse_fields(section, _split_lines(section), None)
    except _Syntax as exc:
        raise ProtocolViolation(f"the trailer section holds {exc}") from None
    if fields.has_any(_NEVER_TRAILERS):
        raise ProtocolViolation("the trailer section holds a field that belongs in the head")
    return list(fields)
