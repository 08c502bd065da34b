"""The texts of the page that only the command line knows: for tools, and how this proxy is started again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy.admin.overview import PageTexts
from proxy.config.settings import Settings
from proxy.process import command_line, own_command


def page_texts(arguments: Sequence[str], source: Path | None) -> PageTexts:
    """The texts for a proxy that ``csq-proxy serve`` started with these arguments.

    ``source`` is the configuration file, None without one.
    """
    words = ["csq-proxy", "serve", *arguments]
    if source is not None and not any(word.startswith("--config") for word in arguments):
        words += ["--config", str(source.absolute())]
    return PageTexts(start=command_line(words), tools=_tools)


def _tools(settings: Settings, project: str) -> Mapping[str, str]:
    """The texts by tool. The modules are loaded at the first call: most proxies never need them."""
    from proxy.cli.snippets.text import for_callers, text_of  # noqa: PLC0415

    today = dt.datetime.now(dt.UTC).date()
    return {
        tool: text_of(tool, settings, project, today=today, own=own_command())
        for tool in for_callers(settings)
    }
