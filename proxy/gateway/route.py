"""Finds the project and the API of a raw request target.

Pure: bytes in, a route out. Decides on the raw first segment, without decoding it. Refuses dot
segments that could leave the prefix, in any spelling, before a project is chosen. The rest of the
target stays byte for byte. Knows no leases and no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from proxy.contentsquare import Api, api_of
from proxy.errors import BadTarget, UnknownProject
from proxy.gateway.callers import Caller
from proxy.gateway.placeholder import project_in
from proxy.http1 import FieldSection
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
_NUMBER_AND_VERSION: Final = re.compile(rb"/[0-9]+/v[0-9]+(?=[/?]|\Z)")
_PROJECT_ID: Final = re.compile(rb"[1-9][0-9]{0,17}\Z")
_APIS: Final = {api.value.encode(): api for api in Api}


Route = tuple[Project, Api | None, bytes]
"""The project, the API (None for a path of no known API), and the target without the project's prefix."""
Named = tuple[bytes | None, bytes | None, bytes | None]
_NOTHING: Final[Named] = (None, None, None)


def named_by_fields(section: FieldSection) -> Named:
    """The values of X-CSQ-Project and X-CSQ-Api, and the project in a placeholder token.

    Each is None where there is none, and the last of several.
    """
    named = section.named
    if named is None:
        found = {field.name: field.value for field in section.fields.among(_FIELDS)}
        named = (found.get(_PROJECT_FIELD), found.get(_API_FIELD), project_in(section.fields))
        section.named = named
    return named


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
        caller: Caller | None = None,
        own: Project | None = None,
        named: Named = _NOTHING,
    ) -> Route:
        """The route of an origin-form ``target``.

        For a caller, the projects and accounts that it may not use don't exist. ``own`` is the project that
        the listener belongs to, None where there is none. ``named`` is the answer of `named_by_fields`; a
        placeholder's project takes the place of the default one. An account's projects are created here.
        Raises BadTarget, UnknownProject, or TokenUnavailable if the caller named too many ids that got no
        token.
        """
        if target[:1] != b"/":
            raise BadTarget("The request target must start with a slash.")
        # Every spelling of a dot segment has a dot or a percent sign.
        dotted = _dotted_path(target) if _DOT in target or _PERCENT in target else None
        if dotted is not None:
            _refuse_escape(dotted, 0)
        chosen, rest, depth = (own, target, 0) if own is not None else self._by_prefix(target, caller, named)
        if dotted is not None and depth:
            _refuse_escape(dotted, depth)
        api = named[1]
        return chosen, api_of(rest) if api is None else _named_api(api), rest

    def _by_prefix(self, target: bytes, caller: Caller | None, named: Named) -> tuple[Project, bytes, int]:
        """The project, the target without its prefix, and how many segments the prefix has."""
        first = _first(target)
        found = self._projects.get(first)
        if found is not None and (caller is None or caller.may_use(found.name)):
            return found, _behind(target, first), 1
        account = self._accounts.get(first)
        if account is not None and (caller is None or caller.may_use(account)):
            rest = _behind(target, first)
            project_id = _first(rest)
            return self._of_account(account, project_id, caller), _behind(rest, project_id), 2
        project, _, by_token = named
        if project is not None:
            return self.project(project, caller), target, 0
        at = len(first) + 1
        if first and target[at : at + 2] == b"/v" and _VERSION.match(target, at):
            raise self._unknown(first, caller)
        if self._accounts and first and _NUMBER_AND_VERSION.match(target, at):
            raise self._unknown(first, caller)
        if by_token is not None:
            return self.project(by_token, caller), target, 0
        default = self._default
        if default is None or (caller is not None and not caller.may_use(default.name)):
            raise self._unknown(first, caller)
        return default, target, 0

    def project(self, value: bytes, caller: Caller | None) -> Project:
        """The project of this name, as X-CSQ-Project holds it; the rest is as for `route`."""
        name, slash, project_id = value.partition(b"/")
        account = self._accounts.get(name) if slash else None
        if account is not None and (caller is None or caller.may_use(account)):
            return self._of_account(account, project_id, caller)
        found = self._projects.get(value)
        if found is None or (caller is not None and not caller.may_use(found.name)):
            raise self._unknown(value, caller)
        return found

    def _of_account(self, name: str, project_id: bytes, caller: Caller | None) -> Project:
        if not _PROJECT_ID.match(project_id) or self._account_project is None:
            raise UnknownProject(f"The account {name} needs a project's number: /{name}/42/v1/...")
        number = int(project_id)
        found = self._account_project(name, number, "" if caller is None else caller.name)
        if found is None:
            raise UnknownProject(
                f"There is no project {name}/{number}: {number} is not among accounts.{name}.projects."
            )
        return found

    def _unknown(self, name: bytes, caller: Caller | None) -> UnknownProject:
        known = [n.decode() for n in (*self._projects, *self._accounts)]
        shown = name[:64].decode("ascii", "replace")
        if _VERSION.fullmatch(b"/" + name):
            what = "No project is named in the path, and none is the default"
        else:
            what = f"There is no project {shown!r}"
        paths = [
            f"/{near}/42/v1/..." if near.encode() in self._accounts else f"/{near}/v1/..."
            for near in names_like(shown, [near for near in known if caller is None or caller.may_use(near)])
        ]
        return UnknownProject(f"{what}. Try {', '.join(paths) or 'another'}")


def _first(target: bytes) -> bytes:
    """The first segment of ``target``."""
    first = target.split(b"/", 2)[1]
    return first.partition(b"?")[0] if _QUESTION_MARK in first else first


def _behind(target: bytes, first: bytes) -> bytes:
    """The target after its first segment."""
    rest = target[len(first) + 1 :]
    return rest if rest[:1] == b"/" else b"/" + rest


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
