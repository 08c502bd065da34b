"""The end of a connection whose answer went out before the request's content was complete.

If such a connection were closed at once, the kernel would answer the rest of the content with a reset, and
the reset could overtake the answer. So the answer's end is shown by a FIN, and the content is read and
dropped for a while (RFC 9112, section 9.6). Must not know what the content is for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from proxy.errors import ProxyError
from proxy.http1 import Field
from proxy.server.body import RequestBody

LINGER_S = 5.0
"""How long the rest of the content is read and dropped."""


class Linger:
    """Drops the rest of one request's content, then calls ``end``."""

    __slots__ = ("_end", "_timer")

    def __init__(
        self,
        body: RequestBody,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        end: Callable[[], None],
    ) -> None:
        self._end = end
        self._timer = loop.call_later(LINGER_S, end)
        if transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):  # the caller has reset the connection already
                transport.write_eof()
        body.release()
        body.attach(self)

    def stop(self) -> None:
        """Forget the time limit: the connection has ended."""
        self._timer.cancel()

    def on_request_body(self, data: bytes) -> None:
        """Drop the bytes."""

    def on_request_end(self, trailers: list[Field]) -> None:  # noqa: ARG002 - a sink's interface
        """The answer can no longer be lost to a reset."""
        self._end()

    def on_request_broken(self, error: ProxyError) -> None:
        """Go on: the caller may still be sending."""
