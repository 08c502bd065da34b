"""A project by itself, beside a token endpoint that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.harness import RawServer, read_message

from proxy.config.settings import Credentials
from proxy.contentsquare import Api
from proxy.projects import Grant, Project, Services, SharedSlots
from proxy.secret import Secret
from proxy.tokens import SystemClock, TokenEndpoint, make_session

CREDENTIALS = Credentials(client_id="id-1", client_secret=Secret("secret-1"))
UNREACHABLE = 0
"""In place of a status: the connection is closed unanswered."""


class HurriedClock(SystemClock):
    """Real clocks, but each sleep is short; the seconds that were asked for are recorded."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.001 if len(self.slept) < 50 else 3600)


@dataclass
class AuthHost:
    """A token endpoint whose ``/v1/oauth/me`` answers with ``answers`` in turn; the last answer stays."""

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
        """The scopes of the token requests."""
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
            Services(
                endpoint=TokenEndpoint(session, server.url, allowed_endpoints=["127.0.0.1:1"]),
                slots=SharedSlots(10),
                spawn=spawn,
                clock=clock,
                on_event=lambda event, values: events.append((event, values)),
            ),
            from_start=from_start,
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
