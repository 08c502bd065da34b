"""The sandbox itself: six HTTP hosts in this process, and the way of each request on them.

Hides listeners, the order of checks (the failures that options ask for, token, concurrency, then the
answer) and how answers are sent. Knows no API's data: the modules beside this one give it their routes.
The limits and codes are those of `proxy.contentsquare`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from email.utils import formatdate
from types import MappingProxyType, TracebackType
from typing import Any, Self

from aiohttp import web

from proxy.contentsquare import CONCURRENT_API_CALL, JWT_EXPIRED, ME_PATH, TOKEN_PATH, Api, api_of
from proxy.sandbox import aids, catalog, enrichments, exports, series, speed, surveys
from proxy.sandbox.options import CLOUDS, DEMO_ACCOUNT, DEMO_PROJECTS, Counters, DemoProject, SandboxOptions
from proxy.sandbox.storage import Storage
from proxy.sandbox.tokens import AuthServer, Claims, Mint, OAuthError
from proxy.sandbox.wire import (
    Call,
    Fault,
    Router,
    forbidden,
    not_found,
    read_form,
    read_json,
    reset,
    send_half_then_reset,
)

SHUTDOWN_TIMEOUT_S = 0.2
"""How long requests in flight may still run at exit; then they are cancelled."""

_LAST_PORT = 65_535
_log = logging.getLogger(__name__)
_Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Sandbox:
    """A simulated Contentsquare: listens from ``async with`` on, until its end.

    As in::

        async with Sandbox(SandboxOptions(token_lifetime_s=5)) as sandbox:
            print(sandbox.auth_url, sandbox.projects["demo-eu"].client_id)

    ``auth_url`` and ``endpoints`` are base URLs, known once the sandbox listens; each of the ``endpoints``
    ("eu", "us", "enrichment-eu", "enrichment-us") is an origin of its own, as is ``storage_url``,
    which has the export files. ``now`` is the clock of tokens, exports and signatures (Unix time,
    seconds). Entering raises OSError if the given port is taken.
    """

    def __init__(
        self, options: SandboxOptions | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        self.options = options or SandboxOptions()
        self.auth_url = ""
        self.storage_url = ""
        self.endpoints: dict[str, str] = {}
        self.projects: Mapping[str, DemoProject] = MappingProxyType({p.name: p for p in DEMO_PROJECTS})
        self.account = DEMO_ACCOUNT
        self.counters = Counters()
        self._now = now
        self._by_id = {project.project_id: project for project in DEMO_PROJECTS}
        self._cloud = {project.project_id: project.cloud for project in DEMO_PROJECTS}
        self._in_flight: Counter[int] = Counter()
        self._token_dice = random.Random(f"token {self.options.seed}")
        self._api_dice = random.Random(f"api {self.options.seed}")
        self._mint = Mint(self.options.token_lifetime_s, now)
        self._auth = AuthServer(
            self._mint,
            self._by_id,
            self.account,
            self.options.token_lifetime_s,
            self._endpoint_of,
            lenient=self.options.lenient,
        )
        self._storage = Storage(now)
        self._routers = self._build_routers()
        self._runners: list[web.ServerRunner] = []

    @property
    def hosts(self) -> list[str]:
        """The hosts of `endpoints`, in the form that a proxy's ``allowed_endpoints`` needs."""
        return [url.partition("://")[2] for url in self.endpoints.values()]

    @property
    def storage_host(self) -> str:
        """The host of the storage, in the form that a proxy's ``allowed_downloads`` needs."""
        return self.storage_url.partition("://")[2]

    async def __aenter__(self) -> Self:
        port = self.options.port
        try:
            self.auth_url = await self._listen(self._answer_auth, port)
            for name in (*CLOUDS, *(f"enrichment-{cloud}" for cloud in CLOUDS)):
                port = _after(port)
                self.endpoints[name] = await self._listen(self._api_host(name), port, or_any_port=True)
            self.storage_url = await self._listen(self._storage.answer, _after(port), or_any_port=True)
        except BaseException:
            await self._close()
            raise
        self._storage.base_url = self.storage_url
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    def revoke_tokens(self) -> None:
        """Every token issued so far is answered with 401 ``JWT_INVALID`` from now on."""
        self._mint.revoke_all()

    def move_project(self, name: str, cloud: str) -> None:
        """Moves a project to another cloud ("eu", "us"): only a new token names the new endpoint."""
        self._cloud[self.projects[name].project_id] = cloud

    async def _listen(self, answer: _Answer, port: int, *, or_any_port: bool = False) -> str:
        """Opens one host and returns its base URL."""
        server = web.Server(
            _guarded(answer),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            read_bufsize=2**18,
        )
        runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        self._runners.append(runner)
        await runner.setup()
        options = self.options
        try:
            await web.TCPSite(runner, options.host, port, ssl_context=options.ssl_context).start()
        except (OSError, OverflowError):
            if not or_any_port or port == 0:
                raise
            await web.TCPSite(runner, options.host, 0, ssl_context=options.ssl_context).start()
        scheme = "https" if options.ssl_context else "http"
        host = options.public_host or options.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"

    async def _close(self) -> None:
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))
        self._runners.clear()

    def _endpoint_of(self, project_id: int, for_enrichment: bool) -> str:
        cloud = self._cloud[project_id]
        return self.endpoints[f"enrichment-{cloud}" if for_enrichment else cloud]

    def _build_routers(self) -> tuple[Router, Router]:
        """The routes of an API host, and those of an Enrichment host."""
        api, enrichment = Router(), Router()
        catalog.add_routes(api)
        series.add_routes(api)
        exports.ExportJobs(self._storage, self._now, self.options.export_duration_s).add_routes(api)
        surveys.add_routes(api)
        speed.SpeedAnalysis().add_routes(api)
        aids.add_routes(api)
        enrichments.add_routes(enrichment)
        return api, enrichment

    # The authentication host

    async def _answer_auth(self, request: web.BaseRequest) -> web.StreamResponse:
        answers = {TOKEN_PATH: self._auth.token, ME_PATH: self._auth.me}
        answer = answers.get(request.path)
        if answer is None:
            raise not_found(f"Cannot {request.method} {request.path}")
        if request.path == TOKEN_PATH and request.method == "POST":
            self.counters.token_requests += 1
            if self._token_dice.random() < self.options.token_failure_rate:
                return self._token_failure()
        if request.method != "POST":
            raise Fault(405, "METHOD_NOT_ALLOWED", "POST only.", fields={"Allow": "POST"})
        response = answer(await self._credentials(request))
        # By the sandbox's own clock, so that a test can give it a skew.
        response.headers["Date"] = formatdate(self._now(), usegmt=True)
        return response

    async def _credentials(self, request: web.BaseRequest) -> Mapping[str, Any]:
        """What a request says in its body. Raises OAuthError."""
        is_form = self.options.lenient and request.content_type == "application/x-www-form-urlencoded"
        if not is_form and request.content_type != "application/json":
            raise OAuthError("invalid_request", "Content-Type must be application/json.")
        try:
            return await (read_form if is_form else read_json)(request)
        except Fault as fault:
            raise OAuthError("invalid_request", fault.message, fault.status) from None

    def _token_failure(self) -> web.Response:
        kind = self._token_dice.choice(("error", "unavailable", "garbage"))
        if kind == "error":
            return Fault(500, "INTERNAL_SERVER_ERROR", "Internal server error").response()
        if kind == "unavailable":
            return Fault(503, "SERVICE_UNAVAILABLE", "Service unavailable").response()
        return web.Response(text="<html><body>Bad gateway</body></html>", content_type="text/html")

    # The API hosts

    def _api_host(self, host: str) -> _Answer:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if host in CLOUDS and request.path in (TOKEN_PATH, ME_PATH):
                # Some programs ask the host of their project's region for tokens.
                return await self._answer_auth(request)
            return await self._answer_api(host, request)

        return answer

    async def _answer_api(self, host: str, request: web.BaseRequest) -> web.StreamResponse:
        self.counters.api_requests += 1
        if self._api_dice.random() < self.options.failure_rate:
            raise Fault(503, "SERVICE_UNAVAILABLE", "Service unavailable")
        resets = self._api_dice.random() < self.options.reset_rate
        in_body = resets and self._api_dice.random() < 0.5
        if resets and not in_body:
            reset(request)
            return web.Response()
        project = self._authorize(host, request)
        with self._slot(project.project_id):
            await asyncio.sleep(self.options.latency_s)
            response = await self._handle(host, Call(request, project, {}, reset_in_body=in_body))
            if in_body and isinstance(response, web.Response):
                return await send_half_then_reset(request, response)
            # The answer is sent here and not by the server, so that the slot is taken until the last byte.
            await response.prepare(request)
            await response.write_eof()
            return response

    async def _handle(self, host: str, call: Call) -> web.StreamResponse:
        """The route's answer, or its fault's: both are sent within the slot."""
        api, enrichment = self._routers
        router = enrichment if host.startswith("enrichment-") else api
        try:
            handler, call.path = router.find(call.request.method, call.request.path)
            return await handler(call)
        except Fault as fault:
            return fault.response()

    @contextlib.contextmanager
    def _slot(self, project_id: int) -> Iterator[None]:
        """Take one of the project's slots. Raises Fault 429 if all are taken."""
        if self._in_flight[project_id] >= self.options.max_concurrency:
            self.counters.concurrency_refusals += 1
            raise Fault(429, CONCURRENT_API_CALL, "Too much concurrent calls")
        self._in_flight[project_id] += 1
        peak = self.counters.peak_concurrency
        peak[project_id] = max(peak.get(project_id, 0), self._in_flight[project_id])
        try:
            yield
        finally:
            self._in_flight[project_id] -= 1

    def _authorize(self, host: str, request: web.BaseRequest) -> DemoProject:
        """The token's project. Raises Fault 401 (wrong token, or wrong host for it) or 403 (wrong scope)."""
        claims = self._claims(request)
        api = api_of(request.raw_path.encode(errors="replace"))
        endpoint = self._endpoint_of(claims.project_id, Api.ENRICHMENT.scope in claims.scopes)
        if endpoint != self.endpoints[host]:
            self.counters.unauthorized += 1
            raise Fault(401, "JWT_INVALID", "Auth token is not valid on this host.")
        if api is not None and api.scope not in claims.scopes:
            raise forbidden(f"The token has no scope {api.scope}.")
        return self._by_id[claims.project_id]

    def _claims(self, request: web.BaseRequest) -> Claims:
        try:
            return self._mint.verify(_bearer_token(request))
        except Fault as fault:
            if fault.code == JWT_EXPIRED:
                self.counters.expired_tokens_seen += 1
            else:
                self.counters.unauthorized += 1
            raise


def _after(port: int) -> int:
    """The next port; 0, for any free one, after the last of all and after 0."""
    return port + 1 if 0 < port < _LAST_PORT else 0


def _bearer_token(request: web.BaseRequest) -> str:
    """The token in the one Authorization field (RFC 6750, section 2.1). Raises Fault 401."""
    given = request.headers.getall("Authorization", [])
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise Fault(401, "JWT_MISSING", "No auth token.", fields={"WWW-Authenticate": "Bearer"})
    return token.strip()


def _guarded(answer: _Answer) -> _Answer:
    """Turns an exception of an answer into a response, without the exception's text."""

    async def guarded(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await answer(request)
        except (Fault, OAuthError) as refusal:
            return refusal.response()
        except ConnectionError:
            # The caller has left; the server notices by itself when it writes this.
            return web.Response()
        except Exception:  # noqa: BLE001 - a bug becomes a log entry and a 500, never a traceback
            _log.exception("sandbox_request_failed")
            if request.writer.output_size:
                reset(request)
                return web.Response()
            return Fault(500, "INTERNAL_SERVER_ERROR", "Internal server error").response()

    return guarded
