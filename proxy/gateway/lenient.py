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
_MOST_METHODS: Final = 64
"""The same for the word ``method``."""
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
_MARKS: Final = bytes(code if code < 0x80 else 0x7F for code in range(0x100))
"""All other characters are marks, so that the text is ASCII from its first decoding on."""
_CODED_SEPARATOR: Final = re.compile(rb"%(?:25)*+(?:26|3b|3f|23)", re.IGNORECASE)


def _word(letters: bytes) -> bytes:
    """A pattern for a word of lower-case letters. Other marks, coded or not, may stand between them."""
    return rb"(?:%[0-9a-f]{2}|[^a-z0-9&;?#=/])*+".join(letters[at : at + 1] for at in range(len(letters)))


_CODED_LETTER: Final = rb"%(?:25|[4-7u]|c[0-245a]|e[0-2f]|f)|\\"
"""The beginning of a code of a percent sign or letter, also of one in `_FORMS`, `_WIDE` or `_OVERLONG`."""


def _sign_of(letters: bytes) -> re.Pattern[bytes]:
    """An ASCII text in lower case without this pattern has the word in no reading, and need not be read."""
    return re.compile(_word(letters) + rb"|" + _CODED_LETTER)


_MAY_BE_PROJECT: Final = _sign_of(b"project")
_MAY_BE_METHOD: Final = _sign_of(b"method")
_MAY_BE_OAUTH: Final = _sign_of(b"oauth")
_MAY_BE_EVENT: Final = _sign_of(b"event")
_WIDE: Final = re.compile(rb"%u(?!00)[0-9a-f]{4}")
_OVERLONG: Final = re.compile(
    rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f]|\xf0[\x80-\x8f]|\xf8[\x80-\x87]|\xfc[\x80-\x83]"
)
"""UTF-8 that is longer than it need be. No client makes it, or `_WIDE`; some servers take both for ASCII."""
_ANYTHING: Final = b"&_method=?projectid=any;/projects/any/oauth/token/event/create"
"""Stands behind a text with such codes, whose reading nobody can tell, so that each rule refuses it."""
_PROJECT_ID: Final = re.compile(_word(b"projectid") + rb"(?=([^&;?#]*))")
_PARAMETER_END: Final = re.compile(rb"[^&=]*+=[^&;?#]*+")
"""The rest of a key, which may hold the separators of other servers, and its value."""
_OF_KEY: Final = re.compile(rb"[\s\"'\[(]*+([0-9]+)[\s\"'\])}]*+\Z")
"""A number as the value of a parameter, which a server may take for an array or for a text in quotes."""
_OF_PATH: Final = re.compile(rb"[=/]([0-9]+)(?:/|\Z)")
"""A number behind a name in a path."""
_OF_JSON: Final = re.compile(rb"s?[\s\"':]*+([0-9]+)[\s\"']*+(?:[},]|\Z)")
"""A number behind a name within the value of a parameter."""
_NO_VALUE: Final = re.compile(rb"s?[\s\"')\]},]*+\Z")
"""Nothing behind a name that is a value itself, or a part of one."""
_PROJECT_SEGMENT: Final = rb"(?:\A|/)[^a-z0-9/]*+" + _word(b"project")
_BEHIND_SEGMENT: Final = re.compile(_PROJECT_SEGMENT + rb"s?(?:[^a-z0-9/][^/]*+)?/++([^/;]*+)")
_IN_SEGMENT: Final = re.compile(_PROJECT_SEGMENT + rb"s?[^a-z0-9/]++(?:id[^a-z0-9/]*+)?([0-9]++)")
"""A number in the segment itself, as in ``projects(43)``."""
_METHOD_WORD: Final = re.compile(_word(b"method"))
_METHOD_NAME: Final = re.compile(
    rb"[&;?](?:[^a-z0-9&;?=]++x?|[^a-z0-9&;?=]*+x?[^a-z0-9&;?=]*+%(http)b)[^a-z0-9&;?=]*+%(method)b"
    rb"|[&;?][^a-z0-9&;?=]*+x?[^a-z0-9&;?=]*+%(method)b[^a-z0-9&;?=]*+%(override)b"
    % {b"http": _word(b"http"), b"method": _word(b"method"), b"override": _word(b"override")}
)
"""A parameter's name like ``_method`` or ``httpMethod``, with the mark before it."""
_METHOD_VALUE: Final = re.compile(
    rb"[^&;?=]{0,64}+=[^a-z&;?]*+(?:post|put|patch|delete|merge|move|copy|link|unlink|lock|mkcol|purge)"
)
"""The rest of a parameter whose name has ``method``, and whose value is a method that changes data."""
_OAUTH: Final = re.compile(
    _word(b"oauth")
    + rb"(?:[^a-z0-9/][^/]*+)?/++[^a-z0-9/]*+(?:%b|%b)(?![a-z0-9_-])" % (_word(b"token"), _word(b"me"))
)
_EVENT_CHANGE: Final = re.compile(
    _word(b"event")
    + rb"(?:[^a-z0-9/][^/]*+)?/++[^a-z0-9/]*+(?:%b|%b)(?![a-z0-9_-])" % (_word(b"create"), _word(b"delete"))
)
_PARAMETERS: Final = re.compile(rb";[^/]*+")
_SLASHES: Final = re.compile(rb"/{2,}")


_LETTERS: Final = bytes(
    ord(chr(code).lower()) if chr(code).isascii() and chr(code).isalpha() else ord("%")
    for code in range(0x100)
)
_NO_LETTERS: Final = bytes(code for code in range(0x80) if not chr(code).isalpha() and chr(code) not in "%\\")


def is_plain(target: bytes) -> bool:
    """Whether the target surely has no word that the functions below look for, apart from ``project``.

    One look in place of several: most targets are plain. Marks are dropped, so that none hides a word.
    """
    letters = target.translate(_LETTERS, _NO_LETTERS).decode()  # a look into bytes takes longer
    return not ("%" in letters or "method" in letters or "oauth" in letters or "event" in letters)


def names_other_project(target: bytes, project_id: int) -> bool:
    """Whether a server might read another project than ``project_id`` in the target's path or query.

    A number that is no plain one counts as another project, and so does a target that is too long to tell.
    """
    if not _may_hold(_MAY_BE_PROJECT, target):
        return False
    own = b"%d" % project_id
    path, _, query = target.partition(b"?")
    if _may_hold(_MAY_BE_PROJECT, path):
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
    return _may_have_path(target, _MAY_BE_OAUTH, _OAUTH)


def may_change_events(target: bytes) -> bool:
    """Whether a server might take the path for ``event/create`` or ``event/delete`` of Speed Analysis."""
    return _may_have_path(target, _MAY_BE_EVENT, _EVENT_CHANGE)


def _may_have_path(target: bytes, sign: re.Pattern[bytes], wanted: re.Pattern[bytes]) -> bool:
    """Whether a server might read ``wanted``, which has the sign's word, in the path."""
    path = target.partition(b"?")[0]
    if not _may_hold(sign, path):
        return False
    if len(path) > _MOST_PATH_BYTES:
        return True
    return any(wanted.search(text) for reading in _readings(path) for text in _paths(reading))


def asks_for_method(target: bytes) -> bool:
    """Whether a server might read in a parameter that the request is to have another method."""
    if not _may_hold(_MAY_BE_METHOD, target):
        return False
    return any(map(_asks_for_method, _readings(target)))


def _asks_for_method(reading: bytes) -> bool:
    for count, word in enumerate(_METHOD_WORD.finditer(reading)):
        start = max(reading.rfind(mark, 0, word.start()) for mark in (b"&", b";", b"?"))
        if count >= _MOST_METHODS or _METHOD_VALUE.match(reading, word.end()):
            return True
        if start >= 0 and _METHOD_NAME.match(reading, start):
            return True
    return False


def _may_hold(sign: re.Pattern[bytes], text: bytes) -> bool:
    """Whether the text may have the sign's word in a reading."""
    text = text.lower()  # a pattern that ignores case takes several times as long
    return sign.search(text) is not None or not text.isascii()


def _readings(text: bytes) -> Iterator[bytes]:
    """The text in lower case, and the results of the decodings that servers may do."""
    text = text.lower()
    yield text
    yield from decodings(text, _decoded)


def _decoded(text: bytes) -> bytes:
    """Without one level of coding, and with ASCII's letters for their other forms."""
    decoded = percent_decoded(text.replace(b"+", b" "))
    if decoded.find(b"%u") >= 0 and _WIDE.search(decoded):
        return decoded + _ANYTHING
    if not decoded.isascii():
        if _OVERLONG.search(decoded):
            return decoded + _ANYTHING
        letters = decoded.decode("utf-8", "replace").translate(_FORMS)
        decoded = letters.encode().translate(_MARKS)
    return decoded.lower()


def _names_other_by_path(reading: bytes, own: bytes) -> bool:
    reading = reading.replace(b"\\", b"/")
    if any(not _is(own, _OF_PATH.match(tail)) for tail in _PROJECT_ID.findall(reading)):
        return True
    for text in _paths(reading):
        named = _BEHIND_SEGMENT.findall(text)
        named += _IN_SEGMENT.findall(text)
        if any(name != own for name in named):
            return True
    return False


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
    for count, name in enumerate(_PROJECT_ID.finditer(reading)):
        if count >= _MOST_NAMES or not _is_own(own, name[1]):
            return True
        if b"=" not in name[1] and (longer := _longer_tail(reading, name)) and not _is_own(own, longer):
            return True
    return False


def _longer_tail(reading: bytes, name: re.Match[bytes]) -> bytes:
    """The rest of the parameter for servers that split at ``&`` alone; empty where it has no value."""
    begins_at = reading.rfind(b"&", 0, name.start()) + 1
    if b"=" in reading[begins_at : name.start()]:  # the name is in a value
        return b""
    parameter = _PARAMETER_END.match(reading, name.end())
    return b"" if parameter is None else parameter[0]


def _is_own(own: bytes, tail: bytes) -> bool:
    """Whether ``tail``, the rest of a parameter behind ``projectid``, has no number but ``own``."""
    key, equals, value = tail.partition(b"=")
    if not equals:
        return _NO_VALUE.match(key) is not None or _is(own, _OF_JSON.match(key))
    return all(_is(own, _OF_KEY.match(number)) for number in value.split(b",", _MOST_NAMES))


def _is(own: bytes, number: re.Match[bytes] | None) -> bool:
    return number is not None and number[1] == own
