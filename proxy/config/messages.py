"""The faults of a configuration as lines for people: the key, the fault, the way out.

No line holds a value from the configuration, since a secret may stand in the wrong place; only the names of
tables are shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from proxy.config.keys import ANY_NAME, Leaf, Schema

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KeyPath: TypeAlias = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_MISSING = {
    "client_id": "missing; it comes with the credentials made in the Contentsquare console",
    "client_secret": "missing; give client_secret, client_secret_file or client_secret_command",
    "key": "missing; give key or key_file",
}
NOT_A_TABLE = "must be a table, such as [server] or [projects.NAME]"
_BY_TYPE = {
    "bool": "must be true or false",
    "date": "must be a date, such as 2027-01-31",
    "float": "must be a number of seconds",
    "finite_number": "must be a number, not inf or nan",
    "int": "must be a whole number",
    "path_type": "must be a path, in quotes",
    "string_type": "must be text, in quotes",
    "tuple": "must be a list, in square brackets",
}


class Fault(NamedTuple):
    """``path`` is the key at fault. The fault can't be judged where a key in ``needs`` is faulty."""

    path: KeyPath
    text: str
    needs: tuple[KeyPath, ...] = ()


def dotted(path: KeyPath) -> str:
    """A key as it is written in TOML; an item of a list as ``[0]``."""
    written = ""
    for part in path:
        if isinstance(part, int):
            written += f"[{part}]"
            continue
        key = part if _BARE_KEY.match(part) else f'"{part.encode("unicode_escape").decode()}"'
        written += f".{key}" if written else key
    return written


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known name that is most like ``word``; None where none is like it."""
    lowered = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """``; did you mean NAME?``, or an empty text where no known name is like ``word``."""
    name = nearest(word, known)
    return f"; did you mean {name}?" if name else ""


def explain(error: ErrorDetails, schema: Schema) -> Fault:
    """An error of pydantic's in our words."""
    path: KeyPath = error["loc"]
    kind = error["type"]
    context: Mapping[str, Any] = error.get("ctx", {})
    if kind == "extra_forbidden":
        return Fault(path, unknown_key(path, schema))
    if kind == "missing":
        return Fault(path, _MISSING.get(str(path[-1]), "missing"))
    if kind == "value_error":
        return Fault(path, str(context["error"]))
    return Fault(path, _limit(context) or _choice(error, context) or _by_type(kind))


def _limit(context: Mapping[str, Any]) -> str:
    if "min_length" in context:
        return "must not be empty"
    for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
        if name in context:
            limit = context[name]
            return f"must be {words} {int(limit) if limit == int(limit) else limit}"
    return ""


def _choice(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    if "expected" not in context:
        return ""
    expected = str(context["expected"]).replace("'", "")
    known = expected.replace(" or ", ", ").split(", ")
    return f"must be {expected}{did_you_mean(str(error.get('input', '')), known)}"


def _by_type(kind: str) -> str:
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if kind in ("dict_type", "mapping_type", "model_type"):
        return NOT_A_TABLE
    return _BY_TYPE.get(kind.split("_", 1)[0], "isn't valid")


def unknown_key(path: KeyPath, schema: Schema) -> str:
    """The fault of an unknown key, with the table that it belongs to, or the nearest known key."""
    word = str(path[-1])
    here = _table(path[:-1], schema)
    homes = {key: table for table, key in _all_keys(schema) if _table(table, schema) is not here}
    if word in homes:
        return f"unknown key; it belongs to {_heading(homes[word])}"
    if near := nearest(word, here):
        return f"unknown key; did you mean {near}?"
    if near := nearest(word, homes):
        return f"unknown key; did you mean {near}, in {_heading(homes[near])}?"
    return f"unknown key; known here: {', '.join(here)}"


def _table(path: KeyPath, schema: Schema) -> Schema:
    for part in path:
        node = schema.get(str(part), schema.get(ANY_NAME, Leaf.SCALAR))
        if isinstance(node, Leaf):
            break
        schema = node
    return schema


def _all_keys(schema: Schema, table: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    # Of two tables with this key the later one wins in a dict, so the most likely tables come last.
    for key, node in reversed(list(schema.items())):
        if not isinstance(node, Leaf):
            yield from _all_keys(node, (*table, key))
        if key != ANY_NAME and table:
            yield table, key


def _heading(table: tuple[str, ...]) -> str:
    return f"[{'.'.join('NAME' if part == ANY_NAME else part for part in table)}]"
