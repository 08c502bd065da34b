"""`gateway.lenient`: the readings of lenient servers."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.cases import together

from proxy.contentsquare import SAFE_METHODS, changes_data
from proxy.gateway.lenient import (
    asks_for_method,
    is_plain,
    may_be_oauth,
    may_change_events,
    names_other_project,
)


@together(
    "query",
    [
        "projectId=43",
        "projectId[0]=43",
        "projectId.0=43",
        "filter[projectId][eq]=43",
        "projectIds=43",
        "projectIds=42,43",
        "project.id=43",
        "%70rojectId=43",
        "%u0070rojectId=43",
        "%2570rojectId=43",
        "pro%00jectId=43",
        "projectId%00=43",
        "projectId=43%00",
        "projectId%5B%5D=43",
        "filter=%7B%22projectId%22%3A43%7D",
        "filter=%7B%22%5Cu0070rojectId%22:43%7D",
        "filter=projectId:43",
        "%EF%BD%90rojectId=43",
        "projectId=4%2532",
        "projectId=42%2C43",
        "projectId=042",
        "projectId=",
        "projectId=all",
        "a=1;projectId=43",
        "a=1?projectId=43",
        "projectId=42&PROJECT-ID=43",
        "projectId=42&" * 17,
        "\uff50rojectId=43",
        "%E2%84%99rojectId=43",
        "%uff50rojectId=43",
        "%c1%b0rojectId=43",
        "%e0%81%b0rojectId=43",
        "projectId=42%c0%a6a=1",
        "f={%22\\u0070rojectId%22:43}",
        'f={"projectId":42,"projectId":43}',
        'f={"projectId":42,"a":{"projectId":43}}',
        "f=projectId:42,projectId:43",
    ],
)
def test_a_query_that_may_name_another_project(query: str) -> None:
    assert names_other_project(f"/v1/segments?{query}".encode(), 42)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/43",
        "/v1/projects%20/43",
        "/v1/projects.json/43",
        "/v1/projects//43",
        "/v1/projects/./43",
        "/v1/projects/42/../43",
        "/v1/projects//../43",
        "/v1/projects;a=1/43",
        "/v1/projects\\43",
        "/v1/projects%5c43",
        "/v1/%2570rojects/43",
        "/v1/PROJECT/43",
        "/v1/x;projectId=43/y",
        "/v1/projectId/43",
        "/v1/projects/42.json",
        "/v1/project\u017f/43",
        "/v1/projects(43)",
        "/v1/projects(id=43)",
        "/v1/projects;42/43",
        "/v1/projects/42/%c0%ae%c0%ae/43",
        "/v1/projectId/42/projectId/43",
        "/v1/projects/" + "a" * 4096,
    ],
)
def test_a_path_that_may_name_another_project(path: str) -> None:
    assert names_other_project(path.encode(), 42)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/segments?projectId=42",
        "/v1/segments?projectId%5B%5D=42&projectId[]=42",
        "/v1/segments?projectIds=42,42",
        "/v1/segments?filter=%7B%22projectId%22%3A42%2C%22a%22%3A7%7D",
        "/v1/projects/42/surveys",
        "/v1/projects;a=1/42/surveys",
        "/v1/projectId/42",
        "/v1/metrics/site?url=https%3A%2F%2Fexample.com%2Fprojects%2F43",
        "/v1/metrics/site?name=my+project%20no.+43&sort=projectId",
    ],
)
def test_a_target_that_names_no_other_project(target: str) -> None:
    assert not names_other_project(target.encode(), 42)


@pytest.mark.parametrize(
    "query",
    [
        "_method=DELETE",
        "%5fmethod=DELETE",
        "a=1;_METHOD=x",
        "__method",
        "X-HTTP-Method-Override=PUT",
        "httpMethod=PUT",
        ".method=PUT",
        "$httpMethod=PUT",
        "method=delete",
        "x-tunneled-method=%50UT",
        "_\uff4dethod=PUT",
        "_me%c1%b4hod=PUT",
        "a=1%c0%a6_method=PUT",
    ],
)
def test_a_query_that_may_ask_for_another_method(query: str) -> None:
    assert asks_for_method(f"/v1/x?{query}".encode())


@pytest.mark.parametrize("query", ["method=1", "payment_method=card", "q=_method", "a=1", ""])
def test_a_query_that_asks_for_no_method(query: str) -> None:
    assert not asks_for_method(f"/v1/x?{query}".encode())


# The sure test before the exact ones

_PARTS = st.one_of(
    st.sampled_from(
        (
            *"/?&;=#.-_ ~:,+@*'[]{}%\\\0\x7f9",
            *("method", "oauth", "event", "token", "me", "create", "delete", "DELETE", "http", "override"),
            *("m", "e", "t", "h", "o", "d", "a", "u", "v", "n", "M", "E", "V", "\u017f", "\uff4d", "\xc0"),
            *(
                "%6d",
                "%4D",
                "%256f",
                "%u0065",
                "\\u0074",
                "%2f",
                "%3f",
                "%c1%b4",
                "/v1/speed-analysis/event/",
            ),
        )
    ).map(str.encode),
    st.binary(max_size=3),
)


def is_special(target: bytes) -> bool:
    """Whether an exact test finds something."""
    tests = (asks_for_method, may_be_oauth, may_change_events)
    return any(test(target) for test in tests) or any(changes_data(safe, target) for safe in SAFE_METHODS)


@given(st.lists(_PARTS, max_size=24).map(b"".join))
@example(b"/v1/o.a-u_t h/token")
@example(b"/v1/EV.ENT/create")
@example(b"/v1/x?_me-thod=DELETE")
@example(b"/v1/speed-analysis/event/create")
def test_no_exact_test_finds_something_in_a_plain_target(target: bytes) -> None:
    assert not (is_plain(target) and is_special(target))


@given(
    st.sampled_from((b"/v1/oauth/token", b"/v1/oauth/me", b"/event/create", b"/v1/x?_method=put")),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(b"-_.,:+*!%\\ \0\x7f\xc3")), max_size=6),
    st.booleans(),
)
def test_no_mark_hides_a_word_from_the_sure_test(
    target: bytes, marks: list[tuple[int, int]], upper: bool
) -> None:
    for place, mark in marks:
        target = target[:place] + bytes((mark,)) + target[place:]
    target = target.upper() if upper else target
    assert not is_plain(target)


@pytest.mark.parametrize(
    "target",
    ["/", "/v1/metrics/site/bounce-rate?startDate=2026-01-01&period=last_week", "/v1/x?q=a+b&me=thor#d"],
)
def test_a_usual_target_is_plain(target: str) -> None:
    assert is_plain(target.encode())
    assert not is_special(target.encode())
