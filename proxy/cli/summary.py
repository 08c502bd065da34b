"""The start-up summary: where the proxy listens, each project, a line to try, and the page."""

from __future__ import annotations

import contextlib
import shlex
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime

from proxy import __version__
from proxy.admin.overview import Overview
from proxy.cli.console import say
from proxy.config.settings import WILDCARDS
from proxy.errors import OutputLost
from proxy.foreign import shown
from proxy.logs import is_on_terminal, is_terminal, log_soon
from proxy.projects import Project

_CURL = "curl.exe" if sys.platform == "win32" else "curl"
"""In Windows PowerShell, ``curl`` is another command."""


def announce(overview: Overview) -> None:
    """Print the summary on a terminal; log ``listening``, unless the log is on that terminal, too.

    It is logged at each level, since programs wait for it. A full disk, say, is no reason to end a proxy
    that serves.
    """
    is_shown = is_terminal(sys.stdout) and overview.settings.log.format != "json"
    if is_shown:
        with contextlib.suppress(OutputLost):
            say("\n".join(map(shown, _lines(overview))))
    if not (is_shown and is_on_terminal()):
        urls = [listener.url for listener in overview.listeners]
        log_soon("proxy", "info", "listening", {"urls": urls, "version": __version__})


def _lines(overview: Overview) -> Iterator[str]:
    settings = overview.settings
    first, urls = overview.listeners[0], [listener.url for listener in overview.listeners]
    has_all = settings.server.tcp and settings.server.host in WILDCARDS
    where = " (and every address of this computer)" if has_all else ""
    yield from (f"csq-proxy {__version__} listens on {', '.join(urls)}{where}", "")
    calls = []
    told: dict[str, str] = {}
    for project in overview.projects():
        url = overview.project_url(project.name)
        query = f"?projectId={project.grant.project_id}" if project.grant.project_id else ""
        calls.append(f"{url}/v1/segments{query}")
        yield from (f"  {project.name}  {url}", *_tokens(project, told))
    for name in settings.accounts:
        url = overview.project_url(name)
        calls.append(f"{url}/PROJECT_ID/v1/segments")
        yield f"  {name}  {url}/PROJECT_ID"
        yield "    any project of the account, tokens are fetched on first use"
    yield ""
    if calls:
        key = '-H "X-API-Key: YOUR-KEY" ' if settings.callers else ""
        is_socket = first.is_unix and not settings.server.public_url
        way = f"--unix-socket {shlex.quote(first.path)}" if is_socket else '--noproxy "*"'
        yield f'Try:  {_CURL} {way} {key}"{calls[0]}"'
    if not first.is_unix:
        yield f"See:  {overview.url}/-/ in a browser: the state of each project, and text for your tools"
    if settings.log.file is not None:
        yield f"Log:  {settings.log.file}"
    yield from ("Stop: Ctrl-C", "")


def _tokens(project: Project, told: dict[str, str]) -> Iterator[str]:
    """A line about the tokens that are there, and for each reason why others aren't, or why none is kept.

    ``told`` has the reasons that other projects' lines tell: by reason, the name of the first such project.
    """

    def told_once(reason: str) -> str:
        first = told.setdefault(reason, project.name)
        return reason if first == project.name else f"no token, for the same reason as {first}"

    ends: list[datetime] = []
    without: dict[str, list[str]] = {}
    for api, keeper in project.keepers.items():
        status = keeper.status()
        if status.expires_at is not None:
            ends.append(status.expires_at.astimezone())
        else:
            without.setdefault(status.last_error or "the token is being fetched", []).append(api.value)
    if ends:
        until = " to ".join(dict.fromkeys(f"{end:%H:%M}" for end in (min(ends), max(ends))))
        yield f"    {len(ends)} {'API' if len(ends) == 1 else 'APIs'}, tokens until {until}"
    for reason, apis in without.items():
        yield from _folded(f"{', '.join(apis)}: {told_once(reason)}")
    if not project.keepers:
        missing = [told_once(why.removeprefix(f"{project.name}: ")) for why in project.missing()]
        for why in missing or ["tokens are fetched on first use"]:
            yield from _folded(why)


def _folded(sentence: str) -> list[str]:
    return textwrap.wrap(
        shown(sentence), 100, initial_indent=" " * 4, subsequent_indent=" " * 6, break_on_hyphens=False
    )
