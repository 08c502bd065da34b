"""The projects of accounts: each is made when a caller names it, and dropped when it is idle.

Hides how many there may be at once, and which project makes room for a new one: the longest idle project
that no request uses. Knows nothing of the configuration, or of how a project is made.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from proxy.errors import TokenUnavailable
from proxy.projects.project import Project

MOST = 1000
"""Projects of all accounts at once: each keeps tokens fresh, and a caller can name any project id."""
IDLE_S = 3600.0
"""A project is dropped when no request used it for so long: about the life of its last token."""
USELESS_S = 300.0
"""The same for a project without a usable token: its id may be wrong, and it requests tokens in vain."""


class AccountProjects:
    """Projects by name, such as ``acme/42``."""

    def __init__(self, *, most: int = MOST, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._projects: OrderedDict[str, Project] = OrderedDict()  # the longest idle project is first
        self._used_at: dict[str, float] = {}

    def __iter__(self) -> Iterator[Project]:
        """All projects, sorted by name."""
        return iter([project for _, project in sorted(self._projects.items())])

    def __len__(self) -> int:
        return len(self._projects)

    def get(self, name: str, make: Callable[[str], Project]) -> Project:
        """The project of that name, for a request that is about to use it; ``make`` makes a new one.

        Raises `TokenUnavailable` if there are too many projects and requests use all of them.
        """
        project = self._projects.get(name)
        if project is None:
            if len(self._projects) >= self._most:
                self._make_room()
            project = self._projects[name] = make(name)
        else:
            self._projects.move_to_end(name)
        self._used_at[name] = self._now()
        return project

    def sweep(self) -> list[str]:
        """Drop the projects that were idle for too long, and return their names."""
        now = self._now()
        gone = []
        for name, project in tuple(self._projects.items()):
            if project.running:
                self._used_at[name] = now
            elif now - self._used_at[name] >= (IDLE_S if project.has_lease else USELESS_S):
                self._drop(name)
                gone.append(name)
        return gone

    def replace(self, account: str, successor: Callable[[Project], Project | None]) -> list[Project]:
        """Replace each of the account's projects by its successor; remove it if the successor is None.

        Returns the replaced projects; the caller of this method closes them.
        """
        old = [project for name, project in self._projects.items() if name.partition("/")[0] == account]
        for project in old:
            new = successor(project)
            if new is None:
                self._remove(project.name)
            else:
                self._projects[project.name] = new
        return old

    def _make_room(self) -> None:
        for name, project in self._projects.items():
            if not project.running:
                self._drop(name)
                return
        raise TokenUnavailable(
            f"{self._most} projects of accounts are in use at once, which is the limit;"
            " give the busiest a [projects] table of their own",
            retry_after_s=5,
        )

    def _drop(self, name: str) -> None:
        self._remove(name).close()

    def _remove(self, name: str) -> Project:
        del self._used_at[name]
        return self._projects.pop(name)
