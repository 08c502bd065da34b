"""`proxy.tokens.standby`: when the standby pair takes over from the first, and when it gives way."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from proxy.config.settings import Credentials
from proxy.errors import TokenFetchError
from proxy.secret import Secret
from proxy.tokens.standby import Failover

FIRST = Credentials(client_id="id-1", client_secret=Secret("secret-1"))
STANDBY = Credentials(client_id="id-2", client_secret=Secret("secret-2"))
REFUSED = TokenFetchError("refused", cause="credentials_refused", permanent=True, status=401)
STRANGE = TokenFetchError("500", cause="server_error", status=500)
DOWN = TokenFetchError("503", cause="server_error", status=503)
TIMEOUT = TokenFetchError("slow", cause="timeout")
LIMITED = TokenFetchError("429", cause="rate_limited", retry_after_s=20, status=429)
LOST = TokenFetchError("404", cause="unexpected_status", permanent=True, status=404)

Outcome = TokenFetchError | None


class Vendor:
    """Answers each client_id with its error, or with the client_id itself if it has none."""

    def __init__(self, first: Outcome = None, standby: Outcome = None, *, lone: bool = False) -> None:
        self.outcomes = {"id-1": first, "id-2": standby}
        self.asked: list[str] = []
        self.switches: list[tuple[str, TokenFetchError]] = []
        self.failover = Failover(
            (FIRST,) if lone else (FIRST, STANDBY), lambda name, why: self.switches.append((name, why))
        )

    async def fetch(self, credentials: Credentials) -> str:
        self.asked.append(credentials.client_id)
        await asyncio.sleep(0)
        outcome = self.outcomes[credentials.client_id]
        if outcome is not None:
            raise outcome
        return credentials.client_id

    async def ask(self, what: str = "metrics") -> str:
        return await self.failover.fetch(what, self.fetch)

    async def fails(self, what: str = "metrics") -> TokenFetchError:
        with pytest.raises(TokenFetchError) as caught:
            await self.ask(what)
        return caught.value


async def test_while_the_first_pair_works_the_standby_is_never_asked() -> None:
    vendor = Vendor()
    assert await vendor.ask() == "id-1"
    assert vendor.asked == ["id-1"]
    assert vendor.failover.in_use == "first"
    assert not vendor.switches


async def test_a_refused_pair_is_replaced_within_the_same_question_and_it_is_told_once() -> None:
    vendor = Vendor(REFUSED)
    assert [await vendor.ask(), await vendor.ask("surveys")] == ["id-2", "id-2"]
    assert vendor.asked == ["id-1", "id-2", "id-2"]
    assert vendor.switches == [("standby", REFUSED)]
    assert vendor.failover.credentials is STANDBY


async def test_two_questions_at_once_go_over_together() -> None:
    vendor = Vendor(REFUSED)
    assert {*await asyncio.gather(vendor.ask("metrics"), vendor.ask("surveys"))} == {"id-2"}
    assert len(vendor.switches) == 1


async def test_a_refused_standby_gives_way_to_the_first_pair_that_works_again() -> None:
    vendor = Vendor(REFUSED)
    await vendor.ask()
    vendor.outcomes = {"id-1": None, "id-2": REFUSED}
    assert await vendor.ask() == "id-1"
    assert [name for name, _ in vendor.switches] == ["standby", "first"]


async def test_a_working_standby_is_not_given_up_because_the_first_pair_works_again() -> None:
    vendor = Vendor(REFUSED)
    await vendor.ask()
    vendor.outcomes["id-1"] = None
    assert await vendor.ask() == "id-2"


async def test_starting_over_asks_the_first_pair_again() -> None:
    vendor = Vendor(REFUSED)
    await vendor.ask()
    vendor.failover.start_over()
    assert await vendor.ask() == "id-2"
    assert vendor.asked == ["id-1", "id-2", "id-1", "id-2"]
    vendor.failover.start_over()
    vendor.outcomes["id-1"] = None
    assert await vendor.ask() == "id-1"


async def test_with_both_refused_nothing_changes_and_the_error_is_that_of_the_pair_in_use() -> None:
    vendor = Vendor(REFUSED, TokenFetchError("no", cause="credentials_refused", permanent=True, status=403))
    assert await vendor.fails() is REFUSED
    assert not vendor.switches


@pytest.mark.parametrize("error", [DOWN, TIMEOUT, LIMITED, LOST])
async def test_trouble_of_the_endpoint_is_no_reason_to_try_the_standby(error: TokenFetchError) -> None:
    vendor = Vendor(error)
    for _ in range(10):
        assert await vendor.fails() is error
    assert set(vendor.asked) == {"id-1"}


async def test_the_generic_500_is_suspicious_after_a_few_in_a_row() -> None:
    vendor = Vendor(STRANGE)
    assert await vendor.fails() is STRANGE
    assert await vendor.fails() is STRANGE
    assert await vendor.ask() == "id-2"
    assert vendor.asked == ["id-1"] * 3 + ["id-2"]
    assert vendor.switches == [("standby", STRANGE)]


async def test_a_success_in_between_ends_the_row() -> None:
    vendor = Vendor(STRANGE)
    for _ in range(5):
        vendor.outcomes["id-1"] = STRANGE
        await vendor.fails()
        await vendor.fails()
        vendor.outcomes["id-1"] = None
        await vendor.ask()
    assert "id-2" not in vendor.asked


@pytest.mark.parametrize("theirs", [STRANGE, REFUSED, DOWN, TIMEOUT])
async def test_an_outage_of_500s_hardly_asks_the_standby_and_does_not_go_over(
    theirs: TokenFetchError,
) -> None:
    vendor = Vendor(STRANGE, theirs)
    for _ in range(48):
        assert await vendor.fails() is STRANGE
    assert Counter(vendor.asked) == {"id-1": 48, "id-2": 5}  # after 3, 6, 12, 24 and 48
    assert not vendor.switches


@pytest.mark.parametrize("theirs", [DOWN, TIMEOUT, LIMITED])
async def test_a_refused_pair_is_not_asked_again_while_the_standby_is_out_of_reach(
    theirs: TokenFetchError,
) -> None:
    vendor = Vendor(REFUSED, theirs)
    for _ in range(4):
        assert await vendor.fails() is theirs
    assert vendor.asked == ["id-1", *["id-2"] * 4]
    vendor.outcomes["id-2"] = None
    assert await vendor.ask() == "id-2"
    assert vendor.switches == [("standby", REFUSED)]


async def test_without_a_standby_errors_come_out_as_they_are() -> None:
    vendor = Vendor(REFUSED, lone=True)
    assert await vendor.fails() is REFUSED
    vendor.outcomes["id-1"] = STRANGE
    for _ in range(5):
        assert await vendor.fails() is STRANGE
    assert vendor.asked == ["id-1"] * 6


async def test_a_bug_is_not_taken_for_a_refusal() -> None:
    vendor = Vendor()

    async def bug(_: Credentials) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await vendor.failover.fetch("metrics", bug)
    assert vendor.failover.in_use == "first"


def test_there_are_one_or_two_pairs() -> None:
    with pytest.raises(ValueError, match="one or two"):
        Failover(())
    with pytest.raises(ValueError, match="one or two"):
        Failover((FIRST, STANDBY, FIRST))
