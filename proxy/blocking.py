"""Blocking work, in a thread of its own for each piece.

The event loop's own threads are not used: they are few, so work that hangs (on a dead network mount, a
command, a name server that doesn't answer) would hold up all later work; and the loop waits for them at
exit.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


_left_behind: dict[Hashable, threading.Thread] = {}


class NoThread(OSError):
    """The system refuses to start another thread."""


def within(limit_s: float, key: Hashable, work: Callable[[], T]) -> T:
    """The result or the exception of ``work``, or TimeoutError if it takes longer than ``limit_s`` seconds.

    The work then goes on in its thread. Until it ends, no work with an equal ``key`` begins: TimeoutError
    at once. So a file that hangs costs one thread. Raises `NoThread`.
    """
    earlier = _left_behind.get(key)
    if earlier is not None and earlier.is_alive():
        raise _too_long(limit_s)
    results: list[T] = []
    errors: list[Exception] = []

    def call_work() -> None:
        try:
            results.append(work())
        except Exception as caught:  # noqa: BLE001 - raised below
            errors.append(caught)

    thread = threading.Thread(target=call_work, name="csq-proxy-within", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThread(errno.EAGAIN, str(error)) from None
    thread.join(limit_s)
    if thread.is_alive():
        _left_behind[key] = thread
        raise _too_long(limit_s)
    _left_behind.pop(key, None)
    if errors:
        raise errors[0]
    return results[0]


def _too_long(limit_s: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer within {limit_s:g} s")


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result or the exception of ``work``, run in a thread of its own; `NoThread` if none starts."""
    import asyncio  # noqa: PLC0415 - not for `csq-proxy health`, which does without

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
