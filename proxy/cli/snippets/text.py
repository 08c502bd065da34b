"""Ready text for callers and operators, filled in from the configuration; never with a secret.

Hides the templates, one file for each text. ``<<name>>`` in a template stands for a value. A line that
begins with ``<<:key>>`` is for proxies with callers' keys, a line with ``<<:open>>`` for those without,
a line with ``<<:state>>`` for those with a folder for counts, and one with ``<<:tcp>>`` for those with ports;
``<<:one-file>>`` is for a program without Python, ``<<:python>>`` for the others.
Pure, apart from reading templates; must not know the command line.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from proxy.cli.snippets import callers, dashboard, operators
from proxy.config.settings import DEFAULT_PORT, Settings
from proxy.errors import ConfigError

FOR_CALLERS = (
    "curl",
    "powerbi",
    "powerbi-pages",
    "excel",
    "tableau",
    "looker",
    "grafana",
    "python",
    "javascript",
    "powershell",
    "export",
    "duckdb",
    "pandas",
    "polars",
    "r",
    "calc",
    "wget",
    "dlt",
    "airbyte",
    "tap-rest-api-msdk",
)
FOR_OPERATORS = (
    "kubernetes",
    "compose",
    "systemd",
    "launchd",
    "windows",
    "hosts",
    "gateway",
    "grafana-dashboard",
)
_IN_CLOUDS = ("looker",)
"""The tools that call from their vendor's computers."""
_MARKS = {
    **dict.fromkeys(("powerbi", "powerbi-pages", "excel", "looker", "javascript"), "//"),
    "duckdb": "--",
}
"""How the comments of a tool's text begin; those of others begin with a number sign."""
_PLACE = re.compile(r"<<(\w+)>>")


def text_of(name: str, settings: Settings, project: str | None, *, today: dt.date, own: Sequence[str]) -> str:
    """The text ``name``, one of `FOR_CALLERS` or `FOR_OPERATORS`.

    ``project`` None is the default project, or the first. ``own`` starts the proxy here
    (`proxy.process.own_command`). Raises ConfigError where there is no such project.
    """
    if project is not None:
        callers.target(settings, project)  # a wrong name is told, also where the text has none
    if name == "grafana-dashboard":
        return dashboard.text()
    if name in FOR_OPERATORS:
        if not settings.server.port:  # an operator's callers must know the port
            settings = settings.model_copy(
                update={"server": settings.server.model_copy(update={"port": DEFAULT_PORT})}
            )
        return _fill(name, settings, operators.values(name, settings, own), is_one_file=len(own) == 1)
    if name not in for_callers(settings):
        raise ConfigError(
            f"--for {name}: server.tcp is false, and {name} can't call a Unix socket; set server.tcp = true,"
            " with [callers] on a computer that you share"
        )
    target = callers.target(settings, project, in_cloud=name in _IN_CLOUDS)
    text = _fill(name, settings, callers.values(target, today))
    if target.origin.endswith(f":{callers.PORT}"):
        mark = _MARKS.get(name, "#")
        note = f"{callers.PORT}: server.port is 0, any free one; csq-proxy prints it at its start."
        text = f"{mark} {note}\n{text}"
    return text


def for_callers(settings: Settings) -> tuple[str, ...]:
    """The tools of `FOR_CALLERS` that can reach a proxy with these settings."""
    if settings.server.tcp or settings.server.public_url:
        return FOR_CALLERS
    return ("curl", *(_IN_CLOUDS if settings.server.allowed_hosts else ()))


def _fill(name: str, settings: Settings, values: Mapping[str, str], *, is_one_file: bool = False) -> str:
    conditions = ["<<:key>>" if settings.callers else "<<:open>>"]
    conditions.append("<<:one-file>>" if is_one_file else "<<:python>>")
    if settings.server.state_dir is not None:
        conditions.append("<<:state>>")
    if settings.server.tcp:
        conditions.append("<<:tcp>>")
    template = resources.files(__package__).joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")
    lines = template.splitlines()
    for condition in conditions:
        lines = [line.removeprefix(condition) for line in lines]
    text = "\n".join(line for line in lines if not line.startswith("<<:"))
    return _PLACE.sub(lambda place: values[place[1]], text) + "\n"
