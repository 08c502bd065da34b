"""A listener's TLS: its context, and callers that speak plain HTTP to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import ssl
import sys
from asyncio.sslproto import SSLProtocol
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NoReturn

from proxy.config.files import read
from proxy.config.settings import LOCALHOST, WILDCARDS
from proxy.config.trust import READABLE
from proxy.errors import ConfigError
from proxy.http1 import date_now
from proxy.origin import bracketed
from proxy.server.linger import LINGER_S

if sys.platform != "win32":
    import fcntl
    import termios

SSLProtocol.max_size = 32 * 1024
"""asyncio's own loop has a buffer of so many bytes for each TLS connection: 256 KiB, if not set here. A TLS
record has 16 KiB at most (RFC 8446, section 5.1)."""
HANDSHAKE_TIMEOUT_S = 10.0
_SO_NWRITE: Final = 0x1024
"""macOS's option for the number of bytes that a socket has not sent; Python has no name for it."""
SHUTDOWN_TIMEOUT_S = 1.0 if sys.platform in ("linux", "darwin") else 30.0
"""How long a caller may take to answer the end of TLS; then the event loop drops the rest of an answer. Where
`unacknowledged` works, TLS ends only after the caller has taken the whole answer, so a second is enough."""
_PIECE_BYTES: Final = 64 * 1024
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END", re.DOTALL)
_HINT = b"This port speaks HTTPS: let the URL begin with https://\n"
_USE_HTTPS = (
    b"HTTP/1.1 400 Bad Request\r\nDate: %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b"
)


def server_tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """A listener's TLS context from PEM files, None without them. Raises ConfigError."""
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, cert, key)
    return context


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """Show new callers the certificate in these files. Raises ConfigError.

    Check the files with `server_tls` first: OpenSSL may keep half of a pair that doesn't fit.
    """
    try:
        context.load_cert_chain(cert, key, password=_no_pass_phrase)
    except ssl.SSLError:
        raise ConfigError("server.tls_cert: the certificate and key can't be read as a PEM pair") from None
    except OSError as error:
        raise ConfigError(f"server.tls_cert: can't read the certificate or key: {error.strerror}") from None


def host_in_urls(host: str, cert: Path | None) -> str:
    """The address ``host`` in a URL: ``localhost`` for any address, and for its own where ``cert`` says so.

    ``cert`` says so if it names localhost, and not the address. The names in the file's first certificate are
    looked for as RFC 5280, section 4.2.1.6 encodes them: a tag, the length, the name.
    """
    if host in WILDCARDS:
        return "localhost"
    if cert is not None and host in LOCALHOST:  # 127.0.0.2 is loopback, too, but isn't reached by the name
        with contextlib.suppress(OSError, ValueError):  # the start, or a reload, tells the fault
            address = ip_address(host).packed
            pem = _CERTIFICATE.search(read(cert, advice=READABLE).data)
            names = base64.b64decode(pem[1]) if pem else b""
            if b"\x82\x09localhost" in names and bytes((0x87, len(address))) + address not in names:
                return "localhost"
    return bracketed(host)


def _no_pass_phrase() -> NoReturn:
    """OpenSSL would ask for a pass phrase on the terminal, and a reload would wait for an answer."""
    raise ConfigError(
        "server.tls_key: is encrypted, and the proxy never asks for a pass phrase; give the key without one:"
        " openssl pkey -in KEY -out NEW_KEY"
    )


def unacknowledged(sock: socket.socket) -> int:
    """How many bytes the caller's system has not acknowledged; 0 where this system doesn't tell (Windows)."""
    with contextlib.suppress(OSError, ValueError):  # the socket is closed; fcntl says that by ValueError
        if sys.platform == "linux":
            count = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))  # tcp(7), SIOCOUTQ
            return int.from_bytes(count, sys.byteorder)
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    return 0


async def speaks_plain_http(sock: socket.socket) -> bool:
    """Whether the caller's first byte is a letter, as in ``GET``; then a hint has been sent to the caller.

    Always False on an event loop that can't wait for a socket without reading from it (Windows).
    """
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    try:
        loop.add_reader(sock, _set, readable)
    except NotImplementedError:
        return False
    try:
        await readable
    finally:
        loop.remove_reader(sock)
    if not sock.recv(1, socket.MSG_PEEK).isalpha():
        return False
    with contextlib.suppress(OSError, TimeoutError):  # the caller has left, or sends on and on
        sock.recv(_PIECE_BYTES)
        sock.send(_USE_HTTPS % (date_now(), len(_HINT), _HINT))
        sock.shutdown(socket.SHUT_WR)
        # Unread bytes would turn the close into a reset, and the reset could overtake the hint.
        async with asyncio.timeout(LINGER_S):
            while await loop.sock_recv(sock, _PIECE_BYTES):
                pass
    return True


def _set(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
