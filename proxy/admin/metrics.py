"""The measures in Prometheus' text exposition, with ``prometheus_client``.

Imported at the first scrape, because a proxy without Prometheus needn't spend memory on the library.
Rendered a few projects at a time, so that a scrape of a thousand projects doesn't delay requests.
Source: Prometheus' exposition format 0.0.4, and its conventions for names and units.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.admin.overview import Overview
from proxy.admin.status import Sees
from proxy.config.expiry import days_left, utc_today
from proxy.contentsquare import Api
from proxy.projects import Project
from proxy.projects.measures import BOUNDS_S, ApiMeasures, Histogram

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SLICE = 4
"""Projects between two turns of the event loop."""
MOST_OF_ACCOUNTS = 200
"""Accounts' projects with series of their own. The others of an account are summed as ``ACCOUNT/other``."""
_LE = [*map(str, BOUNDS_S), "+Inf"]


async def exposition(overview: Overview, sees: Sees) -> bytes:
    """All metrics as text: those of the process, and of the projects whose names ``sees`` accepts.

    Callers can name thousands of an account's projects: only the first ones have series of their own.
    """
    texts: dict[str, list[bytes]] = {}
    own = _own_series(overview)
    projects: list[Project] = []
    others: list[Project] = []
    for project in overview.projects():
        if sees(project.name):
            (projects if "/" not in project.name or project.name in own else others).append(project)
    _add(texts, (*_of_process(overview), *PROCESS_COLLECTOR.collect(), *await _of_months(overview, sees)))
    for start in range(0, len(projects), SLICE):
        _add(texts, _of_projects(projects[start : start + SLICE]))
        await asyncio.sleep(0)
    if others:
        _add(texts, await _sums(others))
    return b"".join(text for parts in texts.values() for text in parts)


def _own_series(overview: Overview) -> set[str]:
    """The projects of accounts that have series of their own; a series goes on as long as its project is."""
    names = {project.name for project in overview.projects() if "/" in project.name}
    kept = [name for name in overview.own_series if name in names]
    new = sorted(names.difference(kept))[: max(0, MOST_OF_ACCOUNTS - len(kept))]
    overview.own_series = [*kept, *new]
    return set(overview.own_series)


async def _sums(projects: list[Project]) -> Iterable[Metric]:
    """The sums of each account's projects; times that are left have no sum."""
    families = _Families()
    for place, project in enumerate(projects, 1):
        families.add(project, name=f"{project.name.partition('/')[0]}/other")
        if not place % SLICE:
            families.sum_up()
            await asyncio.sleep(0)
    families.sum_up()
    return [one for one in vars(families).values() if one not in (families.days_left, families.seconds_left)]


async def _of_months(overview: Overview, sees: Sees) -> Iterable[Metric]:
    """The calls of this month and the quotas, of projects and of accounts in all."""
    month = _gauge("calls_this_month", "Calls of this month (UTC), of a project or an account.", "project")
    quota = _gauge("calls_quota", "The quota of calls a month, as configured.", "project")
    names = [name for name in (*overview.settings.projects, *overview.accounts) if sees(name)]
    for place, name in enumerate(names, 1):
        count = overview.calls.count(name)
        month.add_metric([name], count.calls)
        if count.quota is not None:
            quota.add_metric([name], count.quota)
        if not place % MOST_OF_ACCOUNTS:
            await asyncio.sleep(0)
    return month, quota


class _OneFamily(Collector):
    """`generate_latest` takes only a collector."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _add(texts: dict[str, list[bytes]], families: Iterable[Metric]) -> None:
    """Append the samples: those of one family must stand together, below one HELP and TYPE."""
    for family in families:
        text = generate_latest(_OneFamily(family))
        parts = texts.setdefault(family.name, [])
        if parts:
            text = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
        parts.append(text)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"csq_proxy_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"csq_proxy_{name}", text, labels=labels)


def _histogram(name: str, text: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"csq_proxy_{name}", text, labels=labels)


def _of_process(overview: Overview) -> Iterator[Metric]:
    build = _gauge("build_info", "The version of the running proxy.", "version", "python")
    build.add_metric([__version__, platform.python_version()], 1)
    yield build
    lag, reload = overview.loop_lag, overview.reload
    gauges = (
        (lag.last_s, _gauge("event_loop_lag_seconds", "How late the event loop was at the last check.")),
        (lag.max_s, _gauge("event_loop_lag_max_seconds", "The longest lag of the last one to two minutes.")),
        (
            len(reload.last_faults),
            _gauge(
                "configuration_faults", "Errors of the changed configuration, which is not in use; 0: none."
            ),
        ),
    )
    counters = (
        (overview.log_lines_dropped, _counter("log_lines_dropped", "Log lines that couldn't be written.")),
        (reload.count, _counter("reloads", "Changed configurations that the running proxy has loaded.")),
        (reload.refused, _counter("reloads_refused", "Changed configurations that had errors.")),
    )
    for value, family in (*gauges, *counters):
        family.add_metric([], value)
        yield family
    refused = _counter(
        "requests_refused", "Requests that were refused before they reached a project.", "code"
    )
    for code, count in overview.refusals.all.items():
        refused.add_metric([code], count)
    yield refused


class _Families:
    """The metric families of projects: each sample has the label ``project``, and most have ``api``."""

    def __init__(self) -> None:
        of_api = ("project", "api")
        self.requests = _counter(
            "requests", "Requests that ended, by class of status and of method.", *of_api, "code", "method"
        )
        self.duration = _histogram(
            "request_duration_seconds", "Time from the head of a request to the end of its answer.", *of_api
        )
        self.received = _counter("received_bytes", "Content bytes of requests from callers.", *of_api)
        self.sent = _counter("sent_bytes", "Content bytes of answers to callers.", *of_api)
        self.cut = _counter("answers_cut", "Answers that broke off before their end.", *of_api)
        self.responses = _counter(
            "responses",
            "Answers by whose they were (an answer that was cut is the proxy's), and by class of status.",
            *("project", "source", "class"),
        )
        self.errors = _counter("errors", "The proxy's errors, by code.", "project", "code")
        self.calls = _counter("calls", "Requests sent to Contentsquare, also those sent again.", "project")
        self.replays = _counter(
            "replays", "Requests that the proxy sent to the cloud once more, by reason.", "project", "reason"
        )
        self.shared = _counter(
            "answers_shared", "Answers that came from another request, by kind.", "project", "kind"
        )
        self.stored = _gauge("stored_bytes", "Memory that stored answers take.", "project")
        self.in_use = _gauge("slots_in_use", "Slots in use: requests at the cloud now.", "project")
        self.limit = _gauge("slots_limit", "Slots that the project has.", "project")
        self.allowance = _gauge(
            "slots_allowance", "Slots that other programs leave to the proxy at present.", "project"
        )
        self.waiting = _gauge("slots_waiting", "Requests that wait for a slot.", "project")
        self.slow_callers = _counter(
            "slow_callers_cut",
            "Answers cut because the caller took them too slowly while requests waited for a slot.",
            "project",
        )
        self.slot_wait = _histogram("slot_wait_seconds", "Time that requests waited for a slot.", "project")
        self.days_left = _gauge(
            "credential_days_left", "Days until the credentials end, as configured.", "project"
        )
        self.seconds_left = _gauge(
            "token_seconds_left",
            "Time until the token expires, 0 without one. For tokens that are kept fresh.",
            *of_api,
        )
        self.refreshes = _counter("token_refreshes", "Tokens that were fetched.", *of_api)
        self.failures = _counter("token_failures", "Token requests that failed, by cause.", *of_api, "cause")

    def sum_up(self) -> None:
        """Make one sample of those with the same labels."""
        for family in vars(self).values():
            sums: dict[tuple[str, ...], Sample] = {}
            for one in family.samples:
                key = (one.name, *one.labels.values())
                sums[key] = one._replace(value=sums[key].value + one.value) if key in sums else one
            family.samples = list(sums.values())

    def add(self, project: Project, *, name: str = "") -> None:
        """The samples of one project, below its own name or another one."""
        name, slots, measures = name or project.name, project.slots, project.measures
        self.in_use.add_metric([name], slots.in_use)
        self.limit.add_metric([name], slots.limit)
        self.allowance.add_metric([name], slots.allowance)
        self.waiting.add_metric([name], slots.waiting)
        self.slow_callers.add_metric([name], measures.slow_callers)
        self.calls.add_metric([name], project.calls.made)
        if project.expires is not None:
            self.days_left.add_metric([name], days_left(project.expires, utc_today()))
        for source, by_class in measures.responses().items():
            for kind, count in by_class.items():
                self.responses.add_metric([name, source, kind], count)
        for code, count in measures.errors.items():
            self.errors.add_metric([name, code], count)
        for reason in ("token", "stale", "concurrency"):
            self.replays.add_metric([name, reason], measures.replays[reason])
        for kind, count in measures.shared.items():
            self.shared.add_metric([name, kind], count)
        answers = project.shared_answers
        self.stored.add_metric([name], 0 if answers is None else answers.shelf.bytes)
        ended = sum(sum(one.duration.counts) for one in measures.apis.values())
        # The measures count only the requests that waited; all others waited for 0 s.
        at_once = ended - sum(measures.slot_wait.counts)
        self.slot_wait.add_metric([name], *_buckets(measures.slot_wait, at_once))
        if project.readiness.wanted is None:  # nobody knows yet for which APIs
            self.seconds_left.add_metric([name, ""], 0)
        for api, keeper in project.keepers.items():
            status = keeper.status()
            if status.is_wanted:  # the others end as they should: no alert may take that for a failure
                self.seconds_left.add_metric([name, api.value], (status.usable and status.seconds_left) or 0)
            self.refreshes.add_metric([name, api.value], status.refreshes)
        for api, one in measures.apis.items():
            self._add_api(name, api, one)

    def _add_api(self, name: str, api: Api, one: ApiMeasures) -> None:
        labels = [name, api.value]
        for code, method, count in one.answers():
            self.requests.add_metric([*labels, code, method], count)
        self.duration.add_metric(labels, *_buckets(one.duration))
        self.received.add_metric(labels, one.received_bytes)
        self.sent.add_metric(labels, one.sent_bytes)
        self.cut.add_metric(labels, one.cut)
        for cause, count in one.token_failures.items():
            self.failures.add_metric([*labels, cause], count)


def _buckets(histogram: Histogram, zeros: int = 0) -> tuple[list[tuple[str, float]], float]:
    """The cumulative buckets and the sum in seconds, with ``zeros`` durations of 0 s added."""
    first, *others = histogram.counts
    return list(zip(_LE, accumulate((first + zeros, *others)), strict=True)), histogram.sum_s


def _of_projects(projects: Iterable[Project]) -> Iterable[Metric]:
    families = _Families()
    for project in projects:
        families.add(project)
    return vars(families).values()
