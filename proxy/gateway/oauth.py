"""The proxy's own ``/v1/oauth/token`` and ``/v1/oauth/me``, for programs that fetch their own tokens.

A token request gets a placeholder, with this proxy as its ``endpoint``: the caller's own key, or a
constant where no callers are defined. So the program's bearer token is a key, or of no value; the real
token and secret never leave the proxy. Hides both formats of the request (JSON, as the vendor's; a form,
as RFC 6749, section 4.4.2) and the errors of section 5.2.
Must not know leases.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl

from proxy.contentsquare import GRANT_TYPE, TOKEN_LIFETIME_S, TOKEN_PATH, Api, oauth_path
from proxy.errors import (
    CallerUnknown,
    MethodRefused,
    ProxyError,
    ProxyLoop,
    RequestTimeout,
    TokenFetchError,
    TokenUnavailable,
    UnknownProject,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.gateway.callers import WrongKey, sent_keys
from proxy.gateway.generation import Generation
from proxy.gateway.guard import authority_of
from proxy.gateway.route import Route
from proxy.projects import Project
from proxy.server.answer import send_answer, write_error, write_json
from proxy.server.request import Request

PLACEHOLDER = "csq-proxy-local"
"""The access_token where no callers are defined; it is never checked."""
MAX_CONTENT_BYTES = 64 * 1024
CONTENT_TIMEOUT_S = 10.0
MOST_ME = 4
"""Requests for ``/v1/oauth/me`` at once: they go to the token endpoint, and must not delay its tokens."""

_TOKEN = TOKEN_PATH.encode()
_SCOPES = {api.scope for api in Api}
_NO_CACHE = ((b"Pragma", b"no-cache"),)  # RFC 6749, section 5.1; Cache-Control is always there


class _Refused(ProxyError):
    """A request that can't be granted; ``error`` is a code of RFC 6749, section 5.2."""

    code, status, proxy_status = "PROXY_BAD_REQUEST", 400, "http_request_error"

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


@dataclass(frozen=True, slots=True)
class _OAuthRequest:
    """A request as it came: its content, and the target without a key, split at the path of OAuth."""

    members: Mapping[str, object]
    prefix: bytes
    path: bytes
    query: bytes

    @property
    def target(self) -> bytes:
        return self.prefix + self.path + self.query


class LocalOAuth:
    """Answers requests for the paths that `oauth_path` finds, below any prefix.

    Identifies the caller itself, because these programs send their key as ``client_secret``;
    ``slow_down`` delays the answer to a wrong key. ``generation`` gives the current one: a reload
    may come between a request's head and its content.
    """

    def __init__(
        self, generation: Callable[[], Generation], slow_down: Callable[[Request], Awaitable[None]]
    ) -> None:
        self._generation = generation
        self._slow_down = slow_down
        self._room = asyncio.Semaphore(MOST_ME)

    async def answer(self, request: Request, target: bytes) -> bool:
        """Answer a request; whether the connection can be kept. Raises ProxyError."""
        try:
            return await self._answer(request, target)
        except (_Refused, CallerUnknown) as error:
            if isinstance(error, WrongKey):
                await self._slow_down(request)
            return _refuse(request, error)

    async def _answer(self, request: Request, target: bytes) -> bool:
        if request.head.method != b"POST":
            raise MethodRefused("Use POST here.", fields=((b"Allow", b"POST"),))
        keys, target = sent_keys(request.head, target)
        path = cast(re.Match[bytes], oauth_path(target))
        members = _members(request, await _content(request))
        asked = _OAuthRequest(members, target[: path.start(1)], path[1], target[path.end(1) :])
        generation = self._generation()
        caller, key = generation.callers.of_keys([*_secrets(members), *keys])
        request.connection.admit(whole=False)
        route = generation.route(request.head, request.connection.listener, caller, asked.target)
        if route.target.partition(b"?")[0] != asked.path:
            raise UnknownProject(f"No project has that path; call /PROJECT{asked.path.decode()}.")
        if asked.path == _TOKEN:
            return _grant(request, asked, route, key)
        return await self._describe(request, route.project)

    async def _describe(self, request: Request, project: Project) -> bool:
        """Contentsquare's description of the real credentials; the caller's own aren't forwarded."""
        project.running += 1  # so that a reload doesn't close what this request uses
        try:
            async with self._room:
                answer = await project.me_answer()
        except TokenFetchError as error:
            raise _unavailable(error) from None
        finally:
            project.running -= 1
        content_type = answer.fields.get("Content-Type", "application/octet-stream").encode("latin-1")
        coding = answer.fields.get("Content-Encoding")
        fields = () if coding is None else ((b"Content-Encoding", coding.encode("latin-1")),)
        return await send_answer(
            request, answer.status, answer.body, content_type=content_type, fields=fields
        )


def _refuse(request: Request, error: _Refused | CallerUnknown) -> bool:
    """Answer with an error in the form of RFC 6749, section 5.2, and of Contentsquare."""
    code = error.error if isinstance(error, _Refused) else "invalid_client"
    members = {"error": code, "error_description": error.message}
    return write_error(request, error, members=members, fields=_NO_CACHE)


def _grant(request: Request, asked: _OAuthRequest, route: Route, key: str | None) -> bool:
    """The placeholder that answers a token request. Raises `_Refused`."""
    members, project = asked.members, route.project
    if members.get("grant_type") != GRANT_TYPE:
        raise _Refused("unsupported_grant_type", f"grant_type must be {GRANT_TYPE}.")
    scope = _scope(members.get("scope"))
    number = project.contentsquare_id
    if number is not None and str(members.get("project_id") or number) != str(number):
        raise _Refused(
            "invalid_request", f"project_id: {project.name} is the project {number}; leave it out."
        )
    answer: dict[str, object] = {
        "access_token": key or PLACEHOLDER,
        "token_type": "bearer",
        "expires_in": TOKEN_LIFETIME_S,
        "scope": scope,
        "endpoint": _endpoint(request, asked.prefix, project),
    }
    if number is not None:
        answer["project_id"] = number
    return write_json(request, 200, answer, fields=_NO_CACHE)


def _scope(value: object) -> str:
    scopes = value.split() if isinstance(value, str) else []
    unknown = [scope for scope in scopes if scope not in _SCOPES]
    if not scopes or unknown:
        raise _Refused("invalid_scope", f"scope is needed: one or more of {', '.join(sorted(_SCOPES))}.")
    if Api.ENRICHMENT.scope in scopes and len(set(scopes)) > 1:
        raise _Refused("invalid_scope", "enrichment can't be combined with another scope: ask for it alone.")
    return " ".join(scopes)


def _endpoint(request: Request, prefix: bytes, project: Project) -> str:
    """The base URL of that project at this proxy, with the host name that the caller used.

    A project that X-CSQ-Project chose gets a path, because a program may not send the field again.
    """
    listener = request.connection.listener
    scheme = "https" if listener.url.startswith("https:") else "http"
    authority = authority_of(request.head)
    host = f"localhost:{listener.port}" if authority is None else authority.decode("latin-1")
    if not prefix and listener.project is None and request.field(b"x-csq-project") is not None:
        prefix = f"/{project.name}".encode()
    return f"{scheme}://{host}{prefix.decode('latin-1')}"


async def _content(request: Request) -> bytes:
    if request.head.expects_continue and not request.body.complete:
        request.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async with asyncio.timeout(CONTENT_TIMEOUT_S):
            return await request.body.read(MAX_CONTENT_BYTES)
    except TimeoutError:
        raise RequestTimeout("The request's content did not come in time; send it again.") from None


def _members(request: Request, content: bytes) -> dict[str, object]:
    """The content's parameters, and the client of Basic (RFC 6749, section 2.3.1). Raises `_Refused`."""
    kind = (request.field(b"content-type") or b"").partition(b";")[0].strip().lower()
    try:
        text = content.decode().strip()
        if kind == b"application/x-www-form-urlencoded" or not (text[:1] == "{" or kind.endswith(b"json")):
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100)
            members: object = dict(pairs)
            if len(dict(pairs)) != len(pairs):  # RFC 6749, section 3.2
                raise _Refused("invalid_request", "A parameter was sent twice.")
        else:
            members = json.loads(text)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise _Refused(
            "invalid_request", "Send grant_type, client_id, client_secret and scope as JSON or form."
        )
    return members


def _secrets(members: Mapping[str, object]) -> list[bytes]:
    secret = members.get("client_secret")
    return [secret.encode("utf-8", "surrogatepass")] if isinstance(secret, str) else []


def _unavailable(error: TokenFetchError) -> ProxyError:
    if error.cause == "loop":
        return ProxyLoop(f"{error}.")
    retry_after_s = round(error.retry_after_s or 5)
    if error.cause == "rate_limited":
        return TokenUnavailable(f"{error}.", retry_after_s=retry_after_s)
    kind = UpstreamTimeout if error.cause == "timeout" else UpstreamUnreachable
    return kind(f"{error}.", retry_after_s=None if error.permanent else retry_after_s)
