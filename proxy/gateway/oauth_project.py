"""Finds the project that a program's token request means.

A request may name it by its path, its port, X-CSQ-Project, ``client_id`` or ``project_id``, also by several
of these that agree. Knows neither the content's format nor the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from proxy.errors import BadRequest, UnknownProject
from proxy.gateway.callers import Caller
from proxy.gateway.generation import Generation
from proxy.gateway.route import named_by_fields
from proxy.projects import Project
from proxy.server.request import Request

_MOST_NAMED = 10
"""Choices that an error names."""


class ChosenProject(NamedTuple):
    """A project, and the prefix of its paths at the listener that the request came through ("" for none)."""

    project: Project
    prefix: str


class _Name(NamedTuple):
    """The name of a project or an account, and the place in the request that holds this name."""

    text: str
    place: str


def choose(
    request: Request,
    prefix: bytes,
    members: Mapping[str, object],
    generation: Generation,
    caller: Caller | None,
    *,
    is_for_token: bool,
) -> ChosenProject:
    """The project of a request for OAuth's paths.

    ``prefix`` is the part of the path before them. ``members`` are the content's parameters. For a caller,
    projects that it may not use don't exist. The description of credentials (``is_for_token`` is false) is
    the same for all projects of an account: the account's name alone is enough. Raises BadRequest where the
    request names no project or several, and UnknownProject for a path, port or field that names none of the
    caller's.
    """
    own = generation.owner(request.connection.listener, caller)
    named, number = _named(request, prefix, members, generation, caller), _number(members)
    if named is not None and number is None and not is_for_token:
        number = _any_number(named, generation, caller)
    if named is None and number is None:
        project = _unnamed(generation, caller)
        is_default = project.name == generation.settings.default_project
        return ChosenProject(project, "" if is_default else f"/{project.name}")
    name = (
        _by_number(number, generation, caller) if named is None else _exact(named, number, generation, caller)
    )
    project = generation.project(name, caller) if own is None else own
    _check_number(project, number)
    return ChosenProject(project, "" if own is not None else f"/{project.name}")


def _named(
    request: Request,
    prefix: bytes,
    members: Mapping[str, object],
    generation: Generation,
    caller: Caller | None,
) -> _Name | None:
    """The name in the request, None if there is none. Raises BadRequest for two that disagree."""
    listener = request.connection.listener
    field, _, _ = named_by_fields(request.head.section)
    address = None
    if listener.project is not None:
        if prefix:
            raise UnknownProject(f"This port is for the project {listener.project}; leave the prefix out.")
        address = _Name(listener.project, "this port")
    elif prefix:
        address = _Name("/".join(filter(None, prefix.decode("latin-1").split("/"))), "the path")
    elif field is not None:
        address = _Name(field.decode("latin-1"), "X-CSQ-Project")
    client_id = members.get("client_id")
    if not isinstance(client_id, str) or not _exists(client_id, generation, caller):
        return address
    client = _Name(client_id, "client_id")
    if address is None or client.text.startswith(f"{address.text}/"):
        return client
    if address.text == client.text or address.text.startswith(f"{client.text}/"):
        return address
    raise BadRequest(
        f"{address.place} names {address.text}, but client_id names {client.text}; name one of them."
    )


def _exists(name: str, generation: Generation, caller: Caller | None) -> bool:
    """Whether a project or an account has this name, for this caller."""
    account, slash, _ = name.partition("/")
    is_known = account in generation.settings.accounts or (not slash and name in generation.projects)
    return is_known and _may_use(caller, account)


def _number(members: Mapping[str, object]) -> int | None:
    """The id of a Contentsquare project in the parameters; None if there is none. Raises BadRequest."""
    found = {number for key in ("project_id", "projectId") if (number := number_of(members, key)) is not None}
    if len(found) > 1:
        raise BadRequest(f"project_id and projectId disagree: {' and '.join(map(str, sorted(found)))}.")
    return next(iter(found), None)


def number_of(members: Mapping[str, object], key: str) -> int | None:
    """A parameter that is a positive number, or its digits; None where it is absent or empty.

    Raises BadRequest for any other value.
    """
    value = members.get(key)
    if value is None or value == "":
        return None
    digits = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and 0 < len(digits) <= 18):
        raise BadRequest(f"{key} must be a number, such as 42.")
    return int(digits)


def _exact(named: _Name, number: int | None, generation: Generation, caller: Caller | None) -> str:
    """The name of one project: an account's name is completed with the number. Raises BadRequest."""
    account, slash, own_number = named.text.partition("/")
    if account not in generation.settings.accounts or not _may_use(caller, account):
        return named.text
    if not slash and number is None:
        raise BadRequest(
            f"The account {account} has many projects: send the number of one as project_id,"
            f" or {account}/NUMBER as client_id."
        )
    if slash and number is not None and own_number != str(number):
        raise BadRequest(f"{named.place} names {named.text}, but project_id is {number}; name one of them.")
    return named.text if slash else f"{account}/{number}"


def _any_number(named: _Name, generation: Generation, caller: Caller | None) -> int | None:
    """The id of a project of the account, None if ``named`` is no account or no projects are configured."""
    account = generation.settings.accounts.get(named.text)
    if account is None or not account.projects or not _may_use(caller, named.text):
        return None
    return min(account.projects)


def _by_number(number: int | None, generation: Generation, caller: Caller | None) -> str:
    """The name of the project with this id, of the default one first. Raises BadRequest."""
    usable = list(_usable(generation, caller))
    found = [project.name for project in usable if project.contentsquare_id == number]
    default = generation.settings.default_project
    if default in found:
        return default
    found = found or [
        f"{name}/{number}"
        for name, account in generation.settings.accounts.items()
        if (account.projects is None or number in account.projects) and _may_use(caller, name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRequest(f"Several projects have the id {number}: name one by the path, {_paths(found)}.")
    [only] = usable if len(usable) == 1 else [None]
    if only is not None and only.contentsquare_id is None:
        return only.name
    raise BadRequest(f"No project has the id {number}. {_choices(generation, caller)}")


def _check_number(project: Project, number: int | None) -> None:
    known = project.contentsquare_id
    if number is not None and known is not None and known != number:
        raise BadRequest(
            f"project_id is {number}, but {project.name} is the project {known}; leave project_id out."
        )


def _unnamed(generation: Generation, caller: Caller | None) -> Project:
    """The default project, or the only one that the caller may use. Raises BadRequest."""
    name = generation.settings.default_project
    if name is not None and _may_use(caller, name):
        return generation.projects[name]
    usable = list(_usable(generation, caller))
    if len(usable) == 1 and not any(_may_use(caller, account) for account in generation.settings.accounts):
        return usable[0]
    raise BadRequest(f"The request names no project, and none is the default. {_choices(generation, caller)}")


def _usable(generation: Generation, caller: Caller | None) -> Iterator[Project]:
    return (project for project in generation.projects.values() if _may_use(caller, project.name))


def _may_use(caller: Caller | None, name: str) -> bool:
    return caller is None or caller.may_use(name)


def _choices(generation: Generation, caller: Caller | None) -> str:
    """A sentence about the ways to name a project of this caller."""
    names = [
        project.name if project.contentsquare_id is None else f"{project.name} ({project.contentsquare_id})"
        for project in _usable(generation, caller)
    ]
    names += [f"{name}/NUMBER" for name in generation.settings.accounts if _may_use(caller, name)]
    shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
    return f"Send client_id or project_id of one of: {shown or 'none'}."


def _paths(names: list[str]) -> str:
    return " or ".join(f"/{name}/v1/oauth/token" for name in names[:_MOST_NAMED])
