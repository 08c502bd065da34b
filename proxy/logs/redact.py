"""Redaction by value: registered secrets are replaced wherever they stand in a text.

Hides the forms of a secret in a text (URL-quoted, escaped, in base64), and how thousands of them are found
at once. Knows nothing of the text's meaning.
"""

from __future__ import annotations

import json
import re
import string
import threading
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

from proxy.codings import base64_forms
from proxy.logs.leaks import LeakSearch

REDACTED = "[redacted]"
SHORTEST_SECRET = 6
"""Shorter values aren't redacted: they would blank out ordinary words."""

_KEY_LENGTH: Final = 24
_STEP: Final = 12
"""Characters between two looked-up places of a text: each run of `_KEY_LENGTH` has a whole gram at one."""
_GRAM_LENGTH: Final = _KEY_LENGTH - _STEP + 1
_URL_SAFE: Final = str.maketrans("+/", "-_")
_RUN_CHARACTERS = f"{string.ascii_letters}{string.digits}_-"
_LONG_RUN = re.compile(rf"[{_RUN_CHARACTERS}]{{{_KEY_LENGTH},}}")
_MASK: Final = bytes(ord("x" if chr(code) in _RUN_CHARACTERS else " ") for code in range(256))


class Redactor:
    """Replaces registered secrets in text, also where they are URL-quoted, escaped, in base64 or hexadecimal.

    A secret that was added twice must be discarded twice: an old and a new configuration may hold the same
    one. A line costs hardly more with thousands of secrets than with one: a form with a long run of
    characters is found by a part of that run, and only forms without one are searched for in each line.
    ``before_discard`` is called before a secret is forgotten, for lines that are not yet redacted.
    """

    def __init__(self) -> None:
        self.before_discard: Callable[[], None] | None = None
        self.leaks = LeakSearch()
        """Finds the same secrets, without the tokens, in what goes to the cloud."""
        self._lock = threading.Lock()
        self._added: dict[str, int] = {}
        self._forms_of: dict[str, frozenset[str]] = {}
        self._by_gram: dict[str, tuple[str, ...]] = {}  # forms with a long run, by parts of its end
        self._run = b""  # in the mask: as long as the shortest of these runs
        self._keyless: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Redactor secrets={len(self._added)}>"

    def add(self, secret: str, *, is_token: bool = False) -> None:
        """Redact a secret from now on, and let ``leaks`` find it; one under `SHORTEST_SECRET` is only found.

        ``is_token`` is for tokens, of which there are many and which stand in no Basic field: their base64,
        hexadecimal and reversed forms are left out.
        """
        with self._lock:
            count = self._added.get(secret, 0)
            self._added[secret] = count + 1
            if not count and not is_token:
                self.leaks.add(secret)
            if not count and len(secret) >= SHORTEST_SECRET:
                forms = frozenset(_forms(secret, is_token=is_token))
                self._forms_of[secret] = forms
                for form in forms:
                    self._add_form(form)

    def discard(self, secret: str) -> None:
        """Undo one `add`; an unknown secret is ignored."""
        if self.before_discard is not None:
            self.before_discard()
        with self._lock:
            count = self._added.pop(secret, 0)
            if count > 1:
                self._added[secret] = count - 1
            elif count:
                self.leaks.discard(secret)
                for form in self._forms_of.pop(secret, ()):
                    self._discard_form(form)

    def redact(self, text: str) -> str:
        """The text with every registered secret replaced."""
        found = [form for form in self._keyless if form in text]
        if self._by_gram:
            found += self._with_runs_in(text)
        # The longest first: a secret within another one would leave the rest of that one in the text.
        for form in sorted(found, key=len, reverse=True) if found else ():
            text = text.replace(form, REDACTED)
        return text

    def _with_runs_in(self, text: str) -> list[str]:
        """The forms that the text may hold, found by the text's long runs."""
        found: list[str] = []
        by_gram, run = self._by_gram, self._run
        # The mask has one byte for each character of the text; this is several times as fast as a regex.
        mask = text.encode("ascii", "replace").translate(_MASK)
        start = mask.find(run)
        while start >= 0:
            end = mask.find(b" ", start + len(run))
            if end < 0:
                end = len(mask)
            for place in range(start, end - _GRAM_LENGTH + 1, _STEP):
                if (gram := text[place : place + _GRAM_LENGTH]) in by_gram:
                    found += by_gram.get(gram, ())  # another thread may have removed it
            start = mask.find(run, end)
        return found

    # Two secrets may share a form, so a form is entered and removed once for each secret.

    def _add_form(self, form: str) -> None:
        run = _long_run(form)
        if not run:
            self._keyless = (*self._keyless, form)
        elif not self._by_gram or len(run) < len(self._run):
            self._run = b"x" * len(run)
        for gram in _grams_of(run):
            self._by_gram[gram] = (*self._by_gram.get(gram, ()), form)

    def _discard_form(self, form: str) -> None:
        run = _long_run(form)
        if not run:
            self._keyless = _without(self._keyless, form)
        for gram in _grams_of(run):
            if left := _without(self._by_gram[gram], form):
                self._by_gram[gram] = left
            else:
                del self._by_gram[gram]


def _long_run(form: str) -> str:
    """The last long run of a form, "" without one: a token's signature, since all tokens begin alike."""
    runs = _LONG_RUN.findall(form)
    return runs[-1] if runs else ""


def _grams_of(run: str) -> list[str]:
    """Parts of the end of a long run: in any text with this run, one of them begins at a place looked up."""
    key = run[-_KEY_LENGTH:]
    return [key[place : place + _GRAM_LENGTH] for place in range(_STEP)] if key else []


def _without(forms: tuple[str, ...], form: str) -> tuple[str, ...]:
    place = forms.index(form)
    return forms[:place] + forms[place + 1 :]


def _forms(secret: str, *, is_token: bool) -> Iterator[str]:
    """The forms that a secret may have in a line."""
    escaped = json.dumps(secret, ensure_ascii=False)
    yield secret
    yield from (escaped[1:-1], json.dumps(escaped, ensure_ascii=False)[3:-3])
    yield from (json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.encode("unicode_escape").decode())
    yield secret.replace("\\", "\\\\").replace("'", "\\'")
    yield from (quote(secret, safe=""), quote(secret), quote_plus(secret))
    if not is_token:
        raw = secret.encode()
        yield from (raw.hex(), raw.hex().upper(), secret[::-1])
        for form in map(bytes.decode, base64_forms(raw)):
            if len(form) >= SHORTEST_SECRET:
                yield from (form, form.translate(_URL_SAFE))
