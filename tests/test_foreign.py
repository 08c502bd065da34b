"""`proxy.foreign`: no foreign text moves a cursor, and no spelling hides a secret."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import together
from support.texts import texts

from proxy.foreign import decoded, gives_away, shown

SECRET = "s3cr3t/Value+with=9signs~"
BASE64: list[Callable[[bytes], bytes]] = [base64.b64encode, base64.urlsafe_b64encode]
SPELLINGS: dict[str, Callable[[str], str]] = {
    "itself": str,
    "in other case": str.swapcase,
    "a part": lambda text: text[5:13],
    "spaced out": " ".join,
    "percent": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "percent where needed": lambda text: quote(text, safe=""),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "hexadecimal": lambda text: text.encode().hex(),
    "HEXADECIMAL": lambda text: text.encode().hex().upper(),
    "hexadecimal with colons": lambda text: text.encode().hex(":"),
    "hexadecimal in C": lambda text: "".join(f"\\x{byte:02X}" for byte in text.encode()),
    "hexadecimal numbers": lambda text: ", ".join(f"0x{byte:02x}" for byte in text.encode()),
    "JSON's escapes": lambda text: "".join(f"\\u{ord(one):04x}" for one in text),
    "percent with u": lambda text: "".join(f"%u{ord(one):04X}" for one in text),
    "quoted pairs": lambda text: "".join(f"\\{one}" for one in text),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "HTML": lambda text: "".join(f"&#{ord(one)};" for one in text),
    "reversed": lambda text: text[::-1],
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 without padding": lambda text: base64.b64encode(text.encode()).decode().rstrip("="),
    "base64 in lines": lambda text: "\n".join(
        base64.b64encode(text.encode()).decode()[n : n + 9] for n in range(0, 40, 9)
    ),
    "base64 url-safe": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "Basic": lambda text: base64.b64encode(f"client:{text}".encode()).decode(),
    "base64 of the reversed": lambda text: base64.b64encode(text[::-1].encode()).decode(),
    "reversed base64": lambda text: base64.b64encode(text.encode()).decode()[::-1],
    "percent-coded base64": lambda text: quote(base64.b64encode(text.encode()).decode(), safe=""),
    "base64 of JSON": lambda text: base64.b64encode(json.dumps({"client_secret": text}).encode()).decode(),
    "hexadecimal of base64": lambda text: base64.b64encode(text.encode()).hex(),
}


@together("spell", [pytest.param(spell, id=name) for name, spell in SPELLINGS.items()])
@pytest.mark.parametrize("around", ["", "the secret {} is wrong", "key={}&x", "abc{}def", "<{}>"])
def test_a_secret_is_found_in_any_spelling(spell: Callable[[str], str], around: str) -> None:
    text = (around or "{}").format(spell(SECRET))
    assert gives_away(text, ("another one, 12345678", SECRET)), text
    assert not gives_away(text, ("another one, 12345678",)), text


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_secret_with_backslashes_is_found_in_any_spelling(spell: Callable[[str], str]) -> None:
    secret = "a\\b/value\\\\with signs\\"
    assert gives_away(spell(secret), (secret,))


@given(before=st.binary(max_size=40), after=st.binary(max_size=40), coding=st.sampled_from(BASE64))
def test_base64_hides_a_secret_at_no_alignment(
    before: bytes, after: bytes, coding: Callable[[bytes], bytes]
) -> None:
    text = coding(before + SECRET.encode() + after).decode()
    assert gives_away(text, (SECRET,))
    assert gives_away(f"x{text}", (SECRET,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "invalid_client: the client is unknown, or its secret is over a year old",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0",
        "deadbeefdeadbeefdeadbeef",
        "https://docs.contentsquare.com/en/api/?a=%20b",
    ],
)
def test_ordinary_words_give_nothing_away(text: str) -> None:
    assert not gives_away(text, (SECRET, ""))


@given(texts(max_size=300))
def test_any_text_can_be_decoded(text: str) -> None:
    assert all(isinstance(view, str) for view in decoded(text))


def test_a_long_hostile_text_costs_little() -> None:
    text = (base64.b64encode(quote("&#65;%41" * 40).encode()).decode() + "61" * 200)[:1000]
    started_at = time.process_time()
    assert not gives_away(text, (SECRET * 3,))
    assert time.process_time() - started_at < 0.5


CONTROLS = [
    "\x1b[2J",
    "\x9b2J",
    "\x00",
    "\x07",
    "\x7f",
    "\r",
    "\x85",
    "\u2028",
    "\u202e",
    "\u2066",
    "\u200b",
    "\ufeff",
]


@pytest.mark.parametrize("control", [*CONTROLS, "\n", "\ud800"])
def test_a_terminal_obeys_no_character_of_a_foreign_text(control: str) -> None:
    text = shown(f"a{control}b é 日本")
    assert text.isprintable()
    assert text.startswith("a\\")
    assert text.endswith("b é 日本")


def test_what_may_be_kept_is_kept() -> None:
    assert shown("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
