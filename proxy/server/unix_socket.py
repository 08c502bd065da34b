"""The Unix socket that the proxy makes: its file is made again when it was removed, and removed at the stop.

A file that another process put in its place is left alone. Source: unix(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from proxy.blocking import NoThread, in_thread
from proxy.errors import ConfigError, ListenError
from proxy.logs import OnEvent

BACKLOG = 4096
"""How many connections wait in the kernel to be accepted."""
LOOK_S = 1.0
"""Seconds between two looks at the file."""


def socket_fault(path: Path) -> str | None:
    """Why no Unix socket could be made at the path; None where one could, or is. Changes nothing."""
    if os.access(path, os.F_OK) and not path.is_socket():
        reason, remedy = os.strerror(errno.EADDRINUSE), "something else is there; choose another path"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        reason, remedy = os.strerror(errno.EACCES), _let_write(path)
    else:
        return None
    return f"server.unix_socket: can't listen on {path} ({reason}); {remedy}"


class UnixSocket:
    """A listening Unix socket and its file, which only its owner can use. Raises ConfigError, ListenError.

    It replaces the file of a proxy that has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = _bind(path)
        self._file: tuple[int, int] | None = _identity(path)
        """Our file; None after `remove_file`. No other file gets its number while `sock` is open."""

    async def watch(self, move_to: Callable[[socket.socket], None], on_event: OnEvent) -> None:
        """Look at the file now and then. ``move_to`` gets the new socket after the file was removed.

        ``on_event`` hears ``unix_socket_lost`` if none can be made, and ``unix_socket_made_again``.
        """
        is_told = False
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                found = await in_thread(lambda: _identity(self.path))
            except NoThread:
                continue
            if self._file is None:
                return
            if found == self._file:
                continue
            fault = f"{self.path} is another program's file now; remove it" if found else self._renew()
            if fault is None:
                move_to(self.sock)
                on_event("unix_socket_made_again", {"path": str(self.path)})
            elif not is_told:
                on_event("unix_socket_lost", {"path": str(self.path), "error": fault})
            is_told = fault is not None

    def _renew(self) -> str | None:
        """Make a new socket and its file. Why that failed; None: it didn't."""
        try:
            self.sock = _bind(self.path)
        except ListenError as error:
            return str(error)
        self._file = _identity(self.path)
        return None

    def remove_file(self) -> None:
        """Remove the file if it is still ours. Call this before the socket is closed, at the stop."""
        ours, self._file = self._file, None
        if ours is not None and _identity(self.path) == ours:
            with contextlib.suppress(OSError):  # the folder isn't ours any more
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    """The file's device and number; None where there is no file, or none that we can see."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _bind(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("server.unix_socket: this system has no Unix sockets; leave it out")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        remedy = _let_write(path)
        if exc.errno == errno.EADDRINUSE:
            remedy = "is another csq-proxy running, or something else there? Stop it, or choose another path"
        raise ListenError(f"server.unix_socket: can't listen on {path} ({exc.strerror}); {remedy}") from None
    return sock


def _let_write(path: Path) -> str:
    return f"let this user write to {path.parent}, or choose another path"


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # with a full backlog `connect` would wait, though a busy proxy is there
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED
