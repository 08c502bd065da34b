"""`proxy.projects.project`: which leases are kept from the start, which from their first use."""

from __future__ import annotations

import pytest
from support.harness import WAIT_S, TokenServer, gateway, until
from support.living import CREDENTIALS, AuthHost, grant, living

from proxy.contentsquare import Api
from proxy.errors import Forbidden
from proxy.projects import Grant
from proxy.tokens import breaker

BLOG = {"client_id": "id-2", "client_secret": "secret-2"}


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
        assert life.project.apis[0] is Api.SURVEYS
    async with living(AuthHost(), grant()) as life:
        assert life.project.apis[0] is Api.DATA_EXPORT


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


# Projects of an account, which come into being when somebody calls them


@pytest.mark.parametrize("apis", [None, (Api.SURVEYS, Api.METRICS)])
async def test_a_project_made_on_first_use_wants_nothing_from_the_start(apis: tuple[Api, ...] | None) -> None:
    host = AuthHost()
    async with living(host, Grant(CREDENTIALS, 42, apis=apis), from_start=False) as life:
        project = life.project
        assert project.is_ready
        assert project.is_settled
        assert project.apis[0] is (apis or (Api.DATA_EXPORT,))[0]
        await project.keeper(Api.METRICS).get(WAIT_S)
        assert host.scopes == ["metrics"]
        assert project.is_ready


# An outage of the token endpoint


async def test_a_refresh_tries_an_endpoint_in_an_outage_at_once_and_wakes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "GAP_S", (30.0, 30.0))
    token = TokenServer(status=503)
    async with gateway(token=token, projects={"blog": {**BLOG, "apis": ["metrics"]}}) as proxy:
        await until(lambda: token.requests)
        token.status = 200
        assert (await proxy.call(b"POST /-/refresh/shop")).status == 202
        await until(lambda: all(project.is_ready for project in proxy.app.projects()))
        assert len(token.requests) <= 4


async def test_a_project_whose_apis_are_unknown_says_that_the_token_endpoint_fails() -> None:
    token = TokenServer(status=503)
    async with gateway(token=token, projects={"blog": BLOG}) as proxy:
        answer = await proxy.call(b"GET /-/ready")
        assert answer.status == 503
        assert b"blog: the token endpoint" in answer.body
        assert b"answered 503" in answer.body
        token.status = 200
        await until(lambda: all(project.is_ready for project in proxy.app.projects()))
