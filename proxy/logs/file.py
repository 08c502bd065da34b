"""The log's file (``log.file``), rotated by its size.

Hides when the file is opened: at the first line, after an error, and where another program moved or removed
it. Only this user can read it. A write may raise OSError, and the next one then tries again.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

MOST_BYTES = 10 * 1024 * 1024
"""The size at which the file gets the name ``FILE.1``, and ``FILE.1`` becomes ``FILE.2``."""
KEPT = 5
"""How many older files are kept."""
LOOK_S = 1.0
"""Seconds between two looks at whether the path still names the open file."""
RETRY_S = 60.0
"""Seconds until the next try after a rotation that failed: on Windows, another program may read the file."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
# A named pipe in the file's place must not stop the program, nor may a link lead elsewhere.
_FLAGS |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
_LINE_BREAK = 0x0A


class LogFile:
    """A file for lines, given in UTF-8. ``clock`` gives monotonic seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        real = os.path.realpath(path)
        self._names = (real, *(f"{real}.{number}" for number in range(1, KEPT + 1)))
        self._clock = clock
        self._file: io.FileIO | None = None
        self._size = 0
        self._ends_line = True  # the next byte begins a line
        self._look_at = self._rotate_at = 0.0

    def write(self, data: bytes) -> int:
        """The number of bytes written. Lines are not divided between two files."""
        now = self._clock()
        file = self._file if now < self._look_at else None
        if file is None:
            file = self._look(now)
        if self._size + len(data) > MOST_BYTES and self._ends_line and now >= self._rotate_at:
            file = self._rotate(now, len(data))
        written = file.write(data) or 0
        self._size += written
        if written:
            self._ends_line = data[written - 1] == _LINE_BREAK
        return written

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Close the file, which may be opened again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _look(self, now: float) -> io.FileIO:
        """The file that the path names, opened if need be."""
        self._look_at = now + LOOK_S
        if self._file is not None:
            if self._is_in_place(self._file):
                self._size = os.fstat(self._file.fileno()).st_size  # another process may write, too
                return self._file
            self.close()
        descriptor = os.open(self._names[0], _FLAGS, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a file")
        self._file, self._size = io.FileIO(descriptor, "a"), status.st_size
        return self._file

    def _is_in_place(self, file: io.FileIO) -> bool:
        if sys.platform == "win32":  # a file that is open can be neither moved nor removed there
            return True
        try:
            named = Path(self._names[0]).stat()
        except OSError:
            return False
        return os.path.samestat(os.fstat(file.fileno()), named)

    def _rotate(self, now: float, needed: int) -> io.FileIO:
        file = self._look(now)  # another process may have rotated it
        if not self._size or self._size + needed <= MOST_BYTES:
            return file
        self.close()
        try:
            self._rename()
        except OSError:
            self._rotate_at = now + RETRY_S
        return self._look(now)

    def _rename(self) -> None:
        """Give each file the next name, up to the first free one: so further tries lose none."""
        names = self._names
        free = next((place for place, name in enumerate(names) if not os.path.exists(name)), KEPT)  # noqa: PTH110
        for place in range(free, 0, -1):
            os.replace(names[place - 1], names[place])  # noqa: PTH105 - text, as it is
