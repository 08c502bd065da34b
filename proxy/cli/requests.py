"""``csq-proxy requests``: the last requests of a running proxy, a line for each, the newest last."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from proxy.cli.console import fail, note, say, say_json
from proxy.cli.running_proxy import RunningProxy, Unreachable
from proxy.foreign import shown

EVERY_S = 1.0
"""The time between two requests with ``--follow``."""
FIRST = 10
"""Requests that ``--follow`` begins with."""
_INDENT = " " * 9
"""Before the further lines of a request: as wide as the time."""
_Show = Callable[[dict[str, Any]], None]


def show(
    place: RunningProxy, *, project: str | None, status: str | None, follow: bool, as_json: bool
) -> None:
    """Print the requests, with ``follow`` also those that come until Ctrl-C.

    Exits with 1 where no proxy answers at first. Raises ConfigError for a wrong ``project`` or ``status``.
    """
    wanted = {"project": project, "status": status}
    try:
        page = place.requests(wanted)
        if follow:
            _follow(place, wanted, page, _show_json if as_json else _Lines(place))
        elif as_json:
            say_json(page, indent=2)
        else:
            _show_all(page, _Lines(place), place)
    except Unreachable as error:
        fail((str(error),), 1)
    except KeyboardInterrupt:
        if not follow:  # which ends so
            raise


def _show_all(page: dict[str, Any], show_one: _Show, place: RunningProxy) -> None:
    if off := page.get("off"):
        note(f"{place.url}: {off}")
    elif not page["requests"]:
        note(f"{place.url}: no such request since its start")
    for one in page["requests"]:
        show_one(one)


def _follow(
    place: RunningProxy, wanted: Mapping[str, str | None], page: dict[str, Any], show_one: _Show
) -> None:
    note(f"following {place.url}, until Ctrl-C")
    if off := page.get("off"):
        note(f"{place.url}: {off}")
    page["requests"] = page["requests"][-FIRST:]
    lost = False
    while True:
        for one in page["requests"]:
            show_one(one)
        if sys.stdout is None:  # the reader has closed the pipe
            return
        since = str(page["next"])
        while True:
            time.sleep(EVERY_S)
            try:
                page = place.requests({**wanted, "since": since})
                break
            except Unreachable as error:
                if not lost:
                    note(f"{error}; waiting for it")
                lost = True
        if lost:
            note(f"{place.url}: reached again")
        lost = False


def _show_json(one: dict[str, Any]) -> None:
    say_json(one)


class _Lines:
    """Prints requests for people: on a terminal within its width, elsewhere one line for each."""

    def __init__(self, place: RunningProxy) -> None:
        self._place = place
        self._day = datetime.now().astimezone().date()
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()

    def __call__(self, one: dict[str, Any]) -> None:
        """Print a request. Raises `Unreachable` if it isn't what a csq-proxy sends."""
        try:
            at = datetime.fromisoformat(one["at"]).astimezone()
            text = shown(text_of(one))
            is_error = _is_error(one)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise self._place.stranger() from None
        if self._is_terminal:
            self._print(at, text, is_error=is_error)
        else:
            say(f"{at:%Y-%m-%d %H:%M:%S} {text}")

    def _print(self, at: datetime, text: str, *, is_error: bool) -> None:
        from rich.text import Text  # noqa: PLC0415

        from proxy.cli.tables import Terminal  # noqa: PLC0415

        terminal = Terminal()
        if at.date() != self._day:
            self._day = at.date()
            terminal.print(Text(f"{self._day}", "bold"))
        drawn = Text("\n".join(folded(f"{at:%H:%M:%S} {text}", terminal.width)))
        if is_error:
            drawn.stylize("red", len(_INDENT), len(_INDENT) + 3)
        terminal.print(drawn)


def folded(line: str, width: int) -> list[str]:
    """A request's line as lines of at most ``width`` characters: further ones begin below the status."""
    return textwrap.wrap(line, max(20, width), subsequent_indent=_INDENT, break_on_hyphens=False)


def _is_error(one: dict[str, Any]) -> bool:
    return one.get("status", 0) >= 400 or "error" in one


def text_of(one: dict[str, Any]) -> str:
    """A request's line, without the time."""
    source = str(one.get("source", "nobody")).replace("contentsquare", "Contentsquare")
    call = f"{one.get('method', '')} {one.get('route', '')}{'?' if one.get('query') else ''}".strip()
    start = f"{one.get('status', '-'):<3} {source:<13} {duration(one['total_ms']):>6}  {call}"
    details = ", ".join(_details(one))
    return f"{start}  {details}" if details else start


def _details(one: dict[str, Any]) -> Iterator[str]:
    """The unusual facts about the request, and its id, by which a log can be searched."""
    project, route = one.get("project"), one.get("route", "")
    if project is not None and not route.startswith((f"/{project}/", f"/-/exports/{project}/")):
        yield f"project {project}"
    if "status" not in one:
        yield "the caller left before an answer"
    if "error" in one:
        yield str(one["error"])
    if "reason" in one:
        yield str(one["reason"])
    if one.get("wait_ms", 0) >= 100:
        yield f"waited {duration(one['wait_ms'])}"
    if "replayed" in one:
        yield f"sent again: {', '.join(map(str, one['replayed']))}"
    if "caller" in one:
        yield f"caller {one['caller']}"
    if _is_error(one) and "request_id" in one:
        yield f"id {one['request_id']}"


def duration(duration_ms: float) -> str:
    """A duration in at most six characters."""
    if duration_ms < 999.5:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 99_950:
        return f"{duration_ms / 1000:.1f} s"
    return f"{duration_ms / 60_000:.0f} min"
