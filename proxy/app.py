"""The composition root: settings in, a running proxy out.

Wires the modules, opens the listeners, runs the background tasks in one TaskGroup (a task that
dies of a bug ends the process), and drains. The one place that knows everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import date
from types import TracebackType
from typing import Self

from proxy import admin, log, notify, policy
from proxy.admin import Admin
from proxy.answer import write_answer, write_error, write_json
from proxy.callers import Caller, WrongKey, WrongKeys
from proxy.errors import MethodRefused, ProxyError, QueueTimeout, Stopping, UnknownProject
from proxy.expiry import ExpiryWatch
from proxy.facade import Facade
from proxy.generation import Generation, Generations, Plan, plan
from proxy.listeners import Listener, Listeners
from proxy.measures import LoopLag
from proxy.process import descriptor_limit
from proxy.project import Project
from proxy.reload import Changes, Reloader, ReloadStatus, differences
from proxy.request import Request
from proxy.route import API_FIELD, PROJECT_FIELD, Route
from proxy.settings import Settings

_POLL_S = 0.02
LONGEST_POLL_S = 1.0
"""Between two looks whether what a reload replaced is still in use."""
SWEEP_S = 60.0
"""Between two looks at what is idle, and at which credentials end."""
MAX_IN_FLIGHT = 256
"""Requests of one caller at once: most of them wait for a slot, and each takes a connection."""
_WARNINGS = frozenset(
    (
        "certificate_refused",
        "credentials_expire",
        "credentials_switched",
        "reload_needs_restart",
        "reload_refused",
        "token_rejected",
    )
)


class Internal(ProxyError):
    """A bug; the log has the traceback."""

    code = "PROXY_INTERNAL_ERROR"


class App:
    """A proxy, from its first configuration on: `started` is its life, and `drain` ends it gently.

    ``load`` reads the configuration again; None for one that stays as it is. ``quit_`` ends the process
    soon, and is called where a caller may ask for that.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings] | None = None,
        quit_: Callable[[], None] | None = None,
    ) -> None:
        self._settings = settings  # the first; those of now are the generation's
        self._load = load
        self._quit = quit_
        self._log = log.get_logger("proxy")
        self._bind_request_log()
        self._listeners = Listeners()
        self._reloader: Reloader | None = None
        self._expiry = ExpiryWatch(self._log_event)
        self._admin = Admin(self)
        self._stopping = False
        self._loop_lag = LoopLag(self._on_slow_loop)
        self._refused: Counter[str] = Counter()
        self._wrong_keys = WrongKeys()
        self._facade = Facade(self._slow_down)
        self._in_flight: Counter[str] = Counter()
        self._generation: Generation
        self._generations: Generations

    def _bind_request_log(self) -> None:
        """Once per configuration of the log rather than per line, for that is most of a line's cost."""
        bound = log.get_logger("proxy").bind()
        self._log_answer = bound.info if bound.is_enabled_for(logging.INFO) else None

    # Overview, for `Admin` and the start-up summary

    @property
    def is_stopping(self) -> bool:
        """Whether it is draining."""
        return self._stopping

    @property
    def listeners(self) -> Sequence[Listener]:
        """The ways in."""
        return self._listeners.all

    @property
    def reload_status(self) -> ReloadStatus:
        """What became of reloads."""
        return ReloadStatus() if self._reloader is None else self._reloader.status

    @property
    def loop_lag(self) -> LoopLag:
        """How late the event loop is."""
        return self._loop_lag

    @property
    def refused(self) -> Mapping[str, int]:
        """Errors of requests that reached no project, by code."""
        return self._refused

    @property
    def log_lines_dropped(self) -> int:
        """Lines that couldn't be written."""
        return log.dropped_lines()

    @property
    def needs_key(self) -> bool:
        """Whether callers are defined."""
        return bool(self._generation.settings.callers)

    @property
    def accounts(self) -> Iterable[str]:
        """The names of accounts."""
        return self._generation.settings.accounts

    def projects(self) -> Iterable[Project]:
        """All projects, those of accounts that are in use included."""
        return (*self._generation.projects.values(), *self._generations.accounts)

    def project_url(self, name: str) -> str:
        """How callers address a project."""
        for listener in self.listeners:
            if listener.project == name:
                return listener.url
        return f"{self.listeners[0].url}/{name}" if self.listeners else f"/{name}"

    # Life

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[App]:
        """The listeners are open within; on leaving everything is closed."""
        first = plan(self._settings, None)
        self._listeners.bind(self._settings)
        try:
            async with _Background() as background:
                self._spawn = background.spawn
                try:
                    self._begin(first)
                    await self._listeners.serve(self._handle, descriptor_limit())
                    for watch in self._listeners.watch():
                        self._spawn(watch)
                    for project in self._generation.projects.values():
                        project.start()
                    yield self
                finally:
                    self._listeners.abort()
        finally:
            await self._end()

    def _begin(self, first: Plan) -> None:
        self._generations = Generations(
            self.listeners,
            limit=self._settings.contentsquare.max_concurrency,
            spawn=self._spawn,
            on_event=self._log_event,
        )
        self._generation = self._generations.next(first, None).generation
        self._generation.redact()
        self._warn_of_environment()
        self._spawn(self._keep_house())
        self._spawn(self._loop_lag.run())
        if self._load is not None:
            self._reloader = Reloader(
                self._load, self._prepare, lambda: self._generation.settings.files, self._log_event
            )
            self._spawn(self._reloader.run())

    def _warn_of_environment(self) -> None:
        """Child processes inherit it, and `docker inspect`, crash reporters and /proc show it."""
        if names := self._settings.secrets_of_environment:
            self._log.warning(
                "secret_in_environment",
                variables=names,
                better="a file that only this user can read: client_secret_file or key_file,"
                " or client_secret_command",
            )

    async def _end(self) -> None:
        """Close what the tasks worked with; they have ended."""
        self._listeners.close()
        if hasattr(self, "_generation"):
            for project in self.projects():
                project.close()
            self._generation.unredact()
            await self._generation.outward.close()

    # Reload

    def reload(self) -> None:
        """Read the configuration again, soon."""
        if self._reloader is not None:
            notify.reloading()
            self._reloader.ask()

    def _prepare(self, settings: Settings) -> Callable[[], Changes]:
        """Runs in a thread. Raises ConfigError."""
        planned = plan(settings, self._generation)
        return lambda: self._apply(planned)

    def _apply(self, planned: Plan) -> Changes:
        """Go over to the next generation, in one step of the event loop."""
        old, step = self._generation, self._generations.next(planned, self._generation)
        new = self._generation = step.generation
        new.redact()
        new.forwarder.stopping = self._stopping
        for project in step.leaving:
            project.retire()
        for project in step.fresh:
            project.start()
        self._spawn(self._see_out(old, step.leaving))
        try:
            self._listeners.use_certificate(new.settings.server.tls_cert, new.settings.server.tls_key)
        except OSError:  # it was good a moment ago, so it is about to be replaced once more
            self._log_event("certificate_refused", {})
        if new.settings.log != old.settings.log:
            log.configure(new.settings.log.level, new.settings.log.format)
            self._bind_request_log()
        self._expiry.look(self._ends())
        return differences(old.settings, new.settings, self._settings)

    async def _see_out(self, old: Generation, leaving: Sequence[Project]) -> None:
        """Wait until the last request that began before a reload has ended, then end what it used."""
        pause_s = _POLL_S
        try:
            while any(project.running for project in leaving):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_POLL_S)
        finally:
            for project in leaving:
                project.close()
            old.unredact()
            if old.outward is not self._generation.outward:
                await old.outward.close()

    async def _keep_house(self) -> None:
        while True:
            self._expiry.look(self._ends())
            await asyncio.sleep(SWEEP_S)
            if gone := self._generations.accounts.sweep():
                self._log.info("idle_projects_dropped", projects=gone)

    def _ends(self) -> Iterator[tuple[str, date]]:
        settings = self._generation.settings
        for section, owners in (("projects", settings.projects), ("accounts", settings.accounts)):
            for name, owner in owners.items():
                if owner.expires is not None:
                    yield f"{section}.{name}", owner.expires

    def _log_event(self, event: str, values: Mapping[str, object]) -> None:
        is_warning = event.endswith("_failed") or event in _WARNINGS
        (self._log.warning if is_warning else self._log.info)(event, **values)
        if event in ("reloaded", "reload_refused"):
            notify.ready()

    # Start and stop

    async def settled(self, wait_s: float, stop: asyncio.Event | None = None) -> None:
        """Wait until each wanted token was fetched or failed to be, until ``stop``, or for ``wait_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not all(project.is_settled for project in self._generation.projects.values()):
                    if stop is not None and stop.is_set():
                        return
                    await asyncio.sleep(_POLL_S)

    async def drain(self, kill: asyncio.Event) -> None:
        """Take no new requests and wait for the running ones, ``drain_timeout`` at most or until ``kill``."""
        self._stopping = self._generation.forwarder.stopping = True
        drain_timeout_s = self._generation.settings.server.drain_timeout
        notify.stopping()
        self._log.info("stop_requested", drain_timeout_s=drain_timeout_s)
        self._listeners.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                while not kill.is_set() and self._listeners.close_idle():
                    await asyncio.sleep(_POLL_S)

    # One request

    async def _handle(self, request: Request) -> bool:
        listener: Listener = request.connection.listener
        generation = self._generation
        started_at = time.perf_counter()  # uvloop's own clock has whole milliseconds
        route: Route[Project] | None = None
        try:
            caller, target = self._admit(request, listener, generation)
            if Facade.is_for(target) or target.startswith(admin.PREFIX) or target in (b"/-", b"*"):
                return await self._answer_own(request, listener, generation, caller, target)
            route = _route(request, listener, generation, caller, target)
            project, api, target = route
            policy.check(request.head, target, project, caller)
            project.requests[api or project.first_api] += 1
            project.running += 1
            try:
                if caller is None:
                    return await generation.forwarder.forward(request, project, api, target)
                with self._one_of(caller):
                    request.caller = caller.name
                    return await generation.forwarder.forward(request, project, api, target)
            finally:
                project.running -= 1
        except ProxyError as exc:
            if isinstance(exc, WrongKey):
                await self._slow_down(request)
            self._count_error(exc, route)
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
            took_s = time.perf_counter() - started_at
            if route is not None:
                route.project.measures.ended(route.api or route.project.first_api, request, took_s)
            self._log_request(request, route, took_s)

    async def _answer_own(
        self,
        request: Request,
        listener: Listener,
        generation: Generation,
        caller: Caller | None,
        target: bytes,
    ) -> bool:
        """What is not forwarded. Raises ProxyError."""
        if target == b"*":
            return write_answer(request, 204, b"")
        if Facade.is_for(target):
            find = functools.partial(_route, request, listener, generation)
            return await self._facade.answer(request, target, generation.callers, find)
        if target.partition(b"?")[0] == admin.QUIT and generation.settings.server.allow_quit and self._quit:
            policy.check_quit(caller)
            if request.head.method != b"POST":
                raise MethodRefused("Use POST here.", fields=((b"Allow", b"POST"),))
            self._quit()
            return write_json(request, 202, {"stopping": True})
        if (name := admin.refreshed_project(target)) is not None:
            policy.check_refresh(name, caller)
        return await self._admin.answer(request, target)

    def _admit(
        self, request: Request, listener: Listener, generation: Generation
    ) -> tuple[Caller | None, bytes]:
        """Who calls, and the target, of a request that may be answered. Raises ProxyError for any other.

        What the facade answers it authenticates itself.
        """
        if request.error is not None:
            raise request.error
        guard = generation.guards[listener.index]
        caller, target = None, guard.check(request.head)
        if not Facade.is_for(target):
            caller, target = generation.callers.identify(request.head, target)
        if self._stopping and not target.startswith(admin.PREFIX):
            raise Stopping("The proxy is stopping; try again in a moment.", retry_after_s=5)
        return caller, target

    @contextlib.contextmanager
    def _one_of(self, caller: Caller) -> Iterator[None]:
        """Count a request of this caller. Raises QueueTimeout where it has too many at once."""
        if self._in_flight[caller.name] >= MAX_IN_FLIGHT:
            raise QueueTimeout(
                f"The caller {caller.name} has {MAX_IN_FLIGHT} requests at once; ask for less at a time.",
                retry_after_s=2,
            )
        self._in_flight[caller.name] += 1
        try:
            yield
        finally:
            self._in_flight[caller.name] -= 1

    async def _slow_down(self, request: Request) -> None:
        """Make who sent a wrong key wait, and nobody else."""
        address = request.transport.get_extra_info("peername")
        peer = address[0] if isinstance(address, tuple) else ""
        delay_s = self._wrong_keys.delay_s(peer)
        if delay_s:
            self._log.warning("wrong_key_slowed_down", peer=peer, delay_s=round(delay_s, 1))
            await asyncio.sleep(delay_s)

    def _count_error(self, error: ProxyError, route: Route[Project] | None) -> None:
        if route is None:
            self._refused[error.code] += 1
        else:
            route.project.measures.failed(error.code, error.message)

    def _on_slow_loop(self, lag_s: float) -> None:
        self._log.warning("event_loop_was_slow", lag_s=round(lag_s, 2))

    def _log_request(self, request: Request, route: Route[Project] | None, took_s: float) -> None:
        if self._log_answer is None:
            return
        target = route.target if route is not None else request.head.target
        if request.transport.is_closing():  # by the caller who left, or by us because the answer was cut
            event = "request_cut_short" if request.status else "request_abandoned"
        else:
            event = "request_answered"
        self._log_answer(
            event,
            project=route.project.name if route is not None else None,
            api=(route.api or route.project.first_api).value if route is not None else None,
            method=request.head.method.decode("ascii"),
            path=target.partition(b"?")[0][:256].decode("ascii", "backslashreplace"),
            status=request.status or None,
            bytes_in=request.body.received,
            bytes_out=request.answer_bytes,
            ms=round(took_s * 1000, 1),
            **({} if request.cut_because is None else {"reason": request.cut_because}),
        )


def _route(
    request: Request, listener: Listener, generation: Generation, caller: Caller | None, target: bytes
) -> Route[Project]:
    project = api = None
    for field in request.head.steering:
        if field.name == PROJECT_FIELD:
            project = field.value
        elif field.name == API_FIELD:
            api = field.value
    own = generation.owners[listener.index]
    if own is None and listener.project is not None:
        raise UnknownProject(f"The project {listener.project} of this port is no longer configured.")
    return generation.router.route(
        target, own=own, project=project, api=api, may_use=None if caller is None else caller.may_use
    )


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
