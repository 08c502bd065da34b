"""The output of ``check --live``: the progress while it waits, and then a table of the findings.

Hides rich. Must not know how the findings are made (`proxy.cli.live_check`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from rich.markup import escape
from rich.padding import Padding

from proxy.cli.live_check import Finding, examine
from proxy.cli.tables import Terminal, table
from proxy.config.settings import Settings
from proxy.foreign import shown

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def collect(settings: Settings) -> list[Finding]:
    """All findings; meanwhile a terminal shows the progress."""

    async def collected() -> list[Finding]:
        found = []
        async for finding in examine(settings):
            found.append(finding)
            where = " ".join(filter(None, (finding.project, finding.api, finding.check)))
            status.update(f"Asking Contentsquare ... {escape(where)}: {finding.result}")
        return found

    is_shown = sys.stderr is not None and sys.stderr.isatty()
    with Terminal(stderr=True, quiet=not is_shown).status("Asking Contentsquare ...") as status:
        return asyncio.run(collected())


def show(findings: Sequence[Finding]) -> None:
    """Show the findings as a table, those that failed last, and below it how many failed or warned.

    On a narrow terminal each finding is a paragraph: a column beside four others would break each word.
    """
    terminal = Terminal()
    drawn = table("project", "API", "checks", "", "")
    rows = sorted(_rows(findings), key=lambda one: list(_COLOURS).index(one.result))
    for one in rows:
        step = f"\n[bold]Next:[/] {escape(one.next_step)}" if one.next_step else ""
        colour = f"[{_COLOURS[one.result]}]{one.result}[/]"
        said = escape(shown(one.message)) + step
        if terminal.is_narrow:
            place = " ".join(filter(None, (escape(one.project or "(all)"), one.api)))
            terminal.print(f"{colour} {place}: {one.check}")
            terminal.print(Padding(said, (0, 0, 0, 4)))
        else:
            drawn.add_row(escape(one.project or "(all)"), one.api or "-", one.check, colour, said)
    if not terminal.is_narrow:
        terminal.print(drawn)
    terminal.print(_summary(rows))


def _summary(rows: Sequence[Finding]) -> str:
    failed, warned = (sum(one.result == result for one in rows) for result in ("failed", "warning"))
    warnings = f"{warned} warning{'' if warned == 1 else 's'}"
    if failed:
        return f"[bold red]{failed} failed{f', {warnings}' if warned else ''}.[/]"
    return f"[yellow]{warnings}.[/]" if warned else "[green]All is well.[/]"


def _rows(findings: Sequence[Finding]) -> Iterator[Finding]:
    """One row for all good findings of a project and API, and one for a finding that several APIs share."""
    rows: list[Finding] = []
    for (_, _, result), group in groupby(findings, lambda one: (one.project, one.api, one.result)):
        same = list(group)
        rows += [replace(same[-1], check=", ".join(one.check for one in same))] if result == "ok" else same
    for alike, group in groupby(rows, lambda one: replace(one, api="")):
        yield replace(alike, api=", ".join(filter(None, (one.api for one in group))))
