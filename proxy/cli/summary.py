"""The start-up summary: where the proxy listens, each project, a line to try, and the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator

from proxy import __version__
from proxy.admin.overview import Overview
from proxy.cli.console import say
from proxy.config.settings import WILDCARDS
from proxy.errors import OutputLost
from proxy.foreign import shown
from proxy.projects import Project

_CURL = "curl.exe" if sys.platform == "win32" else "curl"
"""In Windows PowerShell, ``curl`` is another command."""


def announce(overview: Overview) -> None:
    """Print the summary. A full disk, say, is no reason to end a proxy that serves."""
    try:
        say("\n".join(map(shown, _lines(overview))))
    except OutputLost:
        return


def _lines(overview: Overview) -> Iterator[str]:
    settings = overview.settings
    first, urls = overview.listeners[0], [listener.url for listener in overview.listeners]
    has_all = settings.server.tcp and settings.server.host in WILDCARDS
    where = " (and every address of this computer)" if has_all else ""
    yield from (f"csq-proxy {__version__} listens on {', '.join(urls)}{where}", "")
    calls = []
    for project in overview.projects():
        url = overview.project_url(project.name)
        query = f"?projectId={project.grant.project_id}" if project.grant.project_id else ""
        calls.append(f"{url}/v1/segments{query}")
        yield from (f"  {project.name}  {url}", *_tokens(project))
    for name in settings.accounts:
        url = overview.project_url(name)
        calls.append(f"{url}/PROJECT_ID/v1/segments")
        yield f"  {name}  {url}/PROJECT_ID"
        yield "    any project of the account, tokens are fetched on first use"
    yield ""
    if calls:
        key = '-H "X-API-Key: YOUR-KEY" ' if settings.callers else ""
        way = f"--unix-socket {shlex.quote(first.path)}" if first.is_unix else '--noproxy "*"'
        yield f'Try:  {_CURL} {way} {key}"{calls[0]}"'
    if not first.is_unix:
        yield f"See:  {overview.url}/-/ in a browser: the state of each project, and text for your tools"
    yield from ("Stop: Ctrl-C", "")


def _tokens(project: Project) -> list[str]:
    """A line for each API whose token is kept fresh, or one that says why there is none."""
    lines = []
    for api, keeper in project.keepers.items():
        status = keeper.status()
        if status.expires_at is not None:
            state = f"{status.endpoint}, token until {status.expires_at.astimezone():%H:%M:%S}"
        else:
            state = status.last_error or "the token is being fetched"
        lines.append(f"    {api.value:<15} {state}")
    return lines or [f"    {why}" for why in project.missing()] or ["    tokens are fetched on first use"]
