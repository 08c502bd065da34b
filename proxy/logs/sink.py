"""Where log lines go: one stream, that can neither stop the program nor hold it up.

Hides batches (the lines of one turn of the event loop are one write), streams that fail, and readers that
don't read: on POSIX a write that would block is put off, and what waits is bounded. Nothing is written
that ``redact`` hasn't seen. Knows nothing of what a line holds.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any, cast

MOST_LINES = 256
"""That wait for the end of the event loop's turn."""
MOST_UNWRITTEN_BYTES = 1024 * 1024
"""Kept while the stream takes nothing; lines beyond are dropped."""
RETRY_S = 0.05
"""Between two looks whether a stream takes more."""
EXIT_WAIT_S = 1.0
"""For a reader that doesn't read, at the program's end."""
_LINE_BREAK = 0x0A
_PIECE_BYTES = getattr(select, "PIPE_BUF", 512)
"""What can be written without blocking once poll(2) says that something can."""


class Sink:
    """Writes lines to ``stream``, and never raises for what the stream does.

    ``dropped`` counts the lines that couldn't be written: the pipe is closed, the disk is full, nobody reads.
    A line may be logged in any thread, and within a flush (by a destructor).
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self.dropped = 0
        self._redact = redact
        self._lock = threading.RLock()
        self._is_flushing = False
        self._lines: list[str] = []
        self._unwritten = bytearray()
        self._is_in_line = False  # its rest is in `_unwritten`
        self._is_cut = False  # its rest is lost
        self._due_in: asyncio.AbstractEventLoop | None = None
        self._retried_in: asyncio.AbstractEventLoop | None = None
        self._stream: IO[str] | None = None
        self._raw: Any = None
        self._terminal: io.FileIO | None = None
        self._poll: select.poll | None = None
        atexit.register(self.flush, EXIT_WAIT_S)

    @property
    def stream(self) -> IO[str] | None:
        """Where lines go; None: nowhere (pythonw has no standard error), each is dropped."""
        return self._stream

    @stream.setter
    def stream(self, stream: IO[str] | None) -> None:
        with self._lock:
            self.flush()
            if stream is not self._stream:
                self._drop_unwritten()
                self._is_cut = False
            self._stream = stream
            binary = getattr(stream, "buffer", None)
            # Past the buffers, so that a line that failed doesn't stay in one and come out in pieces.
            self._raw = getattr(binary, "raw", binary)
            if self._terminal is not None:
                self._terminal.close()
            self._terminal = _terminal_of(self._raw)
            if self._terminal is not None:
                self._raw = self._terminal
            self._poll = _poll_of(self._raw)

    def write(self, line: str) -> None:
        """Write a line, given without its line break, after those that wait."""
        self._lines.append(line)
        self.flush()

    def write_soon(self, line: str) -> None:
        """As `write`, but at the end of the event loop's turn, together with others."""
        self._lines.append(line)
        due_in = self._due_in
        if due_in is None or not due_in.is_running():  # asking for the running one is a system call on 3.11
            self._flush_soon()
        elif len(self._lines) >= MOST_LINES:
            self.flush()

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._due_in = loop
        loop.call_soon(self.flush)

    def flush(self, wait_s: float = 0.0) -> None:
        """Write what waits. ``wait_s`` is for a stream that takes nothing now."""
        with self._lock:
            if self._is_flushing:  # whoever does takes it along
                return
            self._is_flushing, self._due_in = True, None
            try:
                while self._lines:
                    # No swap of lists: another thread may be about to append to this one.
                    lines = self._lines[:]
                    del self._lines[: len(lines)]
                    self._take(lines)
                    self._send(wait_s)
                if self._unwritten:
                    self._send(wait_s)
            finally:
                self._is_flushing = False

    def _take(self, lines: list[str]) -> None:
        lines.append("")
        data = self._redact("\n".join(lines)).encode("utf-8", "backslashreplace")
        if len(self._unwritten) + len(data) > MOST_UNWRITTEN_BYTES and self._unwritten:
            self.dropped += len(lines) - 1
        else:
            self._unwritten += data

    def _send(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        try:
            while self._unwritten and self._can_take(deadline):
                written = self._write_some()
                if not written:
                    break
                self._is_in_line = self._unwritten[written - 1] != _LINE_BREAK
                del self._unwritten[:written]
        except (OSError, ValueError, AttributeError):
            # ValueError is a closed file's; AttributeError that of no stream at all.
            self._drop_unwritten()
        if self._unwritten:
            self._try_again_later()

    def _can_take(self, deadline: float) -> bool:
        if self._poll is None:
            return True
        return bool(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _write_some(self) -> int | None:
        """How many bytes the stream took; none where it would block."""
        if self._raw is None:
            stream = cast("IO[str]", self._stream)
            stream.write(self._unwritten.decode())
            stream.flush()
            return len(self._unwritten)
        if self._is_cut and not self._raw.write(b"\n"):
            return None
        self._is_cut = False
        piece = self._unwritten if self._poll is None else self._unwritten[:_PIECE_BYTES]
        written: int | None = self._raw.write(bytes(piece))
        self._raw.flush()
        return written

    def _try_again_later(self) -> None:
        with contextlib.suppress(RuntimeError):  # without an event loop: at the next line, or at the end
            loop = asyncio.get_running_loop()
            self._due_in = loop
            if loop is not self._retried_in:  # one timer, however many lines come meanwhile
                self._retried_in = loop
                loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retried_in = None
        self.flush()

    def _drop_unwritten(self) -> None:
        self.dropped += self._unwritten.count(b"\n")
        self._unwritten.clear()
        self._is_cut, self._is_in_line = self._is_cut or self._is_in_line, False


def _terminal_of(raw: Any) -> io.FileIO | None:
    """A description of our own of the terminal that ``raw`` is, None where there is none to be had.

    Of a terminal poll(2) says that one byte has room, and not `_PIECE_BYTES`: only a write that can't block
    doesn't. O_NONBLOCK on the description that we were given would be our parent's, too.
    """
    if sys.platform == "win32":
        return None
    try:
        name = os.ttyname(raw.fileno())
        return io.FileIO(os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK), "w")
    except (AttributeError, OSError, ValueError):
        return None


def _poll_of(raw: Any) -> select.poll | None:
    """What tells whether a write would block; None where none can (a file), or that can't be told."""
    if not hasattr(select, "poll"):  # Windows
        return None
    try:
        number = raw.fileno()
        if stat.S_ISREG(os.fstat(number).st_mode):
            return None
    except (AttributeError, OSError, ValueError):
        return None
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return poll
