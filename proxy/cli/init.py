"""``csq-proxy init``: the questions, the trial of the answers at Contentsquare, and notes on conflicts.

Must not know how the file is written (`proxy.config.new_file`) nor how credentials are tried
(`proxy.cli.live_check`).
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import typer

from proxy.cli.console import say
from proxy.config import environment
from proxy.config.checks import name_fault
from proxy.config.files import find_config_file, named_config_file, user_files, working_folder
from proxy.config.keys import schema
from proxy.config.new_file import Answers, Section, check_place, write
from proxy.config.pasted import cleaned, value_of
from proxy.errors import ConfigError
from proxy.foreign import shown

_NUMBER = re.compile(r"0*[1-9][0-9]{0,17}\Z", re.ASCII)
_NO_TEXT = re.compile("[\ud800-\udfff]")
"""The characters for bytes that Python can't decode."""
_OF_CREDENTIALS = frozenset(("credentials", "scope", "project", "integration"))
"""The checks of `proxy.cli.live_check` that fail where an answer is wrong."""
_WRONG = "Contentsquare refuses these credentials, or they don't fit together. They are not written yet:"
_CTRL_V = "\x16"
_NOTHING = ("", "-")
"""Answers that leave a key out; the second one where Enter means an earlier answer."""
Tables: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The projects and accounts of a file, by section and name."""
T = TypeVar("T")


def init(config: Path | None, section: Section, *, is_tried: bool) -> tuple[Path, bool]:
    """Ask, try the answers, and write them to a file.

    Returns the file, and whether nothing was found wrong. Raises ConfigError and, at Ctrl-C, Typer's Abort.
    """
    named = named_config_file(config, os.environ)
    path = named or next(iter(user_files(os.environ)), working_folder() / "config.toml")
    before = find_config_file(None, os.environ).path
    there = check_place(path, section)
    _read_pipe_as_utf8()
    say(f"This {'adds to' if path.exists() else 'writes'} {shown(str(path))}.")
    try:
        answers = _details(Answers(section, _name(path, section, there), "", ""))
    except typer.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        say()  # the line of the question has no end yet
        raise ConfigError(
            "init: standard input ended before all questions had an answer, and nothing was written; without"
            " a terminal, copy config.example.toml instead"
        ) from None
    good = True
    if is_tried:
        answers, good = _tried(path, answers)
    write(path, answers)
    say(f"\nWrote [{section}.{answers.name}] to {shown(str(path))}.")
    read_instead = () if config else _read_instead(path, before)
    if not good:
        say("Note: Contentsquare has not accepted these credentials.")
    for remark in (*_overridden(answers), *read_instead, *_without_default(there, answers)):
        say(f"Note: {remark}")
    return path, good


def _read_pipe_as_utf8() -> None:
    """PowerShell may begin a pipe with a byte order mark, which other encodings read as letters."""
    if sys.platform == "win32" and isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")


# Questions


def _name(path: Path, section: Section, there: Tables) -> str:
    """A good name for the table. Raises ConfigError for one that is there: no other answer was given yet."""
    say("An administrator creates the credentials in the Contentsquare console, for a project or an account.")
    kind, usual = ("project", "default") if section == "projects" else ("account", "account")
    if section == "projects":
        say("For any project of an account, stop here (Ctrl-C), and run: csq-proxy init --account")
    taken = {name: section for section, table in there.items() for name in table}
    sidecar = [name for name in environment.SIDECAR if os.environ.get(name)]

    def checked(name: str) -> str:
        if name in taken:
            raise ConfigError(
                f"{taken[name]}.{name}: is in {path} already; take another name, or change its client_id and"
                " client_secret there"
            )
        if sidecar and name == environment.SIDECAR_PROJECT:
            raise ValueError(f"{sidecar[0]} makes a project of this name; take another")
        if fault := name_fault(name):
            raise ValueError(fault)
        return name

    question = f"A name for the {kind} (a-z, 0-9 and -), part of its URL"
    return _asked(question, checked, None if usual in taken or sidecar else usual)


def _details(old: Answers) -> Answers:
    """The answers about the credentials. Where they were given before, Enter means the old answer."""
    client_id = _asked("client_id", _value, old.client_id or None)
    shown_as = "not shown; empty: as before" if old.client_secret else "not shown"
    secret = _asked(f"client_secret ({shown_as})", _value, old.client_secret or None, is_hidden=True)
    new = replace(old, client_id=client_id, client_secret=secret)
    if old.section == "accounts":
        known = ", ".join(map(str, old.projects))
        ids = _asked("The ids of its projects, with commas (empty: any project)", _numbers, known)
        return replace(new, projects=ids)
    project_id, integration_id = (
        next(iter(_asked(f"{key} (only {reason}, else leave it empty)", _number, str(number or ""))), None)
        for key, reason, number in (
            ("project_id", "with account-level credentials", old.project_id),
            ("integration_id", "for the Enrichment API", old.integration_id),
        )
    )
    return replace(new, project_id=project_id, integration_id=integration_id)


def _asked(question: str, read: Callable[[str], T], usual: str | None, *, is_hidden: bool = False) -> T:
    """The answer as ``read`` makes it; after its ValueError, the same question again.

    ``usual`` is what Enter means; None: the question comes again.
    """
    while True:
        given = _given(question, usual, is_hidden)
        if _NO_TEXT.search(given):
            say("That isn't text in this terminal's encoding.")
            continue
        answer = cleaned(given)
        if answer != given.strip():
            say("(Left out: characters that show nothing, quotes around the answer, or Bearer before it.)")
        try:
            return read(answer)
        except ValueError as wrong:
            fault = str(wrong)
            say(f"{fault[0].upper()}{fault[1:]}{'' if fault[-1] in '.?' else '.'}")


def _given(question: str, usual: str | None, is_hidden: bool) -> str:
    """The answer as it was given. Raises Typer's Abort, and ConfigError where nothing can be asked."""
    try:
        return str(
            typer.prompt(
                question,
                default=usual,
                show_default=bool(usual) and not is_hidden,
                hide_input=is_hidden and _is_terminal(),
            )
        )
    except UnicodeDecodeError:  # of a hidden answer, which getpass reads from the terminal itself
        say()
        return "\udcff"
    except typer.Abort:
        raise
    except RuntimeError:
        raise ConfigError(
            "init: asks on standard output and reads standard input, but one of them is closed; nothing was"
            " written"
        ) from None


def _is_terminal() -> bool:
    """Whether a hidden answer is read where the others are: Python asks the terminal even beside a pipe."""
    return sys.stdin is not sys.__stdin__ or (sys.stdin is not None and sys.stdin.isatty())


def _value(answer: str) -> str:
    if set(answer) == {_CTRL_V}:
        raise ValueError("Ctrl-V pastes nothing here; paste with a right click or Shift-Insert")
    try:
        return value_of(answer)
    except ValueError as wrong:
        raise ValueError(f"The answer {wrong}") from None


def _number(answer: str) -> tuple[int, ...]:
    if answer in _NOTHING:
        return ()
    if not _NUMBER.match(answer):
        raise ValueError("A whole number above 0, of at most 18 digits, please")
    return (int(answer),)


def _numbers(answer: str) -> tuple[int, ...]:
    return tuple(number for one in answer.split(",") for number in _number(one.strip()))


# The trial


def _tried(path: Path, answers: Answers) -> tuple[Answers, bool]:
    """The answers, perhaps corrected, and whether Contentsquare took them or the user wants them written."""
    while True:
        fault = _fault(path, answers)
        if fault is None:
            return answers, True
        say(fault)
        usual = "change" if fault is _WRONG else "again"
        try:
            choice = _asked("again, change the answers, or write them as they are", _choice, usual)
            if choice == "write":
                return answers, True
            if choice == "change":
                answers = _details(answers)
        except typer.Abort as abort:
            if not isinstance(abort.__context__, EOFError):
                raise
            say()
            return answers, False


def _choice(answer: str) -> str:
    words = [word for word in ("again", "change", "write") if answer and word.startswith(answer.lower())]
    if not words:
        raise ValueError("again, change or write, please")
    return words[0]


def _fault(path: Path, answers: Answers) -> str | None:
    """Which kind of trouble Contentsquare, or the way there, made; None where the credentials work.

    Shows the checks that failed, with the next step of each.
    """
    from proxy.cli import live_report  # noqa: PLC0415 - needless with --no-check
    from proxy.config.load import load_trial  # noqa: PLC0415

    tables: dict[str, Any] = {answers.section: {answers.name: answers.table}}
    try:
        settings = load_trial(path if path.exists() else None, tables, os.environ)
        findings = live_report.collect(settings)
    except ConfigError as error:
        say("\n".join(error.faults))
        return "So the credentials could not be tried. They are not written yet:"
    except KeyboardInterrupt:
        if not _is_terminal():
            raise
        say()
        return "The trial was stopped. The credentials are not written yet:"
    failed = [finding for finding in findings if finding.result == "failed"]
    if not failed:
        apis = ", ".join(dict.fromkeys(one.api for one in findings if one.api))
        say(f"Contentsquare accepts these credentials{f' for {apis}' if apis else ''}.")
        return None
    live_report.show(failed)
    checks = {finding.check for finding in failed}
    if checks & _OF_CREDENTIALS:
        return _WRONG
    if "http-proxy" in checks:
        return "The HTTP proxy is in the way, so the credentials were not tried. They are not written yet:"
    return "Contentsquare was not reached, so the credentials were not tried. They are not written yet:"


# Notes on what conflicts with the new table


def _overridden(answers: Answers) -> Iterator[str]:
    """The environment's variables that replace values of the new table."""
    for key, name in environment.read(os.environ, schema()).names.items():
        if key[:2] == (answers.section, answers.name) and key[2] in (
            *answers.table,
            "client_secret_file",
            "client_secret_command",
        ):
            yield f"the variable {name} overrides what was written; unset it to use the file."


def _read_instead(path: Path, before: Path | None) -> Iterator[str]:
    """The file that is read in place of this one, or was read before."""
    now = find_config_file(None, os.environ).path
    if now is not None and now != path:
        yield f"here {shown(str(now))} is read in its place; to add to that file: --config {shown(str(now))}"
    elif before is not None and before != path:
        old = shown(str(before))
        yield f"{old} was read until now, and isn't any more; to add to that file: --config {old}"


def _without_default(there: Tables, answers: Answers) -> Iterator[str]:
    """The project that paths without a project's name went to, since it was the only one."""
    if answers.section == "projects" and len(there["projects"]) == 1:
        [(name, table)] = there["projects"].items()
        if isinstance(table, dict) and "default" not in table:
            yield (
                f"paths without a project's name went to {name}, the only project; to keep that, put"
                f" default = true into [projects.{name}]."
            )
