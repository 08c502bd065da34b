"""Programs on a terminal. On Windows, which has no pseudo-terminals, their tests are skipped."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import forked
from support.commands import STARTUP_S

if sys.platform != "win32":
    import termios

COLUMNS = 100
PROGRAM = (sys.executable, "-m", "proxy")
CONTROL = re.compile(r"\x1b\[[0-9;]*m|\r(?=\n)")
"""Colours, and what a terminal adds to the end of a line."""
TERMINAL = """
import fcntl, os, signal, sys, termios
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if sys.argv[1] != "setsid":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a program in a session of its own, whose terminal is standard input (``setsid``: it has none)."""


class InTerminal:
    """A program whose standard streams are a terminal. `close` is what closing the window does."""

    def __init__(self, how: str, *program: str, environ: dict[str, str], cwd: Path) -> None:
        if sys.platform == "win32":
            pytest.skip("Windows has no pseudo-terminals")
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, (24, COLUMNS))
        self.process: subprocess.Popen[bytes] | forked.Fork
        if program[: len(PROGRAM)] == PROGRAM and forked.can_fork(environ):
            self.process = forked.Fork(
                *program[len(PROGRAM) :], environ=environ, cwd=cwd, terminal=slave, how=how
            )
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-c", TERMINAL, how, *program],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env=environ,
                cwd=cwd,
            )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        """Type this; "\\udcff" is the byte 0xff."""
        os.write(self._master, text.encode(errors="surrogateescape"))

    def wait_for(self, pattern: str) -> str:
        """Read what is shown until it matches ``pattern``; the first group of the match, or all of it."""
        while (match := re.search(pattern, self.shown)) is None:
            assert self._read(), f"it ended, and showed {self.shown!r}"
        return match[1] if match.groups() else match[0]

    def end(self) -> int:
        """Read what is shown to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(STARTUP_S)

    def _read(self) -> bool:
        try:
            part = os.read(self._master, 65_536)
        except OSError:  # on Linux, when the program has ended
            part = b""
        self.shown = CONTROL.sub("", self.shown + part.decode(errors="replace"))
        return bool(part)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            os.close(self._master)


@contextlib.contextmanager
def in_terminal(how: str, *program: str, environ: dict[str, str], cwd: Path) -> Iterator[InTerminal]:
    terminal = InTerminal(how, *program, environ=environ, cwd=cwd)
    try:
        yield terminal
    finally:
        terminal.close()
        terminal.process.kill()
        terminal.process.wait(STARTUP_S)
