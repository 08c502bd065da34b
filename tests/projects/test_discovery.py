"""`proxy.projects.discovery`: a project finds out which APIs its credentials are for."""

from __future__ import annotations

import asyncio

import pytest
from support.harness import WAIT_S, until
from support.living import CREDENTIALS, UNREACHABLE, AuthHost, living

from proxy.contentsquare import Api
from proxy.projects import Grant


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
        assert project.apis[0] is Api.METRICS


async def test_discovered_enrichment_is_kept_where_there_is_an_integration_id() -> None:
    host = AuthHost([(200, {"scopes": ["enrichment"]})])
    async with living(host, Grant(CREDENTIALS, integration_id=7)) as life:
        life.project.start()
        await until(lambda: life.project.is_ready)
        assert host.scopes == ["enrichment"]


@pytest.mark.parametrize(
    "answer",
    [(400, {}), (403, {}), (404, {}), (200, []), (200, {}), (200, {"scopes": 7}), (200, {"scopes": ""})],
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


async def test_with_refused_credentials_a_project_is_not_ready_until_they_are_good() -> None:
    host = AuthHost([(401, {}), (401, {}), (200, {"scopes": "metrics"})], token_status=401)
    async with living(host, Grant(CREDENTIALS)) as life:
        project = life.project
        life.clock.slept = [0.0] * 48  # one short sleep, then long ones
        project.start()
        await until(lambda: len(life.clock.slept) == 50)
        assert project.is_settled
        assert "answered 401" in project.missing()[0]
        assert [failure["cause"] for failure in life.failures] == ["credentials_refused"] * 2
        assert all(seconds >= 60 for seconds in life.clock.slept[48:])
        host.token_status = 200
        project.refresh_now()
        await until(lambda: project.is_ready)
        assert list(project.keepers) == [Api.METRICS]


@pytest.mark.parametrize("token_status", [200, 403])
async def test_credentials_that_are_refused_for_the_question_alone_make_a_ready_project(
    token_status: int,
) -> None:
    host = AuthHost([(401, {})], token_status=token_status)
    async with living(host, Grant(CREDENTIALS)) as life:
        life.project.start()
        await until(lambda: life.project.is_ready)
        assert (len(host.questions), len(host.tokens)) == (1, 1)
        assert not life.failures


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
        assert project.apis[0] is Api.METRICS
        await until(lambda: project.apis[0] is Api.SURVEYS)
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
        failed = len(life.failures)  # one more question may be on its way to the host
        assert keeper.reject(refused)
        assert await keeper.get(WAIT_S) is not refused
        await asyncio.sleep(0.02)
        assert len(life.failures) == failed
