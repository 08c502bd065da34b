"""The listeners: their sockets, their TLS, and the servers on them.

Hides how the process takes an address for itself alone, on each platform. Listeners are bound first and
served later, so that the ports are known, and a taken port is an error, before any request is answered.
Must not know how requests are answered.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiohttp.web_runner import ServerRunner

from proxy.config.settings import LOCALHOST, Settings
from proxy.errors import ConfigError, ListenError
from proxy.logs import OnEvent, get_logger
from proxy.origin import bracketed
from proxy.server.capacity import most_connections, most_strangers
from proxy.server.connection import CallerConnection, Handler
from proxy.server.passed_sockets import PassedSocket
from proxy.server.request import UNIX, Listener, Request
from proxy.server.site import CallerServer, CallerSite, Spawn
from proxy.server.strangers import Strangers
from proxy.server.tls import host_in_urls, load_certificate, server_tls
from proxy.server.unix_socket import BACKLOG, UnixSocket

_MOST_TRIES = 16
"""How many free ports of one address are tried until one is free at the other address, too."""
_MAIN_NAMES = ("", "csq-proxy", "unknown")  # systemd says "unknown" for a socket without a name


class Listeners:
    """All listeners of one configuration: `bind` them, then `serve`."""

    def __init__(self) -> None:
        self.all: list[Listener] = []
        self.sites: list[CallerSite] = []
        self._runners: list[ServerRunner] = []
        self._sockets: list[tuple[socket.socket, ...]] = []
        """The sockets of each listener that is bound and not served yet."""
        self._unix: UnixSocket | None = None
        self._exposed: list[str] = []
        self._tls: ssl.SSLContext | None = None
        self._cert: Path | None = None

    def bind(self, settings: Settings, passed: Sequence[PassedSocket] = ()) -> None:
        """Bind the addresses, except those for which a socket was ``passed``.

        Raises ListenError or ConfigError; then no address is bound.
        """
        server = settings.server
        self._exposed = [f"{one.address} {why}" for one in passed if (why := one.exposure())]
        try:
            self._tls, self._cert = server_tls(server.tls_cert, server.tls_key), server.tls_cert
            self.refuse_exposed(settings)
            given = _by_purpose(passed, settings)
            if server.tcp or None in given:
                self._take_port("server.port", server.host, server.port, None, given.get(None, ()))
            for name, project in settings.projects.items():
                if (server.tcp and project.port) or name in given:
                    key = f"projects.{name}.port"
                    self._take_port(key, server.host, project.port, name, given.get(name, ()))
            unix = [(one.sock, one.address) for one in passed if one.is_unix]
            if server.unix_socket is not None and not unix:
                self._unix = UnixSocket(server.unix_socket)
                unix = [(self._unix.sock, str(server.unix_socket))]
            for sock, path in unix:
                self._add((sock,), f"{UNIX}{path}", 80, None)
            self._refuse_none()
        except BaseException:
            self._close_unserved()
            for one in passed:
                one.sock.close()
            raise

    def refuse_exposed(self, settings: Settings) -> None:
        """Raise ConfigError if other users or machines can use a passed socket, and need no key."""
        if self._exposed and not settings.callers:
            raise ConfigError(
                f"LISTEN_FDS: {self._exposed[0]}, or define [callers] with a key for each:"
                " every program that reaches it has your credentials' power"
            )

    async def serve(self, handler: Handler, descriptors: int | None, spawn: Spawn, on_event: OnEvent) -> None:
        """Begin to accept connections; ``descriptors``: how many the process may open, None: any number.

        ``spawn`` runs the tasks that accept, and ``on_event`` hears of their failures (see `CallerSite`).
        """
        limit = most_connections(descriptors, len(self.all))
        strangers = Strangers(most_strangers(descriptors, is_tls=self._tls is not None))
        for listener in self.all:
            server = CallerServer(handler, listener, strangers, limit, spawn)
            runner = ServerRunner(server)
            self._runners.append(runner)
            await runner.setup()
            sockets = self._sockets.pop(0)
            site = CallerSite(runner, server, *sockets, tls=self._tls, spawn=spawn, on_event=on_event)
            self.sites.append(site)
            await site.start()
            if self._unix is not None and self._unix.sock in sockets:
                spawn(self._unix.watch(site.move_to, on_event))

    def use_certificate(self, cert: Path | None, key: Path | None) -> None:
        """Show new callers the certificate in these files, if the listeners speak TLS. Raises ConfigError."""
        if self._tls is not None and cert is not None:
            load_certificate(self._tls, cert, key)

    def connections(self) -> Iterator[CallerConnection]:
        """The callers' connections."""
        for site in self.sites:
            yield from site.server.connections

    def requests(self) -> Iterator[Request]:
        """The requests that are being answered."""
        for connection in self.connections():
            if connection.current is not None:
                yield connection.current

    def close_idle(self) -> bool:
        """Close the connections: now, or after the answers that their callers wait for; whether any is left.

        A connection is left as long as its caller has not taken all of an answer.
        """
        for site in self.sites:
            site.server.pre_shutdown()
        return any(site.server.open for site in self.sites)

    async def close(self) -> None:
        """Accept no more; connections stay."""
        if self._unix is not None:
            self._unix.remove_file()
        self._close_unserved()
        for runner in self._runners:
            for site in runner.sites:
                await site.stop()

    async def abort(self) -> None:
        """Accept no more, and end all connections."""
        await self.close()
        for runner in self._runners:
            await runner.cleanup()

    def _refuse_none(self) -> None:
        if not self.all:
            raise ConfigError(
                "server.tcp: false, and no service manager passed a socket; set server.unix_socket to a path"
            )

    def _close_unserved(self) -> None:
        for sockets in self._sockets:
            for sock in sockets:
                sock.close()
        self._sockets.clear()

    def _take_port(
        self, key: str, host: str, port: int, project: str | None, passed: Sequence[PassedSocket]
    ) -> None:
        """Listen on the sockets that were passed for this port, else on new ones."""
        for one in passed:
            self._add_port((one.sock,), str(one.sock.getsockname()[0]), project)
        if not passed:
            hosts, fault = _hosts(host)
            if fault:
                get_logger("proxy").debug("no_ipv6_loopback", key=key, error=fault)
            self._add_port(_bind_all(hosts, port, key), hosts[0], project)

    def _add_port(self, sockets: tuple[socket.socket, ...], host: str, project: str | None) -> None:
        """A listener with the URL of its first address."""
        addresses = tuple(sock.getsockname()[:2] for sock in sockets)
        port = addresses[0][1]
        url = f"{'https' if self._tls else 'http'}://{host_in_urls(host, self._cert)}:{port}"
        self._add(sockets, url, port, project, addresses)

    def _add(
        self,
        sockets: tuple[socket.socket, ...],
        url: str,
        port: int,
        project: str | None,
        addresses: tuple[tuple[str, int], ...] = (),
    ) -> None:
        self._sockets.append(sockets)
        self.all.append(Listener(len(self.all), url, port, project, addresses))


def _by_purpose(passed: Sequence[PassedSocket], settings: Settings) -> dict[str | None, list[PassedSocket]]:
    """The passed ports by project; under None, those for all projects. Raises ConfigError."""
    found: dict[str | None, list[PassedSocket]] = {}
    for one in passed:
        if one.is_unix:
            continue
        if one.name in _MAIN_NAMES or one.name.endswith(".socket"):  # systemd's default is the unit's name
            found.setdefault(None, []).append(one)
        elif one.name in settings.projects:
            found.setdefault(one.name, []).append(one)
        else:
            raise ConfigError(
                f'LISTEN_FDNAMES: "{one.name}" is no project; let FileDescriptorName= be csq-proxy'
                f" or one of {', '.join(settings.projects)}"
            )
    return found


def unusable_ports(settings: Settings) -> Iterator[tuple[int, str]]:
    """Each port on which the proxy could not listen now, and why. Leaves no socket open."""
    server = settings.server
    ports = {"server.port": server.port}
    ports |= {f"projects.{name}.port": one.port for name, one in settings.projects.items() if one.port}
    for key, port in ports.items() if server.tcp else ():
        try:
            for sock in _bind_all(_hosts(server.host)[0], port, key):
                sock.close()
        except (ConfigError, ListenError) as error:
            yield port, str(error)


def _hosts(host: str) -> tuple[tuple[str, ...], str | None]:
    """The addresses to listen on; for ``localhost`` both of its own, or the first one and why not ::1.

    Many programs try ::1 first where they are given ``localhost``.
    """
    if host != "localhost":
        return (host,), None
    fault = _ipv6_fault(LOCALHOST[1])
    return (LOCALHOST[:1] if fault else LOCALHOST), fault


def _bind_all(
    hosts: Sequence[str], port: int, key: str, tries: int = _MOST_TRIES
) -> tuple[socket.socket, ...]:
    """New listening sockets, all on the same port; with ``port`` 0 on one that is free at each host.

    Raises ListenError, or ConfigError where a port is free at the first host only.
    """
    first, *others = hosts
    sockets = [_bind(first, port, key)]
    try:
        for host in others:
            sockets.append(_bind(host, sockets[0].getsockname()[1], key))
    except ListenError as error:
        for sock in sockets:
            sock.close()
        if port or tries <= 1:
            raise ConfigError(
                f"{error}. Programs that call localhost would reach that other program. With server.host ="
                f' "{first}" the proxy leaves {others[0]} alone'
            ) from None
        return _bind_all(hosts, port, key, tries - 1)
    return tuple(sockets)


def _ipv6_fault(host: str) -> str | None:
    """Why this machine doesn't have the IPv6 address ``host``; None: it has the address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _bind(host: str, port: int, key: str) -> socket.socket:
    """A new listening socket. A taken address is an error, and never shared. ``key`` is the setting."""
    try:
        return _listen(host, port)
    except OSError as exc:
        if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or isinstance(exc, socket.gaierror):
            raise ListenError(
                f"server.host: can't listen on {bracketed(host)} ({exc.strerror});"
                " give an address of this computer"
            ) from None
        remedy = f"choose another port{' with --port' if key == 'server.port' else ''}"
        if isinstance(exc, PermissionError) and sys.platform == "win32":
            remedy = (
                "it may be another user's program's, or kept by Windows (see netsh interface ipv4 show"
                f" excludedportrange protocol=tcp); {remedy}"
            )
        elif isinstance(exc, PermissionError):
            remedy = f"ports below 1024 are often for administrators alone; {remedy}"
        elif sys.platform == "win32":
            killed = " (after one that was killed, Windows may hold the port for minutes)"
            remedy = f"is another csq-proxy running? Stop it{killed}, or {remedy}"
        else:
            remedy = f"is another csq-proxy running? Stop it, or {remedy}"
        raise ListenError(
            f"{key}: can't listen on {bracketed(host)}:{port} ({exc.strerror}); {remedy}"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":  # IPv4, too, which is not every system's default
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
