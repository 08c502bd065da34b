"""Every request's way through the proxy: who calls, for which project, may it, and then on to the cloud.

Reads top to bottom as the checks come. What goes wrong on the way becomes an answer here, and each
request is counted and logged here, once. Must not know sockets or how a configuration came to be.
"""

from __future__ import annotations

import asyncio
import functools
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from proxy.admin import admin
from proxy.admin.admin import Admin
from proxy.admin.overview import Overview
from proxy.contentsquare import oauth_path
from proxy.errors import Internal, MethodRefused, ProxyError, QueueTimeout, Stopping, UnknownProject
from proxy.gateway import policy, tries
from proxy.gateway.callers import Caller, Callers, WrongKey, WrongKeys
from proxy.gateway.exchange import Exchange, exchange_of
from proxy.gateway.generation import Generation
from proxy.gateway.oauth import Facade, FindRoute
from proxy.gateway.request_log import RequestLog
from proxy.gateway.route import Route, named_by_fields
from proxy.gateway.sharing import sharing
from proxy.logs.events import OnEvent
from proxy.server.answer import write_answer, write_error, write_json
from proxy.server.listeners import Listener
from proxy.server.request import Request

MAX_IN_FLIGHT = 256
"""Requests of one caller at once: most of them wait for a slot, and each takes a connection."""


class Gateway:
    """Answers callers' requests, each by the `generation` that it began with.

    ``overview`` is what ``/-/`` shows. ``quit_`` ends the process soon, and is called where a caller may
    ask for that. ``on_event`` hears ``request_failed``, ``request_failed_by_bug`` and
    ``wrong_key_slowed_down``.
    """

    generation: Generation

    def __init__(self, overview: Overview, quit_: Callable[[], None] | None, on_event: OnEvent) -> None:
        self._overview = overview
        self._quit = quit_
        self._on_event = on_event
        self._log = RequestLog()
        self._admin = Admin(overview)
        self._wrong_keys = WrongKeys()
        self._facade = Facade(self._slow_down)
        self._in_flight: Counter[str] = Counter()

    def try_now(self, request: Request) -> bool:
        """Send a request that has to wait for nothing but the cloud; False: `run` must answer it."""
        if request.error is not None or not request.body.complete:
            return False
        request.facts.began_at = time.perf_counter()  # uvloop's own clock has whole milliseconds
        generation = self.generation
        try:
            caller, target, is_own = self._admit(request, generation)
            if is_own:
                return False
            exchange = self._way(request, generation, caller, target)
            answers = exchange.project.shared_answers
            return exchange.try_now() if answers is None else sharing.try_now(exchange, answers)
        except Exception:  # noqa: BLE001 - `run` meets the same error again and answers it
            return False

    def _ended(self, exchange: Exchange) -> None:
        """What was begun is over: the answer is with the caller or was cut, or the caller has left."""
        request = exchange.request
        try:
            self._leave(request)
        except Exception as exc:  # noqa: BLE001 - called from the event loop, where nobody else meets a bug
            self._tell_bug(exc)
        request.connection.done(request, keep=exchange.keep)

    async def run(self, request: Request) -> bool:
        """Answer a request, or go on after `try_now`; whether the connection can be kept.

        Raises nothing but CancelledError.
        """
        try:
            return await self._answer(request)
        except ProxyError as exc:
            if isinstance(exc, WrongKey):
                await self._slow_down(request)
            self._count_error(exc, request)
            if request.head_sent:
                request.connection.abort()
                return False
            return write_error(request, exc)
        except Exception as exc:  # noqa: BLE001 - the one place where a bug in a request is met
            self._tell_bug(exc)
            if request.head_sent:
                request.connection.abort()
                return False
            return write_error(request, Internal("The proxy failed; its log says more."))
        finally:
            self._leave(request)

    async def _answer(self, request: Request) -> bool:
        exchange = exchange_of(request)
        if exchange is not None and exchange.is_counted:  # `try_now` sent it
            return await _run(exchange)
        request.facts.began_at = time.perf_counter()
        generation = self.generation
        caller, target, is_own = self._admit(request, generation)
        if is_own:
            return await self._answer_own(request, generation, caller, target)
        return await _run(self._way(request, generation, caller, target))

    def _way(
        self, request: Request, generation: Generation, caller: Caller | None, target: bytes
    ) -> Exchange:
        """The way that a request may go. Raises ProxyError for one that must not go anywhere."""
        route = _route(request, generation, caller, target)
        project, target = route.project, route.target
        api = route.api or project.first_api
        exchange = Exchange(
            request,
            project,
            api,
            target,
            generation.outward.upstreams,
            queue_timeout_s=generation.queue_timeout_s,
            ended=self._ended,
        )
        request.exchange = exchange
        policy.check(request.head, target, project, caller)
        if caller is not None:
            request.facts.caller = caller.name
            self._check_room(caller)
            self._in_flight[caller.name] += 1
        project.requests[api] += 1
        project.running += 1
        exchange.is_counted = True
        return exchange

    def _leave(self, request: Request) -> None:
        """Count and log a request that is over."""
        took_s = time.perf_counter() - request.facts.began_at
        exchange = exchange_of(request)
        if exchange is not None:
            if exchange.recorder is not None:
                exchange.recorder.on_over()
            project = exchange.project
            if exchange.is_counted:
                project.running -= 1
                if request.facts.caller is not None:
                    self._in_flight[request.facts.caller] -= 1
            project.measures.count_request(exchange.api, request, took_s)
        self._log.tell(request, took_s)
        request.exchange = None  # each knows the other: without this, they were the garbage collector's

    async def _answer_own(
        self,
        request: Request,
        generation: Generation,
        caller: Caller | None,
        target: bytes,
    ) -> bool:
        """What is not forwarded. Raises ProxyError."""
        if target == b"*":
            return write_answer(request, 204, b"")
        if oauth_path(target) is not None:
            return await self._facade.answer(request, target, functools.partial(self._directory, request))
        if target.partition(b"?")[0] == admin.QUIT and generation.settings.server.allow_quit and self._quit:
            policy.check_quit(caller)
            if request.head.method != b"POST":
                raise MethodRefused("Use POST here.", fields=((b"Allow", b"POST"),))
            self._quit()
            return write_json(request, 202, {"stopping": True})
        if (name := admin.refreshed_project(target)) is not None:
            policy.check_refresh(name, caller)
        if caller is None or caller.projects is None:
            return await self._admin.answer(request, target)
        return await self._admin.answer(request, target, caller.may_use)

    def _directory(self, request: Request) -> tuple[Callers, FindRoute]:
        """Who may call, and what for, now: a request's content may come a reload later than its head."""
        generation = self.generation
        return generation.callers, functools.partial(_route, request, generation)

    def _admit(self, request: Request, generation: Generation) -> tuple[Caller | None, bytes, bool]:
        """Who calls, the target, and whether it is answered here, of a request that may be answered at all.

        What the facade answers it authenticates itself. Raises ProxyError.
        """
        if request.error is not None:
            raise request.error
        listener: Listener = request.connection.listener
        guard = generation.guards[listener.index]
        caller, target = None, guard.check(request.head)
        is_own = oauth_path(target) is not None
        if not is_own:
            caller, target = generation.callers.identify(request.head, target)
            is_own = target.startswith(admin.PREFIX) or target in (b"/-", b"*")
        if self._overview.is_stopping and not target.startswith(admin.PREFIX):
            raise Stopping("The proxy is stopping; try again in a moment.", retry_after_s=5)
        return caller, target, is_own

    def _check_room(self, caller: Caller) -> None:
        """Raise QueueTimeout where this caller has too many requests at once."""
        if self._in_flight[caller.name] >= MAX_IN_FLIGHT:
            raise QueueTimeout(
                f"The caller {caller.name} has {MAX_IN_FLIGHT} requests at once; ask for less at a time.",
                retry_after_s=2,
            )

    async def _slow_down(self, request: Request) -> None:
        """Make who sent a wrong key wait, and nobody else."""
        address = request.transport.get_extra_info("peername")
        peer = address[0] if isinstance(address, tuple) else ""
        delay_s = self._wrong_keys.delay_s(peer)
        if delay_s:
            self._on_event("wrong_key_slowed_down", {"peer": peer, "delay_s": round(delay_s, 1)})
            await asyncio.sleep(delay_s)

    def _tell_bug(self, bug: Exception) -> None:
        """Bugs of one kind and place are equal; a compiled module may not say the place."""
        frames = traceback.extract_tb(bug.__traceback__)
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        self._on_event("request_failed_by_bug", {"cause": type(bug).__name__ + place, "exc_info": bug})

    def _count_error(self, error: ProxyError, request: Request) -> None:
        exchange = exchange_of(request)
        if exchange is None:
            self._overview.refused[error.code] += 1
            return
        project, api = exchange.project, exchange.api
        project.measures.count_error(error.code, error.message)
        if error.status >= 500 and not isinstance(error, Stopping):
            values = {"project": project.name, "api": api.value, "cause": error.code, "error": error.message}
            self._on_event("request_failed", values)


async def _run(exchange: Exchange) -> bool:
    exchange.attend()
    answers = exchange.project.shared_answers
    return await (tries.run(exchange) if answers is None else sharing.run(exchange, answers))


def _route(request: Request, generation: Generation, caller: Caller | None, target: bytes) -> Route:
    listener: Listener = request.connection.listener
    project, api = named_by_fields(request.head.fields)
    own = generation.owners[listener.index]
    if own is None and listener.project is not None:
        raise UnknownProject(f"The project {listener.project} of this port is no longer configured.")
    return generation.router.route(
        target, own=own, project=project, api=api, may_use=None if caller is None else caller.may_use
    )
