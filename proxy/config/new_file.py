"""The file that ``csq-proxy init`` writes: a new one, or a table more at the end of a file that is there.

A table at the end takes nothing away from a file of TOML: every byte before it stays, comments and order too.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import os
import shutil
import stat
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from proxy.config.files import read, read_table
from proxy.config.secrets import exposure
from proxy.config.trust import READABLE, fault_of
from proxy.errors import ConfigError
from proxy.process import replace

Section: TypeAlias = Literal["projects", "accounts"]
_NEW = "# Written by `csq-proxy init`; config.example.toml explains every setting there is.\n"


@dataclass(frozen=True, slots=True)
class Answers:
    """The user's answers, for a table of the ``section``.

    Account-level credentials need ``project_id``, Enrichment ``integration_id``; only an account has
    ``projects``, the ids of those that may be called (none: all).
    """

    section: Section
    name: str
    client_id: str
    client_secret: str = field(repr=False)
    project_id: int | None = None
    integration_id: int | None = None
    projects: tuple[int, ...] = ()

    @property
    def table(self) -> dict[str, str | int | list[int]]:
        """The table's keys and values."""
        given = {
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "project_id": self.project_id,
            "integration_id": self.integration_id,
            "projects": list(self.projects) or None,
        }
        return {key: value for key, value in given.items() if value is not None}


def text_of(answers: Answers) -> str:
    """The table in TOML."""
    lines = (f"{key} = {written(value)}\n" for key, value in answers.table.items())
    return f"[{answers.section}.{answers.name}]\n{''.join(lines)}"


def written(value: object) -> str:
    """A value in TOML, which has all of JSON's escapes, and must escape DEL besides."""
    if isinstance(value, enum.Enum):
        return written(value.value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dt.date):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_place(path: Path, section: Section) -> dict[str, dict[str, object]]:
    """Raise ConfigError where `write` would, as far as can be seen without writing.

    Returns the projects and accounts of the file, by section; none for a new file.
    """
    try:
        if not path.exists():
            if dead := next(
                (one for one in (path, *path.parents) if one.is_symlink() and not one.exists()), None
            ):
                raise _not_writable(path, f"{dead} is a link to nothing")
            _check_folder(path, next(folder for folder in path.parents if folder.exists()))
            return {"projects": {}, "accounts": {}}
    except OSError as exc:  # another user's folder is on the way to it
        raise _not_writable(path, exc.strerror) from None
    faults: list[str] = []
    content, status = read_table(path, faults)
    if status is None:
        raise ConfigError(*faults)
    if not stat.S_ISREG(status.st_mode):
        raise _not_writable(path, "it isn't a regular file")
    if fault := exposure(path, status):
        raise ConfigError(f"the configuration will hold a secret, and {fault}")
    if not os.access(path, os.W_OK):
        raise _not_writable(path, "it is read-only")
    _check_folder(path, path.resolve().parent)
    _with_table(path, path.read_bytes(), Answers(section, "_", "", ""))
    found = {section: content.get(section) for section in ("projects", "accounts")}
    return {section: table if isinstance(table, dict) else {} for section, table in found.items()}


def _check_folder(path: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise _not_writable(path, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(path, "its folder isn't yours to write to")
    if fault := fault_of(folder, READABLE):
        raise ConfigError(f"{path}: {fault}; or name another place with --config FILE")


def write(path: Path, answers: Answers) -> None:
    """Write a new file with mode 0600, or add the table to the file that is there. Raises ConfigError.

    A reader sees the old file or the new one, whole; its mode and owner stay.
    """
    try:
        if path.exists():
            _replace(path.resolve(), _with_table(path, read(path).data, answers))
        else:
            _make_folder(path.parent)
            _write_new(path, f"{_NEW}\n{text_of(answers)}")
    except OSError as exc:
        raise _not_writable(path, exc.strerror) from None


def _with_table(path: Path, data: bytes, answers: Answers) -> bytes:
    """The content with the table at its end. Raises ConfigError where TOML doesn't allow it there."""
    end = b"\r\n" if b"\r\n" in data else b"\n"
    between = b"" if not data else end if data.endswith(b"\n") else end + end
    made = data + between + text_of(answers).encode().replace(b"\n", end)
    section = answers.section
    try:
        is_added = isinstance(tomllib.loads(made.decode("utf-8-sig"))[section], dict)  # no list: [[projects]]
    except ValueError:
        is_added = False
    if not is_added:
        taken = f"if {answers.name} is there, take another name; else " if answers.client_id else ""
        raise ConfigError(
            f"{path}: {section} can't be added to: {taken}write each as [{section}.NAME], without braces"
            " around all of them"
        )
    return made


def _make_folder(folder: Path) -> None:
    """Make the folder and those above it that are missing; only the user may look into them."""
    for missing in [one for one in (folder, *folder.parents) if not one.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:  # a full disk, for example: half a file would only be in the way of the next try
        path.unlink()
        raise


def _replace(path: Path, data: bytes) -> None:
    """Put another content into the file's place in one step."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # with mode 0600
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace(part, path, _take_place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


if sys.platform == "win32":

    def _take_place(part: Path, path: Path) -> None:
        """ReplaceFileW, which keeps the access list of the file that it replaces."""
        import ctypes  # noqa: PLC0415

        replace = ctypes.WinDLL("kernel32", use_last_error=True).ReplaceFileW
        replace.argtypes = [*[ctypes.c_wchar_p] * 3, ctypes.c_ulong, *[ctypes.c_void_p] * 2]
        if not replace(str(path), str(part), None, 0, None, None):
            raise ctypes.WinError(ctypes.get_last_error())

else:

    def _take_place(part: Path, path: Path) -> None:
        """Rename ``part``, once it has the mode, the owner and the access list of the file in its way."""
        old, new = path.stat(), part.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(part, old.st_uid, old.st_gid)
        shutil.copystat(path, part)
        os.utime(part)
        part.replace(path)


def _not_writable(path: Path, why: str | None) -> ConfigError:
    return ConfigError(f"{path}: can't be written ({why}); name another place with --config FILE")
