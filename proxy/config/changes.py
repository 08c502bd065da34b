"""The differences between two configurations: for the log, and for the parts that a reload keeps."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config.settings import Credentials, Settings

_NEED_RESTART = ("host", "port", "tcp", "unix_socket", "state_dir")
_NO_CHANGE_OF_A_PROJECT = frozenset(
    ("client_secret_file", "client_secret_command", "default", "expires", "port", "quota")
)


@dataclass(frozen=True, slots=True)
class Changes:
    """The keys that differ, with dots; never a value.

    ``needs_restart`` are keys that can't change in a running process.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


def differences(old: Settings, new: Settings, started_with: Settings) -> Changes:
    """The changes of a reload. The listeners stay those of ``started_with``."""
    added, removed, changed = [], [], []
    for section in ("projects", "accounts", "callers"):
        before, after = getattr(old, section), getattr(new, section)
        added += [f"{section}.{name}" for name in after if name not in before]
        removed += [f"{section}.{name}" for name in before if name not in after]
        changed += [f"{section}.{name}" for name in after if name in before and after[name] != before[name]]
    for section in ("server", "log", "contentsquare"):
        before, after = getattr(old, section), getattr(new, section)
        changed += [
            f"{section}.{key}"
            for key in type(after).model_fields
            if getattr(after, key) != getattr(before, key)
        ]
    return Changes(tuple(added), tuple(removed), tuple(changed), tuple(_needs_restart(started_with, new)))


def _needs_restart(running: Settings, new: Settings) -> list[str]:
    keys = [
        f"server.{key}" for key in _NEED_RESTART if getattr(running.server, key) != getattr(new.server, key)
    ]
    if (running.server.tls_cert is None) != (new.server.tls_cert is None):
        keys.append("server.tls_cert")
    ports = [
        {name: project.port for name, project in s.projects.items() if project.port} for s in (running, new)
    ]
    keys += [
        f"projects.{name}.port"
        for name in {**ports[0], **ports[1]}
        if ports[0].get(name) != ports[1].get(name)
    ]
    return keys


def is_same(old: Credentials | None, new: Credentials | None) -> bool:
    """Whether a project's or an account's tokens and rights are the same in both settings."""
    if old is None or new is None or type(old) is not type(new):
        return old is new
    return all(
        _is_same_value(getattr(old, key), getattr(new, key))
        for key in type(old).model_fields
        if key not in _NO_CHANGE_OF_A_PROJECT
    )


def _is_same_value(old: object, new: object) -> bool:
    return is_same(old, new) if isinstance(old, Credentials) and isinstance(new, Credentials) else old == new
