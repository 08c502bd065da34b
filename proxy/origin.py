"""An origin (RFC 6454): scheme, host and port, as one comparable value.

The bearer token belongs to an origin: the origins are compared before the token is attached, and each
pool of upstream connections belongs to one origin.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MOST_OF_LABEL, _MOST_OF_NAME = 63, 253
"""Characters, by RFC 1035, section 2.3.4: no resolver can look up a longer name."""
_REG_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*\Z")


class Origin(NamedTuple):
    """``host`` is lower-case and, for IPv6, without brackets; ``port`` is always a number."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Origin:
        """The origin of a base URL such as ``https://api.contentsquare.com``; a lone final ``/`` is allowed.

        Raises ValueError, with a message for people, on anything else: another scheme, user
        information, a path, a query, a fragment, a port out of range, or a host that is neither a
        registered name nor an IP address.
        """
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError("must start with https:// (or http://)")
        if "@" in parts.netloc:
            raise ValueError("must not hold user information")
        if parts.path not in ("", "/") or "?" in url or "#" in url:
            raise ValueError("must be a base URL without a path, query or fragment")
        host = parts.hostname or ""
        if not (_REG_NAME.match(host) or _is_ip(host)):
            raise ValueError("must name a host")
        if len(host) > _MOST_OF_NAME or max(map(len, host.split("."))) > _MOST_OF_LABEL:
            raise ValueError(
                f"must name a host: at most {_MOST_OF_LABEL} characters between two dots,"
                f" and {_MOST_OF_NAME} in all"
            )
        try:
            port = parts.port
        except ValueError:
            raise ValueError("must have a port between 1 and 65535") from None
        if port == 0 or parts.netloc.endswith(":"):
            raise ValueError("must have a port between 1 and 65535")
        origin = cls(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])
        if url.rstrip("/").lower() not in (str(origin), f"{origin.scheme}://{origin.host_port}"):
            raise ValueError("must be a plain base URL")
        return origin

    @property
    def is_tls(self) -> bool:
        """Whether the scheme is https."""
        return self.scheme == "https"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine by its name or address, without asking DNS."""
        return is_loopback(self.host)

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address."""
        return _is_ip(self.host)

    @property
    def authority(self) -> str:
        """The value for the ``Host`` field: the port only where it isn't the scheme's default."""
        return bracketed(self.host) if self.port == _DEFAULT_PORTS[self.scheme] else self.host_port

    @property
    def host_port(self) -> str:
        """The host with its port, also the scheme's default."""
        return f"{bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def bracketed(host: str) -> str:
    """A host as it stands before a port (RFC 3986, section 3.2.2): an IPv6 address needs brackets there."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address, without asking DNS."""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
