"""The measures in Prometheus' text exposition, with ``prometheus_client``.

Loaded at the first scrape and not before: the library costs memory that an unwatched proxy needn't
have. Rendered a few projects at a time, so that a thousand of them don't hold up requests.
Source: Prometheus' exposition format 0.0.4, and its conventions for names and units.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy import __version__
from proxy.admin.overview import Overview
from proxy.config.expiry import days_left, utc_today
from proxy.contentsquare import Api
from proxy.projects.measures import BOUNDS_S, ApiMeasures, Histogram
from proxy.projects.project import Project

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SLICE = 4
"""Projects between two turns of the event loop."""
_LE = [*map(str, BOUNDS_S), "+Inf"]


async def exposition(overview: Overview) -> bytes:
    """All metrics as text."""
    texts: dict[str, list[bytes]] = {}
    projects = [*overview.projects()]
    _add(texts, (*_of_process(overview), *PROCESS_COLLECTOR.collect()))
    for start in range(0, len(projects), SLICE):
        _add(texts, _of_projects(projects[start : start + SLICE]))
        await asyncio.sleep(0)
    return b"".join(text for parts in texts.values() for text in parts)


class _Lone(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _add(texts: dict[str, list[bytes]], families: Iterable[Metric]) -> None:
    """All samples of a family have to stand together, below one HELP and TYPE."""
    for family in families:
        text = generate_latest(_Lone(family))
        parts = texts.setdefault(family.name, [])
        if parts:
            text = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
        parts.append(text)


def _of_process(overview: Overview) -> Iterator[Metric]:
    build = GaugeMetricFamily("csq_proxy_build_info", "The version that runs.", labels=["version", "python"])
    build.add_metric([__version__, platform.python_version()], 1)
    yield build
    lag, reload = overview.loop_lag, overview.reload
    yield _gauge("event_loop_lag_seconds", "How late the event loop was at the last look.", lag.last_s)
    yield _gauge("event_loop_lag_max_seconds", "The worst lag of the last minute or two.", lag.max_s)
    yield _count("log_lines_dropped", "Log lines that couldn't be written.", overview.log_lines_dropped)
    yield _count("reloads", "Configurations that were loaded while running.", reload.count)
    yield _count("reloads_refused", "Configurations that were found bad.", reload.refused)
    refused = CounterMetricFamily(
        "csq_proxy_requests_refused", "Requests refused before they reached a project.", labels=["code"]
    )
    for code, count in overview.refused.items():
        refused.add_metric([code], count)
    yield refused


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"csq_proxy_{name}", text, value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"csq_proxy_{name}", text, value)


class _Families:
    """The families of projects; each sample has the labels ``project``, mostly ``api``, and one more."""

    def __init__(self) -> None:
        one, both = ["project"], ["project", "api"]
        self.requests = CounterMetricFamily(
            "csq_proxy_requests",
            "Requests that ended, by class of status and of method.",
            labels=[*both, "code", "method"],
        )
        self.duration = HistogramMetricFamily(
            "csq_proxy_request_duration_seconds", "From a request's head to its answer's end.", labels=both
        )
        self.received = CounterMetricFamily(
            "csq_proxy_received_bytes", "Content of requests from callers.", labels=both
        )
        self.sent = CounterMetricFamily("csq_proxy_sent_bytes", "Content of answers to callers.", labels=both)
        self.cut = CounterMetricFamily(
            "csq_proxy_answers_cut", "Answers that ended before their end.", labels=both
        )
        self.errors = CounterMetricFamily(
            "csq_proxy_errors", "Errors of the proxy's own.", labels=[*one, "code"]
        )
        self.replays = CounterMetricFamily(
            "csq_proxy_replays", "Requests sent once more, by reason.", labels=[*one, "reason"]
        )
        self.shared = CounterMetricFamily(
            "csq_proxy_answers_shared", "Answers that were another request's, by kind.", labels=[*one, "kind"]
        )
        self.stored = GaugeMetricFamily(
            "csq_proxy_stored_bytes", "What stored answers take in memory.", labels=one
        )
        self.in_use = GaugeMetricFamily("csq_proxy_slots_in_use", "Requests at the cloud now.", labels=one)
        self.limit = GaugeMetricFamily("csq_proxy_slots_limit", "Slots of the project.", labels=one)
        self.allowance = GaugeMetricFamily(
            "csq_proxy_slots_allowance", "Slots that other programs leave us at present.", labels=one
        )
        self.waiting = GaugeMetricFamily(
            "csq_proxy_slots_waiting", "Requests that wait for a slot.", labels=one
        )
        self.slot_wait = HistogramMetricFamily(
            "csq_proxy_slot_wait_seconds", "How long requests waited for a slot.", labels=one
        )
        self.days_left = GaugeMetricFamily(
            "csq_proxy_credential_days_left", "Days until the credentials end, as configured.", labels=one
        )
        self.seconds_left = GaugeMetricFamily(
            "csq_proxy_token_seconds_left", "Life left of the token, 0 without one.", labels=both
        )
        self.refreshes = CounterMetricFamily("csq_proxy_token_refreshes", "Tokens fetched.", labels=both)
        self.failures = CounterMetricFamily(
            "csq_proxy_token_failures", "Token requests that failed, by cause.", labels=[*both, "cause"]
        )

    def add(self, project: Project) -> None:
        """The samples of one project."""
        name, slots, measures = project.name, project.slots, project.measures
        self.in_use.add_metric([name], slots.in_use)
        self.limit.add_metric([name], slots.limit)
        self.allowance.add_metric([name], slots.allowance)
        self.waiting.add_metric([name], slots.waiting)
        if project.expires is not None:
            self.days_left.add_metric([name], days_left(project.expires, utc_today()))
        for code, count in measures.errors.items():
            self.errors.add_metric([name, code], count)
        for reason in ("token", "stale", "concurrency"):
            self.replays.add_metric([name, reason], measures.replays[reason])
        for kind, count in measures.shared.items():
            self.shared.add_metric([name, kind], count)
        answers = project.shared_answers
        self.stored.add_metric([name], 0 if answers is None else answers.shelf.bytes)
        ended = sum(sum(one.duration.counts) for one in measures.apis.values())
        # Only those that did wait are counted as they come; the others waited for 0 s.
        at_once = ended - sum(measures.slot_wait.counts)
        self.slot_wait.add_metric([name], *_buckets(measures.slot_wait, at_once))
        for api, keeper in project.keepers.items():
            status = keeper.status()
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
    """Buckets, each with those below it, and the sum in seconds; ``zeros`` more durations of 0 s."""
    first, *others = histogram.counts
    return list(zip(_LE, accumulate((first + zeros, *others)), strict=True)), histogram.sum_s


def _of_projects(projects: Iterable[Project]) -> Iterable[Metric]:
    families = _Families()
    for project in projects:
        families.add(project)
    return vars(families).values()
