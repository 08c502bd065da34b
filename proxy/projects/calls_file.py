"""The file with the calls of months, in the folder ``server.state_dir``.

Several processes may share the folder: under a lock, each adds its new calls to those in the file. So the
file has the calls of all, whichever of them ends, and a process that is killed leaves the old file or the new
one. Nobody else may be able to write there. All of this blocks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from proxy.config.trust import PRIVATE, Untrusted, folder_fault, refuse_untrusted
from proxy.process import replace, try_lock
from proxy.projects.months import Month, Months, start_of, total

NAME: Final = "calls.json"
VERSION: Final = 1
LOCK_WAIT_S: Final = 2.0
"""How long another process may hold the lock, in seconds; it needs milliseconds."""
_LOCK_POLL_S: Final = 0.02
_MOST_BYTES: Final = 64 << 20
_MOST_CALLS: Final = 2**53
_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Damaged(ValueError):
    """The file holds something else than counts."""


class Saved(NamedTuple):
    """The months in the file now. ``damaged`` is where a damaged file was put; None: the file was good."""

    months: Months
    damaged: Path | None = None


class CallsFile:
    """The file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME

    def add(self, changes: Mapping[str, Month], known: Months) -> Saved:
        """Add the changes to the file. If it raises OSError, nothing was added.

        ``known`` are the months as they were in the file; they are taken where it is gone or damaged.
        """
        if fault := folder_fault(self.folder):
            raise Untrusted(fault)
        with self._locked():
            months, damaged = self._read()
            if changes or (months is None and known):
                months = total(known if months is None else months, changes)
                self._write(months)
            return Saved(months or {}, damaged)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; the system frees it when the process ends, however that is."""
        descriptor = os.open(self.folder / "calls.lock", os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
        try:
            ends_at = time.monotonic() + LOCK_WAIT_S
            while not try_lock(descriptor):
                if time.monotonic() >= ends_at:
                    raise OSError(errno.EAGAIN, "another process holds its lock", str(self.path))
                time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> tuple[Months | None, Path | None]:
        """The months, None without a good file; and where a damaged file was put."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | _NO_LINK)
        except FileNotFoundError:
            return None, None
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "this is no file", str(self.path))
            refuse_untrusted(self.path, descriptor, PRIVATE)
            content = file.read(_MOST_BYTES + 1)
        try:
            return _months(content), None
        except Damaged:
            aside = self.path.with_name(f"{NAME}.damaged")
            replace(self.path, aside)
            return None, aside

    def _write(self, months: Months) -> None:
        """Put a new file in the place of the old one, once it is on the disk."""
        new = self.path.with_name(f"{NAME}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_LINK, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_content(months))
                file.flush()
                os.fsync(descriptor)
            replace(new, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise


def _content(months: Months) -> bytes:
    values = {
        name: {"since": month.since, "calls": month.calls, "warned": month.warned}
        for name, month in months.items()
    }
    return json.dumps({"version": VERSION, "months": values}).encode()


def _months(content: bytes) -> Months:
    """The months in the content of a file. Raises Damaged, and OSError for another version's file."""
    try:
        if len(content) > _MOST_BYTES:
            raise Damaged("too long")
        members = json.loads(content)
        if members["version"] != VERSION:
            raise OSError(errno.EINVAL, f"another version of csq-proxy wrote it ({members['version']})", NAME)
        return {name: _month(name, month) for name, month in members["months"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(str(error)) from None


def _month(name: str, members: Mapping[str, object]) -> Month:
    start_of(name)
    since, calls, warned = members["since"], members["calls"], members["warned"]
    if isinstance(since, bool) or not isinstance(since, int | float) or not 0 <= since < _MOST_CALLS:
        raise Damaged("since")
    return Month(since, _counts(calls), _counts(warned))


def _counts(members: object) -> dict[str, int]:
    if not isinstance(members, dict):
        raise Damaged("counts")
    for count in members.values():
        if type(count) is not int or not 0 <= count < _MOST_CALLS:
            raise Damaged("count")
    return members
