"""Finds the project and the API of a raw request target.

Pure: bytes in, a `Route` out. Decides on the raw first segment, without decoding it. Refuses dot
segments that could leave the prefix, in any spelling, before a project is chosen. The rest of the
target stays byte for byte. Knows no leases and no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from proxy.contentsquare import Api, api_of
from proxy.errors import BadTarget, UnknownProject
from proxy.gateway.placeholder import project_in
from proxy.http1 import FieldLines
from proxy.projects import Project
from proxy.projects.naming import names_like

_PROJECT_FIELD: Final = b"x-csq-project"
_API_FIELD: Final = b"x-csq-api"
_FIELDS: Final = frozenset((_PROJECT_FIELD, _API_FIELD))

_SEPARATOR: Final = rb"(?:[/\\]|%2f|%5c)"
_DOTS: Final = re.compile(
    _SEPARATOR + rb"(?:\.|%2e){1,2}(?:[;#][^/\\]*)?(?=" + _SEPARATOR + rb"|\Z)", re.IGNORECASE
)
_SEGMENT: Final = re.compile(_SEPARATOR, re.IGNORECASE)
_DOT_SEGMENT: Final = re.compile(rb"((?:\.|%2e){1,2})(?:[;#].*)?\Z", re.IGNORECASE)
# Bytes as numbers: a search for a number is several times as fast as a search for bytes.
_DOT: Final = ord(".")
_PERCENT: Final = ord("%")
_QUESTION_MARK: Final = ord("?")
_VERSION: Final = re.compile(rb"/v[0-9]+(?=[/?]|\Z)")
_PROJECT_ID: Final = re.compile(rb"[1-9][0-9]{0,17}\Z")
_APIS: Final = {api.value.encode(): api for api in Api}


def named_by_fields(fields: FieldLines) -> tuple[bytes | None, bytes | None]:
    """The values of X-CSQ-Project and X-CSQ-Api; each None where there is none, the last of several."""
    if not fields.has_any(_FIELDS):
        return None, None
    found = {field.name: field.value for field in fields.among(_FIELDS)}
    return found.get(_PROJECT_FIELD), found.get(_API_FIELD)


class Route:
    """``api`` is None for a path of no known API; ``target`` lacks the prefix."""

    __slots__ = ("api", "project", "target")

    def __init__(self, project: Project, api: Api | None, target: bytes) -> None:
        self.project = project
        self.api = api
        self.target = target


class Router:
    """Finds the route of a target.

    ``account_project`` gives the project of an account's name and a project's id, for the caller of that
    name; None where the account's configuration does not allow it.
    """

    def __init__(
        self,
        projects: Mapping[str, Project],
        *,
        default: Project | None = None,
        accounts: frozenset[str] = frozenset(),
        account_project: Callable[[str, int, str], Project | None] | None = None,
    ) -> None:
        self._projects = {name.encode(): project for name, project in projects.items()}
        self._accounts = {name.encode(): name for name in accounts}
        self._account_project = account_project
        self._default = default

    def route(
        self,
        target: bytes,
        *,
        own: Project | None = None,
        project: bytes | None = None,
        api: bytes | None = None,
        fields: FieldLines | None = None,
        may_use: Callable[[str], bool] | None = None,
        caller: str = "",
    ) -> Route:
        """The route of an origin-form ``target``.

        ``own`` is the project that the listener belongs to, ``project`` and ``api`` are the values of
        X-CSQ-Project and X-CSQ-Api; each is None where there is none. ``fields`` may hold a placeholder
        token: its project takes the place of the default one. ``may_use`` says whether the caller may
        use a project or an account: for a caller, the others don't exist. An account's projects are created
        here; ``caller`` is the caller's name, "" where no callers are defined. Raises BadTarget,
        UnknownProject, or TokenUnavailable if the caller named too many ids that got no token.
        """
        if not target.startswith(b"/"):
            raise BadTarget("The request target must start with a slash.")
        # Every spelling of a dot segment has a dot or a percent sign.
        dotted = _dotted_path(target) if _DOT in target or _PERCENT in target else None
        if dotted is not None:
            _refuse_escape(dotted, 0)
        chosen, rest, depth = (
            (own, target, 0) if own is not None else self._by_prefix(target, project, fields, may_use, caller)
        )
        if dotted is not None and depth:
            _refuse_escape(dotted, depth)
        return Route(chosen, _named_api(api) if api is not None else api_of(rest), rest)

    def _by_prefix(
        self,
        target: bytes,
        field: bytes | None,
        fields: FieldLines | None,
        may_use: Callable[[str], bool] | None,
        caller: str,
    ) -> tuple[Project, bytes, int]:
        """The project, the target without its prefix, and how many segments the prefix has."""
        first, rest = _cut(target)
        found = self._projects.get(first)
        if found is not None and (may_use is None or may_use(found.name)):
            return found, rest, 1
        account = self._accounts.get(first)
        if account is not None and (may_use is None or may_use(account)):
            project_id, rest = _cut(rest)
            return self._of_account(account, project_id, caller), rest, 2
        if field is not None:
            return self.project(field, may_use, caller), target, 0
        if first and rest.startswith(b"/v") and _VERSION.match(rest):
            raise self._unknown(first, may_use)
        if fields is not None and (named := project_in(fields)) is not None:
            return self.project(named, may_use, caller), target, 0
        default = self._default
        if default is None:
            raise self._unknown(first, may_use)
        if may_use is not None and not may_use(default.name):
            raise self._unknown(first, may_use)
        return default, target, 0

    def project(self, value: bytes, may_use: Callable[[str], bool] | None, caller: str) -> Project:
        """The project of this name, as X-CSQ-Project holds it; the rest is as for `route`."""
        name, slash, project_id = value.partition(b"/")
        account = self._accounts.get(name) if slash else None
        if account is not None and (may_use is None or may_use(account)):
            return self._of_account(account, project_id, caller)
        found = self._projects.get(value)
        if found is None or (may_use is not None and not may_use(found.name)):
            raise self._unknown(value, may_use)
        return found

    def _of_account(self, name: str, project_id: bytes, caller: str) -> Project:
        if not _PROJECT_ID.match(project_id) or self._account_project is None:
            raise UnknownProject(f"The account {name} needs a project's number: /{name}/42/v1/...")
        found = self._account_project(name, int(project_id), caller)
        if found is None:
            number = int(project_id)
            raise UnknownProject(
                f"There is no project {name}/{number}: {number} is not among accounts.{name}.projects."
            )
        return found

    def _unknown(self, name: bytes, may_use: Callable[[str], bool] | None) -> UnknownProject:
        known = [n.decode() for n in (*self._projects, *self._accounts)]
        shown = name[:64].decode("ascii", "replace")
        if _VERSION.fullmatch(b"/" + name):
            what = "No project is named in the path, and none is the default"
        else:
            what = f"There is no project {shown!r}"
        paths = [
            f"/{near}/42/v1/..." if near.encode() in self._accounts else f"/{near}/v1/..."
            for near in names_like(shown, [near for near in known if may_use is None or may_use(near)])
        ]
        return UnknownProject(f"{what}. Try {', '.join(paths) or 'another'}")


def _cut(target: bytes) -> tuple[bytes, bytes]:
    """The first segment of ``target``, and the target after it."""
    slash = target.find(b"/", 1)
    first = target[1:slash] if slash > 0 else target[1:]
    if slash > 0 and _QUESTION_MARK not in first:
        return first, target[slash:]
    first, mark, query = target[1:].partition(b"?")
    return first, b"/" + mark + query


def _dotted_path(target: bytes) -> bytes | None:
    """The path of a target where it has dot segments, in any spelling."""
    path = target.partition(b"?")[0]
    return path if _DOTS.search(path) else None


def _refuse_escape(path: bytes, prefix: int) -> None:
    """Raise BadTarget where dot segments, decoded as a server might, leave the first ``prefix`` segments."""
    depth = 0
    for segment in _SEGMENT.split(path)[1:]:
        match = _DOT_SEGMENT.match(segment)
        if match is None:
            depth += 1
        elif len(match[1].lower().replace(b"%2e", b".")) == 2:
            depth -= 1
        if depth < prefix and match is not None:
            raise BadTarget("The request target leaves its project by dot segments.")


def _named_api(value: bytes) -> Api:
    try:
        return _APIS[value]
    except KeyError:
        raise BadTarget(f"X-CSQ-Api must be one of {', '.join(api.value for api in Api)}.") from None
