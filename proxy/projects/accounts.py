"""The projects of accounts, which come into being when somebody calls them and go when nobody does.

Hides how many there are at once, and who has to go: of those that no request uses, the one that
was idle longest. Knows nothing of how a project is made, or of the configuration.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from proxy.errors import TokenUnavailable
from proxy.projects.project import Project

MOST = 1000
"""Projects at once, over all accounts: their tokens are kept fresh, and whoever calls can name any number."""
IDLE_S = 3600.0
"""A project that no request used for so long is dropped: about the life of its last token."""
USELESS_S = 300.0
"""The same, for one that has no usable token: a wrong number isn't asked for again and again."""


class AccountProjects:
    """Projects by name, ``acme/42``, made on demand."""

    def __init__(self, *, most: int = MOST, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._projects: OrderedDict[str, Project] = OrderedDict()  # the longest unused first
        self._used_at: dict[str, float] = {}

    def __iter__(self) -> Iterator[Project]:
        """By name."""
        return iter([project for _, project in sorted(self._projects.items())])

    def __len__(self) -> int:
        return len(self._projects)

    def get(self, name: str, make: Callable[[str], Project]) -> Project:
        """The project of that name, for a request that is about to use it.

        Raises `TokenUnavailable` where there are too many, all of them in use.
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
        """Drop what was idle for too long; the names of those."""
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
        """Put its successor in the place of each of the account's projects; None: nothing.

        Gives back those of before; whoever gets them closes them.
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
            f"{self._most} projects of accounts are in use at once, and no more can be;"
            " give the busiest a [projects] table of their own",
            retry_after_s=5,
        )

    def _drop(self, name: str) -> None:
        self._remove(name).close()

    def _remove(self, name: str) -> Project:
        del self._used_at[name]
        return self._projects.pop(name)
