"""``csq-proxy status``: the answer of a running proxy to ``/-/status``, as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from proxy.cli.console import fail, say_json
from proxy.cli.running_proxy import RunningProxy, Unreachable
from proxy.foreign import shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

EVERY_S = 2.0
"""The time between two requests with ``--watch``."""
MOST_ERRORS = 3
"""The most errors that are shown for each project."""
_COLORS = {
    "fresh": "green",
    "stale": "yellow",
    "fetching": "yellow",
    "idle": "green",
    "failing": "red",
    "refused": "red",
}


def show(place: RunningProxy, *, as_json: bool, watch: bool) -> None:
    """Print the status once, or every `EVERY_S` seconds until Ctrl-C. Exits with 1 where there is none."""
    try:
        status = place.status()
        if as_json:
            _print_json(place, status, watch=watch)
        else:
            _print_table(place, status, watch=watch)
    except Unreachable as error:
        fail((str(error),), 1)
    except KeyboardInterrupt:  # how `--watch` ends
        return


def _print_json(place: RunningProxy, status: dict[str, Any], *, watch: bool) -> None:
    if not watch:
        say_json(status, indent=2)
        return
    say_json(status)
    while sys.stdout is not None:  # None: the reader has closed the pipe
        time.sleep(EVERY_S)
        say_json(place.status())


def _print_table(place: RunningProxy, status: dict[str, Any], *, watch: bool) -> None:
    from rich.live import Live  # noqa: PLC0415

    from proxy.cli.tables import Terminal  # noqa: PLC0415

    terminal = Terminal()
    shown = _table_of(place, status)
    if not watch:
        terminal.print(shown)
    elif not terminal.is_terminal:
        terminal.print(shown)
        while sys.stdout is not None:  # None: the reader has closed the pipe
            time.sleep(EVERY_S)
            terminal.print(_table_now(place))
    else:
        with Live(shown, console=terminal, auto_refresh=False, screen=True) as live:
            while True:
                live.update(shown, refresh=True)
                time.sleep(EVERY_S)
                shown = _table_now(place)


def _table_now(place: RunningProxy) -> RenderableType:
    from rich.text import Text  # noqa: PLC0415

    try:
        return _table_of(place, place.status())
    except Unreachable as error:
        return Text(str(error), "red")


def _table_of(place: RunningProxy, status: dict[str, Any]) -> RenderableType:
    """The status for people. Raises `Unreachable` if it isn't what a csq-proxy sends."""
    try:
        return _drawn(place, _lines_shown(status))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise place.stranger() from None


def _lines_shown(value: Any) -> Any:
    """The same JSON; each text is one line, which a terminal doesn't obey."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list):
        return [_lines_shown(one) for one in value]
    if isinstance(value, dict):
        return {shown(name): _lines_shown(one) for name, one in value.items()}
    return value


def _drawn(place: RunningProxy, status: dict[str, Any]) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from proxy.cli.tables import table  # noqa: PLC0415

    stopping = ", stopping" if status["stopping"] else ""
    title = Text(
        f"csq-proxy {status['version']} at {place.url}, up {_duration(status['uptime_s'])}{stopping}"
    )
    cloud = Column("cloud", overflow="ellipsis")  # so that each API stays on one line
    drawn = table("project", "slots", "API", "token", "left", "requests", cloud)
    for name, project in status["projects"].items():
        for number, row in enumerate(_rows(project)):
            drawn.add_row(*([Text(name, "bold"), _slots(project)] if not number else ["", ""]), *row)
    return Group(title, drawn, *_notes(status))


def _rows(project: dict[str, Any]) -> Iterator[list[Text]]:
    from rich.text import Text  # noqa: PLC0415

    for name, api in project["apis"].items():
        left = _duration(api["seconds_left"]) if api["usable"] else "-"
        cloud = (api["endpoint"] or "-").partition("://")[2] or "-"
        state = Text(api["state"], _COLORS.get(api["state"], ""))
        yield [Text(name), state, Text(left), Text(str(api["requests"])), Text(cloud)]
    if not project["apis"]:
        yield [Text("on first use", "dim"), *[Text("")] * 4]


def _slots(project: dict[str, Any]) -> Text:
    from rich.text import Text  # noqa: PLC0415

    slots = project["slots"]
    waiting = f", {slots['waiting']} waiting" if slots["waiting"] else ""
    shared = f" ({slots['allowance']} for this proxy)" if slots["allowance"] < slots["limit"] else ""
    return Text(f"{slots['in_use']}/{slots['limit']}{shared}{waiting}", "yellow" if waiting else "")


def _notes(status: dict[str, Any]) -> Iterator[Text]:
    """The problems, one line for each."""
    from rich.text import Text  # noqa: PLC0415

    for fault in status["reload"]["last_faults"]:
        yield Text(f"the changed configuration has an error: {fault}", "red")
    if dropped := status["log_lines_dropped"]:
        yield Text(f"log lines that couldn't be written: {dropped}", "yellow")
    for name, project in status["projects"].items():
        for why in project["missing"]:
            yield Text(f"missing: {why}", "red")
        credentials = project["credentials"]
        if credentials["days_left"] is not None and credentials["days_left"] <= 30:
            end = "ended" if credentials["days_left"] < 0 else "end"
            yield Text(f"{name}: credentials {end} on {credentials['expires']}: renew them", "yellow")
        for error in project["last_errors"][:MOST_ERRORS]:
            yield Text(f"{name}: {error['at'][:19]}Z {error['code']}: {error['message']}")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
