"""Everything under ``/-/``: health, readiness, metrics, status, the page for people, refresh.

Shows how the proxy is doing and never a token or a secret. Knows the shapes of what it shows,
not how it came to be: the application gives it an `Overview`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from proxy import __version__
from proxy.admin.overview import Overview
from proxy.blocking import NoThread, in_thread
from proxy.config.expiry import days_left, utc_today
from proxy.config.watch import ReloadStatus
from proxy.errors import MethodRefused, ProxyError, UnknownProject
from proxy.projects.measures import Minute
from proxy.projects.naming import names_like
from proxy.projects.project import Project
from proxy.server.answer import write_answer, write_error, write_json
from proxy.server.request import Request
from proxy.tokens.lease import LeaseStatus

PREFIX = b"/-/"
QUIT = b"/-/quit"
SLICE = 10
"""Projects in ``/-/status`` between two turns of the event loop."""
_REFRESH = b"/-/refresh/"
_PAGE = Path(__file__).parent / "page"
_FILES = {
    b"/-/": ("index.html", b"text/html; charset=utf-8"),
    b"/-/page.css": ("page.css", b"text/css; charset=utf-8"),
    b"/-/page.js": ("page.js", b"text/javascript; charset=utf-8"),
}
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


Sees: TypeAlias = Callable[[str], bool]


def _everything(_name: str) -> bool:
    return True


def refreshed_project(target: bytes) -> str | None:
    """The project whose tokens ``target`` asks to be renewed, None for another target."""
    path = target.partition(b"?")[0]
    return path.removeprefix(_REFRESH).decode("ascii", "replace") if path.startswith(_REFRESH) else None


class _NotFound(ProxyError):
    code, status, proxy_status = "PROXY_NOT_FOUND", 404, "destination_not_found"


class Admin:
    """Answers what is addressed to the proxy itself."""

    def __init__(self, overview: Overview, *, now: Callable[[], float] = time.monotonic) -> None:
        self._overview = overview
        self._now = now
        self._started_at = now()
        self._pages: dict[bytes, Callable[[Request, bytes, Sees], Awaitable[bool]]] = {
            b"/-/healthy": self._healthy,
            b"/-/ready": self._ready,
            b"/-/status": self._status,
            b"/-/metrics": self._metrics,
            **dict.fromkeys(_FILES, self._page),
        }

    async def answer(self, request: Request, target: bytes, sees: Sees = _everything) -> bool:
        """Answer a request for ``target``; gives back whether the connection can be kept.

        ``sees`` says of which projects and accounts this caller may know, by their names.
        """
        path = target.partition(b"?")[0]
        page = self._pages.get(path)
        if page is not None:
            _require(request, b"GET", b"HEAD")
            return await page(request, target, sees)
        if (name := refreshed_project(target)) is not None:
            _require(request, b"POST")
            return self._refresh(request, name, sees)
        pages = [*self._pages, QUIT] if self._overview.can_quit else [*self._pages]
        raise _NotFound(f"There are {', '.join(p.decode() for p in pages)} and /-/refresh/PROJECT here.")

    async def _healthy(self, request: Request, _target: bytes, _sees: Sees) -> bool:
        return write_answer(request, 200, b"alive\n", content_type=b"text/plain; charset=utf-8")

    async def _ready(self, request: Request, _target: bytes, sees: Sees) -> bool:
        missing = [(project.name, project.missing()) for project in self._overview.projects()]
        ready = not self._overview.is_stopping and not any(reasons for _, reasons in missing)
        waiting = [reason for name, reasons in missing if sees(name) for reason in reasons]
        others = sum(bool(reasons) for name, reasons in missing if not sees(name))
        return write_json(
            request,
            200 if ready else 503,
            {
                "ready": ready,
                "stopping": self._overview.is_stopping,
                "waiting_for": waiting,
                **({"others": others} if others else {}),  # projects that this caller may not know
            },
        )

    async def _metrics(self, request: Request, _target: bytes, _sees: Sees) -> bool:
        # At the first scrape: in a thread, because the library takes a tenth of a second to load.
        with contextlib.suppress(NoThread):
            await in_thread(lambda: importlib.import_module("proxy.admin.metrics"))
        from proxy.admin import metrics  # noqa: PLC0415

        content = await metrics.exposition(self._overview)
        return write_answer(request, 200, content, content_type=metrics.CONTENT_TYPE)

    async def _page(self, request: Request, target: bytes, _sees: Sees) -> bool:
        name, content_type = _FILES[target.partition(b"?")[0]]
        return write_answer(request, 200, _file(name), content_type=content_type, fields=_PAGE_FIELDS)

    async def _status(self, request: Request, target: bytes, sees: Sees) -> bool:
        """JSON with one line for each project; the minutes of the last hour with ``?hour=1``."""
        with_hour = b"hour=1" in target.partition(b"?")[2].split(b"&")
        lines = []
        seen = [project for project in self._overview.projects() if sees(project.name)]
        for place, project in enumerate(seen, 1):
            shown = self._of_project(project, with_hour=with_hour)
            lines.append(f"{json.dumps(project.name)}: {json.dumps(shown)}")
            if not place % SLICE:
                await asyncio.sleep(0)
        general, joined = json.dumps(self._general(sees)), ",\n".join(lines)
        content = f'{general[:-1]}, "projects": {{\n{joined}\n}}}}\n'
        return write_answer(request, 200, content.encode())

    def _general(self, sees: Sees) -> dict[str, object]:
        overview = self._overview
        lag = overview.loop_lag
        return {
            "version": __version__,
            "uptime_s": round(self._now() - self._started_at, 1),
            "stopping": overview.is_stopping,
            "needs_key": overview.needs_key,
            "reload": _of_reload(overview.reload, with_faults=sees is _everything),
            "event_loop_lag_s": {"last": round(lag.last_s, 4), "max": round(lag.max_s, 4)},
            "log_lines_dropped": overview.log_lines_dropped,
            "requests_refused": dict(overview.refused),
            "accounts": {name: overview.project_url(name) for name in overview.accounts if sees(name)},
        }

    def _of_project(self, project: Project, *, with_hour: bool) -> dict[str, object]:
        slots, measures = project.slots, project.measures
        return {
            "url": self._overview.project_url(project.name),
            "ready": project.is_ready,
            "read_only": project.read_only,
            "missing": project.missing(),
            "credentials": _of_credentials(project),
            "slots": {
                "in_use": slots.in_use,
                "waiting": slots.waiting,
                "limit": slots.limit,
                "allowance": slots.allowance,
            },
            "apis": {
                api.value: {**_of_lease(keeper.status()), "requests": project.requests[api]}
                for api, keeper in project.keepers.items()
            },
            "sharing": _of_sharing(project),
            "last_errors": [
                {"at": _stamp(one.at), "code": one.code, "message": one.message}
                for one in reversed(measures.last_errors)
            ],
            **({"hour": [_of_minute(one) for one in measures.hour()]} if with_hour else {}),
        }

    def _refresh(self, request: Request, name: str, sees: Sees) -> bool:
        for project in self._overview.projects():
            if project.name == name:
                for keeper in project.keepers.values():
                    keeper.refresh_now()
                project.forget_answers()
                return write_json(
                    request, 202, {"project": name, "refreshing": [api.value for api in project.keepers]}
                )
        return write_error(request, self._unknown(name[:64], sees))

    def _unknown(self, name: str, sees: Sees) -> UnknownProject:
        projects = (project.name for project in self._overview.projects() if "/" not in project.name)
        known = [*projects, *(f"{account}/42" for account in self._overview.accounts)]
        near = names_like(name, [one for one in known if sees(one)])
        paths = ", ".join(f"/-/refresh/{one}" for one in near)
        return UnknownProject(f"There is no project {name!r}. Try {paths or 'another'}")


def _require(request: Request, *methods: bytes) -> None:
    if request.head.method not in methods:
        allowed = b", ".join(methods)
        raise MethodRefused(f"Use {allowed.decode()} here.", fields=((b"Allow", allowed),))


@functools.cache
def _file(name: str) -> bytes:
    return (_PAGE / name).read_bytes()


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _of_minute(one: Minute) -> dict[str, object]:
    return {
        "at": one.at,
        "requests": one.requests,
        "errors": one.errors,
        "p50_ms": round(one.p50_s * 1000),
        "p95_ms": round(one.p95_s * 1000),
    }


def _of_reload(status: ReloadStatus, *, with_faults: bool) -> dict[str, object]:
    return {
        "count": status.count,
        "refused": status.refused,
        "last_at": status.last_at and status.last_at.isoformat(timespec="seconds"),
        "last_faults": status.last_faults if with_faults else (),  # they name projects
    }


def _of_credentials(project: Project) -> dict[str, object]:
    expires = project.expires
    return {
        "in_use": project.credentials_in_use,
        "expires": expires and expires.isoformat(),
        "days_left": None if expires is None else days_left(expires, utc_today()),
    }


def _of_sharing(project: Project) -> dict[str, object] | None:
    if project.shared_answers is None:
        return None
    shelf = project.shared_answers.shelf
    return {**project.measures.shared, "stored": len(shelf.answers), "stored_bytes": shelf.bytes}


def _of_lease(status: LeaseStatus) -> dict[str, object]:
    return {
        "state": status.state,
        "usable": status.usable,
        "endpoint": status.endpoint,
        "seconds_left": None if status.seconds_left is None else round(status.seconds_left, 1),
        "expires_at": status.expires_at and status.expires_at.isoformat(timespec="seconds"),
        "last_error": status.last_error,
        "last_error_at": status.last_error_at and status.last_error_at.isoformat(timespec="seconds"),
        "permanent": status.permanent,
        "failures_in_a_row": status.failures_in_a_row,
        "refreshes": status.refreshes,
        "next_try_in_s": None if status.next_try_in_s is None else round(status.next_try_in_s, 1),
    }
