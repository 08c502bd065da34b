"""`csq-proxy init`: a file that works, is private, and never replaces another."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import STARTUP_S, write
from support.configurations import posix_only
from support.harness import free_port
from support.terminal import PROGRAM, in_terminal
from typer.testing import CliRunner

from proxy.cli.live_check import Finding
from proxy.cli.main import cli
from proxy.config.files import user_files
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.sandbox import Sandbox


def test_the_answers_make_a_configuration_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    result = CliRunner().invoke(
        cli, ["init", "--no-check", "--config", str(path)], input="shop-fr\nid\ns3cret-value\nx\n42\n\n"
    )
    assert result.exit_code == 0, result.output
    assert "s3cret-value" not in result.output
    assert f"Next: {sys.executable} -m proxy check --live --config {path}\n" in result.output
    project = load(path, environ={}).projects["shop-fr"]
    assert (project.client_secret.get_secret_value(), project.project_id) == ("s3cret-value", 42)
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_answer_that_cannot_be_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    given = "v1\nShop FR\nshop-fr\n  \nid\n \nsecret\n0\n42\n\n"
    result = CliRunner().invoke(cli, ["init", "--no-check", "--config", str(path)], input=given)
    assert result.exit_code == 0, result.output
    assert "Contentsquare's own paths" in result.output
    assert "did you mean shop-fr?\n" in result.output
    assert "A whole number above 0, of at most 18 digits, please." in result.output
    assert load(path, environ={}).projects["shop-fr"].project_id == 42


def test_ctrl_v_that_pasted_nothing_is_told_with_the_other_ways(tmp_path: Path) -> None:
    """In consoles of Windows, a hidden answer gets the character of Ctrl-V."""
    path = tmp_path / "config.toml"
    given = "shop\nid\n\x16\n\x16\x16\nsecret-1\n\n\n"
    result = CliRunner().invoke(cli, ["init", "--no-check", "--config", str(path)], input=given)
    assert result.output.count("Ctrl-V pastes nothing here; paste with a right click or Shift-Insert.") == 2
    assert load(path, environ={}).projects["shop"].client_secret.get_secret_value() == "secret-1"


@pytest.mark.parametrize("given", ["", "shop\nid\n"])
def test_answers_that_end_too_soon_are_a_line_that_says_what_else_to_do(given: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    result = subprocess.run(
        [sys.executable, "-m", "proxy", "init", "--no-check", "--config", str(path)],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1].lstrip()  # behind what Python says where no terminal is
    assert line.startswith("csq-proxy: init: standard input ended ")
    assert "config.example.toml" in line
    assert "Abort" not in result.stderr
    assert not path.exists()


@pytest.mark.parametrize("place", ["file", "locked", "below"])
def test_a_place_that_cannot_be_written_to_is_told_before_anything_is_asked(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "config.toml" if place == "locked" else tmp_path / "file" / "x" / "config.toml"
    if place == "locked":
        monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    if place == "below":

        def refused(_: Path) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "exists", refused)
    result = CliRunner().invoke(cli, ["init", "--no-check", "--config", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert result.output == ""
    assert f"{path}: can't be written (" in result.exception.faults[0]
    assert result.exception.faults[0].endswith("; name another place with --config FILE")


def test_it_writes_what_the_other_commands_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSQ_PROXY_CONFIG", str(tmp_path / "folder" / "mine.toml"))
    result = CliRunner().invoke(cli, ["init", "--no-check"], input="shop\nid\nsecret\n\n\n")
    assert result.exit_code == 0, result.output
    assert list(load().projects) == ["shop"]


def test_what_is_no_text_or_no_id_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    given = b"shop\ni\xffd\nid\nsecret\n" + b"9" * 5000 + b"\n" + b"9" * 19 + b"\n\n\n"
    result = subprocess.run(
        [sys.executable, "-m", "proxy", "init", "--no-check", "--config", str(path)],
        input=given,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONUTF8": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"That isn't text" in result.stdout
    assert result.stdout.count(b"A whole number above 0, of at most 18 digits, please.") == 2
    assert load(path, environ={}).projects["shop"].client_id == "id"


def init(*arguments: str, answers: str) -> Any:
    return CliRunner().invoke(cli, ["init", *arguments], input=answers)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> Path:
    """The user's own file; no other place has one."""
    for name in [name for name in os.environ if name not in environ]:
        monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return user_files(os.environ)[0]


def test_it_writes_to_the_users_folder_and_adds_to_what_is_there(home: Path) -> None:
    result = init("--no-check", answers="shop\nid\nsecret\n\n\n")
    assert result.exit_code == 0, result.output
    assert f"This writes {home}.\n" in result.output
    assert f"Wrote [projects.shop] to {home}.\n" in result.output
    assert "Note: " not in result.output
    assert f"Next: {sys.executable} -m proxy check --live\nand then: " in result.output
    written = home.read_bytes()

    result = init("--no-check", answers="other\nid-2\nsecret-2\n42\n7\n")
    assert f"This adds to {home}.\n" in result.output
    assert (
        "went to shop, the only project; to keep that, put default = true into [projects.shop]"
        in result.output
    )
    result = init("--account", "--no-check", answers="acme\nid-3\nsecret-3\n42, 43\n")
    assert result.exit_code == 0, result.output
    assert "Note: " not in result.output
    assert home.read_bytes().startswith(written)
    settings = load()
    assert list(settings.projects) == ["shop", "other"]
    assert (settings.projects["other"].project_id, settings.projects["other"].integration_id) == (42, 7)
    assert settings.accounts["acme"].projects == (42, 43)


@pytest.mark.parametrize("name", ["shop", "acme"])
def test_a_name_that_is_there_is_refused_with_what_to_do(name: str, home: Path) -> None:
    init("--no-check", answers="shop\nid\nsecret\n\n\n")
    init("--account", "--no-check", answers="acme\nid\nsecret\n\n")
    written = home.read_bytes()
    for account in ((), ("--account",)):
        result = init(*account, "--no-check", answers=f"{name}\nother\nid\nsecret\n\n\n")
        assert isinstance(result.exception, ConfigError)
        assert f".{name}: is in {home} already; take another name, or change its" in str(result.exception)
    assert home.read_bytes() == written


def test_a_file_that_is_not_toml_is_told_with_its_line_and_left_alone(home: Path) -> None:
    home.parent.mkdir(parents=True, mode=0o700)
    home.write_text("[projects.shop]\nclient_id = no quotes\n")
    result = init(answers="")
    assert isinstance(result.exception, ConfigError)
    assert f"{home}:2:" in str(result.exception)
    assert result.output == ""
    assert home.read_text() == "[projects.shop]\nclient_id = no quotes\n"


def test_what_stands_in_the_way_of_the_new_file_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = "shop\nid\nsecret\n\n\n"
    here = Path.cwd() / "config.toml"
    write(here, "")
    result = init("--no-check", answers=answers)
    assert f"Note: here {here} is read in its place; to add to that file: --config {here}\n" in result.output
    assert f"check --live --config {home}\n" in result.output
    result = init("--no-check", "--config", str(here), answers=answers)
    assert "Note: " not in result.output
    monkeypatch.setenv("CSQ_PROXY_CONFIG", str(here))
    result = init("--no-check", answers=answers.replace("shop", "other"))
    assert "is read" not in result.output
    assert list(load().projects) == ["shop", "other"]


def test_a_file_that_was_read_until_now_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = home.parent.parent / "system.toml"
    old.parent.mkdir(parents=True, mode=0o700)
    old.touch()
    monkeypatch.setattr("proxy.config.files.SYSTEM_FILE", old)
    result = init("--no-check", answers="shop\nid\nsecret\n\n\n")
    assert (
        f"Note: {old} was read until now, and isn't any more; to add to that file: --config {old}\n"
        in result.output
    )


def test_variables_that_override_the_file_are_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("CLIENT_ID", "CLIENT_SECRET_FILE", "PORT"):
        monkeypatch.setenv(f"CSQ_PROXY_PROJECTS__SHOP__{key}", "9001")
    result = init("--no-check", answers="shop\nid\nsecret\n\n\n")
    told = re.findall(r"Note: the variable (\S+) overrides what was written", result.output)
    assert told == ["CSQ_PROXY_PROJECTS__SHOP__CLIENT_ID", "CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET_FILE"]
    monkeypatch.setenv("CONTENTSQUARE_CLIENT_ID", "id")
    result = init("--no-check", answers="default\nother\nid\nsecret\n\n\n")
    assert "CONTENTSQUARE_CLIENT_ID makes a project of this name; take another.\n" in result.output
    assert "Wrote [projects.other] to " in result.output


@posix_only
def test_a_pipe_gives_the_secret_too_beside_a_terminal(environ: dict[str, str], tmp_path: Path) -> None:
    """getpass asks the terminal, though the other answers come from a pipe."""
    program = (
        "import os, pty, subprocess, sys\n"
        "pid, fd = pty.fork()\n"
        "if not pid:\n"
        "    done = subprocess.run([sys.executable, '-m', 'proxy', *sys.argv[1:]],\n"
        "                          input=b'shop\\nid\\na-secret\\n\\n\\n', timeout=50)\n"
        "    os._exit(done.returncode)\n"
        "try:\n"
        "    while os.read(fd, 4096):\n"
        "        pass\n"
        "except OSError:\n"
        "    pass\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    path = tmp_path / "config.toml"
    ended = subprocess.run(
        [sys.executable, "-c", program, "init", "--no-check", "--config", str(path)],
        env=environ,
        timeout=STARTUP_S,
        check=False,
    )
    assert ended.returncode == 0
    assert load(path, environ={}).projects["shop"].client_secret.get_secret_value() == "a-secret"


@posix_only
@pytest.mark.parametrize("closed", ["<&-", ">&-"], ids=["input", "output"])
def test_a_stream_that_is_closed_is_told_in_one_line(
    closed: str, environ: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "proxy", "init", "--no-check", "--config", str(tmp_path / "x.toml")]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        input="shop\nid\na-secret\n\n\n",
        env=environ,
        capture_output=True,
        text=True,
        timeout=STARTUP_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "one of them is closed; nothing was written" in ended.stderr
    assert not (tmp_path / "x.toml").exists()


@posix_only
def test_a_hidden_answer_in_another_encoding_is_asked_for_again(
    environ: dict[str, str], tmp_path: Path
) -> None:
    command = (*PROGRAM, "init", "--no-check", "--config", str(tmp_path / "x.toml"))
    with in_terminal("", *command, environ=environ, cwd=tmp_path) as terminal:
        for number, answer in enumerate(("shop", "id", "s\udce9cret", "a-secret", "", "")):
            terminal.wait_for(r"\n.*: $" if number else ": $")
            terminal.shown = ""
            terminal.type(f"{answer}\n")
        terminal.wait_for("Wrote")
        assert terminal.end() == 0
    assert (
        load(tmp_path / "x.toml", environ={}).projects["shop"].client_secret.get_secret_value() == "a-secret"
    )


# The trial


@pytest.fixture
async def sandbox(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sandbox]:
    async with Sandbox() as running:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("CSQ_PROXY_CONTENTSQUARE__AUTH_URL", running.auth_url)
        monkeypatch.setenv("CSQ_PROXY_CONTENTSQUARE__ALLOWED_ENDPOINTS", ",".join(running.hosts))
        yield running


ACCEPTED = "Contentsquare accepts these credentials for data-export, metrics, speed-analysis, surveys.\n"
REFUSED = "Contentsquare refuses these credentials, or they don't fit together. They are not written yet:\n"
NOT_REACHED = "Contentsquare was not reached, so the credentials were not tried. They are not written yet:\n"


async def test_credentials_are_tried_and_a_wrong_one_can_be_changed(sandbox: Sandbox, home: Path) -> None:
    demo = sandbox.projects["demo-eu"]
    answers = f"shop\n{demo.client_id}\nwrong\n\n\nx\nchange\n\n{demo.client_secret}\n\n-\n"
    result = await asyncio.to_thread(init, answers=answers)
    assert result.exit_code == 0, result.output
    assert REFUSED in result.output
    assert "Next: Compare client_id and" in result.output
    assert "Again, change or write, please.\n" in result.output
    assert ACCEPTED in result.output
    assert f"client_id [{demo.client_id}]: " in result.output
    assert demo.client_secret not in result.output
    project = load().projects["shop"]
    assert project.client_secret.get_secret_value() == demo.client_secret


@pytest.mark.parametrize(("choice", "code"), [("write\n", 0), ("", 1)])
async def test_answers_are_written_where_the_user_wants_it_or_can_not_be_asked(
    choice: str, code: int, sandbox: Sandbox
) -> None:
    result = await asyncio.to_thread(init, answers=f"shop\nid\nwrong\n\n\n{choice}")
    assert REFUSED in result.output
    assert result.exit_code == code, result.output
    assert ("Note: Contentsquare has not accepted" in result.output) == (not choice)
    assert load().projects["shop"].client_secret.get_secret_value() == "wrong"


async def test_an_account_is_tried_for_each_of_its_projects(sandbox: Sandbox) -> None:
    account = sandbox.account
    answers = f"acme\n{account.client_id}\n{account.client_secret}\n42, 99\nchange\n\n\n42,43\n"
    result = await asyncio.to_thread(init, "--account", answers=answers)
    assert result.exit_code == 0, result.output
    assert "acme/99" in result.output
    assert "(empty: any project) [42, 99]: " in result.output
    assert ACCEPTED in result.output
    assert load().accounts["acme"].projects == (42, 43)


async def test_what_keeps_the_trial_from_contentsquare_is_told_apart(
    sandbox: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = sandbox.projects["demo-us"]
    answers = f"shop\n{demo.client_id}\n{demo.client_secret}\n\n\n"
    nowhere = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("CSQ_PROXY_CONTENTSQUARE__AUTH_URL", f"http://{nowhere}")
    result = await asyncio.to_thread(init, answers=answers)
    assert NOT_REACHED in result.output
    assert result.exit_code == 1

    monkeypatch.setenv("CSQ_PROXY_CONTENTSQUARE__AUTH_URL", "https://api.contentsquare.com")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTPS_PROXY", f"http://{nowhere}")
    result = await asyncio.to_thread(init, answers=answers.replace("shop", "shop-2"))
    assert "The HTTP proxy is in the way, so the credentials were not tried." in result.output

    monkeypatch.setenv("CSQ_PROXY_CONTENTSQUARE__CONNECT_TIMEOUT", "soon")
    result = await asyncio.to_thread(init, answers=answers.replace("shop", "shop-3"))
    assert "contentsquare.connect_timeout (CSQ_PROXY_CONTENTSQUARE__CONNECT_TIMEOUT): " in result.output
    assert "So the credentials could not be tried." in result.output
    monkeypatch.delenv("CSQ_PROXY_CONTENTSQUARE__CONNECT_TIMEOUT")
    assert list(load().projects) == ["shop", "shop-2", "shop-3"]


async def test_the_file_says_how_the_trial_reaches_contentsquare(
    sandbox: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = sandbox.projects["demo-us"]
    for name in ("AUTH_URL", "ALLOWED_ENDPOINTS"):
        monkeypatch.delenv(f"CSQ_PROXY_CONTENTSQUARE__{name}")
    home.parent.mkdir(parents=True, mode=0o700)
    write(
        home,
        f"""
        [contentsquare]
        auth_url = "{sandbox.auth_url}"
        allowed_endpoints = {json.dumps(list(sandbox.hosts))}
        [projects.other]
        client_id = "other"
        client_secret_command = ["no-such-password-manager"]
        """,
    )
    result = await asyncio.to_thread(init, answers=f"shop\n{demo.client_id}\n{demo.client_secret}\n43\n8\n")
    assert result.exit_code == 0, result.output
    assert "Contentsquare accepts these credentials" in result.output


def test_a_trial_that_is_stopped_loses_no_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: Settings) -> list[Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr("proxy.cli.live_report.collect", stopped)
    result = init(answers="shop\nid\nsecret\n\n\nwrite\n")
    assert result.exit_code == 0, result.output
    assert "The trial was stopped. The credentials are not written yet:\n" in result.output
    assert list(load().projects) == ["shop"]
