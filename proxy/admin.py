"""Everything under ``/-/``: health, readiness, status, refresh.

Shows how the proxy is doing and never a token or a secret. Knows the shapes of what it shows,
not how it came to be; the application gives it an `Overview`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from proxy import __version__
from proxy.answer import write_answer, write_error, write_json
from proxy.errors import MethodRefused, ProxyError, UnknownProject
from proxy.expiry import days_left, utc_today
from proxy.lease import LeaseStatus
from proxy.project import Project
from proxy.reload import ReloadStatus
from proxy.request import Request

PREFIX = b"/-/"
_REFRESH = b"/-/refresh/"


def refreshed_project(target: bytes) -> str | None:
    """The project whose tokens ``target`` asks to be renewed, None for another target."""
    path = target.partition(b"?")[0]
    return path.removeprefix(_REFRESH).decode("ascii", "replace") if path.startswith(_REFRESH) else None


class Overview(Protocol):
    """What the application shows of itself."""

    @property
    def is_stopping(self) -> bool:
        """Whether it is draining."""
        ...

    @property
    def reload_status(self) -> ReloadStatus:
        """What became of reloads."""
        ...

    def projects(self) -> Iterable[Project]:
        """All projects, those of accounts that are in use included."""
        ...

    def project_url(self, name: str) -> str:
        """How callers address a project."""
        ...


class _NotFound(ProxyError):
    code, status, proxy_status = "PROXY_NOT_FOUND", 404, "destination_not_found"


class Admin:
    """Answers what is addressed to the proxy itself."""

    def __init__(self, overview: Overview, *, now: Callable[[], float] = time.monotonic) -> None:
        self._overview = overview
        self._now = now
        self._started_at = now()
        self._pages: dict[bytes, Callable[[Request], bool]] = {
            b"/-/healthy": self._healthy,
            b"/-/ready": self._ready,
            b"/-/status": self._status,
        }

    def answer(self, request: Request, target: bytes) -> bool:
        """Answer a request for ``target``; gives back whether the connection can be kept."""
        path = target.partition(b"?")[0]
        page = self._pages.get(path)
        if page is not None:
            _require(request, b"GET", b"HEAD")
            return page(request)
        if (name := refreshed_project(target)) is not None:
            _require(request, b"POST")
            return self._refresh(request, name)
        raise _NotFound(
            f"There are {', '.join(p.decode() for p in self._pages)} and /-/refresh/PROJECT here."
        )

    def _healthy(self, request: Request) -> bool:
        return write_answer(request, 200, b"alive\n", content_type=b"text/plain; charset=utf-8")

    def _ready(self, request: Request) -> bool:
        waiting = [reason for project in self._overview.projects() for reason in project.missing()]
        ready = not self._overview.is_stopping and not waiting
        return write_json(
            request,
            200 if ready else 503,
            {"ready": ready, "stopping": self._overview.is_stopping, "waiting_for": waiting},
        )

    def _status(self, request: Request) -> bool:
        return write_json(
            request,
            200,
            {
                "version": __version__,
                "uptime_s": round(self._now() - self._started_at, 1),
                "stopping": self._overview.is_stopping,
                "reload": _of_reload(self._overview.reload_status),
                "projects": {p.name: self._of_project(p) for p in self._overview.projects()},
            },
        )

    def _of_project(self, project: Project) -> dict[str, object]:
        slots = project.slots
        return {
            "url": self._overview.project_url(project.name),
            "ready": project.is_ready,
            "read_only": project.read_only,
            "credentials": _of_credentials(project),
            "slots": {"in_use": slots.in_use, "waiting": slots.waiting, "limit": slots.limit},
            "apis": {
                api.value: {**_of_lease(keeper.status()), "requests": project.requests[api]}
                for api, keeper in project.keepers.items()
            },
        }

    def _refresh(self, request: Request, name: str) -> bool:
        for project in self._overview.projects():
            if project.name == name:
                for keeper in project.keepers.values():
                    keeper.refresh_now()
                return write_json(
                    request, 202, {"project": name, "refreshing": [api.value for api in project.keepers]}
                )
        return write_error(request, UnknownProject(f"There is no project {name!r}; see /-/status."))


def _require(request: Request, *methods: bytes) -> None:
    if request.head.method not in methods:
        allowed = b", ".join(methods)
        raise MethodRefused(f"Use {allowed.decode()} here.", fields=((b"Allow", allowed),))


def _of_reload(status: ReloadStatus) -> dict[str, object]:
    return {
        "count": status.count,
        "refused": status.refused,
        "last_at": status.last_at and status.last_at.isoformat(timespec="seconds"),
        "last_faults": status.last_faults,
    }


def _of_credentials(project: Project) -> dict[str, object]:
    expires = project.expires
    return {
        "in_use": project.credentials_in_use,
        "expires": expires and expires.isoformat(),
        "days_left": None if expires is None else days_left(expires, utc_today()),
    }


def _of_lease(status: LeaseStatus) -> dict[str, object]:
    return {
        "state": status.state,
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
