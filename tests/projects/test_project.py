"""A project at run time: which leases are kept from the start, which from their first use."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.harness import WAIT_S, RawServer, read_message, until

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.errors import Forbidden
from proxy.projects.project import Grant, Project
from proxy.projects.slots import Slots
from proxy.secret import Secret
from proxy.tokens import SystemClock, TokenEndpoint, make_session

CREDENTIALS = Credentials(client_id="id-1", client_secret=Secret("secret-1"))
UNREACHABLE = 0
"""In place of a status: the connection is closed unanswered."""


class HurriedClock(SystemClock):
    """Real clocks, but nobody sleeps for long; what was asked for is recorded."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.001 if len(self.slept) < 50 else 3600)


@dataclass
class AuthHost:
    """A token endpoint whose ``/v1/oauth/me`` answers with ``answers`` in turn, the last one for good."""

    answers: Sequence[tuple[int, object]] = ((200, {"scopes": "metrics"}),)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    token_status: int = 200

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        members = json.loads(request.body)
        if b"/v1/oauth/me" in request.start_line:
            self.questions.append(members)
            status, answer = self.answers[min(len(self.questions), len(self.answers)) - 1]
        else:
            self.tokens.append(members)
            name = f"token-{members['scope']}"
            status, answer = (
                self.token_status,
                {"access_token": name, "expires_in": 3600, "endpoint": "http://127.0.0.1:1"},
            )
        if status == UNREACHABLE:
            return
        content = json.dumps(answer).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(content))
        )
        writer.write(content)
        await writer.drain()

    @property
    def scopes(self) -> list[str]:
        """What tokens were asked for."""
        return [str(members["scope"]) for members in self.tokens]


@dataclass
class Life:
    """A project with its surroundings."""

    project: Project
    clock: HurriedClock
    events: list[tuple[str, Mapping[str, object]]]

    @property
    def failures(self) -> list[Mapping[str, object]]:
        return [values for event, values in self.events if event == "api_discovery_failed"]


@contextlib.asynccontextmanager
async def living(host: AuthHost, grant: Grant, *, from_start: bool = True) -> AsyncIterator[Life]:
    """A project, not started yet, beside a real token endpoint; its tasks end with the context."""
    tasks: list[asyncio.Task[None]] = []
    events: list[tuple[str, Mapping[str, object]]] = []
    clock = HurriedClock()

    def spawn(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.get_running_loop().create_task(work))
        return tasks[-1]

    async with RawServer(host) as server, make_session() as session:
        project = Project(
            "shop",
            grant,
            endpoint=TokenEndpoint(session, server.url, allowed_endpoints=["127.0.0.1:1"]),
            slots=Slots(10),
            spawn=spawn,
            clock=clock,
            from_start=from_start,
            on_event=lambda event, values: events.append((event, values)),
        )
        try:
            yield Life(project, clock, events)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError | None) for outcome in outcomes), outcomes


def grant(*apis: Api, **rest: Any) -> Grant:
    return Grant(CREDENTIALS, apis=apis, **rest)


async def test_what_is_wanted_from_the_start_is_fetched_without_a_request() -> None:
    host = AuthHost()
    async with living(host, grant(Api.METRICS, Api.SURVEYS)) as life:
        project = life.project
        assert not project.is_ready
        assert not project.is_settled
        project.start()
        await until(lambda: project.is_ready)
        assert project.is_settled
        assert sorted(host.scopes) == ["metrics", "surveys"]
        assert list(project.keepers) == [Api.METRICS, Api.SURVEYS]
        assert not host.questions


async def test_other_apis_join_on_first_use_and_do_not_count_for_readiness() -> None:
    host = AuthHost()
    async with living(host, grant(Api.METRICS)) as life:
        project = life.project
        project.start()
        await until(lambda: project.is_ready)
        host.token_status = 403
        keeper = project.keeper(Api.SURVEYS)
        assert project.keeper(Api.SURVEYS) is keeper
        await until(lambda: keeper.status().failures_in_a_row)
        assert host.scopes == ["metrics", "surveys"]
        assert project.is_ready
        assert project.missing() == []


async def test_a_path_of_no_known_api_goes_with_the_first_one() -> None:
    async with living(AuthHost(), grant(Api.SURVEYS, Api.METRICS)) as life:
        assert life.project.first_api is Api.SURVEYS
    async with living(AuthHost(), grant()) as life:
        assert life.project.first_api is Api.DATA_EXPORT


async def test_nothing_wanted_is_ready_at_once() -> None:
    host = AuthHost()
    async with living(host, grant()) as life:
        life.project.start()
        assert life.project.is_ready
        assert life.project.is_settled
        assert not host.tokens


async def test_a_token_that_is_not_there_yet_is_named_with_its_reason() -> None:
    host = AuthHost(token_status=403)
    async with living(host, grant(Api.METRICS)) as life:
        life.project.start()
        assert life.project.missing() == ["shop/metrics: no token yet"]
        await until(lambda: life.project.is_settled)
        assert not life.project.is_ready
        [reason] = life.project.missing()
        assert "answered 403" in reason


async def test_the_ids_go_into_the_token_request_where_they_belong() -> None:
    host = AuthHost()
    async with living(host, grant(Api.METRICS, Api.ENRICHMENT, project_id=42, integration_id=7)) as life:
        life.project.start()
        await until(lambda: len(host.tokens) == 2)
        by_scope = {members["scope"]: members for members in host.tokens}
        assert by_scope["metrics"]["project_id"] == by_scope["enrichment"]["project_id"] == 42
        assert "integration_id" not in by_scope["metrics"]
        assert by_scope["enrichment"]["integration_id"] == 7


async def test_enrichment_without_an_integration_id_is_refused_without_asking() -> None:
    host = AuthHost()
    async with living(host, grant(Api.METRICS)) as life:
        with pytest.raises(Forbidden, match="integration_id"):
            life.project.keeper(Api.ENRICHMENT)
        assert not life.project.keepers


# Discovery


async def test_left_out_apis_are_those_that_the_credentials_are_for() -> None:
    host = AuthHost([(200, {"scopes": "surveys metrics enrichment other"})])
    async with living(host, Grant(CREDENTIALS)) as life:
        project = life.project
        project.start()
        assert not project.is_ready
        assert not project.is_settled
        await until(lambda: project.is_ready)
        assert host.questions == [{"client_id": "id-1", "client_secret": "secret-1"}]
        assert list(project.keepers) == [Api.METRICS, Api.SURVEYS]
        assert project.first_api is Api.METRICS


async def test_discovered_enrichment_is_kept_where_there_is_an_integration_id() -> None:
    host = AuthHost([(200, {"scopes": ["enrichment"]})])
    async with living(host, Grant(CREDENTIALS, integration_id=7)) as life:
        life.project.start()
        await until(lambda: life.project.is_ready)
        assert host.scopes == ["enrichment"]


@pytest.mark.parametrize(
    "answer",
    [(403, {}), (404, {}), (401, {}), (200, []), (200, {}), (200, {"scopes": 7}), (200, {"scopes": ""})],
)
async def test_apis_that_cant_be_read_are_none_from_the_start(answer: tuple[int, object]) -> None:
    host = AuthHost([answer])
    async with living(host, Grant(CREDENTIALS)) as life:
        life.project.start()
        await until(lambda: life.project.is_ready)
        assert life.project.is_settled
        assert not life.project.keepers
        assert len(host.questions) == 1
        life.project.keeper(Api.METRICS)
        await until(lambda: host.tokens)


async def test_discovery_goes_on_with_backoff_until_there_is_an_answer() -> None:
    host = AuthHost(
        [(UNREACHABLE, ""), (503, {}), (500, {}), (302, {}), (429, {}), (200, {"scopes": "metrics"})]
    )
    async with living(host, Grant(CREDENTIALS)) as life:
        life.project.start()
        await until(lambda: life.project.is_ready)
        assert len(host.questions) == 6
        assert list(life.project.keepers) == [Api.METRICS]
        assert [failure["failures_in_a_row"] for failure in life.failures] == [1, 2, 3, 4, 5]
        assert all(0 < seconds <= 60 for seconds in life.clock.slept[:5])
        assert "secret-1" not in repr(life.events)


async def test_while_discovery_fails_the_project_is_settled_not_ready_and_serves_first_use() -> None:
    host = AuthHost([(503, {})])
    async with living(host, Grant(CREDENTIALS)) as life:
        project = life.project
        project.start()
        await until(lambda: project.is_settled)
        assert not project.is_ready
        [reason] = project.missing()
        assert reason.startswith("shop: ")
        assert "503" in reason
        lease = await project.keeper(Api.METRICS).get(WAIT_S)
        assert lease.access_token == "token-metrics"
        assert not project.is_ready


async def test_what_was_discovered_before_is_wanted_until_discovery_says_otherwise() -> None:
    host = AuthHost([(200, {"scopes": "metrics"}), (503, {}), (200, {"scopes": "surveys"})])
    async with living(host, Grant(CREDENTIALS)) as life, living(host, Grant(CREDENTIALS)) as next_life:
        project = next_life.project
        life.project.start()
        await until(lambda: life.project.is_ready)
        project.inherit(life.project)
        project.start()
        assert project.is_ready
        assert project.first_api is Api.METRICS
        await until(lambda: project.first_api is Api.SURVEYS)
        assert len(host.questions) == 3
        await until(lambda: project.is_ready)


async def test_what_was_used_before_discovery_keeps_its_keeper() -> None:
    host = AuthHost([(503, {}), (200, {"scopes": "metrics"})])
    async with living(host, Grant(CREDENTIALS)) as life:
        keeper = life.project.keeper(Api.METRICS)
        await keeper.get(WAIT_S)
        life.project.start()
        await until(lambda: life.project.is_ready)
        assert life.project.keeper(Api.METRICS) is keeper
        assert host.scopes == ["metrics"]


async def test_a_request_that_still_runs_gets_its_token_though_discovery_ends_with_the_project() -> None:
    host = AuthHost([(503, {})])
    async with living(host, Grant(CREDENTIALS)) as life:
        project = life.project
        project.start()
        await until(lambda: project.is_settled)
        keeper = project.keeper(Api.METRICS)
        refused = await keeper.get(WAIT_S)
        project.retire()
        assert keeper.reject(refused)
        assert await keeper.get(WAIT_S) is not refused
        asked = len(host.questions)
        await asyncio.sleep(0.02)
        assert len(host.questions) == asked


# Projects of an account, which come into being when somebody calls them


@pytest.mark.parametrize("apis", [None, (Api.SURVEYS, Api.METRICS)])
async def test_a_project_made_on_first_use_wants_nothing_from_the_start(apis: tuple[Api, ...] | None) -> None:
    host = AuthHost()
    async with living(host, Grant(CREDENTIALS, 42, apis=apis), from_start=False) as life:
        project = life.project
        assert project.is_ready
        assert project.is_settled
        assert project.first_api is (apis or (Api.DATA_EXPORT,))[0]
        await project.keeper(Api.METRICS).get(WAIT_S)
        assert host.scopes == ["metrics"]
        assert project.is_ready
