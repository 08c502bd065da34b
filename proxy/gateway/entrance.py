"""The waits before an answer: for the connection's place, and for one of the caller's own few places."""

from __future__ import annotations

import asyncio

from proxy.errors import QueueTimeout
from proxy.gateway.callers import Caller
from proxy.gateway.generation import Generation
from proxy.server.request import Request

ROOM_S = 5.0
"""How long a request waits for one of its caller's own places."""


async def enter(request: Request, generation: Generation, caller: Caller | None) -> None:
    """Wait for a known caller's place, for the connection of a caller that was a stranger until now.

    Where no callers are defined, a caller is known once a whole request of it was found good.
    Raises QueueTimeout.
    """
    connection = request.connection
    if connection.admit(whole=caller is None):
        return
    try:
        async with asyncio.timeout(generation.queue_timeout_s):
            while not connection.admit(whole=caller is None):
                await connection.room()
    except TimeoutError:
        raise QueueTimeout(
            "The proxy has as many callers' connections as it can hold, and all of them are in use;"
            " send fewer requests at a time.",
            retry_after_s=2,
        ) from None


async def take_place(room: asyncio.Semaphore, busy: str) -> None:
    """Wait for a place, which the request holds until it releases the room. Raises QueueTimeout(``busy``)."""
    try:
        async with asyncio.timeout(ROOM_S):
            await room.acquire()
    except TimeoutError:
        raise QueueTimeout(busy, retry_after_s=5) from None
