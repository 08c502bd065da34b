"""Foreign texts: what another program sent, before a person or a log gets it.

Hides which characters a terminal would obey, and in how many ways a text can spell a secret. Pure. Must not
know where a text comes from or goes to.
"""

from __future__ import annotations

import base64
import functools
import html
import re
from collections.abc import Callable, Collection, Iterator
from typing import Final
from urllib.parse import quote, unquote

PART: Final = 8
"""So many characters in a row of a secret give it away; all of a shorter one."""

_LAYERS: Final = 2
"""How often a text is decoded, one coding after the other."""
_SEPARATORS = re.compile(r"0x|\\x|%|[\s:,._-]", re.IGNORECASE)
_HEX_RUN = re.compile("[0-9A-Fa-f]{8,}")
_BASE64_RUN = re.compile("[0-9A-Za-z+/]{8,}")
_ESCAPE = re.compile(r"[\\%]u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\(.)")
_URL_SAFE = str.maketrans("-_", "+/")
METHODS: Final = {
    name.encode(): name for name in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE")
}
"""Methods by their name as it is sent; others are shown as ``{other}``, because a caller may invent them."""


def shown(text: str, *, keep: str = "") -> str:
    r"""The text with every character escaped that isn't printable, as ``\x1b``; those in ``keep`` stay.

    Controls (C0, C1), line ends, characters that change the direction of a text, and invisible ones would
    move the cursor, begin a line that looks like ours, or show a text as another one.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def gives_away(text: str, secrets: Collection[str], *, part: int = PART) -> bool:
    """Whether ``text`` repeats ``part`` characters in a row of a secret, in any case and in any spelling.

    Spellings are those of `decoded`, and blanks in between.
    """
    wanted = {piece for secret in secrets for piece in _pieces(secret, part)}
    return bool(wanted) and any(
        piece in view for view in (text.casefold(), *map(str.casefold, decoded(text))) for piece in wanted
    )


def decoded(text: str) -> Iterator[str]:
    r"""The text without blanks and invisible characters, and what it is if it is in a coding.

    Codings are the escapes of URLs (also ``%uXXXX``), HTML and JSON, quoted pairs (``\a``), hexadecimal,
    base64 (also url-safe, from any place on), the reversed text, and each of these within another one.
    """
    layer = {_squeezed(text)}
    seen: set[str] = set()
    for _ in range(_LAYERS + 1):
        layer -= seen
        yield from layer
        seen |= layer
        layer = {_squeezed(found) for one in layer for decode in _DECODERS for found in decode(one)}


def _pieces(secret: str, part: int) -> Iterator[str]:
    for form in filter(None, (secret, _squeezed(secret), quote(secret, safe=""))):
        # casefold() may make a text longer ("ß"): it is cut before that, so that a text's own cut fits.
        yield from (form[start : start + part].casefold() for start in range(max(1, len(form) - part + 1)))


def _squeezed(text: str) -> str:
    return "".join(one for one in text if one.isprintable() and not one.isspace())


def _unescaped(text: str) -> Iterator[str]:
    plain = _ESCAPE.sub(lambda match: match[3] or chr(int(match[1] or match[2], 16)), text)
    yield html.unescape(unquote(plain))


def _reversed(text: str) -> Iterator[str]:
    yield text[::-1]


def _from_hex(text: str) -> Iterator[str]:
    runs = _HEX_RUN.findall(_SEPARATORS.sub("", text))
    for start in range(2) if runs else ():
        yield "\0".join(_text(bytes.fromhex(_whole(run[start:], 2))) for run in runs)


def _from_base64(text: str) -> Iterator[str]:
    runs = _BASE64_RUN.findall(text.translate(_URL_SAFE))
    for start in range(4) if runs else ():
        yield "\0".join(_text(_base64_bytes(run[start:])) for run in runs)


def _base64_bytes(run: str) -> bytes:
    run = run[:-1] if len(run) % 4 == 1 else run
    return base64.b64decode(run + "=" * (-len(run) % 4))


def _whole(run: str, size: int) -> str:
    return run[: len(run) // size * size]


_text = functools.partial(str, encoding="utf-8", errors="replace")
_DECODERS: tuple[Callable[[str], Iterator[str]], ...] = (_unescaped, _reversed, _from_hex, _from_base64)
