"""The output of a command: lines for people on standard output, faults on standard error.

With `proxy.cli.tables.Terminal`, the only place where a command prints. A text may hold what other programs
said (Contentsquare, the running proxy, a file), so characters that a terminal would obey are escaped here.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

from proxy.errors import OutputLost
from proxy.foreign import shown


def open_output() -> None:
    """Replace standard output by a stream that raises when a write fails, in our code and in libraries.

    A character that the encoding lacks is shown escaped, as on standard error. A failed write raises
    OutputLost, or BrokenPipeError if the reader of a pipe has left.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding, buffering = sys.stdout.encoding, sys.stdout.line_buffering
        unbuffered = sys.stdout.write_through
        sys.stdout = _Output(
            sys.stdout.detach(),
            encoding,
            "backslashreplace",
            line_buffering=buffering,
            write_through=unbuffered,
        )


class _Output(io.TextIOWrapper):
    _lost = ""

    def write(self, text: str) -> int:
        if self._lost:  # an earlier write failed, and the library that wrote hid the error
            raise OutputLost(self._lost)
        with self._telling():
            return super().write(text)

    def flush(self) -> None:
        with self._telling():
            super().flush()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self._leave()
            if isinstance(exc, BrokenPipeError):
                raise
            if sys.platform == "win32" and exc.errno == errno.EINVAL:  # its word for a broken pipe
                raise BrokenPipeError(errno.EPIPE, exc.strerror) from None
            self._lost = f"standard output: can't be written ({exc.strerror}), so some of it is missing"
            raise OutputLost(self._lost) from None

    def _leave(self) -> None:
        """Throw unwritten output away: Python's own try to write it would fail, at the end at the latest.

        That would make the exit code 120, and from 3.14 on print an error.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def say(text: str = "") -> None:
    """Print at once; a reader that has left is no error. Raises OutputLost."""
    try:
        print(shown(text, keep="\n\t"), flush=True)  # noqa: T201 - the command's own output
    except BrokenPipeError:  # the reader has left, as in `csq-proxy serve | head -1`
        sys.stdout = None  # print() then does nothing, nor does the flush at the end


def say_json(value: object, *, indent: int | None = None) -> None:
    """Print JSON, in ASCII. A type that JSON lacks becomes its text. Raises OutputLost."""
    text = json.dumps(value, indent=indent, default=str)
    say(text.replace("\x7f", "\\u007f"))  # json leaves this one control character as it is


def note(text: str) -> None:
    """Print a line beside the output, on standard error."""
    if sys.stderr is None:  # print() would take standard output
        return
    try:
        print(f"csq-proxy: {shown(text)}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own output
    except OSError:  # no reader is left; of a failure, the exit code tells
        sys.stderr = None


def fail(faults: Iterable[str], code: int) -> NoReturn:
    """Print a line for each fault on standard error, and exit with ``code``."""
    for fault in faults:
        note(fault)
    sys.exit(code)
