"""Writes log lines to one stream or file, which can neither stop nor delay the program.

Hides batches (the lines of one turn of the event loop are one write), streams that fail, and readers that
don't read: a write that would block waits, and the bytes that wait are limited. Every line goes through
``redact`` first. Knows nothing of a line's content.
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

from proxy.logs.background import Background
from proxy.logs.file import LogFile

MOST_LINES = 256
"""The most lines that wait for the end of the event loop's turn."""
MOST_UNWRITTEN_BYTES = 1024 * 1024
"""The most bytes that wait while the stream accepts none; further lines are dropped."""
RETRY_S = 0.05
"""Seconds between two tries to write to a stream that accepts nothing."""
EXIT_WAIT_S = 1.0
"""Seconds that the program's end waits for a reader that doesn't read."""
_LINE_BREAK = 0x0A
_PIECE_BYTES = getattr(select, "PIPE_BUF", 512)
"""Bytes that a write can send without blocking once poll(2) reports that the stream is writable."""


class Sink:
    """Writes lines to ``stream``, and never raises an error of the stream.

    ``dropped`` counts the lines that couldn't be written: the pipe is closed, the disk is full, the reader
    doesn't read. Once all that waits is written again, ``on_dropped`` hears how many lines were dropped since
    it last heard, or since ``stream`` was set; it may log. A line may be logged in any thread, and within a
    flush (by a destructor).
    """

    def __init__(self, redact: Callable[[str], str], on_dropped: Callable[[int], None] | None = None) -> None:
        self.dropped = 0
        self._told = 0  # of `dropped`
        self._on_dropped = on_dropped
        self._redact = redact
        self._lock = threading.RLock()
        self._is_flushing = False
        self._lines: list[str] = []
        self._unwritten = bytearray()
        self._is_in_line = False  # the rest of the line is in `_unwritten`
        self._is_cut = False  # the rest of the line is lost
        self._due_in: asyncio.AbstractEventLoop | None = None
        self._retried_in: asyncio.AbstractEventLoop | None = None
        self._stream: IO[str] | LogFile | None = None
        self._raw: Any = None
        self._terminal: io.FileIO | None = None
        self._poll: select.poll | None = None
        self._background: Background | None = None
        atexit.register(self.flush, EXIT_WAIT_S)

    @property
    def stream(self) -> IO[str] | LogFile | None:
        """The stream or file for the lines; None (pythonw has no standard error): each line is dropped."""
        return self._stream

    @stream.setter
    def stream(self, stream: IO[str] | LogFile | None) -> None:
        with self._lock:
            self.flush(0.0 if self._background is None else EXIT_WAIT_S)
            if stream is not self._stream:
                self._drop_unwritten()
                self._is_cut, self._told = False, self.dropped
                if isinstance(self._stream, LogFile):
                    self._stream.close()
            self._stream = stream
            if isinstance(stream, LogFile):
                self._raw = stream
            else:
                binary = getattr(stream, "buffer", None)
                # Without Python's buffers: a line that failed would stay there, and appear later in pieces.
                self._raw = getattr(binary, "raw", binary)
            if self._terminal is not None:
                self._terminal.close()
            self._terminal = _terminal_of(self._raw)
            if self._terminal is not None:
                self._raw = self._terminal
            if self._background is not None:
                self._background.close()
            self._poll, self._background = None, None
            if not _may_block(self._raw):
                return
            if hasattr(select, "poll"):
                self._poll = select.poll()
                self._poll.register(self._raw, select.POLLOUT)
            else:  # Windows
                self._background = Background(self._raw)
                self._raw = self._background

    def write(self, line: str) -> None:
        """Write a line, given without its line break, after the lines that wait."""
        self._lines.append(line)
        self.flush()

    def write_soon(self, line: str) -> None:
        """Write a line as `write` does, but at the end of the event loop's turn, together with others."""
        self._lines.append(line)
        due_in = self._due_in
        if due_in is None or not due_in.is_running():  # `get_running_loop` is a system call on 3.11
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
        """Write the lines that wait. ``wait_s`` is how long to wait for a stream that accepts nothing now."""
        with self._lock:
            if self._is_flushing:  # the flush that runs writes the new lines, too
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
                if wait_s and self._background is not None:
                    self._background.wait(wait_s)
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
            # ValueError: the stream is closed. AttributeError: there is no stream.
            self._drop_unwritten()
        else:
            if not self._unwritten:
                self._tell_dropped()
        if self._unwritten:
            self._try_again_later()

    def _tell_dropped(self) -> None:
        count, self._told = self.dropped - self._told, self.dropped
        if count and self._on_dropped is not None:
            self._on_dropped(count)

    def _can_take(self, deadline: float) -> bool:
        if self._poll is None and self._background is None:
            return True
        wait_s = max(0.0, deadline - time.monotonic())
        if self._background is not None:
            return self._background.wait(wait_s)
        return self._poll is not None and bool(self._poll.poll(wait_s * 1000))

    def _write_some(self) -> int | None:
        """The number of bytes written; None where the stream would block."""
        if self._raw is None:
            stream = cast("IO[str]", self._stream)
            stream.write(self._unwritten.decode())
            stream.flush()
            return len(self._unwritten)
        if self._is_cut and not self._raw.write(b"\n"):
            return None
        self._is_cut = False
        piece = self._unwritten[:_PIECE_BYTES] if self._poll is not None else self._unwritten
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
    """The terminal of ``raw``, opened again without blocking; None where ``raw`` is no terminal.

    For a terminal poll(2) reports room for one byte, not for `_PIECE_BYTES`, so its writes must not block.
    O_NONBLOCK on the inherited file description would change the parent's writes, too.
    """
    if sys.platform == "win32":
        return None
    try:
        name = os.ttyname(raw.fileno())
        return io.FileIO(os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK), "w")
    except (AttributeError, OSError, ValueError):
        return None


def _may_block(raw: Any) -> bool:
    """Whether a write to ``raw`` can block: not to a file, and not to an object without a descriptor."""
    try:
        return not stat.S_ISREG(os.fstat(raw.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False
