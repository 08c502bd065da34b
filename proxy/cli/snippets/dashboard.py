"""A Grafana dashboard for ``/-/metrics``: a handful of charts, each by project.

Pure. Sources: Grafana's dashboard JSON model; the metrics' names are `proxy.admin.metrics`'s.
"""

from __future__ import annotations

import json

_OF = 'project=~"$project"'
_RATE = "[$__rate_interval]"
_SOURCE = {"type": "prometheus", "uid": "${source}"}

_ERRORS = f'csq_proxy_responses_total{{{_OF}, class=~"4xx|5xx"}}'

_PANELS: tuple[tuple[str, str, str, str], ...] = (
    (
        "Answers by status",
        "reqps",
        f"sum by (project, class) (rate(csq_proxy_responses_total{{{_OF}}}{_RATE}))",
        "{{project}} {{class}}",
    ),
    (
        "Errors: Contentsquare's, and the proxy's",
        "reqps",
        f"sum by (project, source, class) (rate({_ERRORS}{_RATE}))",
        "{{project}} {{source}} {{class}}",
    ),
    (
        "Errors, as a share of all answers",
        "percentunit",
        (
            f"sum by (project) (rate({_ERRORS}{_RATE}))"
            f" / sum by (project) (rate(csq_proxy_responses_total{{{_OF}}}{_RATE}))"
        ),
        "{{project}}",
    ),
    (
        "Duration, 95th percentile",
        "s",
        (
            "histogram_quantile(0.95, sum by (project, le)"
            f" (rate(csq_proxy_request_duration_seconds_bucket{{{_OF}}}{_RATE})))"
        ),
        "{{project}}",
    ),
    ("Slots in use", "short", f"csq_proxy_slots_in_use{{{_OF}}}", "{{project}}"),
    ("Requests that wait for a slot", "short", f"csq_proxy_slots_waiting{{{_OF}}}", "{{project}}"),
    (
        "Refused because too many ran at once (and sent again)",
        "reqps",
        f'sum by (project) (rate(csq_proxy_replays_total{{{_OF}, reason="concurrency"}}{_RATE}))',
        "{{project}}",
    ),
    (
        "Token life left (below 0.5 h: look at the log)",
        "s",
        f"min by (project, api) (csq_proxy_token_seconds_left{{{_OF}}})",
        "{{project}} {{api}}",
    ),
)


def text() -> str:
    """The dashboard, to be imported (Dashboards > New > Import)."""
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "project",
            "type": "query",
            "datasource": _SOURCE,
            "query": "label_values(csq_proxy_slots_in_use, project)",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    dashboard = {
        "uid": "csq-proxy",
        "title": "csq-proxy",
        "tags": ["csq-proxy"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": [_panel(place, *panel) for place, panel in enumerate(_PANELS)],
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _panel(place: int, title: str, unit: str, query: str, legend: str) -> dict[str, object]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (place % 2), "y": 8 * (place // 2)},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [{"refId": "A", "datasource": _SOURCE, "expr": query, "legendFormat": legend}],
    }
