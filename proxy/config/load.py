"""The configuration: flags, environment, secret files and TOML in, frozen settings out.

`load` reads every place and reports all faults at once, each as one line. The types of the keys are in
`config.settings`, and the rules for several keys in `config.checks`. Nothing is kept between two calls.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from proxy.config import checks, environment, secrets
from proxy.config.files import Found, absolute, find_config_file, read_table, read_toml, working_folder
from proxy.config.keys import ANY_NAME, Leaf, Schema, schema
from proxy.config.messages import NOT_A_TABLE, Fault, KeyPath, dotted, explain
from proxy.config.settings import ServerSettings, Settings
from proxy.errors import ConfigError, NothingConfigured
from proxy.secret import Secret

Layer: TypeAlias = dict[str, Any]
"""The values that one place gives, nested like the file."""

_MOST_ROUNDS = 5
"""A wrong value is removed in the first round, and is missing in the second where the key is required."""
_LISTENER = ("host", "port", "tcp", "unix_socket", "tls_cert")
_ALTERNATIVES = {
    "client_secret": ("client_secret", "client_secret_file", "client_secret_command"),
    "key": ("key", "key_file"),
}


def load(
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    search: bool = True,
) -> Settings:
    """The settings: overrides, then environment, then secret files, then file, then defaults.

    ``overrides`` is nested like the file, ``{"server": {"port": 9000}}``, and None in it means "not given".
    ``environ`` None is the process's. ``search`` False reads no file but an explicit one. Secret
    commands are run, `secrets.AT_ONCE` side by side, so this may take a while: at most 10 s each.

    Raises ConfigError with all faults.
    """
    return _load(config_file, overrides, environ, search=search)[0]


def load_with_origins(
    config_file: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Settings, Callable[[tuple[str, ...]], str]]:
    """As `load`, with a function that tells where a key's value came from. Raises ConfigError.

    The function gives ``flag``, the name of an environment variable, ``file``, or ``default``.
    """
    settings, loading = _load(config_file, overrides, environ, search=True)
    return settings, loading.origin


def _load(
    config_file: Path | None,
    overrides: Mapping[str, Any] | None,
    environ: Mapping[str, str] | None,
    *,
    search: bool,
) -> tuple[Settings, _Loading]:
    environ = os.environ if environ is None else environ
    path, others = find_config_file(config_file, environ) if search or config_file else Found(None)
    loading = _read_all(path, overrides or {}, environ)
    settings = loading.settings(others)
    loading.faults.extend(loading.line(fault) for fault in checks.check(settings) if loading.stands(fault))
    if not loading.faults and not (settings.projects or settings.accounts):
        raise NothingConfigured(
            'projects: none is configured; run "csq-proxy init" to write a configuration file, '
            "set CONTENTSQUARE_CLIENT_ID and CONTENTSQUARE_CLIENT_SECRET (in a container, say), "
            'or "csq-proxy serve --sandbox" to try it without credentials'
            + (f"; the file that was read: {path}" if path else "")
            + (f"; passed over: {', '.join(others)}" if others else "")
        )
    if loading.faults:
        raise ConfigError(*loading.faults)
    return settings, loading


def load_listener(file: Path | None, environ: Mapping[str, str]) -> ServerSettings:
    """The keys of ``[server]`` that tell where the proxy listens (`_LISTENER`); the others are defaults.

    For commands that call a running proxy: the rest of the ``file`` (None: there is none) may have faults,
    no secret is read and no command is run. Raises ConfigError.
    """
    return _part_of(file, {}, environ, _listener_of).server


def project_ports(file: Path | None, environ: Mapping[str, str]) -> set[int]:
    """The ports of the projects' own listeners, as far as they can be read. Raises ConfigError."""
    ports: set[int] = set()
    for layer in (environment.read(environ, schema()).values, read_toml(file, []) if file else {}):
        tables = layer.get("projects")
        for table in tables.values() if isinstance(tables, dict) else ():
            with contextlib.suppress(KeyError, OverflowError, TypeError, ValueError):
                ports.add(int(table["port"]))
    return ports


def load_trial(file: Path | None, tables: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings of the projects and accounts in ``tables`` alone, and how Contentsquare is reached.

    For a trial of credentials that are in no file yet. ``file`` None: there is none; it may have faults
    elsewhere, none of its secrets is read, and no command is run. Raises ConfigError.
    """
    return _part_of(file, tables, environ, lambda layer: {"contentsquare": layer.get("contentsquare", {})})


def _part_of(
    path: Path | None,
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    part_of: Callable[[Layer], Layer],
) -> Settings:
    """The settings of a part of the file and of the environment, beside defaults. Raises ConfigError."""
    faults: list[str] = []
    file = read_toml(path, faults) if path else {}
    found = environment.read(environ, schema())
    cwd = working_folder()
    given = _prepared(overrides, schema(), cwd, environ)
    env = _prepared(part_of(found.values), schema(), cwd, environ)
    file = _prepared(part_of(file), schema(), path.parent if path else cwd, environ)
    settings = _Loading(given, env, file, found.names, faults, source=path).settings()
    if faults:
        raise ConfigError(*faults)
    return settings


def _listener_of(layer: Layer) -> Layer:
    server = layer.get("server")
    table = server if isinstance(server, dict) else {}
    return {"server": {key: table[key] for key in _LISTENER if key in table}}


def _read_all(path: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> _Loading:
    """Read every place; paths are absolute and secrets are fetched afterwards."""
    faults: list[str] = []
    found = environment.read(environ, schema())
    file, status = read_table(path, faults) if path else ({}, None)
    if path and status and (fault := _exposed(path, file, status)):
        faults.append(fault)
    for section in schema():
        if not isinstance(file.get(section, {}), dict):
            faults.append(f"{section}: {NOT_A_TABLE}")  # a flag or a variable in the section would hide it
            del file[section]
    sidecar = ("projects", environment.SIDECAR_PROJECT)
    if _get(file, sidecar) is not None or _get(overrides, sidecar) is not None:
        environment.withdraw_sidecar(found)
    faults += found.faults
    cwd = working_folder()
    folder = path.parent if path else cwd
    loading = _Loading(
        _prepared(overrides, schema(), cwd, environ),
        _prepared(found.values, schema(), cwd, environ),
        _prepared(file, schema(), folder, environ),
        found.names,
        faults,
        source=path,
    )
    loading.fetch_secrets(folder)
    for key in found.refused:
        loading.excuse(key)
    return loading


class _Loading:
    """One load: the layers, and the faults that were found so far.

    ``names`` has the environment variable behind each key, ``source`` is the file. `broken` are the keys
    with a fault, so that a consequence of the fault isn't reported as a second fault.
    """

    def __init__(
        self,
        overrides: Layer,
        env: Layer,
        file: Layer,
        names: Mapping[tuple[str, ...], str],
        faults: list[str],
        *,
        source: Path | None,
    ) -> None:
        self.faults = faults
        self.broken: set[KeyPath] = set()
        self._overrides = overrides
        self._env = env
        self._secrets: Layer = {}
        self._file = file
        self._names = names
        self._source = source

    @property
    def _layers(self) -> tuple[Layer, ...]:
        return self._overrides, self._env, self._secrets, self._file

    def settings(self, passed_over: tuple[str, ...] = ()) -> Settings:
        """The settings as far as they are valid: each fault is noted, and its value is left out.

        So the checks can judge the rest, and one start shows every fault.
        """
        for _ in range(_MOST_ROUNDS):
            try:
                variables = tuple(self._secret_variables())
                return Settings.of_layers(self._layers, self._source, variables, passed_over)
            except ValidationError as invalid:
                before = frozenset(self.broken)
                for error in invalid.errors(include_url=False):
                    fault = explain(error, schema())
                    key = _without_places(fault.path)
                    # Report each wrong item of a list, but not the list itself, which then lacks these items.
                    if key not in (before if fault.path != key else self.broken):
                        self.faults.append(self.line(fault))
                    self._repair(key, is_missing=error["type"] == "missing")
        raise ConfigError(*self.faults)

    def origin(self, path: tuple[str, ...]) -> str:
        """The place that gave a key's value, as in `load_with_origins`."""
        if _get(self._overrides, path) is not None:
            return "flag"
        if _get(self._env, path) is not None:
            return self._names[path]
        return "file" if _get(self._file, path) is not None else "default"

    def _secret_variables(self) -> Iterator[str]:
        """The variables that hold a secret which is used."""
        for path, name in self._names.items():
            if isinstance(_get(self._env, path), Secret) and _get(self._overrides, path) is None:
                yield name

    def _repair(self, path: KeyPath, *, is_missing: bool) -> None:
        """Remove a wrong value, or put a stand-in, unlike every other, where a value is missing."""
        self.broken.add(path)
        if is_missing:
            _put(self._overrides, path, f"stand-in {len(self.broken)}")
            return
        for layer in self._layers:
            parent = _get(layer, path[:-1])
            if isinstance(parent, dict):
                parent.pop(str(path[-1]), None)

    def excuse(self, path: KeyPath) -> None:
        """Let a key be missing, since the place that gave it was refused already."""
        if all(_get(layer, path) is None for layer in self._layers):
            self._repair(path, is_missing=path[-1] in ("client_id", "client_secret"))

    def fetch_secrets(self, folder: Path) -> None:
        """Fill the layer of secrets from the files and commands that the other layers name."""
        given = (self._overrides, self._env, self._file)
        wanted: list[tuple[KeyPath, KeyPath, secrets.Source]] = []
        for table in dict.fromkeys(path for layer in given for path in _secret_tables(layer)):
            key = "key" if table[0] == "callers" else "client_secret"
            for index, layer in enumerate(given):
                ways = [
                    way for way in _ALTERNATIVES[key] if (_get(layer, table) or {}).get(way) not in (None, "")
                ]
                if ways:
                    # A more specific place replaces the other places' way of giving the secret, too.
                    for lower in given[index + 1 :]:
                        _discard(_get(lower, table), _ALTERNATIVES[key])
                    place = folder if layer is self._file else None
                    wanted += self._sources((*table, key), ways, layer, place)
                    break
        found = secrets.read_all(source for _, _, source in wanted)
        for path, named_by, source in wanted:
            secret = found[source]
            if isinstance(secret, Secret):
                _put(self._secrets, path, secret)
            else:
                self._refuse_secret(path, Fault(named_by, str(secret)))

    def _sources(
        self, path: KeyPath, ways: list[str], layer: Layer, folder: Path | None
    ) -> Iterator[tuple[KeyPath, KeyPath, secrets.Source]]:
        """The secret's key, the key that names its source, and the source. None of them after a fault."""
        way, *others = ways
        source = (*path[:-1], way)
        if others:
            self._refuse_secret(
                path, Fault((*path[:-1], others[0]), f"{way} is given too; keep only one of them")
            )
        elif way != path[-1]:
            try:
                yield path, source, _source(way, _get(layer, source), folder)
            except secrets.SecretUnusable as unusable:
                self._refuse_secret(path, Fault(source, str(unusable)))

    def _refuse_secret(self, path: KeyPath, fault: Fault) -> None:
        """Note the fault, and put a stand-in so that the secret doesn't count as missing, too."""
        self.faults.append(self.line(fault))
        self.broken.update((path, fault.path))
        _put(self._secrets, path, Secret(f"stand-in {len(self.broken)}"))

    def stands(self, fault: Fault) -> bool:
        """Whether a fault is more than the consequence of another one."""
        return not any(_without_places(path) in self.broken for path in (fault.path, *fault.needs))

    def line(self, fault: Fault) -> str:
        """A fault with its key, and the variable where the key came from the environment.

        An unknown table is told with its file, which may be another program's ``config.toml``.
        """
        key = tuple(str(part) for part in _without_places(fault.path))
        name = self._names.get(key) if _get(self._overrides, key) is None else None
        where = f" (in {self._source})" if key and key[0] not in schema() and self._source else ""
        return f"{dotted(fault.path)}{f' ({name})' if name else ''}: {fault.text}{where}"


def _exposed(path: Path, file: Layer, status: os.stat_result) -> str | None:
    """The fault of a file that holds a secret and isn't private; None for a private file."""
    if not any(leaf is Leaf.SECRET and isinstance(value, str) for leaf, value in _leaves(file, schema())):
        return None
    fault = secrets.exposure(path, status)
    return f"the configuration holds a secret, and {fault}" if fault else None


def _prepared(layer: Mapping[str, Any], table: Schema, base: Path, environ: Mapping[str, str]) -> Layer:
    """A copy without the keys that aren't given, with absolute paths, and secrets that no repr shows."""
    copy: Layer = {}
    for key, value in layer.items():
        node = table.get(key, table.get(ANY_NAME, Leaf.SCALAR))
        if isinstance(value, Mapping) and not isinstance(node, Leaf):
            copy[key] = _prepared(value, node, base, environ)
        elif node is Leaf.PATH and isinstance(value, (str, Path)) and value not in ("", Path()):
            copy[key] = absolute(str(value), base, environ)
        elif node is Leaf.SECRET and isinstance(value, str):
            copy[key] = Secret(value) if value else value
        elif value is not None:
            copy[key] = value
    return copy


def _source(way: str, value: object, folder: Path | None) -> secrets.Source:
    if way.endswith("_command"):
        words = value if isinstance(value, (list, tuple)) else ()
        if words and words[0] and all(isinstance(word, str) for word in words):
            return secrets.Source(command=tuple(words), folder=folder)
        raise secrets.SecretUnusable('must be a program and its arguments, such as ["op", "read", "..."]')
    if isinstance(value, Path):
        return secrets.in_file(value, folder or working_folder())
    raise secrets.SecretUnusable("must be a path, in quotes")


def _secret_tables(layer: Layer) -> Iterator[tuple[str, ...]]:
    for section in ("projects", "accounts", "callers"):
        tables = layer.get(section)
        for name, table in tables.items() if isinstance(tables, dict) else ():
            if isinstance(table, dict):
                yield (section, name)
                if section != "callers" and isinstance(table.get("standby"), dict):
                    yield (section, name, "standby")


def _leaves(layer: Mapping[str, Any], table: Schema) -> Iterator[tuple[Leaf, Any]]:
    for key, value in layer.items():
        node = table.get(key, table.get(ANY_NAME, Leaf.SCALAR))
        if isinstance(node, Leaf):
            yield node, value
        elif isinstance(value, Mapping):
            yield from _leaves(value, node)


def _without_places(path: KeyPath) -> KeyPath:
    """A path without the places inside a list."""
    return tuple(part for part in path if isinstance(part, str))


def _get(layer: Mapping[str, Any], path: KeyPath) -> Any:
    node: Any = layer
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _put(layer: Layer, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        layer = layer.setdefault(str(part), {})
    layer[str(path[-1])] = value


def _discard(table: object, keys: tuple[str, ...]) -> None:
    if isinstance(table, dict):
        for key in keys:
            table.pop(key, None)
