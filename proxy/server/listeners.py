"""Where callers come in: sockets, TLS, and the servers on them.

Hides how an address becomes ours alone, on each platform. Bound first and served later, so that
the ports are known, and a taken one is an error, before anything is answered. Must not know what a
request is answered with.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from proxy.config.settings import WILDCARDS, Settings
from proxy.errors import ConfigError, ListenError
from proxy.origin import bracketed
from proxy.server.capacity import BACKLOG, Door, most_connections
from proxy.server.connection import CallerConnection, CallerServer, Handler
from proxy.server.passed_sockets import PassedSocket

_MAIN_NAMES = ("", "csq-proxy", "unknown")  # systemd says "unknown" where it knows none


@dataclass(frozen=True, slots=True)
class Listener:
    """One way in, the ``index``-th. ``port`` is that of Host (80 for a Unix socket).

    ``url`` is one that a caller on this computer can use, and ``project`` the name of its own project,
    None where the target or a field names one.
    """

    index: int
    url: str
    port: int
    project: str | None


class Listeners:
    """All ways in for one configuration: `bind`, then `serve`."""

    def __init__(self) -> None:
        self.all: list[Listener] = []
        self._sockets: list[socket.socket] = []
        self._doors: list[Door] = []
        self._exposed: list[str] = []
        self._tls: ssl.SSLContext | None = None

    def bind(self, settings: Settings, passed: Sequence[PassedSocket] = ()) -> None:
        """Take the addresses, but for those of which a socket was ``passed`` to us.

        Raises ListenError or ConfigError, and then holds none.
        """
        server = settings.server
        self._exposed = [f"{one.address} {why}" for one in passed if (why := one.exposure())]
        try:
            self._tls = server_tls(server.tls_cert, server.tls_key)
            self.refuse_exposed(settings)
            given = _by_purpose(passed, settings)
            self._take_port("server.port", server.host, server.port, None, given.get(None, ()))
            for name, project in settings.projects.items():
                if project.port or name in given:
                    key = f"projects.{name}.port"
                    self._take_port(key, server.host, project.port, name, given.get(name, ()))
            unix = [(one.sock, one.address) for one in passed if one.is_unix]
            if server.unix_socket is not None and not unix:
                unix = [(_bind_unix(server.unix_socket), str(server.unix_socket))]
            for sock, path in unix:
                self._add(sock, f"unix:{path}", 80, None)
        except BaseException:
            self.close()
            for one in passed:
                one.sock.close()
            raise

    def refuse_exposed(self, settings: Settings) -> None:
        """Raise ConfigError where others can use a socket that was passed to us, and need no key."""
        if self._exposed and not settings.callers:
            raise ConfigError(
                f"LISTEN_FDS: {self._exposed[0]}, or define [callers] with a key for each:"
                " all who reach it have your credentials' power"
            )

    @property
    def servers(self) -> list[tuple[asyncio.Server, CallerServer]]:
        """What accepts connections, and what makes something of them."""
        return [(door.listening, door.server) for door in self._doors]

    async def serve(self, handle: Handler, descriptors: int | None = None) -> None:
        """Begin to accept connections; ``descriptors``: how many the process may open, None: any."""
        limit = most_connections(descriptors, len(self.all))
        for listener, sock in zip(self.all, self._sockets, strict=True):
            door = Door(sock, CallerServer(handle, listener), limit=limit, tls=self._tls)
            await door.open()
            self._doors.append(door)

    def watch(self) -> Iterator[Coroutine[object, object, None]]:
        """What has to run beside, for each listener: it pauses one that is full."""
        return (door.run() for door in self._doors)

    def use_certificate(self, cert: Path | None, key: Path | None) -> None:
        """Show new connections what is in these files now; only where TLS is spoken already.

        Check the files by `server_tls` first: OpenSSL may keep half of what doesn't fit.
        """
        if self._tls is not None and cert is not None:
            self._tls.load_cert_chain(cert, key, password=_no_pass_phrase)

    def connections(self) -> Iterator[CallerConnection]:
        """The callers' connections."""
        for _, server in self.servers:
            for connection in server.connections:
                if isinstance(connection, CallerConnection):
                    yield connection

    def close_idle(self) -> bool:
        """Close callers' connections: now, or after the answer that they wait for. Whether any is left.

        One is, as long as its caller has not taken all of an answer.
        """
        connections = tuple(self.connections())
        for connection in connections:
            connection.is_ending = True
            if connection.is_idle:
                connection.force_close()
        return bool(connections)

    def close(self) -> None:
        """Accept no more; connections stay."""
        for door in self._doors:
            door.close()
        for sock in self._sockets[len(self._doors) :]:  # bound, and not served yet
            sock.close()

    def abort(self) -> None:
        """Accept no more, and end all connections."""
        self.close()
        for connection in self.connections():
            connection.abort()

    def _take_port(
        self, key: str, host: str, port: int, project: str | None, passed: Sequence[PassedSocket]
    ) -> None:
        """Listen on the sockets that were passed for it, else on one of our own."""
        ways = [(one.sock, str(one.sock.getsockname()[0])) for one in passed] or [
            (_bind(host, port, key), host)
        ]
        for sock, name in ways:
            shown = "localhost" if name in WILDCARDS else bracketed(name)
            number = sock.getsockname()[1]
            self._add(sock, f"{'https' if self._tls else 'http'}://{shown}:{number}", number, project)

    def _add(self, sock: socket.socket, url: str, port: int, project: str | None) -> None:
        self._sockets.append(sock)
        self.all.append(Listener(len(self.all), url, port, project))


def _by_purpose(passed: Sequence[PassedSocket], settings: Settings) -> dict[str | None, list[PassedSocket]]:
    """The ports that were passed, by their project's name; None has those of all. Raises ConfigError."""
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


def _bind(host: str, port: int, key: str) -> socket.socket:
    """A listening address of our own: a taken one is an error, never shared. ``key`` is the setting."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRNOTAVAIL or isinstance(exc, socket.gaierror):
            raise ListenError(
                f"server.host: can't listen on {bracketed(host)} ({exc.strerror});"
                " give an address of this computer"
            ) from None
        remedy = f"choose another port{' with --port' if key == 'server.port' else ''}"
        if isinstance(exc, PermissionError) and sys.platform != "win32":  # where it may mean a taken one
            remedy = f"ports below 1024 are often for administrators alone; {remedy}"
        else:
            remedy = f"is another csq-proxy running? Stop it, or {remedy}"
        raise ListenError(
            f"{key}: can't listen on {bracketed(host)}:{port} ({exc.strerror}); {remedy}"
        ) from None
    sock.setblocking(False)
    return sock


def _bind_unix(path: Path) -> socket.socket:
    """A Unix socket that only its owner can use; a leftover of a proxy that is gone is replaced."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("server.unix_socket: this system has no Unix sockets; leave it out")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if isinstance(exc, PermissionError):
            raise ListenError(
                f"server.unix_socket: can't listen on {path} ({exc.strerror}); let this user write to"
                f" {path.parent}, or choose another path"
            ) from None
        raise ListenError(
            f"server.unix_socket: can't listen on {path} ({exc.strerror}); is another csq-proxy running,"
            " or something else in its place? Stop it, or choose another path"
        ) from None
    sock.setblocking(False)
    return sock


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # with a full backlog it would wait, and a busy proxy is one, too
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def server_tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """A listener's TLS context from PEM files, None without them. Raises ConfigError."""
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=_no_pass_phrase)
    except (OSError, ssl.SSLError):
        raise ConfigError("server.tls_cert: the certificate and key can't be read as a PEM pair") from None
    return context


def _no_pass_phrase() -> NoReturn:
    """OpenSSL would ask for it on the terminal, and a reload would wait for an answer."""
    raise ConfigError(
        "server.tls_key: is encrypted, and nobody is asked for a pass phrase; give the key without one:"
        " openssl pkey -in KEY -out NEW_KEY"
    )
