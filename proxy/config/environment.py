"""Settings from environment variables: a nested dict, and the variable behind each key.

``CSQ_PROXY_SECTION__KEY`` for every key, and the lone sidecar's ``CONTENTSQUARE_...``. A value stays text,
except for a list. An empty value counts as not given: ``${VARIABLE:-}`` makes one in a compose file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from proxy.config.keys import ANY_NAME, Leaf, Schema
from proxy.config.variables import CONFIG, KEY, PREFIX

SIDECAR = {
    "CONTENTSQUARE_CLIENT_ID": "client_id",
    "CONTENTSQUARE_CLIENT_SECRET": "client_secret",
    "CONTENTSQUARE_CLIENT_SECRET_FILE": "client_secret_file",
    "CONTENTSQUARE_PROJECT_ID": "project_id",
    "CONTENTSQUARE_INTEGRATION_ID": "integration_id",
}
SIDECAR_PROJECT = "default"
_SECRETS = ("CONTENTSQUARE_CLIENT_SECRET", "CONTENTSQUARE_CLIENT_SECRET_FILE")
# Kubernetes puts the address of every Service into each pod's environment: a Service named csq-proxy (or
# csq-proxy-something) makes variables with our prefix.
_SERVICE_LINK = re.compile(
    r"CSQ_PROXY_(?:[A-Z0-9]+_)*?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9]+)*|PORT_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)\Z"
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")
_IPV6_HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]")


class Environment(NamedTuple):
    """``names`` has the variable behind each key, and ``faults`` whole lines for people.

    ``refused`` are the keys of a sidecar's project that a line in ``faults`` refuses.
    """

    values: dict[str, Any]
    names: dict[tuple[str, ...], str]
    faults: list[str]
    refused: list[tuple[str, ...]]


def read(environ: Mapping[str, str], schema: Schema) -> Environment:
    """The settings that the environment gives. A variable without our prefix is passed over."""
    found = Environment({}, {}, [], [])
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in (CONFIG, KEY) or _is_service_link(name, value):
            continue
        path, leaf = _resolve(name, schema)
        if leaf is None:
            found.faults.append(f"{name}: unknown variable{_suggestion(name, schema)}")
        elif value and (parsed := _parse(found, name, value) if leaf is Leaf.LIST else value) is not None:
            _put(found, path, name, parsed)
    _read_sidecar(environ, found)
    return found


def _is_service_link(name: str, value: str) -> bool:
    is_url = name.endswith("_PORT") and "__" not in name and _SERVICE_URL.match(value)
    return bool(is_url or _SERVICE_LINK.match(name))


def _resolve(name: str, schema: Schema) -> tuple[tuple[str, ...], Leaf | None]:
    path: tuple[str, ...] = ()
    node: Schema | Leaf | None = schema
    for part in name.removeprefix(PREFIX).lower().split("__"):
        if node is None or isinstance(node, Leaf) or not part:
            return path, None
        if ANY_NAME in node:
            # A project's name has hyphens and no underscores; a variable's, the other way round.
            path, node = (*path, part.replace("_", "-")), node[ANY_NAME]
        else:
            path, node = (*path, part), node.get(part)
    return path, node if isinstance(node, Leaf) else None


def _put(found: Environment, path: tuple[str, ...], name: str, value: object) -> None:
    table = found.values
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = value
    found.names[path] = name


def _parse(found: Environment, name: str, value: str) -> list[Any] | None:
    """The list; None after a fault."""
    if value.lstrip().startswith("[") and not _IPV6_HOST.match(value.lstrip()):
        try:
            items = json.loads(value)
        except (RecursionError, ValueError):
            found.faults.append(f"{name}: must be a JSON list, or values with commas between them")
            return None
        return list(items)
    return [item.strip() for item in value.split(",") if item.strip()]


def _suggestion(name: str, schema: Schema) -> str:
    parts = name.removeprefix(PREFIX).split("__")
    chosen = parts[1] if len(parts) > 2 and parts[1] else "NAME"
    known = [CONFIG, *(f"{PREFIX}{rest}" for rest in _variables(schema, chosen))]
    same_key = [
        candidate for candidate in known if candidate.removeprefix(PREFIX).split("__")[-1] == parts[-1]
    ]
    matches = difflib.get_close_matches(name, same_key or known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else "; see config.example.toml for the settings"


def _variables(schema: Schema, chosen: str) -> Iterator[str]:
    for key, node in schema.items():
        name = chosen if key == ANY_NAME else key.upper()
        if isinstance(node, Leaf):
            yield name
        else:
            yield from (f"{name}__{rest}" for rest in _variables(node, chosen))


def _read_sidecar(environ: Mapping[str, str], found: Environment) -> None:
    given = {name: environ[name] for name in SIDECAR if environ.get(name)}
    if not given:
        return
    if SIDECAR_PROJECT in found.values.get("projects", {}):
        _refuse_sidecar(found, given)
        return
    missing = ["CONTENTSQUARE_CLIENT_ID"] if "CONTENTSQUARE_CLIENT_ID" not in given else []
    if not any(name in given for name in _SECRETS):
        missing.append("CONTENTSQUARE_CLIENT_SECRET")
    for name in missing:
        found.faults.append(f"{name}: missing, though {next(iter(given))} is set; set both or neither")
    if not missing:
        for name, value in given.items():
            _put(found, ("projects", SIDECAR_PROJECT, SIDECAR[name]), name, value)


def withdraw_sidecar(found: Environment) -> None:
    """Remove the sidecar's project, and add a fault: another place configures a project of its name."""
    given = {name: key for key, name in found.names.items() if name in SIDECAR}
    if given:
        for key in given.values():
            del found.names[key]
        del found.values["projects"][SIDECAR_PROJECT]
        _refuse_sidecar(found, given)


def _refuse_sidecar(found: Environment, given: Iterable[str]) -> None:
    found.faults.append(
        f"{next(iter(given))}: makes a project named {SIDECAR_PROJECT}, but [projects.{SIDECAR_PROJECT}] is "
        "configured too; unset the variable, or rename the project"
    )
    # A secret that was given as a file would be missing as a secret.
    found.refused.extend(("projects", SIDECAR_PROJECT, SIDECAR[name].removesuffix("_file")) for name in given)
