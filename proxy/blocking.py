"""Work that blocks, aside from the event loop and waited for by nobody who doesn't want to.

Not the loop's own threads: those are few, so that work that hangs (on a dead network mount, a command,
a name server that doesn't answer) holds up all that comes after it, and they are waited for at exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NoThread(OSError):
    """The system starts no more threads now."""


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """What ``work`` gives or raises, from a thread of its own; `NoThread` where there is none to be had."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # a T, where there is no error

    def run() -> None:
        result = error = None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - it comes out where it is awaited
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, error)

    try:
        threading.Thread(target=run, name="csq-proxy-aside", daemon=True).start()
    except RuntimeError as error:
        outcome.set_exception(NoThread(errno.EAGAIN, str(error)))
    return outcome
