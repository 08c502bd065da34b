"""The last requests of each project, in memory: metadata only, for the question "what happened to my call?".

No query, field or content is kept, and a path is shown without the secrets that the log hides. Requests that
reached no project have a list of their own, so that callers without a key can't push out a project's.
The size is bounded: `MOST_OF_ONE` requests of a project, `MOST_OF_ALL` of all together, and each text is cut.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from proxy.contentsquare import Api
from proxy.foreign import METHODS, shown
from proxy.logs import redactor
from proxy.logs.redact import REDACTED
from proxy.projects.measures import CUT
from proxy.server.request import Request

MOST_OF_ONE: Final = 200
"""Requests of one project; also the requests that reached none."""
MOST_OF_ALL: Final = 57_000
"""Requests of all projects: with more than 285 projects in use, fewer of each are kept."""
MOST_LISTS: Final = 4_000
"""Projects whose requests are kept; the one that was used longest ago goes first. Each keeps 14 at least."""
LONGEST_TARGET: Final = 200
LONGEST_CODE: Final = 64
SLICE: Final = 500
"""Requests that are looked at between two turns of the event loop."""
_AUTHORITY: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class RecentRequest:
    """One request that has ended, ``at`` seconds since 1970. Durations are in seconds; None: no value.

    ``id`` grows from request to request, also over a restart: it is the end in microseconds since 1970.
    ``project`` is None for a request that reached none, and ``api`` for a request that was not forwarded.
    ``target`` is as `kept_target` returns it. ``status`` is 0 where the caller left before an answer. All
    else is in ``facts``, or is worked out when it is read.
    """

    __slots__ = (
        "api",
        "at",
        "bytes_in",
        "bytes_out",
        "cut_reason",
        "facts",
        "id",
        "method",
        "project",
        "status",
        "target",
        "took_s",
    )

    def __init__(
        self, project: str | None, api: Api | None, target: bytes, request: Request, took_s: float
    ) -> None:
        self.id = 0
        self.at = 0.0
        self.project = project
        self.api = api
        self.method = METHODS.get(request.head.method, "{other}" if request.head.method else "")
        self.target = target
        self.status = request.status
        self.took_s = took_s
        self.bytes_in = request.body.received
        self.bytes_out = request.answer_bytes
        self.cut_reason = request.cut_reason
        self.facts = request.facts

    @property
    def source(self) -> str | None:
        """The origin of the answer: "contentsquare", "proxy" or "stored"."""
        facts = self.facts
        if facts.error_code is not None:
            return "proxy"
        if facts.shared is not None and facts.cut is None:
            return "stored"
        if not self.status:
            return None
        is_theirs = (self.api is not None or facts.is_relayed) and facts.cut is None
        return "contentsquare" if is_theirs else "proxy"

    @property
    def error(self) -> str | None:
        """The proxy's code or Contentsquare's errorCode."""
        facts = self.facts
        if facts.error_code is not None:
            return facts.error_code
        if not self.status:
            return None
        return facts.vendor_code if facts.cut is None else CUT

    @property
    def upstream_s(self) -> float:
        """How long the request was on its way to the cloud and back; 0 where nothing was sent."""
        facts = self.facts
        return 0.0 if facts.upstream is None else facts.began_at + self.took_s - facts.sent_at

    @property
    def is_error(self) -> bool:
        """Whether the answer was an error, Contentsquare's or the proxy's, or was cut."""
        return self.status >= 400 or self.error is not None


class RecentRequests:
    """The last requests, by project. Without `is_on`, none is kept."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._now = wall_clock
        self.is_on = True
        """Whether requests are kept (``log.requests``); `switch` changes it."""
        self._by_project: dict[str, deque[RecentRequest]] = {}
        self._of_none: deque[RecentRequest] = deque(maxlen=MOST_OF_ONE)
        self._most_of_one = MOST_OF_ONE
        self._last_id = 0

    def switch(self, *, on: bool) -> None:
        """Keep requests from now on, or forget all of them."""
        self.is_on = on
        if not on:
            self._by_project.clear()
            self._of_none.clear()

    @property
    def projects(self) -> list[str]:
        """The names of the projects with requests."""
        return [name for name in self._by_project if not name.endswith("/")]

    @property
    def last_id(self) -> int:
        """The highest id that a request has, or could have by now."""
        return max(self._last_id, int(self._now() * 1_000_000))

    def add(self, one: RecentRequest) -> None:
        """Keep a request that ends now."""
        at = self._now()
        number = int(at * 1_000_000)
        if number <= self._last_id:
            number = self._last_id + 1
        self._last_id = number
        one.id, one.at = number, at
        if one.project is None:
            self._of_none.append(one)
            return
        known = self._by_project.get(one.project)
        (self._list_for(one, one.project) if known is None else known).append(one)

    def after(self, since: int, project: str | None = None) -> list[RecentRequest]:
        """The requests with a higher id, the oldest first: of all projects and of none, or of one project.

        ``project`` "" is for those that reached none.
        """
        if project is None:
            lists = [self._of_none, *self._by_project.values()]
        elif project:
            names = (project, _of_account(project))
            lists = [self._by_project[name] for name in names if name in self._by_project]
        else:
            lists = [self._of_none]
        found: list[RecentRequest] = []
        for kept in lists:
            for one in reversed(kept):
                if one.id <= since:
                    break
                if not project or one.project == project:
                    found.append(one)
        found.sort(key=_id_of)
        return found

    async def redact(self) -> None:
        """Remove the secrets that the log hides now; the log is about to forget some of them."""
        for place, one in enumerate(self.after(0)):
            one.target = kept_target(one.target)
            facts = one.facts
            facts.request_id = None if facts.request_id is None else kept_id(facts.request_id)
            if not place % SLICE:
                await asyncio.sleep(0)

    def _list_for(self, one: RecentRequest, project: str) -> deque[RecentRequest]:
        """The list for a request of a project that has none.

        A caller can invent an id of an account's project: until a request of the project was sent, for
        which it needs a token, its requests are in one list with all such.
        """
        if one.facts.upstream is None and "/" in project:
            project = _of_account(project)
            if (known := self._by_project.get(project)) is not None:
                return known
        if len(self._by_project) >= MOST_LISTS:
            del self._by_project[min(self._by_project, key=self._last_of)]
        most = min(MOST_OF_ONE, MOST_OF_ALL // (len(self._by_project) + 1))
        if most < self._most_of_one:
            self._most_of_one = most
            self._by_project = {name: deque(kept, most) for name, kept in self._by_project.items()}
        made = self._by_project[project] = deque(maxlen=self._most_of_one)
        return made

    def _last_of(self, project: str) -> int:
        return self._by_project[project][-1].id


def _of_account(project: str) -> str:
    """The name of the list for ids that may be invented; no project has such a name."""
    return f"{project.partition('/')[0]}/"


def _id_of(one: RecentRequest) -> int:
    return one.id


def kept_target(target: bytes) -> bytes:
    """A request target as it may be kept and shown: its path, and ``?`` where a query is left out.

    Without what the log hides, and without control characters; a path longer than `LONGEST_TARGET` ends with
    ``/...``. The same for a target that was returned before.
    """
    target = _AUTHORITY.sub(b"", target, count=1)
    path, mark, _ = target.partition(b"#")[0].partition(b"?")
    if redactor.leaks.is_in_target(path):  # also in codings that a line of the log never has
        return b"/" + REDACTED.encode() + mark
    route = redactor.redact(shown(path.decode("utf-8", "backslashreplace")))
    kept = route.encode("utf-8", "backslashreplace")
    if len(kept) > LONGEST_TARGET:
        kept = kept[: LONGEST_TARGET - 4].rpartition(b"/")[0].decode("utf-8", "ignore").encode() + b"/..."
    return kept + mark


def cut_target(target: bytes) -> bytes:
    """The part of a target to keep, for `kept_target`; much faster. Its path holds no secret."""
    place = target.find(b"?")
    if place >= 0:
        target = target[: place + 1]
    return target if len(target) <= LONGEST_TARGET else kept_target(target)


def kept_code(code: str) -> str:
    """An error code of Contentsquare's as it may be kept and shown."""
    return redactor.redact(shown(code[: 4 * LONGEST_CODE]))[:LONGEST_CODE]


def kept_id(request_id: str) -> str:
    """A request's id as it may be kept and shown."""
    return redactor.redact(request_id)
