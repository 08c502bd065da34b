"""`gateway.lenient`: the readings of lenient servers."""

from __future__ import annotations

import pytest

from proxy.gateway.lenient import asks_for_method, names_other_project


@pytest.mark.parametrize(
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
