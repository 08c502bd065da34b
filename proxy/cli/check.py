"""The output of ``csq-proxy check``: the configuration's meaning, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from proxy.cli import live_report
from proxy.cli.live_check import (
    Finding,
    expiries,
    short_keys,
    unknown_owners,
    unusable_listeners,
    unwritable_state,
)
from proxy.cli.tables import Terminal, table
from proxy.config.expiry import utc_today
from proxy.config.settings import Settings
from proxy.foreign import shown
from proxy.gateway.outward import plan
from proxy.origin import bracketed

_NARROW = 70
"""Characters in a line. A narrower terminal shows fewer columns."""


def try_certificates(settings: Settings) -> None:
    """Raise ConfigError where `serve` would: a file of certificates holds none, or can't be read."""
    plan(settings, None)


def described(settings: Settings) -> dict[str, Any]:
    """The configuration as it will be used, without secrets."""
    return {
        "file": settings.source,
        "passed_over": settings.passed_over,
        "listener": _listener(settings),
        "default_project": settings.default_project,
        "projects": {
            name: {
                "project_id": project.project_id,
                "apis": None if project.apis is None else [api.value for api in project.apis],
                "port": project.port or None,
                "read_only": project.read_only,
                "expires": project.expires,
            }
            for name, project in settings.projects.items()
        },
        "accounts": {
            name: {"projects": account.projects, "read_only": account.read_only}
            for name, account in settings.accounts.items()
        },
        "callers": list(settings.callers),
    }


def _listener(settings: Settings) -> str:
    server = settings.server
    ways = [f"{bracketed(server.host)}:{server.port}"] if server.tcp else []
    ways += [f"unix:{server.unix_socket}"] if server.unix_socket else []
    return ", ".join(ways) or "the sockets that a service manager passes"


def findings(settings: Settings, *, live: bool) -> list[Finding]:
    """Warnings of files, keys and dates of expiry; with ``live`` also the tests at Contentsquare."""
    offline = (
        *unknown_owners(settings),
        *unusable_listeners(settings),
        *unwritable_state(settings),
        *short_keys(settings),
        *expiries(settings, utc_today()),
    )
    return [*offline, *(live_report.collect(settings) if live else ())]


def show_findings(findings: Sequence[Finding], *, all_of_them: bool) -> None:
    """Print a table of the findings, without those that are "ok" unless ``all_of_them``."""
    told = [finding for finding in findings if all_of_them or finding.result != "ok"]
    if told:
        live_report.show(told)


def show_settings(settings: Settings) -> None:
    """Print where the proxy would listen, and a table of its projects and accounts."""
    terminal = Terminal()
    source = escape(shown(str(settings.source or "environment")))
    terminal.print(f"Configuration: {source}: [green]good[/]", highlight=False, soft_wrap=True)
    for place in settings.passed_over:
        terminal.print(f"Passed over:   {escape(shown(place))}", highlight=False, soft_wrap=True)
    terminal.print(f"Listener:      {escape(_listener(settings))}", highlight=False)
    columns = ["project", "project_id", "APIs kept fresh", "path"]
    if terminal.width < _NARROW:
        columns.remove("path")  # the project's name says it, and needs the room
    drawn = table(*columns)
    for name, project in settings.projects.items():
        apis = "by scope" if project.apis is None else ", ".join(api.value for api in project.apis)
        default = " (default)" if name == settings.default_project else ""
        row = (name + default, str(project.project_id or "-"), apis, f"/{name}/v1/...")
        drawn.add_row(*row[: len(columns)])
    for name, account in settings.accounts.items():
        ids = "any" if account.projects is None else ", ".join(map(str, account.projects))
        row = (f"{name} (account)", ids, "on first use", f"/{name}/PROJECT_ID/v1/...")
        drawn.add_row(*row[: len(columns)])
    terminal.print(drawn)
