"""Field lines (RFC 9110, section 5; RFC 9112, section 5), strictly, for requests and answers alike.

Field lines are kept as the bytes that arrived, so that they can be sent on unchanged. Pure, apart from the
names of earlier sections, which are kept.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from operator import getitem
from typing import Final, NamedTuple

from proxy.errors import ProtocolViolation

MAX_FIELDS: Final = 512

_TCHAR: Final = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
TOKEN: Final = re.compile(rb"[" + _TCHAR + rb"]+\Z")
_FIELD_NAME: Final = re.compile(rb"\n([" + _TCHAR + rb"]+):")
_MARKS: Final = b"!#$%&'*+-.^_`|~"
_FOR_LINES: Final = bytes(
    byte if byte not in {*range(0x20), 0x7F} - {0x09} else ord("?") for byte in range(0x100)
)
"""A table for `bytes.translate` that changes exactly the bytes that a line must not hold."""
_CR: Final = 0x0D
_MOST_DIGITS: Final = 18
_LENGTH_START: Final = len(b"content-length:")
NO_OPTIONS: Final[frozenset[bytes]] = frozenset()

_FRAMING: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"connection", b"host", b"expect", b"te")
)


METHOD_OVERRIDES: Final = frozenset((b"xhttpmethodoverride", b"xhttpmethod", b"xmethodoverride"))
"""The fields by which some servers replace the request's method, for `FieldNames.spelling`."""
TARGET_OVERRIDES: Final = frozenset(
    (
        b"xoriginalurl",
        b"xoriginaluri",
        b"xoriginalpath",
        b"xrewriteurl",
        b"xrewriteuri",
        b"xforwardeduri",
        b"xforwardedurl",
        b"xforwardedpath",
        b"xenvoyoriginalpath",
        b"xmsoriginalurl",
        b"xwawsunencodedurl",
    )
)
"""The fields by which some servers replace the request's target, for `FieldNames.spelling`.

Front proxies add such fields to every request.
"""
_NEVER_TRAILERS: Final = _FRAMING | {b"origin", b"sec-fetch-site", b"max-forwards"}
"""Fields that change the meaning of a message: a trailer section must not hold them (RFC 9110, 6.5.1)."""


class Field(NamedTuple):
    """One field line: ``name`` in lower case, ``value`` without outer blanks, ``line`` as it arrived."""

    name: bytes
    value: bytes
    line: bytes


def _value(name: bytes, line: bytes) -> bytes:
    return line[len(name) + 1 :].strip(b" \t")


def _field(name: bytes, line: bytes) -> Field:
    return Field(name, _value(name, line), line)


class FieldNames:
    """The names of a section's fields, in lower case and in order, and the places of each name.

    Most heads have the same names as an earlier head; they share one `FieldNames` and the results that it
    keeps. ``spelt``: the names as they arrived, each of them a token.
    """

    __slots__ = ("_cuts", "_dropped", "_spelling", "_starts", "has_any", "names", "places")

    def __init__(self, spelt: Sequence[bytes]) -> None:
        self.names = [name.lower() for name in spelt]
        self._starts = [name + b":" for name in spelt]
        self._cuts = [slice(len(start)) for start in self._starts]
        self.places: dict[bytes, list[int]] = {}
        """The places of the fields with each name."""
        for place, name in enumerate(self.names):
            self.places.setdefault(name, []).append(place)
        self._dropped: dict[frozenset[bytes], list[int]] = {}
        self._spelling: dict[frozenset[bytes], frozenset[bytes]] = {}
        self.has_any: dict[frozenset[bytes], bool] = {}
        """The results of `FieldLines.has_any`, by the names in question."""

    def match(self, lines: list[bytes]) -> bool:
        """Whether these field lines have the same names, spelt in the same way."""
        return len(lines) == len(self._starts) and [*map(getitem, lines, self._cuts)] == self._starts

    def dropped(self, drop: frozenset[bytes]) -> list[int]:
        """The places of the names in ``drop``, from the last to the first."""
        places = self._dropped.get(drop)
        if places is None:
            names = self.names
            places = [place for place in range(len(names) - 1, -1, -1) if names[place] in drop]
            if _is_small(drop):
                if len(self._dropped) >= _MOST_DROPS:
                    self._dropped.clear()
                self._dropped[drop] = places
        return places

    def spelling(self, words: frozenset[bytes]) -> frozenset[bytes]:
        """The names that are one of ``words`` without their marks, such as ``-``, ``_`` and ``.``.

        CGI and its successors may treat all of them as the same name. For constant sets only: each result
        is kept.
        """
        found = self._spelling.get(words)
        if found is None:
            names = self.names
            found = frozenset(name for name in names if name.translate(None, _MARKS) in words)
            self._spelling[words] = found
        return found


_MOST_DROPS: Final = 8
"""Room for the proxy's own few sets, and for some with names from the other side's ``Connection``."""
_LARGEST_DROP: Final = 32


def _is_small(drop: frozenset[bytes]) -> bool:
    return len(drop) <= _LARGEST_DROP and sum(map(len, drop)) <= _LONGEST_NAMES


def _members(line: bytes) -> frozenset[bytes]:
    options = line.partition(b":")[2].lower().split(b",")
    members = frozenset(option for member in options if (option := member.strip(b" \t")))
    if len(line) <= _LONGEST_COMMON:
        if len(_common_members) >= _COMMON_LIMIT:
            _common_members.clear()
        _common_members[line] = members
    return members


_common_members: Final[dict[bytes, frozenset[bytes]]] = {}
"""The members of earlier list fields; bounded, because the other side chooses the fields."""
_COMMON_LIMIT: Final = 128
_LONGEST_COMMON: Final = 64


class FieldLines:
    """The field lines of a head, in order: the bytes that arrived, and their names in lower case."""

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

    __hash__ = None  # type: ignore[assignment]  # it consists of lists

    def without(self, drop: frozenset[bytes]) -> list[bytes]:
        """The lines whose names are not in ``drop``."""
        lines = self._lines.copy()
        for place in self.names.dropped(drop):
            del lines[place]
        return lines

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields with this lower-case name, without outer blanks."""
        places = self.names.places.get(name)
        if places is None:
            return []
        if len(places) == 1:  # a comprehension takes longer
            return [_value(name, self._lines[places[0]])]
        return [_value(name, self._lines[place]) for place in places]

    def members(self, name: bytes) -> frozenset[bytes]:
        """The members of the list fields with this name (RFC 9110, section 5.6.1), all in lower case."""
        places = self.names.places.get(name)
        if places is None:
            return NO_OPTIONS
        lines = self._lines
        if len(places) == 1:
            line = lines[places[0]]
            return _common_members.get(line) or _members(line)
        return NO_OPTIONS.union(*[_members(lines[place]) for place in places])

    def content_length(self) -> int | None:
        """The number in ``Content-Length``, None without one. Raises SyntaxFault."""
        places = self.names.places.get(b"content-length")
        if places is None:
            return None
        if len(places) > 1:
            raise SyntaxFault("more than one Content-Length")
        value = self._lines[places[0]][_LENGTH_START:].strip(b" \t")
        if not value.isdigit() or len(value) > _MOST_DIGITS:
            raise SyntaxFault("a Content-Length that is not a number")
        return int(value)

    def only(self, name: bytes) -> bytes | None:
        """The value of the only field with this lower-case name; None without one, or with several."""
        places = self.names.places.get(name)
        return None if places is None or len(places) > 1 else _value(name, self._lines[places[0]])

    def among(self, names: Container[bytes]) -> list[Field]:
        """The fields whose lower-case name is in ``names``."""
        pairs = zip(self.names.names, self._lines, strict=True)
        return [_field(name, line) for name, line in pairs if name in names]

    def has_any(self, names: frozenset[bytes]) -> bool:
        """Whether a field has one of these lower-case names.

        For constant sets only: each result is kept.
        """
        known = self.names.has_any
        found = known.get(names)
        if found is None:
            found = known[names] = not names.isdisjoint(self.names.names)
        return found


class SyntaxFault(Exception):
    """RFC 9112 forbids the message; the text says what is wrong with it."""


def has_bare_break(part: bytes, start: int = 0) -> bool:
    """Whether a CR or LF from ``start`` on is no part of CRLF; a CR at the end may become one.

    Counting takes 3 ns a byte, and a regular expression 50: a flood of long heads would stall the loop.
    """
    if start and part[start - 1] == _CR:
        start -= 1
    breaks = part.count(b"\r\n", start)
    at_end = part.endswith(b"\r", start)
    return part.count(b"\n", start) != breaks or part.count(b"\r", start) - at_end != breaks


def split_lines(head: bytes) -> list[bytes]:
    """The lines of a head. Raises SyntaxFault."""
    lines = head.split(b"\r\n")
    # Every CR and LF must belong to a line break, and there may be no other control character but HTAB.
    text = b"".join(lines)
    if text.translate(_FOR_LINES) != text:
        bare = has_bare_break(head) or head.endswith(b"\r")
        raise SyntaxFault("a bare CR or LF in the head" if bare else "a control character in the head")
    return lines


_known_names: Final[dict[tuple[bytes, ...], FieldNames]] = {}
"""By the names of earlier sections as they were spelt; bounded, because the other side chooses the names."""
_NAMES_LIMIT: Final = 256
_LONGEST_NAMES: Final = 2048


def _new_names(spelt: tuple[bytes, ...]) -> FieldNames:
    names = FieldNames(spelt)
    if sum(map(len, spelt)) <= _LONGEST_NAMES:
        if len(_known_names) >= _NAMES_LIMIT:
            _known_names.clear()  # so that no sender can fill it for good; common names are soon back
        _known_names[spelt] = names
    return names


def parse_fields(head: bytes, lines: list[bytes], before: FieldNames | None) -> FieldLines:
    """The field lines after the first line of ``head``; ``lines`` comes from `split_lines`.

    ``before``: the names in the last head on the same connection, to be tried first. Raises SyntaxFault.
    """
    del lines[0]
    if before is not None and before.match(lines):
        return FieldLines(before, lines)
    spelt = tuple(_FIELD_NAME.findall(head))
    if len(spelt) != len(lines):
        raise SyntaxFault(_name_fault(lines))
    return FieldLines(_known_names.get(spelt) or _new_names(spelt), lines)


def _name_fault(lines: list[bytes]) -> str:
    for line in lines:
        name, colon, _ = line.partition(b":")
        if line[:1] in (b" ", b"\t"):  # RFC 9112, section 5.2
            return "a folded field line"
        if not colon:
            return "a field line without a colon"
        if not TOKEN.match(name):
            break
    return "a field name that is not a token"


def parse_trailers(lines: list[bytes]) -> list[Field]:
    """The fields of a trailer section (RFC 9110, section 6.5). Raises ProtocolViolation."""
    try:
        section = b"\r\n" + b"\r\n".join(lines)
        fields = parse_fields(section, split_lines(section), None)
    except SyntaxFault as exc:
        raise ProtocolViolation(f"the trailer section holds {exc}") from None
    if fields.has_any(_NEVER_TRAILERS) or fields.names.spelling(METHOD_OVERRIDES):
        raise ProtocolViolation("the trailer section holds a field that belongs in the head")
    return list(fields)
