"""Secrets that change behind a command, or in a file that isn't watched: when their source is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.harness import WAIT_S, Gateway, TokenServer, gateway, read_message, until

from proxy.config import secrets
from proxy.config.secrets import SecretUnusable, Source
from proxy.config.settings import Credentials
from proxy.logs import redactor
from proxy.projects import renewals as module
from proxy.projects.renewals import REDACTED_SECRETS, Renewals
from proxy.secret import Secret

OLD, NEW = "old-secret-of-shop", "new-secret-of-shop"
SAYS = """
import pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(folder / "runs", "a") as runs: runs.write("x")
busy = folder / f"{name}.busy"
busy.mkdir()
time.sleep(float((folder / "takes").read_text()))
busy.rmdir()
answer = (folder / name).read_bytes()
if answer == b"fails": sys.exit(3)
if answer == b"counts": answer = b"secret-number-%d" % len((folder / "runs").read_text())
sys.stdout.buffer.write(answer)
"""
"""A password manager for one user at a time: it notes its runs, and fails if two ask for one secret."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", (0.1, 0.4))
    monkeypatch.setattr(module, "MANUAL_PAUSE_S", 0.1)
    monkeypatch.setattr("proxy.tokens.keeper.MIN_GAP_S", 0.05)
    monkeypatch.setattr("proxy.tokens.keeper.FORCED_REFRESH_GAP_S", 0.0)


@dataclass
class Picky(TokenServer):
    """A token endpoint that knows some secrets, and answers the others with ``refusal``."""

    good: set[str] = field(default_factory=lambda: {OLD})
    refusal: int = 401

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        members: dict[str, Any] = json.loads(request.body)
        self.requests.append(members)
        answer: Mapping[str, object] = {
            "access_token": f"token-{len(self.requests)}",
            "expires_in": 3600,
            "endpoint": self.endpoint,
        }
        status = 200 if members["client_secret"] in self.good else self.refusal
        content = json.dumps(answer if status == 200 else {"error": "no"}).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(content)))
        writer.write(b"Connection: close\r\n\r\n" + content)
        await writer.drain()

    @property
    def secrets(self) -> list[str]:
        return [members["client_secret"] for members in self.requests]


class Manager:
    """The password manager, and the settings of projects that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says("secret", OLD)
        self.takes(0)

    def says(self, name: str, answer: str | bytes) -> None:
        new = self.folder / f"{name}.new"
        new.write_bytes(answer.encode() if isinstance(answer, str) else answer)
        new.chmod(0o600)
        new.replace(self.folder / name)

    def takes(self, seconds: float) -> None:
        self.says("takes", str(seconds))

    @property
    def runs(self) -> int:
        path = self.folder / "runs"
        return len(path.read_text()) if path.exists() else 0

    def pair(self, name: str = "secret", client_id: str = "id-1") -> dict[str, object]:
        command = [sys.executable, "-c", SAYS, str(self.folder), name]
        return {"client_id": client_id, "client_secret_command": command}

    def project(self, **more: object) -> dict[str, object]:
        return {**self.pair(), "apis": ["metrics"], **more}


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path)


async def code(running: Gateway, target: bytes = b"/v1/segments") -> str | int:
    answer = await running.call(b"GET " + target)
    return answer.status if answer.status == 200 else answer.error_code


def reject_token(running: Gateway, name: str = "shop") -> None:
    """As a 401 to a request does: the token is out of use, and a new one is fetched."""
    for project in running.app.projects():
        if project.name == name:
            for keeper in project.keepers.values():
                lease = keeper.current()
                assert lease is not None
                keeper.reject(lease)


@pytest.mark.parametrize("refusal", [401, 400, 403, 500])
@pytest.mark.parametrize("what", ["command", "file"])
async def test_a_changed_secret_is_used_at_once_after_a_refusal(
    what: str, refusal: int, manager: Manager
) -> None:
    token = Picky(refusal=refusal)
    shop = manager.project()
    if what == "file":
        shop = {
            "client_id": "id-1",
            "client_secret_file": str(manager.folder / "secret"),
            "apis": ["metrics"],
        }
    async with gateway(token=token, projects={"shop": shop}) as running:
        assert await code(running) == 200
        manager.says("secret", NEW + "\n")
        token.good = {NEW}
        reject_token(running)
        assert await code(running) == 200  # it waits for the answer
        assert token.secrets == [OLD, OLD, NEW]
        assert NEW not in redactor.redact(f"it was {NEW}!")
        reject_token(running)
        assert await code(running) == 200
        assert token.secrets[3:] == [NEW]
    assert redactor.redact(NEW) == NEW  # all is forgotten at the end


def most_runs(since_s: float) -> float:
    """The runs of the command so many seconds after a refusal: at the start, at 0, 0.1, 0.3, 0.7 s, ..."""
    return 5 + max(0.0, since_s - 0.7) / 0.4


async def test_a_secret_that_changes_after_the_refusal_is_used_soon_without_a_flood(manager: Manager) -> None:
    token = Picky()
    async with gateway(token=token, projects={"shop": manager.project()}) as running:
        token.good = {NEW}
        began = time.monotonic()
        reject_token(running)
        assert await code(running) == "PROXY_TOKEN_UNAVAILABLE"
        await asyncio.sleep(1)
        assert manager.runs <= most_runs(time.monotonic() - began)
        await until(lambda: manager.runs >= 3)
        assert token.secrets == [OLD, OLD]
        manager.says("secret", NEW)
        await until(lambda: NEW in token.secrets)
        assert await code(running) == 200
        runs = manager.runs
        await asyncio.sleep(0.6)
        assert manager.runs == runs  # all is well


async def test_a_command_that_prints_another_secret_each_time_makes_no_flood(manager: Manager) -> None:
    manager.says("secret", "counts")
    token = Picky(good={"secret-number-1"})
    async with gateway(token=token, projects={"shop": manager.project()}) as running:
        token.good = set()
        began = time.monotonic()
        reject_token(running)
        await asyncio.sleep(1.2)
        assert manager.runs <= most_runs(time.monotonic() - began)
        await until(lambda: len(token.secrets) >= 4)
        assert len(token.secrets) <= manager.runs + 2


@pytest.mark.parametrize("bad", [b"fails", b"", b"\xff\xfe", b"two\nlines", b"nul\0", b"x" * 70_000])
async def test_a_bad_answer_leaves_the_secret_at_hand(bad: bytes, manager: Manager) -> None:
    token = Picky()
    async with gateway(token=token, projects={"shop": manager.project()}) as running:
        manager.says("secret", bad)
        reject_token(running)
        assert await code(running) == 200
        token.good = {NEW}
        reject_token(running)
        assert await code(running) == "PROXY_TOKEN_UNAVAILABLE"
        assert set(token.secrets) == {OLD}
        manager.says("secret", NEW)
        await until(lambda: NEW in token.secrets)
        assert await code(running) == 200


async def test_a_command_that_hangs_is_ended_and_asked_again(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = Picky()
    async with gateway(token=token, projects={"shop": manager.project()}) as running:
        monkeypatch.setattr(secrets, "COMMAND_TIMEOUT_S", 0.5)
        manager.takes(60)
        token.good = {NEW}
        reject_token(running)
        assert await code(running) == "PROXY_TOKEN_UNAVAILABLE"
        monkeypatch.setattr(secrets, "COMMAND_TIMEOUT_S", 10)
        manager.takes(0)
        manager.says("secret", NEW)
        with contextlib.suppress(FileNotFoundError):  # a busy machine had not yet begun the command's work
            (manager.folder / "secret.busy").rmdir()
        await until(lambda: NEW in token.secrets)
        assert await code(running) == 200


async def test_many_leases_and_projects_share_one_run_of_a_slow_command(manager: Manager) -> None:
    token = Picky()
    apis = ["metrics", "data-export"]
    projects = {f"p{number}": manager.project(apis=apis) for number in range(6)} | {"shop": manager.project()}
    async with gateway(token=token, projects=projects) as running:
        assert manager.runs == 1
        manager.takes(0.3)
        manager.says("secret", NEW)
        token.good = {NEW}
        for name in projects:
            reject_token(running, name)
        codes = await asyncio.gather(
            *(code(running, b"/%s/v1/segments" % name.encode()) for name in projects)
        )
        assert set(codes) == {200}
        assert manager.runs == 2


async def test_a_standby_s_secret_is_asked_for_too(manager: Manager) -> None:
    manager.says("standby", "old-secret-of-standby")
    token = Picky(good={"old-secret-of-standby"})
    standby = manager.pair("standby", "id-2")
    async with gateway(token=token, projects={"shop": manager.project(standby=standby)}) as running:
        assert await code(running) == 200
        manager.says("standby", NEW)
        token.good = {NEW}
        reject_token(running)
        assert await code(running) == 200
        assert token.requests[-1]["client_id"] == "id-2"
        assert token.secrets[-1] == NEW


async def test_an_account_s_secret_is_asked_for_too(manager: Manager) -> None:
    token = Picky()
    async with gateway(token=token, accounts={"acme": manager.pair()}) as running:
        assert await code(running, b"/acme/42/v1/segments") == 200
        manager.says("secret", NEW)
        token.good = {NEW}
        reject_token(running, "acme/42")
        assert await code(running, b"/acme/42/v1/segments") == 200
        assert await code(running, b"/acme/43/v1/segments") == 200  # a new project has the latest secret
        assert token.secrets.count(OLD) == 2


@pytest.mark.parametrize("takes", [0.0, 0.5])
async def test_a_manual_refresh_asks_first_and_many_of_them_ask_now_and_then(
    takes: float, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH_WAIT_S", 0.2 if takes else 10)
    token = Picky(good={OLD, NEW})
    async with gateway(token=token, projects={"shop": manager.project()}) as running:
        manager.says("secret", NEW)
        manager.takes(takes)
        await asyncio.sleep(2 * takes)  # the least time from fetch to fetch
        assert (await running.call(b"POST /-/refresh/shop")).status == 202
        await until(lambda: NEW in token.secrets)
        assert token.secrets == ([OLD, OLD, NEW] if takes else [OLD, NEW])
        runs, began = manager.runs, time.monotonic()
        for _ in range(20):
            await running.call(b"POST /-/refresh/shop")
        await asyncio.sleep(0.3)
        assert manager.runs <= runs + 1 + (time.monotonic() - began) / 0.1  # MANUAL_PAUSE_S


async def test_a_secret_in_the_configuration_has_no_source_to_ask(manager: Manager) -> None:
    token = Picky()
    shop = {"client_id": "id-1", "client_secret": OLD, "apis": ["metrics"]}
    async with gateway(token=token, projects={"shop": shop}) as running:
        token.good = set()
        reject_token(running)
        assert await code(running) == "PROXY_TOKEN_UNAVAILABLE"
        assert token.secrets == [OLD, OLD]


async def test_only_the_last_secrets_of_a_source_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"secret-number-{number}" for number in range(5)]
    source, later = Source(command=("x",)), iter(range(1, 100))
    left = iter(texts)
    monkeypatch.setattr(Source, "read", lambda self: Secret(next(left), self, next(later)))
    monkeypatch.setattr(module, "PAUSE_S", (0.0, 0.0))
    renewals = Renewals()
    pair = Credentials(client_id="id-1", client_secret=Secret("the first one", source))
    for text in texts:
        assert (await renewals.ask(pair)).client_secret.get_secret_value() == text
    assert sum(redactor.redact(text) != text for text in texts) == REDACTED_SECRETS
    renewals.close()
    assert [redactor.redact(text) for text in texts] == texts


async def test_an_answer_that_comes_after_the_end_is_not_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def read(source: Source) -> Secret:
        asked.set()
        go_on.wait(WAIT_S)
        return Secret("the-late-secret", source, 2)

    monkeypatch.setattr(Source, "read", read)
    renewals = Renewals()
    pair = Credentials(client_id="id-1", client_secret=Secret("the first one", Source(command=("x",))))
    asking = asyncio.create_task(renewals.ask(pair))
    await until(asked.is_set)
    renewals.close()
    go_on.set()
    await asking
    assert redactor.redact("the-late-secret") == "the-late-secret"


async def test_a_reload_that_read_the_source_later_has_the_latest_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, events = Source(command=("op", "read")), []
    monkeypatch.setattr(Source, "read", lambda self: Secret("second-secret", self, 2))
    renewals = Renewals(on_event=lambda event, values: events.append((event, dict(values))))
    old, new = (
        Credentials(client_id="id-1", client_secret=Secret(text, source, read_at))
        for text, read_at in (("first-secret", 1), ("third-secret", 3))
    )
    assert (await renewals.ask(old)).client_secret == Secret("second-secret")
    assert renewals.latest(new) is new
    assert events == [("secret_changed", {"source": "op"})]

    def fails(_: Source) -> Secret:
        raise SecretUnusable("op ended with exit code 1")

    monkeypatch.setattr(Source, "read", fails)
    monkeypatch.setattr(module, "MANUAL_PAUSE_S", 0.0)
    assert (await renewals.ask(old, manually=True)).client_secret == Secret("second-secret")
    assert events[1:] == [("secret_source_failed", {"source": "op", "error": "op ended with exit code 1"})]
    renewals.close()
