"""The configuration file: where it is, what a path in it means, and its TOML.

A fault is a line for people: it names the file, and the line and column where there are any.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from proxy.blocking import NoThread, within
from proxy.config.trust import PRIVATE, Replaced, Untrusted, refuse_untrusted
from proxy.config.variables import CONFIG
from proxy.errors import ConfigError

READ_TIMEOUT_S = 10.0
"""How long a file may take: a named pipe without a writer never ends, and a network drive may hang."""
_MOST_TRIES = 3
"""How often a file is opened that is replaced at that moment, as editors and Kubernetes do."""
SYSTEM_FILE = Path("/etc/csq-proxy/config.toml")
_CREDENTIALS = re.compile(r"\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})[/\\]")
_LONGEST_NAME = 255
"""Bytes of one name in a path, on the usual file systems."""
_CONTROL = re.compile(r"[\x00-\x1f]")
_BACKSLASHES = r"write / for \, or put it in single quotes"
_HINTS = {
    "Cannot overwrite a value": "; this key is there twice",
    "Illegal character '\\n'": "; is a quote missing at its end?",
    "Invalid value": "; text needs quotes around it",
}
"""The advice for the most usual faults, by the words of `tomllib`."""
_TOML_PLACE = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)\Z")


def named_config_file(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file that a flag names, else ``$CSQ_PROXY_CONFIG``; None where neither does.

    Raises ConfigError for an empty flag.
    """
    if explicit == Path():  # of an empty variable, most likely
        raise ConfigError("--config: must be the path of a file, not empty and not a folder")
    named = explicit or environ.get(CONFIG)
    return absolute(str(named), working_folder(), environ) if named else None


class Found(NamedTuple):
    """The configuration file, None where there is none.

    ``passed_over``: the usual places before it where something else is, each with the reason.
    """

    path: Path | None
    passed_over: tuple[str, ...] = ()


def find_config_file(explicit: Path | None, environ: Mapping[str, str]) -> Found:
    """The configuration file to read.

    A file that a flag or ``$CSQ_PROXY_CONFIG`` names need not exist; of the usual places, the first file
    that exists is taken.
    """
    if (named := named_config_file(explicit, environ)) is not None:
        return Found(named)
    others: list[str] = []
    for place in (working_folder() / "config.toml", *user_files(environ), SYSTEM_FILE):
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):
            if place.is_symlink():  # otherwise nothing is there
                others.append(f"{place} (a link to nothing)")
            continue
        except OSError as error:
            others.append(f"{place} (can't look at it: {error.strerror})")
            continue
        if stat.S_ISREG(mode):
            return Found(place, tuple(others))
        others.append(f"{place} ({'a directory' if stat.S_ISDIR(mode) else 'not a regular file'})")
    return Found(None, tuple(others))


def user_files(environ: Mapping[str, str]) -> list[Path]:
    """The places of the user's own configuration, the first one first; Windows has one of its own before."""
    roaming = environ.get("APPDATA") if sys.platform == "win32" else None
    home = _home(environ)
    return [
        *([Path(roaming) / "csq-proxy/config.toml"] if roaming else ()),
        *([home / ".config/csq-proxy/config.toml"] if home else ()),
    ]


def absolute(path: str, base: Path, environ: Mapping[str, str]) -> Path:
    """The absolute path for a path in a file of the folder ``base``, or in a variable.

    ``~`` is the user's home, and ``$CREDENTIALS_DIRECTORY`` the folder of systemd.exec(5).
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (variable := _CREDENTIALS.match(path)):
        return Path(credentials) / path[variable.end() :]
    home = _home(environ)
    if home is not None and (path == "~" or path.startswith(("~/", "~\\"))):
        return home / path[2:]
    return base / path


def path_fault(path: str) -> str | None:
    """The fault of a text that can't be a path, such as the certificate that the path should lead to."""
    if "\0" in path:
        return "must be a path, which has no NUL character"
    if fault := lost_backslash(path):
        return fault
    is_long = any(len(os.fsencode(name)) > _LONGEST_NAME for name in Path(path).parts)
    if is_long or len(path.splitlines()) > 1 or "-----BEGIN" in path:
        return "must be a path; put the text into a file, and the path of that file here"
    return None


def lost_backslash(path: str) -> str | None:
    """The fault of a path of Windows in which TOML took a backslash and a letter for an escape; else None."""
    if sys.platform == "win32" and _CONTROL.search(path.rstrip()) and "-----" not in path:  # no PEM
        return f"a \\ began an escape in it; {_BACKSLASHES}"
    return None


def working_folder() -> Path:
    """The current folder, as an absolute path where it still exists."""
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return Path()


class Content(NamedTuple):
    """The bytes of a file, and its status when they were read."""

    data: bytes
    status: os.stat_result


def read(path: Path, most: int = -1, *, advice: str = PRIVATE) -> Content:
    """The file's content, at most ``most`` bytes of it (-1: all).

    Raises OSError: `Untrusted` if another user could have written it (``advice`` is what chmod should do),
    and TimeoutError.
    """

    def opened(tries: int = _MOST_TRIES) -> Content:
        try:
            with path.open("rb") as file:
                refuse_untrusted(path, file.fileno(), advice)
                return Content(file.read(most), os.fstat(file.fileno()))
        except Replaced:
            if tries <= 1:
                raise
        except PermissionError:
            if path.is_dir():  # Windows
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
            raise
        return opened(tries - 1)

    return within(READ_TIMEOUT_S, identity(path), opened)


def identity(path: Path | None) -> tuple[Path | None, int, int]:
    """A value that changes when another file takes the path."""
    try:
        status = path.stat() if path is not None else None
    except (OSError, ValueError):
        status = None
    return (path, 0, 0) if status is None else (path, status.st_dev, status.st_ino)


def read_toml(path: Path, faults: list[str]) -> dict[str, Any]:
    """The file's content. Where it can't be read, an empty dict, and a line more in ``faults``.

    Raises ConfigError if another user could have written it: then nothing more may be done with it.
    """
    return read_table(path, faults)[0]


def read_table(path: Path, faults: list[str]) -> tuple[dict[str, Any], os.stat_result | None]:
    """As `read_toml`, with the file's status; None where it can't be read. Raises ConfigError."""
    text = ""
    try:
        data, status = read(path)
        text = data.decode("utf-8-sig")
        return tomllib.loads(text), status
    except NoThread:
        raise
    except Untrusted as untrusted:
        why = "the configuration holds a secret or decides where one goes"
        raise ConfigError(f"{why}, and {untrusted}") from None
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
    return {}, None


def _syntax_fault(path: Path, text: str, message: str) -> str:
    place = _TOML_PLACE.search(message)
    lines = text.splitlines() or [""]
    row, column = (int(place[1]), int(place[2])) if place and place[1] else (len(lines), len(lines[-1]) + 1)
    at_fault = lines[row - 1] if row <= len(lines) else ""
    hint = next((words for start, words in _HINTS.items() if message.startswith(start)), "")
    if '"' in at_fault and "\\" in at_fault:
        hint = f"; in a Windows path {_BACKSLASHES}"
    return f"{path}:{row}:{column}: not valid TOML: {_TOML_PLACE.sub('', message)}{hint}"


def _home(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("USERPROFILE" if sys.platform == "win32" else "HOME")
    return Path(home) if home else None
