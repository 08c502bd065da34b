"""Failures of this computer itself: no descriptor, memory, port or network is left, or a rule forbids it.

Such a failure says nothing about Contentsquare. Libraries wrap the system's error, or hide it.
Sources: errno(3), connect(2), send(2); RFC 9209, section 2.3 (error types).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

from proxy.errors import Side


class MachineFault(NamedTuple):
    """``cause`` is for logs and metrics, ``words`` say what to do, ``proxy_status`` is RFC 9209's type.

    ``side``: whose trouble it is.
    """

    cause: str
    words: str
    proxy_status: str = "proxy_internal_error"
    side: Side = "proxy"


_NO_DESCRIPTORS = MachineFault(
    "no_descriptors",
    "no file descriptor is left (EMFILE or ENFILE); raise the limit of open files (ulimit -n, LimitNOFILE)"
    " or look for the program that uses them up",
)
_NO_MEMORY = MachineFault(
    "no_memory",
    "the operating system has no memory left for it (ENOMEM or ENOBUFS); look for the program that uses it"
    " up, or raise the container's limit",
)
_NO_PORT = MachineFault(
    "no_port",
    "no local port or address is left for it (EADDRNOTAVAIL); look for a program with many connections,"
    " and check this computer's network",
)
_FORBIDDEN = MachineFault(
    "forbidden",
    "this computer forbids it (EPERM or EACCES); check the rules of its firewall, of the container and of"
    " the service (IPAddressDeny, SELinux)",
    "destination_ip_prohibited",
    "network",
)
_NO_NETWORK = MachineFault(
    "no_network",
    "no network of this computer leads there (ENETUNREACH, EHOSTUNREACH or ENETDOWN); check its network and"
    " VPN",
    "destination_ip_unroutable",
    "network",
)
_FAULTS = {
    errno.EMFILE: _NO_DESCRIPTORS,
    errno.ENFILE: _NO_DESCRIPTORS,
    errno.ENOMEM: _NO_MEMORY,
    errno.ENOBUFS: _NO_MEMORY,
    errno.EADDRNOTAVAIL: _NO_PORT,
    errno.ENETUNREACH: _NO_NETWORK,
    errno.EHOSTUNREACH: _NO_NETWORK,
    errno.ENETDOWN: _NO_NETWORK,
    errno.EPERM: _FORBIDDEN,
    errno.EACCES: _FORBIDDEN,
}
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""The errors of a computer without IPv6, or without IPv4: the other family's error counts."""
_NUMBER = re.compile(r"\[(Errno|WinError) (\d+)\]")
_WINDOWS = {
    52: errno.EADDRNOTAVAIL,
    121: errno.ETIMEDOUT,
    1231: errno.ENETUNREACH,
    1232: errno.EHOSTUNREACH,
    1450: errno.ENOBUFS,
    10013: errno.EACCES,
    10024: errno.EMFILE,
}
"""Numbers of Windows that Python gives no errno: of its event loop, and in the text of an error."""
_PASSING = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN, errno.EIO),
    *(getattr(errno, name) for name in ("EDQUOT", "ESTALE") if hasattr(errno, name)),
)
"""A file that can't be read for one of these reasons may be readable a moment later."""


def machine_fault(error: BaseException) -> MachineFault | None:
    """The fault of this computer behind the error of a connection, None where there is none.

    Attempts to several addresses may have failed: a fault counts if all of them failed by it.
    """
    for seen in _chain(error):
        numbers = _numbers(seen)
        faults = {_FAULTS.get(number) for number in numbers - _NO_WAY or numbers}
        if len(faults) == 1 and (fault := faults.pop()) is not None:
            return fault
        if isinstance(seen, MemoryError):
            return _NO_MEMORY
        if isinstance(seen, socket.gaierror) and seen.errno == socket.EAI_MEMORY:
            return _NO_MEMORY
    return None


def is_timeout(error: BaseException) -> bool:
    """Whether the system ended a connection since its peer left all unanswered."""
    return isinstance(error, TimeoutError) or errno.ETIMEDOUT in _numbers(error)


def hidden_fault(error: BaseException) -> MachineFault | None:
    """As `machine_fault`, also where the error hides the fault, as a name's lookup does: a file is tried."""
    return machine_fault(error) or machine_fault(_error_of_a_try() or error)


def passes(error: BaseException, texts: tuple[str, ...] = ()) -> bool:
    """Whether files could not be read for a reason that may pass by itself.

    ``texts`` are lines about faults. The system's words in them are all that is left of some errors.
    """
    if any(number in _PASSING for seen in _chain(error) for number in _numbers(seen)):
        return True
    words = tuple(map(os.strerror, _PASSING))
    if any(text.endswith(words) for text in texts):
        return True
    return _error_of_a_try() is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those behind it."""
    seen: BaseException | None = error
    while seen is not None:
        yield getattr(seen, "os_error", seen)  # aiohttp's errors hold the system's
        seen = seen.__cause__ or seen.__context__


def _numbers(error: BaseException) -> set[int]:
    """The numbers of errno(3) in an error: several where it is of attempts to several addresses."""
    if not isinstance(error, OSError) or isinstance(error, socket.gaierror | ssl.SSLError):
        return set()  # the numbers of these two are of other kinds
    if error.errno is None:
        found = [(kind == "WinError", int(number)) for kind, number in _NUMBER.findall(str(error))]
        return {_WINDOWS.get(number, number) if is_windows else number for is_windows, number in found}
    return {_WINDOWS.get(getattr(error, "winerror", None) or 0, error.errno)}


def _error_of_a_try() -> OSError | None:
    """The passing error of opening a file that can always be opened; None where it opens."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error if error.errno in _PASSING else None
    return None
