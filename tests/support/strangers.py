"""Callers without a key that stop at some place on a request's way, and never go on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

PLACES = ("accept", "handshake", "head", "authentication", "content", "linger", "close")
"""The place where a stranger stops: before its first byte, in its TLS handshake, in a request's head, at the
delay of a wrong key's answer, in the content of a token request, in the content after a refusal, and at the
end of the connection."""
_HOST = b"Host: localhost\r\n"
_CONTENT = b"Content-Length: 60000\r\n\r\n" + b"a" * 12_000
_SENT = {
    "accept": b"",
    "head": b"GET /v1/segments HTTP/1.1\r\n" + _HOST + b"X-A: " + b"a" * 12_000,
    "authentication": b"GET /v1/segments HTTP/1.1\r\n" + _HOST + b"X-API-Key: a-wrong-key\r\n\r\n",
    "content": b"POST /v1/oauth/token HTTP/1.1\r\n"
    + _HOST
    + b"Content-Length: 60000\r\n\r\n"
    + b"a" * 12_000,
    "linger": b"POST /v1/exports HTTP/1.1\r\n" + _HOST + _CONTENT,
    "close": b"GET /v1/segments HTTP/1.1\r\n" + _HOST + b"Connection: close\r\n\r\n",
}
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
Address = tuple[str, int] | Path


class Stranger(asyncio.Protocol):
    """One connection that stops at ``place``. It reads what comes, and neither answers nor closes."""

    def __init__(self, place: str, tls: ssl.SSLContext | None) -> None:
        self._place = place
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if place == "handshake" or (tls is not None and place != "accept"):
            context = tls or _NO_CERTIFICATES
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.is_there = asyncio.get_running_loop().create_future()
        """Done when the stranger is at its place, or the proxy has closed the connection."""
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._tls is None:
            self.transport.write(_SENT.get(self._place, b""))
            self._arrive()
        else:
            self._shake()

    def data_received(self, data: bytes) -> None:
        if self._tls is not None and not self.is_there.done():
            self._incoming.write(data)
            self._shake()

    def eof_received(self) -> bool:
        self.is_lost = True
        self._arrive()
        return True  # the stranger's side stays open

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._arrive()

    def _shake(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
            self._tls.write(_SENT[self._place])
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # the other end speaks no TLS
            self._arrive()
        else:
            self._arrive()
        self.transport.write(self._outgoing.read())
        if self._place == "handshake":
            self._arrive()

    def _arrive(self) -> None:
        if not self.is_there.done():
            self.is_there.set_result(None)


async def stranger(place: str, address: Address, tls: ssl.SSLContext | None = None) -> Stranger | None:
    """A stranger at its place; None where the proxy has refused the connection."""
    loop = asyncio.get_running_loop()
    make: Callable[[], Stranger] = lambda: Stranger(place, tls)  # noqa: E731
    with contextlib.suppress(OSError):
        if isinstance(address, Path):
            _, one = await loop.create_unix_connection(make, str(address))
        else:
            _, one = await loop.create_connection(make, *address)
        return one
    return None


@contextlib.asynccontextmanager
async def strangers(
    place: str, count: int, address: Address, tls: ssl.SSLContext | None = None
) -> AsyncIterator[list[Stranger]]:
    """So many strangers that came at once, without those that were refused."""
    coming = await asyncio.gather(*(stranger(place, address, tls) for _ in range(count)))
    there = [one for one in coming if one is not None]
    try:
        yield there
    finally:
        for one in there:
            one.transport.abort()
        await asyncio.sleep(0.01)
