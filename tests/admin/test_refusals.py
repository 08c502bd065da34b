"""The requests that were refused before they reached a project."""

from __future__ import annotations

from proxy.admin.refusals import Refusals
from proxy.projects.measures import RECENT_MINUTES


def test_all_are_counted_and_those_of_late_apart() -> None:
    now = 1_800_000_000.0
    refusals = Refusals(lambda: now)
    refusals.add("PROXY_CALLER_UNKNOWN")
    for _ in range(RECENT_MINUTES - 1):
        now += 60
        refusals.add("PROXY_UNKNOWN_PROJECT")
    assert refusals.recent() == {"PROXY_CALLER_UNKNOWN": 1, "PROXY_UNKNOWN_PROJECT": RECENT_MINUTES - 1}
    now += 60
    assert refusals.recent() == {"PROXY_UNKNOWN_PROJECT": RECENT_MINUTES - 1}
    now += 3600
    assert not refusals.recent()
    assert refusals.all.total() == RECENT_MINUTES
