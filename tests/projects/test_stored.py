"""Answers in memory: one bound for all, and each project's apart."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.projects.stored import OVERHEAD_BYTES, Answer, Store


def answer(content: bytes = b"{}", lifetime_s: float = 10.0) -> Answer:
    return Answer(b"", content, asked_at=0.0, age_s=None, lifetime_s=lifetime_s)


@given(asked_at=st.floats(0, 1e9), age_s=st.floats(0, 1e6))
@example(asked_at=32752.373558690186, age_s=60.0)  # + 60 - 60 is 4e-12 more
def test_what_came_as_old_as_it_may_become_is_never_fresh(asked_at: float, age_s: float) -> None:
    stored = Answer(b"", b"{}", asked_at=asked_at, age_s=age_s, lifetime_s=age_s)
    assert not stored.is_fresh_at(asked_at)


def test_each_shelf_finds_its_own_only() -> None:
    store = Store()
    mine, theirs = store.shelf(), store.shelf()
    mine.put("a", answer(b"mine"), 1)
    assert theirs.get("a") is None
    theirs.put("a", answer(b"theirs"), 1)
    mine.clear()
    found = theirs.get("a")
    assert mine.get("a") is None
    assert found is not None
    assert found.content == b"theirs"


def test_the_longest_unused_answer_of_all_projects_is_dropped() -> None:
    one = OVERHEAD_BYTES + 3
    store = Store(max_bytes=3 * one)
    mine, theirs = store.shelf(), store.shelf()
    theirs.put("x", theirs_one := answer(), 1)
    mine.put("a", answer(), 1)
    mine.put("b", answer(), 1)
    theirs.used(theirs_one)
    mine.put("c", answer(), 1)
    assert [*mine.answers] == ["b", "c"]
    assert [*theirs.answers] == ["x"]
    assert (store.bytes, mine.bytes, theirs.bytes) == (3 * one, 2 * one, one)


def test_what_replaces_another_takes_its_place_and_its_bytes() -> None:
    store = Store()
    shelf = store.shelf()
    shelf.put("a", answer(b"long" * 100), 1)
    shelf.put("a", answer(b""), 1)
    assert (len(store), store.bytes, shelf.bytes) == (1, OVERHEAD_BYTES + 1, OVERHEAD_BYTES + 1)


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    store = Store(max_bytes=OVERHEAD_BYTES)
    store.shelf().put("a", answer(), 1)
    assert (len(store), store.bytes) == (0, 0)


def test_what_is_stale_is_swept() -> None:
    store = Store()
    shelf = store.shelf()
    shelf.put("a", answer(lifetime_s=5.0), 1)
    shelf.put("b", answer(lifetime_s=6.0), 1)
    store.sweep(5.0)
    assert [*shelf.answers] == ["b"]
    assert store.bytes == shelf.bytes == OVERHEAD_BYTES + 3
