"""Blocking work, in a thread of its own for each piece.

The event loop's own threads are not used: they are few, so work that hangs (on a dead network mount, a
command, a name server that doesn't answer) would hold up all later work; and the loop waits for them at
exit.
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
    """The system refuses to start another thread."""


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result or the exception of ``work``, run in a thread of its own; `NoThread` if none starts."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # a T, where there is no error

    def call_work() -> None:
        result = error = None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - raised where the future is awaited
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, error)

    try:
        threading.Thread(target=call_work, name="csq-proxy-aside", daemon=True).start()
    except RuntimeError as error:
        outcome.set_exception(NoThread(errno.EAGAIN, str(error)))
    return outcome
