"""The process's settings in the operating system: no core dumps, enough file descriptors, early signals.

A step that the system doesn't have is left out silently.
Sources: setrlimit(2), prctl(2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_PR_SET_DUMPABLE = 4


def fill_standard_streams() -> None:
    """Open those of the first three descriptors that a supervisor left closed.

    Otherwise the next socket would become standard input, output or error: prints would go into the
    socket, and uvloop aborts the process when its own socket has such a number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def harden() -> None:
    """Keep the process's memory from disks and from other processes of the same user.

    A core dump would hold tokens and secrets. No process can attach to a process that isn't dumpable,
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
    """Raise the limit of file descriptors to the highest allowed: the soft limit is often 1024, or 256."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int | None:
    """The most file descriptors that the process may have; None where there is no limit."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415 - not on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class _EarlyStop:
    """What is known of a stop that came while we were starting."""

    asked = False
    interrupts = False

    def on_signal(self, *_: object) -> None:
        """Take note of it, and leave if we only wait."""
        self.asked = True
        if self.interrupts:
            leave_if_asked()


_early_stop = _EarlyStop()


def leave_on_signals() -> None:
    """A stop while we are still starting is a clean one, too; `StopSignals` takes over from here.

    It isn't raised where it happens to find us: within an import, say, Python swallows that now and then.
    So it is taken note of, and whoever starts looks by `leave_if_asked`, or waits `interruptibly`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _early_stop.on_signal)


def leave_if_asked() -> None:
    """Raise SystemExit where a stop was asked for."""
    if _early_stop.asked:
        ignore_signals()
        sys.exit(0)


@contextlib.contextmanager
def interruptibly() -> Iterator[None]:
    """A stop ends what is waited for within: it raises SystemExit."""
    _early_stop.interrupts = True
    try:
        leave_if_asked()
        yield
    finally:
        _early_stop.interrupts = False
    leave_if_asked()


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
