"""A new configuration in a running proxy: what changes at once, what stays, and what a bad one can't do."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.harness import (
    KEPT,
    OK,
    WAIT_S,
    Gateway,
    Held,
    Message,
    RawServer,
    TokenServer,
    Upstream,
    close,
    free_port,
    read_message,
    until,
)

import proxy
from proxy.app.app import App
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.gateway.outward import plan
from proxy.logs import setup as log
from proxy.logs.setup import redactor
from proxy.projects import Project

Sections = dict[str, dict[str, Any]]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="symlinks and modes")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are looked at often, and the root logger is left as it was."""
    monkeypatch.setattr("proxy.config.watch.WATCH_S", 0.004)
    monkeypatch.setattr("proxy.app.app._POLL_S", 0.002)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def toml(sections: Mapping[str, Any], path: str = "") -> str:
    """A configuration file; JSON's literals are TOML's, too."""
    lines, tables = [], []
    for key, value in sections.items():
        if isinstance(value, Mapping):
            tables.append(toml(value, f"{path}.{key}" if path else key))
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([f"[{path}]" if path else "", *lines, *tables])


def replace(path: Path, text: str) -> None:
    """As editors and Ansible do: a new file, renamed."""
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    ends = time.monotonic() + WAIT_S
    while True:
        try:
            new.replace(path)
        except PermissionError:  # Windows, while the proxy reads the file
            assert time.monotonic() < ends
        else:
            return


def write(path: Path, text: str) -> None:
    """In place."""
    path.touch(mode=0o600)
    path.write_text(text)


def swap(path: Path, text: str) -> None:
    """As Kubernetes does: ``path`` links to ``..data/name``, and ``..data`` to a folder of this version."""
    folder = path.parent / f"..{os.urandom(4).hex()}"
    folder.mkdir()
    write(folder / path.name, text)
    link = path.parent / "..new"
    link.symlink_to(folder.name)
    link.replace(path.parent / "..data")
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        path.symlink_to(Path("..data", path.name))


@dataclass
class Rig(Gateway):
    """A running proxy with a configuration file."""

    file: Path = Path()
    sections: Sections = field(default_factory=dict)

    @property
    def status(self) -> tuple[int, int]:
        """How many reloads went well, and how many were refused."""
        return self.app.overview.reload.count, self.app.overview.reload.refused

    def project(self, name: str = "shop") -> Project:
        return next(project for project in self.app.projects() if project.name == name)

    async def change(self, **sections: Mapping[str, object]) -> None:
        """Write a file in which these sections replace those of before, and wait for the reload."""
        self.sections = {**self.sections, **{name: dict(section) for name, section in sections.items()}}
        await self.rewrite(toml(self.sections))

    async def rewrite(self, text: str) -> None:
        before = sum(self.status)
        replace(self.file, text)
        await until(lambda: sum(self.status) > before)

    async def code(self, start: bytes = b"GET /v1/segments", *lines: bytes) -> str | int:
        """The status, or our error's code."""
        answer = await self.call(start, *lines)
        return answer.status if answer.status == 200 else answer.error_code


ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}


@contextlib.asynccontextmanager
async def rig(
    folder: Path,
    script: Any = None,
    *,
    token: TokenServer | None = None,
    environ: Mapping[str, str] | None = None,
    **sections: Mapping[str, object],
) -> AsyncIterator[Rig]:
    """``environ``: the file is to be found by a search in it, and in the working folder."""
    token = token or TokenServer()
    async with RawServer(script or Upstream()) as upstream, RawServer(token) as token_server:
        token.endpoint = token.endpoint or upstream.url
        merged: Sections = {
            "server": {"port": 0, "drain_timeout": 1},
            "contentsquare": {
                "auth_url": token_server.url,
                "allowed_endpoints": [upstream.url.partition("://")[2]],
            },
            "projects": {"shop": ONE},
            **{name: dict(section) for name, section in sections.items()},
        }
        file = folder / "config.toml"
        replace(file, toml(merged))

        def read(source: Path | None) -> Settings:
            return load(source, None, environ or {})

        app = App(read(None if environ else file), read)
        async with app.started():
            await app.settled(WAIT_S)
            running = Rig(app, token, upstream, file=file, sections=merged)
            try:
                yield running
            finally:
                await running.aclose()
        assert not upstream.errors


# What makes it reload


@pytest.mark.parametrize("how", [replace, write, pytest.param(swap, marks=posix_only)])
async def test_a_changed_secret_file_is_used_without_a_gap(
    tmp_path: Path, how: Callable[[Path, str], None]
) -> None:
    secret = tmp_path / "mount" / "secret"
    secret.parent.mkdir()
    how(secret, "before-it")
    shop = {"client_id": "id-1", "client_secret_file": str(secret), "apis": ["metrics"]}
    async with rig(tmp_path, projects={"shop": shop}) as running:
        for number in (1, 2):
            how(secret, f"after-it-{number}")
            while running.status[0] < number:
                assert await running.code() == 200
            await until(lambda: len(running.token.requests) == number + 1)  # noqa: B023 - awaited within
        assert [request["client_secret"] for request in running.token.requests] == [
            "before-it",
            "after-it-1",
            "after-it-2",
        ]
        assert await running.code() == 200
        assert running.status == (2, 0)


@pytest.mark.parametrize("how", [replace, write, pytest.param(swap, marks=posix_only)])
async def test_a_changed_configuration_file_is_noticed(
    tmp_path: Path, how: Callable[[Path, str], None]
) -> None:
    async with rig(tmp_path) as running:
        assert await running.code(b"GET /more/v1/segments") == "PROXY_UNKNOWN_PROJECT"
        more = {**running.sections, "projects": {"shop": {**ONE, "default": True}, "more": ONE}}
        how(running.file, toml(more))
        await until(lambda: running.status == (1, 0))
        assert await running.code(b"GET /more/v1/segments") == 200


@posix_only
async def test_a_mode_that_was_put_right_is_noticed(tmp_path: Path) -> None:
    async with rig(tmp_path) as running:
        running.file.chmod(0o644)
        await until(lambda: sum(running.status))
        if running.status == (1, 0):
            pytest.skip("modes don't count on this file system")
        assert "chmod 600" in running.app.overview.reload.last_faults[0]
        running.file.chmod(0o600)
        await until(lambda: running.status == (1, 1))
        assert running.app.overview.reload.last_faults == ()


@posix_only
async def test_what_another_user_wrote_while_it_runs_changes_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as running, RawServer(TokenServer()) as elsewhere:
        text = toml({**running.sections, "contentsquare": {"auth_url": elsewhere.url}})
        (tmp_path / "secret").touch(mode=0o600)
        (tmp_path / "secret").write_text("s3cret")
        text = text.replace('client_secret = "secret-1"', 'client_secret_file = "secret"')
        running.file.chmod(0o666)
        running.file.write_text(text)
        await until(lambda: sum(running.status))
        assert running.status == (0, 1)
        assert "others can change" in running.app.overview.reload.last_faults[0]
        assert await running.code() == 200
        assert running.app._generation.settings.contentsquare.auth_url != elsewhere.url


async def test_without_a_change_nothing_is_read_again_but_when_asked(tmp_path: Path) -> None:
    async with rig(tmp_path) as running:
        await asyncio.sleep(0.03)
        assert running.status == (0, 0)
        running.app.reload()
        await until(lambda: running.status == (1, 0))
        await asyncio.sleep(0.03)
        assert running.status == (1, 0)
        assert len(running.token.requests) == 1


async def test_a_file_that_is_being_written_is_not_read_before_it_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.config.watch.WATCH_S", 0.03)
    async with rig(tmp_path) as running:
        text = toml({**running.sections, "server": {"port": 0, "drain_timeout": 7}})
        with running.file.open("w") as file:
            for start in range(0, len(text), 40):
                file.write(text[start : start + 40])
                file.flush()
                await asyncio.sleep(0.01)
        await until(lambda: running.status == (1, 0))


async def test_a_secret_command_is_asked_again(tmp_path: Path) -> None:
    source = tmp_path / "vault"
    source.write_text("secret-of-old")
    command = [sys.executable, "-S", "-c", f"print(open({str(source)!r}).read())"]
    shop = {"client_id": "id-1", "client_secret_command": command, "apis": ["metrics"]}
    async with rig(tmp_path, projects={"shop": shop}) as running:
        source.write_text("secret-of-new")
        running.app.reload()
        await until(lambda: len(running.token.requests) == 2)
        assert running.token.requests[1]["client_secret"] == "secret-of-new"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_sighup_reads_the_file_that_was_found_again_and_a_stop_stays_a_clean_one(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    write(
        file,
        textwrap.dedent("""
            [server]
            port = 0
            [log]
            format = "json"
            [contentsquare]
            auth_url = "http://127.0.0.1:1"
            [projects.shop]
            client_id = "id-1"
            client_secret = "secret-1"
            apis = []
        """),
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "proxy", "serve"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(proxy.__file__).parents[1]), "HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    with process:
        try:
            while json.loads(line := process.stderr.readline())["event"] != "listening":
                assert line
            process.send_signal(signal.SIGHUP)
            while json.loads(line := process.stderr.readline())["event"] != "reloaded":
                assert line
            file.unlink()
            process.send_signal(signal.SIGHUP)
            while (event := json.loads(process.stderr.readline()))["event"] != "reload_refused":
                assert event["event"] != "reloaded"
            assert event["faults"] == [f"{file}: there is no such file"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()


async def test_a_while_without_threads_puts_a_reload_off_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    allowed: list[Callable[[threading.Thread], None]] = []
    refused = []

    def start_some(thread: threading.Thread) -> None:
        if allowed:
            allowed.pop()(thread)
            return
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    async with rig(tmp_path) as running:
        for after in range(4):  # threads that a reload takes
            allowed[:] = [start] * after
            refused.clear()
            before = running.status[0]
            running.app.reload()
            monkeypatch.setattr(threading.Thread, "start", start_some)
            await until(lambda: len(refused) >= 3)
            monkeypatch.setattr(threading.Thread, "start", start)
            await until(lambda: running.status[0] > before)  # noqa: B023 - awaited within
        assert running.status[1] == 0
        assert await running.code() == 200


@posix_only
@pytest.mark.parametrize("key", ["contentsquare.ca_file", "server.tls_cert"])
async def test_a_certificate_file_that_hangs_refuses_the_reload_and_not_the_next_one(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    async with rig(tmp_path) as running:
        section, _, name = key.partition(".")
        monkeypatch.setattr("proxy.gateway.outward.READ_TIMEOUT_S", 0.1)
        more = {name: str(pipe)} | ({"tls_key": str(pipe)} if name == "tls_cert" else {})
        good = running.sections[section]
        with monkeypatch.context() as patch:
            patch.setattr("proxy.gateway.outward.READ_TIMEOUT_S", 0.1)
            await running.change(**{section: {**good, **more}})
        assert running.status == (0, 1)
        assert "took longer than 0.1 s to read" in running.app.overview.reload.last_faults[0]
        await running.change(**{section: good})
        assert running.status == (1, 1)
        assert await running.code() == 200


# What stays, and what goes


async def test_projects_that_did_not_change_keep_their_tokens_and_others_come_and_go(tmp_path: Path) -> None:
    two = {"client_id": "id-2", "client_secret": "secret-2", "apis": ["metrics"]}
    async with rig(tmp_path, projects={"shop": {**ONE, "default": True}, "two": two}) as running:
        shop, gone = running.project(), running.project("two")
        three = {"client_id": "id-3", "client_secret": "secret-3", "apis": ["metrics"]}
        await running.change(projects={"shop": {**ONE, "expires": "2099-01-01"}, "three": three})
        assert running.project() is shop
        assert str(shop.expires) == "2099-01-01"
        assert await running.code(b"GET /three/v1/segments") == 200
        assert await running.code(b"GET /two/v1/segments") == "PROXY_UNKNOWN_PROJECT"
        assert await running.code(b"GET /v1/segments") == "PROXY_UNKNOWN_PROJECT"  # none is the default
        assert Counter(request["client_id"] for request in running.token.requests) == {
            "id-1": 1,
            "id-2": 1,
            "id-3": 1,
        }
        await until(lambda: not gone._tasks)
        assert shop._tasks


@pytest.mark.parametrize("change", ["removed", "changed", "way out"])
async def test_a_running_request_finishes_on_what_it_began_with(tmp_path: Path, change: str) -> None:
    held = Held()
    async with rig(tmp_path, held) as running:
        old, outward = running.project(), running.app._generation.outward
        reader, writer = await running.connect()
        writer.write(running.request(b"GET /v1/segments"))
        await held.started.wait()
        if change == "removed":
            await running.change(projects={"other": {**ONE, "apis": []}})
        elif change == "changed":
            await running.change(projects={"shop": {**ONE, "client_id": "id-2"}})
        else:
            await running.change(contentsquare={**running.sections["contentsquare"], "idle_timeout": 77})
        assert old._tasks
        assert (old.running, old.slots.in_use) == (1, 1)
        held.go_on.set()
        assert (await read_message(reader)).body == b"ok"
        await until(lambda: not old._tasks)
        assert old.running == old.slots.in_use == 0
        if change == "way out":
            await until(lambda: outward._session.closed)
        else:
            assert running.app._generation.outward is outward
        if change != "removed":
            assert await running.code() == 200
            assert len(held.tokens) == 2
            assert not running.app._generation.outward._session.closed


@dataclass
class Late(Held):
    """A cloud that answers its first request 401, when it is let go; others at once."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(reader)
            self.tokens += request.values(b"authorization")
            answer = b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n" if len(self.tokens) == 1 else OK
            self.started.set()
            await self.go_on.wait()
            writer.write(answer)
            await writer.drain()


async def reload_twice(running: Rig) -> None:
    """First the project is another one, then the way out is."""
    await running.change(projects={"shop": {**ONE, "client_secret": "secret-2"}})
    await running.change(contentsquare={**running.sections["contentsquare"], "connect_timeout": 7})
    await asyncio.sleep(0.02)  # time enough to close what is still needed
    assert running.status[1] == 0


async def test_a_request_of_two_reloads_ago_keeps_its_way_out_and_the_last_one_closes_it(
    tmp_path: Path,
) -> None:
    late = Late()
    async with rig(tmp_path, late) as running:
        outward = running.app._generation.outward
        slow = asyncio.create_task(running.call(b"GET /v1/segments"))
        await late.started.wait()
        await reload_twice(running)
        late.go_on.set()
        assert (await slow).status == 200  # with a token that was fetched on the way of then
        assert await running.code() == 200
        await until(lambda: outward._session.closed)
        assert not running.app._generation.outward._session.closed


async def test_silence_is_bounded_for_a_request_of_two_reloads_ago(tmp_path: Path) -> None:
    late = Late()
    async with rig(tmp_path, late) as running:
        await running.change(contentsquare={**running.sections["contentsquare"], "idle_timeout": 0.2})
        slow = asyncio.create_task(running.code())
        await late.started.wait()
        await reload_twice(running)
        async with asyncio.timeout(5):
            assert await slow == "PROXY_UPSTREAM_TIMEOUT"


async def test_what_goes_fetches_nothing_more(tmp_path: Path) -> None:
    held = Held()
    async with rig(tmp_path, held, token=TokenServer(expires_in=1)) as running:
        old = running.project().keepers
        _, writer = await running.connect()
        writer.write(running.request(b"GET /v1/segments"))
        await held.started.wait()
        await running.change(projects={"other": {**ONE, "apis": []}})
        count = len(running.token.requests)
        [keeper] = old.values()
        assert keeper.status().next_try_in_s == float("inf")
        await asyncio.sleep(0.04)
        assert len(running.token.requests) == count
        held.go_on.set()


async def test_a_changed_secret_uses_the_old_token_while_the_token_endpoint_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.tokens.schedule.BACKOFF_S", (0.01, 0.02, 0.02))
    upstream = Upstream()
    async with rig(tmp_path, upstream) as running:
        running.token.status = 503
        await running.change(projects={"shop": {**ONE, "client_secret": "secret-2", "read_only": True}})
        await until(lambda: len(running.token.requests) > 1)
        assert await running.code() == 200
        assert await running.code(b"DELETE /v1/segments") == "PROXY_FORBIDDEN"
        assert upstream.requests[-1].values(b"authorization") == [b"Bearer token-1"]
        running.token.status = 200
        [keeper] = running.project().keepers.values()
        await until(lambda: keeper.status().refreshes)
        assert await running.code() == 200
        assert upstream.requests[-1].values(b"authorization") != [b"Bearer token-1"]


@pytest.mark.parametrize("status", [503, 401])
async def test_a_changed_secret_leaves_a_project_ready_whose_apis_were_discovered(
    tmp_path: Path, status: int
) -> None:
    shop = {key: value for key, value in ONE.items() if key != "apis"}
    async with rig(tmp_path, projects={"shop": shop}) as running:
        running.token.status = status
        for number in (2, 3):
            await running.change(projects={"shop": {**shop, "client_secret": f"secret-{number}"}})
            await until(lambda: running.token.requests[-1]["client_secret"] == f"secret-{number}")  # noqa: B023 - awaited within
            assert (await running.call(b"GET /-/ready")).status == 200
        assert await running.code() == 200


async def test_a_pause_that_the_token_endpoint_asked_for_outlasts_reloads(tmp_path: Path) -> None:
    token = TokenServer(status=429, fields=b"Retry-After: 300\r\n")
    async with rig(tmp_path, token=token) as running:
        vendor = running.sections["contentsquare"]
        for number in (2, 3):
            await running.change(
                contentsquare={**vendor, "connect_timeout": number},
                projects={"shop": {**ONE, "client_secret": f"secret-{number}"}},
            )
            await running.app.settled(WAIT_S)
        assert len(token.requests) == 1


async def test_two_changes_in_a_row_lose_no_token_that_nobody_asked_for_in_between(tmp_path: Path) -> None:
    shop = {**ONE, "apis": []}
    async with rig(tmp_path, projects={"shop": shop}) as running:
        assert await running.code() == 200
        running.token.status = 503
        for number in (2, 3):
            await running.change(projects={"shop": {**shop, "client_secret": f"secret-{number}"}})
        assert await running.code() == 200


@pytest.mark.parametrize("other", [{"client_id": "id-2"}, {"project_id": 43}])
async def test_a_token_for_other_data_is_never_taken_over(tmp_path: Path, other: dict[str, object]) -> None:
    upstream = Upstream()
    async with rig(tmp_path, upstream) as running:
        await running.change(projects={"shop": {**ONE, **other}})
        assert await running.code() == 200
        assert upstream.requests[-1].values(b"authorization") == [b"Bearer token-2"]


async def test_the_count_of_requests_goes_on_when_a_project_changes(tmp_path: Path) -> None:
    async with rig(tmp_path) as running:
        await running.code()
        await running.change(projects={"shop": {**ONE, "client_id": "id-2"}})
        await running.code()
        assert sum(running.project().requests.values()) == 2


async def test_accounts_keep_or_lose_their_projects_like_others(tmp_path: Path) -> None:
    acme = {"client_id": "id-a", "client_secret": "secret-a"}
    async with rig(tmp_path, accounts={"acme": acme}) as running:
        assert await running.code(b"GET /acme/42/v1/segments") == 200
        old = running.project("acme/42")
        await running.change(accounts={"acme": {**acme, "expires": "2099-01-01"}})
        assert running.project("acme/42") is old
        await running.change(accounts={"acme": {**acme, "projects": [43]}})
        await until(lambda: not old._tasks)
        assert await running.code(b"GET /acme/42/v1/segments") == "PROXY_UNKNOWN_PROJECT"
        assert await running.code(b"GET /acme/43/v1/segments") == 200
        await running.change(accounts={})
        assert [project.name for project in running.app.projects()] == ["shop"]


@pytest.mark.parametrize("way_too", [False, True])
async def test_an_accounts_new_secret_costs_no_token_and_no_count(tmp_path: Path, *, way_too: bool) -> None:
    acme = {"client_id": "id-a", "client_secret": "secret-a"}
    async with rig(tmp_path, accounts={"acme": acme}) as running:
        assert await running.code(b"GET /acme/42/v1/segments") == 200
        old = running.project("acme/42")
        running.token.status = 503
        vendor = running.sections["contentsquare"]
        for number in (2, 3):
            await running.change(
                accounts={"acme": {**acme, "client_secret": f"secret-{number}"}},
                contentsquare={**vendor, "connect_timeout": number} if way_too else vendor,
            )
        await until(lambda: not old._tasks)
        assert await running.code(b"GET /acme/42/v1/segments") == 200
        [project] = [project for project in running.app.projects() if project.name == "acme/42"]
        assert sum(project.requests.values()) == 2
        await until(lambda: running.token.requests[-1]["client_secret"] == "secret-3")
        running.token.status = 401
        await running.change(accounts={"acme": {**acme, "client_id": "id-b"}})
        assert await running.code(b"GET /acme/42/v1/segments") == "PROXY_TOKEN_UNAVAILABLE"


@pytest.mark.parametrize("way_too", [False, True])
async def test_a_request_of_before_makes_no_project_of_before(tmp_path: Path, *, way_too: bool) -> None:
    acme = {"client_id": "id-a", "client_secret": "secret-a"}
    content = b'{"grant_type": "client_credentials", "scope": "metrics"}'
    lines = (b"Expect: 100-continue", b"Content-Length: %d" % len(content))
    async with rig(tmp_path, accounts={"acme": acme}) as running:
        reader, writer = await running.connect()
        writer.write(running.request(b"POST /acme/42/v1/oauth/token", *lines))
        assert (await read_message(reader)).status == 100
        vendor = running.sections["contentsquare"]
        await running.change(
            accounts={"acme": {**acme, "client_secret": "secret-b"}},
            contentsquare={**vendor, "connect_timeout": 7} if way_too else vendor,
        )
        writer.write(content)
        assert (await read_message(reader)).status == 200
        assert await running.code(b"GET /acme/42/v1/segments") == 200
        sent = [request for request in running.token.requests if request["client_id"] == "id-a"]
        assert {request["client_secret"] for request in sent} == {"secret-b"}


@pytest.mark.parametrize("target", [b"/v1/exports", b"/-/exports/shop/7/latest.csv"])
async def test_a_request_that_waited_for_its_connections_place_goes_by_the_latest_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: bytes
) -> None:
    monkeypatch.setattr("proxy.server.capacity.MAX_CONNECTIONS", 8)
    monkeypatch.setattr("proxy.server.capacity.IDLE_S", 0.05)
    monkeypatch.setattr("proxy.server.site.LOOK_S", 0.01)
    cloud = Held()
    async with rig(tmp_path, cloud) as running:
        [listening] = running.app._listeners.sites
        calls = [asyncio.create_task(running.call(b"GET /v1/segments")) for _ in range(8)]
        await until(lambda: len(cloud.tokens) == 8)
        _, writer = await running.connect()
        writer.write(running.request(b"GET " + target))
        await until(lambda: listening.server._waiting)
        old = running.project()
        vendor = running.sections["contentsquare"]
        await running.change(
            contentsquare={**vendor, "connect_timeout": 7},
            projects={"shop": {**ONE, "client_secret": "secret-2"}},
        )
        cloud.go_on.set()
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        await until(lambda: len(cloud.tokens) == 9)
        assert not old._tasks
        assert running.token.requests[-1]["scope"] == "data-export"
        assert running.token.requests[-1]["client_secret"] == "secret-2"


class Slow(TokenServer):
    """Answers what it is asked when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await self.go_on.wait()
        await super().__call__(reader, writer)


async def test_what_credentials_are_for_is_still_told_to_who_asked_before(tmp_path: Path) -> None:
    token = Slow()
    async with rig(tmp_path, token=token) as running:
        token.go_on.clear()
        asked = token.asked
        ask = b"POST /v1/oauth/me"
        calls = [asyncio.create_task(running.call(ask, b"Content-Length: 2", body=b"{}")) for _ in range(8)]
        await until(lambda: token.asked == asked + 4)
        await asyncio.sleep(0.01)  # and the others wait for these
        await running.change(contentsquare={**running.sections["contentsquare"], "connect_timeout": 7})
        await asyncio.sleep(0.01)
        token.go_on.set()
        assert [(await call).status for call in calls] == [200] * 8


# What changes at once


async def test_callers_and_hosts_change_at_once_on_connections_that_are_open(tmp_path: Path) -> None:
    callers = {"tool": {"key": "key-of-tool"}}
    async with rig(tmp_path) as running:
        reader, writer = await running.connect()

        async def ask(host: bytes, *lines: bytes) -> Message:
            writer.write(b"\r\n".join((b"GET /v1/segments HTTP/1.1", b"Host: " + host, *lines, b"", b"")))
            return await read_message(reader)

        assert (await ask(running.host)).status == 200
        await running.change(callers=callers, server={**running.sections["server"], "allowed_hosts": ["me"]})
        assert (await ask(running.host)).error_code == "PROXY_CALLER_UNKNOWN"
        assert (await ask(b"me", b"X-API-Key: key-of-tool")).status == 200
        await running.change(callers={"tool": {"key": "another-key", "projects": ["shop"]}})
        assert (await ask(b"me", b"X-API-Key: key-of-tool")).error_code == "PROXY_CALLER_UNKNOWN"
        assert (await ask(b"me", b"X-API-Key: another-key")).status == 200


async def test_the_limits_change_at_once_for_shared_and_lone_slots(tmp_path: Path) -> None:
    projects = {"shop": {**ONE, "default": True}, "known": {**ONE, "project_id": 42}}
    async with rig(tmp_path, projects=projects) as running:
        slots = [project.slots for project in running.app.projects()]
        contentsquare = {**running.sections["contentsquare"], "max_concurrency": 3, "queue_timeout": 0.01}
        await running.change(contentsquare=contentsquare)
        assert [project.slots for project in running.app.projects()] == slots
        assert [one.limit for one in slots] == [3, 3]
        for _ in range(3):
            assert slots[0].try_acquire()
        assert await running.code() == "PROXY_QUEUE_TIMEOUT"
        assert len(running.token.requests) == 2


async def test_log_level_and_format_change_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with rig(tmp_path, log={"level": "info", "format": "json"}) as running:
        log.configure("info", "json")
        await running.change(log={"level": "error", "format": "json"})
        capsys.readouterr()
        await running.code()
        assert "request_answered" not in capsys.readouterr().err
        await running.change(log={"level": "info", "format": "text"})
        await running.code()
        assert "request_answered" in capsys.readouterr().err


def certificate(authority: trustme.CA, folder: Path) -> None:
    pair = authority.issue_cert("localhost", "127.0.0.1")
    replace(folder / "key.pem", pair.private_key_pem.bytes().decode())
    replace(folder / "cert.pem", b"".join(blob.bytes() for blob in pair.cert_chain_pems).decode())


async def test_a_renewed_certificate_is_shown_to_new_connections(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    certificate(first, tmp_path)
    server = {"port": 0, "tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}

    async def shake_hands(port: int, authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except ssl.SSLCertVerificationError:
            return False
        await close(writer)
        return True

    async with rig(tmp_path, server=server) as running:
        assert await shake_hands(running.port, first)
        replace(tmp_path / "cert.pem", "not a certificate")
        await until(lambda: running.status[1])
        assert await shake_hands(running.port, first)
        certificate(second, tmp_path)
        await until(lambda: running.status[0])
        assert await shake_hands(running.port, second)
        assert not await shake_hands(running.port, first)


# What can't change


async def test_what_needs_a_restart_is_named_and_the_rest_is_applied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with rig(tmp_path, projects={"shop": {**ONE, "port": 0}}) as running:
        log.configure("info", "json")
        port = running.port
        more = {"client_id": "id-2", "client_secret": "secret-2", "apis": ["metrics"], "port": 65_000}
        server = {"host": "127.0.0.2", "port": 65_001, "drain_timeout": 1, "min_rate": 20_000}
        await running.change(projects={"shop": {**ONE, "default": True}, "more": more}, server=server)
        events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        [restart] = [event for event in events if event["event"] == "reload_needs_restart"]
        assert restart["keys"] == ["server.host", "server.port", "projects.more.port"]
        assert restart["level"] == "warning"
        [reloaded] = [event for event in events if event["event"] == "reloaded"]
        assert reloaded["added"] == ["projects.more"]
        assert {"projects.shop", "server.host", "server.port", "server.min_rate"} == {*reloaded["changed"]}
        assert running.port == port
        assert await running.code(b"GET /more/v1/segments") == 200


async def test_a_port_whose_project_is_gone_leads_nowhere_else(tmp_path: Path) -> None:
    port = free_port()
    projects = {"shop": {**ONE, "default": True}, "own": {**ONE, "port": port}}
    async with rig(tmp_path, projects=projects) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def ask() -> Message:
            writer.write(b"GET /shop/v1/segments HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            return await read_message(reader)

        assert (await ask()).status == 200
        await running.change(projects={"shop": ONE})
        assert (await ask()).error_code == "PROXY_UNKNOWN_PROJECT"
        await running.change(projects=projects)
        assert (await ask()).status == 200
        await close(writer)


# A bad file


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda text: text + "\n[oops", "not valid TOML"),
        (lambda text: text.replace("client_id", "cliend_id"), "client_id"),
        (lambda text: text.replace('"secret-1"', '"canary-secret"\nbogus = 1'), "bogus"),
        (lambda _: "", "none is configured"),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_told_counted_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[str], str], fault: str
) -> None:
    async with rig(tmp_path) as running:
        log.configure("info", "json")
        before = running.app._generation
        await running.rewrite(spoil(toml(running.sections)))
        assert running.status == (0, 1)
        assert running.app._generation is before
        assert await running.code() == 200
        shown = json.loads((await running.call(b"GET /-/status")).body)["reload"]
        assert (shown["count"], shown["refused"]) == (0, 1)
        assert shown["last_at"].endswith("+00:00")
        assert any(fault in line for line in shown["last_faults"])
        faults = b"\ncsq_proxy_configuration_faults %d.0\n"
        assert faults % len(shown["last_faults"]) in (await running.call(b"GET /-/metrics")).content
        output = capsys.readouterr().err
        [refused] = [json.loads(line) for line in output.splitlines() if "reload_refused" in line]
        assert refused["faults"] == shown["last_faults"]
        assert "canary" not in output + json.dumps(shown)
        await running.change()
        assert running.status == (1, 1)
        shown = json.loads((await running.call(b"GET /-/status")).body)["reload"]
        assert shown["last_faults"] == []
        assert faults % 0 in (await running.call(b"GET /-/metrics")).content
        assert len(running.token.requests) == 1


async def test_the_list_of_requests_is_switched_without_a_restart_and_outlives_a_reload(
    tmp_path: Path,
) -> None:
    async def routes() -> list[str]:
        page = await running.call(b"GET /-/requests", b"X-API-Key: key-of-all")
        return [one["route"] for one in json.loads(page.body)["requests"]]

    secret, key = "hunter-22", b"X-API-Key: key-of-all"  # a secret of an ordinary word is forwarded
    shop = {**ONE, "client_secret": secret}
    async with rig(tmp_path, projects={"shop": shop}, callers={"all": {"key": "key-of-all"}}) as running:
        await running.call(b"GET /shop/v1/" + secret.encode(), key)
        await running.call(b"GET /shop/v1/a", key)
        await running.change(projects={"shop": {**ONE, "client_secret": "the-second-secret"}})
        await until(lambda: redactor.redact(secret) == secret)  # the log has forgotten it
        assert await routes() == ["/shop/v1/[redacted]", "/shop/v1/a"]
        await running.change(log={"requests": False})
        await running.call(b"GET /shop/v1/b", key)
        assert await routes() == []
        await running.change(log={"requests": True})
        await running.call(b"GET /shop/v1/c", key)
        assert await routes() == ["/shop/v1/c"]


async def test_what_is_wrong_with_the_file_is_told_to_callers_without_limits_alone(tmp_path: Path) -> None:
    callers = {"all": {"key": "key-of-all"}, "one": {"key": "key-of-one", "projects": ["shop"]}}
    async with rig(tmp_path, callers=callers) as running:
        await running.rewrite(toml(running.sections) + "\nbogus = 1")
        for key, told in ((b"key-of-all", 1), (b"key-of-one", 0)):
            answer = await running.call(b"GET /-/status", b"X-API-Key: " + key)
            assert len(json.loads(answer.body)["reload"]["last_faults"]) == told


async def test_a_file_that_is_gone_is_a_bad_one(tmp_path: Path) -> None:
    async with rig(tmp_path) as running:
        running.file.unlink()
        await until(lambda: running.status == (0, 1))
        assert await running.code() == 200
        await running.change()
        assert running.status == (1, 1)


@pytest.mark.parametrize("fallback", ["environment", "another file"])
async def test_a_file_that_was_found_and_is_gone_gives_way_to_no_other_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: str
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": str(tmp_path / "home")}
    projects = {"shop": ONE}
    if fallback == "environment":
        projects = {}
        environ |= {"CONTENTSQUARE_CLIENT_ID": "id-1", "CONTENTSQUARE_CLIENT_SECRET": "secret-1"}
    else:
        other = tmp_path / "home/.config/csq-proxy/config.toml"
        other.parent.mkdir(parents=True)
        write(other, toml({"projects": {"shop": ONE}}))
    callers = {"bi": {"key": "key-of-bi"}}
    async with rig(tmp_path, environ=environ, projects=projects, callers=callers) as running:
        for refusals in (1, 2):
            running.file.unlink()
            await until(lambda: running.status[1] == refusals)  # noqa: B023 - awaited within
            assert running.app.overview.reload.last_faults == (f"{running.file}: there is no such file",)
            assert await running.code() == "PROXY_CALLER_UNKNOWN"
            write(running.file, toml(running.sections))
            await until(lambda: running.status == (refusals, refusals))  # noqa: B023 - awaited within
        assert await running.code(b"GET /v1/segments", b"X-API-Key: key-of-bi") == 200


async def test_where_no_file_was_found_one_is_looked_for_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = load(None, {"server": {"port": 0}, "projects": {"shop": ONE}}, {}, search=False)
    read: list[Path | None] = []

    def again(source: Path | None) -> Settings:
        read.append(source)
        return load(source, {"server": {"port": 0}, "projects": {"shop": ONE}}, {"HOME": "/nowhere"})

    app = App(first, again)
    async with app.started():
        file = tmp_path / "config.toml"
        write(file, "[server]\ndrain_timeout = 7\n")
        for count in (1, 2):
            app.reload()
            await until(lambda: app.overview.reload.count == count)  # noqa: B023 - awaited within
    assert read == [None, file]


async def test_a_secret_file_that_comes_later_than_the_configuration_that_names_it_is_noticed(
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "mount"
    secrets.mkdir()
    write(secrets / "old", "secret-of-old")
    shop = {"client_id": "id-1", "client_secret_file": str(secrets / "old"), "apis": ["metrics"]}
    async with rig(tmp_path, projects={"shop": shop}) as running:
        await running.change(projects={"shop": {**shop, "client_secret_file": str(secrets / "new")}})
        assert running.status == (0, 1)
        write(secrets / "new", "secret-of-new")
        await until(lambda: running.status[0] == 1)
        await until(lambda: running.token.requests[-1]["client_secret"] == "secret-of-new")


# Secrets


async def test_no_log_line_holds_a_token_or_secret_that_is_or_was_lately_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canaries = {
        "first": "canary-secret-first",
        "standby": "canary-secret-standby",
        "key": "canary-key-of-caller",
    }
    shop = {
        **ONE,
        "client_secret": canaries["first"],
        "standby": {"client_id": "id-2", "client_secret": canaries["standby"]},
    }
    before = repr(redactor)
    token = TokenServer(extra={"project_id": 42})
    async with rig(
        tmp_path, token=token, projects={"shop": shop}, callers={"tool": {"key": canaries["key"]}}
    ) as running:
        log.configure("info", "json")
        [keeper] = running.project().keepers.values()
        for number in range(1, 5):
            await until(lambda: keeper.status().refreshes == number)  # noqa: B023 - awaited within
            keeper._schedule.due_at = 0.0
            keeper._hurry(gap_s=0.0)
        await until(lambda: keeper.status().refreshes == 5)
        await running.change(projects={"shop": {**shop, "client_secret": "canary-secret-second"}})
        [successor] = running.project().keepers.values()
        await until(lambda: successor.status().refreshes == 1)
        assert await running.code(b"GET /v1/segments", b"X-API-Key: " + canaries["key"].encode()) == 200
        capsys.readouterr()
        texts = [*canaries.values(), "canary-secret-second", *(f"Bearer token-{n}" for n in (4, 5, 6))]
        for text in texts:
            logging.getLogger("any").warning("seen %s", text)
        output = capsys.readouterr().err
        assert output.count("[redacted]") == len(texts) - 1
        assert canaries["first"] in output  # nobody uses it any more
    assert repr(redactor) == before


# Never the token of one with the endpoint of another


ANSWER = b"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 2\r\n\r\nok"


class Cloud(asyncio.Protocol):
    """Counts requests, and those whose token is for another cloud."""

    def __init__(self, name: bytes, seen: Counter[bytes], wrong: list[bytes]) -> None:
        self._bearer = b"\r\nAuthorization: Bearer %b-" % name
        self._name, self._seen, self._wrong = name, seen, wrong
        self._buffer = b""
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True

    def data_received(self, data: bytes) -> None:
        *heads, self._buffer = (self._buffer + data).split(b"\r\n\r\n")
        for head in heads:
            self._seen[self._name] += 1
            if self._bearer not in head:
                self._wrong.append(head)
            self._transport.write(ANSWER)


@dataclass
class Clouds:
    """A token endpoint that names another cloud each time; the token says which."""

    urls: Mapping[str, str]
    count: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        self.count += 1
        name = [*self.urls][self.count % len(self.urls)]
        content = json.dumps({"access_token": f"{name}-{self.count}", "endpoint": self.urls[name]}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(content), content)
        )
        await writer.drain()


async def test_a_token_goes_with_its_endpoint_in_ten_thousand_requests_among_changes() -> None:
    batches = (
        8 if sys.platform == "win32" else 80
    )  # of eight requests, by eight callers; Wine answers 140 a second
    seen: Counter[bytes] = Counter()
    wrong: list[bytes] = []
    connections: list[Cloud] = []
    log.configure("error", "json", io.StringIO())
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        urls = {}
        for name in ("a", "b", "c"):

            def make(name: bytes = name.encode()) -> Cloud:
                connections.append(Cloud(name, seen, wrong))
                return connections[-1]

            server = await loop.create_server(make, "127.0.0.1", 0)
            stack.callback(server.close)
            urls[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        clouds = Clouds(urls)
        token_server = await stack.enter_async_context(RawServer(clouds))

        def version(number: int) -> Settings:
            # Every third is another client, the others have another secret: without and with inheritance.
            shop = {**ONE, "client_id": f"id-{number // 3}", "client_secret": f"secret-{number}"}
            return load(
                None,
                {
                    "server": {"port": 0},
                    "contentsquare": {
                        "auth_url": token_server.url,
                        "allowed_endpoints": [url.partition("://")[2] for url in urls.values()],
                    },
                    "projects": {"shop": shop},
                },
                {},
                search=False,
            )

        versions = [version(number) for number in range(48)]
        app = await stack.enter_async_context(App(versions[0]).started())
        await app.settled(WAIT_S)
        port = app.listeners[0].port
        batch = b"GET /v1/segments HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port * 8
        expected = ANSWER.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % KEPT)
        done = asyncio.Event()

        async def call() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(batches):
                writer.write(batch)
                answers = await reader.readexactly(8 * len(expected))
                assert answers == expected * 8
            await close(writer)

        async def flip() -> int:
            flips = 0
            while not done.is_set():
                flips += 1
                app._apply(plan(versions[flips % len(versions)], app._generation.outward))
                if flips % 2:
                    await asyncio.sleep(0.01)
                else:
                    project = next(iter(app.projects()))
                    await until(lambda: done.is_set() or project.is_settled)  # noqa: B023 - awaited within
            return flips

        flipping = asyncio.create_task(flip())
        async with asyncio.timeout(120):
            await asyncio.gather(*(call() for _ in range(8)))
        done.set()
        assert await flipping > 20
    await until(lambda: all(connection.is_over for connection in connections))
    assert not wrong
    assert seen.total() >= 64 * batches  # and as many on the other event loop
    assert min(seen[name] for name in (b"a", b"b", b"c")) > 20


# Slots


async def test_a_reload_gives_no_further_places(tmp_path: Path) -> None:
    async with rig(tmp_path, Upstream(), projects={"shop": {**ONE, "default": True}}) as running:
        slots = running.project().slots
        for drain_timeout in (1, 2):
            for _ in range(8):
                _, writer = await running.connect()
                writer.write(running.request(b"POST /v1/exports", b"Content-Length: 9", body=b"a"))
            async with asyncio.timeout(WAIT_S):
                while slots.in_use + slots.uploads.waiting != 8 * drain_timeout:
                    await asyncio.sleep(0.01)
            assert slots.in_use == 5
            await running.change(server={"port": 0, "drain_timeout": drain_timeout + 5})
            assert running.project().slots is slots


@pytest.mark.parametrize("change", [{"client_id": "id-2"}, {"integration_id": 7}])
async def test_ten_run_at_once_and_no_more_after_a_rotation_either(
    change: dict[str, object], tmp_path: Path
) -> None:
    now = most = 0
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        while True:
            await read_message(reader)
            now += 1
            most = max(most, now)
            await go_on.wait()
            now -= 1
            writer.write(OK)
            await writer.drain()

    class Token(TokenServer):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.requests:
                await asyncio.sleep(0.2)
            await super().__call__(reader, writer)

    token = Token(extra={"project_id": 42})
    async with rig(tmp_path, script, token=token, projects={"shop": ONE}) as running:
        before = [asyncio.create_task(running.call(b"GET /v1/segments")) for _ in range(12)]
        await until(lambda: now == 10)
        await running.change(projects={"shop": {**ONE, **change}})
        after = [asyncio.create_task(running.call(b"GET /v1/segments")) for _ in range(12)]
        await until(lambda: len(token.requests) > 1 and running.project().slots.waiting == 14)
        assert now == 10
        go_on.set()
        await asyncio.gather(*before, *after)
    assert most == 10
