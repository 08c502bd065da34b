"""`csq-proxy snippets` without a configuration: the texts of the proxy that runs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import Running, faults_in, run, run_anew, started, write
from support.harness import free_port, gateway
from typer.testing import CliRunner

from proxy.cli.main import cli
from proxy.cli.page_texts import page_texts
from proxy.cli.running_proxy import RunningProxy
from proxy.cli.show_snippets import _of_running
from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS
from proxy.errors import ConfigError

SANDBOX_S = "these are the sandbox's projects, which Contentsquare doesn't know; for yours: csq-proxy init"


@pytest.fixture
def sandbox(environ: dict[str, str], tmp_path: Path) -> Iterator[Running]:
    """The sandbox, on the port that the environment of the commands names as the proxy's."""
    environ["CSQ_PROXY_SERVER__PORT"] = str(free_port())
    with started("serve", "--sandbox", environ=environ, cwd=tmp_path) as proxy:
        proxy.listening()
        yield proxy


@pytest.fixture
def here(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process in the place of the commands: no configuration is found."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE", "APPDATA"):
        monkeypatch.setenv(name, environ[name])


def test_each_text_is_printed_beside_the_sandbox(
    sandbox: Running, here: None, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = environ["CSQ_PROXY_SERVER__PORT"]
    monkeypatch.setenv("CSQ_PROXY_SERVER__PORT", port)
    texts = {}
    for what in (*FOR_CALLERS, *FOR_OPERATORS):
        result = CliRunner().invoke(cli, ["snippets", "--for", what])
        assert result.exit_code == 0, (what, result.output)
        texts[what] = result.output
    for what in FOR_CALLERS:
        assert f"127.0.0.1:{port}" in texts[what] or what == "looker"
        assert "demo-eu" in texts[what]
        assert SANDBOX_S not in texts[what]
    for what in ("kubernetes", "compose", "systemd", "gateway"):
        assert "[projects.demo-us]" in texts[what]
        assert SANDBOX_S in texts[what]
    assert SANDBOX_S not in texts["grafana-dashboard"]
    assert "demo-eu-client-secret" not in "".join(texts.values())


def test_the_texts_of_all_tools_come_for_one_project(
    sandbox: Running, environ: dict[str, str], tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{environ.pop('CSQ_PROXY_SERVER__PORT')}"
    ended = run_anew("snippets", "demo-us", "--url", f"{url}/-/", environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert {f"--- {what}" for what in FOR_CALLERS} <= set(ended.stdout.splitlines())
    assert f"{url}/demo-us/v1/" in ended.stdout
    assert "demo-eu" not in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("--- for operators: --for kubernetes, ")


@pytest.mark.parametrize("options", [(), ("--for", "curl"), ("--for", "systemd")])
def test_a_wrong_project_is_told_with_the_right_names(
    options: tuple[str, ...], sandbox: Running, environ: dict[str, str], tmp_path: Path
) -> None:
    ended = run("snippets", "demo", *options, environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert faults_in(ended.stderr) == ["demo: there is no such project; there are demo-eu, demo-us"]


async def test_an_account_s_project_has_texts_once_it_is_in_use() -> None:
    accounts = {"acme": {"client_id": "id-2", "client_secret": "canary-secret-5f1c"}}
    async with gateway(accounts=accounts) as proxy:
        proxy.app.overview.page_texts = page_texts(["--port", "0"], None)
        running = RunningProxy(f"http://127.0.0.1:{proxy.port}", None, None)
        with pytest.raises(ConfigError, match=r"^acme/42: an account's project has texts once a request"):
            await asyncio.to_thread(_of_running, running, "acme/42", None)
        await proxy.call(b"GET /acme/42/v1/segments")
        texts = await asyncio.to_thread(_of_running, running, "acme/42", None)
        assert "/acme/42/v1/" in texts["curl"]


def test_a_proxy_with_callers_wants_a_key_and_has_no_text_for_operators(
    environ: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    config = write(
        tmp_path / "proxy.toml",
        f'[server]\nport = {port}\n[projects.shop]\nclient_id = "id"\nclient_secret = "s"\nproject_id = 42\n'
        '[callers.bi]\nkey = "a-key-of-a-caller"\n[contentsquare]\nauth_url = "http://127.0.0.1:9"\n',
    )
    key = write(tmp_path / "key", "a-key-of-a-caller\n")

    def snippets(*arguments: str) -> subprocess.CompletedProcess[str]:
        url = f"http://127.0.0.1:{port}"
        return run("snippets", *arguments, "--url", url, environ=environ, cwd=tmp_path)

    with started("serve", "--config", str(config), environ=environ, cwd=tmp_path) as proxy:
        proxy.listening()
        refused = snippets("--for", "curl")
        given = snippets("--for", "curl", "--key-file", str(key))
        operators = snippets("--for", "systemd", "--key-file", str(key))
    assert refused.returncode == 1
    assert "a caller's key is needed; give --key-file" in refused.stderr
    assert given.returncode == 0, given.stderr
    assert f'-H "X-API-Key: $CSQ_KEY" "http://127.0.0.1:{port}/shop/v1/' in given.stdout
    assert operators.returncode == 2
    assert faults_in(operators.stderr) == [
        "--for systemd: is made from the configuration, so give its --config"
    ]


def test_where_neither_a_configuration_nor_a_proxy_is_both_are_told(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ["CSQ_PROXY_SERVER__PORT"] = str(free_port())
    ended = run("snippets", environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    nothing, silent = faults_in(ended.stderr)
    assert nothing.startswith("projects: none is configured; ")
    assert "set CONTENTSQUARE_CLIENT_ID and" in nothing  # in a container, nobody can answer `init`
    assert silent.startswith(f"http://127.0.0.1:{environ['CSQ_PROXY_SERVER__PORT']}: can't be reached ")


def test_a_named_configuration_without_projects_is_not_passed_over(here: None, tmp_path: Path) -> None:
    config = write(tmp_path / "empty.toml", "")
    error = CliRunner().invoke(cli, ["snippets", "--config", str(config)]).exception
    assert isinstance(error, ConfigError)
    assert [fault.partition(";")[0] for fault in error.faults] == ["projects: none is configured"]
