"""What ``snippets`` prints: run for real where there is something to run it with, else parsed and checked."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime as dt
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import kubernetes_validate
import pytest
import tree_sitter
import tree_sitter_powershell
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.commands import run
from support.harness import WAIT_S

from proxy.app.app import App
from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS, text_of
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.sandbox import Sandbox

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


def text(what: str, settings: Settings, project: str | None = None, python: str = sys.executable) -> str:
    return text_of(what, settings, project, today=TODAY, python=python)


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
        assert url in shown
        keys = ("X-API-Key", "Basic", "basicAuth") if settings is FULL or what == "looker" else ()
        assert any(word in shown for word in ("X-API-Key", "Basic", "basicAuth")) == bool(keys)
        assert re.search("projectId|projects/42", shown) if settings is FULL else "projectId" not in shown


@pytest.mark.parametrize(
    ("project", "url"),
    [
        (
            None,
            "http://csq-proxy:9000/shop-fr/v1/metrics/site/visits?startDate=2026-03-03&endDate=2026-03-09&period=daily&projectId=42",
        ),
        ("own", "http://localhost:9001/v1/metrics/site/visits?"),
        ("acme", "http://csq-proxy:9000/acme/43/v1/metrics/site/visits?"),
        ("acme/44", "http://csq-proxy:9000/acme/44/v1/"),
    ],
)
def test_a_project_has_its_own_url(project: str | None, url: str) -> None:
    assert url in text("curl", FULL, project)


def test_a_project_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="there are shop-fr, own, acme"):
        text("curl", FULL, "shop")
    with pytest.raises(ConfigError, match="acme/42"):
        text("curl", settings_of(accounts={"acme": {"client_id": "a", "client_secret": "b"}}), "acme")


@pytest.mark.parametrize("name", ["acme/45", "acme/0", "acme/043", "acme/4x"])
def test_an_account_s_project_that_would_be_refused_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        text("curl", FULL, name)


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.1.2.3", "http://csq-proxy:9000/shop-fr"), ("127.0.0.1", "http://127.0.0.1:9000/shop-fr")],
)
def test_callers_from_elsewhere_use_a_name_that_is_accepted(host: str, url: str) -> None:
    server = {"host": host, "port": 9000, "allowed_hosts": ["csq-proxy:9000"]}
    assert url in text("curl", settings_of(server=server, callers={"bi": {"key": KEY}}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("own_port", [0, 9001])
def test_a_vendor_s_cloud_calls_an_accepted_name_by_https(host: str, own_port: int) -> None:
    settings = settings_of(
        server={"host": host, "allowed_hosts": ["proxy.corp", "other.corp"]},
        projects={"shop-us": {**PROJECT, "port": own_port}},
        accounts={"acme": {"client_id": "id-3", "client_secret": "canary-3"}},
        callers={"looker": {"key": KEY}},
    )
    assert "const URL_OF_PROXY = 'https://proxy.corp/shop-us';\n" in text("looker", settings)
    assert "'https://proxy.corp/acme/42'" in text("looker", settings, "acme/42")


@pytest.mark.parametrize("what", FOR_CALLERS)
def test_a_port_that_is_any_free_one_is_left_to_the_reader(what: str) -> None:
    settings = settings_of(
        server={"port": 0}, projects={"shop-fr": PROJECT, "own": {**PROJECT, "port": 9001}}
    )
    first, _, rest = text(what, settings).partition("\n")
    mark = "//" if what in ("powerbi", "powerbi-pages", "excel", "looker", "javascript") else "#"
    assert first == f"{mark} PORT: server.port is 0, any free one; csq-proxy prints it at its start."
    assert "http://127.0.0.1:PORT/shop-fr" in rest
    assert "8277" not in rest
    assert "PORT:" not in text(what, settings, "own")
    assert "http://127.0.0.1:9001" in text(what, settings, "own")


@pytest.mark.parametrize("what", FOR_CALLERS)
def test_a_name_has_its_own_port_whatever_ours_is(what: str) -> None:
    server = {"port": 0, "host": "0.0.0.0", "allowed_hosts": ["proxy.corp"]}
    shown = text(what, settings_of(server=server, callers={"bi": {"key": KEY}}))
    assert re.search(r"https?://proxy\.corp/shop-fr", shown)
    assert "PORT:" not in shown


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd"])
def test_operators_have_the_default_port_where_it_is_any_free_one(what: str) -> None:
    assert text(what, settings_of(server={"port": 0})) == text(what, settings_of())


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd", "windows"])
def test_the_platform_waits_longer_than_a_drain_may_take(what: str) -> None:
    assert "45" in text(what, settings_of())
    shown = text(what, settings_of(server={"drain_timeout": 119.5}))
    assert re.search(r"(?:Seconds: |stop_grace_period: |TimeoutStopSec=|<stoptimeout>)135s?\b", shown)


# Run for real


@contextlib.asynccontextmanager
async def served(with_callers: bool) -> AsyncIterator[Settings]:
    """A proxy before the sandbox, and its configuration with the port that it listens on."""
    async with Sandbox() as sandbox:
        demo = sandbox.projects["demo-eu"]
        values: dict[str, Any] = {
            "server": {"port": 0},
            "contentsquare": {
                "auth_url": sandbox.auth_url,
                "allowed_endpoints": sandbox.hosts,
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


async def executed(folder: Path, *command: str, file: str, content: str) -> str:
    """Run a command beside a file with that content; what it prints."""

    def call() -> subprocess.CompletedProcess[str]:
        (folder / file).write_text(content, encoding="utf-8")
        environ = {**os.environ, "CSQ_KEY": KEY, "NO_PROXY": "*"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=WAIT_S, cwd=folder, env=environ, check=False
        )

    ended = await asyncio.to_thread(call)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} here")


with_and_without_callers = pytest.mark.parametrize("with_callers", [False, True])


@with_and_without_callers
async def test_the_python_snippet_prints_a_row_a_day(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        printed = await executed(
            tmp_path, sys.executable, "it.py", file="it.py", content=text("python", settings)
        )
    assert re.fullmatch(r"(2026-03-0\dT\S+ \d+\n){7}", printed)


@with_and_without_callers
async def test_the_tableau_snippet_writes_a_table(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        await executed(tmp_path, sys.executable, "it.py", file="it.py", content=text("tableau", settings))
    written = await asyncio.to_thread((tmp_path / "visits.csv").read_text, encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(written)))
    assert len(rows) == 90
    assert int(rows[0]["value"]) > 0


@needs("curl")
@needs("bash")
@with_and_without_callers
async def test_the_curl_snippet_gets_an_answer(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        printed = await executed(tmp_path, "bash", "it.sh", file="it.sh", content=text("curl", settings))
    assert json.loads(printed)["success"] is True


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
  return { getContentText: () => execFileSync('curl', ['-sSf', ...fields, url], { encoding: 'utf8' }) };
} };
const SpreadsheetApp = { getActiveSheet: () => ({
  clearContents: () => {},
  getRange: (...place) => ({ setValues: (rows) => console.log(JSON.stringify([place, rows])) }),
}) };
"""


@needs("node")
@needs("curl")
@with_and_without_callers
async def test_the_looker_snippet_fills_a_sheet(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        script = f"{GOOGLE}{text('looker', settings)}\nvisits();"
        printed = await executed(tmp_path, "node", "it.js", file="it.js", content=script)
    place, rows = json.loads(printed)
    assert len(rows) == 91
    assert place == [1, 1, len(rows), len(rows[0])]
    assert "value" in rows[0]


# Parsed and checked


@pytest.mark.parametrize("what", ["powerbi", "excel"])
def test_power_query_keeps_its_base_url_apart(what: str) -> None:
    shown = text(what, FULL)  # Power BI Service needs a URL that is a constant
    assert 'Web.Contents("http://csq-proxy:9000/shop-fr", [' in shown
    assert 'RelativePath = "v1/metrics/site/visits"' in shown
    assert 'Query = [startDate = Day(-7), endDate = Day(-1), period = "daily", projectId = "42"]' in shown
    assert "Basic" in shown


@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_the_powershell_snippet_is_parsed_without_an_error(settings: Settings) -> None:
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    assert parser.parse(b"$answer = Invoke-RestMethod -Uri 'http://").root_node.has_error
    assert not parser.parse(text("powershell", settings).encode()).root_node.has_error


def mounted(folder: Path, config: str, place: str) -> Settings:
    """The settings that a configuration gives where its secrets are mounted at ``place``."""
    table = tomllib.loads(config.replace(place, str(folder)))
    for sections in (table.get("projects", {}), table.get("accounts", {}), table.get("callers", {})):
        for one in sections.values():
            for key in ("client_secret_file", "key_file"):
                if key in one:
                    Path(one[key]).touch(mode=0o600)
                    Path(one[key]).write_text("from-a-file-123")
            if "standby" in one:
                Path(one["standby"]["client_secret_file"]).touch(mode=0o600)
                Path(one["standby"]["client_secret_file"]).write_text("from-a-file-456")
    return load(None, table, {}, search=False)


def assert_same(settings: Settings) -> None:
    assert settings.projects["shop-fr"].client_id == 'id"$1'
    assert settings.projects["shop-fr"].standby is not None
    assert settings.projects["shop-fr"].expires == dt.date(2027, 1, 31)
    assert settings.accounts["acme"].projects == (43, 44)
    assert settings.callers["powerbi"].read_only
    assert (settings.server.port, settings.server.host) == (9000, "127.0.0.1")
    assert settings.log.level == "debug"


def test_the_kubernetes_snippet_fits_the_schema_and_its_configuration_is_ours(tmp_path: Path) -> None:
    config_map, deployment = yaml.safe_load_all(text("kubernetes", FULL))
    for resource in (config_map, deployment):
        kubernetes_validate.validate(resource, "1.31", strict=True)
    assert_same(mounted(tmp_path, config_map["data"]["config.toml"], "/run/secrets/csq-proxy"))
    pod = deployment["spec"]["template"]["spec"]
    [sidecar] = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(sidecar)
    secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret["defaultMode"] == 0o400
    names = re.findall(r"--from-file=(\S+)=FILE", text("kubernetes", FULL))
    assert names == ["shop-fr", "shop-fr.standby", "own", "acme", "caller_powerbi"]


@with_and_without_callers
async def test_the_probes_of_the_kubernetes_snippet_work(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        _, deployment = yaml.safe_load_all(text("kubernetes", settings))
        [sidecar] = deployment["spec"]["template"]["spec"]["initContainers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = sidecar[probe]["exec"]["command"]
            assert command[:2] == ["python", "-c"]
            # Without a key they would get a 401, which says nothing of tokens.
            assert ('"X-API-Key": key' in command[2]) is with_callers
            script = command[2].replace("/run/secrets/csq-proxy/", "./")
            await executed(
                tmp_path, sys.executable, "-c", script, *command[3:], file="caller_bi", content=f"{KEY}\n"
            )


def test_the_compose_snippet_is_whole_and_its_configuration_is_ours(tmp_path: Path) -> None:
    compose = yaml.safe_load(text("compose", FULL))
    service = compose["services"]["csq-proxy"]
    assert service["network_mode"] == "service:my-app"
    assert service["secrets"] == list(compose["secrets"])
    assert service["configs"][0]["source"] in compose["configs"]
    content = compose["configs"]["csq-proxy"]["content"].replace("$$", "$")
    assert_same(mounted(tmp_path, content, "/run/secrets"))


def with_files(folder: Path) -> Settings:
    """Settings that name files of this computer wherever they can."""
    for name in ("cert.pem", "key.pem", "ca.pem", "secret", "caller"):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(f"canary-{name}")
    return settings_of(
        server={
            "host": "0.0.0.0",
            "unix_socket": str(folder / "socket"),
            "tls_cert": str(folder / "cert.pem"),
            "tls_key": str(folder / "key.pem"),
            "allowed_hosts": ["proxy.corp:8277"],
        },
        contentsquare={"ca_file": str(folder / "ca.pem")},
        projects={
            "shop-fr": {"client_id": "id-1", "client_secret_file": str(folder / "secret"), "coalesce": True}
        },
        callers={"bi": {"key_file": str(folder / "caller")}},
    )


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd"])
def test_what_cannot_be_carried_over_is_told_in_its_place(what: str, tmp_path: Path) -> None:
    shown = text(what, with_files(tmp_path))
    config = shown[shown.index("[server]") : shown.index("[projects.shop-fr]")]
    server, contentsquare = config.split("[contentsquare]")
    assert str(tmp_path) not in config
    for key in ("unix_socket", "tls_cert", "tls_key"):
        assert re.search(rf"# server\.{key}: .*its path here", server)
    assert re.search(r"# contentsquare\.ca_file: .*its path here", contentsquare)
    assert re.search(r"# server\.host: left out, \w", server)
    assert "# projects" not in shown
    assert "# callers" not in shown
    assert "# server." not in text(what, settings_of())


def test_no_two_secrets_share_a_file() -> None:
    standby = {"client_id": "id-2", "client_secret": "canary-2"}
    settings = settings_of(
        projects={
            "shop": {**PROJECT, "standby": standby},
            "shop-standby": PROJECT,
            "caller": {**PROJECT, "standby": standby},
            "caller-x": PROJECT,
        },
        accounts={"x": {**PROJECT, "standby": standby}},
        callers={"x": {"key": KEY}, "standby": {"key": KEY + "2"}},
    )
    kubernetes, compose, systemd = (text(what, settings) for what in ("kubernetes", "compose", "systemd"))
    files = yaml.safe_load(compose)["services"]["csq-proxy"]["secrets"]
    assert len({*files}) == len(files) == 10
    assert len(re.findall(r"^  \S+:\n    file: ", compose, re.MULTILINE)) == 10
    assert re.findall(r"--from-file=(\S+)=FILE", kubernetes) == files
    assert re.findall(r"^LoadCredential=(.+):/etc/csq-proxy/\1$", systemd, re.MULTILINE) == files
    for shown in (kubernetes, compose, systemd):
        assert re.findall(r'_file = ".+/(.+)"', shown) == files
    # Compose's schema for a secret's name, and Kubernetes' for a key.
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", name) for name in files)


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="no docker compose here",
)
def test_docker_compose_accepts_the_snippet(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(text("compose", FULL))
    ended = subprocess.run(
        ["docker", "compose", "config", "--quiet"],
        cwd=tmp_path,
        timeout=WAIT_S,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_systemd_snippet_has_the_configuration_in_its_comment(tmp_path: Path) -> None:
    unit = text("systemd", FULL)
    config = "\n".join(line.removeprefix("#   ") for line in unit.splitlines() if line.startswith("#   "))
    assert_same(mounted(tmp_path, config, "${CREDENTIALS_DIRECTORY}"))
    assert unit.count("LoadCredential=") == 5


def units_of(settings: Settings) -> dict[str, str]:
    """The units of the systemd snippet, by file name."""
    parts = re.split(r"^# /etc/systemd/system/(\S+)$", text("systemd", settings), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@needs("systemd-analyze")
@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_systemd_accepts_the_units(settings: Settings, tmp_path: Path) -> None:
    for name, unit in units_of(settings).items():
        (tmp_path / name).write_text(unit)
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    complaints = [line for line in ended.stderr.splitlines() if "csq-proxy" in line]
    assert (ended.returncode, complaints) == (0, [])


def test_every_port_has_a_socket_unit_that_names_its_project(tmp_path: Path) -> None:
    server = {"host": "localhost", "port": 9000, "unix_socket": str(tmp_path / "100%")}
    units = units_of(settings_of(server=server, projects={"shop-fr": {**PROJECT, "port": 9001}}))
    main, own = units["csq-proxy.socket"], units["csq-proxy-shop-fr.socket"]
    assert f"ListenStream=127.0.0.1:9000\nListenStream={tmp_path}/100%%\nSocketMode=0660\n" in main
    assert "\nFileDescriptorName=csq-proxy\n" in main
    assert "ListenStream=127.0.0.1:9001\nFileDescriptorName=shop-fr\nService=csq-proxy.service\n" in own
    six = units_of(settings_of(server={"host": "::1"}))
    assert "ListenStream=[::1]:8277\n" in six["csq-proxy.socket"]


def test_a_path_with_spaces_and_signs_survives() -> None:
    python = "/opt/my 100% & python"
    assert 'ExecStart="/opt/my 100%% & python" -m proxy serve' in text("systemd", FULL, python=python)
    windows = text("windows", FULL, python=r"C:\R & D\python.exe")
    service = ET.fromstring(windows[windows.index("<service>") :])
    assert service.findtext("executable") == r"C:\R & D\python.exe"


def test_the_windows_snippet_is_two_files_of_xml() -> None:
    shown = text("windows", settings_of(), python=r"C:\venv\Scripts\python.exe")
    task, service = (
        ET.fromstring(part) for part in (shown.split("</Task>")[0] + "</Task>", shown.split("</Task>")[1])
    )
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.findtext(f"{space}Actions/{space}Exec/{space}Command") == r"C:\venv\Scripts\pythonw.exe"
    assert service.findtext("id") == "csq-proxy"


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
        call = ["curl", "-sSf", *(["-u", f"{source['basicAuthUser']}:{KEY}"] if with_callers else [])]
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


async def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads(text("grafana-dashboard", FULL))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    asked = set(re.findall(r"csq_proxy_\w+", " ".join(queries)))
    async with served(with_callers=False) as settings:
        await asyncio.to_thread(fetch, settings, "/shop-fr/v1/segments?projectId=42")
        exposed = await asyncio.to_thread(fetch, settings, "/-/metrics")
    samples = {sample.name for family in text_string_to_metric_families(exposed) for sample in family.samples}
    assert not asked - samples
    labels = {
        label
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.name == "csq_proxy_requests_total"
        for label in sample.labels
    }
    assert {"project", "code"} <= labels


def fetch(settings: Settings, path: str) -> str:
    import urllib.request  # noqa: PLC0415

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{settings.server.port}{path}", timeout=WAIT_S) as answer:
        return str(answer.read().decode())


# The command


def test_the_command_prints_one_or_all(environ: dict[str, str], config: Path) -> None:
    ended = run("snippets", "--for", "curl", environ=environ, cwd=config.parent)
    assert ended.returncode == 0
    assert '\ncurl "http://127.0.0.1:PORT/shop/v1/' in ended.stdout
    ended = run("snippets", "shop", environ=environ, cwd=config.parent)
    assert ended.returncode == 0
    assert all(f"--- {what}\n" in ended.stdout for what in FOR_CALLERS)
    assert "canary" not in ended.stdout
    for wrong in (["shap"], ["--for", "cobol"]):
        ended = run("snippets", *wrong, environ=environ, cwd=config.parent)
        assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
        assert "there are" in ended.stderr
