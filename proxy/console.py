"""What a command says to the people who gave it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import NoReturn


def show_all_characters() -> None:
    """What standard output's encoding lacks is shown escaped, as on standard error: it ends nothing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Print at once, and don't mind that nobody reads it."""
    try:
        print(text, flush=True)  # noqa: T201 - the command's own output
    except OSError:  # whoever read it has left, as in `csq-proxy serve | head -1`
        sys.stdout = None  # print() then does nothing, nor does the flush at the end


def fail(faults: Iterable[str], code: int) -> NoReturn:
    """A line for each fault on standard error, and the exit code."""
    try:
        for fault in faults:
            print(f"csq-proxy: {fault}", file=sys.stderr)  # noqa: T201 - the command's own output
    except OSError:  # nobody reads it, and the exit code says it all the same
        sys.stderr = None
    sys.exit(code)
