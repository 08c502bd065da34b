"""The first checks of a request, which are cheap: its method, its Host, and the web page that sent it.

A program that reaches the port has the credentials' power, so web pages must not reach it. An exact list
of Host values stops DNS rebinding, and a browser marks the requests of a page of another site by Origin or
Sec-Fetch-Site. Knows nothing of projects or upstreams.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from proxy.errors import BadTarget, HostRefused, MethodRefused, OriginRefused
from proxy.http1 import RequestHead

_AUTHORITY_END: Final = re.compile(rb"[/?]")
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
_OF_PAGES: Final = frozenset((b"origin", b"sec-fetch-site"))
"""Fields by which a browser says which page makes a request."""
_DEFAULT_PORTS: Final = (80, 443)
"""With these ports, a Host may have no port (RFC 9110, section 4.2)."""


class Guard:
    """The checks of one listener. ``allowed_hosts`` are Host values accepted beside the loopback names."""

    def __init__(self, port: int, allowed_hosts: Iterable[str] = ()) -> None:
        names = {f"{name}:{port}" for name in LOOPBACK_NAMES}
        if port in _DEFAULT_PORTS:
            names.update(LOOPBACK_NAMES)
        self._hosts = frozenset(name.lower().encode() for name in (*names, *allowed_hosts))

    def check(self, head: RequestHead) -> bytes:
        """The origin-form of the target, or ``*`` where the request is for this proxy itself.

        Raises MethodRefused, HostRefused, OriginRefused or BadTarget.
        """
        if head.method in (b"TRACE", b"CONNECT"):
            raise MethodRefused(
                f"{head.method.decode()} is not forwarded.",
                fields=((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),),
            )
        for host in head.hosts:
            if host not in self._hosts and host.lower() not in self._hosts:
                raise self._host_refused()
        if head.fields.has_any(_OF_PAGES):
            self._check_site(head)
        if head.method == b"OPTIONS" and _is_last_hop(head):
            return b"*"
        if head.target.startswith(b"/"):
            return head.target
        return self._origin_form(head)

    def _check_site(self, head: RequestHead) -> None:
        for field in head.fields.among(_OF_PAGES):
            if field.name == b"sec-fetch-site" and field.value not in (b"none", b"same-origin"):
                raise OriginRefused("Web pages of other sites can't call this proxy; call it from a program.")
            if field.name == b"origin" and not self._is_own_origin(field.value, head):
                raise OriginRefused("Web pages of other sites can't call this proxy; call it from a program.")

    @staticmethod
    def _is_own_origin(origin: bytes, head: RequestHead) -> bool:
        scheme, mark, authority = origin.lower().partition(b"://")
        return bool(mark) and scheme in (b"http", b"https") and [authority] == [h.lower() for h in head.hosts]

    def _origin_form(self, head: RequestHead) -> bytes:
        """The origin-form of an absolute-form that names this listener (RFC 9112, section 3.2.2)."""
        if head.method == b"OPTIONS" and head.target == b"*":
            return b"*"
        scheme, mark, rest = head.target.partition(b"://")
        if not mark or scheme.lower() not in (b"http", b"https"):
            raise BadTarget("The request target must be a path, such as /shop-fr/v1/exports.")
        authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
        if authority.lower() not in self._hosts:
            raise BadTarget(
                "The request target names another host; this proxy forwards to Contentsquare only."
            )
        target = rest[len(authority) :]
        if not target and head.method == b"OPTIONS":  # RFC 9112, section 3.2.4
            return b"*"
        return target if target.startswith(b"/") else b"/" + target

    @staticmethod
    def _host_refused() -> HostRefused:
        return HostRefused(
            "This Host is not accepted: call the proxy by 127.0.0.1 or localhost with its port,"
            " or add the name that you use to server.allowed_hosts."
        )


def _is_last_hop(head: RequestHead) -> bool:
    """Whether ``Max-Forwards`` is 0: then the request is for this proxy (RFC 9110, section 7.6.2)."""
    return any(hops.isdigit() and not hops.strip(b"0") for hops in head.fields.values(b"max-forwards"))
