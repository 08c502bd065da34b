"""What ``snippets`` prints for tools: run for real where its program is there, else parsed and checked."""

from __future__ import annotations

import asyncio
import csv
import datetime as dt
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tree_sitter
import tree_sitter_powershell
import yaml
from support.commands import run
from support.harness import Upstream, gateway
from support.snippets import FULL, KEY, executed, needs, served, settings_of, text, with_and_without_callers

from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS
from proxy.config.settings import Settings
from proxy.errors import ConfigError


@pytest.mark.parametrize("what", FOR_CALLERS + FOR_OPERATORS)
@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_every_place_is_filled_and_no_secret_is_in_it(what: str, settings: Settings) -> None:
    shown = text(what, settings)
    assert "<<" not in shown
    assert ">>" not in shown
    assert "canary" not in shown
    if what in FOR_CALLERS:
        url = "http://csq-proxy:9000/shop-fr" if settings is FULL else "http://127.0.0.1:8277/shop-fr"
        if settings is FULL and what == "looker":
            url = url.replace("http:", "https:")
        assert url in shown or f"{url.removesuffix('shop-fr')}-/exports/shop-fr/" in shown
        keys = ("X-API-Key", "Basic", "basicAuth") if settings is FULL or what == "looker" else ()
        assert bool(re.search(r"X-API-Key|\bBasic\b|basicAuth|csq_key", shown)) == bool(keys)
        named = "projectId|projects/42|/-/exports/shop-fr/"
        assert re.search(named, shown) if settings is FULL else "projectId" not in shown


@pytest.mark.parametrize("what", ["curl", "systemd", "grafana-dashboard"])
def test_a_wrong_project_is_refused_for_every_text(what: str) -> None:
    with pytest.raises(ConfigError, match=r"^nobody: there is no such project; there are shop-fr"):
        text(what, FULL, "nobody")


@with_and_without_callers
async def test_the_python_snippet_prints_a_row_a_day(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        printed = await executed(
            tmp_path, sys.executable, "it.py", file="it.py", content=text("python", settings)
        )
    assert re.fullmatch(r"(2026-03-0\dT\S+ \d+\n){7}", printed)


ELSEWHERE = (
    sys.executable,
    "-c",
    "import os, runpy; path = os.path.abspath('it.py'); os.chdir('/'); runpy.run_path(path)",
)
"""A command that runs the script as a scheduler does: in another folder, as Windows' in System32."""


@with_and_without_callers
async def test_the_tableau_snippet_writes_a_table(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        await executed(tmp_path, *ELSEWHERE, file="it.py", content=text("tableau", settings))
    written = await asyncio.to_thread((tmp_path / "visits.csv").read_text, encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(written)))
    assert len(rows) == 90
    assert int(rows[0]["value"]) > 0


async def test_the_tableau_snippet_keeps_the_table_where_an_answer_has_no_rows(tmp_path: Path) -> None:
    none = b'{"success": true, "payload": {"values": []}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(none), none)
    table = tmp_path / "visits.csv"
    await asyncio.to_thread(table.write_text, "of yesterday", encoding="utf-8")
    async with gateway(Upstream(answer)) as proxy:
        script = text("tableau", settings_of(server={"port": proxy.port})).replace("/shop-fr/", "/")
        with pytest.raises(AssertionError, match="No visits"):
            await executed(tmp_path, sys.executable, "it.py", file="it.py", content=script)
    assert await asyncio.to_thread(table.read_text, encoding="utf-8") == "of yesterday"


@needs("curl")
@needs("bash")
@with_and_without_callers
async def test_the_curl_snippet_gets_an_answer(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        printed = await executed(tmp_path, "bash", "it.sh", file="it.sh", content=text("curl", settings))
    assert json.loads(printed)["success"] is True


SURVEYS = 47
"""The number of the sandbox's surveys."""


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the program has no loop of ours
@needs("curl")
@needs("sh")
@with_and_without_callers
async def test_the_curl_snippet_gets_each_page(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        shown = with_surveys("curl", settings)
        await executed(tmp_path, "sh", "it.sh", file="it.sh", content=shown)
    written = await asyncio.to_thread((tmp_path / "surveys.jsonl").read_text, encoding="utf-8")
    pages = [json.loads(line)["results"] for line in written.splitlines()]
    assert [len(page) for page in pages] == [20, 20, 7]
    assert len({survey["id"] for page in pages for survey in page}) == SURVEYS


def with_surveys(what: str, settings: Settings) -> str:
    """The text, with its lines that show the surveys, by pages of 20."""
    shown = re.sub(r"limit(\W+)100", r"limit\g<1>20", text(what, settings))
    head, mark, rest = re.split(r"^ *((?:#|//) )(?=surveys >|for )", shown, maxsplit=1, flags=re.MULTILINE)
    return head + rest.replace(f"\n{mark}", "\n")


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the program has no loop of ours
@with_and_without_callers
@pytest.mark.parametrize(
    ("what", "file"), [("python", "it.py"), pytest.param("javascript", "it.js", marks=needs("node"))]
)
async def test_the_snippets_of_languages_get_each_page(
    what: str, file: str, with_callers: bool, tmp_path: Path
) -> None:
    program = sys.executable if what == "python" else "node"
    async with served(with_callers) as settings:
        printed = await executed(tmp_path, program, file, file=file, content=with_surveys(what, settings))
    surveys = [line for line in printed.splitlines() if line.startswith("survey_")]
    assert len(surveys) == len(set(surveys)) == SURVEYS
    assert len(printed.splitlines()) == SURVEYS + 7


def test_the_curl_lines_of_readme_go_straight_to_the_proxy() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if re.match(r"(\$ )?curl ", line)]
    assert lines
    assert all('curl --noproxy "*" ' in line for line in lines)


@needs("node")
@with_and_without_callers
async def test_the_javascript_snippet_prints_a_row_a_day(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        printed = await executed(
            tmp_path, "node", "it.js", file="it.js", content=text("javascript", settings)
        )
    assert re.fullmatch(r"(2026-03-0\dT\S+ \d+\n){7}", printed)


GOOGLE = """
const { execFileSync } = require('node:child_process');
const PropertiesService = { getScriptProperties: () => ({ getProperty: () => process.env.CSQ_KEY }) };
const UrlFetchApp = { fetch: (url, { headers }) => {
  const fields = Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]);
  const options = ['--noproxy', '*', '-sSf', ...fields, url];
  return { getContentText: () => execFileSync('curl', options, { encoding: 'utf8' }) };
} };
const sheets = {}; // of the spreadsheet; those that its owner has are missing here: no other may be cleared
const SpreadsheetApp = { getActiveSpreadsheet: () => ({
  getSheetByName: (name) => sheets[name] || null,
  insertSheet: (name) => (sheets[name] = {
    clearContents: () => {},
    getRange: (...place) => ({ setValues: (rows) => console.log(JSON.stringify([name, place, rows])) }),
  }),
}) };
"""


@needs("node")
@needs("curl")
@with_and_without_callers
async def test_the_looker_snippet_fills_a_sheet(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        script = f"{GOOGLE}{text('looker', settings)}\nvisits();\nvisits();"
        printed = await executed(tmp_path, "node", "it.js", file="it.js", content=script)
    first, second = printed.splitlines()
    assert first == second
    name, place, rows = json.loads(first)
    assert name == "visits"
    assert len(rows) == 91
    assert place == [1, 1, len(rows), len(rows[0])]
    assert "value" in rows[0]


@pytest.mark.parametrize("what", ["powerbi", "excel"])
def test_power_query_keeps_its_base_url_apart(what: str) -> None:
    shown = text(what, FULL)  # Power BI Service needs a URL that is a constant
    assert 'Web.Contents("http://csq-proxy:9000/shop-fr", [' in shown
    assert 'RelativePath = "v1/metrics/site/visits"' in shown
    assert 'Query = [startDate = Day(-7), endDate = Day(-1), period = "daily", projectId = "42"]' in shown
    assert "Basic" in shown


@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_the_powershell_snippets_are_parsed_without_an_error(settings: Settings) -> None:
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    assert parser.parse(b"$answer = Invoke-RestMethod -Uri 'http://").root_node.has_error
    [part] = re.findall(r"^--- PowerShell\n(.*?)^--- ", text("export", settings), re.MULTILINE | re.DOTALL)
    for shown in (text("powershell", settings), part):
        assert not parser.parse(shown.encode()).root_node.has_error


@needs("curl")
@with_and_without_callers
async def test_the_grafana_snippet_finds_its_rows_and_columns(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        shown = text("grafana", settings)
        source = yaml.safe_load(shown)["datasources"][0]
        asked = re.search(r"^# +(/v1/\S+)\n# +root selector: (\S+), columns: (.*)$", shown, re.MULTILINE)
        assert asked is not None
        target, root, columns = asked.groups()
        target = target.replace("${__from:date:YYYY-MM-DD}", "2026-03-03")
        target = target.replace("${__to:date:YYYY-MM-DD}", "2026-03-09")
        # Grafana, written in Go, never asks an HTTP proxy for this computer.
        call = ["curl", "--noproxy", "*", "-sSf"]
        call += ["-u", f"{source['basicAuthUser']}:{KEY}"] if with_callers else []
        printed = await executed(tmp_path, *call, source["url"] + target, file="none", content="")
    rows = json.loads(printed)
    for name in root.split("."):
        rows = rows[name]
    assert len(rows) == 7
    kinds: dict[str, Callable[[Any], object]] = {"time": dt.datetime.fromisoformat, "number": float}
    for column in columns.split(", "):
        name, kind = column.removesuffix(")").split(" (")
        assert all(kinds[kind](row[name]) for row in rows)


async def test_the_grafana_snippet_asks_what_the_proxy_has() -> None:
    source = yaml.safe_load(text("grafana", FULL))["datasources"][0]
    assert source["url"] == "http://csq-proxy:9000/shop-fr"
    assert source["url"].startswith(source["jsonData"]["allowedHosts"][0])
    assert "basicAuth" not in yaml.safe_load(text("grafana", settings_of()))["datasources"][0]


def test_the_command_prints_one_or_all(environ: dict[str, str], config: Path) -> None:
    ended = run("snippets", "--for", "curl", environ=environ, cwd=config.parent)
    assert ended.returncode == 0
    assert '\ncurl --noproxy "*" "http://127.0.0.1:PORT/shop/v1/' in ended.stdout
    ended = run("snippets", "shop", environ=environ, cwd=config.parent)
    assert ended.returncode == 0
    assert all(f"--- {what}\n" in ended.stdout for what in FOR_CALLERS)
    assert "canary" not in ended.stdout
    for wrong in (["shap"], ["--for", "cobol"]):
        ended = run("snippets", *wrong, environ=environ, cwd=config.parent)
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
        assert "there are" in ended.stderr
