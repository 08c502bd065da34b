"""A program with a token of the sandbox, whose answers are held against the vendor's shapes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from support import shapes

from proxy.sandbox import DemoProject, Sandbox, SandboxOptions

EVERYTHING = "data-export metrics speed-analysis surveys"
JOB: dict[str, Any] = {
    "name": "Sessions of May",
    "format": "JSONL",
    "scope": "sessions",
    "frequency": {
        "value": "once",
        "dateRange": {"from": "2026-05-01", "to": "2026-05-08"},
    },
    "fields": [{"fieldName": "session_id"}, {"fieldName": "session_time", "aliasName": "time"}],
    "deviceLabel": "all",
}


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """A program with a token for one project."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession, clock: Clock) -> None:
        self.sandbox = sandbox
        self.session = session
        self.clock = clock
        self.project = sandbox.projects["demo-eu"]
        self.endpoint = ""
        self.fields: dict[str, str] = {}

    async def sign_in(self, project: DemoProject, scope: str = EVERYTHING, **more: object) -> Caller:
        self.project = project
        content = {
            "grant_type": "client_credentials",
            "client_id": project.client_id,
            "client_secret": project.client_secret,
            "scope": scope,
            **more,
        }
        async with self.session.post(f"{self.sandbox.auth_url}/v1/oauth/token", json=content) as answer:
            lease = await answer.json()
        self.endpoint = lease["endpoint"]
        self.fields = {"Authorization": f"Bearer {lease['access_token']}"}
        return self

    async def of(self, project: str) -> Caller:
        """The same program, with a token for another project."""
        other = Caller(self.sandbox, self.session, self.clock)
        return await other.sign_in(self.sandbox.projects[project])

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.session.request(method, self.endpoint + path, headers=self.fields, **more) as answer:
            content = await answer.json()
            if answer.status < 400:
                shapes.hold(method, path, content)
            else:
                shapes.hold_refusal(content)
            return answer.status, content

    async def get(self, path: str) -> Any:
        """The payload of a GET that has to be answered with 200."""
        status, content = await self.call("GET", path)
        assert status == 200, content
        assert content["success"] is True
        return content["payload"]

    async def post(self, path: str, content: object) -> Any:
        """The payload of a POST that has to succeed."""
        status, answer = await self.call("POST", path, json=content)
        assert status in (200, 201), answer
        assert answer["success"] is True
        return answer["payload"]

    async def refused(self, method: str, path: str, **more: Any) -> int:
        """The status of a refusal, which has to be in the vendor's shape."""
        status, content = await self.call(method, path, **more)
        assert status >= 400, content
        return status

    async def download(self, url: str) -> bytes:
        async with self.session.get(url) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def finished_files(self, **changes: Any) -> list[dict[str, Any]]:
        """The files of a new export job, once its run is a success."""
        job = await self.post("/v1/exports", JOB | changes)
        self.clock.now += 2
        run = (await self.get(f"/v1/exports/{job['jobId']}/runs"))[0]["jobRunId"]
        files: list[dict[str, Any]] = (await self.get(f"/v1/exports/{job['jobId']}/runs/{run}"))["files"]
        return files


@contextlib.asynccontextmanager
async def signed_in(**options: Any) -> AsyncIterator[Caller]:
    """A program with a token of a new sandbox for the project demo-eu."""
    clock = Clock()
    async with (
        Sandbox(SandboxOptions(**options), now=clock) as sandbox,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        yield await Caller(sandbox, session, clock).sign_in(sandbox.projects["demo-eu"])
