"""The requests below ``/-/``: health, readiness, metrics, status, the page for people, refresh.

No answer holds a token or a secret. Must not know how the proxy is built: the application gives it an
`Overview`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs

from proxy.admin import health, requests, status
from proxy.admin.overview import Overview
from proxy.admin.status import Sees
from proxy.blocking import NoThread, in_thread
from proxy.errors import MethodRefused, NotFound, UnknownProject
from proxy.projects.naming import names_like
from proxy.projects.readiness import NOT_YET
from proxy.server.answer import send_answer, write_answer, write_json
from proxy.server.request import Request

PREFIX = b"/-/"
QUIT = b"/-/quit"
MOST_REASONS = 20
"""Tokens that ``/-/ready`` names; it says how many more are missing."""
SLICE = 10
"""Projects that ``/-/status`` renders between two turns of the event loop."""
_REFRESH = b"/-/refresh/"
_PAGE = Path(__file__).parent / "page"
PAGE = PREFIX
"""The path of the page."""
_FILES = {
    PAGE: ("index.html", b"text/html; charset=utf-8"),
    b"/-/page.css": ("page.css", b"text/css; charset=utf-8"),
    **{
        PREFIX + name.encode(): (name, b"text/javascript; charset=utf-8")
        for name in ("page.js", "dom.js", "project.js", "charts.js", "requests.js")
    },
}
PAGE_FILES = frozenset(_FILES)
_PAGE_FIELDS = (
    (
        b"Content-Security-Policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
            b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"Referrer-Policy", b"no-referrer"),
)


def _everything(_name: str) -> bool:
    return True


def _refreshed_project(target: bytes) -> str | None:
    """The project in ``/-/refresh/PROJECT``, None for another target."""
    path = target.partition(b"?")[0]
    return path.removeprefix(_REFRESH).decode("ascii", "replace") if path.startswith(_REFRESH) else None


class Admin:
    """Answers the requests that are for the proxy itself."""

    def __init__(self, overview: Overview, *, now: Callable[[], float] = time.monotonic) -> None:
        self._overview = overview
        self._now = now
        self._started_at = now()
        self._pages: dict[bytes, Callable[[Request, bytes, Sees], Awaitable[bool]]] = {
            b"/-/healthy": self._healthy,
            b"/-/ready": self._ready,
            b"/-/status": self._status,
            b"/-/metrics": self._metrics,
            b"/-/snippets": self._snippets,
            **dict.fromkeys(_FILES, self._page),
        }

    async def answer(
        self, request: Request, target: bytes, sees: Sees = _everything, *, own: str | None = None
    ) -> bool:
        """Answer a request for ``target``; whether the caller's connection can be kept.

        ``sees(name)`` is whether this caller may know the project or account of that name. ``own`` is the
        caller's name where it may see its own requests only.
        """
        path = target.partition(b"?")[0]
        if path == requests.PATH:
            _require(request, b"GET", b"HEAD")
            return await requests.answer(self._overview, request, target, requests.Viewer(sees, own))
        page = self._pages.get(path)
        if page is not None:
            _require(request, b"GET", b"HEAD")
            return await page(request, target, sees)
        if (name := _refreshed_project(target)) is not None:
            _require(request, b"POST")
            return self._refresh(request, name, sees)
        pages = [page for page in self._pages if page == PAGE or page not in _FILES]
        pages += [requests.PATH, *([QUIT] if self._overview.can_quit else [])]
        raise NotFound(
            f"The paths here are {', '.join(p.decode() for p in pages)}, /-/refresh/PROJECT"
            " and /-/exports/PROJECT/JOB_ID/latest.csv."
        )

    async def _healthy(self, request: Request, _target: bytes, _sees: Sees) -> bool:
        return write_answer(request, 200, b"alive\n", content_type=b"text/plain; charset=utf-8")

    async def _ready(self, request: Request, _target: bytes, sees: Sees) -> bool:
        missing = [(project.name, project.missing()) for project in self._overview.projects()]
        ready = not self._overview.is_stopping and not any(reasons for _, reasons in missing)
        waiting = [reason for name, reasons in missing if sees(name) for reason in reasons]
        waiting.sort(key=lambda reason: reason.endswith(NOT_YET))  # failures come first
        others = sum(bool(reasons) for name, reasons in missing if not sees(name))
        return write_json(
            request,
            200 if ready else 503,
            {
                "ready": ready,
                "stopping": self._overview.is_stopping,
                "waiting_for": waiting[:MOST_REASONS],
                **({"more": len(waiting) - MOST_REASONS} if len(waiting) > MOST_REASONS else {}),
                **({"others": others} if others else {}),  # not ready, and hidden from this caller
            },
        )

    async def _metrics(self, request: Request, _target: bytes, sees: Sees) -> bool:
        # In a thread at the first scrape, because the import of the library takes a tenth of a second.
        with contextlib.suppress(NoThread):
            await in_thread(lambda: importlib.import_module("proxy.admin.metrics"))
        from proxy.admin import metrics  # noqa: PLC0415

        content = await metrics.exposition(self._overview, sees)
        return await send_answer(request, 200, content, content_type=metrics.CONTENT_TYPE)

    async def _page(self, request: Request, target: bytes, _sees: Sees) -> bool:
        name, content_type = _FILES[target.partition(b"?")[0]]
        return await send_answer(request, 200, _file(name), content_type=content_type, fields=_PAGE_FIELDS)

    async def _status(self, request: Request, target: bytes, sees: Sees) -> bool:
        """JSON with one line for each project; with ``?hour=1`` also the minutes of the last hour.

        ``?detail=NAME``, which may be repeated: only these projects come whole, and with their hour.
        """
        query = parse_qs(target.decode("latin-1").partition("?")[2], keep_blank_values=True)
        detailed, with_hour = query.get("detail"), "detail" in query or "1" in query.get("hour", ())
        only = None if sees is _everything else request.facts.caller
        lines, healths = [], {}
        projects = [project for project in self._overview.projects() if sees(project.name)]
        for place, project in enumerate(projects, 1):
            its_health = healths[project.name] = health.of_project(project)
            if detailed is None or project.name in detailed:
                shown = status.of_project(self._overview, project, its_health, with_hour=with_hour, only=only)
            else:
                shown = status.of_project_in_short(self._overview, project, its_health)
            lines.append(f"{json.dumps(project.name)}: {json.dumps(shown)}")
            if not place % SLICE:
                await asyncio.sleep(0)
        of_process = status.of_process(
            self._overview,
            sees,
            healths,
            uptime_s=self._now() - self._started_at,
            with_faults=sees is _everything,
        )
        joined = ",\n".join(lines)
        content = f'{json.dumps(of_process)[:-1]}, "projects": {{\n{joined}\n}}}}\n'
        return await send_answer(request, 200, content.encode())

    async def _snippets(self, request: Request, target: bytes, sees: Sees) -> bool:
        """The texts for tools, with the paths and dates of the project that ``?project=`` names."""
        query = parse_qs(target.decode("latin-1").partition("?")[2])
        name = query.get("project", [""])[0]
        texts, overview = self._overview.page_texts, self._overview
        if not name or not sees(name) or all(name != project.name for project in overview.projects()):
            raise self._unknown("/-/snippets?project=", name[:64], sees)
        if texts is None:
            raise NotFound("The proxy was started by a program that has no texts: use csq-proxy snippets.")
        settings, tools = overview.settings_in_use, texts.tools
        try:
            made = await in_thread(lambda: tools(settings, name))
        except NoThread:
            made = tools(settings, name)
        shown = [{"tool": tool, "text": text} for tool, text in made.items()]
        return write_json(request, 200, {"project": name, "origin": overview.url, "tools": shown})

    def _refresh(self, request: Request, name: str, sees: Sees) -> bool:
        for project in self._overview.projects():
            if project.name == name and sees(name):
                project.refresh_now()
                project.forget_answers()
                return write_json(
                    request, 202, {"project": name, "refreshing": [api.value for api in project.keepers]}
                )
        raise self._unknown("/-/refresh/", name[:64], sees)

    def _unknown(self, path: str, name: str, sees: Sees) -> UnknownProject:
        projects = (project.name for project in self._overview.projects() if "/" not in project.name)
        known = [*projects, *(f"{account}/42" for account in self._overview.accounts)]
        near = names_like(name, [one for one in known if sees(one)])
        paths = ", ".join(path + one for one in near)
        return UnknownProject(f"There is no project {name!r}. Try {paths or 'another'}")


def _require(request: Request, *methods: bytes) -> None:
    if request.head.method not in methods:
        allowed = b", ".join(methods)
        raise MethodRefused(f"Use {allowed.decode()} here.", fields=((b"Allow", allowed),))


@functools.cache
def _file(name: str) -> bytes:
    return (_PAGE / name).read_bytes()
