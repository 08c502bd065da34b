"""The projects of accounts: each is made when a caller names it, and dropped when it is idle.

A caller can name any id. A project whose id got a token, or is in the configuration, is *proven*: the others
have a small room of their own, and never take the place of a proven one. Hides how many there may be at once,
and which project makes room: the longest idle one that no request uses. Knows nothing of the configuration,
or of how a project is made.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from proxy.errors import TokenUnavailable
from proxy.projects.new_ids import NewIds
from proxy.projects.project import Project

MOST = 4000
"""Proven projects of all accounts at once."""
MOST_NEW = 256
"""Projects of all accounts at once that got no token yet."""
USELESS_S = 300.0
"""A project without a usable token is dropped when no request used it for so long. A token of an idle project
is not renewed (`proxy.tokens.demand`), so each idle project has none some time."""

_Projects = OrderedDict[str, Project]
"""The longest idle project is first."""


class AccountProjects:
    """Projects by name, such as ``acme/42``."""

    def __init__(
        self, *, most: int = MOST, most_new: int = MOST_NEW, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._most_new = most_new
        self._now = now
        self._proven: _Projects = OrderedDict()
        self._new: _Projects = OrderedDict()
        self._used_at: dict[str, float] = {}
        self._new_ids = NewIds(now)

    def __iter__(self) -> Iterator[Project]:
        """All projects, sorted by name."""
        return iter([project for _, project in sorted({**self._proven, **self._new}.items())])

    def __len__(self) -> int:
        return len(self._proven) + len(self._new)

    def get(self, name: str, make: Callable[[str], Project], caller: str = "") -> Project:
        """The project of that name, for a request that is about to use it; ``make`` makes a new one.

        ``caller`` is the name of the request's caller, "" where no callers are defined. Raises
        `TokenUnavailable` if there are too many projects and requests use all of them, or if this caller
        named too many ids that got no token.
        """
        for projects in (self._proven, self._new):
            if (known := projects.get(name)) is not None:
                projects.move_to_end(name)
                self._used_at[name] = self._now()
                if not known.is_proven:
                    known.named_by.add(caller)
                return known
        self._look_for_proven()
        project = make(name)
        if project.is_proven:
            self._enter(self._proven, project, self._most)
        else:
            self._new_ids.add(caller)
            self._enter(self._new, project, self._most_new)
            project.named_by.add(caller)
        self._used_at[name] = self._now()
        return project

    def sweep(self) -> list[str]:
        """Drop the projects that were idle for too long, and return their names."""
        self._look_for_proven()
        now = self._now()
        gone = []
        for name, project in (*self._proven.items(), *self._new.items()):
            if project.running:
                self._used_at[name] = now
            elif now - self._used_at[name] >= USELESS_S and not project.has_lease:
                self._drop(name)
                gone.append(name)
        return gone

    def replace(self, account: str, successor: Callable[[Project], Project | None]) -> list[Project]:
        """Replace each of the account's projects by its successor; remove it if the successor is None.

        Returns the replaced projects; the caller of this method closes them.
        """
        old = []
        for projects in (self._proven, self._new):
            for name, project in tuple(projects.items()):
                if name.partition("/")[0] == account:
                    old.append(project)
                    if (new := successor(project)) is None:
                        self._remove(name)
                    else:
                        projects[name] = new
        return old

    def _look_for_proven(self) -> None:
        """Give the new projects that got a token their place among the proven ones."""
        for name, project in tuple(self._new.items()):
            if project.is_proven and self._has_room(self._proven, self._most):
                self._proven[name] = self._new.pop(name)
                self._new_ids.forgive(project.named_by.callers[0])

    def _enter(self, projects: _Projects, project: Project, most: int) -> None:
        if not self._has_room(projects, most):
            raise TokenUnavailable(
                f"{most} projects of accounts are in use at once, which is the limit;"
                " give the busiest a [projects] table of their own",
                retry_after_s=5,
            )
        projects[project.name] = project

    def _has_room(self, projects: _Projects, most: int) -> bool:
        """Whether there is room for one more, perhaps because an idle one had to go."""
        if len(projects) >= most:
            idle = next((name for name, project in projects.items() if not project.running), None)
            if idle is None:
                return False
            self._drop(idle)
        return True

    def _drop(self, name: str) -> None:
        self._remove(name).close()

    def _remove(self, name: str) -> Project:
        del self._used_at[name]
        return self._proven.pop(name, None) or self._new.pop(name)
