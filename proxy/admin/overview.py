"""The state of a running proxy, as the page, the status, the metrics and the start-up summary read it.

The application makes one `Overview` and keeps it up to date; the gateway counts in it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.admin.loop_lag import LoopLag
from proxy.admin.refusals import Refusals
from proxy.config.settings import Settings
from proxy.config.watch import ReloadStatus
from proxy.logs import dropped_lines
from proxy.origin import Origin
from proxy.projects import Project
from proxy.projects.calls import MonthlyCalls
from proxy.projects.recent import RecentRequests
from proxy.projects.saving import Saving
from proxy.server.request import Listener


@dataclass(frozen=True, slots=True)
class PageTexts:
    """Texts of the page that only the command line knows.

    ``start`` is the command that starts this proxy, and ``tools(settings, project)`` gives the texts for
    tools, by tool.
    """

    start: str
    tools: Callable[[Settings, str], Mapping[str, str]]


@dataclass(slots=True)
class Overview:
    """The state of the proxy. ``settings`` are those of the running generation.

    ``projects`` gives all projects, with those of accounts that are in use. ``refusals`` counts the errors
    of requests that reached no project, by code. ``own_series``: the accounts' projects that the
    metrics show one by one, by name. ``has_quit``: the application can be told to end.
    ``page_texts`` is None where no command line started the proxy.
    """

    settings: Settings
    listeners: Sequence[Listener]
    projects: Callable[[], Iterable[Project]]
    loop_lag: LoopLag
    saving: Saving
    has_quit: bool = False
    is_stopping: bool = False
    reload: ReloadStatus = field(default_factory=ReloadStatus)
    refusals: Refusals = field(default_factory=Refusals)
    own_series: list[str] = field(default_factory=list)
    recent: RecentRequests = field(default_factory=RecentRequests)
    page_texts: PageTexts | None = None

    @property
    def host(self) -> str:
        """The name of this computer, container or pod: the state is of the one process here."""
        return socket.gethostname()

    @property
    def calls(self) -> MonthlyCalls:
        """The calls of this month."""
        return self.saving.calls

    @property
    def log_lines_dropped(self) -> int:
        """How many lines couldn't be written since the process began."""
        return dropped_lines()

    @property
    def can_quit(self) -> bool:
        """Whether ``/-/quit`` is there."""
        return self.has_quit and self.settings.server.allow_quit

    @property
    def settings_in_use(self) -> Settings:
        """``settings`` with the port that the system gave, where they ask for any free port."""
        server = self.settings.server
        if server.port or not server.tcp:
            return self.settings
        port = next(Origin.parse(one.url).port for one in self.listeners if not one.is_unix)
        return self.settings.model_copy(update={"server": server.model_copy(update={"port": port})})

    @property
    def needs_key(self) -> bool:
        """Whether callers are defined, so that every request needs a key."""
        return bool(self.settings.callers)

    @property
    def accounts(self) -> Iterable[str]:
        """The names of accounts."""
        return self.settings.accounts

    def project_url(self, name: str) -> str:
        """The URL by which callers address a project or an account."""
        if public_url := self.settings.server.public_url:
            return f"{public_url}/{name}"
        for listener in self.listeners:
            if listener.project == name:
                return listener.url
        return f"{self.url}/{name}" if self.listeners else f"/{name}"

    @property
    def url(self) -> str:
        """The URL of the first listener, without a path; for a Unix socket, the one to send through it."""
        first = self.listeners[0]
        if not first.is_unix:
            return first.url
        return f"{'https' if self.settings.server.tls_cert else 'http'}://localhost"
