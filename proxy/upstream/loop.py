"""How the proxy recognises itself: a request that it sent, and a connection that it would make to itself.

An entry in the hosts file, a wrong setting or another proxy may lead Contentsquare's name back to us. Each
request would then become another one, until all slots are taken. Sources: RFC 9110, section 7.6.3 (Via);
RFC 9209, section 2.3 (proxy_loop_detected).
"""

from __future__ import annotations

import ipaddress
import secrets
import sys
from collections.abc import Iterable
from typing import Final

from proxy.errors import LoopDetected
from proxy.origin import bracketed
from proxy.upstream.way import source_for

VIA_NAME: Final = b"csq-proxy-" + secrets.token_hex(8).encode()
"""This process's pseudonym in Via: other csq-proxies on the way have others."""
HOSTS_FILE: Final = r"C:\Windows\System32\drivers\etc\hosts" if sys.platform == "win32" else "/etc/hosts"
ADVICE: Final = (
    f"remove Contentsquare's name from the hosts file ({HOSTS_FILE}), or correct contentsquare.auth_url"
    " or HTTPS_PROXY"
)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_own_via(values: Iterable[bytes]) -> bool:
    """Whether these values of Via name this process."""
    return any(VIA_NAME in value for value in values)


class OwnListeners:
    """The listeners of this proxy, each as an IP address and a port."""

    def __init__(self, addresses: Iterable[tuple[str, int]] = ()) -> None:
        self._by_port: dict[int, set[_Address]] = {}
        for host, port in addresses:
            self._by_port.setdefault(port, set()).add(_ip(host))

    def refuse(self, host: str, port: int, found: Iterable[tuple[int, str]]) -> None:
        """Raise LoopDetected if an address of ``host`` is a listener of ours.

        ``found`` has its addresses: the family, and the IP address as text.
        """
        if port not in self._by_port:
            return
        for family, address in found:
            if self._is_own(family, address, port):
                raise LoopDetected(f"{bracketed(host)}:{port} is this proxy itself ({address}): {ADVICE}")

    def _is_own(self, family: int, address: str, port: int) -> bool:
        wanted, own = _ip(address), self._by_port[port]
        if wanted.is_unspecified:  # as a destination, it is this machine
            wanted = _ip("127.0.0.1" if wanted.version == 4 else "::1")
        if wanted in own:
            return True
        everywhere = {one.version for one in own if one.is_unspecified}
        if wanted.version not in everywhere and 6 not in everywhere:  # of version 6, it takes both
            return False
        return wanted.is_loopback or source_for(family, (address, port)) == address


def _ip(text: str) -> _Address:
    """The address without its zone; an IPv4 address that is mapped into IPv6 is an IPv4 address."""
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found
