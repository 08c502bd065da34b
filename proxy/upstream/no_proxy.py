"""Which origins are reached without the HTTP proxy: NO_PROXY, or the exceptions of Windows and macOS.

Must not know the HTTP proxy. Source: curl(1), NO_PROXY; in addition a port and ``*.`` are understood, as Go's
and Python's libraries do.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.request

from proxy.origin import Origin


def is_excepted(origin: Origin) -> bool:
    """Whether the settings of this machine want a direct connection to ``origin``.

    If the environment names a proxy or an exception, the system's settings don't count, as everywhere in
    Python. The system is asked with the host alone: its exceptions have no ports.
    """
    environment = urllib.request.getproxies_environment()
    if environment:
        return is_named(environment.get("no", ""), origin)
    return bool(urllib.request.proxy_bypass(origin.host))


def is_named(no_proxy: str, origin: Origin) -> bool:
    """Whether a value of NO_PROXY names ``origin``.

    Its entries, parted by commas or blanks, are ``*``, names (with all below them; ``.`` or ``*.`` in front
    changes nothing), IP addresses and networks (CIDR); each may end in ``:port``.
    """
    entries = re.split(r"[,\s]+", no_proxy.lower())
    return any(_fits(entry, origin) for entry in entries)


def _fits(entry: str, origin: Origin) -> bool:
    if entry == "*":
        return True
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    else:
        return origin.is_ip and ipaddress.ip_address(origin.host) in network
    name, colon, port = entry.rpartition(":")
    if colon:
        return port == str(origin.port) and _fits(name, origin)
    name = entry.removeprefix("*").strip(".")
    return bool(name) and not origin.is_ip and f".{origin.host}".endswith(f".{name}")
