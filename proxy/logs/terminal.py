"""Lines for a person at a terminal: short, in local time, and never longer than the terminal is wide.

Leaves out what JSON lines keep for programs. Knows the keys of events, and nothing of where they come from.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, MutableMapping
from datetime import datetime
from typing import IO, Any, Final

WIDTH: Final = 100
"""Columns where the terminal doesn't tell its own."""
_NARROWEST: Final = 40
_INDENT: Final = " " * 9
_ROUTINE: Final = frozenset(("token_fetched", "apis_discovered"))
"""Events of each regular refresh: the summary and the page have them. One that ends a failure is shown."""
_TEXTS: Final = ("exception", "stack")
_FIRST: Final = ("timestamp", "level", "logger", "event")
_BARE: Final = ("project", "lease", "method", "route", "status")
"""Keys whose values speak for themselves."""
_LEFT_OUT: Final = frozenset(("api", "bytes_in", "bytes_out", "upstream_ms", "trace_id"))
"""Keys of requests. The request's id is shown where an error is: a caller may ask about it."""
_COLOURS: Final = {"debug": "2", "warning": "33", "error": "31", "critical": "31"}


def is_routine(event: MutableMapping[str, Any]) -> bool:
    """Whether a line says only that all goes on as it should, or that an outage goes on."""
    if event["event"] == "token_fetch_failed":
        return bool(event.get("is_outage"))  # `token_endpoint_failed` said it for all tokens
    return event["event"] in _ROUTINE and "after_failures" not in event


class ShortLines:
    """Turns an event, whose keys are in order, into one line or a few. A processor of structlog's.

    ``clean`` removes secrets and control characters from a text, except from line breaks where it is told to
    keep them: before a line is folded, since a secret in two parts would not be found later.
    """

    def __init__(self, stream: IO[str] | None, clean: Callable[[str, str], str], *, colors: bool) -> None:
        self._stream = stream
        self._clean = clean
        self._colors = colors

    def __call__(self, _logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
        """The text, without a line break at its end."""
        width = self._width()
        level = event.get("level", level)
        words, sentences = self._parts(event)
        time = event["timestamp"]
        stamp = f"{time.astimezone():%H:%M:%S}" if isinstance(time, datetime) else str(time)
        first = [stamp, *([] if level == "info" else [level]), *words]
        lines = _folded(" ".join(first), width, "")
        lines += [line for text in sentences for line in _folded(text, width, _INDENT)]
        if self._colors and level in _COLOURS:
            lines[0] = f"\x1b[{_COLOURS[level]}m{lines[0]}\x1b[0m"
        lines += [self._clean(str(event[key]), "\n\t") for key in _TEXTS if event.get(key)]
        return "\n".join(lines)

    def _parts(self, event: MutableMapping[str, Any]) -> tuple[list[str], list[str]]:
        """The words of the first line, and the sentences below it."""
        words, sentences = [self._clean(str(event["event"]), "")], []
        if event.get("logger", "proxy") != "proxy":
            words.append(f"({self._clean(str(event['logger']), '')})")
        left_out = {*_FIRST, *_TEXTS, *_LEFT_OUT, *(() if "error" in event else ("request_id",))}
        for key, value in event.items():
            if key in left_out or value is None or value is False or (key == "wait_ms" and not value):
                continue
            for text in map(self._text, value if isinstance(value, list | tuple) else (value,)):
                if " " in text:
                    sentences.append(f"{key}: {text}")
                elif key in _BARE:
                    words.append(text)
                elif key == "total_ms":
                    words.append(f"{text} ms")
                else:
                    words.append(f"{self._clean(str(key), '')}={text}")
        return words, sentences

    def _text(self, value: object) -> str:
        return self._clean(str(value), "")

    def _width(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns if self._stream else 0
        except (AttributeError, OSError, ValueError):
            columns = 0
        return max(columns or WIDTH, _NARROWEST)


def _folded(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=_INDENT, break_on_hyphens=False
    ) or [""]
