"""The last requests: how many are kept, in which order, and what of a target is."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.requests import request

from proxy.logs import redactor
from proxy.origin import Origin
from proxy.projects import recent
from proxy.projects.recent import (
    LONGEST_TARGET,
    MOST_OF_ALL,
    MOST_OF_ONE,
    RecentRequest,
    RecentRequests,
    cut_target,
    kept_code,
    kept_target,
)

SECRET = "canary-secret-with/slash+and-plus"


@pytest.fixture
def _secret() -> Iterator[None]:
    redactor.add(SECRET)
    yield
    redactor.discard(SECRET)


def one(
    project: str | None, number: int = 0, *, target: bytes = b"/v1/segments", **facts: object
) -> RecentRequest:
    ended = request(**{"request_id": f"r-{number}", **facts})  # type: ignore[arg-type]  # it has no status
    return RecentRequest(project, None, target, ended, 0.1)


def ids(kept: list[RecentRequest]) -> list[str | None]:
    return [each.facts.request_id for each in kept]


def test_the_last_ones_of_each_project_are_kept_whatever_the_others_do() -> None:
    kept = RecentRequests()
    kept.add(one("quiet"))
    for number in range(MOST_OF_ONE + 50):
        kept.add(one("busy", number))
        kept.add(one(None, number))
    last = [f"r-{number}" for number in range(50, MOST_OF_ONE + 50)]
    assert ids(kept.after(0, "quiet")) == ["r-0"]
    assert ids(kept.after(0, "busy")) == last
    assert ids(kept.after(0, "")) == last
    assert len(kept.after(0)) == 2 * MOST_OF_ONE + 1


def test_the_oldest_is_first_and_after_leaves_the_known_ones_out() -> None:
    kept = RecentRequests()
    for number in range(10):
        kept.add(one(("a", "b", None)[number % 3], number))
    everything = kept.after(0)
    assert ids(everything) == [f"r-{number}" for number in range(10)]
    assert ids(kept.after(everything[6].id)) == ["r-7", "r-8", "r-9"]
    assert ids(kept.after(everything[6].id, "b")) == ["r-7"]
    assert kept.after(0, "unknown") == []


def test_ids_grow_though_the_clock_goes_back_and_over_a_restart() -> None:
    times = iter([100.0, 100.0, 50.0, 100.5])
    kept = RecentRequests(lambda: next(times))
    for number in range(3):
        kept.add(one("shop", number))
    found = [each.id for each in kept.after(0)]
    assert all(before < after for before, after in pairwise(found))
    again = RecentRequests(lambda: 100.5)
    again.add(one("shop"))
    assert again.after(0)[0].id > found[-1]
    assert [each.at for each in kept.after(0)] == [100.0, 100.0, 50.0]


def test_with_many_projects_fewer_of_each_are_kept() -> None:
    kept = RecentRequests()
    names = [f"shop-{number}" for number in range(1000)]
    share = MOST_OF_ALL // len(names)
    for at, name in enumerate(names):  # the first ones fill the places that the others take from them
        for number in range(MOST_OF_ONE if at < 50 else share + 2):
            kept.add(one(name, number))
    counts = Counter(each.project for each in kept.after(0))
    assert counts == dict.fromkeys(names, share)
    assert ids(kept.after(0, names[0]))[-1] == f"r-{MOST_OF_ONE - 1}"
    assert ids(kept.after(0, names[-1]))[-1] == f"r-{share + 1}"


def test_the_longest_idle_project_goes_first() -> None:
    kept = RecentRequests()
    most = recent.MOST_LISTS
    for number in range(most):
        kept.add(one(f"shop-{number}"))
    kept.add(one("shop-0"))
    kept.add(one("shop-new"))
    assert len(kept.projects) == most
    assert "shop-1" not in kept.projects
    assert {"shop-0", "shop-2", "shop-new"} <= set(kept.projects)


def test_invented_ids_of_an_account_push_out_nothing() -> None:
    kept = RecentRequests()
    cloud = Origin("https", "api.example", 443)
    for number in range(MOST_OF_ONE):
        kept.add(one("shop", number))
        kept.add(one("acme/1", number, upstream=cloud))
    for number in range(2 * recent.MOST_LISTS):
        kept.add(one(f"acme/{number + 2}", number, error_code="PROXY_TOKEN_UNAVAILABLE"))
    assert len(kept.after(0, "shop")) == len(kept.after(0, "acme/1")) == MOST_OF_ONE
    assert len(kept.after(0)) == 3 * MOST_OF_ONE
    last = 2 * recent.MOST_LISTS + 1
    assert ids(kept.after(0, f"acme/{last}")) == [f"r-{last - 2}"]
    assert kept.after(0, "acme/2") == []
    assert kept.projects == ["shop", "acme/1"]
    kept.add(one(f"acme/{last}", 0, upstream=cloud))  # it has a token now
    assert ids(kept.after(0, f"acme/{last}")) == [f"r-{last - 2}", "r-0"]


def test_switched_off_all_is_forgotten() -> None:
    kept = RecentRequests()
    kept.add(one("shop"))
    kept.add(one(None))
    kept.switch(on=True)
    assert len(kept.after(0)) == 2
    kept.switch(on=False)
    assert (kept.is_on, kept.after(0), kept.projects) == (False, [], [])


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts CPython's bytes")
def test_the_largest_requests_of_all_projects_take_less_than_64_mib() -> None:
    share = 64
    tracemalloc.start()
    try:
        kept = RecentRequests()
        for number in range(MOST_OF_ALL // share):
            path = b"/v1/" + b"%d/" % number * 1000
            # Made new for each, as those of a request are.
            largest = one(
                f"shop-{number // MOST_OF_ONE}",
                target=cut_target(path),
                vendor_code=kept_code("E" * 1000 + str(number)),
                request_id="i" * 120 + str(number),
                waited_s=number / 7,
                began_at=number / 3,
                sent_at=number / 5,
                replays=tuple(["stale", "token"] * 1),
            )
            largest.took_s = number / 11
            largest.bytes_in, largest.bytes_out = 10**12 + number, 10**13 + number
            kept.add(largest)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size * share < 64 << 20


# ---- targets


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (b"/shop/v1/exports/1002", b"/shop/v1/exports/1002"),
        (b"/v1/x?startDate=2026-01-01&csq_key=k", b"/v1/x?"),
        (b"/v1/x?", b"/v1/x?"),
        (b"/v1/x#access_token=abc", b"/v1/x"),
        (b"/v1/x#a?b", b"/v1/x"),
        (b"http://user:pw@localhost:8277/v1/x?a", b"/v1/x?"),
        (b"HTTPS://localhost", b""),
        (b"*", b"*"),
        (b"/v1/a%20b%0a", b"/v1/a%20b%0a"),
        (b"/v1/\x1b[31m\r\nred", rb"/v1/\x1b[31m\r\nred"),
        ("/v1/über".encode(), "/v1/über".encode()),
        ("/v1/\u202efdp".encode(), rb"/v1/\u202efdp"),
        (b"/v1/\xff", rb"/v1/\xff"),
    ],
)
def test_the_part_of_a_target_that_is_kept(target: bytes, kept: bytes) -> None:
    assert kept_target(target) == kept
    assert kept_target(kept) == kept
    assert kept_target(cut_target(target)) == kept


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize(
    "form",
    [
        SECRET.encode(),
        b"canary-secret-with%2Fslash%2Band-plus",
        b"canary-secret-with%252Fslash%252Band-plus",
        SECRET.upper().encode(),
        SECRET.encode().hex().encode(),
        SECRET[::-1].encode(),
    ],
)
@pytest.mark.parametrize(
    "around", [b"/v1/%b/x", b"/v1/x/%b", b"/%b", b"/" + b"a" * 190 + b"/%b", b"/v1/x?a=%b"]
)
def test_no_form_of_a_secret_is_kept(form: bytes, around: bytes) -> None:
    kept = kept_target(around % form)
    assert SECRET.partition("/")[0].encode() not in kept.lower()
    assert form[:12] not in kept
    assert kept_target(kept) == kept


@given(st.binary(max_size=600))
def test_any_target_becomes_a_short_printable_text(target: bytes) -> None:
    for kept in (kept_target(target), kept_target(b"/" + target), kept_target(cut_target(b"/" + target))):
        text = kept.decode()
        assert text.isprintable()
        assert len(kept) <= LONGEST_TARGET + 1
        assert text.count("?") <= 1
        assert "#" not in text
        assert kept_target(kept) == kept


def test_a_long_path_is_cut_between_two_segments() -> None:
    target = b"/v1/" + b"segment/" * 1000
    kept = kept_target(target)
    assert kept.endswith(b"/segment/...")
    assert len(kept) <= LONGEST_TARGET
    assert cut_target(target) == kept
    assert kept_target(b"/" + b"x" * 5000) == b"/..."


@pytest.mark.usefixtures("_secret")
def test_a_code_of_the_clouds_is_cut_and_holds_no_secret() -> None:
    assert kept_code("INVALID_SEGMENT") == "INVALID_SEGMENT"
    assert kept_code("\x1b]0;x" + SECRET) == r"\x1b]0;x[redacted]"
    assert len(kept_code("x" * 5000)) == recent.LONGEST_CODE
