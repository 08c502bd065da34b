"""The keys that a configuration may have, and how text becomes their values; derived from the models."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, get_args, get_origin

from proxy.config.settings import Settings, Table
from proxy.secret import Secret


class Leaf(enum.Enum):
    """The kind of a key's value, as far as reading it from text needs it."""

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
    return _keys(Settings)


def _keys(model: type[Settings | Table]) -> Schema:
    return MappingProxyType({key: _node(field.annotation) for key, field in model.model_fields.items()})


def _node(annotation: object) -> Leaf | Schema:
    parts = set(_parts(annotation))
    for part in parts:
        if isinstance(part, type) and issubclass(part, Table):
            keys = _keys(part)
            return MappingProxyType({ANY_NAME: keys}) if Mapping in parts else keys
    if tuple in parts:
        return Leaf.LIST
    if Path in parts:
        return Leaf.PATH
    return Leaf.SECRET if Secret in parts else Leaf.SCALAR


def _parts(annotation: object) -> Iterator[object]:
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)
