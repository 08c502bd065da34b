"""Signals of the test's own process: programs that run within it take them over."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

from proxy.process import STOP_SIGNALS


@contextlib.contextmanager
def handlers_put_back() -> Iterator[None]:
    """Put back the handlers at the end: a signal that stays ignored, later tests' programs ignore, too."""
    numbers = [*STOP_SIGNALS] if sys.platform == "win32" else [*STOP_SIGNALS, signal.SIGHUP]
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            with contextlib.suppress(RuntimeError, NotImplementedError):  # no loop, or Windows's
                asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)
