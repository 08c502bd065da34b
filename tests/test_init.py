"""`csq-proxy init`: a file that works, is private, and never replaces another."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from proxy.cli import cli
from proxy.config import load
from proxy.errors import ConfigError
from proxy.init import Answers, text_of, write_new

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
    assert "did you mean shop-fr?" in result.output
    assert "A number, please." in result.output
    assert load(path, environ={}).projects["shop-fr"].project_id == 42


def test_answers_that_make_no_good_configuration_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSQ_PROXY_SERVER__PORT", "seven")
    path = tmp_path / "config.toml"
    result = CliRunner().invoke(cli, ["init", "--config", str(path)], input="shop\nid\nsecret\n\n\n")
    assert isinstance(result.exception, ConfigError)
    assert not path.exists()
