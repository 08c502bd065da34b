"""``csq-proxy check --live``: tests at Contentsquare everything that the configuration will need.

Hides the order of the links (DNS, TCP, an HTTP proxy, TLS, the clock, credentials, scope, project,
integration, endpoint), so that each chain names its first broken link and the next step. Uses the same
parts as the running proxy, and starts no proxy. Must not know the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import os
import socket
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from proxy.cli.health import REACHED_BY, Listener, is_answered
from proxy.config.expiry import days_left, step_of
from proxy.config.pasted import description
from proxy.config.settings import Settings
from proxy.config.trust import UNCHECKED, unchecked
from proxy.contentsquare import Api
from proxy.errors import ConnectFailed, TokenFetchError
from proxy.logs.leaks import SHORTEST_ANYWHERE
from proxy.origin import Origin
from proxy.projects import Grant
from proxy.server.listeners import unusable_ports
from proxy.server.unix_socket import socket_fault
from proxy.tokens import Lease, TokenEndpoint, make_session
from proxy.tokens.answer import apis_of, quotable
from proxy.tokens.endpoint import private_texts
from proxy.upstream.dial import Dialer
from proxy.upstream.dns import NameResolver
from proxy.upstream.http_proxy import http_proxy_for
from proxy.upstream.loop import OwnListeners
from proxy.upstream.tls import tls_context

MAX_SKEW_S = 60.0
Result = Literal["ok", "warning", "failed"]

_NEXT_STEP = {
    "key": f"Take a random key of at least {SHORTEST_ANYWHERE} characters.",
    "state": "Give the folder to the user that the proxy runs as, or the counts end with the process.",
    "listener": "Mend this first, unless a service manager passes the sockets, or another computer or user"
    " runs the proxy.",
    "files": "Keep the file in a folder that only you can change.",
    "dns": "Check the name in contentsquare.auth_url, and that this computer's DNS answers"
    " (nslookup); behind a company's network set HTTPS_PROXY (a proxy script, PAC, is not read).",
    "tcp": "Check contentsquare.auth_url, the firewall, and whether HTTPS_PROXY is needed here"
    " (a proxy script, PAC, is not read).",
    "http-proxy": "Check HTTPS_PROXY and NO_PROXY: http://host:port, or http://user:password@host:port.",
    "tls": "Check this computer's date, contentsquare.auth_url, and whether the network inspects TLS.",
    "clock": "Set this computer's clock (turn on time synchronisation).",
    "credentials": "Compare client_id and client_secret with the Contentsquare console; they may be wrong,"
    " deleted, or over a year old.",
    "scope": "Ask a Contentsquare administrator to give the credentials this API, or take it out of apis.",
    "project": "Compare project_id with the Contentsquare console; account-level credentials need it.",
    "integration": "Compare integration_id with the Contentsquare console: each project has its own.",
    "endpoint": "If the host is Contentsquare's, add it to contentsquare.allowed_endpoints.",
    "me": "Try again later. Where apis is configured, the proxy doesn't need /v1/oauth/me; callers may.",
    "expires": "Have new credentials made in the Contentsquare console; put them into the configuration, and"
    " their date into expires.",
    "loop": "Compare the address with what DNS says (nslookup doesn't read the hosts file).",
    "answer": "Check contentsquare.auth_url, and whether a network's login page is in between;"
    " or try again later.",
}
_LINK_OF_STATUS = {
    "dns_error": "dns",
    "dns_timeout": "dns",
    "tls_certificate_error": "tls",
    "tls_protocol_error": "tls",
    "proxy_loop_detected": "loop",
    "proxy_configuration_error": "http-proxy",
    "proxy_internal_response": "http-proxy",
}
_LINK_OF_CAUSE = {
    "connection_failed": "tcp",
    "connection_refused": "tcp",
    "dns": "dns",
    "endpoint_missing": "endpoint",
    "endpoint_refused": "endpoint",
    "http_proxy": "http-proxy",
    "loop": "loop",
    "tls": "tls",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. ``project`` and ``api`` are "" where the check is about all of them."""

    project: str
    api: str
    check: str
    result: Result
    message: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class _Subject:
    """The checks of one pair of credentials. ``name`` says in the findings whose pair it is."""

    name: str
    grant: Grant

    def finding(self, check: str, result: Result, message: str, api: Api | None = None) -> Finding:
        return _finding(check, result, message, self.name, "" if api is None else api.value)

    def failure(self, error: TokenFetchError, api: Api | None = None, *, check: str | None = None) -> Finding:
        """The finding for a failed token request; only a warning of ``check`` where that is given."""
        if error.cause == "loop":  # every check would fail so
            check = None
        result: Result = "failed" if check is None else "warning"
        link = check or _link_of(error)
        message = str(error)
        if link == "credentials":
            secret = self.grant.credentials.client_secret.get_secret_value()
            message += f" (client_secret as it was read: {description(secret)})"
        found = self.finding(link, result, message, api)
        return replace(found, next_step=_wait(error)) if error.cause == "rate_limited" else found


def _finding(check: str, result: Result, message: str, project: str = "", api: str = "") -> Finding:
    return Finding(project, api, check, result, message, "" if result == "ok" else _NEXT_STEP[check])


def unknown_owners(settings: Settings) -> Iterator[Finding]:
    """A warning for each file about which the system doesn't tell who may change it."""
    for path in unchecked(settings.files):
        yield _finding("files", "warning", f"{path}: {UNCHECKED}")


def short_keys(settings: Settings) -> Iterator[Finding]:
    """A warning for each caller's key that is too short to be found wherever it stands in a request."""
    for name, caller in settings.callers.items():
        length = len(caller.key.get_secret_value().encode())
        if length < SHORTEST_ANYWHERE:
            detail = (
                f"the key of the caller {name} has {length} bytes: it is easier to guess, and a program that"
            )
            yield _finding("key", "warning", f"{detail} puts it into a path would send it to Contentsquare")


def unwritable_state(settings: Settings) -> Iterator[Finding]:
    """A warning where the counts of calls can't be saved; the proxy would start without that."""
    folder = settings.server.state_dir
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        yield _finding("state", "warning", f"this user can't write to server.state_dir ({folder})")


def unusable_listeners(settings: Settings) -> Iterator[Finding]:
    """A warning for each address on which `serve` could not listen now, unless a csq-proxy answers there."""
    server = settings.server
    for port, fault in unusable_ports(settings):
        if not is_answered(Listener(REACHED_BY.get(server.host, server.host), port, None, server.tls_cert)):
            yield _finding("listener", "warning", fault)
    if server.unix_socket is not None and (why := socket_fault(server.unix_socket)):
        yield _finding("listener", "warning", why)


def expiries(settings: Settings, today: dt.date) -> Iterator[Finding]:
    """For each ``expires`` of the configuration, whether the date is near or past. Uses no network."""
    for name, access in (*settings.projects.items(), *settings.accounts.items()):
        if access.expires is None:
            continue
        left = days_left(access.expires, today)
        if left < 0:
            yield _finding("expires", "failed", f"the credentials expired on {access.expires}", name)
        else:
            result: Result = "ok" if step_of(left) is None else "warning"
            days = f"{left} day{'' if left == 1 else 's'}"
            yield _finding("expires", result, f"the credentials expire in {days}, on {access.expires}", name)


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """All checks, one after the other. Raises ConfigError where ``ca_file`` can't be used."""
    vendor = settings.contentsquare
    context = tls_context(vendor.ca_file)
    resolver = NameResolver(_own_listeners(settings))
    dialer = Dialer(
        context, connect_timeout_s=vendor.connect_timeout, ca_file=vendor.ca_file, resolver=resolver
    )
    origin = Origin.parse(vendor.auth_url)
    reached = True
    async for finding in _connection_findings(dialer, origin):
        reached = reached and finding.result == "ok"
        yield finding
    if not reached:
        return
    async with make_session(context, resolver=resolver) as session:
        endpoint = TokenEndpoint(
            session,
            vendor.auth_url,
            allowed_endpoints=vendor.allowed_endpoints,
            find_proxy=http_proxy_for,
            resolver=resolver,
            ca_file=vendor.ca_file,
        )
        checks = _TokenChecks(endpoint, dialer)
        for subject in _subjects(settings):
            async for finding in checks.findings(subject):
                yield finding
        if endpoint.clock_skew_s is not None:
            yield _clock_finding(endpoint.clock_skew_s)


def _own_listeners(settings: Settings) -> OwnListeners:
    """Where the proxy listens, or will listen, by these settings."""
    server = settings.server
    ports = [server.port, *(project.port for project in settings.projects.values())]
    addresses: set[str] = set()
    with contextlib.suppress(OSError, UnicodeError):  # `serve` tells about a host that can't be used
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(server.host, None)}
    return OwnListeners((address, port) for address in addresses for port in ports if port)


# Connections


async def _connection_findings(dialer: Dialer, origin: Origin) -> AsyncIterator[Finding]:
    """A finding for each link of one connection, up to the first broken link."""
    links = [*([] if origin.is_ip else ["dns"]), "tcp", *(["tls"] if origin.is_tls else [])]
    broken, why = "", ""
    try:
        if http_proxy_for(origin) is not None:
            links = ["http-proxy", *(link for link in links if link == "tls")]
        await _connect(dialer, origin)
    except ConnectFailed as error:
        broken, why = _LINK_OF_STATUS.get(error.proxy_status, "tcp"), str(error)
        if broken == "loop":
            links = [*(link for link in links if link == "dns"), "loop"]
        elif broken not in links:  # an HTTP proxy is on the way, and can't be reached or used
            links, broken = ["http-proxy"], "http-proxy"
    for link in links:
        if link == broken:
            yield _finding(link, "failed", f"to {origin}: {why}" if link == "http-proxy" else why)
            return
        yield _finding(link, "ok", str(origin))


async def _connect(dialer: Dialer, origin: Origin) -> None:
    connection = _Connection()
    await dialer.dial(origin, connection)
    if connection.transport is not None:
        connection.transport.abort()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


def _clock_finding(skew_s: float) -> Finding:
    side = "ahead of" if skew_s > 0 else "behind"
    message = f"this computer is {abs(skew_s):.0f} s {side} Contentsquare"
    return _finding("clock", "warning" if abs(skew_s) > MAX_SKEW_S else "ok", message)


# Credentials


def _subjects(settings: Settings) -> Iterator[_Subject]:
    for name, project in settings.projects.items():
        yield from _pairs(name, Grant.of(project, project.project_id))
    for name, account in settings.accounts.items():
        for number in account.projects or ():
            yield from _pairs(f"{name}/{number}", Grant.of(account, number))
        if not account.projects:
            # Without a project's number these credentials get no token, so only /v1/oauth/me is checked.
            yield from _pairs(name, replace(Grant.of(account, None), apis=()))


def _pairs(name: str, grant: Grant) -> Iterator[_Subject]:
    yield _Subject(name, grant)
    if grant.standby is not None:
        yield _Subject(f"{name} (standby)", replace(grant, credentials=grant.standby))


class _TokenChecks:
    """Checks credentials at the token endpoint, and the connections to the endpoints of their tokens."""

    def __init__(self, endpoint: TokenEndpoint, dialer: Dialer) -> None:
        self._endpoint = endpoint
        self._dialer = dialer
        # The broken link on the way to each origin, None where all is well; each is checked once.
        self._broken: dict[Origin, Finding | None] = {endpoint.origin: None}

    async def findings(self, subject: _Subject) -> AsyncIterator[Finding]:
        apis = subject.grant.apis
        try:
            members = await self._endpoint.me_members(subject.grant.credentials)
        except TokenFetchError as error:
            if not apis:
                yield subject.failure(error)
                return
            yield subject.failure(error, check="me")
        else:
            yield _me_finding(subject, members)
            if apis is None:
                named = apis_of(members) or ()
                apis = tuple(api for api in Api if api in named and subject.grant.allows(api))
                if not apis:
                    yield _no_api(subject, named)
        for api in apis:
            async for finding in self._api_findings(subject, api):
                yield finding

    async def _api_findings(self, subject: _Subject, api: Api) -> AsyncIterator[Finding]:
        """A token for one API, and a connection to the endpoint that the token's answer names."""
        try:
            lease = await self._endpoint.fetch(subject.grant.request(api, subject.grant.credentials))
        except TokenFetchError as error:
            yield subject.failure(error, api)
            return
        for finding in _lease_findings(subject, api, lease):
            yield finding
        if lease.origin not in self._broken:
            *_, last = [finding async for finding in _connection_findings(self._dialer, lease.origin)]
            self._broken[lease.origin] = last if last.result != "ok" else None
        broken = self._broken[lease.origin]
        if broken is None:
            yield subject.finding("endpoint", "ok", f"{lease.origin} can be reached", api)
        else:
            yield subject.finding(broken.check, "failed", broken.message, api)


def _no_api(subject: _Subject, named: Collection[Api]) -> Finding:
    if Api.ENRICHMENT in named:
        message = "/v1/oauth/me names Enrichment alone, which needs integration_id"
        return subject.finding("integration", "failed", message)
    found = subject.finding("scope", "failed", "/v1/oauth/me names no API that is known here")
    todo = "Ask a Contentsquare administrator for credentials with an API; if they have one, name it in apis."
    return replace(found, next_step=todo)


def _me_finding(subject: _Subject, members: Mapping[str, object]) -> Finding:
    scopes = members.get("scopes", members.get("scope"))
    project_id, project_ids = subject.grant.project_id, _project_ids(members)
    if project_id is not None and project_ids and project_id not in project_ids:
        listed = ", ".join(map(str, sorted(project_ids)[:10]))
        message = f"the credentials are for the projects {listed}, not for {project_id}"
        return subject.finding("project", "failed", message)
    if isinstance(scopes, list):
        scopes = " ".join(map(str, scopes))
    private = private_texts(subject.grant.credentials)
    named = f"the scopes {quotable(str(scopes), private)}" if scopes else "no scopes"
    return subject.finding("me", "ok", f"/v1/oauth/me names {named}")


def _project_ids(members: Mapping[str, object]) -> set[int]:
    permissions = members.get("permissions")
    projects = permissions.get("projects") if isinstance(permissions, dict) else None
    found = (one.get("id") for one in projects if isinstance(one, dict)) if isinstance(projects, list) else ()
    return {number for number in found if isinstance(number, int)}


def _lease_findings(subject: _Subject, api: Api, lease: Lease) -> Iterator[Finding]:
    project_id = subject.grant.project_id
    yield subject.finding("credentials", "ok", f"a token for {lease.lifetime_s / 60:.0f} minutes", api)
    if api.scope in lease.scope.replace(",", " ").split():
        yield subject.finding("scope", "ok", lease.scope, api)
    else:
        yield subject.finding("scope", "failed", f"asked for {api.scope}, got {lease.scope}", api)
    if project_id is not None and lease.project_id != project_id:
        message = f"the token is for project {lease.project_id}, not {project_id}"
        yield subject.finding("project", "failed", message, api)
    elif lease.project_id is not None:
        yield subject.finding("project", "ok", str(lease.project_id), api)


def _link_of(error: TokenFetchError) -> str:
    """The broken link that a failed token request points to."""
    if error.cause in _LINK_OF_CAUSE:
        return _LINK_OF_CAUSE[error.cause]
    if error.cause == "credentials_refused":
        quote = error.quote.lower()
        if "scope" in quote:
            return "scope"
        if "integration" in quote:
            return "integration"
        return "project" if "project" in quote else "credentials"
    return "credentials" if error.status == 500 else "answer"


def _wait(error: TokenFetchError) -> str:
    pause = f" {math.ceil(error.retry_after_s)} s" if error.retry_after_s else ""
    return f"Wait{pause}, then try again."
