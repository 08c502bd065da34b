"""The addresses of a host's name.

Hides that a lookup blocks, for half a minute where no name server answers, and can't be cancelled: each
name's has a thread of its own, so that it holds up neither another name's nor the end of the process, and
who asks for the same name meanwhile shares it. So there are never more threads than names. Must not know
what the addresses are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

from proxy.blocking import in_thread

Addresses = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]]
"""As `socket.getaddrinfo` gives them."""


class Names:
    """Looks names up, as the operating system does."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], asyncio.Future[Addresses]] = {}

    async def addresses(self, host: str, port: int) -> Addresses:
        """Where streams for a host can be opened. Raises OSError, and UnicodeError for what is no name."""
        with contextlib.suppress(socket.gaierror):  # an address is its own, and needs no thread
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        asked = host, port
        lookup = self._running.get(asked)
        if lookup is None:
            lookup = self._running[asked] = in_thread(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
            lookup.add_done_callback(lambda ended: self._on_end(asked, ended))
        return await asyncio.shield(lookup)

    def _on_end(self, asked: tuple[str, int], lookup: asyncio.Future[Addresses]) -> None:
        del self._running[asked]
        lookup.exception()  # whoever asked may have left: then nobody else looks at it
