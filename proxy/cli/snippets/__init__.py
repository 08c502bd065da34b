"""Ready text for callers and operators, filled in from the configuration; never with a secret.

Hides the templates (a file beside this one each) and what they are filled with. A template's
``<<name>>`` is a value, and a line that begins with ``<<:key>>`` or ``<<:open>>`` is for proxies
with or without callers' keys. Pure but for reading templates; must not know the command line.
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from proxy import __version__
from proxy.cli.snippets import dashboard, portable
from proxy.config.settings import DEFAULT_PORT, WILDCARDS, Settings
from proxy.errors import ConfigError
from proxy.origin import bracketed, is_loopback

FOR_CALLERS = (
    "curl",
    "powerbi",
    "powerbi-pages",
    "excel",
    "tableau",
    "looker",
    "grafana",
    "python",
    "javascript",
    "powershell",
)
FOR_OPERATORS = ("kubernetes", "compose", "systemd", "windows", "grafana-dashboard")
_IN_CLOUDS = ("looker",)
"""The tools that call from their vendor's computers."""
DAYS = 7
"""How many whole days the example asks for, up to yesterday."""

_PORT = "PORT"
"""A placeholder in a URL that the reader must fill in."""
_SLASHES = ("powerbi", "powerbi-pages", "excel", "looker", "javascript")
"""The tools whose comments begin with two slashes; the comments of others begin with a number sign."""
_GRACE_S = 15
"""Seconds that a platform gives the proxy to stop, in addition to ``drain_timeout``."""
_PLACE = re.compile(r"<<(\w+)>>")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}\Z", re.ASCII)
_CONTAINER_SECRETS = "/run/secrets"
_HIDDEN = frozenset(("home", "root"))
"""The folders of the root that ``ProtectHome=`` hides (systemd.exec(5))."""


@dataclass(frozen=True, slots=True)
class Target:
    """A project as a caller addresses it. ``project_id`` None: the calls need none."""

    name: str
    url: str
    origin: str
    project_id: int | None


def text_of(what: str, settings: Settings, project: str | None, *, today: dt.date, python: str) -> str:
    """The text for ``what``, one of `FOR_CALLERS` or `FOR_OPERATORS`; ``python`` is our interpreter's path.

    ``project`` None is the default one, or the first. Raises ConfigError where there is no such project.
    """
    if what == "grafana-dashboard":
        return dashboard.text()
    if what in FOR_OPERATORS and not settings.server.port:  # a caller must know the port
        settings = replace(settings, server=replace(settings.server, port=DEFAULT_PORT))
    operators: dict[str, Callable[[], Mapping[str, str]]] = {
        "kubernetes": functools.partial(_kubernetes, settings),
        "compose": functools.partial(_compose, settings),
        "systemd": functools.partial(_systemd, settings, python),
        "windows": functools.partial(_windows, python),
    }
    if what in operators:
        values = {
            "port": str(settings.server.port),
            "version": __version__,
            "grace_s": str(math.ceil(settings.server.drain_timeout) + _GRACE_S),
            **operators[what](),
        }
    else:
        values = _of_caller(target(settings, project, in_cloud=what in _IN_CLOUDS), today)
    text = _fill(_template(what), values, "<<:key>>" if settings.callers else "<<:open>>")
    if values.get("origin", "").endswith(f":{_PORT}"):
        mark = "//" if what in _SLASHES else "#"
        text = f"{mark} {_PORT}: server.port is 0, any free one; csq-proxy prints it at its start.\n{text}"
    return text


def _template(what: str) -> str:
    return resources.files(__name__).joinpath(f"{what}.txt").read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str], condition: str) -> str:
    lines = [line.removeprefix(condition) for line in template.splitlines()]
    text = "\n".join(line for line in lines if not line.startswith("<<:"))
    return _PLACE.sub(lambda place: values[place[1]], text) + "\n"


# Callers


def target(settings: Settings, name: str | None, *, in_cloud: bool = False) -> Target:
    """The project of that name (``acme/42`` below an account), as a caller here or ``in_cloud`` reaches it.

    Raises ConfigError.
    """
    from_cloud = _from_cloud(settings) if in_cloud else None
    name = name or settings.default_project or next(iter((*settings.projects, *settings.accounts)))
    account, _, number = name.partition("/")
    if name in settings.projects:
        project = settings.projects[name]
        if project.port and from_cloud is None:
            origin = _origin(settings, project.port)
            return Target(name, origin, origin, project.project_id)
        found = project.project_id
    elif account in settings.accounts:
        known = settings.accounts[account].projects
        if not number and known:
            number = str(known[0])
        if not _NUMBER.match(number):
            raise ConfigError(f"{name}: is an account; name one of its projects, too: {account}/42")
        if known is not None and int(number) not in known:
            raise ConfigError(
                f"{name}: isn't among accounts.{account}.projects: {', '.join(map(str, known))}"
            )
        name, found = f"{account}/{number}", int(number)
    else:
        names = ", ".join((*settings.projects, *settings.accounts))
        raise ConfigError(f"{name}: there is no such project; there are {names}")
    origin = from_cloud or _origin(settings)
    return Target(name, f"{origin}/{name}", origin, found)


def _origin(settings: Settings, own_port: int | None = None) -> str:
    """Where the projects are called, or one that has a port of its own."""
    server = settings.server
    scheme = "https" if server.tls_cert is not None else "http"
    if server.allowed_hosts and own_port is None and not is_loopback(server.host):
        return f"{scheme}://{server.allowed_hosts[0]}"
    host = "localhost" if server.host in WILDCARDS else bracketed(server.host)
    return f"{scheme}://{host}:{own_port or server.port or _PORT}"


def _from_cloud(settings: Settings) -> str | None:
    """The origin that a vendor's cloud reaches, None where no name is configured.

    A server in front may end TLS, so the origin is https even where the proxy itself speaks plain HTTP.
    """
    names = settings.server.allowed_hosts
    return f"https://{names[0]}" if names else None


def _of_caller(project: Target, today: dt.date) -> dict[str, str]:
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
        "number": "PROJECT_ID" if number is None else str(number),
        "start": str(today - dt.timedelta(days=DAYS)),
        "end": str(today - dt.timedelta(days=1)),
        **given,
    }


# Operators


def _kubernetes(settings: Settings) -> dict[str, str]:
    names = portable.secret_names(settings)
    return {
        "config_mounted": portable.config(
            settings, f"{_CONTAINER_SECRETS}/csq-proxy", portable.IN_CONTAINER, indent=4
        ),
        "caller_secret": next((portable.secret_name("callers", name) for name in settings.callers), ""),
        "kubectl_secrets": " ".join(f"--from-file={name}=FILE" for name in names),
    }


def _compose(settings: Settings) -> dict[str, str]:
    names = portable.secret_names(settings)
    config = portable.config(settings, _CONTAINER_SECRETS, portable.IN_CONTAINER, indent=6)
    return {
        "config_compose": config.replace("$", "$$"),  # else it would be a variable
        "compose_secret_names": "\n".join(f"      - {name}" for name in names),
        "compose_secrets": "\n".join(f"  {name}:\n    file: ./secrets/{name}" for name in names),
    }


def _systemd(settings: Settings, python: str) -> dict[str, str]:
    config = portable.config(settings, "${CREDENTIALS_DIRECTORY}", portable.UNDER_SYSTEMD, indent=0)
    names = portable.secret_names(settings)
    ports = {name: project.port for name, project in settings.projects.items() if project.port}
    sockets = [
        _socket_unit("csq-proxy", "csq-proxy", settings, settings.server.port, settings.server.unix_socket)
    ]
    sockets += [_socket_unit(f"csq-proxy-{name}", name, settings, port) for name, port in ports.items()]
    return {
        "socket_units": " ".join(("csq-proxy.socket", *(f"csq-proxy-{name}.socket" for name in ports))),
        "sockets": "\n\n".join(sockets),
        "command": f"{_quoted(python)} -m proxy",
        "systemd_config": "\n".join(f"#   {line}".rstrip() for line in config.splitlines()),
        "load_credentials": "\n".join(f"LoadCredential={name}:/etc/csq-proxy/{name}" for name in names),
        "protect_home": "yes" if _HIDDEN.isdisjoint(PurePosixPath(python).parts[1:2]) else "read-only",
    }


def _socket_unit(unit: str, name: str, settings: Settings, port: int, path: Path | None = None) -> str:
    """The socket unit for a port, and a Unix socket beside it; ``name`` is their ``FileDescriptorName=``."""
    host = settings.server.host
    try:
        shown = bracketed(str(ipaddress.ip_address(host)))
    except ValueError:  # localhost: a unit needs an address
        shown = "127.0.0.1"
    also: tuple[str, ...] = ()
    if path is not None:
        also = (f"ListenStream={_percent(path)}", "SocketMode=0660", "# SocketGroup=who-may-call")
    return "\n".join(
        (
            f"# /etc/systemd/system/{unit}.socket",
            "[Unit]",
            f"Description=A port of csq-proxy ({name})",
            "",
            "[Socket]",
            f"ListenStream={shown}:{port}",
            *also,
            f"FileDescriptorName={name}",
            "Service=csq-proxy.service",
            "",
            "[Install]",
            "WantedBy=sockets.target",
        )
    )


def _quoted(path: str) -> str:
    """As systemd.service(5) has it: quotes around spaces, and %% for one that is no specifier."""
    path = _percent(path)
    return f'"{path}"' if " " in path else path


def _percent(path: Path | str) -> str:
    return str(path).replace("%", "%%")


def _windows(python: str) -> dict[str, str]:
    windowless = re.sub(r"python(\.exe)?\Z", r"pythonw\1", python)
    return {"windows_python": escape(python), "windows_pythonw": escape(windowless)}
