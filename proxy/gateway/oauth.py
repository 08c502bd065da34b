"""The proxy's own ``/v1/oauth/token`` and ``/v1/oauth/me``, for programs that fetch their own tokens.

A token request gets a placeholder (`proxy.gateway.placeholder`), with this proxy as its ``endpoint``. The
real token and secret never leave the proxy. Hides both formats of the request (JSON, as the vendor's; a
form, as RFC 6749, section 4.4.2) and the errors of section 5.2.
Must not know leases.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import parse_qsl

from proxy.contentsquare import GRANT_TYPE, TOKEN_LIFETIME_S, Api, oauth_path
from proxy.errors import (
    BadRequest,
    CallerUnknown,
    MethodRefused,
    ProxyError,
    ProxyLoop,
    RequestTimeout,
    TokenFetchError,
    TokenUnavailable,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.gateway.callers import client_id_of_basic, sent_keys
from proxy.gateway.generation import Generation
from proxy.gateway.guard import authority_of
from proxy.gateway.oauth_project import choose, number_of
from proxy.gateway.placeholder import placeholder
from proxy.projects import Project
from proxy.server.answer import send_answer, write_error, write_json
from proxy.server.request import Request

MAX_CONTENT_BYTES = 64 * 1024
CONTENT_TIMEOUT_S = 10.0
MOST_ME = 4
"""Requests for ``/v1/oauth/me`` at once: they go to the token endpoint, and must not delay its tokens."""

_ORIGIN = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,]+")
_WRONG_KEY = (
    "The client_secret is no caller's key: send the key of one of [callers] in the proxy's configuration as"
    " client_secret, and any client_id."
)
_NO_CACHE = ((b"Pragma", b"no-cache"),)  # RFC 6749, section 5.1; Cache-Control is always there


class _Refused(ProxyError):
    """A request that can't be granted; ``error`` is a code of RFC 6749, section 5.2."""

    code, status, proxy_status = "PROXY_BAD_REQUEST", 400, "http_request_error"

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


class LocalOAuth:
    """Answers requests for the paths that `oauth_path` finds, below any prefix.

    Identifies the caller itself, because these programs send their key as ``client_secret``. ``generation``
    gives the current one: a reload may come between a request's head and its content.
    """

    def __init__(self, generation: Callable[[], Generation]) -> None:
        self._generation = generation
        self._room = asyncio.Semaphore(MOST_ME)

    async def answer(self, request: Request, target: bytes) -> bool:
        """Answer a request; whether the connection can be kept. Raises ProxyError."""
        if request.head.method != b"POST":
            raise MethodRefused("Use POST here.", fields=((b"Allow", b"POST"),))
        keys, target = sent_keys(request.head, target)
        prefix, kind = cast(re.Match[bytes], oauth_path(target)).groups()
        members = _members(request, await _content(request))
        generation = self._generation()
        try:
            caller, key = generation.callers.of_keys([*_secrets(members), *keys])
        except CallerUnknown as error:
            raise type(error)(_WRONG_KEY, fields=error.fields) from None
        request.connection.admit(whole=False)
        if caller is not None:
            request.facts.caller = caller.name
        is_for_token = kind == b"token"
        chosen = choose(request, prefix, members, generation, caller, is_for_token=is_for_token)
        request.facts.project = chosen.project.name
        if is_for_token:
            public = generation.settings.server.public_url
            endpoint = f"{public}/{chosen.project.name}" if public else _base(request) + chosen.prefix
            return _grant(members, chosen.project, key, endpoint, request)
        return await self._describe(request, chosen.project)

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
        request.facts.is_relayed = True
        content_type = _raw(answer.fields.get("Content-Type", "application/octet-stream"))
        coding = answer.fields.get("Content-Encoding")
        fields = () if coding is None else ((b"Content-Encoding", _raw(coding)),)
        return await send_answer(
            request, answer.status, answer.body, content_type=content_type, fields=fields
        )


def _raw(value: str) -> bytes:
    """A field's value as it came: aiohttp reads it as UTF-8, and keeps other bytes as lone surrogates."""
    return value.encode("utf-8", "surrogateescape")


def is_for_oauth(target: bytes) -> bool:
    """Whether a request target, also in absolute-form (RFC 9112, section 3.2.2), has one of these paths."""
    return oauth_path(_ORIGIN.sub(b"", target, count=1)) is not None


def refuse(request: Request, error: ProxyError) -> bool:
    """Answer with an error in the form of RFC 6749, section 5.2, and of Contentsquare."""
    if isinstance(error, _Refused):
        code = error.error
    elif isinstance(error, CallerUnknown):
        code = "invalid_client"
    elif error.status < 500:
        code = "invalid_request"
    else:  # for these, section 5.2 has no word, and section 4.1.2.1 has two
        code = "temporarily_unavailable" if error.status == 503 else "server_error"
    members = {"error": code, "error_description": error.message}
    return write_error(request, error, members=members, fields=_NO_CACHE)


def _grant(
    members: Mapping[str, object], project: Project, key: str | None, endpoint: str, request: Request
) -> bool:
    """Answer a token request with a placeholder. Raises `ProxyError`."""
    if members.get("grant_type") != GRANT_TYPE:
        raise _Refused("unsupported_grant_type", f"grant_type must be {GRANT_TYPE}.")
    integration_id, configured = number_of(members, "integration_id"), project.grant.integration_id
    if integration_id is not None and integration_id != configured:
        right = "has none" if configured is None else f"has {configured}"
        raise BadRequest(f"integration_id is {integration_id}, but {project.name} {right}; leave it out.")
    answer: dict[str, object] = {
        "access_token": placeholder(project.name, key),
        "token_type": "bearer",
        "expires_in": TOKEN_LIFETIME_S,
        "scope": _scope(members.get("scope"), project),
        "endpoint": endpoint,
    }
    if project.contentsquare_id is not None:
        answer["project_id"] = project.contentsquare_id
    return write_json(request, 200, answer, fields=_NO_CACHE)


def _scope(value: object, project: Project) -> str:
    """The requested scopes, also unknown ones, since new APIs come; without any, all that the project has."""
    text = " ".join(map(str, value)) if isinstance(value, list) else value or ""
    if not isinstance(text, str):
        raise _Refused("invalid_scope", "scope must be text: the names of APIs with blanks between them.")
    scopes = dict.fromkeys(scope for scope in _SEPARATORS.split(text) if scope)
    if Api.ENRICHMENT.scope in scopes and len(scopes) > 1:
        raise _Refused("invalid_scope", "enrichment can't be combined with another scope: ask for it alone.")
    return " ".join(scopes or (api.scope for api in project.apis))


def _base(request: Request) -> str:
    """The URL of this proxy, with the host name that the caller used."""
    listener = request.connection.listener
    scheme = "https" if listener.url.startswith("https:") else "http"
    authority = authority_of(request.head)
    host = f"localhost:{listener.port}" if authority is None else authority.decode("latin-1")
    return f"{scheme}://{host}"


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
        text = content.decode("utf-8-sig").strip()
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
    if (client_id := client_id_of_basic(request.head)) is not None:
        members.setdefault("client_id", client_id)
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
