"""Listening sockets that a service manager opened for this process: systemd's socket activation.

These sockets outlive the process, so that a call during a restart waits and isn't refused. Hides how they
are passed, and their possible faults; must not know which project a socket serves. Sources: sd_listen_fds(3),
systemd.socket(5).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from proxy.errors import ConfigError
from proxy.origin import bracketed

FIRST_DESCRIPTOR = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class PassedSocket:
    """A stream socket that listens. ``name`` is its FileDescriptorName, "" without one."""

    name: str
    sock: socket.socket

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.sock.family == getattr(socket, "AF_UNIX", None)

    @property
    def address(self) -> str:
        """The address for people: a path, or host and port."""
        where = self.sock.getsockname()
        if self.is_unix:
            return f"@{where[1:].decode(errors='replace')}" if isinstance(where, bytes) else str(where)
        return f"{bracketed(where[0])}:{where[1]}"

    def exposure(self) -> str | None:
        """Why other users, outside this user's groups, or other machines can connect; None if they can't."""
        where = self.sock.getsockname()
        if not self.is_unix:
            if ipaddress.ip_address(where[0].partition("%")[0]).is_loopback:
                return None
            return "is not a loopback address; let ListenStream= name 127.0.0.1"
        if isinstance(where, bytes):  # in Linux's abstract namespace, where nothing has a mode
            return "is an abstract name; let ListenStream= name a path"
        try:
            mode = Path(where).stat().st_mode
        except OSError:  # removed, so no caller can reach it
            return None
        return "is open to every user; set SocketMode=0660 and SocketGroup=" if mode & stat.S_IWOTH else None


def take(environ: MutableMapping[str, str] = os.environ) -> list[PassedSocket]:
    """The sockets that were passed to this process; its children will get none.

    Raises ConfigError if the environment variables about them make no sense.
    """
    pid, count, names, _ = (environ.pop(variable, "") for variable in _VARIABLES)
    if sys.platform == "win32" or not pid:
        return []
    if _number("LISTEN_PID", pid) != os.getpid():  # meant for the process that started us
        return []
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + _number("LISTEN_FDS", count or "0"))
    known = names.split(":") if names else [""] * len(descriptors)
    if len(known) != len(descriptors):
        raise ConfigError(f"LISTEN_FDNAMES: has {len(known)} names, but LISTEN_FDS says {len(descriptors)}")
    passed: list[PassedSocket] = []
    try:
        for descriptor, name in zip(descriptors, known, strict=True):
            passed.append(_adopted(descriptor, name))  # `extend`, compiled, loses those before an error
    except ConfigError:
        for one in passed:
            one.sock.close()
        raise
    return passed


def _number(variable: str, value: str) -> int:
    if value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    raise ConfigError(f'{variable}: "{value}" is not a number; only the service manager may set it')


def _adopted(descriptor: int, name: str) -> PassedSocket:
    """The socket with this descriptor. Raises ConfigError if it doesn't listen for streams."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        raise ConfigError(f"LISTEN_FDS: descriptor {descriptor} is not an open socket") from None
    passed = PassedSocket(name, sock)
    is_ours = passed.is_unix or sock.family in (socket.AF_INET, socket.AF_INET6)
    if not is_ours or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ConfigError(
            f"LISTEN_FDS: descriptor {descriptor} does not listen for streams;"
            " use ListenStream= and leave Accept=no"
        )
    sock.set_inheritable(False)
    return passed
