"""The questions of ``csq-proxy init``, one after the other; after a wrong answer, the same question again.

Hides the prompts. Must not know the file that is made of the answers (`proxy.config.new_file`).
"""

from __future__ import annotations

import re
import sys

import typer

from proxy.cli.console import say
from proxy.config.checks import name_fault
from proxy.config.new_file import Answers
from proxy.config.pasted import value_of
from proxy.errors import ConfigError

_NUMBER = re.compile(r"0*[1-9][0-9]{0,17}\Z", re.ASCII)
_NO_TEXT = re.compile("[\ud800-\udfff]")
"""The characters for bytes that Python can't decode."""


def ask() -> Answers:
    """Ask the questions, on a terminal or to any other standard input.

    Raises ConfigError where the answers end too soon, and Typer's Abort at Ctrl-C.
    """
    try:
        return _answers()
    except typer.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        say()  # the line of the question has no end yet
        raise ConfigError(
            "init: standard input ended before all questions had an answer; without a terminal, "
            "copy config.example.toml instead"
        ) from None


def _answers() -> Answers:
    say("An administrator creates the credentials in the Contentsquare console, for a project or an account.")
    return Answers(
        _name("A name for the project (a-z, 0-9 and -), part of its URL"),
        _text("client_id"),
        _text("client_secret (not shown)", hidden=True),
        _number("project_id (only with account-level credentials, else leave it empty)"),
        _number("integration_id (only for the Enrichment API, else leave it empty)"),
    )


def _name(question: str) -> str:
    while True:
        name = str(typer.prompt(question, default="default")).strip()
        fault = name_fault(name)
        if fault is None:
            return name
        say(f"{fault[0].upper()}{fault[1:]}{'' if fault.endswith('?') else '.'}")


def _text(question: str, *, hidden: bool = False) -> str:
    while True:
        answer = str(typer.prompt(question, hide_input=hidden and _can_hide()))
        if _NO_TEXT.search(answer):
            say("That isn't text in this terminal's encoding.")
            continue
        try:
            return value_of(answer)
        except ValueError as wrong:
            say(f"The answer {wrong}.")


def _can_hide() -> bool:
    """On Windows, Python reads a hidden answer from the console, even where the others come from a pipe."""
    return sys.platform != "win32" or sys.stdin is not sys.__stdin__ or sys.stdin.isatty()


def _number(question: str) -> int | None:
    while True:
        answer = str(typer.prompt(question, default="", show_default=False)).strip()
        if not answer:
            return None
        if _NUMBER.match(answer):
            return int(answer)
        say("A whole number above 0, of at most 18 digits, please.")
