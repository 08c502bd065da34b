"""Writes to a stream in a thread of its own, for Windows, which can't tell whether a write would block.

A console in which text is being selected takes no line, and a pipe that nobody reads takes none either.
"""

from __future__ import annotations

import queue
import threading
from typing import Any


class Background:
    """A raw stream that never blocks: while one piece is being written, `write` takes no other."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, piece: bytes) -> int | None:
        """Take all of a piece; None while the last one is being written. Raises the error of the last one."""
        if not self._is_idle.is_set():
            return None
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._is_idle.clear()
        self._pieces.put(piece)
        return len(piece)

    def flush(self) -> None:
        """The thread does that."""

    def wait(self, wait_s: float) -> bool:
        """Wait until all is written, so long at most; returns whether it is."""
        return self._is_idle.wait(wait_s)

    def close(self) -> None:
        """End the thread, once it has written all."""
        self._pieces.put(None)

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                self._write(piece)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._error = error
            self._is_idle.set()

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._raw.write(rest) :]
        self._raw.flush()
