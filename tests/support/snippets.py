"""Ready text for tools and operators: made from a configuration, and run beside a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.commands import STARTUP_S
from support.harness import WAIT_S, RawServer

from proxy.app.app import App
from proxy.cli.snippets.text import text_of
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.sandbox import Sandbox, SandboxOptions

TODAY = dt.date(2026, 3, 10)


KEY = "caller-key-canary-1"


PROJECT = {"client_id": "id-1", "client_secret": "canary-1", "apis": ["metrics"]}


def settings_of(**sections: Mapping[str, object]) -> Settings:
    return load(None, {"projects": {"shop-fr": PROJECT}, **sections}, {}, search=False)


FULL = settings_of(
    server={"port": 9000, "allowed_hosts": ["csq-proxy:9000"], "host": "0.0.0.0", "allow_quit": True},
    projects={
        "shop-fr": {
            **PROJECT,
            "client_id": 'id"$1',
            "project_id": 42,
            "integration_id": 7,
            "expires": dt.date(2027, 1, 31),
            "standby": {"client_id": "id-2", "client_secret": "canary-2"},
        },
        "own": {**PROJECT, "port": 9001},
    },
    accounts={"acme": {"client_id": "id-3", "client_secret": "canary-3", "projects": [43, 44]}},
    callers={"powerbi": {"key": KEY, "projects": ["shop-fr"], "read_only": True}},
    log={"level": "debug"},
)


def text(
    what: str,
    settings: Settings,
    project: str | None = None,
    python: str = sys.executable,
    own: Sequence[str] = (),
) -> str:
    return text_of(what, settings, project, today=TODAY, own=own or (python, "-m", "proxy"))


@contextlib.asynccontextmanager
async def served(with_callers: bool, *, door: int = 0) -> AsyncIterator[Settings]:
    """A proxy before the sandbox, and its configuration with the port that it listens on.

    ``door``: another port by which callers come, 0 for none.
    """
    async with Sandbox(SandboxOptions(export_duration_s=0)) as sandbox:
        demo = sandbox.projects["demo-eu"]
        values: dict[str, Any] = {
            "server": {"port": 0, "allowed_hosts": [f"127.0.0.1:{door}"] if door else []},
            "contentsquare": {
                "auth_url": sandbox.auth_url,
                "allowed_endpoints": sandbox.hosts,
                "allowed_downloads": [sandbox.storage_url.removeprefix("http://")],
            },
            "projects": {
                "shop-fr": {
                    "client_id": demo.client_id,
                    "client_secret": demo.client_secret,
                    "project_id": demo.project_id,
                    "apis": ["metrics"],
                }
            },
        }
        if with_callers:
            values["callers"] = {"bi": {"key": KEY}}
        app = App(load(None, values, {}, search=False))
        async with app.started():
            await app.settled(WAIT_S)
            values["server"]["port"] = int(app.listeners[0].url.rpartition(":")[2])
            yield load(None, values, {}, search=False)


async def finished_export(settings: Settings, rows: int = 3) -> tuple[str, str]:
    """Make an export of the project's; its job's number, and the content of its files as one."""
    job = {
        "name": "test",
        "format": "CSV",
        "scope": "sessions",
        "frequency": {"value": "once", "dateRange": {"from": "2026-03-03", "to": "2026-03-04"}},
        "fields": [{"fieldName": "session_id"}, {"fieldName": "country_code"}],
        "rows": rows,
    }
    url = f"http://127.0.0.1:{settings.server.port}"
    async with aiohttp.ClientSession(headers={"X-API-Key": KEY}, raise_for_status=True) as session:
        async with session.post(f"{url}/shop-fr/v1/exports", json=job) as answer:
            number = str((await answer.json())["payload"]["jobId"])
        async with session.get(f"{url}/-/exports/shop-fr/{number}/latest.csv") as answer:
            return number, await answer.text()


async def executed(folder: Path, *command: str, file: str, content: str, **environ_too: str) -> str:
    """Run a command in a folder that holds ``file`` with this content; its output.

    The environment names a company's HTTP proxy, which must not see the caller's key.
    """

    def call(variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        (folder / file).write_text(content, encoding="utf-8")
        environ = {**os.environ, "CSQ_KEY": KEY, **variables, **environ_too}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=STARTUP_S, cwd=folder, env=environ, check=False
        )

    async with company_proxy() as (variables, seen):
        ended = await asyncio.to_thread(call, variables)
    assert not seen
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@contextlib.asynccontextmanager
async def company_proxy() -> AsyncIterator[tuple[Mapping[str, str], list[bytes]]]:
    """The variables that name an HTTP proxy, without an exception, and what the HTTP proxy has seen."""
    seen: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with RawServer(refuse) as server:
        names = ("http_proxy", "https_proxy", "all_proxy")
        variables = dict.fromkeys((*names, *map(str.upper, names)), server.url)
        yield {**variables, "NO_PROXY": "", "no_proxy": "", "NODE_USE_ENV_PROXY": "1"}, seen


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} here")


TOOLS_PYTHON = os.environ.get("DATA_TOOLS_PYTHON", sys.executable)
"""The interpreter that has DuckDB, pandas and Polars, if any has."""


@functools.cache
def has_package(name: str) -> bool:
    if sys.executable == TOOLS_PYTHON:
        return importlib.util.find_spec(name) is not None
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([TOOLS_PYTHON, "-c", look], timeout=STARTUP_S, check=False).returncode == 0


@functools.cache
def has_r_package(name: str) -> bool:
    if shutil.which("Rscript") is None:
        return False
    look = f"quit(status = !requireNamespace('{name}', quietly = TRUE))"
    return subprocess.run(["Rscript", "-e", look], timeout=STARTUP_S, check=False).returncode == 0


def needs_package(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not has_package(name), reason=f"no {name} in $DATA_TOOLS_PYTHON here")


with_and_without_callers = pytest.mark.parametrize("with_callers", [False, True])
