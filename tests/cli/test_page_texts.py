"""The texts that the command line gives to the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.harness import Gateway, Message, gateway

from proxy.cli import page_texts
from proxy.cli.snippets.text import FOR_CALLERS

PROJECTS = {
    "shop": {"client_id": "id-1", "client_secret": "canary-secret-5f1c", "apis": [], "project_id": 42},
    "blog": {"client_id": "id-2", "client_secret": "canary-secret-5f1c", "apis": []},
}
CALLERS = {"bi": {"key": "canary-key-0123456789", "projects": ["blog"]}}
KEY = b"X-API-Key: canary-key-0123456789"


def said(answer: Message) -> Any:
    return json.loads(answer.content)


async def asked(proxy: Gateway, query: bytes, *lines: bytes) -> Message:
    proxy.app.overview.page_texts = page_texts.page_texts(["--port", "0"], None)
    return await proxy.call(b"GET /-/snippets" + query, *lines)


async def test_the_page_gets_the_texts_of_all_tools_with_the_projects_own_paths() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        answer = await asked(proxy, b"?project=shop")
        shown = said(answer)
        origin = f"http://127.0.0.1:{proxy.port}"
        assert (shown["project"], shown["origin"]) == ("shop", origin)
        texts = {one["tool"]: one["text"] for one in shown["tools"]}
        assert tuple(texts) == FOR_CALLERS
        assert f"{origin}/shop/v1/metrics/site/visits?startDate=20" in texts["curl"]
        assert "projectId=42" in texts["curl"]
        assert f"{origin}/-/exports/shop/JOB_ID/latest.csv" in texts["export"]
        assert b"canary" not in answer.content


async def test_an_accounts_project_has_texts_once_it_is_in_use() -> None:
    accounts = {"acme": {"client_id": "id-2", "client_secret": "canary-secret-5f1c"}}
    async with gateway(accounts=accounts) as proxy:
        assert (await asked(proxy, b"?project=acme/42")).status == 404
        await proxy.call(b"GET /acme/42/v1/segments")
        [curl, *_] = said(await asked(proxy, b"?project=acme%2F42"))["tools"]
        assert "/acme/42/v1/metrics" in curl["text"]


@pytest.mark.parametrize("query", [b"", b"?project=", b"?project=nobody", b"?project=%ff", b"?project=shop"])
async def test_another_callers_project_is_as_unknown_as_one_that_is_not_there(query: bytes) -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        answer = await asked(proxy, query, KEY)
        assert (answer.status, answer.error_code) == (404, "PROXY_UNKNOWN_PROJECT")
        assert b"/-/snippets?project=shop" not in answer.content  # as advice
        texts = [one["text"] for one in said(await asked(proxy, b"?project=blog", KEY))["tools"]]
        assert "$CSQ_KEY" in texts[0]
        assert b"canary" not in answer.content


@pytest.mark.parametrize(
    ("arguments", "source", "start"),
    [
        (["--sandbox", "--port", "9000"], None, "csq-proxy serve --sandbox --port 9000"),
        (["--config", "my.toml"], Path("/x/my.toml"), "csq-proxy serve --config my.toml"),
    ],
)
def test_the_command_that_starts_the_proxy_again(
    arguments: list[str], source: Path | None, start: str
) -> None:
    assert page_texts.page_texts(arguments, source).start == start


def test_the_command_names_the_file_that_was_found(tmp_path: Path) -> None:
    start = page_texts.page_texts([], tmp_path / "config.toml").start
    assert start.startswith("csq-proxy serve --config ")
    assert str(tmp_path / "config.toml") in start


@pytest.mark.parametrize("limited", [False, True])
async def test_the_status_has_the_command_for_callers_that_see_everything(*, limited: bool) -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS if limited else {}) as proxy:
        proxy.app.overview.page_texts = page_texts.page_texts(["--config", "/secret/place.toml"], None)
        status = said(await proxy.call(b"GET /-/status", KEY))
        assert status.get("start_command") == (
            None if limited else "csq-proxy serve --config /secret/place.toml"
        )


def test_the_texts_are_loaded_only_when_they_are_wanted() -> None:
    script = "import sys, proxy.cli.page_texts; print('proxy.cli.snippets.text' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
