"""Lenient servers, as far as it matters here: the other method that each of them reads in a request.

`requests` makes requests that may ask for another method by a field, a parameter or a form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from hypothesis import strategies as st
from support.readers import letters, pairs_of, query_of

NAMES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
PARAMETER = "_method"
PATHS = ("GET /v1/exports", "POST /v1/speed-analysis/event/list")


@dataclass(frozen=True)
class Call:
    """A request whose method and path only read."""

    start: str
    lines: tuple[str, ...] = ()
    content: bytes = b""

    @property
    def target(self) -> bytes:
        return self.start.split(" ")[1].encode()

    def values(self, name: str) -> list[str]:
        """The values of a field, whose name is in lower case."""
        pairs = (line.partition(":") for line in self.lines)
        return [value.strip() for key, _, value in pairs if key.lower() == name]

    def form(self, types: Iterable[str], *, untyped: bool = False) -> bytes:
        """The content, where its type is one of these; ``untyped``: also without a type."""
        given = self.values("content-type")
        kinds = {kind.partition(";")[0].strip().lower() for kind in given}
        return self.content if kinds & set(types) or (untyped and not given) else b""


FORM = "application/x-www-form-urlencoded"
MULTIPART = ("multipart/form-data", "multipart/mixed", "multipart/related")


def field_by_cgi(call: Call, *names: str) -> Iterator[str]:
    """CGI's variables: each mark becomes an underscore, as in lighttpd."""
    wanted = {re.sub("[^a-z0-9]", "_", name.lower()) for name in names}
    for line in call.lines:
        key, _, value = line.partition(":")
        if re.sub("[^a-z0-9]", "_", key.lower()) in wanted:
            yield value


def rack(call: Call) -> Iterator[str]:
    yield from field_by_cgi(call, NAMES[0])
    content = call.form((FORM, *MULTIPART), untyped=call.start.startswith("POST "))
    yield from (value for key, value in pairs_of(content, b"[&;] *") if key == PARAMETER)


def symfony(call: Call) -> Iterator[str]:
    """PHP: leading blanks go, a name ends at NUL, dots and blanks become underscores."""
    yield from field_by_cgi(call, NAMES[0])
    for text in (query_of(call.target), call.form((FORM, MULTIPART[0]))):
        for key, value in pairs_of(text, b"&"):
            if re.sub("[. ]", "_", key.lstrip(" ").partition("\0")[0]) == PARAMETER:
                yield value


def spring(call: Call) -> Iterator[str]:
    for text in (query_of(call.target), call.form((FORM, MULTIPART[0]))):
        yield from (value for key, value in pairs_of(text, b"&") if key == PARAMETER)


def express(call: Call) -> Iterator[str]:
    """The getters that its documentation names; qs reads a name in brackets, too."""
    for name in NAMES:
        yield from call.values(name.lower())
    for key, value in pairs_of(query_of(call.target), b"&"):
        if key.strip("[]") == PARAMETER:
            yield value


def asp_net(call: Call) -> Iterator[str]:
    """Names in any case; wide letters fit to ASCII's."""
    yield from call.values(NAMES[0].lower())
    for text in (query_of(call.target), call.form((FORM, MULTIPART[0]))):
        for key, value in pairs_of(text, b"&"):
            fit = "".join(chr(ord(char) - 0xFEE0) if 0xFF01 <= ord(char) <= 0xFF5E else char for char in key)
            if fit.lower() == NAMES[0].lower():
                yield value


READERS = (rack, symfony, spring, express, asp_net)


def methods_read(call: Call) -> dict[str, list[str]]:
    """By the reader's name: the methods it reads, also behind a front server that decodes once or twice."""
    method, target = call.start.encode().split(b" ", 1)
    once = unquote_to_bytes(target)
    fronts = {text.decode("utf-8", "replace") for text in (target, once, unquote_to_bytes(once))}
    calls = [Call(f"{method.decode()} {text.replace(' ', '+')}", call.lines, call.content) for text in fronts]
    found = {reader.__name__: [value for one in calls for value in reader(one)] for reader in READERS}
    return {name: values for name, values in found.items() if values}


# The grammar of requests


@st.composite
def spelt(draw: st.DrawFn, word: str) -> str:
    """The word, with up to three characters in another spelling."""
    chars = list(word)
    for at in draw(st.lists(st.integers(0, len(chars) - 1), max_size=3, unique=True)):
        chars[at] = draw(st.sampled_from(letters(chars[at])))
    return "".join(chars)


@st.composite
def field_names(draw: st.DrawFn) -> str:
    words = draw(st.sampled_from(NAMES)).split("-")
    name = words[0] + "".join(
        draw(st.sampled_from(("-", "_", ".", "~", "!", ""))) + word for word in words[1:]
    )
    return draw(st.sampled_from((name, name.lower(), name.upper())))


def parameters() -> st.SearchStrategy[str]:
    names = st.sampled_from((PARAMETER, NAMES[0])).flatmap(spelt)
    dotted = st.sampled_from(
        (".method", "%20_method", "+_method", "[_method]", "_method%00x", "%5B_method%5D")
    )
    values = st.sampled_from(("DELETE", "put", "%50ATCH"))
    return st.tuples(names | dotted, st.just("="), values).map("".join)


@st.composite
def requests(draw: st.DrawFn) -> Call:
    """Requests that may ask for another method."""
    start, lines, content = draw(st.sampled_from(PATHS)), [], b""
    way = draw(st.sampled_from(("field", "query", "form")))
    if way == "field":
        lines.append(f"{draw(field_names())}: DELETE")
    elif way == "query":
        before = draw(st.sampled_from(("?", "?a=1&", "?a=1%26", "?a=1;", "?a=1%2526", "%3f")))
        start += before + draw(parameters())
    else:
        kind = draw(
            st.sampled_from((None, FORM, FORM.upper(), FORM + "; charset=x", *MULTIPART, "application/json"))
        )
        lines += [] if kind is None else [f"Content-Type: {kind}"]
        content = draw(parameters()).encode("utf-8")
        lines.append(f"Content-Length: {len(content)}")
    return Call(start, tuple(lines), content)


KNOWN = (
    Call(PATHS[0], ("X-HTTPMethodOverride: DELETE", "X-HTTP-Method-Override: DELETE")),
    Call(PATHS[1], ("X~HTTP~Method~Override: DELETE",)),
    Call(PATHS[0] + "?_method=DELETE"),
    Call(PATHS[0] + "?.method=DELETE"),
    Call(PATHS[0] + "?a=1%26_method=DELETE"),
    Call(PATHS[0] + "?%5B_method%5D=DELETE"),
    Call(PATHS[0] + "?x-http-method-overrid\uff45=DELETE"),
    Call(PATHS[1], (f"Content-Type: {FORM}", "Content-Length: 14"), b"_method=DELETE"),
    Call(PATHS[1], ("Content-Type: multipart/mixed", "Content-Length: 14"), b"_method=DELETE"),
    Call(PATHS[1], ("Content-Length: 14",), b"_method=DELETE"),
)
"""Requests that some server takes for a DELETE."""
