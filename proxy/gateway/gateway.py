"""Every request's way through the proxy: the checks in their order, and then on to the cloud.

A request that fails on the way is answered here, and each request is counted and logged here, once. Must not
know sockets or how a configuration came to be.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from proxy.admin.admin import PREFIX, Admin
from proxy.admin.overview import Overview
from proxy.contentsquare import Api, oauth_path
from proxy.errors import ExportFailed, Internal, ProxyError, ProxyLoop, QueueTimeout, Stopping
from proxy.gateway import policy, tries
from proxy.gateway.callers import Caller, WrongKey, WrongKeys
from proxy.gateway.entrance import enter
from proxy.gateway.exchange import Exchange, exchange_of
from proxy.gateway.exports.exports import PREFIX as EXPORTS
from proxy.gateway.exports.exports import Exports
from proxy.gateway.failures import answer_at_stop
from proxy.gateway.generation import Generation
from proxy.gateway.oauth import LocalOAuth, is_for_oauth, refuse
from proxy.gateway.own import OwnPaths, asks_for_page, is_for_exports, is_own, may_be_own
from proxy.gateway.recent import keep
from proxy.gateway.request_log import is_probe, log_request
from proxy.gateway.sharing import sharing
from proxy.gateway.stalls import StallWatch
from proxy.logs import OnEvent
from proxy.projects import Project
from proxy.projects.measures import CUT
from proxy.server.answer import write_error
from proxy.server.facts import Cut
from proxy.server.request import Request

MAX_IN_FLIGHT = 256
"""Requests of one caller at once: most of them wait for a slot, and each takes a connection."""


class Gateway:
    """Answers callers' requests, each by the `generation` at its start.

    ``overview`` has the values that ``/-/`` shows, and ``requests`` gives all that are being answered.
    ``quit_`` ends the process soon; None where a caller can't ask for that. ``on_event`` is called with
    ``loop_detected``, ``request_failed``, ``request_failed_by_bug`` and ``wrong_key_slowed_down``.
    """

    generation: Generation

    def __init__(
        self,
        overview: Overview,
        requests: Callable[[], Iterable[Request]],
        quit_: Callable[[], None] | None,
        on_event: OnEvent,
    ) -> None:
        self._overview = overview
        self._recent = overview.recent
        self._on_event = on_event
        self._wrong_keys = WrongKeys()
        oauth = LocalOAuth(lambda: self.generation)
        self._in_flight: Counter[str] = Counter()
        self._requests = requests
        self._stalls = StallWatch(requests, lambda: self.generation.settings.server)
        self._exports = Exports(self._stalls, overview.recent)
        self._own = OwnPaths(Admin(overview), self._exports, oauth, quit_)

    def close(self) -> None:
        """Forget what is kept between requests. No request may be running."""
        self._exports.close()

    def end_requests(self) -> bool:
        """Answer requests that wait with PROXY_STOPPING, cut begun answers; whether there were requests."""
        # Requests that wait come first: none of them may be sent in the slot of another one that ends.
        requests = sorted(self._requests(), key=_is_under_way)
        for request in requests:
            if not _is_delivered(request):
                request.facts.is_stopped = True
                exchange = exchange_of(request)
                if exchange is None or not exchange.stop(self._stopped(request)):
                    request.connection.cancel()
        return bool(requests)

    def _stopped(self, request: Request) -> Stopping:
        """The answer to a request that ends as the proxy stops; if it has begun, note why it is cut."""
        if request.head_sent:
            request.facts.cut = Cut("the proxy stopped before its end", "proxy")
        return answer_at_stop(exchange_of(request))

    # The two engines (see `proxy.gateway.exchange`)

    def try_now(self, request: Request) -> bool:
        """Send a request that has to wait for nothing but the cloud; False: `run` must answer it."""
        if request.error is not None or not request.body.complete:
            return False
        request.facts.began_at = time.perf_counter()  # uvloop's own clock has whole milliseconds
        generation = self.generation
        try:
            caller, target, own = self._checked(request, generation)
            connection = request.connection
            if own or not (connection.is_known or connection.admit(whole=caller is None)):
                return False
            exchange = self._new_exchange(request, generation, caller, target)
            answers = exchange.project.shared_answers
            return exchange.try_now() if answers is None else sharing.try_now(exchange, answers)
        except ProxyError as refusal:  # `run` answers it, so that no check is made twice
            request.facts.refusal = refusal.with_traceback(None)
            return False
        except Exception:  # noqa: BLE001 - `run` meets the same error again and answers it
            return False

    def _on_exchange_ended(self, exchange: Exchange) -> None:
        """A request that `try_now` sent is over: it was answered or cut, or its caller has left."""
        request = exchange.request
        try:
            self._count_and_log(request, exchange)
        except Exception as exc:  # noqa: BLE001 - the event loop is the caller, and would only print a bug
            self._report_bug(exc)
        request.connection.done(request, exchange.keep)

    async def run(self, request: Request) -> bool:
        """Answer a request, or go on after `try_now`; whether the connection can be kept.

        Raises nothing but CancelledError: the caller has left.
        """
        try:
            try:
                return await self._answer(request)
            except asyncio.CancelledError:
                if not request.facts.is_stopped:
                    raise
                failure: Exception = self._stopped(request)
            except Exception as exc:  # noqa: BLE001 - the one place where a bug in a request is met
                # A traceback leads back to this frame: the request would wait for the garbage collector.
                failure = exc.with_traceback(None) if isinstance(exc, ProxyError) else exc
            # Not above: a compiled coroutine that waits in `except` leaves its exception to the whole thread.
            return await self._answer_failure(request, failure)
        finally:
            self._count_and_log(request, exchange_of(request))

    async def _answer(self, request: Request) -> bool:
        exchange = exchange_of(request)
        if exchange is None or not exchange.is_counted:  # `try_now` didn't get so far
            request.facts.began_at = request.facts.began_at or time.perf_counter()
            generation = self.generation
            caller, target, own = self._checked(request, generation)
            if not own or is_for_exports(target):
                await enter(request, generation, caller)
            if generation is not self.generation:  # a reload may have closed what the request would use
                return await self._answer(request)
            if own:
                return await self._own.answer(request, generation, caller, target)
            exchange = self._new_exchange(request, generation, caller, target)
        exchange.attend()
        if request.facts.refusal is not None:  # it got no slot in time
            raise request.facts.refusal
        answers = exchange.project.shared_answers
        if answers is None:
            return await tries.run(exchange)
        return await sharing.run(exchange, answers)

    # Before the cloud

    def _checked(self, request: Request, generation: Generation) -> tuple[Caller | None, bytes, bool]:
        """The caller, the target without a key in it, and whether the proxy answers the request itself.

        The caller is None where no callers are defined, for ``/`` in a browser, and for OAuth's paths, where
        `LocalOAuth` identifies it. Raises ProxyError for a request that must not be answered.
        """
        if (refusal := request.error or request.facts.refusal) is not None:
            raise refusal
        guard = generation.guards[request.connection.listener.index]
        head = request.head
        caller, target = None, guard.check(head)
        may_own = may_be_own(target)
        own = may_own and (oauth_path(target) is not None or asks_for_page(head, target))
        if not own:
            caller, target = generation.callers.identify(head, target)
            if caller is not None:
                request.facts.caller = caller.name
            own = may_own and is_own(target)
        if self._overview.is_stopping and (not target.startswith(PREFIX) or target.startswith(EXPORTS)):
            raise Stopping("The proxy is stopping; try again in a moment.", retry_after_s=5)
        return caller, target, own

    def _new_exchange(
        self, request: Request, generation: Generation, caller: Caller | None, target: bytes
    ) -> Exchange:
        """The exchange of a request that may be forwarded; it counts as running from now on.

        Raises ProxyError for a request that may not.
        """
        head = request.head
        project, found, target = generation.route(head, request.connection.listener, caller, target)
        exchange = Exchange(
            request,
            project,
            project.apis[0] if found is None else found,
            target,
            generation.outward.upstreams,
            self._stalls,
            generation.queue_timeout_s,
            self._on_exchange_ended,
        )
        request.exchange = exchange
        policy.check_secrets(head, target)
        policy.check(head, target, project, caller, exchange.changes)
        if caller is not None:
            self._check_in_flight(caller)
            self._in_flight[caller.name] += 1
        project.requests[exchange.api] += 1
        project.running += 1
        exchange.is_counted = True
        return exchange

    def _check_in_flight(self, caller: Caller) -> None:
        """Raise QueueTimeout where this caller has too many requests at once."""
        if self._in_flight[caller.name] >= MAX_IN_FLIGHT:
            raise QueueTimeout(
                f"This caller has {MAX_IN_FLIGHT} requests at once; send fewer at a time.", retry_after_s=2
            )

    # After the answer

    def _count_and_log(self, request: Request, exchange: Exchange | None) -> None:
        """A request is over; ``exchange`` is None for a request that was not to be forwarded."""
        took_s = time.perf_counter() - request.facts.began_at
        if exchange is not None:
            if exchange.recorder is not None:
                exchange.recorder.on_over()
            project = exchange.project
            if exchange.is_counted:
                project.running -= 1
                if request.facts.caller is not None:
                    self._in_flight[request.facts.caller] -= 1
            else:
                project.measures.refused += 1
            project.measures.count_request(exchange.api, request, took_s)
        elif request.facts.cut is not None:
            self._count_cut_export(request, request.facts.cut)
        log_request(request, took_s)
        if self._recent.is_on:
            keep(self._recent, request, exchange, took_s)
        # These refer to the request, and it to them: free all without the collector.
        request.exchange = None
        request.facts.refusal = None

    def _count_cut_export(self, request: Request, cut: Cut) -> None:
        """An answer of the proxy's own was cut, which counts for a project if it was an export."""
        project = self._project_of(request)
        if project is not None and _api_of(request) is not None:
            project.measures.count_failed_export(CUT, cut)

    async def _answer_failure(self, request: Request, failure: Exception) -> bool:
        """Answer a request that failed; whether the connection can be kept."""
        if isinstance(failure, WrongKey):
            await self._slow_down(request)
        if isinstance(failure, ProxyError):
            error = failure
            self._count_error(error, request)
        else:
            error = Internal("The proxy failed; its log says more.")
            self._report_bug(failure)
        if request.head_sent:
            request.facts.cut = request.facts.cut or Cut(error.message.rstrip("."), "proxy")
            request.connection.abort()
            return False
        if is_for_oauth(request.head.target):
            return refuse(request, error)
        return write_error(request, error)

    async def _slow_down(self, request: Request) -> None:
        """Delay the answer to a wrong key."""
        address = request.transport.get_extra_info("peername")
        peer = address[0] if isinstance(address, tuple) else ""
        delay_s = self._wrong_keys.delay_s(peer)
        if delay_s:
            self._on_event("wrong_key_slowed_down", {"peer": peer, "delay_s": round(delay_s, 1)})
            await asyncio.sleep(delay_s)

    def _count_error(self, error: ProxyError, request: Request) -> None:
        exchange = exchange_of(request)
        if isinstance(error, ProxyLoop):
            self._on_event("loop_detected", {"error": error.message})
        if exchange is None and request.facts.project is None:
            if not is_probe(request, error.status):
                self._overview.refusals.add(error.code)
            return
        project = self._project_of(request) if exchange is None else exchange.project
        if project is None:
            return
        if exchange is None and error.status < 500:
            # Not kept among the last errors: "not ready", say, for which a caller may ask each second.
            project.measures.errors[error.code] += 1
            return
        if isinstance(error, ExportFailed):
            project.measures.count_failed_export(error.code)
        project.measures.count_error(error.code, error.message, error.proxy_status)
        if error.status >= 500 and not isinstance(error, Stopping | ProxyLoop):
            api = _api_of(request)
            of_api = {} if api is None else {"api": api.value}
            values = {"project": project.name, **of_api, "cause": error.code, "error": error.message}
            self._on_event("request_failed", values)

    def _project_of(self, request: Request) -> Project | None:
        """The project of a request that isn't forwarded: of an export, or of ``/v1/oauth/me``."""
        name = request.facts.project
        return next((one for one in self._overview.projects() if one.name == name), None)

    def _report_bug(self, bug: Exception) -> None:
        self._on_event("request_failed_by_bug", {"cause": _kind_of(bug), "exc_info": bug})


def _kind_of(bug: Exception) -> str:
    """Bugs of one kind and place are reported as one; a compiled module may not tell the place."""
    frames = traceback.extract_tb(bug.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(bug).__name__ + place


def _api_of(request: Request) -> Api | None:
    """The API of a project's request: for an export, Data Export; None for ``/v1/oauth/me``."""
    if (exchange := exchange_of(request)) is not None:
        return exchange.api
    return None if is_for_oauth(request.head.target) else Api.DATA_EXPORT


def _is_under_way(request: Request) -> bool:
    exchange = exchange_of(request)
    return exchange is not None and exchange.attempt is not None


def _is_delivered(request: Request) -> bool:
    """Whether the answer is complete, though the request's coroutine has not gone on yet."""
    exchange = exchange_of(request)
    attempt = None if exchange is None else exchange.attempt
    return attempt is not None and attempt.is_over and attempt.is_final
