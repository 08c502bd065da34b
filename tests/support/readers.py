"""Lenient servers, as far as it matters here: the projects that each of them reads in a request's target.

Every reader takes the target as bytes, and gives the numbers of all projects that a program on this server
could take from a parameter like ``projectId`` or from a path like ``/projects/42``. `targets` makes such
targets.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote_to_bytes

from hypothesis import strategies as st

_OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80\x81][\x80-\xbf]")


class Pairs(list[tuple[str, object]]):
    """A JSON object: parsers differ in which of two pairs with the same key counts."""


def decoded(text: bytes) -> bytes:
    """Percent-decoded once, as each reader does it."""
    return unquote_to_bytes(text.replace(b"+", b" "))


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def is_project_id(key: str) -> bool:
    """Names are compared without case, and without marks between the words, as binders of parameters do."""
    return "projectid" in re.sub(r"[^a-z0-9]", "", key.lower())


def leading(value: str) -> set[int]:
    """PHP's intval, JavaScript's parseInt: the digits at the start."""
    found = re.match(r"\s*\+?([0-9]{1,18})", value)
    return {int(found[1])} if found else set()


def whole(value: str) -> set[int]:
    """Python's int, Java's parseInt, .NET's Parse: the whole text, with digits of any script."""
    try:
        return {int(value.strip("\0 \t"))}
    except ValueError:
        return set()


def in_json(value: object) -> set[int]:
    """Numbers behind a project's key, at any depth."""
    if not isinstance(value, Pairs):
        return set().union(*map(in_json, value)) if isinstance(value, list) else set()
    found = set().union(*(in_json(inner) for _, inner in value))
    for key, inner in value:
        if is_project_id(key):
            for one in inner if isinstance(inner, list) else [inner]:
                found |= whole(str(one))
    return found


def numbers(pairs: Iterable[tuple[str, str]], number: Callable[[str], set[int]]) -> set[int]:
    """The numbers in all pairs of key and value that name a project; a value may be a list, or JSON."""
    found: set[int] = set()
    for key, value in pairs:
        if is_project_id(key):
            for one in value.strip("[]").split(","):
                found |= number(one.strip("\"'"))
        with contextlib.suppress(ValueError, RecursionError):
            found |= in_json(json.loads(value, object_pairs_hook=Pairs))
    return found


def query_of(target: bytes) -> bytes:
    return target.partition(b"?")[2].partition(b"#")[0]


def pairs_of(query: bytes, separator: bytes) -> Iterator[tuple[str, str]]:
    for part in re.split(separator, query):
        key, _, value = part.partition(b"=")
        yield text_of(decoded(key)), text_of(decoded(value))


def in_path(path: str, number: Callable[[str], set[int]]) -> set[int]:
    """The numbers behind ``/project/`` and ``/projects/``, where an extension may stand behind the word."""
    return set().union(*map(number, re.findall(r"/projects?(?:\.[a-z]+)?[\s\0]*/([^/]*)", path.lower())))


def without_dots(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == ".." and kept:
            kept.pop()
        elif segment not in (".", ".."):
            kept.append(segment)
    return "/".join(kept)


def path_of(target: bytes) -> str:
    return text_of(decoded(re.split(rb"[?#]", target, maxsplit=1)[0]))


def php(target: bytes) -> set[int]:
    """A name ends at NUL and loses leading blanks; dots, blanks and a lone bracket become underscores."""
    pairs = (
        (re.sub(r"[. \[]", "_", key.lstrip(" ").partition("\0")[0]), value)
        for key, value in pairs_of(query_of(target), b"&")
    )
    return numbers(pairs, leading) | in_path(re.sub("/+", "/", path_of(target)), leading)


def qs(target: bytes) -> set[int]:
    """Node's qs, which takes the first equals sign behind a bracket. Express routes keep slashes."""
    found: set[int] = set()
    for part in query_of(target).split(b"&"):
        cut = part.find(b"]=")
        key, _, value = (part[: cut + 1], b"", part[cut + 2 :]) if cut >= 0 else part.partition(b"=")
        found |= numbers(iter([(text_of(decoded(key)), text_of(decoded(value)))]), leading)
    return found | in_path(path_of(target), leading)


def rack(target: bytes) -> set[int]:
    """Semicolons separate, too, and digits may be grouped by underscores."""

    def to_i(value: str) -> set[int]:
        return leading(re.sub(r"(?<=[0-9])_(?=[0-9])", "", value))

    path = without_dots(re.sub("/+", "/", path_of(target)))
    return numbers(pairs_of(query_of(target), b"[&;] *"), to_i) | in_path(path, to_i)


def spring(target: bytes) -> set[int]:
    """Parameters of path segments count, and are removed before the path is decoded and matched."""
    path, _, _ = target.partition(b"?")
    matrix = [pair for part in path.split(b"/") for pair in part.split(b";")[1:]]
    plain = text_of(decoded(re.sub(rb";[^/]*", b"", path)).replace(b"\\", b"/"))
    found = numbers(pairs_of(query_of(target), b"&"), whole) | numbers(
        pairs_of(b"&".join(matrix), b"&"), whole
    )
    return found | in_path(without_dots(re.sub("/+", "/", plain)), whole) | in_path(plain, whole)


def asp_net(target: bytes) -> set[int]:
    """``%uXXXX`` is a character, wide letters fit to ASCII's, segments lose trailing dots and blanks.

    Old versions read overlong UTF-8, and OData's keys stand in brackets.
    """

    def wide(found: re.Match[bytes]) -> bytes:
        return chr(int(found[1], 16)).encode("utf-8", "replace")

    def fit(text: str) -> str:
        return "".join(chr(ord(char) - 0xFEE0) if 0xFF01 <= ord(char) <= 0xFF5E else char for char in text)

    def text(raw: bytes) -> str:
        plain = _OVERLONG.sub(
            lambda found: bytes((found[0][-2] << 6 & 0xC0 | found[0][-1] & 0x3F,)), decoded(raw)
        )
        return fit(text_of(plain))

    target = re.sub(rb"%u([0-9a-fA-F]{4})", wide, target)
    parts = [part.partition(b"=") for part in query_of(target).split(b"&")]
    pairs = [(text(key), text(value)) for key, _, value in parts]
    path = text(re.split(rb"[?#]", target, maxsplit=1)[0]).replace("\\", "/")
    path = re.sub(r"[. ]+(?=/|\Z)", "", re.sub("/+", "/", without_dots(path)))
    found = numbers(pairs, whole) | in_path(path, whole)
    return found.union(*map(whole, re.findall(r"/projects?\((?:id=)?([^)]*)\)", path.lower())))


def flask(target: bytes) -> set[int]:
    """Werkzeug: keys and values decode once, slashes merge, Python's int reads the number."""
    path = re.sub("/+", "/", path_of(target))
    return numbers(pairs_of(query_of(target), b"&"), whole) | in_path(path, whole)


READERS = (php, qs, rack, spring, asp_net, flask)


def projects_read(target: bytes) -> dict[str, set[int]]:
    """By the reader's name: all projects it reads, also behind a front server that decodes once or twice."""
    found: dict[str, set[int]] = {reader.__name__: set() for reader in READERS}
    for front in (target, unquote_to_bytes(target), unquote_to_bytes(unquote_to_bytes(target))):
        for reader in READERS:
            found[reader.__name__] |= reader(front)
    return found


# The grammar of targets: the same tables make them and recognise them

BETWEEN = ("%00", "_", ".", "%20", "-", "+")
PREFIXES = ("", "filter[", "a.", "q%5B", "%20", "%00")
SUFFIXES = ("", "s", "]", "[]", "[0]", ".0", "%5B%5D", "][eq]", "%00", "%26", "!", ";x")
KEYS = ("projectId", "project[id", "project][id", "projectid", "PROJECTID")
EQUALS = ("=", "%3d")
NUMBERS = ("43", "42", "042")
VALUES = ("{}", "42,{}", "%20{}", "{}%00", "[{}]", "%22{}%22", "+{}", "4_3", "4%2533", "%252543")
JSONS = (
    'a={{"projectId":42,"{}":{}}}',
    'a={{"projectId":42,"b":[{{"{}":{}}}]}}',
    "filter=%7B%22{}%22:{}%7D",
    "filter=%7B%22{}%22%3A[{}]%7D",
    'a={{"{}":{}}}',
)
MARKS = ("&", ";", "?", "%26")
PATHS = ("project", "projects")
BEHIND = ("", "%20", ".json", ";x", ";a=43", ".", "%00")
DOTS = ("%c0%af", "/42/%c0%ae%c0%ae/", "/42/%2e%2e/")
SLASHES = (
    *DOTS,
    "/",
    "//",
    "%2f",
    "%252F",
    "\\",
    "%5c",
    "/./",
    "/%2e/",
    "/a/../",
    "/;x/",
    "/%20/",
    "(",
    "(id=",
)
ENDS = ("", ")", ";projectId=43", "/projects/43", ";43", ".json", "/../43", "/..;/43", "/surveys")


def letters(char: str) -> tuple[str, ...]:
    """Ways to spell a character: the other case, codes, escapes, overlong UTF-8, and the wide character."""
    code = ord(char)
    wide = chr(code + 0xFEE0)
    last = f"%{0x80 | code & 0x3F:02x}"
    overlong = f"%{0xC0 | code >> 6:02x}{last}"
    coded = (f"%{code:02x}", f"%{code:02X}", f"%25{code:02x}", f"%u00{code:02x}", f"%5Cu00{code:02x}")
    longer = f"%e0%{0x80 | code >> 6:02x}{last}"
    odd = (f"\\u00{code:02x}", f"%u{code + 0xFEE0:04X}", overlong, overlong.replace("%", "%25"), longer)
    return (char, char.swapcase(), *coded, *odd, wide, "".join(f"%{byte:02X}" for byte in wide.encode()))


@st.composite
def spelt(draw: st.DrawFn, words: tuple[str, ...]) -> str:
    """A word of these, with up to three characters in another spelling, or with a mark behind them."""
    chars = list(draw(st.sampled_from(words)))
    for at in draw(st.lists(st.integers(0, len(chars) - 1), max_size=3, unique=True)):
        char = chars[at]
        ways = (*letters(char), *(char + mark for mark in BETWEEN)) if char.isalnum() else (char,)
        chars[at] = draw(st.sampled_from(ways))
    return "".join(chars)


def values() -> st.SearchStrategy[str]:
    return st.builds(str.format, st.sampled_from(VALUES), spelt(NUMBERS))


def parameters() -> st.SearchStrategy[str]:
    parts = (
        st.sampled_from(PREFIXES),
        spelt(KEYS),
        st.sampled_from(SUFFIXES),
        st.sampled_from(EQUALS),
        values(),
    )
    objects = st.builds(str.format, st.sampled_from(JSONS), spelt(KEYS[:1]), spelt(NUMBERS))
    return st.tuples(*parts).map("".join) | objects | st.sampled_from(("projectId=42", "a=1"))


def paths() -> st.SearchStrategy[str]:
    named = (
        spelt(PATHS),
        st.sampled_from(BEHIND),
        st.sampled_from(SLASHES),
        spelt(NUMBERS),
        st.sampled_from(ENDS),
    )
    return st.just("x") | st.tuples(*named).map("".join) | parameters().map(";{}".format)


@st.composite
def targets(draw: st.DrawFn) -> str:
    """Targets that may name a project."""
    target = "/v1/" + draw(paths())
    for mark in ("?", *draw(st.lists(st.sampled_from(MARKS), max_size=2))):
        target += mark + draw(parameters())
    return target


def _one_of(choices: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, choices))})"


def _spelt(words: tuple[str, ...]) -> str:
    return _any_of(
        "".join(
            _one_of(letters(char)) + _one_of(BETWEEN) + "?" if char.isalnum() else re.escape(char)
            for char in word
        )
        for word in words
    )


def _any_of(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(patterns)})"


def _filled(forms: tuple[str, ...], *inner: str) -> str:
    """A pattern for the forms; in each, ``{}`` stands for the next of the inner patterns."""
    found = []
    for form in forms:
        texts = [text.replace("{{", "{").replace("}}", "}") for text in form.split("{}")]
        gaps = [*inner[: len(texts) - 1], ""]
        found.append("".join(re.escape(text) + gap for text, gap in zip(texts, gaps, strict=True)))
    return _any_of(found)


_PARAMETER = _any_of(
    (
        _one_of(PREFIXES)
        + _spelt(KEYS)
        + _one_of(SUFFIXES)
        + _one_of(EQUALS)
        + _filled(VALUES, _spelt(NUMBERS)),
        _filled(JSONS, _spelt(KEYS[:1]), _spelt(NUMBERS)),
        "projectId=42|a=1",
    )
)
_PATH = _spelt(PATHS) + _one_of(BEHIND) + _one_of(SLASHES) + _spelt(NUMBERS) + _one_of(ENDS)
TARGETS = re.compile(rf"/v1/(?:x|{_PATH}|;{_PARAMETER})\?{_PARAMETER}(?:{_one_of(MARKS)}{_PARAMETER}){{0,2}}")
"""All that `targets` makes, and more changes in a word."""

SPELLINGS = (
    "/v1/x?projectId[0]=43",
    "/v1/x?projectId.0=43",
    "/v1/x?filter[projectId][eq]=43",
    "/v1/x?projectIds=43",
    "/v1/x?filter=%7B%22projectId%22:43%7D",
    "/v1/x?%u0070rojectId=43",
    "/v1/x?pro%00jectId=43",
    "/v1/projects%20/43?a=1",
    "/v1/projects.json/43?a=1",
    "/v1/projects//43/surveys?a=1",
    "/v1/x?projectId=42&project_id=43",
    "/v1/x?projectId;x=43",
    "/v1/x?project%49d=43",
    "/v1/x?projectId=42%26projectId=43",
    "/v1/x?a=1;projectId=43",
    "/v1/x?project[id]=43",
    "/v1/x?project.id=43",
    "/v1/;projectId=43?a=1",
    "/v1/projects%2f43?a=1",
    "/v1/projects\\43?a=1",
    "/v1/projects/42/../43?a=1",
    "/v1/projects;x/43?a=1",
    "/v1/x?projectId=4%2533",
)
"""Spellings of project 43: those of issue 14, and more of their kind."""
