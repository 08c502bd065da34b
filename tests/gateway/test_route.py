"""Which project and API a target is for, and that no spelling of it reaches another project."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, cast
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.cases import together

from proxy.contentsquare import Api
from proxy.errors import BadTarget, UnknownProject
from proxy.gateway.route import Router

ALLOWED = {42, 43}


def account_project(account: str, project_id: int, _caller: str) -> Any:
    return f"{account}/{project_id}" if project_id in ALLOWED else None


class Found(NamedTuple):
    """A `Route` by names."""

    project: str
    api: Api | None
    target: bytes


class Routes:
    """A router, whose projects stand for themselves by their names."""

    def __init__(self, default: Any) -> None:
        projects: Any = {name: name for name in ("shop-fr", "shop-us")}
        self._router = Router(
            projects,
            default=default,
            accounts=frozenset(("acme",)),
            account_project=account_project,
        )

    def route(
        self,
        target: bytes,
        own: Any = None,
        project: bytes | None = None,
        api: bytes | None = None,
        token: bytes | None = None,
    ) -> Any:
        return Found(*cast(Any, self._router.route(target, None, own, (project, api, token))))


def router(*, default: Any = None) -> Routes:
    return Routes(default)


def parts(route: Any) -> tuple[str, Api | None, bytes]:
    return route.project, route.api, route.target


@pytest.mark.parametrize(
    ("target", "project", "rest"),
    [
        (b"/shop-fr/v1/exports", "shop-fr", b"/v1/exports"),
        (b"/shop-us/v1/x?a=/shop-fr/&b=%2e%2E", "shop-us", b"/v1/x?a=/shop-fr/&b=%2e%2E"),
        (b"/shop-fr", "shop-fr", b"/"),
        (b"/shop-fr?a=b", "shop-fr", b"/?a=b"),
        (b"/shop-fr/", "shop-fr", b"/"),
        (b"/shop-fr//v1/", "shop-fr", b"//v1/"),
        (b"/shop-fr/shop-us/v1", "shop-fr", b"/shop-us/v1"),
        (b"/shop-fr/\xc3\xa9/%C3%A9/%c3%a9/~/%7E", "shop-fr", b"/\xc3\xa9/%C3%A9/%c3%a9/~/%7E"),
        (b"/acme/42/v1/x", "acme/42", b"/v1/x"),
        (b"/acme/43?x", "acme/43", b"/?x"),
        (b"/acme/42", "acme/42", b"/"),
    ],
)
def test_a_prefix_names_the_project_and_the_rest_stays_byte_for_byte(
    target: bytes, project: str, rest: bytes
) -> None:
    route = router().route(target)
    assert (route.project, route.target) == (project, rest)


def test_a_prefix_goes_before_the_field_and_the_field_before_the_default() -> None:
    routes = router(default="shop-us")
    assert routes.route(b"/shop-us/v1/x", project=b"shop-fr").project == "shop-us"
    assert routes.route(b"/v1/x", project=b"shop-fr").project == "shop-fr"
    assert parts(routes.route(b"/v1/x")) == ("shop-us", None, b"/v1/x")


def test_the_field_can_name_an_accounts_project() -> None:
    assert parts(router().route(b"/v1/x", project=b"acme/42")) == ("acme/42", None, b"/v1/x")
    for value in (b"acme", b"acme/", b"acme/x", b"acme/0", b"acme/42/", b"shop-fr/42", b"", b"SHOP-FR"):
        with pytest.raises(UnknownProject):
            router().route(b"/v1/x", project=value)


def test_a_listener_of_its_own_takes_every_target_whole() -> None:
    route = router(default="shop-us").route(b"/shop-us/v1/x", own="shop-fr", project=b"shop-us")
    assert (route.project, route.target) == ("shop-fr", b"/shop-us/v1/x")


def test_paths_that_no_project_is_named_by_go_to_the_default() -> None:
    for target in (b"/", b"/v1", b"/?x", b"/v2/new", b"/other/path", b"//shop-fr/v1"):
        assert parts(router(default="shop-us").route(target)) == ("shop-us", None, target)


def test_a_misspelt_project_is_not_taken_for_a_path_of_the_default() -> None:
    with pytest.raises(UnknownProject, match="/shop-fr/v1/"):
        router(default="shop-us").route(b"/shop-rf/v1/exports")
    with pytest.raises(UnknownProject, match="/acme/42/v1/"):
        router(default="shop-us").route(b"/acne/42/v1/exports")


@pytest.mark.parametrize(
    ("target", "near"),
    [
        (b"/shop_fr/v1/x", ["/shop-fr/v1/..."]),
        (b"/shop/v1/x", ["/shop-fr/v1/...", "/shop-us/v1/..."]),
        (b"/acne/42/v1/x", ["/acme/42/v1/..."]),
        (b"/zzz/v1/x", ["/acme/42/v1/...", "/shop-fr/v1/...", "/shop-us/v1/..."]),
        (b"/v1/x", ["/acme/42/v1/...", "/shop-fr/v1/...", "/shop-us/v1/..."]),
    ],
)
def test_an_unknown_project_is_answered_with_the_nearest_names(target: bytes, near: list[str]) -> None:
    with pytest.raises(UnknownProject) as caught:
        router().route(target)
    assert all(name in caught.value.message for name in near)
    assert (caught.value.code, caught.value.status) == ("PROXY_UNKNOWN_PROJECT", 404)


def test_a_path_without_a_project_says_that_none_is_named() -> None:
    with pytest.raises(UnknownProject, match="No project is named in the path"):
        router().route(b"/v1/x")


def test_names_are_compared_exactly() -> None:
    for target in (
        b"/SHOP-FR/v1/x",
        b"/shop%2Dfr/v1/x",
        b"/shop-fr;a=b/v1/x",
        b"/shop-fr%2fv1/x",
        b"/%73hop-fr/v1",
    ):
        with pytest.raises(UnknownProject):
            router().route(target)


@pytest.mark.parametrize(
    "number", [b"", b"x", b"0", b"042", b"-1", b"+42", b"4_2", b"%342", b"\xd9\xa4", b"9" * 19]
)
def test_an_accounts_project_is_a_plain_number(number: bytes) -> None:
    with pytest.raises(UnknownProject, match="/acme/42/v1/"):
        router().route(b"/acme/" + number + b"/v1/x")


def test_an_accounts_project_that_is_not_allowed_does_not_exist() -> None:
    with pytest.raises(UnknownProject, match=r"44 is not among accounts\.acme\.projects"):
        router().route(b"/acme/44/v1/x")


@pytest.mark.parametrize("target", [b"", b"*", b"v1/x", b"http://a/v1", b"\\shop-fr"])
def test_a_target_that_is_no_path_is_refused(target: bytes) -> None:
    with pytest.raises(BadTarget):
        router(default="shop-us").route(target)


# The API


@pytest.mark.parametrize(
    ("rest", "api"),
    [
        (b"/v1/exports", Api.DATA_EXPORT),
        (b"/v1/exports?x", Api.DATA_EXPORT),
        (b"/v1/metrics/site/visits", Api.METRICS),
        (b"/v1/enrichments", Api.ENRICHMENT),
        (b"/v1/speed-analysis/event/list", Api.SPEED_ANALYSIS),
        (b"/v1/public/projects/7/surveys/9/responses", Api.SURVEYS),
        (b"/v1/public/projects/7/other", None),
        (b"/v1/exports-new", None),
        (b"/v2/exports", None),
        (b"/V1/exports", None),
        (b"/", None),
    ],
)
def test_the_api_follows_from_the_path_after_the_prefix(rest: bytes, api: Api | None) -> None:
    for prefix in (b"/shop-fr", b"/acme/42", b""):
        assert router(default="shop-us").route(prefix + rest).api is api
    assert router().route(rest, own="shop-fr").api is api


def test_the_api_field_overrides_the_path() -> None:
    for api in Api:
        assert router().route(b"/shop-fr/v1/exports", api=api.value.encode()).api is api


@pytest.mark.parametrize("value", [b"", b"Metrics", b"metric", b"metrics,surveys", b"\xff"])
def test_an_unknown_api_field_is_a_400_that_names_the_known(value: bytes) -> None:
    with pytest.raises(BadTarget, match="data-export, metrics, enrichment, speed-analysis, surveys"):
        router().route(b"/shop-fr/v1/exports", api=value)


# Dot segments

DOTS = [b"..", b".%2e", b"%2E.", b"%2e%2e", b"%2E%2e"]
SEPARATORS = [b"/", b"\\", b"%2f", b"%2F", b"%5c", b"%5C"]


@together(("dots", "before", "after"), list(itertools.product(DOTS, SEPARATORS, [*SEPARATORS, b""])))
def test_dot_segments_that_leave_the_project_are_refused_in_every_spelling(
    dots: bytes, before: bytes, after: bytes
) -> None:
    onward = after + b"shop-us/v1/x" if after else b""
    for prefix in (b"/shop-fr/", b"/acme/42/"):
        for leaving in (
            dots + onward,
            dots + b";a=b" + onward,
            b"." + before + dots + onward,
            b"a" + before + dots + b"/" + dots + onward,
            b"a" + before + dots + before + dots + onward,
        ):
            with pytest.raises(BadTarget) as caught:
                router(default="shop-us").route(prefix + leaving)
            assert (caught.value.code, caught.value.status) == ("PROXY_BAD_TARGET", 400)


@pytest.mark.parametrize(("dots", "before"), list(itertools.product(DOTS, SEPARATORS[1:])))
def test_a_project_is_named_by_a_whole_segment_only(dots: bytes, before: bytes) -> None:
    for target in (b"/shop-fr" + before + dots, b"/shop-fr" + before + dots + b"/v1/x"):
        with pytest.raises((UnknownProject, BadTarget)):
            router().route(target)
    with pytest.raises((UnknownProject, BadTarget)):
        router().route(b"/acme/42" + before + dots + b"/43/v1/x")


@pytest.mark.parametrize("dots", DOTS)
def test_dot_segments_above_the_root_are_refused_without_a_prefix_too(dots: bytes) -> None:
    for target in (b"/" + dots, b"/v1/" + dots + b"/" + dots + b"/x"):
        with pytest.raises(BadTarget):
            router(default="shop-us").route(target)
        with pytest.raises(BadTarget):
            router().route(target, own="shop-fr")


@pytest.mark.parametrize(
    "rest",
    [
        b"/v1/a/../b",
        b"/v1/./x",
        b"/v1/%2e/x",
        b"/a%2f..%2fb",
        b"/v1/...",
        b"/v1/..a",
        b"/v1/a..",
        b"/v1/%2e%2ea",
        b"/v1/x?a=/../../..",
        b"/v1/x?/../../shop-us",
        b"/v1/.well-known",
    ],
)
def test_dots_that_stay_in_the_project_are_passed_on_untouched(rest: bytes) -> None:
    assert router().route(b"/shop-fr" + rest).target == rest


def landed(path: bytes, *, rounds: int) -> list[bytes]:
    """The segments of a path as a careless server might see them: decoded so many times, dots resolved."""
    for _ in range(rounds):
        path = unquote_to_bytes(path)
    segments: list[bytes] = []
    for segment in path.replace(b"\\", b"/").split(b"/")[1:]:
        name = segment.split(b";")[0]
        if name == b"..":
            if not segments:
                return [b"above the root"]
            segments.pop()
        elif name != b".":
            segments.append(segment)
    return segments


PIECES = st.sampled_from(
    [
        b"/",
        b"\\",
        b"%2f",
        b"%5C",
        b".",
        b"..",
        b"%2e",
        b"%2E",
        b";",
        b"a",
        b"shop-us",
        b"acme",
        b"43",
        b"v1",
        b"%73",
    ]
)


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=12).map(b"".join))
@example(b"/../shop-us/v1")
@example(b"/;/../../shop-us")
@example(b"/..;/shop-us")
@example(b"//../../shop-us")
def test_no_target_that_names_one_project_reaches_another(rest: bytes) -> None:
    for prefix, project in ((b"/shop-fr/", "shop-fr"), (b"/acme/42/", "acme/42")):
        try:
            route = router(default="shop-us").route(prefix + rest)
        except BadTarget:
            continue
        assert (route.project, route.target) == (project, b"/" + rest)
        for rounds in (0, 1):
            seen = landed(prefix + rest, rounds=rounds)
            depth = prefix.count(b"/") - 1
            assert seen[:depth] == prefix.strip(b"/").split(b"/"), rest


@given(st.binary(max_size=30))
def test_any_target_has_one_route_or_an_error_of_ours(target: bytes) -> None:
    try:
        route = router(default="shop-us").route(b"/" + target)
    except (BadTarget, UnknownProject):
        return
    assert (b"/" + target).endswith(route.target) or route.target.startswith(b"/?") or route.target == b"/"
