"""The manual page: it is made from the commands, has all of them, and renders without a warning."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import STARTUP_S
from typer.main import get_command

from proxy.cli import health, serve
from proxy.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "share/man/man1/csq-proxy.1"
RENDERERS = {
    "mandoc": ("mandoc", "-T", "lint", "-W", "warning"),
    "man": ("man", "--warnings", "-E", "UTF-8", "-l"),
}


def helps() -> Iterator[tuple[str, str]]:
    """Each command, and its ``--help``."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        context = command.make_context(words[-1], [], resilient_parsing=True)
        yield " ".join(words), command.get_help(context)
        for name, one in getattr(command, "commands", {}).items():
            yield from walk(one, (*words, name))

    yield from walk(get_command(cli), ("csq-proxy",))
    for parser in (serve.make_parser(), health.make_parser()):
        yield parser.prog, parser.format_help()


def test_it_is_what_the_commands_say_now() -> None:
    made = runpy.run_path(str(ROOT / ".ci/manual.py"))
    assert PAGE.read_text(encoding="utf-8") == made["page"](), "run python .ci/manual.py"


def test_each_command_and_option_is_in_it() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("\\-", "-")
    _, *parts = re.split(r'^\.S[SH] "?([^"\n]+)"?\n', text, flags=re.MULTILINE)
    sections = {
        re.sub(r" \[?[A-Z].*", "", title): part for title, part in zip(parts[::2], parts[1::2], strict=True)
    }
    for words, shown in helps():
        options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}
        if words == "csq-proxy config":  # has commands, which are in it
            continue
        part = sections["OPTIONS" if words == "csq-proxy" else words]
        assert not {option for option in options if f"\\fB{option}\\fR" not in part}, words


@pytest.mark.parametrize("program", RENDERERS)
def test_it_renders_without_a_warning(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    ended = subprocess.run(
        [*RENDERERS[program], str(PAGE)], capture_output=True, text=True, timeout=STARTUP_S, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert program == "man" or ended.stdout == ""


def test_the_wheel_and_the_source_have_it_and_what_the_shells_load() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["shared-data"] == {"share": "share"}
    assert "/share" in targets["sdist"]["include"]
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "share").rglob("*") if path.is_file()} == {
        "share/man/man1/csq-proxy.1",
        "share/bash-completion/completions/csq-proxy",
        "share/zsh/site-functions/_csq-proxy",
        "share/fish/vendor_completions.d/csq-proxy.fish",
    }
