"""`gateway.lenient` against an oracle: in what is forwarded, no lenient server reads another project."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from support.readers import SPELLINGS, TARGETS, projects_read, targets

from proxy.gateway.lenient import names_other_project

MINE = 42


def foreign(target: bytes) -> dict[str, set[int]]:
    """By reader: the other projects that it reads, where the target is forwarded."""
    if names_other_project(target, MINE):
        return {}
    return {reader: found - {MINE} for reader, found in projects_read(target).items() if found - {MINE}}


@given(targets())
@settings(max_examples=60)
def test_no_reader_sees_another_project_in_a_target_that_is_forwarded(target: str) -> None:
    assert not foreign(target.encode())


@pytest.mark.parametrize("target", SPELLINGS)
def test_each_known_spelling_is_refused_read_by_some_server_and_made_by_the_grammar(target: str) -> None:
    assert names_other_project(target.encode(), MINE)
    assert 43 in set().union(*projects_read(target.encode()).values())
    assert TARGETS.fullmatch(target)


@pytest.mark.parametrize(
    "target",
    ["/v1/segments?projectId=42", "/v1/projects/42/surveys", "/v1/segments?a=43", "/v1/x?a=projectId;b=43"],
)
def test_all_readers_agree_about_plain_targets(target: str) -> None:
    assert not names_other_project(target.encode(), MINE)
    assert set().union(*projects_read(target.encode()).values()) <= {MINE}
