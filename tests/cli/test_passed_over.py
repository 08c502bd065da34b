"""Each command that looks for the configuration names the places that it passed over, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import CONFIG, run, started, write
from support.harness import free_port


@pytest.fixture
def place(environ: dict[str, str], tmp_path: Path) -> str:
    """A folder in the place of the first configuration file; the second file is a good one."""
    (tmp_path / "here/config.toml").mkdir(parents=True)
    folder = tmp_path / ".config/csq-proxy"
    folder.mkdir(parents=True, mode=0o700)
    environ["CSQ_PROXY_SERVER__PORT"] = str(free_port())
    write(folder / "config.toml", CONFIG)
    return f"{tmp_path / 'here/config.toml'} (a directory)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("check", "Passed over:   {}\n"),
        ("config show", "# Passed over: {}\n"),
        ("snippets --for curl", "csq-proxy: passed over: {}\n"),
        ("health", "; passed over: {}\n"),
        ("status", "; passed over: {}\n"),
        ("wait --timeout 0", "; passed over: {} (waited 0 s)\n"),
    ],
)
def test_a_command_names_the_place(
    arguments: str, words: str, place: str, environ: dict[str, str], tmp_path: Path
) -> None:
    ended = run(*arguments.split(), environ=environ, cwd=tmp_path / "here")
    assert words.format(place) in ended.stdout + ended.stderr


def test_programs_get_the_place_too(place: str, environ: dict[str, str], tmp_path: Path) -> None:
    ended = run("check", "--json", environ=environ, cwd=tmp_path / "here")
    assert json.loads(ended.stdout)["passed_over"] == [place]


def test_serve_logs_the_place_once(place: str, environ: dict[str, str], tmp_path: Path) -> None:
    with started("serve", environ=environ, cwd=tmp_path / "here") as proxy:
        proxy.listening()
        proxy.process.terminate()
        code, logged = proxy.end()
    assert code == 0
    events = [json.loads(line) for line in logged.splitlines()]
    [event] = [event for event in events if event["event"] == "configuration_passed_over"]
    assert (event["level"], event["places"]) == ("warning", [place])
