"""Where an export's files may be fetched from: the rules of ``contentsquare.allowed_downloads``. Pure.

The URLs come from outside, so they must not lead the proxy to a service of this machine or of the network
around it (server-side request forgery).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from proxy.errors import UpstreamUnreachable
from proxy.origin import Origin
from proxy.tokens.answer import endpoint_fault, host_and_port

SETTING: Final = "contentsquare.allowed_downloads"
_URL: Final = re.compile(r"(https?://[^/?#@\\]+)(/[\x21\x22\x24-\x7e]*)\Z", re.IGNORECASE)
_NO_URL: Final = "Contentsquare's answer names a file without a plain https URL"
_LONGEST_URL: Final = 16_384
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address."""
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def place_of(url: object, allowed: Sequence[str]) -> tuple[Origin, bytes]:
    """The origin and the request target of a file's URL. Raises UpstreamUnreachable for one not allowed.

    No message holds the URL: it is signed, and so it opens the file to each reader.
    """
    match = _URL.match(url) if isinstance(url, str) and len(url) <= _LONGEST_URL else None
    if match is None:
        raise _refused(_NO_URL)
    try:
        origin = Origin.parse(match[1].lower())
    except ValueError:
        raise _refused(_NO_URL) from None
    if origin.is_tls:
        fault = endpoint_fault(origin, allowed, SETTING)
    else:  # such a host is listed with its port
        with_port = [pattern for pattern in allowed if host_and_port(pattern)[1] is not None]
        fault = endpoint_fault(origin, with_port, SETTING)
    if fault is not None:
        raise _refused(f"The export's files are on {origin}, which is refused: {fault}")
    return origin, match[2].encode()


def address_fault(origin: Origin, address: str, allowed: Sequence[str]) -> str | None:
    """Why a file must not be fetched from this IP address of a host; None if it may be."""
    if is_public(address) or any(host_and_port(pattern)[0] == origin.host for pattern in allowed):
        return None
    return (
        f"{origin.host} has the address {address}, which is not on the Internet; if that is right, name the"
        f" host in full in {SETTING}"
    )


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host on the Internet."""
    found: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        found = _embedded(found) or found
    return found.is_global and not found.is_multicast


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this address may end at (RFC 4291, 3056, 4380 and 6052)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (None if teredo is None else teredo[1])


def _refused(what: str) -> UpstreamUnreachable:
    return UpstreamUnreachable(f"{what}.", proxy_status="proxy_configuration_error")
