"""Grafana's dashboard asks for metrics that exist."""

from __future__ import annotations

import asyncio
import json
import re

from prometheus_client.parser import text_string_to_metric_families
from support.harness import WAIT_S
from support.snippets import FULL, served, text

from proxy.config.settings import Settings


async def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads(text("grafana-dashboard", FULL))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    asked = set(re.findall(r"csq_proxy_\w+", " ".join(queries)))
    async with served(with_callers=False) as settings:
        await asyncio.to_thread(fetch, settings, "/shop-fr/v1/segments?projectId=42")
        exposed = await asyncio.to_thread(fetch, settings, "/-/metrics")
    samples = {sample.name for family in text_string_to_metric_families(exposed) for sample in family.samples}
    assert not asked - samples
    labels = {
        label
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.name == "csq_proxy_responses_total"
        for label in sample.labels
    }
    assert labels == {"project", "source", "class"}


def fetch(settings: Settings, path: str) -> str:
    import urllib.request  # noqa: PLC0415

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{settings.server.port}{path}", timeout=WAIT_S) as answer:
        return str(answer.read().decode())
