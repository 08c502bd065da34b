"""The configuration as text for another place: without secrets, which come from files there.

Hides which keys can travel: paths of this computer can't. Pure.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.secret import Secret
from proxy.settings import Settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_STAYS = ("host", "client_secret_command")
"""What is said of this computer alone, beside paths."""


def config(settings: Settings, secrets: str, *, indent: int) -> str:
    """TOML, with each secret in a file of the folder ``secrets``, every line ``indent`` spaces in."""
    lines = []
    for section in ("server", "log", "contentsquare"):
        lines += _table(section, getattr(settings, section))
    for section in ("projects", "accounts", "callers"):
        for name, table in getattr(settings, section).items():
            lines += _table(f"{section}.{name}", table, f"{secrets}/{secret_name(section, name)}")
            if (standby := getattr(table, "standby", None)) is not None:
                path = f"{secrets}/{_standby_name(name)}"
                lines += _table(f"{section}.{name}.standby", standby, path)
    return "\n".join(f"{' ' * indent}{line}" for line in lines)


def secret_name(section: str, name: str) -> str:
    """The name of the file that a project's, an account's or a caller's secret is in.

    No name that is configured holds a ``_`` or ``.``, so that no two files can have one name. Compose,
    Kubernetes and systemd take both.
    """
    return f"caller_{name}" if section == "callers" else name


def secret_names(settings: Settings) -> list[str]:
    """The names of the files that the secrets are in."""
    names = []
    for section in ("projects", "accounts", "callers"):
        for name, table in getattr(settings, section).items():
            names.append(secret_name(section, name))
            if getattr(table, "standby", None) is not None:
                names.append(_standby_name(name))
    return names


def _standby_name(owner: str) -> str:
    return f"{owner}.standby"


def _table(title: str, table: DataclassInstance, secret: str | None = None) -> list[str]:
    lines = list(_lines(table))
    if secret is not None:
        key = "key_file" if title.startswith("callers.") else "client_secret_file"
        lines.append(f"{key} = {json.dumps(secret)}")
    return [f"[{title}]", *lines] if lines else []


def _lines(table: DataclassInstance) -> Iterator[str]:
    for field in fields(table):
        value = getattr(table, field.name)
        if value != field.default and field.name not in _STAYS and _travels(value):
            yield f"{field.name} = {_written(value)}"


def _travels(value: object) -> bool:
    return value is not None and not isinstance(value, (Secret, Path)) and not is_dataclass(value)


def _written(value: object) -> str:
    """A value in TOML, which has JSON's strings, numbers, booleans and lists."""
    if isinstance(value, enum.Enum):
        return _written(value.value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return str(value) if isinstance(value, dt.date) else json.dumps(value, ensure_ascii=False)
