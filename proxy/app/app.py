"""The composition root: settings in, a running proxy out.

Connects the modules, opens the listeners, runs the background tasks in one TaskGroup (a bug in a task ends
the process), and drains.
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
from proxy.config.trust import UNCHECKED, unchecked
from proxy.config.watch import Reloader
from proxy.errors import ConfigError, ListenError
from proxy.gateway.gateway import Gateway
from proxy.gateway.generation import Generation
from proxy.gateway.outward import Outward, Plan, plan
from proxy.logs import EventLog, configure, get_logger
from proxy.process import descriptor_limit
from proxy.projects import Project
from proxy.projects.calls import MonthlyCalls
from proxy.projects.calls_file import CallsFile
from proxy.projects.saving import Saving
from proxy.server.listeners import Listeners
from proxy.server.passed_sockets import PassedSocket
from proxy.server.request import Listener

_POLL_S = 0.02
LONGEST_POLL_S = 1.0
"""The longest time, in seconds, between two looks at whether a replaced project is in use."""
LAST_ANSWERS_S = 0.5
"""How long a stop waits, in seconds, for callers to take the answers to requests that it ended."""
SWEEP_S = 60.0
"""Seconds between two looks for idle projects, and for credentials that end."""


class App:
    """A proxy: it serves within `started`, and `drain` ends it gently.

    ``load`` reads the configuration again, from the file of the running one (None: there was no file).
    Without ``load`` the configuration stays. ``quit_`` ends the process soon, for ``/-/quit``. ``passed`` are
    sockets that a service manager opened; the proxy listens on them in place of its own.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Path | None], Settings] | None = None,
        quit_: Callable[[], None] | None = None,
        passed: Sequence[PassedSocket] = (),
    ) -> None:
        self._passed = passed
        self._settings = settings  # of the start; the running ones are in the generation
        self._load = load
        self._log = get_logger("proxy")
        self._listeners = Listeners()
        self._reloader: Reloader | None = None
        self._events = EventLog(self._log)
        self._expiry = ExpiryWatch(self._log_event)
        self.overview = Overview(
            settings,
            self._listeners.all,
            self.projects,
            LoopLag(self._on_slow_loop),
            self._saving(settings.server.state_dir),
            has_quit=quit_ is not None,
        )
        self.overview.recent.switch(on=settings.log.requests)
        self._gateway = Gateway(self.overview, self._listeners.requests, quit_, self._log_event)
        self._generation: Generation
        self._generations: Generations
        self._old_outwards: list[Outward] = []  # of each old generation that still has requests

    def _saving(self, folder: Path | None) -> Saving:
        calls = MonthlyCalls(self._log_event)
        return Saving(calls, None if folder is None else CallsFile(folder), self._log_event)

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
        """A context with open listeners; its end closes everything. A bug is logged and raised."""
        try:
            first = plan(self._settings, None)
            self._listeners.bind(self._settings, self._passed)
            async with _Background() as background:
                self._spawn = background.spawn
                try:
                    self._begin(first)
                    await self._listeners.serve(
                        self._gateway, descriptor_limit(), self._spawn, self._log_event
                    )
                    for project in self._generation.projects.values():
                        project.start()
                    yield self
                finally:
                    await self._listeners.abort()
        except (ConfigError, ListenError):
            raise
        except Exception:  # a bug; logged here, since `_end` makes the log forget the secrets
            self._log.critical("stopped_by_bug", exc_info=True)
            raise
        finally:
            await self._end()

    def _begin(self, first: Plan) -> None:
        self._generations = Generations(
            self.listeners,
            self.overview.saving.calls,
            limit=self._settings.contentsquare.max_concurrency,
            spawn=self._spawn,
            on_event=self._log_event,
        )
        self._generation = self._gateway.generation = self._generations.next(first, None).generation
        self._generation.redact()
        self._warn_of_environment()
        if places := self._settings.passed_over:
            self._log_event("configuration_passed_over", {"places": places})
        if files := unchecked(self._settings.files):
            self._log_event("files_unchecked", {"files": [str(file) for file in files], "why": UNCHECKED})
        self.overview.saving.calls.set_quotas(self._settings.quotas)
        self._spawn(self._sweep_regularly())
        self._spawn(self.overview.saving.run())
        self._spawn(self._generations.slots.count_minutes())
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
            self._spawn(self._reloader.watch())

    def _warn_of_environment(self) -> None:
        """Warn of secrets there: child processes inherit them, `docker inspect` and /proc show them."""
        if names := self._settings.secrets_of_environment:
            better = (
                "a file that only this user can read: client_secret_file or key_file,"
                " or client_secret_command"
            )
            self._log_event("secret_in_environment", {"variables": names, "better": better})

    async def _end(self) -> None:
        """Close what the background tasks used. They have ended."""
        await self._listeners.close()
        if hasattr(self, "_generation"):
            for project in self.projects():
                project.close()
            await self.overview.saving.close()
            self._generation.unredact()
            self._generations.renewals.close()
            self._gateway.close()
            await self._generation.outward.close()

    # Reload

    def reload(self) -> None:
        """Read the configuration again, soon."""
        if self._reloader is not None:
            notify.reloading()
            self._reloader.reload_soon()

    def _prepare(self, settings: Settings) -> Callable[[], Changes]:
        """Check new settings, in a thread. Returns the function that applies them. Raises ConfigError."""
        self._listeners.refuse_exposed(settings)
        planned = plan(settings, self._generation.outward)
        return lambda: self._apply(planned)

    def _apply(self, planned: Plan) -> Changes:
        """Switch to the next generation, in one step of the event loop."""
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
        self._old_outwards.append(old.outward)
        self._spawn(self._close_when_unused(old, step.leaving))
        try:
            self._listeners.use_certificate(new.settings.server.tls_cert, new.settings.server.tls_key)
        except (ConfigError, OSError):  # `_prepare` found it good, so the file is being replaced again
            self._log_event("certificate_refused", {})
        if new.settings.log != old.settings.log:
            configure(new.settings.log.level, new.settings.log.format, new.settings.log.file)
            self.overview.recent.switch(on=new.settings.log.requests)
        self._expiry.look(self._ends())
        self.overview.saving.calls.set_quotas(new.settings.quotas)
        return differences(old.settings, new.settings, self._settings)

    async def _close_when_unused(self, old: Generation, leaving: Sequence[Project]) -> None:
        """Wait for the last request that began before a reload, then close the projects that it could use."""
        pause_s = _POLL_S
        try:
            while any(project.running for project in leaving):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_POLL_S)
            await self.overview.recent.redact()
        finally:
            for project in leaving:
                project.close()
            old.unredact()
            self._old_outwards.remove(old.outward)
            # The old generation of another reload may use the same connections: the last one closes them.
            if old.outward not in (self._generation.outward, *self._old_outwards):
                await old.outward.close()

    async def _sweep_regularly(self) -> None:
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
        """Wait until each first token was fetched or refused, until ``stop``, or for ``wait_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not all(project.is_settled for project in self._generation.projects.values()):
                    if stop is not None and stop.is_set():
                        return
                    await asyncio.sleep(_POLL_S)

    async def drain(self, kill: asyncio.Event) -> None:
        """Take no new requests and wait for the running ones, ``drain_timeout`` at most or until ``kill``.

        Then end those that are left, and give their callers `LAST_ANSWERS_S` to take the answers.
        """
        drain_timeout_s = self._generation.settings.server.drain_timeout
        notify.stopping()
        self._log.info("stop_requested", drain_timeout_s=drain_timeout_s)
        await self._listeners.close()
        # Only now: a balancer sends a GET again where its connection was closed, and not after a 503.
        self.overview.is_stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                while self._listeners.close_idle() and not kill.is_set():
                    await asyncio.sleep(_POLL_S)
        if self._gateway.end_requests():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_ANSWERS_S):
                    while any(self._listeners.connections()):
                        await asyncio.sleep(_POLL_S)


class _Background:
    """The background tasks. A task that fails cancels the task that entered, which then raises the error."""

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
            # An error of the start (a taken port, say) is raised as it is; the group would wrap it.
            await self._group.__aexit__(None, None, None)

    def spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run ``work`` until it ends, or until the application does."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
