"""The words that a shell offers when Tab is pressed: projects of the configuration, and names of snippets.

Reads only names: reads no secret, starts no password manager, and offers nothing for a faulty file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS
from proxy.config import environment
from proxy.config.checks import name_fault
from proxy.config.files import find_config_file, read_toml
from proxy.config.keys import schema
from proxy.errors import ConfigError


def projects(config: Path | None, incomplete: str) -> list[str]:
    """The projects that begin with ``incomplete``, an account's as ``acme/42``. ``config``: ``--config``."""
    tables = [environment.read(os.environ, schema()).values]
    if (path := find_config_file(config, os.environ).path) is not None:
        with contextlib.suppress(ConfigError):
            tables.append(read_toml(path, []))
    return sorted({name for table in tables for name in _names(table) if name.startswith(incomplete)})


def tools(incomplete: str) -> list[str]:
    """The names of snippets that begin with ``incomplete``."""
    return [name for name in FOR_CALLERS + FOR_OPERATORS if name.startswith(incomplete)]


def _names(table: Mapping[str, Any]) -> Iterator[str]:
    yield from _tables(table, "projects")
    for name, account in _tables(table, "accounts").items():
        numbers = account.get("projects") if isinstance(account, dict) else None
        if isinstance(numbers, list):
            yield from (f"{name}/{number}" for number in numbers if type(number) is int and number > 0)
        else:
            yield f"{name}/"


def _tables(table: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """The tables with a valid name: a shell or a terminal may obey another name."""
    found = table.get(section)
    tables = found if isinstance(found, dict) else {}
    return {name: one for name, one in tables.items() if name_fault(name) is None}
