"""The configuration: flags, environment, secret files and TOML in, frozen settings out.

`load` reads every place, lets the more specific one win and reports all faults at once, each as one
line. What a key may hold is in `config.settings`, what several keys must agree on in `config.checks`;
this module only brings them together. Nothing is kept between calls.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from proxy import secret
from proxy.config import checks as rules
from proxy.config import environment
from proxy.config.keys import ANY_NAME, Leaf, Schema, schema
from proxy.config.messages import Fault, KeyPath, dotted, explain
from proxy.config.settings import ServerSettings, Settings
from proxy.config.validation import ValidationError, validated
from proxy.errors import ConfigError
from proxy.secret import Secret

Table: TypeAlias = dict[str, Any]

# A wrong value goes in the first round, and is missing in the second where it is required.
_MOST_ROUNDS = 5
SYSTEM_FILE = Path("/etc/csq-proxy/config.toml")
_CREDENTIALS = re.compile(r"\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})[/\\]")
_LISTENER = ("host", "port", "tls_cert")
_TOML_PLACE = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)\Z")
_ALTERNATIVES = {
    "client_secret": ("client_secret", "client_secret_file", "client_secret_command"),
    "key": ("key", "key_file"),
}


def named_config_file(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file that a flag names, else ``$CSQ_PROXY_CONFIG``; None where neither does."""
    named = explicit or environ.get(environment.CONFIG)
    return _absolute(str(named), _working_folder(), environ) if named else None


def find_config_file(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file to read, None where there is none.

    One that is named, by a flag or by ``$CSQ_PROXY_CONFIG``, is taken whether it exists or not; of the
    usual places, the first that exists.
    """
    if (named := named_config_file(explicit, environ)) is not None:
        return named
    home = _home(environ)
    places = [_working_folder() / "config.toml", home and home / ".config/csq-proxy/config.toml", SYSTEM_FILE]
    return next((place for place in places if place is not None and _is_file(place)), None)


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
    commands are run, one after the other, so this may take a while: at most 10 s each.

    Raises ConfigError with all faults.
    """
    environ = os.environ if environ is None else environ
    path = find_config_file(config_file, environ) if search or config_file else None
    loading = _Loading.begin(path, overrides or {}, environ)
    settings = loading.settings(path)
    loading.faults.extend(loading.line(fault) for fault in rules.check(settings) if loading.stands(fault))
    if not loading.faults and not (settings.projects or settings.accounts):
        loading.faults.append(
            'projects: none is configured; run "csq-proxy init" to write a configuration file, '
            'or "csq-proxy serve --sandbox" to try it without credentials'
        )
    if loading.faults:
        raise ConfigError(*loading.faults)
    return replace(settings, secrets_of_environment=tuple(loading.secret_variables()))


def load_listener(config_file: Path | None, environ: Mapping[str, str]) -> ServerSettings:
    """What ``[server]`` says of where the proxy listens, by `_LISTENER`; the rest is as by default.

    For those who call a running proxy: nothing else of the configuration has to be good, no secret is read
    and no command is run. Raises ConfigError.
    """
    path = find_config_file(config_file, environ)
    faults: list[str] = []
    file = _read_toml(path, faults) if path else {}
    found = environment.read(environ, schema())
    folder = path.parent if path else _working_folder()
    env, file = (
        _prepared(_listener_of(layer), schema(), base, environ)
        for layer, base in ((found.values, _working_folder()), (file, folder))
    )
    settings = _Loading({}, env, {}, file, found.names, faults, set()).settings(path)
    if faults:
        raise ConfigError(*faults)
    return settings.server


def _listener_of(layer: Table) -> Table:
    server = layer.get("server")
    table = server if isinstance(server, dict) else {}
    return {"server": {key: table[key] for key in _LISTENER if key in table}}


class _Loading(NamedTuple):
    """One load on its way: where values came from, and what is wrong so far.

    ``broken`` are the keys with a fault, so that no second fault is reported in consequence.
    """

    overrides: Table
    env: Table
    secrets: Table
    file: Table
    names: Mapping[tuple[str, ...], str]
    faults: list[str]
    broken: set[KeyPath]

    @classmethod
    def begin(cls, path: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> _Loading:
        """Reads every place, resolves paths and secrets."""
        faults: list[str] = []
        found = environment.read(environ, schema())
        file = _read_toml(path, faults) if path else {}
        if path and (fault := _exposed(path, file)):
            faults.append(fault)
        sidecar = ("projects", environment.SIDECAR_PROJECT)
        if _get(file, sidecar) is not None or _get(overrides, sidecar) is not None:
            environment.withdraw_sidecar(found)
        faults += found.faults
        cwd = _working_folder()
        folder = path.parent if path else cwd
        layers = [
            _prepared(layer, schema(), base, environ)
            for layer, base in ((overrides, cwd), (found.values, cwd), (file, folder))
        ]
        loading = cls(layers[0], layers[1], {}, layers[2], found.names, faults, set())
        loading.resolve_secrets(folder)
        for key in found.refused:
            loading.excuse(key)
        return loading

    @property
    def layers(self) -> tuple[Table, ...]:
        return self.overrides, self.env, self.secrets, self.file

    def secret_variables(self) -> Iterator[str]:
        """The variables that hold a secret which is used."""
        for path, name in self.names.items():
            if isinstance(_get(self.env, path), Secret) and _get(self.overrides, path) is None:
                yield name

    def settings(self, source: Path | None) -> Settings:
        """The settings as far as they are valid: what is faulty is noted and left out.

        So that the rules can judge the rest, and one start shows every fault.
        """
        for _ in range(_MOST_ROUNDS):
            try:
                return Settings(**validated(self.layers), source=source)
            except ValidationError as invalid:
                before = frozenset(self.broken)
                for error in invalid.errors(include_url=False):
                    fault = explain(error, schema())
                    key = _key(fault.path)
                    # Of a list each item is told that is wrong, but not the list, which lacks them, too.
                    if key not in (before if fault.path != key else self.broken):
                        self.faults.append(self.line(fault))
                    self.repair(key, is_missing=error["type"] == "missing")
        raise ConfigError(*self.faults)

    def repair(self, path: KeyPath, *, is_missing: bool) -> None:
        """Takes a faulty value out, or puts a stand-in, like no other, where one is missing."""
        self.broken.add(path)
        if is_missing:
            _put(self.overrides, path, f"stand-in {len(self.broken)}")
            return
        for layer in self.layers:
            parent = _get(layer, path[:-1])
            if isinstance(parent, dict):
                parent.pop(str(path[-1]), None)

    def excuse(self, path: KeyPath) -> None:
        """Lets a key be missing, for it was given in a place that was refused already."""
        if all(_get(layer, path) is None for layer in self.layers):
            self.repair(path, is_missing=path[-1] in ("client_id", "client_secret"))

    def resolve_secrets(self, folder: Path) -> None:
        """Fills the layer of secrets from the files and commands that the other layers name."""
        given = (self.overrides, self.env, self.file)
        for table in dict.fromkeys(path for layer in given for path in _secret_tables(layer)):
            key = "key" if table[0] == "callers" else "client_secret"
            for index, layer in enumerate(given):
                ways = [
                    way for way in _ALTERNATIVES[key] if (_get(layer, table) or {}).get(way) not in (None, "")
                ]
                if ways:
                    # A more specific place replaces the others' way of giving the secret, too.
                    for lower in given[index + 1 :]:
                        _discard(_get(lower, table), _ALTERNATIVES[key])
                    self.resolve_secret((*table, key), ways, layer, folder if layer is self.file else None)
                    break

    def resolve_secret(self, path: KeyPath, ways: list[str], layer: Table, folder: Path | None) -> None:
        """Reads one secret, or notes why it can't be had."""
        way, *others = ways
        source = (*path[:-1], way)
        if others:
            self.refuse_secret(
                path, Fault((*path[:-1], others[0]), f"{way} is given too; keep only one of them")
            )
        elif way != path[-1]:
            try:
                fetched = _fetch(way, _get(layer, source), folder)
            except secret.SecretUnusable as unusable:
                self.refuse_secret(path, Fault(source, str(unusable)))
            else:
                _put(self.secrets, path, Secret(fetched))

    def refuse_secret(self, path: KeyPath, fault: Fault) -> None:
        """Notes the fault, and puts a stand-in so that the secret doesn't count as missing, too."""
        self.faults.append(self.line(fault))
        self.broken.update((path, fault.path))
        _put(self.secrets, path, Secret(f"stand-in {len(self.broken)}"))

    def stands(self, fault: Fault) -> bool:
        """Whether a fault is one in its own right, and not the consequence of another."""
        return not any(_key(path) in self.broken for path in (fault.path, *fault.needs))

    def line(self, fault: Fault) -> str:
        """A fault with its key, and the variable where the key came from the environment."""
        key = tuple(str(part) for part in _key(fault.path))
        name = self.names.get(key) if _get(self.overrides, key) is None else None
        return f"{dotted(fault.path)}{f' ({name})' if name else ''}: {fault.text}"


def _read_toml(path: Path, faults: list[str]) -> Table:
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomllib.loads(text)
    except FileNotFoundError:
        faults.append(f"{path}: there is no such file")
    except OSError as error:
        faults.append(f"{path}: can't read it: {error.strerror}")
    except UnicodeDecodeError:
        faults.append(f"{path}: isn't UTF-8 text; save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        faults.append(_syntax_fault(path, text, str(error)))
    except (RecursionError, ValueError):  # tables and lists within each other, and thousands of digits
        faults.append(f"{path}: not usable TOML: nested too deeply, or a number with too many digits")
    return {}


def _syntax_fault(path: Path, text: str, message: str) -> str:
    place = _TOML_PLACE.search(message)
    lines = text.splitlines() or [""]
    row, column = (int(place[1]), int(place[2])) if place and place[1] else (len(lines), len(lines[-1]) + 1)
    at_fault = lines[row - 1] if row <= len(lines) else ""
    hint = (
        "; in a Windows path write / for \\, or put it in single quotes"
        if '"' in at_fault and "\\" in at_fault
        else ""
    )
    return f"{path}:{row}:{column}: not valid TOML: {_TOML_PLACE.sub('', message)}{hint}"


def _exposed(path: Path, file: Table) -> str | None:
    if not any(leaf is Leaf.SECRET and isinstance(value, str) for leaf, value in _leaves(file, schema())):
        return None
    fault = secret.exposure(path)
    return f"{path}: holds a secret, and {fault}" if fault else None


def _prepared(layer: Mapping[str, Any], table: Schema, base: Path, environ: Mapping[str, str]) -> Table:
    """A copy without what isn't given, with absolute paths, and secrets that no repr shows."""
    copy: Table = {}
    for key, value in layer.items():
        node = table.get(key, table.get(ANY_NAME, Leaf.SCALAR))
        if isinstance(value, Mapping) and not isinstance(node, Leaf):
            copy[key] = _prepared(value, node, base, environ)
        elif node is Leaf.PATH and isinstance(value, (str, Path)) and str(value) not in ("", "."):
            copy[key] = _absolute(str(value), base, environ)
        elif node is Leaf.SECRET and isinstance(value, str):
            copy[key] = Secret(value) if value else value
        elif value is not None:
            copy[key] = value
    return copy


def _fetch(way: str, value: object, folder: Path | None) -> str:
    if way.endswith("_command"):
        words = value if isinstance(value, (list, tuple)) else ()
        if words and words[0] and all(isinstance(word, str) for word in words):
            return secret.run_command(words, folder)
        raise secret.SecretUnusable('must be a program and its arguments, such as ["op", "read", "..."]')
    if isinstance(value, Path):
        return secret.read_file(value)
    raise secret.SecretUnusable("must be a path, in quotes")


def _secret_tables(layer: Table) -> Iterator[tuple[str, ...]]:
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


def _key(path: KeyPath) -> KeyPath:
    """A path without the places inside a list."""
    return tuple(part for part in path if isinstance(part, str))


def _get(layer: Mapping[str, Any], path: KeyPath) -> Any:
    node: Any = layer
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _put(layer: Table, path: KeyPath, value: object) -> None:
    for part in path[:-1]:
        layer = layer.setdefault(str(part), {})
    layer[str(path[-1])] = value


def _discard(table: object, keys: tuple[str, ...]) -> None:
    if isinstance(table, dict):
        for key in keys:
            table.pop(key, None)


def _home(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("USERPROFILE" if sys.platform == "win32" else "HOME")
    return Path(home) if home else None


def _absolute(path: str, base: Path, environ: Mapping[str, str]) -> Path:
    credentials = environ.get("CREDENTIALS_DIRECTORY")  # systemd.exec(5)
    if credentials and (variable := _CREDENTIALS.match(path)):
        return Path(credentials) / path[variable.end() :]
    home = _home(environ)
    if home is not None and (path == "~" or path.startswith(("~/", "~\\"))):
        return home / path[2:]
    return base / path


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed meanwhile, and nothing is there
        return Path()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
