"""A caller that leaves while its request waits: the wait ends, and all that was for this caller alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from support.cuts import reset
from support.harness import OK, Gateway, TokenServer, Upstream, gateway, read_message, until

from proxy.contentsquare import Api
from proxy.projects import Project

ACME = {"client_id": "id-2", "client_secret": "secret-2"}
ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": []}


@dataclass
class HeldTokens(TokenServer):
    """A token endpoint that answers some requests once it is released, and refuses ids over 1000."""

    holds_from: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        members = json.loads((await read_message(reader)).body)
        self.requests.append(members)
        if len(self.requests) > self.holds_from:
            await self.go_on.wait()
        if members.get("project_id", 0) > 1000:
            writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            return
        token = f"token-{len(self.requests)}"
        content = json.dumps({"access_token": token, "expires_in": 3600, "endpoint": self.endpoint}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))


def projects(running: Gateway) -> dict[str, Project]:
    return {project.name: project for project in running.app.projects()}


async def test_the_wait_for_a_first_token_ends_and_the_token_is_there_for_the_next_caller() -> None:
    token, upstream = HeldTokens(), Upstream()
    async with gateway(upstream, token=token, projects={"shop": ONE}) as running:
        shop = projects(running)["shop"]
        _, leaving = await running.connect()
        leaving.write(running.request(b"GET /v1/segments"))
        await until(lambda: shop.running and token.requests)
        reset(leaving)
        await until(lambda: not shop.running)
        token.go_on.set()
        await until(lambda: shop.has_lease)
        assert not upstream.requests
        assert (await running.call(b"GET /v1/segments")).status == 200
        assert len(token.requests) == 1


async def test_new_ids_whose_callers_have_left_are_not_asked_for() -> None:
    token = HeldTokens()
    async with gateway(token=token, projects={"shop": ONE}, accounts={"acme": ACME}) as running:
        leaving = []
        for number in range(1001, 1021):
            _, writer = await running.connect()
            writer.write(running.request(b"GET /acme/%d/v1/segments" % number))
            leaving.append(writer)
        await until(lambda: sum(project.running for project in running.app.projects()) == 20)
        await until(lambda: len(token.requests) == 2)  # a quarter of the room
        for writer in leaving:
            reset(writer)
        await until(lambda: not any(project.running for project in running.app.projects()))
        token.go_on.set()
        keepers = [one.keepers[Api.METRICS] for one in running.app.projects() if "/" in one.name]
        await until(lambda: sum(keeper.status().next_try_in_s == float("inf") for keeper in keepers) == 18)
        assert len(token.requests) == 2
        status = json.loads((await running.call(b"GET /-/status")).body)["projects"]
        told = status["acme/1020"]["apis"]["metrics"]
        assert (told["state"], told["next_try_in_s"], told["on_demand"]) == ("idle", None, True)
        assert (await running.call(b"GET /acme/42/v1/segments")).status == 200


async def test_the_wait_for_a_forced_refresh_ends_with_its_slot_and_the_refresh_goes_on() -> None:
    token = HeldTokens(holds_from=1)

    async def refuses_the_first_token(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            is_refused = request.values(b"authorization") == [b"Bearer token-1"]
            writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n" if is_refused else OK)

    limit = {"max_concurrency": 1}
    async with gateway(
        refuses_the_first_token, token=token, projects={"shop": ONE}, contentsquare=limit
    ) as running:
        shop = projects(running)["shop"]
        _, leaving = await running.connect()
        leaving.write(running.request(b"GET /v1/segments"))
        await until(lambda: len(token.requests) == 2)
        assert (shop.running, shop.slots.in_use) == (1, 1)
        reset(leaving)
        await until(lambda: (shop.running, shop.slots.in_use) == (0, 0))
        token.go_on.set()
        assert (await running.call(b"GET /v1/segments")).status == 200
        assert len(token.requests) == 2
