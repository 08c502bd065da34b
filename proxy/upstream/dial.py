"""How a connection to an origin is opened: DNS, TCP, an HTTP proxy's CONNECT, TLS.

Hides which of these steps there are, and names the one that failed. Must not know HTTP beyond
CONNECT, pools or what the connection is for.

Sources: RFC 8305 (happy eyeballs), RFC 9110 (section 9.3.6, CONNECT).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import aiohappyeyeballs

from proxy.errors import ConfigError, ConnectFailed, ProtocolViolation
from proxy.http1.heads import MAX_HEAD_BYTES, parse_response_head
from proxy.origin import Origin, bracketed
from proxy.upstream.dns import Names

_ATTEMPT_DELAY_S = 0.25  # RFC 8305, section 5


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """A verifying client context: the system's store (SSL_CERT_FILE honoured), and ``ca_file`` beside it.

    Raises ConfigError when ``ca_file`` holds no certificate.
    """
    context: ssl.SSLContext
    if sys.platform in ("win32", "darwin"):
        import truststore  # noqa: PLC0415 - the operating system's own verification, only where OpenSSL lacks it

        context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except (OSError, ssl.SSLError):
            raise ConfigError(
                f"contentsquare.ca_file: {ca_file} can't be read as PEM certificates;"
                " export your company's CA as PEM"
            ) from None
    return context


def http_proxy_for(origin: Origin) -> str | None:
    """The HTTP proxy for an origin, as ``http://[user:password@]host[:port]``; None for a direct way.

    From HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, or the system's settings; never for this machine
    itself. Raises ConnectFailed on one that can't be used.
    """
    if origin.is_loopback:
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(origin.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return _parse_proxy(proxy).geturl()


def _parse_proxy(proxy: str) -> SplitResult:
    with contextlib.suppress(ValueError):
        parts = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return parts
    raise ConnectFailed(
        "the HTTP proxy must be given as http://host:port; check HTTPS_PROXY",
        proxy_status="proxy_configuration_error",
    )


@dataclass(slots=True)
class _Way:
    """How far one dial has come: what fails once the way is open is TLS."""

    is_open: bool = False


class Dialer:
    """Opens connections: DNS, TCP (happy eyeballs), CONNECT through an HTTP proxy where one is set, TLS."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        connect_timeout_s: float,
        find_proxy: Callable[[Origin], str | None] = http_proxy_for,
    ) -> None:
        self._context = context
        self._connect_timeout_s = connect_timeout_s
        self._find_proxy = find_proxy
        self._names = Names()

    async def dial(self, origin: Origin, connection: asyncio.Protocol) -> None:
        """Connect ``connection`` to ``origin``.

        Raises ConnectFailed within ``connect_timeout_s`` seconds; its message names the step that failed.
        """
        way = _Way()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._dial(origin, connection, way)
        except TimeoutError:
            raise ConnectFailed(
                f"no {'TLS with' if way.is_open else 'connection to'} {origin.authority}"
                f" within {self._connect_timeout_s:g} s",
                proxy_status="tls_protocol_error" if way.is_open else "connection_timeout",
            ) from None
        except ssl.SSLCertVerificationError as exc:
            raise ConnectFailed(
                f"the certificate of {origin.authority} can't be verified ({exc.verify_message});"
                " behind a company's TLS inspection set contentsquare.ca_file",
                proxy_status="tls_certificate_error",
            ) from None
        except ssl.SSLError:
            raise ConnectFailed(
                f"TLS with {origin.authority} failed", proxy_status="tls_protocol_error"
            ) from None
        except (socket.gaierror, UnicodeError):  # UnicodeError: not even a name
            raise ConnectFailed(
                f"the name {origin.host} can't be resolved", proxy_status="dns_error"
            ) from None
        except OSError:
            if way.is_open:
                raise ConnectFailed(
                    f"TLS with {origin.authority} failed: the connection was closed",
                    proxy_status="tls_protocol_error",
                ) from None
            raise ConnectFailed(f"{origin.authority} refused the connection or can't be reached") from None

    async def _dial(self, origin: Origin, connection: asyncio.Protocol, way: _Way) -> None:
        loop = asyncio.get_running_loop()
        context = self._context if origin.is_tls else None
        server_name = origin.host if origin.is_tls else None
        proxy = self._find_proxy(origin)
        if proxy is None:
            sock = await self._open_socket(origin.host, origin.port)
            way.is_open = True
            await loop.create_connection(
                lambda: connection, sock=sock, ssl=context, server_hostname=server_name
            )
            return
        transport = await self._tunnel(origin, proxy)
        way.is_open = True
        if context is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            transport.resume_reading()
            return
        secured = await loop.start_tls(transport, connection, context, server_hostname=server_name)
        if secured is None:
            raise ConnectFailed(f"TLS with {origin.authority} failed", proxy_status="tls_protocol_error")
        connection.connection_made(secured)

    async def _tunnel(self, origin: Origin, proxy: str) -> asyncio.Transport:
        """A connection through the HTTP proxy's CONNECT (RFC 9110, section 9.3.6)."""
        parts = _parse_proxy(proxy)
        host, port = parts.hostname or "", parts.port or 80
        try:
            sock = await self._open_socket(host, port)
        except (socket.gaierror, UnicodeError):
            raise ConnectFailed(
                f"the HTTP proxy's name {host} can't be resolved", proxy_status="dns_error"
            ) from None
        except OSError:
            raise ConnectFailed(
                f"the HTTP proxy {host}:{port} refused the connection or can't be reached"
            ) from None
        asked = _Connect(origin, parts.username, parts.password)
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: asked, sock=sock)
        try:
            await asked.established
        except BaseException:
            transport.abort()
            raise
        return transport

    async def _open_socket(self, host: str, port: int) -> socket.socket:
        return await aiohappyeyeballs.start_connection(
            await self._names.addresses(host, port), happy_eyeballs_delay=_ATTEMPT_DELAY_S, interleave=1
        )


class _Connect(asyncio.Protocol):
    """Asks an HTTP proxy for a tunnel and waits for its answer."""

    def __init__(self, origin: Origin, username: str | None, password: str | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.established: asyncio.Future[None] = self._loop.create_future()
        target = f"{bracketed(origin.host)}:{origin.port}".encode()
        head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (target, target)
        if username is not None:
            pair = f"{unquote(username)}:{unquote(password or '')}".encode()
            head += b"Proxy-Authorization: Basic %b\r\n" % base64.b64encode(pair)
        self._head = head + b"\r\n"
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport
        self._transport.write(self._head)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        self._buffer += data  # bytes also where Windows' event loop gives a bytearray
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._refuse("the HTTP proxy's answer is too long")
            return
        try:
            answer = parse_response_head(head)
        except ProtocolViolation:
            self._refuse("the HTTP proxy's answer is not valid HTTP")
            return
        if answer.status == 407:
            self._refuse(
                "the HTTP proxy wants a user and password: HTTPS_PROXY=http://user:password@host:port"
            )
        elif not 200 <= answer.status < 300 or rest:
            self._refuse(f"the HTTP proxy refused the tunnel with status {answer.status}")
        elif not self.established.done():
            if self._transport is not None:
                self._transport.pause_reading()
            self.established.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - the seam's signature
        self._refuse("the HTTP proxy closed the connection")

    def _refuse(self, why: str) -> None:
        if not self.established.done():
            self.established.set_exception(ConnectFailed(why, proxy_status="proxy_internal_response"))
