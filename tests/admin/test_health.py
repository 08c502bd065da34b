"""The health of the whole, from that of its projects."""

from __future__ import annotations

from proxy.admin.health import of_all
from proxy.projects.health import Health

WELL = Health("working", "working")
NO_TOKEN = Health("failing", "no token", "proxy", "No token: why.", "Correct it.")
ERRORS = Health("failing", "errors of Contentsquare", "contentsquare", "Many.", "Wait.")
ENDING = Health("degraded", "credentials end in 3 days", "proxy", "They end.", "Renew.")


def projects(*healths: Health) -> dict[str, Health]:
    return {f"p{place}": one for place, one in enumerate(healths, 1)}


def test_the_worst_project_speaks_for_the_whole_not_the_first_one() -> None:
    whole = of_all(projects(ENDING, *[WELL] * 38, NO_TOKEN))
    assert (whole.health, whole.project) == (NO_TOKEN, "p40")
    assert whole.summary == "1 of 40 projects: no token, 1 degraded"


def test_the_summary_counts_projects_with_the_same_trouble() -> None:
    assert of_all(projects(WELL, NO_TOKEN, NO_TOKEN)).summary == "2 of 3 projects: no token"
    assert of_all(projects(ERRORS, NO_TOKEN, WELL)).summary == "2 of 3 projects: failing"


def test_a_lone_project_is_not_counted() -> None:
    assert of_all(projects(NO_TOKEN)).summary == "no token"


def test_the_whole_works_where_all_projects_do() -> None:
    assert of_all(projects(WELL, WELL)).summary == "2 projects working"
    assert of_all({}).health.state == "working"


def test_a_trouble_of_the_proxy_itself_has_no_project() -> None:
    whole = of_all(projects(WELL), ENDING)
    assert (whole.summary, whole.project) == ("credentials end in 3 days", None)
