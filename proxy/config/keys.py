"""Which keys a configuration may have, and what reading them from text has to know of each.

Derived from `proxy.config.settings`, so that there is one list of keys; knows no values.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, get_args, get_origin, get_type_hints

from proxy.config.settings import Settings
from proxy.secret import Secret


class Leaf(enum.Enum):
    """What a key holds, as far as reading it from text is concerned."""

    SCALAR = "scalar"
    LIST = "list"
    PATH = "path"
    SECRET = "secret"  # noqa: S105 - a kind of key


Schema: TypeAlias = Mapping[str, "Leaf | Schema"]
ANY_NAME = "*"
"""The key in a `Schema` that stands for the names that people choose."""


@functools.cache
def schema() -> Schema:
    """The keys of each table, nested; a table of named tables has the one key `ANY_NAME`."""
    nodes = _nodes(Settings)
    # Everything in a file is in a table; what else the settings have is not to be written.
    return MappingProxyType({key: node for key, node in nodes.items() if not isinstance(node, Leaf)})


def _nodes(table: type) -> Schema:
    hints = get_type_hints(table)
    return MappingProxyType({key: _node(hints[key]) for key in hints if not key.startswith("_")})


def _node(annotation: object) -> Leaf | Schema:
    parts = set(_parts(annotation))
    for part in parts:
        if isinstance(part, type) and is_dataclass(part):
            table = _nodes(part)
            return MappingProxyType({ANY_NAME: table}) if Mapping in parts else table
    if tuple in parts:
        return Leaf.LIST
    if Path in parts:
        return Leaf.PATH
    return Leaf.SECRET if Secret in parts else Leaf.SCALAR


def _parts(annotation: object) -> Iterator[object]:
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)
