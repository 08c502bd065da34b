"""The addresses of a host's name.

Hides that a lookup blocks, for half a minute where no name server answers, and can't be cancelled. Each
name is looked up in a thread of its own, so that a slow lookup delays neither another name's nor the end of
the process; callers that want the same name meanwhile share the lookup. So there are never more threads
than names. Must not know the use of the addresses.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from proxy.blocking import in_thread
from proxy.upstream.loop import OwnListeners

Addresses = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]]
"""As `socket.getaddrinfo` gives them."""


class NameResolver:
    """Looks names up, as the operating system does. An address of ``own`` listeners is an error."""

    def __init__(self, own: OwnListeners | None = None) -> None:
        self._own = own or OwnListeners()
        self._lookups: dict[tuple[str, int], asyncio.Future[Addresses]] = {}

    async def addresses(self, host: str, port: int) -> Addresses:
        """The addresses for streams to a host.

        Raises LoopDetected, OSError, or UnicodeError for an impossible name.
        """
        found = _of_ip(host, port) or await self._look_up(host, port)
        self._refuse_own(host, port, found)
        return found

    def refuse_own(self, host: str, port: int) -> None:
        """Raise LoopDetected for an IP address of ours, where a library would ask no resolver for it."""
        self._refuse_own(host, port, _of_ip(host, port))

    def _refuse_own(self, host: str, port: int, found: Addresses) -> None:
        self._own.refuse(host, port, ((family, str(address[0])) for family, _, _, _, address in found))

    async def _look_up(self, host: str, port: int) -> Addresses:
        key = host, port
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = in_thread(
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
            lookup.add_done_callback(lambda ended: self._on_end(key, ended))
        # Not asyncio.shield: from Python 3.14 on, it logs a failure that comes when nobody waits any more.
        await asyncio.wait((lookup,))
        return lookup.result()

    def _on_end(self, key: tuple[str, int], lookup: asyncio.Future[Addresses]) -> None:
        del self._lookups[key]
        lookup.exception()  # marks it as seen: the tasks that waited for it may have been cancelled


def _of_ip(host: str, port: int) -> Addresses:
    """The address that ``host`` is already; none for a name. That needs no lookup, and so no thread."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return ()
