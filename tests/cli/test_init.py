"""`csq-proxy init`: a file that works, is private, and never replaces another."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from proxy.cli.main import cli
from proxy.config.load import load
from proxy.config.new_file import Answers, text_of, write_new
from proxy.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, TEXT)
def test_any_credentials_survive_the_file(client_id: str, secret: str) -> None:
    written = tomllib.loads(text_of(Answers("shop", client_id, secret, 42, 7)))
    assert written == {
        "projects": {
            "shop": {
                "client_id": client_id,
                "client_secret": secret,
                "project_id": 42,
                "integration_id": 7,
            }
        }
    }


def test_the_answers_make_a_configuration_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    result = CliRunner().invoke(
        cli, ["init", "--config", str(path)], input="shop-fr\nid\ns3cret-value\nx\n42\n\n"
    )
    assert result.exit_code == 0, result.output
    assert "s3cret-value" not in result.output
    assert f"Next: {sys.executable} -m proxy check --live --config {path}\n" in result.output
    project = load(path, environ={}).projects["shop-fr"]
    assert (project.client_secret.get_secret_value(), project.project_id) == ("s3cret-value", 42)
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("mine")
    assert isinstance(CliRunner().invoke(cli, ["init", "--config", str(path)]).exception, ConfigError)
    with pytest.raises(ConfigError, match="not overwritten"):
        write_new(path, "other")
    assert path.read_text() == "mine"


def test_an_answer_that_cannot_be_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    given = "v1\nShop FR\nshop-fr\n  \nid\n \nsecret\n0\n42\n\n"
    result = CliRunner().invoke(cli, ["init", "--config", str(path)], input=given)
    assert result.exit_code == 0, result.output
    assert "Contentsquare's own paths" in result.output
    assert "did you mean shop-fr?\n" in result.output
    assert "A whole number above 0, of at most 18 digits, please." in result.output
    assert load(path, environ={}).projects["shop-fr"].project_id == 42


@pytest.mark.parametrize("given", ["", "shop\nid\n"])
def test_answers_that_end_too_soon_are_a_line_that_says_what_else_to_do(given: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    result = subprocess.run(
        [sys.executable, "-m", "proxy", "init", "--config", str(path)],
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
    result = CliRunner().invoke(cli, ["init", "--config", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert result.output == ""
    assert f"{path}: can't be written (" in result.exception.faults[0]
    assert result.exception.faults[0].endswith("; name another place with --config FILE")


def test_answers_that_make_no_good_configuration_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSQ_PROXY_SERVER__PORT", "seven")
    path = tmp_path / "config.toml"
    result = CliRunner().invoke(cli, ["init", "--config", str(path)], input="shop\nid\nsecret\n\n\n")
    assert isinstance(result.exception, ConfigError)
    assert not path.exists()


def test_it_writes_what_the_other_commands_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSQ_PROXY_CONFIG", str(tmp_path / "folder" / "mine.toml"))
    result = CliRunner().invoke(cli, ["init"], input="shop\nid\nsecret\n\n\n")
    assert result.exit_code == 0, result.output
    assert list(load().projects) == ["shop"]


def test_what_is_no_text_or_no_id_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    given = b"shop\ni\xffd\nid\nsecret\n" + b"9" * 5000 + b"\n" + b"9" * 19 + b"\n\n\n"
    result = subprocess.run(
        [sys.executable, "-m", "proxy", "init", "--config", str(path)],
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is full")
def test_what_can_t_be_written_is_told_and_not_left_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be made a folder"):
        write_new(tmp_path / "file" / "config.toml", "text")
    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: [opened(path, *rest), opened("/dev/full", os.O_WRONLY)][1]
    )
    with pytest.raises(ConfigError, match="can't be written"):
        write_new(tmp_path / "config.toml", "text")
    assert not (tmp_path / "config.toml").exists()
