"""The requests that must not be forwarded: of read-only callers and projects, and for other projects.

Decides on the exact bytes that would go to the cloud, and reads them as the most lenient server
might (see `proxy.gateway.lenient`): a request is refused if it could hide a call that changes data, or name
another project than the token's. Contentsquare checks the project, too; this check is a second lock.
Pure; must not know how a project gets its token.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from proxy.contentsquare import ME_PATH, SAFE_METHODS, TOKEN_PATH, changes_data
from proxy.errors import BadRequest, BadTarget, Forbidden
from proxy.gateway.callers import Caller
from proxy.gateway.lenient import (
    asks_for_method,
    is_plain,
    may_be_oauth,
    may_change_events,
    names_other_project,
)
from proxy.gateway.rewrite import fields_to_upstream
from proxy.http1 import METHOD_OVERRIDES, RequestHead
from proxy.logs import redactor
from proxy.logs.leaks import SHORTEST_ANYWHERE

_LEAK: Final = (
    "The {} of this request holds a key or a secret of this proxy, so it is not sent to Contentsquare."
    " Send the key as the password (any user name), as a bearer token, as X-API-Key or as the query parameter"
    " csq_key."
)
_FORM: Final = re.compile(rb"\bform\b|urlencoded|multipart", re.IGNORECASE)
"""Types of forms: ``application/x-www-form-urlencoded``, ``multipart/form-data``, ``multipart/mixed``."""
_TYPE: Final = frozenset((b"contenttype",))
"""The field that has the type, for `FieldNames.spelling`."""


class ProjectLimits(Protocol):
    """The part of a project that this module needs."""

    @property
    def name(self) -> str:
        """The name in callers' URLs."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether calls that change data are refused."""
        ...

    @property
    def project_id(self) -> int | None:
        """The Contentsquare project of its tokens; None: its credentials are for one project alone."""
        ...


def may_change_data(head: RequestHead, target: bytes) -> bool:
    """Whether a server may take the request for one that changes data, or for one of OAuth."""
    section = head.section
    if section.asks_for_method is None:
        section.asks_for_method = len(_overrides(head)) > 0 or _has_form_type(head)
    if not section.asks_for_method and head.method in SAFE_METHODS and is_plain(target):
        return False
    return (
        section.asks_for_method
        or changes_data(head.method, target)
        or _has_form(head)
        or asks_for_method(target)
        or may_change_events(target)
        or may_be_oauth(target)
    )


def check(
    head: RequestHead, target: bytes, project: ProjectLimits, caller: Caller | None, changes: bool
) -> None:
    """Raise Forbidden where ``target`` (prefix removed) must not be sent for this project and caller.

    Raises BadTarget as `check_oauth` does. ``changes`` is the answer of `may_change_data`. The caller may use
    the project: for it, `proxy.gateway.route` finds no others.
    """
    if changes:
        check_oauth(target)
        if project.read_only:
            raise _may_only_read(
                head, target, f"The project {project.name} is read-only here (read_only = true)"
            )
        if caller is not None and caller.read_only:
            raise _may_only_read(head, target, "This caller may only read")
    if project.project_id is not None:
        _check_project(target, project.project_id, project.name)


def check_oauth(target: bytes) -> None:
    """Raise BadTarget where a server might take the path for one of OAuth, to which secrets are sent."""
    if may_be_oauth(target):
        raise BadTarget(f"A path of OAuth must be plain: {TOKEN_PATH} or {ME_PATH}, behind a project's path.")


def check_secrets(head: RequestHead, target: bytes) -> None:
    """Raise BadRequest if a key or secret of this proxy would go to the cloud in a request's head."""
    leaks, section = redactor.leaks, head.section
    if leaks.is_in_target(target):
        raise BadRequest(_LEAK.format("target"))
    if len(head.method) >= SHORTEST_ANYWHERE and leaks.is_in_target(head.method):
        raise BadRequest(_LEAK.format("method"))
    if section.leaks_version != leaks.version:
        lines = fields_to_upstream(section)
        if leaks.is_in_fields(lines):
            line = next(filter(leaks.is_in_fields, lines.split(b"\r\n")), b"")
            name = line.partition(b":")[0]
            shown = "head" if not name or leaks.is_in_target(name) else f"field {name.decode('latin-1')}"
            raise BadRequest(_LEAK.format(shown))
        section.leaks_version = leaks.version


def check_quit(caller: Caller | None) -> None:
    """Raise Forbidden where this caller may not stop the proxy, because that affects all callers."""
    if caller is not None and caller.is_limited:
        raise Forbidden(f"The caller {caller.name} may not stop the proxy: only a caller without limits may.")


def _overrides(head: RequestHead) -> frozenset[bytes]:
    return head.fields.names.spelling(METHOD_OVERRIDES)


def _has_form_type(head: RequestHead) -> bool:
    names = head.fields.names.spelling(_TYPE)
    return any(_FORM.search(field.value) for field in head.fields.among(names))


def _has_form(head: RequestHead) -> bool:
    """Whether the content may be a form; Rack takes it for one where a POST has no type, or an empty one."""
    if b"content-type" not in head.connection and head.fields.only(b"content-type"):
        return _has_form_type(head)
    return head.method not in SAFE_METHODS and (head.chunked or (head.content_length or 0) > 0)


def _may_only_read(head: RequestHead, target: bytes, why: str) -> Forbidden:
    """The reason why the request may change data."""
    if changes_data(head.method, target) or may_change_events(target):
        return Forbidden(f"{why}, and this call may change data.")
    for name in _overrides(head):
        return Forbidden(f"{why}: leave the field {name.decode()} out.")
    if _has_form(head):
        return Forbidden(f"{why}, and a form may ask for another method: send JSON.")
    return Forbidden(f"{why}, and a parameter in the target may ask for another method: leave it out.")


def _check_project(target: bytes, project_id: int, name: str) -> None:
    if names_other_project(target, project_id):
        raise Forbidden(
            f"This request may name another project than {project_id}, the number of {name};"
            " call the other project by its own path, or leave projectId out."
        )
