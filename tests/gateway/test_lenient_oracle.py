"""The rules against an oracle: in what is forwarded, no lenient server reads another project or method."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from support.method_readers import KNOWN, Call, methods_read, requests
from support.readers import SPELLINGS, TARGETS, projects_read, targets

from proxy.gateway.lenient import names_other_project
from proxy.gateway.policy import may_change_data
from proxy.http1 import parse_request_head

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


def may_change(call: Call) -> bool:
    lines = (f"{call.start} HTTP/1.1", "Host: h", *call.lines)
    head = parse_request_head("\r\n".join(lines).encode())
    return may_change_data(head, head.target)


@given(requests())
@settings(max_examples=100)
def test_no_reader_sees_another_method_in_a_request_that_counts_as_a_read(call: Call) -> None:
    assert may_change(call) or not methods_read(call)


@pytest.mark.parametrize("call", KNOWN)
def test_each_known_way_to_ask_for_another_method_counts_as_a_change(call: Call) -> None:
    assert may_change(call)
    assert methods_read(call)


@pytest.mark.parametrize(
    "call",
    [
        Call("GET /v1/exports?a=1", ("X-Method: DELETE",)),
        Call("GET /v1/exports?method=1&payment_method=card"),
        Call("POST /v1/speed-analysis/event/list", ("Content-Length: 0",)),
        Call(
            "POST /v1/speed-analysis/event/list",
            ("Content-Type: application/json", "Content-Length: 2"),
            b"{}",
        ),
    ],
)
def test_plain_reads_count_as_reads(call: Call) -> None:
    assert not may_change(call)
    assert not methods_read(call)
