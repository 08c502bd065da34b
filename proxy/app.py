"""The composition root: settings in, a running proxy out.

Wires the modules, opens the listeners, runs the background tasks in one TaskGroup (a task that
dies of a bug ends the process), and drains. The one place that knows everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from proxy import admin
from proxy.admin import Admin
from proxy.answer import write_answer, write_error
from proxy.callers import Caller, Callers
from proxy.contentsquare import changes_data
from proxy.errors import ConfigError, Forbidden, ListenError, ProxyError, Stopping
from proxy.forward import Forwarder
from proxy.guard import Guard
from proxy.log import get_logger, redactor
from proxy.oauth import Credentials, TokenEndpoint, make_session
from proxy.project import Grant, Project
from proxy.route import API_FIELD, PROJECT_FIELD, Route, Router
from proxy.server import CallerConnection, CallerServer, Request
from proxy.settings import Access, Settings
from proxy.slots import Slots
from proxy.upstream import Dialer, Upstreams, http_proxy_for, tls_context

BACKLOG = 1024
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Listener:
    """One way in. ``project`` is its own project, None where the target or a field names one."""

    url: str
    guard: Guard
    project: Project | None


class Internal(ProxyError):
    """A bug; the log has the traceback."""

    code = "PROXY_INTERNAL_ERROR"


class App:
    """A proxy for one configuration: `started` is its life, and `drain` ends it gently."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = get_logger("proxy")
        self._projects: dict[str, Project] = {}
        self._account_projects: dict[str, Project] = {}
        self._slots: dict[int | str, Slots] = {}
        self._servers: list[tuple[asyncio.Server, CallerServer]] = []
        self._admin = Admin(self)
        self._callers = Callers(settings.callers)
        self._stopping = False
        self.listeners: list[Listener] = []

    # Overview, for `Admin` and the start-up summary

    @property
    def is_stopping(self) -> bool:
        """Whether it is draining."""
        return self._stopping

    def projects(self) -> Iterable[Project]:
        """All projects, those of accounts that are in use included."""
        return (*self._projects.values(), *self._account_projects.values())

    def project_url(self, name: str) -> str:
        """How callers address a project."""
        for listener in self.listeners:
            if listener.project is not None and listener.project.name == name:
                return listener.url
        return f"{self.listeners[0].url}/{name}" if self.listeners else f"/{name}"

    # Life

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[App]:
        """The listeners are open within; on leaving everything is closed."""
        vendor = self._settings.contentsquare
        context = tls_context(vendor.ca_file)
        dialer = Dialer(context, connect_timeout_s=vendor.connect_timeout)
        self._upstreams = Upstreams(dialer, idle_timeout_s=vendor.idle_timeout)
        self._forwarder = Forwarder(self._upstreams, queue_timeout_s=vendor.queue_timeout)
        async with (
            _redacted(self._settings),
            make_session(context) as session,
            _Background() as background,
        ):
            self._endpoint = TokenEndpoint(
                session,
                vendor.auth_url,
                allowed_endpoints=vendor.allowed_endpoints,
                http_proxy=lambda origin: None if origin.is_loopback else http_proxy_for(origin),
            )
            self._spawn = background.spawn
            self._make_projects()
            background.spawn(self._upstreams.run())
            try:
                await self._listen()
                for project in self._projects.values():
                    project.start()
                yield self
            finally:
                self._close()

    async def settled(self, wait_s: float, stop: asyncio.Event | None = None) -> None:
        """Wait until each wanted token was fetched or failed to be, until ``stop``, or for ``wait_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not all(project.is_settled for project in self._projects.values()):
                    if stop is not None and stop.is_set():
                        return
                    await asyncio.sleep(_POLL_S)

    async def drain(self, kill: asyncio.Event) -> None:
        """Take no new requests and wait for the running ones, ``drain_timeout`` at most or until ``kill``."""
        self._stopping = self._forwarder.stopping = True
        self._log.info("stop_requested", drain_timeout_s=self._settings.server.drain_timeout)
        for listening, _ in self._servers:
            listening.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.server.drain_timeout):
                while not kill.is_set() and self._close_idle():
                    await asyncio.sleep(_POLL_S)

    def _close_idle(self) -> bool:
        """Close callers' connections that carry no request; whether others are left."""
        busy = False
        for _, server in self._servers:
            for connection in server.connections:
                if isinstance(connection, CallerConnection) and connection.is_answering:
                    busy = True
                else:
                    connection.force_close()
        return busy

    def _close(self) -> None:
        for listening, server in self._servers:
            listening.close()
            for connection in server.connections:
                if isinstance(connection, CallerConnection):
                    connection.abort()
        self._upstreams.close()

    # Projects

    def _make_projects(self) -> None:
        settings = self._settings
        for name, configured in settings.projects.items():
            self._projects[name] = self._make_project(
                name, configured, configured.project_id, configured.integration_id, from_start=True
            )
        default = settings.default_project
        self._router: Router[Project] = Router(
            self._projects,
            default=self._projects[default] if default is not None else None,
            accounts=frozenset(settings.accounts),
            account_project=self._account_project,
        )

    def _make_project(
        self,
        name: str,
        access: Access,
        project_id: int | None,
        integration_id: int | None,
        *,
        from_start: bool,
    ) -> Project:
        limit = self._settings.contentsquare.max_concurrency
        return Project(
            name,
            Grant(
                Credentials(access.client_id, access.client_secret), project_id, integration_id, access.apis
            ),
            endpoint=self._endpoint,
            slots=self._slots.setdefault(name if project_id is None else project_id, Slots(limit)),
            spawn=self._spawn,
            read_only=access.read_only,
            from_start=from_start,
            on_event=self._log_lease_event,
        )

    def _account_project(self, account: str, project_id: int) -> Project | None:
        configured = self._settings.accounts[account]
        if configured.projects is not None and project_id not in configured.projects:
            return None
        name = f"{account}/{project_id}"
        project = self._account_projects.get(name)
        if project is None:
            project = self._account_projects[name] = self._make_project(
                name, configured, project_id, None, from_start=False
            )
        return project

    def _log_lease_event(self, event: str, values: Mapping[str, object]) -> None:
        failed = event.endswith("_failed") or event == "token_rejected"
        (self._log.warning if failed else self._log.info)(event, **values)

    # Listeners

    async def _listen(self) -> None:
        server = self._settings.server
        tls = server_tls(server.tls_cert, server.tls_key)
        await self._open("server.port", server.port, None, tls)
        for name, configured in self._settings.projects.items():
            if configured.port:
                await self._open(f"projects.{name}.port", configured.port, self._projects[name], tls)
        if server.unix_socket is not None:
            await self._open_unix(server.unix_socket)

    async def _open(self, key: str, port: int, project: Project | None, tls: ssl.SSLContext | None) -> None:
        host = self._settings.server.host
        sock = _bind(host, port, key)
        port = sock.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        listener = Listener(
            f"{'https' if tls else 'http'}://{shown}:{port}",
            Guard(port, self._settings.server.allowed_hosts),
            project,
        )
        server = CallerServer(self._handle, listener)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(server, sock=sock, backlog=BACKLOG, ssl=tls)
        self._servers.append((listening, server))
        self.listeners.append(listener)

    async def _open_unix(self, path: Path) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError("server.unix_socket: this system has no Unix sockets; leave it out")
        sock = _bind_unix(path)
        listener = Listener(f"unix:{path}", Guard(80, self._settings.server.allowed_hosts), None)
        server = CallerServer(self._handle, listener)
        listening = await asyncio.get_running_loop().create_unix_server(server, sock=sock, backlog=BACKLOG)
        self._servers.append((listening, server))
        self.listeners.append(listener)

    # One request

    async def _handle(self, request: Request) -> bool:
        listener: Listener = request.connection.listener
        started_at = time.perf_counter()  # uvloop's own clock has whole milliseconds
        route: Route[Project] | None = None
        try:
            caller, target = self._admit(request, listener)
            if target.startswith(admin.PREFIX) or target == b"/-":
                return self._admin.answer(request, target)
            if target == b"*":
                return write_answer(request, 204, b"")
            route = self._route(request, target, listener)
            project, api, target = route
            if caller is not None:
                _check_rights(caller, request, route)
            project.requests[api or project.first_api] += 1
            return await self._forwarder.forward(request, project, api, target)
        except ProxyError as exc:
            if request.head_sent:
                request.connection.abort()
                return False
            return write_error(request, exc)
        except Exception:  # noqa: BLE001 - the one place where a bug in a request is met
            self._log.exception("request_failed_by_bug")
            if request.head_sent:
                request.connection.abort()
                return False
            return write_error(request, Internal("The proxy failed; its log says more."))
        finally:
            self._log_request(request, route, started_at)

    def _admit(self, request: Request, listener: Listener) -> tuple[Caller | None, bytes]:
        """Who calls, and the target, of a request that may be answered. Raises ProxyError for any other."""
        if request.error is not None:
            raise request.error
        caller, target = self._callers.identify(request.head, listener.guard.check(request.head))
        if self._stopping and not target.startswith(admin.PREFIX):
            raise Stopping("The proxy is stopping; try again in a moment.", retry_after_s=5)
        return caller, target

    def _route(self, request: Request, target: bytes, listener: Listener) -> Route[Project]:
        project = api = None
        for field in request.head.steering:
            if field.name == PROJECT_FIELD:
                project = field.value
            elif field.name == API_FIELD:
                api = field.value
        return self._router.route(target, own=listener.project, project=project, api=api)

    def _log_request(self, request: Request, route: Route[Project] | None, started_at: float) -> None:
        target = route.target if route is not None else request.head.target
        took_s = time.perf_counter() - started_at
        if request.transport.is_closing():  # by the caller who left, or by us because the answer was cut
            event = "request_cut_short" if request.status else "request_abandoned"
        else:
            event = "request_answered"
        self._log.info(
            event,
            project=route.project.name if route is not None else None,
            api=(route.api or route.project.first_api).value if route is not None else None,
            method=request.head.method.decode("ascii"),
            path=target.partition(b"?")[0][:256].decode("ascii", "backslashreplace"),
            status=request.status or None,
            bytes_in=request.body.received,
            bytes_out=request.answer_bytes,
            ms=round(took_s * 1000, 1),
        )


def _check_rights(caller: Caller, request: Request, route: Route[Project]) -> None:
    """Raise Forbidden where a request is not this caller's to make."""
    if not caller.may_use(route.project.name):
        raise Forbidden(f"The caller {caller.name} may not use the project {route.project.name}.")
    if caller.read_only and changes_data(request.head.method, route.target):
        raise Forbidden(f"The caller {caller.name} may only read.")


@contextlib.asynccontextmanager
async def _redacted(settings: Settings) -> AsyncIterator[None]:
    """No log line holds a secret of the configuration within."""
    owners: list[Access] = [*settings.projects.values(), *settings.accounts.values()]
    pairs = [*owners, *(owner.standby for owner in owners if owner.standby is not None)]
    secrets = [pair.client_secret for pair in pairs] + [caller.key for caller in settings.callers.values()]
    texts = [secret.get_secret_value() for secret in secrets]
    for text in texts:
        redactor.add(text)
    try:
        yield
    finally:
        for text in texts:
            redactor.discard(text)


class _Background:
    """The application's tasks. One that fails cancels whoever entered, and its error comes out."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if isinstance(exc, asyncio.CancelledError):
            await self._group.__aexit__(kind, exc, traceback)
        else:
            # A taken port, say, comes out as it is: told of it, the group would wrap it in one.
            await self._group.__aexit__(None, None, None)

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run ``work`` until the application ends."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


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
        raise ListenError(
            f"{key}: can't listen on {host}:{port} ({exc.strerror}); is another csq-proxy running?"
            f" Stop it, or choose another port{' with --port' if key == 'server.port' else ''}"
        ) from None
    sock.setblocking(False)
    return sock


def _bind_unix(path: Path) -> socket.socket:
    """A Unix socket that only its owner can use; a leftover of a proxy that is gone is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise ListenError(f"server.unix_socket: can't listen on {path} ({exc.strerror})") from None
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
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError):
        raise ConfigError("server.tls_cert: the certificate and key can't be read as a PEM pair") from None
    return context
