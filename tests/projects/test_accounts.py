"""An account's projects: made on demand, dropped when idle, never while they are in use, never too many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import (
    Gateway,
    Held,
    RawServer,
    TokenServer,
    Upstream,
    gateway,
    read_message,
    settings_for,
    until,
)

from proxy.app.app import App
from proxy.errors import TokenUnavailable
from proxy.logs.setup import redactor
from proxy.projects import Project, accounts
from proxy.projects.accounts import USELESS_S, AccountProjects
from proxy.projects.new_ids import MOST_UNPROVEN
from proxy.tokens.breaker import NamedBy

ACME = {"client_id": "id-2", "client_secret": "secret-2"}
ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}


@dataclass
class Stub:
    """A project, as far as the module under test knows one."""

    name: str
    running: int = 0
    has_lease: bool = True
    closed: bool = False
    is_proven: bool = True
    named_by: NamedBy = field(default_factory=NamedBy)

    def close(self) -> None:
        assert not self.running
        assert not self.closed
        self.closed = True


class Shelf:
    """Stubs in an `AccountProjects`, and a clock that stands still unless told."""

    def __init__(self, most: int = 3, most_new: int = 3, *, makes_new: bool = False) -> None:
        self.now = 1000.0
        self.made: list[Stub] = []
        self.makes_new = makes_new
        self.projects = AccountProjects(most=most, most_new=most_new, now=lambda: self.now)

    def get(self, name: str, caller: str = "") -> Stub:
        return cast(Stub, self.projects.get(name, self._make, caller))

    def _make(self, name: str) -> Project:
        self.made.append(Stub(name, is_proven=not self.makes_new))
        return cast(Project, self.made[-1])

    @property
    def names(self) -> list[str]:
        return [project.name for project in self.projects]


def test_a_project_is_made_once_and_goes_some_time_after_its_last_use_once_its_token_has_expired() -> None:
    shelf = Shelf()
    first = shelf.get("acme/1")
    shelf.now += 10 * USELESS_S
    assert shelf.projects.sweep() == []
    assert shelf.get("acme/1") is first
    first.has_lease = False
    shelf.now += USELESS_S - 1
    assert shelf.projects.sweep() == []
    shelf.now += 1
    assert shelf.projects.sweep() == ["acme/1"]
    assert first.closed
    assert not shelf.names
    assert shelf.get("acme/1") is not first


def test_one_with_a_running_request_or_a_waiter_never_goes_and_its_time_begins_at_the_end() -> None:
    shelf = Shelf()
    project = shelf.get("acme/1")
    project.running = 1
    project.has_lease = False
    for _ in range(5):
        shelf.now += 2 * USELESS_S
        assert shelf.projects.sweep() == []
    project.running = 0
    shelf.now += USELESS_S - 1
    assert shelf.projects.sweep() == []
    shelf.now += 1
    assert shelf.projects.sweep() == ["acme/1"]


def test_a_project_without_a_token_never_takes_the_place_of_one_that_got_one() -> None:
    shelf = Shelf(most=2, most_new=2, makes_new=True)
    for number in (1, 2):
        shelf.get(f"acme/{number}").is_proven = True
    for number in range(900, 910):
        shelf.get(f"acme/{number}")
    assert shelf.names == ["acme/1", "acme/2", "acme/908", "acme/909"]
    shelf.get("acme/909").running = shelf.get("acme/908").running = 1
    with pytest.raises(TokenUnavailable, match="2 projects of accounts"):
        shelf.get("acme/910")
    shelf.get("acme/908").is_proven = True
    shelf.get("acme/910")
    assert shelf.names == [
        "acme/2",
        "acme/908",
        "acme/909",
        "acme/910",
    ]  # a proven one makes room for another


def test_a_caller_can_invent_few_ids_and_holds_up_no_other_caller() -> None:
    shelf = Shelf(most=1000, most_new=1000, makes_new=True)
    for number in range(MOST_UNPROVEN):
        shelf.get(f"acme/{number}", "mallory")
    with pytest.raises(TokenUnavailable, match="check their ids") as caught:
        shelf.get("acme/1000", "mallory")
    assert caught.value.retry_after_s == 1
    assert shelf.get("acme/1", "mallory").name == "acme/1"
    assert shelf.get("acme/1000", "alice").name == "acme/1000"
    shelf.now += 1
    for number in (2000, 2001):
        shelf.get(f"acme/{number}", "mallory")
    with pytest.raises(TokenUnavailable):
        shelf.get("acme/2002", "mallory")


def test_ids_that_get_their_tokens_hold_their_caller_up_for_no_time() -> None:
    shelf = Shelf(most=5000, makes_new=True, most_new=1000)
    for number in range(2000):
        shelf.get(f"acme/{number}").is_proven = True
    assert len(shelf.projects) == 2000


def test_the_longest_unused_makes_room_for_a_new_one() -> None:
    shelf = Shelf(most=3)
    for name in ("acme/1", "acme/2", "acme/3", "acme/1"):
        shelf.get(name)
    shelf.get("acme/4")
    assert shelf.names == ["acme/1", "acme/3", "acme/4"]
    shelf.get("acme/3").running = 1
    shelf.get("acme/1")
    shelf.get("acme/5")
    shelf.get("acme/6")
    assert shelf.names == ["acme/3", "acme/5", "acme/6"]


def test_with_all_of_them_in_use_a_new_one_is_told_to_try_again() -> None:
    shelf = Shelf(most=2)
    for name in ("acme/1", "acme/2"):
        shelf.get(name).running = 1
    with pytest.raises(TokenUnavailable, match="2 projects of accounts") as caught:
        shelf.get("acme/3")
    assert caught.value.retry_after_s == 5
    assert shelf.names == ["acme/1", "acme/2"]
    assert shelf.get("acme/1").running == 1


def test_an_accounts_projects_go_or_are_replaced_and_those_of_others_stay() -> None:
    shelf = Shelf()
    for name in ("acme/1", "acme-eu/1", "acme/2"):
        shelf.get(name)
    shelf.now += USELESS_S - 1
    new = Stub("acme/2", has_lease=False)
    shelf.get("acme-eu/1").has_lease = False
    old = shelf.projects.replace(
        "acme", lambda project: cast(Project, new) if project.name == new.name else None
    )
    assert [project.name for project in old] == ["acme/1", "acme/2"]
    assert shelf.names == ["acme-eu/1", "acme/2"]
    assert not any(stub.closed for stub in shelf.made)
    shelf.now += 1
    assert shelf.projects.sweep() == ["acme/2"]  # a successor's time began with its first one
    assert new.closed


@given(
    st.lists(
        st.tuples(st.sampled_from(("use", "begin", "end", "wait", "expire", "sweep")), st.integers(1, 6)),
        max_size=60,
    )
)
def test_whatever_happens_none_in_use_is_closed_and_the_bound_holds(steps: list[tuple[str, int]]) -> None:
    shelf = Shelf(most=3)
    for what, number in steps:
        name = f"acme/{number}"
        busy = {stub.name for stub in shelf.made if stub.running}
        if what == "wait":
            shelf.now += number * USELESS_S / 4
        elif what == "expire":
            for stub in shelf.made:
                stub.has_lease = stub.has_lease and stub.name != name
        elif what == "sweep":
            shelf.projects.sweep()
        elif what == "end":
            for stub in shelf.made:
                stub.running -= stub.name == name and stub.running > 0
        elif name in shelf.names or len(busy) < 3:
            shelf.get(name).running += what == "begin"
        assert len(shelf.projects) == len(shelf.names) <= 3
        assert all((stub.name in shelf.names) != stub.closed for stub in shelf.made if stub.running)
    assert sum(not stub.closed for stub in shelf.made) == len(shelf.projects)


# In a running proxy


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle projects go after 0.4 s, which the steps of the tests don't take; a sweep comes every 2 ms."""
    monkeypatch.setattr(accounts, "USELESS_S", 0.4)
    monkeypatch.setattr(Project, "has_lease", False)
    monkeypatch.setattr("proxy.app.app.SWEEP_S", 0.002)


def names(running: Gateway) -> list[str]:
    return [project.name for project in running.app.projects() if "/" in project.name]


async def test_an_idle_project_ends_with_its_tasks_and_its_secrets_and_comes_back(hurried: None) -> None:
    before = repr(redactor)
    async with gateway(accounts={"acme": ACME}) as running:
        assert (await running.call(b"GET /acme/42/v1/segments")).status == 200
        [project] = [one for one in running.app.projects() if one.name == "acme/42"]
        count = repr(redactor)
        await until(lambda: not names(running))
        await until(lambda: not project._tasks)
        assert repr(redactor) != count
        assert (await running.call(b"GET /acme/42/v1/segments")).status == 200
        assert [request.get("project_id") for request in running.token.requests] == [None, 42, 42]
    assert repr(redactor) == before


async def test_a_project_with_a_running_request_and_a_waiting_one_stays(
    hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held()
    contentsquare = {"max_concurrency": 1}
    async with gateway(held, accounts={"acme": ACME}, contentsquare=contentsquare) as running:
        reader, writer = await running.connect()
        writer.write(running.request(b"GET /acme/42/v1/segments"))
        await held.started.wait()
        waiting = asyncio.create_task(running.call(b"GET /acme/42/v1/segments"))
        await until(lambda: any(project.slots.waiting for project in running.app.projects()))
        monkeypatch.setattr(accounts, "USELESS_S", 0.0)
        await asyncio.sleep(0.03)  # many sweeps
        [project] = [one for one in running.app.projects() if one.name == "acme/42"]
        assert (project.running, project.slots.waiting) == (2, 1)
        held.go_on.set()
        assert (await read_message(reader)).body == b"ok"
        assert (await waiting).status == 200
        await until(lambda: not names(running))


async def test_a_caller_that_leaves_does_not_keep_a_project_for_ever(hurried: None) -> None:
    held = Held()
    async with gateway(held, accounts={"acme": ACME}) as running:
        _, writer = await running.connect()
        writer.write(running.request(b"GET /acme/42/v1/segments"))
        await held.started.wait()
        assert names(running) == ["acme/42"]
        writer.transport.abort()
        await until(lambda: not names(running))
        held.go_on.set()


async def test_too_many_projects_at_once_are_a_503_with_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    async with gateway(held, accounts={"acme": {**ACME, "projects": [42, 43]}}) as running:
        running.app._generations.accounts._most = 1
        _, writer = await running.connect()
        writer.write(running.request(b"GET /acme/42/v1/segments"))
        await held.started.wait()
        answer = await running.call(b"GET /acme/43/v1/segments")
        assert (answer.status, answer.error_code) == (503, "PROXY_TOKEN_UNAVAILABLE")
        assert answer.values(b"retry-after") == [b"5"]
        held.go_on.set()
        await until(lambda: not next(p for p in running.app.projects() if p.name == "acme/42").running)
        assert (await running.call(b"GET /acme/43/v1/segments")).status == 200
        assert names(running) == ["acme/43"]


@dataclass
class SlowForInvented(TokenServer):
    """A token endpoint that answers for project 42, and for other ids never."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        members = json.loads((await read_message(reader)).body)
        self.requests.append(members)
        if members.get("project_id") not in (None, 42):
            await reader.read()  # until the proxy leaves
            return
        content = json.dumps(
            {"access_token": "token", "expires_in": 3600, "endpoint": self.endpoint}
        ).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        await writer.drain()


@pytest.mark.parametrize("named_by_both", [False, True])
async def test_a_caller_that_floods_new_ids_does_not_hold_up_the_first_use_of_another_caller(
    *, named_by_both: bool
) -> None:
    callers = {"mallory": {"key": "key-of-mallory"}, "alice": {"key": "key-of-alice"}}
    token = SlowForInvented()
    async with gateway(token=token, accounts={"acme": ACME}, callers=callers) as running:
        for number in range(1000, 1000 + MOST_UNPROVEN):
            named = 42 if named_by_both and number == 1050 else number
            _, writer = await running.connect()
            writer.write(running.request(b"GET /acme/%d/v1/segments" % named, b"X-API-Key: key-of-mallory"))
        await until(lambda: len(names(running)) == MOST_UNPROVEN)
        await until(lambda: len(token.requests) >= 3)  # one for the project shop
        answer = await running.call(b"GET /acme/42/v1/segments", b"X-API-Key: key-of-alice")
        assert answer.status == 200
        assert [request.get("project_id") for request in token.requests[3:]] == [42]


# One Contentsquare project has one set of slots


@dataclass
class ById:
    """A token endpoint whose answer names the project that belongs to a client_id."""

    endpoint: str = ""
    asked: list[str] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        members = json.loads((await read_message(reader)).body)
        self.asked.append(members["client_id"])
        number = {"id-1": 42, "id-2": 42, "id-3": "43"}.get(members["client_id"])
        content = json.dumps(
            {"access_token": "token", "expires_in": 3600, "endpoint": self.endpoint, "project_id": number}
        ).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        await writer.drain()


@pytest.fixture
async def named() -> AsyncIterator[Gateway]:
    token = ById()
    projects = {
        "shop": {**ONE, "default": True},
        "same": {**ONE, "client_id": "id-2", "apis": []},
        "other": {**ONE, "client_id": "id-3"},
        "configured": {**ONE, "client_id": "id-4", "project_id": 42},
    }
    async with gateway(
        Upstream(), token=cast(TokenServer, token), projects=projects, accounts={"acme": ACME}
    ) as running:
        yield running


async def test_two_names_of_one_project_share_its_slots_once_an_answer_tells(named: Gateway) -> None:
    by_name = {project.name: project for project in named.app.projects()}
    assert by_name["shop"].slots is by_name["configured"].slots
    assert by_name["other"].slots is not by_name["shop"].slots
    same = by_name["same"]
    assert same.slots is not by_name["shop"].slots
    assert (await named.call(b"GET /same/v1/segments")).status == 200
    assert same.slots is by_name["shop"].slots
    await named.call(b"GET /acme/42/v1/segments")
    assert next(p for p in named.app.projects() if p.name == "acme/42").slots is same.slots
    assert same.slots.in_use == 0


async def test_requests_that_came_before_the_number_was_known_are_counted_with_the_others() -> None:
    held = Held()
    release = asyncio.Event()
    token = ById()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await token(reader, writer)

    projects = {"a": {**ONE, "default": True}, "b": {**ONE, "client_id": "id-2"}}
    async with RawServer(held) as upstream, RawServer(late) as token_server:
        token.endpoint = upstream.url
        settings = settings_for(
            token_server.url, upstream.url, projects=projects, contentsquare={"max_concurrency": 3}
        )
        app = App(settings)
        async with app.started():
            running = Gateway(app, cast(TokenServer, token), upstream)
            calls = [
                asyncio.create_task(running.call(b"GET /%b/v1/segments" % name))
                for name in (b"a", b"a", b"b", b"b")
            ]
            a, b = (one for one in app.projects() if one.name != "shop")
            await until(lambda: a.running + b.running == 4)
            assert a.slots is not b.slots
            release.set()
            await until(lambda: a.slots is b.slots)
            shared = a.slots
            await until(lambda: (shared.in_use, shared.waiting) == (3, 1))
            fifth = asyncio.create_task(running.call(b"GET /a/v1/segments"))
            await until(lambda: shared.waiting == 2)
            assert shared.in_use == 3
            held.go_on.set()
            assert [(await call).status for call in (*calls, fifth)] == [200] * 5
            assert (shared.in_use, shared.waiting) == (0, 0)
            await running.aclose()


# Standby credentials


@dataclass
class Picky:
    """A token endpoint that refuses some client_ids."""

    endpoint: str = ""
    refused: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        members = json.loads(request.body)
        self.asked.append(members["client_id"])
        status = self.refused.get(members["client_id"], 200)
        token = f"token-of-{members['client_id']}"
        answer = {"access_token": token, "expires_in": 3600, "endpoint": self.endpoint, "scopes": "metrics"}
        content = json.dumps(answer if status == 200 else {"error": "invalid_client"}).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(content), content))
        await writer.drain()


STANDBY = {"client_id": "id-2", "client_secret": "secret-2"}


@pytest.mark.parametrize("apis", [["metrics", "surveys"], None])
async def test_refused_credentials_are_replaced_by_the_standby_before_anybody_notices(
    apis: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    token = Picky(refused={"id-1": 401})
    upstream = Upstream()
    projects = {"shop": {**ONE, "apis": apis, "standby": STANDBY}}
    async with gateway(upstream, token=cast(TokenServer, token), projects=projects) as running:
        assert (await running.call(b"GET /v1/segments")).status == 200
        assert (await running.call(b"GET /v1/public/projects/1/surveys")).status == 200
        assert (await running.call(b"GET /-/ready")).status == 200
        tokens = {value for request in upstream.requests for value in request.values(b"authorization")}
        assert tokens == {b"Bearer token-of-id-2"}
        status = json.loads((await running.call(b"GET /-/status")).body)["projects"]["shop"]
        assert status["credentials"] == {"in_use": "standby", "expires": None, "days_left": None}
    assert capsys.readouterr().out.count("credentials_switched") == 1


async def test_a_valid_token_stays_in_use_while_both_pairs_are_refused() -> None:
    token = Picky()
    upstream = Upstream()
    projects = {"shop": {**ONE, "standby": STANDBY}}
    async with gateway(upstream, token=cast(TokenServer, token), projects=projects) as running:
        token.refused = {"id-1": 403, "id-2": 403}
        [keeper] = next(iter(running.app.projects())).keepers.values()
        keeper._hurry(gap_s=0.0)
        await until(lambda: token.asked == ["id-1", "id-1", "id-2"])
        await until(lambda: keeper.status().failures_in_a_row)
        assert (await running.call(b"GET /v1/segments")).status == 200
        assert upstream.requests[-1].values(b"authorization") == [b"Bearer token-of-id-1"]
        assert next(iter(running.app.projects())).credentials_in_use == "first"


async def test_the_generic_500_leads_to_the_standby_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.tokens.schedule.BACKOFF_S", (0.001, 0.002, 0.002))
    token = Picky(refused={"id-1": 500})
    projects = {"shop": {**ONE, "standby": STANDBY}}
    async with gateway(token=cast(TokenServer, token), projects=projects) as running:
        assert (await running.call(b"GET /v1/segments")).status == 200
        assert token.asked == ["id-1"] * 3 + ["id-2"]


async def test_days_left_are_shown_and_an_end_is_told_at_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    projects = {"shop": {**ONE, "expires": "2020-01-01"}, "late": {**ONE, "expires": "2999-01-01"}}
    accounts_ = {"acme": {**ACME, "expires": "2020-01-01"}}
    async with gateway(projects=projects, accounts=accounts_) as running:
        status = json.loads((await running.call(b"GET /-/status")).body)["projects"]
        assert status["shop"]["credentials"]["expires"] == "2020-01-01"
        assert status["shop"]["credentials"]["days_left"] < -2000
        assert status["late"]["credentials"]["days_left"] > 2000
    output = capsys.readouterr().out
    assert output.count("credentials_expire") == 2
    assert "name=projects.shop" in output
    assert "name=accounts.acme" in output
