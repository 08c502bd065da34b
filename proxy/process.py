"""What the process asks of the operating system: no core dumps, enough file descriptors, early signals.

Each step is taken where the system has it, and left out silently where it hasn't.
Sources: setrlimit(2), prctl(2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

_PR_SET_DUMPABLE = 4


def fill_standard_streams() -> None:
    """Open what is closed of the first three descriptors, as a supervisor may leave them.

    Else the next socket would be one of them: written to by whoever has something to say, and no good to
    uvloop, which aborts the process where it finds one of its own there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def harden() -> None:
    """No memory of ours reaches a disk or another process of the same user.

    A core dump would hold tokens and secrets; a process that isn't dumpable can't be attached to,
    and its /proc entries belong to root.
    """
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - not on Windows

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only where it is used

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_descriptor_limit() -> None:
    """Use all the file descriptors that we may have: the soft limit is often 1024, or 256."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int | None:
    """How many file descriptors we may have; None where there is no such limit."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - not on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def leave_on_signals() -> None:
    """A stop while we are still starting is a clean one, too; `StopSignals` takes over from here."""

    def leave(*_: object) -> NoReturn:
        ignore_signals()
        sys.exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def ignore_signals() -> None:
    """We are about to leave, and know our exit code: a further signal must not make it another one.

    One more is usual: of a terminal's Ctrl-C and whoever passes it on, of a service manager's SendSIGHUP=.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ignore_hangup()


def ignore_hangup() -> None:
    """What asks a running proxy to reload must not end one that is still starting, nor its child."""
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
