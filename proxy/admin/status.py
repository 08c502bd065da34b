"""The content of ``/-/status`` as JSON values. Holds no token and no secret."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

from proxy import __version__
from proxy.admin import health
from proxy.admin.overview import Overview
from proxy.config.expiry import days_left, utc_today
from proxy.config.watch import ReloadStatus
from proxy.contentsquare import Api
from proxy.projects import Project
from proxy.projects.calls import Count
from proxy.projects.health import Health
from proxy.projects.measures import Minute
from proxy.projects.saving import Saving
from proxy.projects.slot_minutes import SlotMinute
from proxy.projects.usage import Use
from proxy.tokens import LeaseStatus

Sees: TypeAlias = Callable[[str], bool]
"""Whether a caller may know a project or an account, by its name."""


def of_process(
    overview: Overview, sees: Sees, projects: Mapping[str, Health], *, uptime_s: float, with_faults: bool
) -> dict[str, object]:
    """The part about the whole process; ``with_faults``: for callers that see all projects.

    ``projects`` has the health of each project that the caller sees.
    """
    lag, texts = overview.loop_lag, overview.page_texts
    return {
        "version": __version__,
        "host": overview.host,
        "public_url": overview.settings.server.public_url,
        "uptime_s": round(uptime_s, 1),
        "started_at": round(time.time() - uptime_s),
        "health": health.shown_whole(
            health.of_all(projects, *(health.of_process(overview) if with_faults else ()))
        ),
        "stopping": overview.is_stopping,
        "needs_key": overview.needs_key,
        **(
            {"pid": os.getpid(), "drain_timeout_s": overview.settings.server.drain_timeout}
            if with_faults
            else {}
        ),
        **({"start_command": texts.start} if with_faults and texts is not None else {}),
        "reload": _of_reload(overview.reload, with_faults=with_faults),
        "event_loop_lag_s": {"last": round(lag.last_s, 4), "max": round(lag.max_s, 4)},
        "log_lines_dropped": overview.log_lines_dropped,
        "requests_refused": dict(overview.refusals.all),
        "accounts": {name: overview.project_url(name) for name in overview.accounts if sees(name)},
        "account_usage": {
            name: _of_calls(overview.calls.count(name)) for name in overview.accounts if sees(name)
        },
        "counts": _of_counts(overview.saving, with_faults=with_faults),
    }


def of_project(
    overview: Overview, project: Project, its_health: Health, *, with_hour: bool, only: str | None
) -> dict[str, object]:
    """One project's part; ``with_hour``: also the minutes of the last hour.

    ``only``: of the callers, none but this one.
    """
    slots, measures = project.slots, project.measures
    return {
        "url": overview.project_url(project.name),
        "health": health.shown(its_health),
        "ready": project.is_ready,
        "read_only": project.read_only,
        "missing": project.missing(),
        "credentials": _of_credentials(project),
        "slots": {
            "in_use": slots.in_use,
            "waiting": slots.waiting,
            "limit": slots.limit,
            "allowance": slots.allowance,
            **({"slow_callers_cut": measures.slow_callers} if measures.slow_callers else {}),
        },
        "apis": {
            api.value: {**_of_lease(keeper.status()), "requests": project.requests[api]}
            for api, keeper in project.keepers.items()
        },
        "requests_refused": measures.refused,
        "responses": measures.responses(),
        "sharing": _of_sharing(project),
        "usage": {
            **_of_calls(overview.calls.count(project.name)),
            "callers": _of_callers(measures.usage(only)),
        },
        "last_errors": [
            {"at": _stamp(one.at), "code": one.code, "message": one.message}
            for one in reversed(measures.last_errors)
        ],
        **({"hour": [*_of_hour(project)]} if with_hour else {}),
    }


def of_project_in_short(overview: Overview, project: Project, its_health: Health) -> dict[str, object]:
    """A project's part in short, for the page, which reads it every two seconds."""
    slots = project.slots
    return {
        "url": overview.project_url(project.name),
        "health": health.shown(its_health),
        "read_only": project.read_only,
        "slots": {"in_use": slots.in_use, "waiting": slots.waiting, "limit": slots.limit},
        "requests": sum(project.requests.values()),
        "requests_refused": project.measures.refused,
        "responses": project.measures.responses(),
    }


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _of_hour(project: Project) -> Iterator[dict[str, object]]:
    """The minutes of the last hour in which a request ended, or a slot was in use."""
    ended = {one.at: one for one in project.measures.hour()}
    slots = {one.at: one for one in project.slots.minutes.hour(time.time())}
    for at in sorted({*ended, *slots}):
        yield _of_minute(ended.get(at) or Minute(at), slots.get(at) or SlotMinute(at))


def _of_minute(one: Minute, slots: SlotMinute) -> dict[str, object]:
    return {
        "at": one.at,
        "requests": one.requests,
        "errors": one.errors,
        "errors_contentsquare": one.errors - one.errors_proxy,
        "errors_proxy": one.errors_proxy,
        "p50_ms": round(one.p50_s * 1000),
        "p95_ms": round(one.p95_s * 1000),
        "slots_in_use": slots.in_use,
        "waiting": slots.waiting,
        "refused": slots.refused,
    }


def _of_calls(count: Count) -> dict[str, object]:
    return {
        "month": count.month,
        "calls": count.calls,
        "quota": count.quota,
        "since": "month" if count.is_whole else "start",
        "since_at": _stamp(count.since),
        "notice": count.notice,
    }


def _of_counts(saving: Saving, *, with_faults: bool) -> dict[str, object] | None:
    if saving.file is None:
        return None
    return {"kept": saving.is_kept, **({"error": saving.error} if with_faults else {})}  # it may name a path


def _of_callers(used: Mapping[str, Mapping[Api, tuple[Use, Use]]]) -> dict[str, object]:
    return {
        caller: {api.value: {**_of_use(total), "hour": _of_use(hour)} for api, (total, hour) in apis.items()}
        for caller, apis in used.items()
    }


def _of_use(use: Use) -> dict[str, object]:
    return {
        "requests": use.requests,
        "bytes_in": use.bytes_in,
        "bytes_out": use.bytes_out,
        "waited_s": round(use.waited_s, 3),
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
        **_of_next_try(status.next_try_in_s),
    }


def _of_next_try(seconds: float | None) -> dict[str, object]:
    """JSON has no infinite numbers: ``on_demand`` tells that only a request brings the next try."""
    if seconds == math.inf:
        return {"next_try_in_s": None, "on_demand": True}
    return {"next_try_in_s": seconds and round(seconds, 1)}
