"""Writes the manual page, share/man/man1/csq-proxy.1, from the commands themselves: ``python .ci/manual.py``.

The page is committed, so that a build needs none of the libraries behind the commands;
tests/cli/test_manual.py holds it against them. Source of the macros: man(7).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from proxy import __version__
from proxy.cli import health, serve
from proxy.cli.main import cli
from proxy.config.files import SYSTEM_FILE
from proxy.config.variables import CONFIG, KEY, PREFIX

PAGE = Path(__file__).parents[1] / "share/man/man1/csq-proxy.1"
DATE = "2026-11-29"
"""The date of the version."""
PARSERS = {"serve": serve.make_parser, "health": health.make_parser}
"""The commands that Typer knows by name alone."""
VARIABLES = {
    f"{PREFIX}SECTION__KEY": (
        "A setting, as CSQ_PROXY_SERVER__PORT=9000. A variable overrides the file, and an option both;"
        " csq-proxy config show --sources tells which one counts."
    ),
    CONFIG: "The configuration file, where --config doesn't name it.",
    KEY: "A caller's key, for the commands that ask the running proxy.",
    "CONTENTSQUARE_CLIENT_ID, CONTENTSQUARE_CLIENT_SECRET": (
        "The credentials of one project, which is named default; with credentials of an account,"
        " CONTENTSQUARE_PROJECT_ID, too."
    ),
}
FILES = {
    "./config.toml": "The configuration. Of it and the next ones, the first file that exists is taken.",
    "~/.config/csq-proxy/config.toml": "On Windows, %APPDATA%\\csq-proxy\\config.toml before it.",
    SYSTEM_FILE.as_posix(): "config.example.toml of the sources explains every setting.",
}
STATUSES = {
    "0": "All went well; serve was stopped.",
    "1": "Something failed, or what was asked about isn't well.",
    "2": "Wrong usage or configuration: one line for each fault on standard error.",
}
SIGNALS = {
    "SIGTERM, SIGINT": "Stop serve: the requests in flight have server.drain_timeout to finish.",
    "SIGHUP": "Load the configuration again.",
}


def page() -> str:
    """The manual page's source, for man(1) and mandoc(1)."""
    group = get_command(cli)
    lines = [
        '.\\" Made by .ci/manual.py from the commands. Change those, and run it again.',
        f'.TH CSQ\\-PROXY 1 {DATE} "csq\\-proxy {__version__}"',
        ".SH NAME",
        _text("csq-proxy - local gateway to Contentsquare's APIs"),
        ".SH SYNOPSIS",
        ".B csq\\-proxy",
        _text("COMMAND [OPTION ...]"),
        ".SH DESCRIPTION",
        _text(group.help),
        ".PP",
        _text("Each command has -h, which is short for --help."),
        ".SH OPTIONS",
        *_options(group.params),
        ".SH COMMANDS",
        *_commands(group, "csq-proxy"),
    ]
    for title, entries in (
        ("ENVIRONMENT", VARIABLES),
        ("FILES", FILES),
        ("SIGNALS", SIGNALS),
        ("EXIT STATUS", STATUSES),
    ):
        lines.append(f".SH {title}")
        for name, meaning in entries.items():
            lines += _entry(f"\\fB{_text(name)}\\fR", meaning)
    return "\n".join(lines) + "\n"


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        words = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, words)
            continue
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        shown = (one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments)
        yield f'.SS "{_text(" ".join((words, *shown)))}"'
        yield _text(command.help)
        yield from _options(command.params) if name not in PARSERS else _parsed(PARSERS[name]())
        for paragraph in (command.epilog or "").strip().split("\n\n"):
            if paragraph:
                yield from (".PP", _text(paragraph))


def _options(params: list[Any]) -> Iterator[str]:
    for param in params:
        if param.param_type_name == "argument":
            yield from _entry(f"\\fI{param.name.upper()}\\fR", _with_default(param))
        elif "--help" not in param.opts:
            value = "" if param.is_flag else param.metavar or param.name.rpartition("_")[2].upper()
            yield from _option(param.opts, value, _with_default(param))


def _parsed(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001 - argparse lists them nowhere else
        if "--help" not in action.option_strings:
            value = "" if action.nargs == 0 else action.metavar or action.dest.upper()
            yield from _option(action.option_strings, str(value), action.help or "")


def _with_default(param: Any) -> str:
    """The help of Typer's parameter, with its default where that says something."""
    shown = param.show_default if isinstance(param.show_default, str) else param.default
    told = shown is not None and shown is not False and shown != "" and not callable(shown)
    return f"{param.help or ''}{f' [default: {shown}]' if told else ''}"


def _option(names: list[str], value: str, meaning: str) -> Iterator[str]:
    shown = f"\\fB{_text(', '.join(names))}\\fR"
    yield from _entry(f"{shown} \\fI{_text(value)}\\fR" if value else shown, meaning)


def _entry(words: str, meaning: str) -> Iterator[str]:
    yield from (".TP", words, _text(meaning) or "\\&")


def _text(text: str) -> str:
    """The text in one line, such that roff prints it as it is."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"\A([.'])", r"\\&\1", line)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
