"""A project as its callers reach it: the values for the tools' texts.

Pure, but for a look at the certificate's names.
"""

from __future__ import annotations

import datetime as dt
import shlex
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy.config.settings import LOCALHOST, Settings
from proxy.contentsquare import PROJECT_ID
from proxy.errors import ConfigError
from proxy.origin import is_loopback
from proxy.server.tls import host_in_urls

DAYS = 7
"""The number of whole days that the examples ask for, up to yesterday."""
PORT = "PORT"
"""A placeholder in a URL that the reader must fill in."""
UNIX_SOCKET = "/run/csq-proxy/csq-proxy.sock"
"""The path of the Unix socket that systemd opens, where the configuration names none."""


@dataclass(frozen=True, slots=True)
class Target:
    """A project as a caller addresses it. ``project_id`` None: the calls need none."""

    name: str
    url: str
    origin: str
    project_id: int | None
    curl_way: str


def target(settings: Settings, name: str | None, *, in_cloud: bool = False) -> Target:
    """The project of that name (``acme/42`` below an account); ``in_cloud``: as a vendor's cloud reaches it.

    Raises ConfigError.
    """
    from_afar = _from_cloud(settings) if in_cloud else settings.server.public_url
    name = name or settings.default_project or next(iter((*settings.projects, *settings.accounts)))
    account, _, number = name.partition("/")
    if name in settings.projects:
        project = settings.projects[name]
        if project.port and not from_afar:
            origin = _origin(settings, project.port)
            return Target(name, origin, origin, project.project_id, _curl_way(settings))
        found = project.project_id
    elif account in settings.accounts:
        known = settings.accounts[account].projects
        if not number and known:
            number = str(known[0])
        if not PROJECT_ID.match(number):
            raise ConfigError(f"{name}: is an account; name one of its projects, too: {account}/42")
        if known is not None and int(number) not in known:
            raise ConfigError(
                f"{name}: isn't among accounts.{account}.projects: {', '.join(map(str, known))}"
            )
        name, found = f"{account}/{number}", int(number)
    else:
        names = ", ".join((*settings.projects, *settings.accounts))
        raise ConfigError(f"{name}: there is no such project; there are {names}")
    origin = from_afar or _origin(settings)
    return Target(name, f"{origin}/{name}", origin, found, _curl_way(settings))


def _origin(settings: Settings, own_port: int | None = None) -> str:
    """The origin at which callers here reach the projects, or the project with the port ``own_port``."""
    server = settings.server
    scheme = "https" if server.tls_cert is not None else "http"
    if not server.tcp:
        return f"{scheme}://localhost"
    if server.allowed_hosts and own_port is None and not is_loopback(server.host):
        return f"{scheme}://{server.allowed_hosts[0]}"
    host = LOCALHOST[0] if server.host == "localhost" else server.host
    return f"{scheme}://{host_in_urls(host, server.tls_cert)}:{own_port or server.port or PORT}"


def _curl_way(settings: Settings) -> str:
    """The options by which curl goes straight to the proxy."""
    server = settings.server
    if server.tcp or server.public_url:
        return '--noproxy "*"'
    return f"--unix-socket {shlex.quote(str(server.unix_socket or UNIX_SOCKET))}"


def _from_cloud(settings: Settings) -> str | None:
    """The origin that a vendor's cloud reaches, None where no name is configured.

    Without ``public_url``, a server in front may end TLS, so the origin is https even where the proxy itself
    speaks plain HTTP.
    """
    server = settings.server
    return server.public_url or (f"https://{server.allowed_hosts[0]}" if server.allowed_hosts else None)


def values(project: Target, today: dt.date) -> dict[str, str]:
    """The values for a tool's text; the keys ``..._id`` hold the project's number in the tool's syntax."""
    number = project.project_id
    given = {"and_id": "", "m_id": "", "py_id": "", "js_id": "", "ps_id": ""}
    if number is not None:
        given = {
            "and_id": f"&projectId={number}",
            "m_id": f', projectId = "{number}"',
            "py_id": f", projectId={number}",
            "js_id": f", projectId: {number}",
            "ps_id": f"; projectId = {number}",
        }
    return {
        "project": project.name,
        "url": project.url,
        "origin": project.origin,
        "host": urlsplit(project.origin).hostname or "",
        "exports": f"{project.origin}/-/exports/{project.name}",
        "curl_way": project.curl_way,
        "number": "PROJECT_ID" if number is None else str(number),
        "start": str(today - dt.timedelta(days=DAYS)),
        "end": str(today - dt.timedelta(days=1)),
        **given,
    }
