"""The HTTP proxy between this machine and a cloud: how it is found, and how it opens a tunnel.

Must not know TLS or the use of the tunnel. Source: RFC 9110, section 9.3.6 (CONNECT).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import urllib.request
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from proxy.errors import ConnectFailed, ProtocolViolation
from proxy.http1 import MAX_HEAD_BYTES, parse_response_head
from proxy.origin import Origin, bracketed
from proxy.upstream.no_proxy import is_excepted

_CHARACTERS = re.compile(r"[\w.:\[\]-]+/?")
"""The characters of a host and port; names of other scripts and ``_`` occur in companies."""
_OFFERS_BASIC = re.compile(r"(?:^|,)\s*basic(?:[\s,]|$)", re.IGNORECASE)
PROXY_FAILED = "proxy_internal_response"
"""RFC 9209's type for all that an HTTP proxy does in place of a tunnel."""


def http_proxy_for(origin: Origin) -> str | None:
    """The HTTP proxy for an origin, as ``http://[user:password@]host[:port]``; None where there is none.

    From HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, or the system's settings; never for this machine
    itself. Raises ConnectFailed where the setting can't be used.
    """
    if origin.is_loopback:
        return None
    proxies = urllib.request.getproxies()
    url = (proxies.get(origin.scheme) or proxies.get("all") or "").strip()
    if not url or is_excepted(origin):
        return None
    HttpProxy.parse(url)
    return url if "://" in url else f"http://{url}"


class HttpProxy(NamedTuple):
    """Where the HTTP proxy listens, and the value of ``Proxy-Authorization``, None where it needs none."""

    host: str
    port: int
    authorization: bytes | None

    @classmethod
    def parse(cls, url: str) -> HttpProxy:
        """The HTTP proxy at ``http://[user:password@]host[:port]``. Raises ConnectFailed.

        User and password are sent in UTF-8 (RFC 7617, section 2.1); ``%`` stands before two digits of a byte.
        They may hold each character but ``%`` as it is: the last ``@`` is before the host.
        """
        scheme, marked, rest = url.partition("://")
        user_info, given, place = (rest if marked else url).rpartition("@")
        with contextlib.suppress(ValueError):
            parts = urlsplit(f"//{place}")
            is_plain = parts.path in ("", "/") and not parts.query and not parts.fragment
            is_http = not marked or scheme.lower() == "http"
            if is_http and is_plain and parts.hostname and parts.port != 0 and _CHARACTERS.fullmatch(place):
                return cls(parts.hostname, parts.port or 80, _basic(user_info) if given else None)
        raise ConnectFailed(
            "the HTTP proxy must be given as http://host:port or http://user:password@host:port;"
            " check HTTPS_PROXY",
            proxy_status="proxy_configuration_error",
        )

    @property
    def url(self) -> str:
        """The URL without user and password."""
        return f"http://{bracketed(self.host)}:{self.port}"

    @property
    def place(self) -> str:
        """The words for the HTTP proxy and where it listens."""
        return f"the HTTP proxy {bracketed(self.host)}:{self.port}"

    def unreachable(self) -> str:
        """The words for a TCP connection that can't be made."""
        return f"{self.place} refused the connection or can't be reached"

    def unresolved(self) -> str:
        """The words for a name that DNS doesn't know."""
        return f"the HTTP proxy's name {self.host} can't be resolved"

    def refusal(self, status: int, challenges: Iterable[str]) -> str:
        """The words for an answer to CONNECT that opens no tunnel, and has these ``Proxy-Authenticate``."""
        if status != 407:
            return f"the HTTP proxy refused the tunnel with status {status}"
        offers = ",".join(challenges)
        if offers and not _OFFERS_BASIC.search(offers):
            return (
                "the HTTP proxy wants a sign-in other than user and password (407), such as NTLM or Kerberos:"
                " let a local program like Px or Cntlm sign in, and name that in HTTPS_PROXY"
            )
        if self.authorization is None:
            return (
                "the HTTP proxy wants a user and password (407): HTTPS_PROXY=http://user:password@host:port"
            )
        return "the HTTP proxy refused the user and password in HTTPS_PROXY (407)"


def _basic(user_info: str) -> bytes:
    user, _, password = user_info.partition(":")
    # surrogateescape: the environment may hold bytes that are no UTF-8, and they are sent as they are.
    user_pass = unquote_to_bytes(f"{user}:{password}".encode("utf-8", "surrogateescape"))
    return b"Basic " + base64.b64encode(user_pass)


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
        self._proxy = proxy
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
        if not 200 <= answer.status < 300 or rest:
            offers = answer.fields.values(b"proxy-authenticate")
            self._fail(self._proxy.refusal(answer.status, (value.decode("latin-1") for value in offers)))
        elif not self.established.done():
            if self._transport is not None:
                self._transport.pause_reading()
            self.established.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._fail("the HTTP proxy closed the connection")

    def _fail(self, reason: str) -> None:
        if not self.established.done():
            self.established.set_exception(ConnectFailed(reason, proxy_status=PROXY_FAILED))
