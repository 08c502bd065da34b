"""Every request's way through the proxy: who calls, for which project, may it, and then on to the cloud.

Reads top to bottom as the checks come. What goes wrong on the way becomes an answer here, and each
request is counted and logged here, once. Must not know sockets or how a configuration came to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from proxy import admin, log, policy
from proxy.admin import Admin, Overview
from proxy.answer import write_answer, write_error, write_json
from proxy.callers import Caller, WrongKey, WrongKeys
from proxy.errors import MethodRefused, ProxyError, QueueTimeout, Stopping, UnknownProject
from proxy.facade import Facade
from proxy.generation import Generation
from proxy.listeners import Listener
from proxy.project import Project
from proxy.request import Request
from proxy.route import API_FIELD, PROJECT_FIELD, Route

MAX_IN_FLIGHT = 256
"""Requests of one caller at once: most of them wait for a slot, and each takes a connection."""


class Internal(ProxyError):
    """A bug; the log has the traceback."""

    code = "PROXY_INTERNAL_ERROR"


class Gateway:
    """Answers callers' requests, each by the `generation` that it began with.

    ``overview`` is what ``/-/`` shows. ``quit_`` ends the process soon, and is called where a caller may
    ask for that.
    """

    generation: Generation

    def __init__(self, overview: Overview, quit_: Callable[[], None] | None) -> None:
        self.is_stopping = False
        self.refused: Counter[str] = Counter()
        """Errors of requests that reached no project, by code."""
        self._quit = quit_
        self._log = log.get_logger("proxy")
        self.bind_log()
        self._admin = Admin(overview)
        self._wrong_keys = WrongKeys()
        self._facade = Facade(self._slow_down)
        self._in_flight: Counter[str] = Counter()

    def bind_log(self) -> None:
        """Once per configuration of the log rather than per line, for that is most of a line's cost."""
        bound = log.get_logger("proxy").bind()
        self._log_answer = bound.info if bound.is_enabled_for(logging.INFO) else None

    async def answer(self, request: Request) -> bool:
        """Answer it; whether the connection can be kept. Raises CancelledError alone."""
        listener: Listener = request.connection.listener
        generation = self.generation
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
        if self.is_stopping and not target.startswith(admin.PREFIX):
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
            self.refused[error.code] += 1
        else:
            route.project.measures.failed(error.code, error.message)

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
