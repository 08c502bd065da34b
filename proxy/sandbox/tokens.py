"""The authentication host: which credentials get a token, for which APIs, and how long it is good.

Hides the token's format (a JWT, HS256, with a key of this process) and the rules of
``/v1/oauth/token`` and ``/v1/oauth/me``. Knows nothing of HTTP: its functions get the JSON body and
return the answer's content, or raise `OAuthError` (RFC 6749, section 5.2) or `Fault`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.contentsquare import GRANT_TYPE, JWT_EXPIRED, Api
from proxy.sandbox.options import DemoAccount, DemoProject
from proxy.sandbox.parameters import is_integer, number_in
from proxy.sandbox.wire import Fault, json_answer

if TYPE_CHECKING:
    from aiohttp import web

_HEADER = {"alg": "HS256", "typ": "JWT"}
_SCOPES = {api.scope for api in Api}
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class OAuthError(Exception):
    """A refusal in the shape of RFC 6749, section 5.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status

    def response(self) -> web.Response:
        """The answer to send."""
        return json_answer(
            {"error": self.error, "error_description": self.description}, status=self.status, fields=_NO_STORE
        )


def wrong_credentials() -> Fault:
    """The generic 500 with which the vendor is said to answer a wrong client_id or client_secret."""
    return Fault(500, "INTERNAL_SERVER_ERROR", "Internal server error")


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a valid token: for which project and scopes, until when (Unix time, seconds)."""

    project_id: int
    scopes: frozenset[str]
    expires_at: float


class Mint:
    """Issues tokens and recognises its own; ``now`` is the clock (Unix time, seconds)."""

    def __init__(self, lifetime_s: int, now: Callable[[], float]) -> None:
        self._lifetime_s = lifetime_s
        self._now = now
        self._key = secrets.token_bytes(32)

    def revoke_all(self) -> None:
        """Makes every token issued so far an unknown one."""
        self._key = secrets.token_bytes(32)

    def issue(self, client_id: str, project_id: int, scope: str) -> str:
        """A new token; no two are the same."""
        now = self._now()
        payload = {
            "iss": "csq-proxy sandbox",
            "sub": client_id,
            "project": project_id,
            "scope": scope,
            "iat": now,
            "exp": now + self._lifetime_s,
            "jti": secrets.token_hex(8),
        }
        signed = f"{_part(_HEADER)}.{_part(payload)}"
        return f"{signed}.{self._signature(signed)}"

    def verify(self, token: str) -> Claims:
        """The token's claims. Raises Fault 401: ``JWT_EXPIRED``, or ``JWT_INVALID`` if it isn't ours."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(errors="replace"), self._signature(signed).encode()):
            raise Fault(401, "JWT_INVALID", "Auth token is invalid.")
        payload = json.loads(_decoded(signed.partition(".")[2]))
        claims = Claims(payload["project"], frozenset(payload["scope"].split()), payload["exp"])
        if self._now() >= claims.expires_at:
            raise Fault(401, JWT_EXPIRED, "Auth token is expired.")
        return claims

    def _signature(self, signed: str) -> str:
        return _encoded(hmac.digest(self._key, signed.encode(errors="replace"), hashlib.sha256))


class AuthServer:
    """The rules of the authentication host.

    ``endpoint_of`` gives the base URL for a project id and whether it is for Enrichment. With ``lenient``,
    ids may be digits, no scope means all but Enrichment's, and answers have ``api_base_url``, too.
    """

    def __init__(
        self,
        mint: Mint,
        projects: Mapping[int, DemoProject],
        account: DemoAccount,
        lifetime_s: int,
        endpoint_of: Callable[[int, bool], str],
        *,
        lenient: bool = False,
    ) -> None:
        self._mint = mint
        self._projects = projects
        self._account = account
        self._lifetime_s = lifetime_s
        self._endpoint_of = endpoint_of
        self._lenient = lenient

    def token(self, content: Mapping[str, Any]) -> web.Response:
        """Answers a token request. Raises OAuthError, or Fault for wrong credentials."""
        if self._lenient:
            content = _read_leniently(content)
        if content.get("grant_type") != GRANT_TYPE:
            raise OAuthError("unsupported_grant_type", f"grant_type must be {GRANT_TYPE}.")
        allowed = self._project_ids(content)
        scopes = _scopes(content.get("scope"))
        project = self._projects[self._project_id(content, allowed)]
        for_enrichment = Api.ENRICHMENT.scope in scopes
        if for_enrichment:
            _check_integration(content.get("integration_id"), project)
        scope = " ".join(scopes)
        answer = {
            "access_token": self._mint.issue(content["client_id"], project.project_id, scope),
            "token_type": "bearer",
            "expires_in": self._lifetime_s,
            "scope": scope,
            "project_id": project.project_id,
            "endpoint": self._endpoint_of(project.project_id, for_enrichment),
        }
        if self._lenient:
            answer["api_base_url"] = answer["endpoint"]
        return json_answer(answer, fields=_NO_STORE)

    def me(self, content: Mapping[str, Any]) -> web.Response:
        """Describes the credentials in the body. Raises OAuthError, or Fault for wrong ones."""
        projects = [self._projects[project_id] for project_id in self._project_ids(content)]
        described = [{"id": project.project_id, "name": project.name} for project in projects]
        answer = {
            "scopes": " ".join(api.scope for api in Api),
            "permissions": {"projects": described},
        }
        return json_answer(answer, fields=_NO_STORE)

    def _project_ids(self, content: Mapping[str, Any]) -> tuple[int, ...]:
        """The projects that the credentials in ``content`` are good for."""
        given = content.get("client_id"), content.get("client_secret")
        if not all(isinstance(value, str) and value for value in given):
            raise OAuthError("invalid_request", "client_id and client_secret are required strings.")
        if given == (self._account.client_id, self._account.client_secret):
            return self._account.project_ids
        for project in self._projects.values():
            if given == (project.client_id, project.client_secret):
                return (project.project_id,)
        raise wrong_credentials()

    def _project_id(self, content: Mapping[str, Any], allowed: tuple[int, ...]) -> int:
        named = [content[name] for name in ("project_id", "projectId") if content.get(name) is not None]
        if len(named) > 1 and named[0] != named[1]:
            raise OAuthError("invalid_request", "project_id and projectId name two projects.")
        wanted = named[0] if named else None
        if wanted is None and len(allowed) == 1:
            return allowed[0]
        if not is_integer(wanted):
            raise OAuthError("invalid_request", "project_id (an integer) is required with these credentials.")
        if wanted not in allowed:
            raise OAuthError("unauthorized_client", f"No access to project {wanted}.", 403)
        return int(wanted)


def _read_leniently(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """With digits as numbers, and with a scope."""
    ids = {name: content.get(name) for name in ("project_id", "projectId", "integration_id")}
    numbers = {
        name: number
        for name, value in ids.items()
        if isinstance(value, str) and (number := number_in(value)) is not None
    }
    every = " ".join(api.scope for api in Api if api is not Api.ENRICHMENT)
    return {**content, **numbers, "scope": content.get("scope") or every}


def _scopes(scope: object) -> list[str]:
    if not isinstance(scope, str) or not scope.split():
        raise OAuthError("invalid_scope", "scope is required.")
    scopes = list(dict.fromkeys(scope.split()))
    unknown = [name for name in scopes if name not in _SCOPES]
    if unknown:
        raise OAuthError("invalid_scope", f"Unknown scope: {' '.join(unknown)}.")
    if Api.ENRICHMENT.scope in scopes and len(scopes) > 1:
        raise OAuthError("invalid_scope", "The scope enrichment can't be combined with another one.")
    return scopes


def _check_integration(integration_id: object, project: DemoProject) -> None:
    if not is_integer(integration_id):
        raise OAuthError("invalid_request", "integration_id (an integer) is required with scope enrichment.")
    if integration_id != project.integration_id:
        raise OAuthError("invalid_request", "This project has no such integration.")


def _part(content: object) -> str:
    return _encoded(json.dumps(content, separators=(",", ":")).encode())


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
