"""The file that ``csq-proxy init`` writes: a configuration for one project, which only its owner can read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from proxy.config.trust import READABLE, fault_of
from proxy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Answers:
    """The user's answers. Account-level credentials need ``project_id``, Enrichment ``integration_id``."""

    name: str
    client_id: str
    client_secret: str
    project_id: int | None = None
    integration_id: int | None = None


def text_of(answers: Answers) -> str:
    """The file's content (TOML)."""
    lines = [
        "# Written by `csq-proxy init`; config.example.toml explains every setting there is.",
        "",
        f"[projects.{answers.name}]",
        f"client_id = {_quoted(answers.client_id)}",
        f"client_secret = {_quoted(answers.client_secret)}",
    ]
    if answers.project_id is not None:
        lines.append(f"project_id = {answers.project_id}")
    if answers.integration_id is not None:
        lines.append(f"integration_id = {answers.integration_id}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML, which has all of JSON's escapes, and must escape DEL besides."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_place(path: Path) -> None:
    """Raise ConfigError where `write_new` would, as far as can be seen without writing."""
    try:
        if path.exists():
            raise _there_already(path)
        folder = next(folder for folder in path.parents if folder.exists())
    except OSError as exc:  # another user's folder is on the way to it
        raise _not_writable(path, exc.strerror) from None
    if not folder.is_dir():
        raise _not_writable(path, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(path, "its folder isn't yours to write to")
    if fault := fault_of(folder, READABLE):
        raise ConfigError(f"{path}: {fault}; or name another place with --config FILE")


def write_new(path: Path, text: str) -> None:
    """Write a new file, with mode 0600 from its first byte on. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{path.parent}: can't be made a folder ({exc.strerror})") from None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise _there_already(path) from None
    except OSError as exc:
        raise _not_writable(path, exc.strerror) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:  # a full disk, for example: half a file would only be in the way of the next try
        path.unlink()
        raise _not_writable(path, exc.strerror) from None


def _there_already(path: Path) -> ConfigError:
    return ConfigError(f"{path}: exists already and is not overwritten; move it away first")


def _not_writable(path: Path, why: str | None) -> ConfigError:
    return ConfigError(f"{path}: can't be written ({why}); name another place with --config FILE")
