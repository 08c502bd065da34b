"""How a connection to an origin is opened: DNS, TCP, an HTTP proxy's CONNECT, TLS.

Hides which of these steps there are, and names the step that failed. Must not know HTTP, pools or the
use of the connection. Source: RFC 8305 (happy eyeballs).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohappyeyeballs

from proxy.errors import ConnectFailed
from proxy.machine import hidden_fault
from proxy.origin import Origin
from proxy.upstream.dns import Addresses, NameResolver
from proxy.upstream.http_proxy import PROXY_FAILED, HttpProxy, http_proxy_for, open_tunnel
from proxy.upstream.tls import certificate_fault

_ATTEMPT_DELAY_S = 0.25  # RFC 8305, section 5
_Stream = socket.socket | asyncio.Transport
"""A connected socket, or the transport of an HTTP proxy's tunnel."""


def _anywhere(_origin: Origin, _address: str) -> str | None:
    return None


class Dialer:
    """Opens connections: DNS, TCP (happy eyeballs), CONNECT through an HTTP proxy where one is set, TLS.

    ``address_fault`` says why an origin must not be reached at an IP address, None if it may be. It is asked
    for the very addresses that are connected to, but not where an HTTP proxy looks the name up.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        connect_timeout_s: float,
        ca_file: Path | None = None,
        find_proxy: Callable[[Origin], str | None] = http_proxy_for,
        resolver: NameResolver | None = None,
        address_fault: Callable[[Origin, str], str | None] = _anywhere,
    ) -> None:
        self._context = context
        self._ca_file = ca_file
        self._connect_timeout_s = connect_timeout_s
        self._find_proxy = find_proxy
        self._resolver = resolver or NameResolver()
        self._address_fault = address_fault

    async def dial(self, origin: Origin, protocol: asyncio.BaseProtocol) -> None:
        """Connect ``protocol`` to ``origin``.

        Raises ConnectFailed within ``connect_timeout_s`` seconds; its message names the step that failed.
        """
        deadline = asyncio.get_running_loop().time() + self._connect_timeout_s
        place = origin.authority
        try:
            proxy_url = self._find_proxy(origin)
            if proxy_url is None:
                stream: _Stream = await self._open_direct(origin, deadline)
            else:
                proxy = HttpProxy.parse(proxy_url)
                place = proxy.place
                stream = await self._open_tunnel(origin, proxy, deadline)
                place = origin.authority
            await self._start(origin, protocol, stream, deadline)
        except ConnectFailed as failed:
            if (fault := hidden_fault(failed)) is None:
                raise
            problem = f"no connection to {place}: {fault.words}"
            raise ConnectFailed(problem, proxy_status=fault.proxy_status) from None

    async def _open_direct(self, origin: Origin, deadline: float) -> socket.socket:
        unresolved = f"the name {origin.host} can't be resolved"
        addresses = await self._look_up(origin.host, origin.port, unresolved, deadline)
        for *_, address in addresses:
            if (fault := self._address_fault(origin, str(address[0]))) is not None:
                raise ConnectFailed(fault, proxy_status="destination_ip_prohibited")
        try:
            async with asyncio.timeout_at(deadline):
                return await _connect(addresses)
        except TimeoutError:
            problem = f"no connection to {origin.authority} within {self._connect_timeout_s:g} s"
            raise ConnectFailed(problem, proxy_status="connection_timeout") from None
        except OSError:
            raise ConnectFailed(f"{origin.authority} refused the connection or can't be reached") from None

    async def _open_tunnel(self, origin: Origin, proxy: HttpProxy, deadline: float) -> asyncio.Transport:
        """The transport of a tunnel through the HTTP proxy."""
        addresses = await self._look_up(proxy.host, proxy.port, proxy.unresolved(), deadline)
        try:
            async with asyncio.timeout_at(deadline):
                sock = await _connect(addresses)
        except OSError:  # also TimeoutError
            raise ConnectFailed(proxy.unreachable(), proxy_status=PROXY_FAILED) from None
        try:
            async with asyncio.timeout_at(deadline):
                return await open_tunnel(sock, proxy, origin)
        except TimeoutError:
            problem = f"{proxy.place} opened no tunnel within {self._connect_timeout_s:g} s"
            raise ConnectFailed(problem, proxy_status=PROXY_FAILED) from None
        except OSError:
            raise ConnectFailed(proxy.unreachable(), proxy_status=PROXY_FAILED) from None

    async def _look_up(self, host: str, port: int, unresolved: str, deadline: float) -> Addresses:
        """The addresses of a name; ``unresolved`` are the words for a name without any."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self._resolver.addresses(host, port)
        except TimeoutError:
            problem = f"{unresolved}: DNS gave no answer within {self._connect_timeout_s:g} s"
            raise ConnectFailed(problem, proxy_status="dns_timeout") from None
        except (OSError, UnicodeError):  # UnicodeError: the host is not a possible name
            raise ConnectFailed(unresolved, proxy_status="dns_error") from None

    async def _start(
        self,
        origin: Origin,
        protocol: asyncio.BaseProtocol,
        stream: _Stream,
        deadline: float,
    ) -> None:
        """Hand ``stream`` to ``protocol``, with TLS where the origin wants it."""
        try:
            async with asyncio.timeout_at(deadline):
                if isinstance(stream, socket.socket):
                    await self._start_on_socket(origin, protocol, stream)
                else:
                    await self._start_on_tunnel(origin, protocol, stream)
        except TimeoutError:
            problem = f"no TLS with {origin.authority} within {self._connect_timeout_s:g} s"
            raise ConnectFailed(problem, proxy_status="tls_protocol_error") from None
        except ssl.SSLCertVerificationError as exc:
            raise ConnectFailed(
                f"the certificate of {origin.authority} can't be verified:"
                f" {certificate_fault(exc, self._ca_file)}",
                proxy_status="tls_certificate_error",
            ) from None
        except ssl.SSLError:
            problem = f"TLS with {origin.authority} failed"
            raise ConnectFailed(problem, proxy_status="tls_protocol_error") from None
        except OSError:
            problem = f"TLS with {origin.authority} failed: the connection was closed"
            raise ConnectFailed(problem, proxy_status="tls_protocol_error") from None

    async def _start_on_socket(
        self, origin: Origin, protocol: asyncio.BaseProtocol, sock: socket.socket
    ) -> None:
        await asyncio.get_running_loop().create_connection(
            lambda: protocol,
            sock=sock,
            ssl=self._context if origin.is_tls else None,
            server_hostname=origin.host if origin.is_tls else None,
        )

    async def _start_on_tunnel(
        self, origin: Origin, protocol: asyncio.BaseProtocol, tunnel: asyncio.Transport
    ) -> None:
        if not origin.is_tls:
            tunnel.set_protocol(protocol)
            protocol.connection_made(tunnel)
            tunnel.resume_reading()
            return
        secured = await asyncio.get_running_loop().start_tls(
            tunnel, protocol, self._context, server_hostname=origin.host
        )
        if secured is None:  # the HTTP proxy has closed the tunnel
            raise ConnectFailed(f"TLS with {origin.authority} failed", proxy_status="tls_protocol_error")
        protocol.connection_made(secured)


async def _connect(addresses: Addresses) -> socket.socket:
    return await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=_ATTEMPT_DELAY_S, interleave=1
    )
