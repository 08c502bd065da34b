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
"""The most errors that are shown for each project; equal ones once."""
MOST_TROUBLES = 10
"""Troubles that are shown in detail, each once for all projects that have it; the table below has all."""
MOST_NAMES = 3
"""Projects that are named for each of them."""
FEW_PROJECTS = 3
"""The last errors of so many projects are shown although they work."""
TROUBLE_DAYS = 14
"""With so few days left or fewer, the health itself tells of credentials that end."""
_COLORS = {"working": "green", "waiting": "yellow", "degraded": "yellow", "failing": "bold red"}
"""By state, the worst one last."""
_SIDES = {
    "caller": "your program",
    "proxy": "csq-proxy, on this computer",
    "contentsquare": "Contentsquare",
    "network": "the network",
}
_UNKNOWN = {"state": "unknown", "summary": "it tells no health: restart it after an update"}
_NARROW, _WIDE = 64, 100
"""Characters in a line. A narrow terminal shows fewer columns, a wide one all."""


def show(place: RunningProxy, *, as_json: bool, watch: bool, exit_zero: bool = False) -> None:
    """Print the status once, or every `EVERY_S` seconds until Ctrl-C.

    Exits with 1 where there is none, and, unless ``exit_zero``, where a project is failing.
    """
    try:
        status = place.status(with_hour=as_json)
        if as_json:
            _print_json(place, status, watch=watch)
        else:
            _print_table(place, status, watch=watch)
    except Unreachable as error:
        fail((str(error),), 1)
    except KeyboardInterrupt:
        if not watch:  # which ends so
            raise
        return
    if not (watch or exit_zero) and _is_failing(status):
        raise SystemExit(1)


def _is_failing(status: dict[str, Any]) -> bool:
    """Whether a project can't work."""
    projects = status["projects"].values() if isinstance(status["projects"], dict) else ()
    return any(isinstance(one, dict) and _health(one)["state"] == "failing" for one in projects)


def _print_json(place: RunningProxy, status: dict[str, Any], *, watch: bool) -> None:
    if not watch:
        say_json(status, indent=2)
        return
    say_json(status)
    while sys.stdout is not None:  # None: the reader has closed the pipe
        time.sleep(EVERY_S)
        say_json(place.status(with_hour=True))


def _print_table(place: RunningProxy, status: dict[str, Any], *, watch: bool) -> None:
    from rich.live import Live  # noqa: PLC0415

    from proxy.cli.tables import Terminal  # noqa: PLC0415

    terminal = Terminal()
    drawn = _table_of(place, status, terminal.width)
    if not watch:
        terminal.print(drawn)
    elif not terminal.is_terminal or terminal.is_dumb_terminal:
        terminal.print(drawn)
        while sys.stdout is not None:  # None: the reader has closed the pipe
            time.sleep(EVERY_S)
            terminal.print(_table_now(place, terminal.width))
    else:
        with Live(drawn, console=terminal, auto_refresh=False, screen=True) as live:
            while True:
                live.update(drawn, refresh=True)
                time.sleep(EVERY_S)
                drawn = _table_now(place, terminal.width)


def _table_now(place: RunningProxy, width: int) -> RenderableType:
    from rich.text import Text  # noqa: PLC0415

    try:
        return _table_of(place, place.status(), width)
    except Unreachable as error:
        return Text(str(error), "red")


def _table_of(place: RunningProxy, status: dict[str, Any], width: int) -> RenderableType:
    """The status for people, in lines of ``width`` characters. Raises `Unreachable` if it isn't ours."""
    try:
        return _drawn(place, _lines_shown(status), width)
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


def _health(value: dict[str, Any]) -> dict[str, Any]:
    """The health of a project or of the whole; an older proxy doesn't tell one."""
    health: dict[str, Any] = value.get("health") or _UNKNOWN
    return health


def _severity(project: tuple[str, dict[str, Any]]) -> int:
    states = [*_COLORS]
    state = _health(project[1])["state"]
    return -states.index(state) if state in states else 1


def _drawn(place: RunningProxy, status: dict[str, Any], width: int) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    stopping, whole = ", stopping" if status["stopping"] else "", _health(status)
    where = f"on {status['host']} at {place.url}" if "host" in status else f"at {place.url}"
    title = f"csq-proxy {status['version']} {where}, up {_duration(status['uptime_s'])}{stopping}"
    projects = sorted(status["projects"].items(), key=_severity)
    return Group(
        Text(title),
        Text(f"{whole['state']}: {whole['summary']}", _color(whole)),
        *_troubles(whole, projects),
        _table_of_projects(projects, width),
        *(
            []
            if width >= _NARROW
            else [Text(f"requests, errors, tokens: in {_NARROW} columns or more", "dim")]
        ),
        *_notes(status, projects),
    )


def _troubles(whole: dict[str, Any], projects: list[tuple[str, dict[str, Any]]]) -> Iterator[RenderableType]:
    """The three answers (why, whose trouble, what now) of each project in trouble, the worst first."""
    if whole.get("reason") and whole.get("project") is None:
        yield _trouble("csq-proxy", whole)
    for alike in _troubled(projects):
        yield _trouble(_named([name for name, _ in alike]), _health(alike[0][1]))


def _troubled(projects: list[tuple[str, dict[str, Any]]]) -> list[list[tuple[str, dict[str, Any]]]]:
    """The projects in trouble, together where all is the same; the worst first."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, project in projects:
        health = _health(project)
        if health.get("reason"):
            groups.setdefault(repr(sorted(health.items())), []).append((name, project))
    return [*groups.values()][:MOST_TROUBLES]


def _named(names: list[str]) -> str:
    others = len(names) - MOST_NAMES
    if others <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMES])} and {others} others"


def _trouble(name: str, health: dict[str, Any]) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
    side = _SIDES.get(health["side"], "-")
    for label, text in (("why", health["reason"]), ("whose", side), ("next", health["next_step"])):
        grid.add_row(Text(f"  {label}:", "dim"), Text(text or "-"))
    return Group(Text(), Text(f"{name} {health['state']}: {health['summary']}", _color(health)), grid)


def _color(health: dict[str, Any]) -> str:
    return _COLORS.get(health["state"], "")


def _table_of_projects(projects: list[tuple[str, dict[str, Any]]], width: int) -> RenderableType:
    from rich.table import Column  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from proxy.cli.tables import table  # noqa: PLC0415

    columns: list[Column | str] = ["project", "health", "slots"]
    if width >= _NARROW:
        columns += [Column("requests", justify="right"), Column("errors", justify="right"), "tokens"]
    if width >= _WIDE:
        columns.append(Column("cloud", overflow="ellipsis", no_wrap=True))
    drawn = table(*columns)
    for name, project in projects:
        health = _health(project)
        row = [Text(name, "bold"), Text(health["state"], _color(health)), _slots(project)]
        row += [Text(str(_requests(project))), Text(str(_errors(project))), Text(_tokens(project))]
        row.append(Text(_clouds(project)))
        drawn.add_row(*row[: len(columns)])
    return drawn


def _requests(project: dict[str, Any]) -> int:
    """Those that were forwarded, and those that the proxy refused."""
    sent: int = sum(api["requests"] for api in project["apis"].values())
    return sent + int(project.get("requests_refused", 0))


def _errors(project: dict[str, Any]) -> int:
    """Contentsquare's and the proxy's."""
    sources = project.get("responses", {}).values()
    return sum(by_class[kind] for by_class in sources for kind in ("4xx", "5xx"))


def _tokens(project: dict[str, Any]) -> str:
    """In a few words if all tokens have the same state, else each of them."""
    apis = project["apis"]
    states = {str(api["state"]) for api in apis.values()}
    if not states:
        return "on first use"
    if len(states) > 1:
        return ", ".join(f"{name} {api['state']}" for name, api in apis.items())
    left = [api["seconds_left"] for api in apis.values() if api["usable"]]
    return states.pop() + (f", {_duration(min(left))} left" if left else "")


def _clouds(project: dict[str, Any]) -> str:
    hosts = {(api["endpoint"] or "").partition("://")[2] for api in project["apis"].values()}
    return ", ".join(sorted(hosts - {""})) or "-"


def _slots(project: dict[str, Any]) -> Text:
    from rich.text import Text  # noqa: PLC0415

    slots = project["slots"]
    waiting = f", {slots['waiting']} waiting" if slots["waiting"] else ""
    shared = f" ({slots['allowance']} for this proxy)" if slots["allowance"] < slots["limit"] else ""
    return Text(f"{slots['in_use']}/{slots['limit']}{shared}{waiting}", "yellow" if waiting else "")


def _notes(status: dict[str, Any], projects: list[tuple[str, dict[str, Any]]]) -> Iterator[Text]:
    """Further problems, one line for each."""
    from rich.text import Text  # noqa: PLC0415

    for fault in status["reload"]["last_faults"]:
        yield Text(f"the changed configuration has an error: {fault}", "red")
    if dropped := status["log_lines_dropped"]:
        yield Text(f"log lines that couldn't be written: {dropped}", "yellow")
    ends: dict[str, list[str]] = {}
    for name, project in projects:
        credentials = project["credentials"]
        if credentials["days_left"] is not None and TROUBLE_DAYS < credentials["days_left"] <= 30:
            ends.setdefault(credentials["expires"], []).append(name)
    for day, names in ends.items():
        yield Text(f"{_named(names)}: credentials end on {day}: renew them", "yellow")
    used = [
        *status.get("account_usage", {}).items(),
        *((name, one.get("usage", {})) for name, one in projects),
    ]
    for name, notice in [(name, one["notice"]) for name, one in used if one.get("notice")][:MOST_TROUBLES]:
        yield Text(f"{name}: {notice}", "yellow")
    told = (
        projects
        if len(projects) <= FEW_PROJECTS
        else [
            next((one for one in alike if one[1]["last_errors"]), alike[0]) for alike in _troubled(projects)
        ]
    )
    for name, project in told:
        newest = {(one["code"], one["message"]): one for one in reversed(project["last_errors"])}
        for error in [*reversed(newest.values())][:MOST_ERRORS]:
            yield Text(f"{name}: {error['at'][:19]}Z {error['code']}: {error['message']}")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
