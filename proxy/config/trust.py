"""Whether another user of this computer could have written a file.

The configuration, and the files that it names, decide where secrets go and which commands run. So such a file
must belong to us or to root, and nobody else may write to it or to a folder above it: to write to a folder is
to put another file into a file's place. These pass:

- a folder with the sticky bit, such as /tmp: nobody can replace our files there;
- the write permission of a group that has no member but the owner (umask 002 on Debian and Fedora);
- everything on a read-only mount, since the platform chose what is there;
- character devices, and descriptors that we were given (``/dev/stdin``).

A path is followed from the root, link by link. Each step is in a folder that was found good, so nobody else
can change it between the look and the use. Sources: path_resolution(7), inode(7), the patch
user-group-modes of Debian's OpenSSH; for Windows see `proxy.config.acl`.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    from proxy.config import acl
else:
    import grp
    import pwd

PRIVATE, READABLE = "600", "go-w"
"""The words for chmod that mend a file with secrets, and a file that others may read."""
_SHARED = "g-w,o-rwx"
"""`PRIVATE` for a file of another owner: we read it by its group, which ``chmod 600`` would shut out."""
UNCHECKED = "this system doesn't tell who may change the file"
_MOST_LINKS = 40
_OWN_DESCRIPTOR = re.compile(r"/(?:dev|proc/[^/]+(?:/task/[^/]+)?)/fd/\d+\Z")
_ACL = "system.posix_acl_access"


class Untrusted(OSError):
    """Another user could have written a file. The message names the file or folder, and the way out."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.strerror = fault


class Replaced(Untrusted):
    """The path named another file when the opened one was looked at: its owner replaced it, most likely."""


def refuse_untrusted(path: Path, descriptor: int, advice: str) -> None:
    """Raise `Untrusted` if another user could have written the file that is open as ``descriptor``.

    ``advice`` are the words for chmod that mend the mode. Raises `Replaced`, and OSError where a folder
    is gone.
    """
    if fault := _fault(path, descriptor, advice):
        raise Untrusted(fault)


def fault_of(path: Path, advice: str) -> str | None:
    """The fault of a file that isn't open, None for a good one. Raises OSError."""
    return _fault(path, None, advice)


def folder_fault(folder: Path) -> str | None:
    """The fault of a folder for files of ours, None for a good one; a sticky one is none. Raises OSError."""
    mode = folder.stat().st_mode
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if sys.platform != "win32" and mode & stat.S_ISVTX and mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to {folder} (mode {stat.S_IMODE(mode):04o}); make a folder in it for this"
    return _fault(folder, None, "go-w")


def unchecked(paths: tuple[Path, ...]) -> list[Path]:
    """The files about which the system doesn't tell who may write to them (Windows: no access list)."""
    if sys.platform == "win32":
        return [path for path in paths if path.exists() and not acl.is_known(path)]
    return []


if sys.platform == "win32":

    def _fault(path: Path, descriptor: int | None, advice: str) -> str | None:  # noqa: ARG001 - POSIX's
        return acl.fault_of(path)

else:

    def chmod_for(advice: str, status: os.stat_result) -> str:
        """The words for chmod that mend this file, and let this process still read it."""
        return _SHARED if advice == PRIVATE and status.st_uid != os.geteuid() else advice

    def _fault(path: Path, descriptor: int | None, advice: str) -> str | None:
        place, status = path, None
        for place, status in _way_to(path):
            if fault := _fault_on_the_way(place, status):
                return fault
        is_given = _OWN_DESCRIPTOR.match(str(place)) is not None
        if descriptor is not None:
            opened = os.fstat(descriptor)
            if status is not None and not is_given and not os.path.samestat(opened, status):
                raise Replaced(f"{path} was replaced while it was read; try again")
            status = opened
        if status is None or stat.S_ISCHR(status.st_mode) or (is_given and not stat.S_ISREG(status.st_mode)):
            return None
        return _file_fault(path, status, path if descriptor is None else descriptor, advice)

    def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Each folder and link on the way, from the root, and at the end the file. No path has a link in it.

        A descriptor of our own is the end, too.
        """
        root = done = Path("/")
        rest = [*(path if path.is_absolute() else Path.cwd() / path).parts[:0:-1]]
        links = 0
        yield root, root.lstat()
        while rest:
            part = rest.pop()
            if part == "..":
                done = done.parent
                continue
            place = done / part
            status = place.lstat()
            yield place, status
            if not stat.S_ISLNK(status.st_mode):
                done = place
                continue
            links += 1
            if _OWN_DESCRIPTOR.match(str(place)):
                return
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = place.readlink()
            rest += target.parts[: 0 if target.is_absolute() else None : -1]
            done = root if target.is_absolute() else done

    def _fault_on_the_way(place: Path, status: os.stat_result) -> str | None:
        """The fault of a folder or of a link."""
        if stat.S_ISLNK(status.st_mode):
            return _owner_fault(place, status, place.parent)
        if not stat.S_ISDIR(status.st_mode):
            return None
        if fault := _owner_fault(place, status, place):
            return fault
        if _is_writable(place, status) and not _is_read_only(place):
            mode = stat.S_IMODE(status.st_mode)
            return (
                f"others can change the folder {place} (mode {mode:04o});"
                f" run: chmod go-w {shlex.quote(str(place))}"
            )
        return None

    def _file_fault(path: Path, status: os.stat_result, opened: int | Path, advice: str) -> str | None:
        if fault := _owner_fault(path, status, opened):
            return fault
        if _is_writable(opened, status) and not _is_read_only(opened):
            mode = stat.S_IMODE(status.st_mode)
            words = chmod_for(advice, status)
            return f"others can change {path} (mode {mode:04o}); run: chmod {words} {shlex.quote(str(path))}"
        return None

    def _owner_fault(place: Path, status: os.stat_result, mounted: int | Path) -> str | None:
        """``mounted``: an open file, or a path, on the same mount."""
        if status.st_uid in _trusted_users() or _is_read_only(mounted):
            return None
        itself = "-h " if stat.S_ISLNK(status.st_mode) else ""
        command = f"chown {itself}{user_name(os.geteuid())} {shlex.quote(str(place))}"
        return (
            f"{place} belongs to another user ({user_name(status.st_uid)}); use a file in a folder of your"
            f" own or on a read-only mount, or, if you trust what is in it, run: {command}"
        )

    def _trusted_users() -> tuple[int, ...]:
        """We, root, and the owner of ``/``: in a user namespace, root may have another number."""
        return os.geteuid(), 0, os.lstat("/").st_uid

    def user_name(number: int) -> str:
        """The user's name, else the number."""
        try:
            return pwd.getpwuid(number).pw_name
        except KeyError:
            return str(number)

    def _is_writable(place: int | Path, status: os.stat_result) -> bool:
        """Whether a user other than the owner can change the file, or replace what is in the folder."""
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
            return False
        if status.st_mode & stat.S_IWOTH:
            return True
        return bool(status.st_mode & stat.S_IWGRP) and not _is_private_group(place, status)

    def _is_private_group(place: int | Path, status: os.stat_result) -> bool:
        """Whether the group that may write has no member but the owner; no access list may name others."""
        try:
            if hasattr(os, "listxattr") and _ACL in os.listxattr(place):
                return False
        except OSError:  # a file system without access lists
            pass
        try:
            owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
        except KeyError:
            return False
        members = {user.pw_name for user in pwd.getpwall() if user.pw_gid == status.st_gid}
        return owner.pw_gid == status.st_gid and members.union(group.gr_mem) == {owner.pw_name}

    def _is_read_only(place: int | Path) -> bool:
        return bool(os.statvfs(place).f_flag & os.ST_RDONLY)
