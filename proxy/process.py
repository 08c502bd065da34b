"""The process in the operating system: core dumps, descriptors, signals of the start, pauses, locks.

Each function does nothing on a system that lacks its call.
Sources: setrlimit(2), prctl(2), tty(4), flock(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PR_SET_DUMPABLE = 4
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
"""The signals that ask for a stop."""
if sys.platform == "win32":
    STOP_SIGNALS.append(signal.SIGBREAK)  # Ctrl-Break
STALLED_S = 5.0
"""A timer that is so late says that the process stood still (a container's pause, SIGSTOP)."""
CONSOLE_GRACE_S = 4.0
"""How long Windows lets a process work on whose console is closed, or whose user logs off: 5 s at least."""
REPLACE_WAIT_S = 1.0 if sys.platform == "win32" else 0.0
"""How long `replace` tries: on Windows, a virus scanner may have a new file open for a moment."""
_REPLACE_POLL_S = 0.02
_BARE = re.compile(r"[\w.:/\\=+~-]+\Z")
"""A word that needs no quotes in a shell of Windows."""
_CONSOLE_ENDS = (2, 6)  # CTRL_CLOSE_EVENT, CTRL_SHUTDOWN_EVENT
_CTRL_LOGOFF_EVENT = 5
_console_handlers: list[object] = []
"""Windows keeps no reference to them."""


def fill_standard_streams() -> None:
    """Open those of the first three descriptors that a supervisor left closed.

    Otherwise the next socket would become standard input, output or error: prints would go into the
    socket, and uvloop aborts the process when its own socket has such a number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def own_command() -> list[str]:
    """The words that start this program again: a program of one file, an archive or a package of Python's."""
    if getattr(sys, "frozen", False):  # by PyInstaller
        return [sys.executable]
    if sys.argv[0].endswith(".pyz"):
        return [sys.executable, os.path.abspath(sys.argv[0])]  # noqa: PTH100 - pathlib is loaded late
    return [sys.executable, "-m", "proxy"]


def command_line(words: Sequence[str]) -> str:
    """The words as a line to paste into the shell that started this process."""
    if sys.platform == "win32":
        return windows_line(words, is_cmd="PROMPT" in os.environ)  # cmd.exe sets it, PowerShell doesn't
    import shlex  # noqa: PLC0415 - only where it is used

    return shlex.join(words)


def windows_line(words: Sequence[str], *, is_cmd: bool) -> str:
    """The words as a line for cmd.exe, or for PowerShell, which starts a program in quotes by ``&`` alone."""
    quoted = [word if _BARE.match(word) else _in_quotes(word, is_cmd=is_cmd) for word in words]
    return " ".join(["&", *quoted] if quoted[0].startswith('"') and not is_cmd else quoted)


def _in_quotes(word: str, *, is_cmd: bool) -> str:
    text = word if is_cmd else re.sub("([`$])", r"`\1", word)
    return f'"{text}\\"' if text.endswith("\\") else f'"{text}"'


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


class _Start:
    """The terminal that the process was started on, and the signals that came while it starts."""

    on_terminal = False
    """Whether there was a terminal whose end is a stop; not where SIGHUP was ignored, as by nohup(1)."""
    asked = False
    hung_up = False
    interrupts = False

    def on_signal(self, *_: object) -> None:
        """Note the stop, and raise SystemExit within `interruptibly`."""
        self.asked = True
        if self.interrupts:
            leave_if_asked()

    def on_hangup(self, *_: object) -> None:
        """Note SIGHUP. It is a stop only if the terminal is gone; the running proxy reloads then."""
        self.hung_up = True
        if self.interrupts:
            leave_if_asked()


_start = _Start()


def leave_on_signals() -> None:
    """Make SIGINT, SIGTERM and the terminal's end a clean stop while the process starts.

    `proxy.app.run.Signals` replaces this later. The handler doesn't raise at once: Python swallows an
    exception within some imports. So it only notes the stop; `leave_if_asked` and `interruptibly` obey it.
    SIGUSR1 and SIGUSR2, which would end the process, are ignored from now on.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _start.on_signal)
    if sys.platform != "win32":
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        _start.on_terminal = not is_ignored and _terminal_error() is None
        signal.signal(signal.SIGHUP, _start.on_hangup)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def terminal_is_gone() -> bool:
    """Whether SIGHUP means a stop: the process was started on a terminal, and the terminal is closed."""
    return _start.on_terminal and _terminal_error() in (errno.ENXIO, errno.EIO)


def _terminal_error() -> int | None:
    """The error of opening the process's controlling terminal, tty(4); None: there is a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno
    return None


def leave_if_asked() -> None:
    """Raise SystemExit if a signal, or the end of the terminal, asked for a stop."""
    if _start.asked or (_start.hung_up and terminal_is_gone()):
        ignore_signals()
        sys.exit(0)


@contextlib.contextmanager
def interruptibly() -> Iterator[None]:
    """Within this context a signal raises SystemExit, also out of a wait."""
    _start.interrupts = True
    try:
        leave_if_asked()
        yield
    finally:
        _start.interrupts = False
    leave_if_asked()


def ignore_signals() -> None:
    """Ignore signals from now on: the process is about to exit, and they must not change its exit code.

    A second signal is usual: from a wrapper that passes a terminal's Ctrl-C on, or by SendSIGHUP= of systemd.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def on_console_end(stop: Callable[[], object]) -> None:
    """Call ``stop``, in another thread, when the console is closed, or a service's computer shuts down.

    On Windows alone, which ends the process as soon as such an event's handler returns. So the handler never
    does, and the process has the time until Windows ends it, see `CONSOLE_GRACE_S`. Only services get the
    event of a logoff, and of any user's: they go on. Source: Microsoft's "HandlerRoutine callback function".
    """
    if sys.platform != "win32":
        return
    import ctypes  # noqa: PLC0415 - only where it is used
    from ctypes import wintypes  # noqa: PLC0415

    @ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)
    def handle(event: int) -> bool:
        if event not in _CONSOLE_ENDS:
            return event == _CTRL_LOGOFF_EVENT
        stop()
        while True:
            time.sleep(CONSOLE_GRACE_S)

    _console_handlers.append(handle)
    ctypes.windll.kernel32.SetConsoleCtrlHandler(handle, True)


if sys.platform == "win32":

    def try_lock(descriptor: int) -> bool:
        """Lock an open file until the descriptor is closed; False where another descriptor has the lock."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:

    def try_lock(descriptor: int) -> bool:
        """Lock an open file until the descriptor is closed; False where another descriptor has the lock."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def replace(new: Path, old: Path, by: Callable[[Path, Path], object] | None = None) -> None:
    """Give the file ``new`` the name of ``old``, in its place; ``by`` may do it. Raises OSError."""
    ends_at = time.monotonic() + REPLACE_WAIT_S
    while True:
        try:
            if by is None:
                new.replace(old)
            else:
                by(new, old)
        except PermissionError:
            if time.monotonic() >= ends_at:
                raise
            time.sleep(_REPLACE_POLL_S)
        else:
            return
