"""The composition root: settings in, a running proxy out.

Wires the modules, opens the listeners, runs the background tasks in one TaskGroup (a task that
dies of a bug ends the process), and drains. The one place that knows everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

from proxy.admin.loop_lag import LoopLag
from proxy.admin.overview import Overview
from proxy.app import notify
from proxy.app.build import Generations
from proxy.config.changes import Changes, differences
from proxy.config.expiry import ExpiryWatch
from proxy.config.settings import Settings
from proxy.config.watch import Reloader
from proxy.errors import ConfigError, ListenError
from proxy.gateway.gateway import Gateway
from proxy.gateway.generation import Generation
from proxy.gateway.outward import Outward, Plan, plan
from proxy.logs import setup as log
from proxy.logs.events import EventLog
from proxy.process import descriptor_limit
from proxy.projects import Project
from proxy.server.listeners import Listener, Listeners
from proxy.server.passed_sockets import PassedSocket

_POLL_S = 0.02
LONGEST_POLL_S = 1.0
"""Between two looks whether what a reload replaced is still in use."""
SWEEP_S = 60.0
"""Between two looks at what is idle, and at which credentials end."""


class App:
    """A proxy, from its first configuration on: `started` is its life, and `drain` ends it gently.

    ``load`` reads the configuration again, from the file that the running one came from, where it came
    from one: what else a search would find isn't what was started. None for one that stays as it is.
    ``quit_`` ends the process soon, and is called where a caller may ask for that. ``passed`` are sockets
    to listen on, in place of those of our own.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Path | None], Settings] | None = None,
        quit_: Callable[[], None] | None = None,
        passed: Sequence[PassedSocket] = (),
    ) -> None:
        self._passed = passed
        self._settings = settings  # the first; those of now are the generation's
        self._load = load
        self._log = log.get_logger("proxy")
        self._listeners = Listeners()
        self._reloader: Reloader | None = None
        self._events = EventLog(self._log)
        self._expiry = ExpiryWatch(self._log_event)
        self.overview = Overview(
            settings,
            self._listeners.all,
            self.projects,
            LoopLag(self._on_slow_loop),
            has_quit=quit_ is not None,
        )
        self._gateway = Gateway(self.overview, quit_, self._log_event)
        self._generation: Generation
        self._generations: Generations
        self._old_ways: list[Outward] = []  # one for each generation that is being seen out

    @property
    def listeners(self) -> Sequence[Listener]:
        """Where callers reach the proxy."""
        return self._listeners.all

    def projects(self) -> Iterable[Project]:
        """All projects, with those of accounts that are in use."""
        return (*self._generation.projects.values(), *self._generations.accounts)

    # Life

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[App]:
        """The listeners are open within; on leaving everything is closed. A bug is logged and comes out."""
        try:
            first = plan(self._settings, None)
            self._listeners.bind(self._settings, self._passed)
            async with _Background() as background:
                self._spawn = background.spawn
                try:
                    self._begin(first)
                    await self._listeners.serve(self._gateway, descriptor_limit())
                    for watch in self._listeners.watch():
                        self._spawn(watch)
                    for project in self._generation.projects.values():
                        project.start()
                    yield self
                finally:
                    self._listeners.abort()
        except (ConfigError, ListenError):
            raise
        except Exception:  # a bug; told here, for after the end nobody knows any longer what is secret
            self._log.critical("stopped_by_bug", exc_info=True)
            raise
        finally:
            await self._end()

    def _begin(self, first: Plan) -> None:
        self._generations = Generations(
            self.listeners,
            limit=self._settings.contentsquare.max_concurrency,
            spawn=self._spawn,
            on_event=self._log_event,
        )
        self._generation = self._gateway.generation = self._generations.next(first, None).generation
        self._generation.redact()
        self._warn_of_environment()
        self._spawn(self._keep_house())
        self._spawn(self.overview.loop_lag.run())
        if self._load is not None:
            load = self._load
            self._reloader = Reloader(
                lambda: load(self._generation.settings.source),
                self._prepare,
                lambda: self._generation.settings.files,
                self._log_event,
            )
            self.overview.reload = self._reloader.status
            self._spawn(self._reloader.run())

    def _warn_of_environment(self) -> None:
        """Child processes inherit it, and `docker inspect`, crash reporters and /proc show it."""
        if names := self._settings.secrets_of_environment:
            better = (
                "a file that only this user can read: client_secret_file or key_file,"
                " or client_secret_command"
            )
            self._log_event("secret_in_environment", {"variables": names, "better": better})

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
        self._listeners.refuse_exposed(settings)
        planned = plan(settings, self._generation.outward)
        return lambda: self._apply(planned)

    def _apply(self, planned: Plan) -> Changes:
        """Go over to the next generation, in one step of the event loop."""
        old, step = self._generation, self._generations.next(planned, self._generation)
        new = self._generation = self._gateway.generation = step.generation
        self.overview.settings = new.settings
        new.redact()
        for project in step.leaving:
            project.retire()
        for project in step.fresh:
            project.start()
        for project in self.projects():
            project.forget_answers()
        self._old_ways.append(old.outward)
        self._spawn(self._see_out(old, step.leaving))
        try:
            self._listeners.use_certificate(new.settings.server.tls_cert, new.settings.server.tls_key)
        except (ConfigError, OSError):  # it was good a moment ago, so it is about to be replaced once more
            self._log_event("certificate_refused", {})
        if new.settings.log != old.settings.log:
            log.configure(new.settings.log.level, new.settings.log.format)
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
            self._old_ways.remove(old.outward)
            # What left in another reload may still be on the same way: who is last to go closes it.
            if old.outward not in (self._generation.outward, *self._old_ways):
                await old.outward.close()

    async def _keep_house(self) -> None:
        while True:
            self._expiry.look(self._ends())
            await asyncio.sleep(SWEEP_S)
            self._generations.answers.sweep(asyncio.get_running_loop().time())
            self._events.sweep()
            if gone := self._generations.accounts.sweep():
                self._log.info("idle_projects_dropped", projects=gone)

    def _ends(self) -> Iterator[tuple[str, date]]:
        settings = self._generation.settings
        for section, owners in (("projects", settings.projects), ("accounts", settings.accounts)):
            for name, owner in owners.items():
                if owner.expires is not None:
                    yield f"{section}.{name}", owner.expires

    def _log_event(self, event: str, values: Mapping[str, object]) -> None:
        self._events(event, values)
        if event in ("reloaded", "reload_refused"):
            notify.ready()

    def _on_slow_loop(self, lag_s: float) -> None:
        self._log_event("event_loop_was_slow", {"lag_s": round(lag_s, 2)})

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
        self.overview.is_stopping = True
        drain_timeout_s = self._generation.settings.server.drain_timeout
        notify.stopping()
        self._log.info("stop_requested", drain_timeout_s=drain_timeout_s)
        self._listeners.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                while not kill.is_set() and self._listeners.close_idle():
                    await asyncio.sleep(_POLL_S)


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
