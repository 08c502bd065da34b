"""Client ids, secrets and callers' keys as people paste them: one rule, wherever a value comes from.

A wrong character in a secret looks like wrong credentials. So a value that can't be meant as it stands gets a
fault here, which says what is seen. No fault holds a part of the value but an invisible character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufffd"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that show nothing, though Python calls some printable (Unicode's Default_Ignorable_Code_Point),
the empty Braille pattern, and the stand-in for bytes that were no text."""
_BLANKS: Final = " \t"
_PASTE_MARKS: Final = re.compile("\x1b\\[20[01]~")
"""A terminal puts these marks around pasted text where a program left bracketed paste on."""
_BEARER: Final = re.compile(r"(?i:bearer)\s+")
_QUOTES: Final = ('""', "''", "``", "\u201c\u201d", "\u2018\u2019", "\u201e\u201c", "\u00ab\u00bb")
_QUOTE_MARKS: Final = frozenset("".join(_QUOTES))
_PLACEHOLDERS: Final = (
    (r"\.{3,}|\u2026+", "is still the example's dots; put the real value there"),
    (r"[*\u2022\u25cf]{3,}", "is masked, only stars or dots; copy the value itself"),
    (r"\$?\$\{[^{}]*\}", "is a variable that no program has replaced, ${...}; put the value itself there"),
    (r"\$[A-Z_][A-Z0-9_]*", "is a variable that no program has replaced, $NAME; put the value itself there"),
    (r"%[A-Za-z_]\w*%", "is a variable that no program has replaced, %NAME%; put the value itself there"),
    (r"\$\([^()]*\)", "is a command that no shell has run, $(...); put there what it prints"),
    (r"\$?\{\{.*\}\}", "is a template that no program has filled in, {{...}}; put the value itself there"),
    (r"<[^<>]*>", "is a placeholder, <...>; put the real value there"),
    (r"(?i:your[-_ ].*|change[-_ ]?me)", "is a placeholder; put the real value there"),
    (r"[a-z][a-z0-9+.-]*://.*", "is an address or a reference (...://...); put there what it points to"),
    (
        r"(?i:(?:export\s+|set\s+)?[\s{\"']*\w*client_?(?:id|secret)[\"']?\s*[=:]).*",
        "begins with the name of its setting; put only the value there",
    ),
    (r"(?i:bearer|basic) .*", "begins with the word of an Authorization field; put only the value there"),
)
_PLACEHOLDER: Final = tuple((re.compile(rf"(?:{pattern})\Z"), fault) for pattern, fault in _PLACEHOLDERS)


def cleaned(text: str) -> str:
    """An answer as a person meant it: without quotes, blanks, ``Bearer`` and characters that show nothing.

    For questions only, where the person is told that something was left out. A setting is refused instead.
    """
    text = _PASTE_MARKS.sub("", text)
    value = "".join(one for one in text if one == "\ufffd" or not _shows_nothing(one)).strip()
    while True:
        if len(value) > 1 and value[0] + value[-1] in _QUOTES:
            value = value[1:-1].strip()
        elif mark := _BEARER.match(value):
            value = value[mark.end() :]
        else:
            return value


def _shows_nothing(character: str) -> bool:
    return bool(_INVISIBLE.match(character)) or unicodedata.category(character) == "Cf"


def value_of(text: str) -> str:
    """The value of a pasted text: without one line end at its end, which editors and ``echo`` add.

    Raises ValueError for a value that can't be meant as it stands. The message follows the value's name.
    """
    value = text.removesuffix("\n").removesuffix("\r")
    if not value:
        raise ValueError("is empty; put a value there")
    if fault := _fault(value):
        raise ValueError(fault)
    return value


def _fault(value: str) -> str | None:
    if "\n" in value or "\r" in value:
        return "holds more than one line; give one line only"
    for at_end, words in ((value[0], "begins"), (value[-1], "ends")):
        if at_end in _BLANKS:
            return f"{words} with a blank; remove it"
    for place, character in enumerate(value, start=1):
        if not character.isprintable() or _INVISIBLE.match(character):
            return f"holds {_shown(character)} as character {place}; copy or type the value without it"
    if len(value) > 1 and value[0] + value[-1] in _QUOTES:
        return "has quotes around it, which would be a part of it; remove them"
    return next((fault for pattern, fault in _PLACEHOLDER if pattern.match(value)), None)


def _shown(character: str) -> str:
    """An invisible character as an escape sequence, and its name in Unicode."""
    number = ord(character)
    escape = f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
    name = unicodedata.name(character, "").lower()
    return f"{escape} ({name or 'a character that shows nothing'})"


def description(value: str) -> str:
    """The length of a secret that was refused, and its kinds of unusual characters: no more may be told."""
    unusual = ", ".join(_unusual(value)) or "nothing unusual in it"
    return f"{len(value)} character{'' if len(value) == 1 else 's'}, {unusual}"


def _unusual(value: str) -> Iterator[str]:
    if any(character.isspace() for character in value):
        yield "a blank within it"
    if not value.isascii():
        yield "characters that are not ASCII"
    if value[0] in _QUOTE_MARKS or value[-1] in _QUOTE_MARKS:
        yield "a quote at one end"
