"""The rules that span several keys, or that depend on files: checks of whole settings.

A check yields a `Fault` for each fault that it finds. The rules for a single key are in
`proxy.config.settings`.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.config.messages import Fault, KeyPath, did_you_mean
from proxy.config.secrets import absence, exposure
from proxy.config.trust import PRIVATE, READABLE, fault_of, folder_fault
from proxy.contentsquare import Api
from proxy.origin import Origin, is_loopback

if TYPE_CHECKING:
    from proxy.config.settings import (
        Access,
        AccountSettings,
        CallerSettings,
        Credentials,
        ProjectSettings,
        Settings,
    )

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_RESERVED = "v1"
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107


def check(settings: Settings) -> Iterator[Fault]:
    """Every fault of the settings that the model can't find."""
    yield from _names(settings)
    yield from _defaults(settings)
    yield from _ports(settings)
    yield from _listeners(settings)
    yield from _files(settings)
    yield from _state_dir(settings.server.state_dir)
    for name, project in settings.projects.items():
        yield from _project(("projects", name), project)
    for name, account in settings.accounts.items():
        yield from _account(("accounts", name), account)
    yield from _callers(settings)


def _names(settings: Settings) -> Iterator[Fault]:
    for section in ("projects", "accounts", "callers"):
        for name in getattr(settings, section):
            fault = name_fault(name, in_paths=section != "callers")
            if fault is not None:
                yield Fault((section, name), fault)
    for name in settings.accounts:
        if name in settings.projects:
            yield Fault(
                ("accounts", name), "a project has this name already; both share one path, so choose another"
            )


def name_fault(name: str, *, in_paths: bool = True) -> str | None:
    """The fault of a name, None for a good one. ``in_paths`` is False for the name of a caller."""
    if name == _RESERVED and in_paths:
        return f'"{_RESERVED}" begins Contentsquare\'s own paths; choose another name'
    if not _NAME.match(name):
        return f"a name is 1 to 64 of a-z, 0-9 and -, not - first{_as_name(name)}"
    return None


def _as_name(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64]
    return f"; did you mean {slug}?" if _NAME.match(slug) and slug != name else ""


def _defaults(settings: Settings) -> Iterator[Fault]:
    names = [name for name, project in settings.projects.items() if project.default]
    for name in names[1:]:
        yield Fault(
            ("projects", name, "default"), f"projects.{names[0]} is the default already; only one can be"
        )


def _ports(settings: Settings) -> Iterator[Fault]:
    taken = {settings.server.port: "server.port"}
    for name, project in settings.projects.items():
        path: KeyPath = ("projects", name, "port")
        if project.port and not settings.server.tcp:
            yield Fault(path, "server.tcp is false, so there is no port; leave it out", (("server", "tcp"),))
        elif project.port and project.port in taken:
            owner = taken[project.port]
            yield Fault(
                path, f"{project.port} is {owner} already; each listener needs its own", (("server", "port"),)
            )
        taken.setdefault(project.port, f"projects.{name}.port")


def _listeners(settings: Settings) -> Iterator[Fault]:
    if not settings.callers and not is_loopback(settings.server.host):
        yield Fault(
            ("server", "host"),
            "not a loopback address, so every program that reaches it has your credentials' power; define"
            " [callers] with a key for each (without a file: CSQ_PROXY_CALLERS__NAME__KEY), or listen on"
            " 127.0.0.1 (shared within a pod)",
            (("callers",),),
        )
    yield from _allowed_hosts(settings)
    server = settings.server
    for key, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(server, key) and not getattr(server, other):
            yield Fault(("server", other), f"missing; server.{key} needs it", (("server", other),))
    if sys.platform == "win32" and not server.tcp:
        yield Fault(("server", "tcp"), "must be true on Windows, which has no Unix sockets; leave it out")
    if server.unix_socket is None:
        return
    path: KeyPath = ("server", "unix_socket")
    if sys.platform == "win32":
        yield Fault(path, "not available on Windows; leave it out")
    elif len(os.fsencode(server.unix_socket)) > _LONGEST_SOCKET:
        yield Fault(path, f"the path may have at most {_LONGEST_SOCKET} bytes; choose a shorter one")
    elif fault := _folder_fault(server.unix_socket.parent):
        yield Fault(path, fault)


def _log_file(path: Path, files_read: Iterable[Path]) -> str | None:
    """The fault of ``log.file``: lines could not go there, or other users could put a file in its place."""
    if fault := _folder_fault(path.parent):
        return fault
    place = path if os.access(path, os.F_OK) else path.parent
    if place is path and any(os.access(one, os.F_OK) and path.samefile(one) for one in files_read):
        return f"{path} is read by the proxy; name a file for the log alone"
    if place is path and not path.is_file():
        return f"{path} is not a file; name one, or leave it out: the log then goes to standard error"
    if not os.access(place, os.W_OK):
        return f"can't write {place}; name a file in a folder of your own"
    return _file_fault(place, is_private=False)


def _allowed_hosts(settings: Settings) -> Iterator[Fault]:
    """A name over plain http: there, browsers send the GETs of any web page without a field that says so."""
    if settings.callers or settings.server.tls_cert:
        return
    server = settings.server
    urls: list[tuple[KeyPath, str]] = [
        (("server", "allowed_hosts", index), f"http://{host}")
        for index, host in enumerate(server.allowed_hosts)
    ]
    if server.public_url:
        urls.append((("server", "public_url"), server.public_url))
    for path, url in urls:
        if not Origin.parse(url).is_loopback:
            yield Fault(
                path,
                "any web page that knows this name can send requests to it over plain http; define [callers]"
                " with a key for each, or set server.tls_cert and server.tls_key",
                (("callers",), ("server", "tls_cert"), ("server", "tls_key")),
            )
            return


def _files(settings: Settings) -> Iterator[Fault]:
    files: tuple[tuple[str, str, Path | None], ...] = (
        ("server", "tls_cert", settings.server.tls_cert),
        ("server", "tls_key", settings.server.tls_key),
        ("contentsquare", "ca_file", settings.contentsquare.ca_file),
    )
    if settings.log.file is not None and (fault := _log_file(settings.log.file, settings.files)):
        yield Fault(("log", "file"), fault)
    for section, key, path in files:
        if path is not None and (
            fault := _unreadable(path) or _file_fault(path, is_private=key == "tls_key")
        ):
            yield Fault((section, key), fault)


def _state_dir(folder: Path | None) -> Iterator[Fault]:
    if folder is None:
        return
    try:
        fault = folder_fault(folder)
    except FileNotFoundError:
        fault = f"there is no folder {folder}; make it first: mkdir -m 700 {shlex.quote(str(folder))}"
    except NotADirectoryError:
        fault = f"{folder} is no folder; name one that only you can write to"
    except OSError as error:
        fault = f"can't look at {folder}: {error.strerror}"
    if fault is not None:
        yield Fault(("server", "state_dir"), fault)


def _folder_fault(folder: Path) -> str | None:
    """The fault of a folder that isn't there, or that this user can't look at."""
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except OSError as error:
        return f"can't look at {folder}: {error.strerror}"
    return None if is_folder else f"there is no folder {folder}; make it first"


def _unreadable(path: Path) -> str | None:
    """The fault of a file that isn't there, or that this user can't read."""
    if os.access(path, os.R_OK):
        return None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return absence(path)
    except OSError as error:
        return f"can't read {path}: {error.strerror}"
    return f"can't read {path}: {os.strerror(errno.EACCES)}"


def _file_fault(path: Path, *, is_private: bool) -> str | None:
    try:
        fault = fault_of(path, PRIVATE if is_private else READABLE)
        return fault or (exposure(path) if is_private else None)
    except OSError as error:
        return f"can't read {path}: {error.strerror}"


def _project(path: KeyPath, project: ProjectSettings) -> Iterator[Fault]:
    yield from _credentials(path, project)
    if Api.ENRICHMENT in (project.apis or ()) and project.integration_id is None:
        key: KeyPath = (*path, "integration_id")
        yield Fault((*path, "apis"), "enrichment needs integration_id beside it", (key,))


def _account(path: KeyPath, account: AccountSettings) -> Iterator[Fault]:
    yield from _credentials(path, account)
    if Api.ENRICHMENT in (account.apis or ()):
        yield Fault(
            (*path, "apis"),
            "enrichment needs an integration_id, which belongs to one project; "
            "give that project its own [projects.NAME] with project_id and integration_id",
        )


def _credentials(path: KeyPath, owner: Access) -> Iterator[Fault]:
    if owner.standby is not None and _pair(owner.standby) == _pair(owner):
        yield Fault((*path, "standby"), "the same pair as the first; give other credentials, or leave it out")


def _pair(credentials: Credentials) -> tuple[str, str]:
    return credentials.client_id, credentials.client_secret.get_secret_value()


def _callers(settings: Settings) -> Iterator[Fault]:
    known = (*settings.projects, *settings.accounts)
    keys: dict[str, str] = {}
    for name, caller in settings.callers.items():
        path: KeyPath = ("callers", name)
        yield from _caller_key(path, caller)
        secret = caller.key.get_secret_value()
        if secret in keys:
            yield Fault((*path, "key"), f"the same key as callers.{keys[secret]}; give each caller its own")
        keys.setdefault(secret, name)
        for index, project in enumerate(caller.projects or ()):
            if project not in known:
                hint = did_you_mean(project, known) or f"; known: {', '.join(known) or 'none'}"
                if project == "*":
                    hint = "; leave projects out to allow all"
                needs: tuple[KeyPath, ...] = (
                    ("projects", project),
                    ("accounts", project),
                    ("projects",),
                    ("accounts",),
                )
                yield Fault(
                    (*path, "projects", index),
                    f"no project or account is named {_shown(project)}{hint}",
                    needs,
                )


def _shown(name: str) -> str:
    return name if _NAME.match(name) else "so"


def _caller_key(path: KeyPath, caller: CallerSettings) -> Iterator[Fault]:
    secret = caller.key.get_secret_value()
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        # The key is sent in a field value, RFC 9110, section 5.5.
        yield Fault((*path, "key"), "must be printable ASCII without spaces")
