"""``/-/requests``: the last requests as JSON. Holds no secret, no query and no content.

A caller with limits sees its own requests only, and learns nothing of how many others there were.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus

from proxy.admin.overview import Overview
from proxy.admin.status import Sees
from proxy.errors import BadRequest, UnknownProject
from proxy.projects.naming import names_like
from proxy.projects.recent import SLICE, RecentRequest, kept_id, kept_target
from proxy.server.answer import send_answer
from proxy.server.request import Request

PATH = b"/-/requests"
NO_PROJECT = "-"
"""The value of ``project`` for the requests that reached none; no project can have this name."""
MOST_SHOWN = 1000
"""Requests in one answer: the last ones, or with ``since`` the first ones after it."""
OFF = "log.requests is false in the configuration, so that no requests are kept."
_STATUS = re.compile(r"([1-5])(?:xx|\d\d)|errors", re.ASCII)
_SINCE = re.compile(r"\d{1,18}", re.ASCII)
_PARAMETERS = ("project", "status", "since")


@dataclass(frozen=True, slots=True)
class Viewer:
    """A caller's view: ``sees`` is whether it may know a project.

    ``own`` is the caller's name where it may see its own requests only; None: it sees all.
    """

    sees: Sees
    own: str | None = None

    def may_see(self, one: RecentRequest) -> bool:
        """Whether the caller may see a request."""
        if self.own is not None and one.facts.caller != self.own:
            return False
        return one.project is None or self.sees(one.project)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The parameters. ``project`` "" is for requests that reached none; None or 0: not given."""

    project: str | None
    status: str | None
    since: int

    @classmethod
    def of(cls, target: bytes) -> _Wanted:
        """Read the query. Raises BadRequest."""
        given: dict[str, str] = {}
        for part in filter(None, target.partition(b"?")[2].decode("latin-1").split("&")):
            name, _, value = part.partition("=")
            if name not in _PARAMETERS:
                raise BadRequest(f"The parameters here are {', '.join(_PARAMETERS)}; leave the others out.")
            if name in given:
                raise BadRequest(f"The parameter {name} was sent twice; send it once.")
            given[name] = unquote_plus(value)
        status, since = given.get("status"), given.get("since", "0")
        if status is not None and not _STATUS.fullmatch(status):
            raise BadRequest("status must be a status such as 500, a class such as 5xx, or errors.")
        if not _SINCE.fullmatch(since):
            raise BadRequest('since must be the number that the answer before had in "next".')
        project = given.get("project")
        return cls("" if project == NO_PROJECT else project, status, int(since))

    def fits(self, one: RecentRequest) -> bool:
        """Whether a request has the status that is asked for."""
        if self.status is None:
            return True
        if self.status == "errors":
            return one.is_error
        status = str(one.status)
        return status[0] == self.status[0] if self.status.endswith("xx") else status == self.status


async def answer(overview: Overview, request: Request, target: bytes, viewer: Viewer) -> bool:
    """Answer a request for the list; whether the connection can be kept.

    Raises BadRequest for a wrong parameter, and UnknownProject.
    """
    wanted, recent = _Wanted.of(target), overview.recent
    if wanted.project:
        _check_project(overview, wanted.project, viewer.sees)
    # A number of the future is from before the clock was put back.
    since = wanted.since if wanted.since <= recent.last_id else 0
    found: list[RecentRequest] = []
    for place, one in enumerate(recent.after(since, wanted.project), 1):
        if viewer.may_see(one) and wanted.fits(one):
            found.append(one)
            if since and len(found) == MOST_SHOWN:
                break
        if not place % SLICE:
            await asyncio.sleep(0)
    found = found[-MOST_SHOWN:]
    lines = []
    for place, one in enumerate(found, 1):
        lines.append(json.dumps(dict(_members(one))))
        if not place % (SLICE // 5):
            await asyncio.sleep(0)
    # The last id that is shown, not the last one there is: it would tell of others' requests.
    head: dict[str, object] = {"host": overview.host, "next": found[-1].id if found else since}
    if not recent.is_on:
        head["off"] = OFF
    joined = ",\n".join(lines)
    content = f'{json.dumps(head)[:-1]}, "requests": [\n{joined}\n]}}\n'
    return await send_answer(request, 200, content.encode())


def _check_project(overview: Overview, name: str, sees: Sees) -> None:
    """Raise UnknownProject for a project that isn't there, or that this caller may not know."""
    known = {project.name for project in overview.projects()} | set(overview.recent.projects)
    known |= {f"{account}/{name.partition('/')[2] or '42'}" for account in overview.accounts}
    if not (sees(name) and name in known):
        near = names_like(name[:64], sorted(one for one in known if sees(one) and one != name))
        raise UnknownProject(f"There is no project {name[:64]!r}. Try {', '.join(near) or 'another'}")


def _members(one: RecentRequest) -> Iterator[tuple[str, object]]:
    """The members of a request's JSON, in their order; those without a value are left out."""
    facts = one.facts
    yield "id", one.id
    yield "at", datetime.fromtimestamp(one.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    target = kept_target(one.target)
    texts = {
        "project": one.project,
        "caller": facts.caller,
        "api": None if one.api is None else one.api.value,
        "method": one.method,
        "route": target.removesuffix(b"?").decode(),
    }
    yield from ((name, text) for name, text in texts.items() if text)
    if target.endswith(b"?"):
        yield "query", True
    if one.status:
        yield "status", one.status
    if one.source is not None:
        yield "source", one.source
    if one.error is not None:
        yield "error", one.error
    if one.cut_reason is not None:
        yield "reason", one.cut_reason
    if one.api is not None or facts.waited_s:
        yield "wait_ms", _ms(facts.waited_s)
    if facts.upstream is not None:
        yield "upstream", facts.upstream.authority
    if one.upstream_s:
        yield "upstream_ms", _ms(one.upstream_s)
    yield "total_ms", _ms(one.took_s)
    yield "bytes_in", one.bytes_in
    yield "bytes_out", one.bytes_out
    if facts.replays:
        yield "replayed", list(facts.replays)
    if facts.request_id is not None:
        yield "request_id", kept_id(facts.request_id)


def _ms(duration_s: float) -> float:
    return round(duration_s * 1000, 1)
