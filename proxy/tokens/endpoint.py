"""The token request on the wire.

Contentsquare's variant of RFC 6749, section 4.4 (client credentials): the request is JSON, not a
form, and the answer names the base URL (``endpoint``) that its token is for. Hides aiohttp's client
and its exceptions, and raises only `TokenFetchError`; what an answer means is `token_answer`'s
business, when to ask is `lease`'s. Redirects are never followed: they would carry the credentials.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy import __version__
from proxy.contentsquare import GRANT_TYPE, ME_PATH, TOKEN_PATH, Api
from proxy.errors import ConnectFailed, TokenFetchError
from proxy.origin import Origin
from proxy.secret import Secret
from proxy.tokens.answer import TokenAnswer, http_date, lease_of, refusal
from proxy.tokens.lease import SYSTEM_CLOCK, Clock, Lease
from proxy.upstream.dns import NameResolver

CONNECT_TIMEOUT_S = 5.0
TOTAL_TIMEOUT_S = 15.0
MAX_CONNECTIONS = 32
"""Token requests at once; more of them wait, without their time-out running."""
MAX_BODY = 1 << 20
"""Bytes of an answer that are read at most."""
TLS_RETRY_S = 30.0
"""A certificate doesn't get better within a second."""

FindProxy = Callable[[Origin], str | None]
"""Names the URL of the HTTP proxy on the way to an origin, None for a direct way.

May raise ConnectFailed for one that can't be used.
"""

_FIELDS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small body needs no coding, and one without can't be a bomb
    "Content-Type": "application/json",
    "User-Agent": f"csq-proxy/{__version__}",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A pair made in Contentsquare's console, for one project or for an account."""

    client_id: str = field(repr=False)
    client_secret: Secret

    def fields(self) -> dict[str, str | int]:
        """The JSON members that identify us (RFC 6749, section 2.3.1). Holds the secret."""
        return {"client_id": self.client_id, "client_secret": self.client_secret.get_secret_value()}

    def private(self) -> tuple[str, str]:
        """The texts that no message may repeat. Holds the secret."""
        return self.client_id, self.client_secret.get_secret_value()


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a token is asked for.

    ``project_id`` goes along with account-level credentials, ``integration_id`` with the enrichment
    scope only (and is needed there); None leaves them out.
    """

    credentials: Credentials
    api: Api
    project_id: int | None = None
    integration_id: int | None = None

    def fields(self) -> dict[str, str | int]:
        """The JSON members (RFC 6749, section 4.4.2, and Contentsquare's own). Holds the secret."""
        members = {**self.credentials.fields(), "grant_type": GRANT_TYPE, "scope": self.api.scope}
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
) -> aiohttp.ClientSession:
    """A session fit for credentials: no cookies, no proxies or .netrc of the environment, time-outs.

    ``ssl_context`` None verifies against the system's store. Call it with a loop running; the caller
    closes it. Each request has a connection of its own: they are rare, and a kept one would be dead
    after a suspend, just when a token is needed most.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            ssl=ssl_context if ssl_context is not None else True,
            resolver=_Resolver(),
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

    def __init__(self) -> None:
        self._resolver = NameResolver()

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
            for found, _, proto, _, address in await self._resolver.addresses(host, port)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        pass


class TokenEndpoint:
    """Contentsquare's authentication endpoint at ``auth_url``, a base URL.

    ``allowed_endpoints`` are the patterns that `token_answer.endpoint_fault` takes. ``clock_skew_s``
    says how far this machine's clock is ahead of the endpoint's, in seconds (negative: behind), by the
    ``Date`` of the last answer that had one; None before. Causes of `TokenFetchError`, for logs and metrics:
    connection_failed, connection_lost, connection_refused, credentials_refused, dns, endpoint_missing,
    endpoint_refused, http_proxy, malformed, oversized, rate_limited, redirected, server_error,
    timeout, tls, unexpected_status.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        auth_url: str,
        *,
        allowed_endpoints: Sequence[str],
        find_proxy: FindProxy = lambda _: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.origin = Origin.parse(auth_url)
        self.clock_skew_s: float | None = None
        self._who = f"the token endpoint {self.origin}"
        self._session = session
        self._allowed = tuple(allowed_endpoints)
        self._find_proxy = find_proxy
        self._clock = clock
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        # By client_id, for a 429 is meant for all its APIs; monotonic and wall: see `proxy.tokens.lease`.
        self._held_until: dict[str, tuple[float, float]] = {}

    def take_over(self, before: TokenEndpoint) -> None:
        """Keep the pauses that another one was asked for, where both ask the same endpoint; it keeps ours."""
        if before.origin == self.origin:
            self._held_until = before._held_until

    async def fetch(self, request: TokenRequest) -> Lease:
        """One token request. Raises `TokenFetchError`, with a message for people and no secret in it."""
        answer = await self._ask(TOKEN_PATH, request.credentials, request.fields())
        return lease_of(
            answer,
            allowed_endpoints=self._allowed,
            scope=request.api.scope,
            project_id=request.project_id,
            private=request.credentials.private(),
        )

    async def me(self, credentials: Credentials) -> Mapping[str, object]:
        """What ``/v1/oauth/me`` says about the credentials. Raises `TokenFetchError`."""
        answer = await self._ask(ME_PATH, credentials, credentials.fields())
        return answer.members()

    async def _ask(
        self, path: str, credentials: Credentials, members: Mapping[str, str | int]
    ) -> TokenAnswer:
        """A 2xx answer, or `TokenFetchError`."""
        answer = await self._answer(path, credentials, members)
        fault = self._refusal(answer, credentials)
        if fault is None:
            return answer
        raise fault

    async def ask_me(self, credentials: Credentials) -> TokenAnswer:
        """What ``/v1/oauth/me`` answers, whatever its status. Raises `TokenFetchError` where it doesn't."""
        answer = await self._answer(ME_PATH, credentials, credentials.fields())
        self._refusal(answer, credentials)
        return answer

    async def _answer(
        self, path: str, credentials: Credentials, members: Mapping[str, str | int]
    ) -> TokenAnswer:
        """An answer of any status. Raises `TokenFetchError` where there is none."""
        self._raise_if_held(credentials.client_id)
        async with self._room:
            try:
                return await self._exchange(path, members)
            except ConnectFailed as error:
                raise TokenFetchError(f"{self._who}: {error}", cause="http_proxy") from None
            # OSError: TimeoutError and ssl.SSLError too. UnicodeError: not even a name.
            except (aiohttp.ClientError, OSError, UnicodeError) as error:
                raise self._failure(error) from None

    def _refusal(self, answer: TokenAnswer, credentials: Credentials) -> TokenFetchError | None:
        """Why it is no good answer; a pause that it asks for is kept from now on."""
        fault = refusal(answer, self._who, credentials.private())
        if fault is not None and fault.cause == "rate_limited" and fault.retry_after_s:
            self._held_until[credentials.client_id] = (
                self._clock.monotonic() + fault.retry_after_s,
                self._clock.time() + fault.retry_after_s,
            )
        return fault

    async def _exchange(self, path: str, members: Mapping[str, str | int]) -> TokenAnswer:
        sent_at, sent_at_wall = self._clock.monotonic(), self._clock.time()
        async with self._session.post(
            f"{self.origin}{path}",
            data=json.dumps(members).encode(),
            headers=_FIELDS,
            allow_redirects=False,
            proxy=self._find_proxy(self.origin),
        ) as response:
            self._measure_skew(response.headers.get("Date"))
            body = await self._read(response.content)
            return TokenAnswer(response.status, response.headers, body, sent_at, sent_at_wall)

    async def _read(self, content: aiohttp.StreamReader) -> bytes:
        body = bytearray()
        async for part in content.iter_any():
            body += part
            if len(body) > MAX_BODY:
                message = f"{self._who} sent more than {MAX_BODY >> 20} MiB; check contentsquare.auth_url"
                raise TokenFetchError(message, cause="oversized")
        return bytes(body)

    def _measure_skew(self, date: str | None) -> None:
        if (theirs := http_date(date)) is not None:
            self.clock_skew_s = self._clock.time() - (theirs + 0.5)  # `Date` cuts the second off

    def _raise_if_held(self, client_id: str) -> None:
        until, until_wall = self._held_until.get(client_id, (-math.inf, -math.inf))
        left_s = min(until - self._clock.monotonic(), until_wall - self._clock.time())
        if left_s > 0:
            message = f"{self._who} asked for a pause (429): too many token requests for these credentials"
            raise TokenFetchError(message, cause="rate_limited", retry_after_s=left_s)
        self._held_until.pop(client_id, None)

    def _failure(self, error: Exception) -> TokenFetchError:
        cause, what = _wire_fault(error)
        retry_after_s = TLS_RETRY_S if cause == "tls" else None
        return TokenFetchError(f"{self._who}: {what}", cause=cause, retry_after_s=retry_after_s)


async def described(me: Awaitable[Mapping[str, object]]) -> frozenset[Api] | None:
    """The APIs that an answer of `TokenEndpoint.me` names; None if it doesn't tell, now or later.

    Scopes that we don't know are passed over. To learn why it doesn't tell, await ``me`` itself.
    Raises `TokenFetchError` where another try may bring an answer.
    """
    try:
        members = await me
    except TokenFetchError as error:
        if error.permanent or error.cause in ("malformed", "oversized"):
            return None
        raise
    return apis_of(members)


def apis_of(members: Mapping[str, object]) -> frozenset[Api] | None:
    """The APIs that a description names: one string, separated by spaces or commas, or a list of strings."""
    value = members.get("scopes", members.get("scope"))
    if isinstance(value, str):
        names: list[object] = list(value.replace(",", " ").split())
    elif isinstance(value, list):
        names = value
    else:
        return None
    return frozenset(api for api in Api if api.scope in names)


_NO_NAME = ("dns", "its name can't be resolved; check DNS, or contentsquare.auth_url")
_WIRE_FAULTS: tuple[tuple[type[Exception], str, str], ...] = (  # the first that fits
    (TimeoutError, "timeout", "no answer in time"),
    (
        ssl.SSLError,
        "tls",
        "its TLS certificate can't be verified; name its authority in contentsquare.ca_file, check the date",
    ),
    (aiohttp.ClientProxyConnectionError, "http_proxy", "the HTTP proxy on the way to it can't be reached"),
    (aiohttp.ClientHttpProxyError, "http_proxy", "the HTTP proxy on the way to it refused to connect"),
    (aiohttp.ClientConnectorDNSError, *_NO_NAME),
    (UnicodeError, *_NO_NAME),
    (ConnectionRefusedError, "connection_refused", "nobody listens there; check contentsquare.auth_url"),
    (aiohttp.ClientConnectorError, "connection_failed", "no connection can be made; check the network"),
    (aiohttp.ClientResponseError, "malformed", "its answer isn't valid HTTP"),
)


def _wire_fault(error: Exception) -> tuple[str, str]:
    """An exception of aiohttp's as cause and words of our own: its text may hold anything."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    for kind, cause, what in _WIRE_FAULTS:
        if isinstance(error, kind) or isinstance(inner, kind):
            return cause, what
    return "connection_lost", "the connection ended before its answer did"
