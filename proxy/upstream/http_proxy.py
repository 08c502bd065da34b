"""The HTTP proxy between this machine and a cloud: how it is found, and how it opens a tunnel.

Must not know TLS or the use of the tunnel. Source: RFC 9110, section 9.3.6 (CONNECT).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import urllib.request
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from proxy.errors import ConnectFailed, ProtocolViolation
from proxy.http1 import MAX_HEAD_BYTES, parse_response_head
from proxy.origin import Origin, bracketed


def http_proxy_for(origin: Origin) -> str | None:
    """The HTTP proxy for an origin, as ``http://[user:password@]host[:port]``; None where there is none.

    From HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, or the system's settings; never for this machine
    itself. Raises ConnectFailed where the setting can't be used.
    """
    if origin.is_loopback:
        return None
    proxies = urllib.request.getproxies()
    url = proxies.get(origin.scheme) or proxies.get("all")
    if not url or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return _split(url).geturl()


def _split(url: str) -> SplitResult:
    with contextlib.suppress(ValueError):
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return parts
    raise ConnectFailed(
        "the HTTP proxy must be given as http://host:port; check HTTPS_PROXY",
        proxy_status="proxy_configuration_error",
    )


class HttpProxy(NamedTuple):
    """Where the HTTP proxy listens, and the value of ``Proxy-Authorization``, None where it needs none."""

    host: str
    port: int
    authorization: bytes | None

    @classmethod
    def parse(cls, url: str) -> HttpProxy:
        """The HTTP proxy at ``http://[user:password@]host[:port]``. Raises ConnectFailed."""
        parts = _split(url)
        authorization = None
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = b"Basic " + base64.b64encode(credentials.encode())
        return cls(parts.hostname or "", parts.port or 80, authorization)


async def open_tunnel(sock: socket.socket, proxy: HttpProxy, origin: Origin) -> asyncio.Transport:
    """A tunnel to ``origin``, through the HTTP proxy that ``sock`` is connected to; reading is paused.

    Raises ConnectFailed where the HTTP proxy does not open it.
    """
    request = _ConnectRequest(proxy, origin)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: request, sock=sock)
    try:
        await request.established
    except BaseException:
        transport.abort()
        raise
    return transport


class _ConnectRequest(asyncio.Protocol):
    """Sends CONNECT and waits for the HTTP proxy's answer."""

    def __init__(self, proxy: HttpProxy, origin: Origin) -> None:
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        target = f"{bracketed(origin.host)}:{origin.port}".encode()
        self._head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (target, target)
        if proxy.authorization is not None:
            self._head += b"Proxy-Authorization: %b\r\n" % proxy.authorization
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport
        self._transport.write(self._head + b"\r\n")  # type: ignore[union-attr]

    def data_received(self, data: bytes | bytearray) -> None:
        self._buffer += data  # stays bytes where Windows' event loop hands over a bytearray
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._fail("the HTTP proxy's answer is too long")
            return
        try:
            answer = parse_response_head(head)
        except ProtocolViolation:
            self._fail("the HTTP proxy's answer is not valid HTTP")
            return
        if answer.status == 407:
            self._fail("the HTTP proxy wants a user and password: HTTPS_PROXY=http://user:password@host:port")
        elif not 200 <= answer.status < 300 or rest:
            self._fail(f"the HTTP proxy refused the tunnel with status {answer.status}")
        elif not self.established.done():
            if self._transport is not None:
                self._transport.pause_reading()
            self.established.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._fail("the HTTP proxy closed the connection")

    def _fail(self, reason: str) -> None:
        if not self.established.done():
            self.established.set_exception(ConnectFailed(reason, proxy_status="proxy_internal_response"))
