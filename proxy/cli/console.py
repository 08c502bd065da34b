"""What a command says to the people who gave it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

from proxy.errors import OutputLost


def open_output() -> None:
    """Make standard output one that tells what becomes of it; whoever writes there, ours or a library.

    What its encoding lacks is shown escaped, as on standard error: it ends nothing. What can't be written
    raises OutputLost, but BrokenPipeError where whoever read it has left.
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
        if self._lost:  # and whoever wrote didn't pass it on
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
        except BrokenPipeError:
            raise
        except OSError as exc:
            if sys.platform == "win32" and exc.errno == errno.EINVAL:  # its word for a broken pipe
                raise BrokenPipeError(errno.EPIPE, exc.strerror) from None
            self._lost = f"standard output: can't be written ({exc.strerror}), so some of it is missing"
            self._leave()
            raise OutputLost(self._lost) from None

    def _leave(self) -> None:
        """Let what is kept go nowhere: Python's own try, as it ends, would make the exit code 120."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def say(text: str = "") -> None:
    """Print at once, and don't mind that nobody reads it. Raises OutputLost."""
    try:
        print(text, flush=True)  # noqa: T201 - the command's own output
    except BrokenPipeError:  # whoever read it has left, as in `csq-proxy serve | head -1`
        sys.stdout = None  # print() then does nothing, nor does the flush at the end


def fail(faults: Iterable[str], code: int) -> NoReturn:
    """A line for each fault on standard error, and the exit code."""
    try:
        for fault in faults:
            print(f"csq-proxy: {fault}", file=sys.stderr)  # noqa: T201 - the command's own output
    except OSError:  # nobody reads it, and the exit code says it all the same
        sys.stderr = None
    sys.exit(code)
