"""The first checks of a request, which are cheap: its method, its Host, and the web page that sent it.

A program that reaches the port has the credentials' power, so web pages must not reach it. An exact list
of Host values stops DNS rebinding, and a browser marks the requests of a page of another site by Origin,
Sec-Fetch-Site or Referer. A GET to a name over plain http has only Referer, which the page can suppress: such
a name needs callers (`proxy.config.checks`). Knows nothing of projects or upstreams.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from proxy.admin.admin import PAGE, PAGE_FILES
from proxy.errors import BadRequest, BadTarget, HostRefused, MethodRefused, OriginRefused, ProxyLoop
from proxy.http1 import RequestHead
from proxy.upstream.loop import ADVICE, is_own_via

_ABSOLUTE_FORM: Final = re.compile(rb"https?://([^/?]*)(.*)\Z", re.IGNORECASE | re.DOTALL)
_AUTHORITY: Final = re.compile(
    rb"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|v[0-9A-Fa-f]+\.[-.~\w!$&'()*+,;=:]+)\]"
    rb"|(?:[-.~\w!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?\Z"
)
"""uri-host [":" port] (RFC 3986, sections 3.2.2 and 3.2.3); no empty host (RFC 9110, section 4.2.1)."""
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "[::1]")
_OF_PAGES: Final = frozenset((b"origin", b"sec-fetch-site", b"referer"))
"""Fields by which a browser says which page makes a request."""
_LOOKED_AT: Final = _OF_PAGES | {b"via"}
_ORDINARY: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"))
"""Methods with which a path depends on the fields alone here."""
_REFUSED: Final = frozenset((b"TRACE", b"TRACK", b"CONNECT"))
"""In any case, as lenient servers read them. The first two let a server repeat the token (IIS has TRACK)."""
_REFERER: Final = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
_DEFAULT_PORTS: Final = (80, 443)
"""With these ports, a Host may have no port (RFC 9110, section 4.2)."""


class Guard:
    """The checks of one listener. ``allowed_hosts`` are Host values accepted beside the loopback names."""

    def __init__(self, port: int, allowed_hosts: Iterable[str] = ()) -> None:
        names = {*(f"{name}:{port}" for name in LOOPBACK_NAMES), *allowed_hosts}
        if port in _DEFAULT_PORTS:
            names.update(LOOPBACK_NAMES)
        self._authorities = frozenset(name.lower().encode() for name in names)
        self._hosts = self._authorities | {name.encode() for name in LOOPBACK_NAMES}

    def check(self, head: RequestHead) -> bytes:
        """The origin-form of the target, or ``*`` where the request is for this proxy itself.

        Raises MethodRefused, ProxyLoop, BadRequest, HostRefused, OriginRefused or BadTarget.
        """
        section = head.section
        if section.guard is self and head.method in _ORDINARY and head.target[:1] == b"/":
            return head.target
        if head.method.upper() in _REFUSED:
            raise MethodRefused(
                f"{head.method.decode()} is not forwarded.",
                fields=((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),),
            )
        looked_at = head.fields.has_any(_LOOKED_AT)
        if looked_at:
            _check_loop(head)  # first, since it is the cause: a name that leads here is a foreign Host
        if not looked_at and self._hosts.issuperset(head.hosts):
            section.guard = self
        else:
            for host in head.hosts:
                self._check_host(host, head.target)
        target = head.target if head.target.startswith(b"/") else self._origin_form(head)
        if looked_at:
            self._check_site(head, target.partition(b"?")[0] if head.method == b"GET" else b"")
        return b"*" if head.method == b"OPTIONS" and _is_last_hop(head) else target

    def _check_site(self, head: RequestHead, page: bytes) -> None:
        """Raise OriginRefused for a page of another site; ``page`` is the path of a GET, else empty.

        A link of such a page may open our page: nothing that is there can be framed or read by another page.
        """
        for field in head.fields.among(_OF_PAGES):
            if field.name == b"sec-fetch-site":
                own = field.value in (b"none", b"same-origin") or (page == PAGE and _is_opened(head))
            elif field.name == b"origin":
                own = self._is_own_origin(field.value, head)
            else:
                own = page in PAGE_FILES or _is_own_referer(field.value, head)
            if not own:
                raise OriginRefused("Web pages of other sites can't call this proxy; call it from a program.")

    @staticmethod
    def _is_own_origin(origin: bytes, head: RequestHead) -> bool:
        scheme, mark, authority = origin.lower().partition(b"://")
        own = authority_of(head)
        return bool(mark) and scheme in (b"http", b"https") and own is not None and authority == own.lower()

    def _origin_form(self, head: RequestHead) -> bytes:
        """The origin-form of an absolute-form that names this listener (RFC 9112, section 3.2.2)."""
        if head.method == b"OPTIONS" and head.target == b"*":
            return b"*"
        absolute = _ABSOLUTE_FORM.match(head.target)
        if absolute is None:
            raise BadTarget("The request target must be a path, such as /shop-fr/v1/exports.")
        authority, target = absolute.groups()
        if authority.lower() not in self._authorities:
            raise BadTarget(
                "The request target names another host; this proxy forwards to Contentsquare only."
            )
        if not target and head.method == b"OPTIONS":  # RFC 9112, section 3.2.4
            return b"*"
        return target if target.startswith(b"/") else b"/" + target

    def _check_host(self, host: bytes, target: bytes) -> None:
        """Raise BadRequest for a Host that is no authority, and HostRefused for one that isn't accepted.

        With a target in absolute-form, only the target's authority counts (RFC 9112, section 3.2.2).
        """
        if host.lower() in self._hosts:
            return
        if not _is_authority(host):
            raise BadRequest("The Host field is not a valid host with an optional port.")
        if not _ABSOLUTE_FORM.match(target):
            raise HostRefused(
                "This Host is not accepted: call the proxy by 127.0.0.1 or localhost with its port,"
                " or add the name that you use to server.allowed_hosts."
            )


def authority_of(head: RequestHead) -> bytes | None:
    """The authority that a request is for; None without one, which HTTP/1.0 allows.

    In absolute-form it is the target's, and Host doesn't count (RFC 9112, section 3.2.2).
    """
    if not head.target.startswith(b"/") and (absolute := _ABSOLUTE_FORM.match(head.target)):
        return absolute[1]
    return head.hosts[0] if head.hosts else None


def _is_opened(head: RequestHead) -> bool:
    """Whether a browser opens the target in a tab or window of its own (W3C, Fetch Metadata)."""
    mode, kind = head.fields.only(b"sec-fetch-mode"), head.fields.only(b"sec-fetch-dest")
    return mode == b"navigate" and kind == b"document"


def _is_own_referer(value: bytes, head: RequestHead) -> bool:
    """Whether no page of another site sent the request (RFC 9110, section 10.1.3).

    A program may send ``about:blank`` or a partial URI, and no page can.
    """
    if value in (b"", b"about:blank") or (value.startswith(b"/") and not value.startswith(b"//")):
        return True
    absolute, own = _REFERER.match(value), authority_of(head)
    return absolute is not None and own is not None and absolute[1].lower() == own.lower()


def _is_authority(host: bytes) -> bool:
    found = _AUTHORITY.match(host)
    if found is None or found["ipv6"] is None:
        return found is not None
    try:
        ipaddress.IPv6Address(found["ipv6"].decode())
    except ValueError:
        return False
    return True


def _check_loop(head: RequestHead) -> None:
    if is_own_via(head.fields.values(b"via")):
        raise ProxyLoop(f"The proxy called itself: {ADVICE}.")


def _is_last_hop(head: RequestHead) -> bool:
    """Whether ``Max-Forwards`` is 0: then the request is for this proxy (RFC 9110, section 7.6.2)."""
    return any(hops.isdigit() and not hops.strip(b"0") for hops in head.fields.values(b"max-forwards"))
