"""``csq-proxy config show``: TOML with the effective settings, where each came from, and no secret."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.commands import run, run_anew
from support.configurations import CANARY, Writer, faults_of

from proxy.cli.config_show import text_of
from proxy.config.load import load, load_with_origins

FULL = f"""
[server]
allowed_hosts = ["a.example"]
unix_socket = "my socket"
port = 1
[log]
level = "error"
[projects.shop]
client_id = 'id"é'
client_secret_file = "secret"
apis = ["metrics"]
expires = 2027-01-01
default = true
[projects.other]
client_id = "id-2"
client_secret = "{CANARY}-other"
[projects.other.standby]
client_id = "id-3"
client_secret = "{CANARY}-standby"
[accounts.acme]
client_id = "id-4"
client_secret_command = ["echo", "{CANARY}-command"]
projects = [42, 43]
[callers.bi]
key = "{CANARY}-of-bi-long-enough"
[callers.ci]
key = "{CANARY}-of-ci-long-enough"
[callers.file]
key_file = "key"
"""


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


@pytest.fixture
def config(write: Writer) -> Path:
    write(f"{CANARY}-file", "secret")
    write(f"{CANARY}-of-a-file-long-enough", "key")
    return write(FULL)


def shown(config: Path | None, environ: dict[str, str], *, sources: bool = False, **server: object) -> str:
    settings, origin = load_with_origins(config, {"server": server}, environ)
    return "\n".join(text_of(settings, origin if sources else lambda _: ""))


def test_the_text_holds_the_same_settings_and_no_secret(config: Path, write: Writer) -> None:
    printed = shown(config, {})
    assert CANARY not in printed
    assert len(faults_of(write(printed, "masked.toml"))) == printed.count('"***"') == 5
    assert all(
        fault.partition(": ")[2].startswith("is masked, ")
        for fault in faults_of(write.folder / "masked.toml")
    )
    number = itertools.count()
    filled = re.sub(r'"\*\*\*"', lambda _: f'"{CANARY}-number-{next(number)}"', printed)
    first, again = load(config, environ={}), load(write(filled, "again.toml"), environ={})
    for section in ("server", "log", "contentsquare", "projects", "accounts", "callers"):
        for one, other in zip(*(tables(getattr(each, section)) for each in (first, again)), strict=True):
            assert one == other
    assert again.projects["shop"].client_secret.get_secret_value() == f"{CANARY}-file"
    assert shown(write.folder / "again.toml", {}) == printed
    assert tomllib.loads(shown(config, {}, sources=True)) == tomllib.loads(printed)


def tables(section: Any) -> list[dict[str, object]]:
    """The tables of a section, as they are without secrets."""
    found = [*section.values()] if hasattr(section, "values") else [section]
    hidden = {"client_secret", "client_secret_command", "key", "standby"}
    return [
        {key: value for key, value in table if key not in hidden}
        for one in found
        for table in (one, getattr(one, "standby", None))
        if table is not None
    ]


def test_each_value_has_the_place_that_it_came_from(config: Path) -> None:
    environ = {
        "CSQ_PROXY_LOG__LEVEL": "debug",
        "CSQ_PROXY_SERVER__PORT": "2",
        "CSQ_PROXY_PROJECTS__OTHER__CLIENT_SECRET": f"{CANARY}-variable",
    }
    printed = shown(config, environ, sources=True, port=3, host=None)
    assert CANARY not in printed
    sources = {}
    table = ""
    for line in filter(None, printed.splitlines()):
        if line.startswith("["):
            table = line.strip("[]")
        else:
            key, _, source = line.partition(" = ")
            sources[f"{table}.{key}"] = source
    for key, value in {
        "server.port": "3  # flag",
        "server.host": '"localhost"  # default',
        "server.allowed_hosts": '["a.example"]  # file',
        "log.level": '"debug"  # CSQ_PROXY_LOG__LEVEL',
        "projects.other.client_secret": '"***"  # CSQ_PROXY_PROJECTS__OTHER__CLIENT_SECRET',
        "projects.other.standby.client_secret": '"***"  # file',
        "accounts.acme.client_secret": '"***"  # file, client_secret_command',
    }.items():
        assert sources[key] == value
    assert sources["projects.shop.client_secret_file"].endswith("# file")
    assert sources["callers.file.key_file"].endswith("# file")


def test_the_command_reads_flags_variables_and_the_file(
    config: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere/config.toml").mkdir(parents=True)
    words = ("config", "show", "--sources", "--port", "7")
    environ = {**environ, "CSQ_PROXY_CONFIG": str(config)}
    ended = run_anew(*words, environ=environ, cwd=tmp_path / "elsewhere")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == f"# File: {config}"
    assert tomllib.loads(ended.stdout)["server"]["port"] == 7
    wrong = run(*words[:3], "--port", "x", environ=environ, cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "server.port" in wrong.stderr
    if os.name == "posix":
        home = tmp_path / "home"
        found = home / ".config/csq-proxy/config.toml"
        found.parent.mkdir(parents=True)
        config.rename(found)
        for name in ("secret", "key"):
            (config.parent / name).rename(found.parent / name)
        environ = {**environ, "HOME": str(home), "CSQ_PROXY_CONFIG": ""}
        ended = run(*words, environ=environ, cwd=tmp_path / "elsewhere")
        place = tmp_path / "elsewhere/config.toml"
        assert ended.stdout.splitlines()[:2] == [f"# File: {found}", f"# Passed over: {place} (a directory)"]
