"""`proxy.projects.naming`: the names that a caller may have meant, found among a thousand in little time."""

from __future__ import annotations

import difflib
import random
import time
from collections.abc import Callable

import pytest

from proxy.projects.naming import names_like

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"
rng = random.Random(14)
KNOWN = {
    "numbered": [f"project-{number}" for number in range(1000)],
    "of words": [
        f"{kind}-{land}{number}" for kind in ("shop", "app") for land in ("fr", "de") for number in range(250)
    ],
    "of no words": ["".join(rng.choices(LETTERS, k=rng.randrange(4, 20))) for _ in range(1000)],
}


def typo(name: str) -> str:
    """The name with one letter too few, too many, wrong or in the wrong place."""
    at, letter = rng.randrange(len(name)), rng.choice(LETTERS)
    swapped = name[:at] + name[at + 1 : at + 2] + name[at : at + 1] + name[at + 2 :]
    return rng.choice(
        [
            name[:at] + name[at + 1 :],
            name[:at] + letter + name[at:],
            name[:at] + letter + name[at + 1 :],
            swapped,
        ]
    )


def likeness(name: str, found: list[str]) -> float:
    """That of the found name which is most like it."""
    return max(difflib.SequenceMatcher(None, other, name).ratio() for other in found)


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_no_known_name_is_more_like_it_than_the_one_that_is_found(
    known: list[str],
) -> None:
    for _ in range(10):
        name = typo(rng.choice(known))
        best = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        assert likeness(name, names_like(name, known)) == likeness(name, best)


def test_without_a_like_name_the_first_ten_are_named() -> None:
    known = [f"shop-{number}" for number in range(20, 0, -1)]
    assert names_like("zzzz", known) == sorted(known)[:10]
    assert names_like("", known) == sorted(known)[:10]
    assert names_like("x", []) == []


def cpu_s(call: Callable[[], object]) -> float:
    """The least CPU time of several calls."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return min(times)


@pytest.mark.parametrize("name", ["project-1001", "projcet-42", "p" * 64, "project-" * 8, "zzzz"])
def test_a_search_among_a_thousand_names_takes_little_time(
    name: str,
) -> None:
    known = KNOWN["numbered"]
    with_all = cpu_s(lambda: difflib.get_close_matches("project-1001", known, n=3, cutoff=0.5))
    assert cpu_s(lambda: names_like(name, known)) < with_all / 3  # a twelfth, by hand
