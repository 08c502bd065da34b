"""The way out to Contentsquare, and the files that a configuration needs for it.

Hides which settings need new connections. Must not know projects or requests.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

from proxy.blocking import within
from proxy.config.files import READ_TIMEOUT_S, identity
from proxy.config.settings import ContentsquareSettings, Settings
from proxy.errors import ConfigError
from proxy.gateway.exports.rules import address_fault
from proxy.logs import OnEvent
from proxy.projects import Spawn
from proxy.server.tls import server_tls
from proxy.tokens import SYSTEM_CLOCK, SuspendWatch, TokenEndpoint, make_session
from proxy.tokens.breaker import Breaker
from proxy.upstream.dial import Dialer
from proxy.upstream.dns import NameResolver
from proxy.upstream.http_proxy import http_proxy_for
from proxy.upstream.loop import OwnListeners
from proxy.upstream.pool import Upstreams
from proxy.upstream.tls import tls_context

_connecting = attrgetter(
    "auth_url", "allowed_endpoints", "allowed_downloads", "ca_file", "connect_timeout", "idle_timeout"
)
"""The settings in [contentsquare] whose change needs new connections."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings that can be used, and the contents of their files.

    ``ca_digest`` is the digest of the content of ``contentsquare.ca_file``. ``tls`` is None if the present
    `Outward` is kept.
    """

    settings: Settings
    ca_digest: bytes
    tls: ssl.SSLContext | None


def plan(settings: Settings, before: Outward | None) -> Plan:
    """Check the files that these settings name, and read them. Blocks on files; raises ConfigError.

    ``before`` is the `Outward` in use, None at the start.
    """
    files = (settings.server.tls_cert, settings.server.tls_key, settings.contentsquare.ca_file)
    try:
        return within(READ_TIMEOUT_S, tuple(map(identity, files)), lambda: _plan(settings, before))
    except TimeoutError:
        raise ConfigError(
            f"server.tls_cert, server.tls_key, contentsquare.ca_file: one of them took longer than"
            f" {READ_TIMEOUT_S:g} s to read; is it a named pipe, or on a network drive that hangs?"
        ) from None


def _plan(settings: Settings, before: Outward | None) -> Plan:
    server, vendor = settings.server, settings.contentsquare
    server_tls(server.tls_cert, server.tls_key)
    ca_digest = _digest(vendor.ca_file)
    if before is not None and before.fits(vendor, ca_digest):
        return Plan(settings, ca_digest, None)
    return Plan(settings, ca_digest, tls_context(vendor.ca_file))


def _digest(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise ConfigError(f"contentsquare.ca_file: can't read {path}: {error.strerror}") from None


class Outward:
    """The way to Contentsquare: the client of its token endpoint, and connections to its clouds."""

    def __init__(
        self,
        vendor: ContentsquareSettings,
        ca_digest: bytes,
        tls: ssl.SSLContext,
        spawn: Spawn,
        on_event: OnEvent,
        *,
        own: OwnListeners,
    ) -> None:
        self._vendor = vendor
        self._ca_digest = ca_digest
        resolver = NameResolver(own)
        self._session = make_session(tls, resolver=resolver)
        self.endpoint = TokenEndpoint(
            self._session,
            vendor.auth_url,
            allowed_endpoints=vendor.allowed_endpoints,
            find_proxy=http_proxy_for,
            ca_file=vendor.ca_file,
            breaker=Breaker(vendor.auth_url, on_event),
            resolver=resolver,
        )
        dialer = partial(
            Dialer, tls, connect_timeout_s=vendor.connect_timeout, ca_file=vendor.ca_file, resolver=resolver
        )
        self.upstreams = _upstreams(dialer(), vendor)
        self.downloads = _upstreams(
            dialer(address_fault=partial(address_fault, allowed=vendor.allowed_downloads)), vendor
        )
        """Connections to the storages of exports' files, which get no token."""
        self._tasks = (spawn(self.upstreams.run()), spawn(self.downloads.run()))

    def fits(self, vendor: ContentsquareSettings, ca_digest: bytes) -> bool:
        """Whether these settings need no other connections, so that this object can be kept."""
        return bool(ca_digest == self._ca_digest and _connecting(vendor) == _connecting(self._vendor))

    def trusts_like(self, other: Outward) -> bool:
        """Whether both use the same token endpoint and send tokens to the same hosts."""
        mine, theirs = self._vendor, other._vendor
        return (mine.auth_url, mine.allowed_endpoints) == (theirs.auth_url, theirs.allowed_endpoints)

    async def close(self) -> None:
        """Close the connections. No request may be running."""
        for task in self._tasks:
            task.cancel()
        self.upstreams.close()
        self.downloads.close()
        await self._session.close()


def _upstreams(dialer: Dialer, vendor: ContentsquareSettings) -> Upstreams:
    return Upstreams(
        dialer, idle_timeout_s=vendor.idle_timeout, clock_jump_s=SuspendWatch(SYSTEM_CLOCK).jump_s
    )
