"""How lenient servers may read a target: the projects that it may name, and a method that it may ask for.

Servers differ in the codings that they undo, the marks that they drop from names, and the segments that they
remove. The functions here look for a word in all these readings of a text. Each takes time in proportion to
the text's length: the bytes are for C code, and Python code sees few matches. Pure.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from proxy.codings import decodings, percent_decoded

_MOST_NAMES: Final = 16
"""A query that names projects more often is refused, so that the names need not be looked at."""
_MOST_PATH_BYTES: Final = 4096
"""A longer path that may name a project is refused: its many readings would take too long."""
_FORMS: Final = {0x130: "i", 0x131: "i", 0xFFFD: "\x7f"} | {
    code: form
    for first, last in (
        (0xAA, 0xBA),  # superscripts, like the next three
        (0x17F, 0x17F),  # the long s
        (0x2B0, 0x2B8),
        (0x1D2C, 0x1D6A),
        (0x2070, 0x214F),  # and subscripts, letter-like symbols
        (0x2460, 0x24FF),  # in circles
        (0xFF01, 0xFF5E),  # of full width
        (0x1D400, 0x1D7FF),  # mathematical
        (0x1F110, 0x1F169),  # in squares
    )
    for code in range(first, last + 1)
    if (form := unicodedata.normalize("NFKC", chr(code)).casefold()).isascii()
}
"""ASCII's letters, digits and marks by their other forms.

NFKC for a whole text takes quadratic time: it sorts combining marks.
"""
_CODED_SEPARATOR: Final = re.compile(rb"%(?:25)*+(?:26|3b|3f|23)", re.IGNORECASE)


def _word(letters: bytes) -> bytes:
    """A pattern for a word of lower-case letters. Other marks, coded or not, may stand between them."""
    return rb"(?:%[0-9a-f]{2}|[^a-z0-9&;?#=/])*+".join(letters[at : at + 1] for at in range(len(letters)))


def _sign_of(letters: bytes) -> re.Pattern[bytes]:
    """A text without this pattern has the word in no reading, and need not be read.

    The other parts of the pattern begin coded percent signs and letters, and letters of full width.
    """
    return re.compile(_word(letters) + rb"|%25|%[4-7u]|%ef", re.IGNORECASE)


_PROJECT_ID: Final = re.compile(_word(b"projectid") + rb"([^&;?#]*)")
_OF_KEY: Final = re.compile(rb"[\s\"'\[(]*+([0-9]+)[\s\"'\])}]*+\Z")
"""A number as the value of a parameter, which a server may take for an array or for a text in quotes."""
_OF_PATH: Final = re.compile(rb"[=/]([0-9]+)(?:/|\Z)")
"""A number behind a name in a path."""
_OF_JSON: Final = re.compile(rb"s?[\s\"':]*+([0-9]+)[\s\"']*+(?:[},]|\Z)")
"""A number behind a name within the value of a parameter."""
_NO_VALUE: Final = re.compile(rb"s?[\s\"')\]},]*+\Z")
"""Nothing behind a name that is a value itself, or a part of one."""
_NAMED_BY_PATH: Final = re.compile(
    rb"(?:\A|/)[^a-z0-9/]*+" + _word(b"project") + rb"s?(?:[^a-z0-9/][^/]*+)?/++([^/;]*+)"
)
_METHOD: Final = re.compile(
    rb"(?:\A|[&;?])([^a-z0-9&;?=]*+)(x?[^a-z0-9&;?=]*+)(%b[^a-z0-9&;?=]*+)?%b([^a-z0-9&;?=]*+%b)?"
    % (_word(b"http"), _word(b"method"), _word(b"override"))
)
"""Group 1 stands before the name, groups 3 and 4 are its parts besides ``method``."""
_MAY_BE_PROJECT: Final = _sign_of(b"project")
_MAY_BE_METHOD: Final = _sign_of(b"method")
_OAUTH: Final = re.compile(
    _word(b"oauth")
    + rb"(?:[^a-z0-9/][^/]*+)?/++[^a-z0-9/]*+(?:%b|%b)(?![a-z0-9_-])" % (_word(b"token"), _word(b"me"))
)
_MAY_BE_OAUTH: Final = _sign_of(b"oauth")
_PARAMETERS: Final = re.compile(rb";[^/]*+")
_SLASHES: Final = re.compile(rb"/{2,}")


def names_other_project(target: bytes, project_id: int) -> bool:
    """Whether a server might read another project than ``project_id`` in the target's path or query.

    A number that is no plain one counts as another project, and so does a target that is too long to tell.
    """
    if not _MAY_BE_PROJECT.search(target):
        return False
    own = b"%d" % project_id
    path, _, query = target.partition(b"?")
    if len(path) > _MOST_PATH_BYTES:
        return True
    if any(_names_other_by_path(reading, own) for reading in _readings(path)):
        return True
    # Servers split a query and then decode, or the other way round: a coded separator is one, or is a mark.
    for text in dict.fromkeys((query, _CODED_SEPARATOR.sub(b"_", query))):
        raw, *decoded = _readings(text)  # each server decodes a query's values once
        if any(_names_other_by_key(reading, own) for reading in decoded or (raw,)):
            return True
    return False


def may_be_oauth(target: bytes) -> bool:
    """Whether a server might take the path for one of OAuth, to which secrets are sent."""
    if not _MAY_BE_OAUTH.search(target):
        return False
    path = target.partition(b"?")[0]
    if len(path) > _MOST_PATH_BYTES:
        return True
    return any(_OAUTH.search(text) for reading in _readings(path) for text in _paths(reading))


def asks_for_method(target: bytes) -> bool:
    """Whether a server might read in the target's query that the request is to have another method."""
    query = target.partition(b"?")[2]
    if not _MAY_BE_METHOD.search(query):
        return False
    found = (match for text in _readings(query) for match in _METHOD.finditer(text))
    return any(b"_" in match[1] or match[3] or match[4] for match in found)


def _readings(text: bytes) -> Iterator[bytes]:
    """The text in lower case, and the results of the decodings that servers may do."""
    text = text.lower()
    yield text
    yield from decodings(text, _decoded)


def _decoded(text: bytes) -> bytes:
    """Without one level of coding, and with ASCII's letters for their other forms."""
    decoded = percent_decoded(text.replace(b"+", b" "))
    if not decoded.isascii():
        letters = decoded.decode("utf-8", "replace").translate(_FORMS)
        decoded = letters.encode()
    return decoded.lower()


def _names_other_by_path(reading: bytes, own: bytes) -> bool:
    reading = reading.replace(b"\\", b"/")
    if any(not _is(own, _OF_PATH.match(tail)) for tail in _PROJECT_ID.findall(reading)):
        return True
    return any(named != own for text in _paths(reading) for named in _NAMED_BY_PATH.findall(text))


def _paths(reading: bytes) -> set[bytes]:
    """The paths that servers may make of one: without parameters, empty segments or dot segments."""
    reading = reading.replace(b"\\", b"/").replace(b"\0", b" ")  # normpath ends at a NUL in some Pythons
    texts = {reading, _PARAMETERS.sub(b"", reading)}
    texts |= {_SLASHES.sub(b"/", text) for text in texts}
    if b"/." in reading:
        texts |= {_without_dot_segments(text) for text in texts}
        texts |= {posixpath.normpath(text) for text in texts}
    return texts


def _without_dot_segments(path: bytes) -> bytes:
    """As RFC 3986, section 5.2.4, has it: ``..`` removes the segment before it, even an empty one."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b".." and len(kept) > 1:
            kept.pop()
        elif segment not in (b".", b".."):
            kept.append(segment)
    return b"/".join(kept)


def _names_other_by_key(reading: bytes, own: bytes) -> bool:
    tails = _PROJECT_ID.findall(reading)
    return len(tails) > _MOST_NAMES or any(not _is_own(own, tail) for tail in tails)


def _is_own(own: bytes, tail: bytes) -> bool:
    """Whether ``tail``, the rest of a parameter behind ``projectid``, has no number but ``own``."""
    key, equals, value = tail.partition(b"=")
    if not equals:
        return _NO_VALUE.match(key) is not None or _is(own, _OF_JSON.match(key))
    return all(_is(own, _OF_KEY.match(number)) for number in value.split(b",", _MOST_NAMES))


def _is(own: bytes, number: re.Match[bytes] | None) -> bool:
    return number is not None and number[1] == own
