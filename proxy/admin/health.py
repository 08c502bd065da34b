"""The health of the running projects, and of the whole: the facts that `proxy.projects.health` judges."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from proxy.admin.overview import Overview
from proxy.config.expiry import days_left, utc_today
from proxy.projects import Project
from proxy.projects.health import MISTAKES, SEVERITY, Evidence, Health, Token, health_of, worst
from proxy.projects.measures import RECENT_MINUTES


@dataclass(frozen=True, slots=True)
class Whole:
    """The health of the whole. ``project`` names the worst project; None: no project is to blame."""

    health: Health
    summary: str
    project: str | None


def of_project(project: Project) -> Health:
    """The health of a project now."""
    now, slots, measures = time.time(), project.slots, project.measures
    since = now - 60 * RECENT_MINUTES
    outage_failures = project.readiness.outage_failures
    tokens = []
    for api, keeper in project.keepers.items():
        status, error = keeper.status(), keeper.record.error
        failures = max(status.failures_in_a_row, outage_failures if error and error.is_outage else 0)
        tokens.append(Token(api.value, status.state, error, failures, status.seconds_left))
    return health_of(
        Evidence(
            is_ready=project.is_ready,
            tokens=tokens,
            apis_error=project.readiness.apis_error,
            recent=measures.recent(),
            last_errors={one.code: one for one in measures.last_errors},
            allowance=slots.allowance,
            limit=slots.limit,
            refused=sum(one.refused for one in slots.minutes.hour(now) if one.at > since),
            days_left=None if project.expires is None else days_left(project.expires, utc_today()),
            expires=project.expires,
            on_standby=project.credentials_in_use == "standby",
        )
    )


def of_process(overview: Overview) -> Iterator[Health]:
    """The troubles of the proxy as a whole; they name projects, and are for callers that see all."""
    if faults := overview.reload.last_faults:
        yield Health(
            "degraded",
            "changed configuration refused",
            "proxy",
            f"The changed configuration has an error, so the one before stays in use: {faults[0]}.",
            "Correct the configuration; `csq-proxy check` names each fault.",
        )
    refused = overview.refusals.recent()
    if refused.total() >= MISTAKES and refused.total() >= _reached(overview):
        [(code, _)] = refused.most_common(1)
        yield Health(
            "degraded",
            "requests refused",
            "caller",
            f"{refused.total()} requests in the last {RECENT_MINUTES} minutes were refused before they"
            f" reached a project, most with {code}.",
            f"Correct the calling program: README says what to do about {code}.",
        )


def _reached(overview: Overview) -> int:
    """The requests that reached a project of late."""
    return sum(project.measures.recent().requests for project in overview.projects())


def of_all(projects: Mapping[str, Health], *others: Health) -> Whole:
    """The health of the whole: that of the worst project, or of a worse trouble among the ``others``."""
    health = worst((*projects.values(), *others))
    if health.state == "working":
        return Whole(health, f"{_projects(len(projects))} working", None)
    name = next((name for name, one in projects.items() if one is health), None)
    if name is None:
        return Whole(health, health.summary, None)
    alike = Counter(one.summary for one in projects.values() if one.state == health.state)
    what = health.summary if len(alike) == 1 else health.state
    found = f"{alike.total()} of {_projects(len(projects))}: {what}" if len(projects) > 1 else what
    milder = Counter(
        one.state for one in projects.values() if SEVERITY.index(one.state) > SEVERITY.index(health.state)
    )
    del milder["working"]
    return Whole(health, ", ".join((found, *(f"{n} {state}" for state, n in milder.items()))), name)


def _projects(count: int) -> str:
    return f"{count} project{'s' if count != 1 else ''}"


def shown(health: Health) -> dict[str, object]:
    """A project's health as JSON values."""
    return {
        "state": health.state,
        "summary": health.summary,
        "side": health.side,
        "reason": health.reason,
        "next_step": health.next_step,
    }


def shown_whole(whole: Whole) -> dict[str, object]:
    """The health of the whole as JSON values."""
    return {**shown(whole.health), "summary": whole.summary, "project": whole.project}
