"""The token request on the wire.

Contentsquare's variant of RFC 6749, section 4.4 (client credentials): the request is JSON, not a
form, and the answer names the base URL (``endpoint``) that its token is for. Hides aiohttp's client
and its exceptions, and raises only `TokenFetchError`. `proxy.tokens.answer` decides what an answer
means, `proxy.tokens.schedule` when a request is due. Redirects are never followed: they would carry
the credentials elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy import __version__
from proxy.blocking import NoThread, in_thread
from proxy.config.settings import Credentials
from proxy.contentsquare import GRANT_TYPE, ME_PATH, TOKEN_PATH, Api
from proxy.errors import ConnectFailed, LoopDetected, TokenFetchError
from proxy.machine import hidden_fault
from proxy.origin import Origin
from proxy.tokens.answer import TokenAnswer, apis_of, failure_of, http_date, lease_of
from proxy.tokens.breaker import Breaker, NamedBy, Outage, always
from proxy.tokens.clock import SYSTEM_CLOCK, Clock
from proxy.tokens.lease import Lease
from proxy.upstream.dns import Addresses, NameResolver
from proxy.upstream.http_proxy import HttpProxy
from proxy.upstream.loop import VIA_NAME
from proxy.upstream.tls import certificate_fault, tls_context

DNS_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
TOTAL_TIMEOUT_S = 15.0
MAX_CONNECTIONS = 32
"""Token requests at once. The others wait, and their time-out doesn't run meanwhile."""
MAX_BODY = 1 << 20
"""The most bytes that are read of an answer."""
TLS_RETRY_S = 30.0
"""The time from a TLS failure to the next try: a certificate is not replaced within a second."""

T = TypeVar("T")

FindProxy = Callable[[Origin], str | None]
"""Returns the URL of the HTTP proxy on the way to an origin; None for a direct connection.

May raise ConnectFailed if the HTTP proxy can't be used.
"""

_FIELDS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small body needs no coding, and an uncoded body can't be a bomb
    "Content-Type": "application/json",
    "User-Agent": f"csq-proxy/{__version__}",
    "Via": f"1.1 {VIA_NAME.decode()}",  # so that we recognise the request if it comes back
}


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """The contents of one token request.

    ``project_id`` goes with account-level credentials; ``integration_id`` goes with the enrichment
    scope only, which needs it. None leaves them out.
    """

    credentials: Credentials = field(repr=False)
    api: Api
    project_id: int | None = None
    integration_id: int | None = None

    def fields(self) -> dict[str, str | int]:
        """The JSON members (RFC 6749, section 4.4.2, and Contentsquare's own). Holds the secret."""
        members = {**_identity(self.credentials), "grant_type": GRANT_TYPE, "scope": self.api.scope}
        if self.project_id is not None:
            members["project_id"] = self.project_id
        if self.integration_id is not None and self.api is Api.ENRICHMENT:
            members["integration_id"] = self.integration_id
        return members


def make_session(
    ssl_context: ssl.SSLContext | None = None,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    total_timeout_s: float = TOTAL_TIMEOUT_S,
    resolver: NameResolver | None = None,
) -> aiohttp.ClientSession:
    """A session fit for credentials: no cookies, no proxies or .netrc of the environment, time-outs.

    ``ssl_context`` None verifies against the system's store. Needs a running loop; the caller closes the
    session. Each request has a connection of its own: requests are rare, and a connection that is kept
    would be dead after a suspend, just when a token is needed most.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=ssl_context if ssl_context is not None else tls_context(),
            resolver=_Resolver(resolver or NameResolver()),
            use_dns_cache=False,  # lookups are shared already
            limit=MAX_CONNECTIONS,
            force_close=True,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=total_timeout_s, sock_connect=connect_timeout_s),
        auto_decompress=False,
        trust_env=False,
    )


class _Resolver(AbstractResolver):
    """`NameResolver`, with the interface that aiohttp wants."""

    def __init__(self, resolver: NameResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=found,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found, _, proto, _, address in await self._look_up(host, port)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def _look_up(self, host: str, port: int) -> Addresses:
        try:
            async with asyncio.timeout(DNS_TIMEOUT_S):
                return await self._resolver.addresses(host, port)
        except TimeoutError:  # to aiohttp, it would be a time-out of the endpoint's
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None

    async def close(self) -> None:
        pass


class TokenEndpoint:
    """Contentsquare's authentication endpoint at ``auth_url``, a base URL.

    ``allowed_endpoints`` are patterns of `proxy.tokens.answer.endpoint_fault`; the session's context trusts
    ``ca_file``, which messages name. With a ``breaker``, `fetch`
    and `me_members` wait for their turn, which may take as long as an outage. ``clock_skew_s`` says how
    far this machine's clock is ahead of the endpoint's, in seconds (negative: behind), by the last
    ``Date`` of an answer; None before. Causes of `TokenFetchError`, for logs and metrics:
    connection_failed, connection_lost, connection_refused, credentials_refused, dns, endpoint_missing,
    endpoint_refused, forbidden, http_proxy, loop, malformed, no_descriptors, no_memory, no_network, no_port,
    oversized, rate_limited, redirected, server_error, timeout, tls, unexpected_status.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        auth_url: str,
        *,
        allowed_endpoints: Sequence[str],
        find_proxy: FindProxy = lambda _: None,
        ca_file: Path | None = None,
        breaker: Breaker | None = None,
        clock: Clock = SYSTEM_CLOCK,
        resolver: NameResolver | None = None,
    ) -> None:
        self.origin = Origin.parse(auth_url)
        self.clock_skew_s: float | None = None
        self._name = f"the token endpoint {self.origin}"
        self._session = session
        self._allowed = tuple(allowed_endpoints)
        self._find_proxy = find_proxy
        self._ca_file = ca_file
        self._breaker = breaker
        self._clock = clock
        self._resolver = resolver or NameResolver()
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        # By client_id, because a 429 is meant for all its APIs; by both clocks: see `proxy.tokens.clock`.
        self._paused_until: dict[str, tuple[float, float]] = {}

    def share_pauses(self, before: TokenEndpoint) -> None:
        """Share the pauses and the breaker of an earlier object, if both are for the same origin."""
        if before.origin == self.origin:
            self._paused_until, self._breaker = before._paused_until, before._breaker

    def outage(self) -> Outage | None:
        """The outage of the endpoint; None while its breaker is closed, or without one."""
        return None if self._breaker is None else self._breaker.outage

    def hurry(self, credentials: Credentials) -> None:
        """A person wants a token: during an outage, the endpoint is tried with these credentials, soon."""
        if self._breaker is not None:
            self._breaker.hurry(credentials.client_id)

    async def fetch(
        self,
        request: TokenRequest,
        *,
        new_for: NamedBy | None = None,
        is_wanted: Callable[[], bool] = always,
    ) -> Lease:
        """Make a token request. Raises `TokenFetchError`, with a message for people and no secret in it.

        ``new_for`` and ``is_wanted`` are those of `Breaker.run`, which may raise `TokenNotWanted`.
        """
        return await self._in_turn(
            request.credentials, lambda: self._fetch(request), new_for=new_for, is_wanted=is_wanted
        )

    async def me_members(self, credentials: Credentials) -> Mapping[str, object]:
        """The JSON members of a 2xx answer of ``/v1/oauth/me``. Raises `TokenFetchError`."""
        return await self._in_turn(credentials, lambda: self._me_members(credentials))

    async def me_answer(self, credentials: Credentials) -> TokenAnswer:
        """The answer of ``/v1/oauth/me``, of any status. Raises `TokenFetchError` if none comes.

        A caller waits for it: during an outage nothing is sent.
        """
        if (outage := self.outage()) is not None:
            raise outage.error
        answer = await self._answer(ME_PATH, credentials, _identity(credentials))
        if answer.status < 200:
            raise TokenFetchError(f"{self._name}: its answer isn't valid HTTP", cause="malformed")
        error = self._error_of(answer, credentials)  # a 429 is obeyed
        if error is not None and error.cause == "loop":
            raise error
        secret = private_texts(credentials)[1]
        try:
            repeats = await in_thread(lambda: answer.repeats(secret))
        except NoThread:
            repeats = answer.repeats(secret)
        if repeats:
            raise TokenFetchError(
                f"the answer of {self._name} repeats the secret, so it is withheld", cause="malformed"
            )
        return answer

    async def _in_turn(
        self,
        credentials: Credentials,
        call: Callable[[], Awaitable[T]],
        *,
        new_for: NamedBy | None = None,
        is_wanted: Callable[[], bool] = always,
    ) -> T:
        self._raise_if_paused(credentials.client_id)
        if self._breaker is None:
            return await call()
        return await self._breaker.run(credentials.client_id, call, new_for=new_for, is_wanted=is_wanted)

    async def _fetch(self, request: TokenRequest) -> Lease:
        answer = await self._good_answer(TOKEN_PATH, request.credentials, request.fields())
        return lease_of(
            answer,
            allowed_endpoints=self._allowed,
            scope=request.api.scope,
            project_id=request.project_id,
            private=private_texts(request.credentials),
        )

    async def _me_members(self, credentials: Credentials) -> Mapping[str, object]:
        answer = await self._good_answer(ME_PATH, credentials, _identity(credentials))
        return answer.members()

    async def _good_answer(
        self, path: str, credentials: Credentials, members: Mapping[str, str | int]
    ) -> TokenAnswer:
        """A 2xx answer. Raises `TokenFetchError`."""
        answer = await self._answer(path, credentials, members)
        error = self._error_of(answer, credentials)
        if error is None:
            return answer
        raise error

    async def _answer(
        self, path: str, credentials: Credentials, members: Mapping[str, str | int]
    ) -> TokenAnswer:
        """An answer of any status. Raises `TokenFetchError` if none comes."""
        self._raise_if_paused(credentials.client_id)
        async with self._room:
            http_proxy = self._http_proxy()
            try:
                return await self._exchange(path, members, http_proxy)
            except LoopDetected as error:
                raise TokenFetchError(f"{self._name}: {error}", cause="loop") from None
            # OSError includes TimeoutError and ssl.SSLError. UnicodeError: the host can't be a name.
            except (aiohttp.ClientError, OSError, UnicodeError) as error:
                raise self._failure(error, http_proxy) from None

    def _http_proxy(self) -> HttpProxy | None:
        """The HTTP proxy on the way, None for a direct connection. Raises `TokenFetchError`."""
        try:
            url = self._find_proxy(self.origin)
            return None if url is None else HttpProxy.parse(url)
        except ConnectFailed as error:
            raise TokenFetchError(f"{self._name}: {error}", cause="http_proxy") from None

    def _error_of(self, answer: TokenAnswer, credentials: Credentials) -> TokenFetchError | None:
        """The error that the answer means, None for 2xx; the ``Retry-After`` of a 429 begins a pause."""
        error = failure_of(answer, self._name, private_texts(credentials))
        if error is not None and error.cause == "rate_limited" and error.retry_after_s:
            self._paused_until[credentials.client_id] = (
                self._clock.monotonic() + error.retry_after_s,
                self._clock.time() + error.retry_after_s,
            )
        return error

    async def _exchange(
        self, path: str, members: Mapping[str, str | int], http_proxy: HttpProxy | None
    ) -> TokenAnswer:
        to = http_proxy or self.origin
        self._resolver.refuse_own(to.host, to.port)
        proxy_fields = {}
        if http_proxy is not None and http_proxy.authorization is not None:
            proxy_fields["Proxy-Authorization"] = http_proxy.authorization.decode("ascii")
        sent_at, sent_at_wall = self._clock.monotonic(), self._clock.time()
        async with self._session.post(
            f"{self.origin}{path}",
            data=json.dumps(members).encode(),
            headers=_FIELDS,
            allow_redirects=False,
            proxy=None if http_proxy is None else http_proxy.url,
            proxy_headers=proxy_fields,
        ) as response:
            self._measure_skew(response.headers.get("Date"))
            body = await self._read(response.content)
            return TokenAnswer(response.status, response.headers, body, sent_at, sent_at_wall)

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        body = bytearray()
        async for part in content.iter_any():
            body += part
            if len(body) > MAX_BODY:
                message = f"{self._name} sent more than {MAX_BODY >> 20} MiB; check contentsquare.auth_url"
                raise TokenFetchError(message, cause="oversized")
        return bytes(body)

    def _measure_skew(self, date: str | None) -> None:
        if (theirs := http_date(date)) is not None:
            self.clock_skew_s = self._clock.time() - (theirs + 0.5)  # `Date` is cut to whole seconds

    def _raise_if_paused(self, client_id: str) -> None:
        until, until_wall = self._paused_until.get(client_id, (-math.inf, -math.inf))
        left_s = min(until - self._clock.monotonic(), until_wall - self._clock.time())
        if left_s > 0:
            message = f"{self._name} asked for a pause (429): too many token requests for these credentials"
            raise TokenFetchError(message, cause="rate_limited", retry_after_s=left_s)
        self._paused_until.pop(client_id, None)

    def _failure(self, error: Exception, http_proxy: HttpProxy | None) -> TokenFetchError:
        way = self._name if http_proxy is None else f"{self._name}, through {http_proxy.place}"
        if (fault := hidden_fault(error)) is not None:
            return TokenFetchError(f"{way}: {fault.words}", cause=fault.cause)
        cause, what = _wire_fault(error)
        if http_proxy is not None:
            if cause == "dns":  # the HTTP proxy looks up the cloud's name
                cause, what = "http_proxy", http_proxy.unresolved()
            elif isinstance(error, aiohttp.ClientProxyConnectionError):
                what = http_proxy.unreachable()
            elif isinstance(error, aiohttp.ClientHttpProxyError):
                offers = [] if error.headers is None else error.headers.getall("Proxy-Authenticate", [])
                what = http_proxy.refusal(error.status, offers)
        refusal = getattr(error, "certificate_error", error)  # aiohttp has it inside its own
        if isinstance(refusal, ssl.SSLCertVerificationError):
            what = f"its certificate can't be verified: {certificate_fault(refusal, self._ca_file)}"
        retry_after_s = TLS_RETRY_S if cause == "tls" else None
        named = self._name if cause == "http_proxy" else way
        return TokenFetchError(f"{named}: {what}", cause=cause, retry_after_s=retry_after_s)


async def apis_named(members: Awaitable[Mapping[str, object]]) -> frozenset[Api] | None:
    """The APIs that an answer of `TokenEndpoint.me_members` names; None if no try can bring them.

    Raises `TokenFetchError` if a later try may bring them, and where the credentials are refused (401): other
    refusals may be of this question alone.
    """
    try:
        return apis_of(await members)
    except TokenFetchError as error:
        is_refused = error.permanent and error.status != 401
        if is_refused or error.cause in ("malformed", "oversized"):
            return None
        raise


def _identity(credentials: Credentials) -> dict[str, str | int]:
    """The JSON members that identify us (RFC 6749, section 2.3.1). Holds the secret."""
    client_id, client_secret = private_texts(credentials)
    return {"client_id": client_id, "client_secret": client_secret}


def private_texts(credentials: Credentials) -> tuple[str, str]:
    """The texts that no message may repeat. Holds the secret."""
    return credentials.client_id, credentials.client_secret.get_secret_value()


_NO_NAME = ("dns", "its name can't be resolved; check DNS, or contentsquare.auth_url")
_WIRE_FAULTS: tuple[tuple[type[Exception], str, str], ...] = (  # the first match counts
    (aiohttp.ConnectionTimeoutError, "timeout", "no connection in time; check the network"),
    (TimeoutError, "timeout", "no answer in time"),
    (ssl.SSLError, "tls", "TLS with it failed"),
    (aiohttp.ClientProxyConnectionError, "http_proxy", "the HTTP proxy on the way to it can't be reached"),
    (aiohttp.ClientHttpProxyError, "http_proxy", "the HTTP proxy on the way to it refused to connect"),
    (aiohttp.ClientConnectorDNSError, *_NO_NAME),
    (UnicodeError, *_NO_NAME),
    (ConnectionRefusedError, "connection_refused", "no program listens there; check contentsquare.auth_url"),
    (aiohttp.ClientConnectorError, "connection_failed", "no connection can be made; check the network"),
    (aiohttp.ClientResponseError, "malformed", "its answer isn't valid HTTP"),
)


def _wire_fault(error: Exception) -> tuple[str, str]:
    """The cause and our own words for an exception of aiohttp, whose text may hold anything."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    for kind, cause, what in _WIRE_FAULTS:
        if isinstance(error, kind) or isinstance(inner, kind):
            return cause, what
    return "connection_lost", "the connection ended before its answer did"
