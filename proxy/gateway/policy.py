"""The requests that must not be forwarded: of read-only callers and projects, and for other projects.

Decides on the exact bytes that would go to the cloud, and reads them as the most lenient server
might: a request is refused if it could hide a call that changes data, or name another project than
the token's. Contentsquare checks the project, too; this check is a second lock.
Pure; must not know how a project gets its token.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from proxy.contentsquare import changes_data
from proxy.errors import Forbidden
from proxy.gateway.callers import Caller
from proxy.http1 import METHOD_OVERRIDES, RequestHead

_SEPARATOR: Final = re.compile(rb"[&;?]")
_NAMED_BY_PATH: Final = re.compile(rb"(?:\A|/)projects?/([^/?#]*)")
_PARAMETERS: Final = re.compile(rb";[^/]*")
_MAY_NAME_ONE: Final = re.compile(rb"project|%25|%[4-7]", re.IGNORECASE)
"""A target without any of these can't name a project, however it is decoded: the last two begin coded
percent signs and letters."""
_MOST_CODINGS: Final = 3
"""Percent-decodings in a row that a server may do; the result of each counts."""


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
    """Whether a server may take the request for one that changes data."""
    return changes_data(head.method, target) or head.fields.has_any(METHOD_OVERRIDES)


def check(head: RequestHead, target: bytes, project: ProjectLimits, caller: Caller | None) -> None:
    """Raise Forbidden where ``target`` (prefix removed) must not be sent for this project and caller.

    The caller may use the project: for it, `proxy.gateway.route` finds no others.
    """
    if project.read_only:
        _check_reads(head, target, f"The project {project.name} is read-only here (read_only = true)")
    if caller is not None and caller.read_only:
        _check_reads(head, target, f"The caller {caller.name} may only read")
    if project.project_id is not None:
        _check_project(target, project.project_id, project.name)


def check_quit(caller: Caller | None) -> None:
    """Raise Forbidden where this caller may not stop the proxy, because that affects all callers."""
    if caller is not None and (caller.read_only or caller.projects is not None):
        raise Forbidden(f"The caller {caller.name} may not stop the proxy: only a caller without limits may.")


def _check_reads(head: RequestHead, target: bytes, why: str) -> None:
    if changes_data(head.method, target):
        raise Forbidden(f"{why}, and this call may change data.")
    for field in head.fields.among(METHOD_OVERRIDES):
        raise Forbidden(f"{why}: leave the field {field.name.decode()} out.")


def _check_project(target: bytes, project_id: int, name: str) -> None:
    if _MAY_NAME_ONE.search(target) and _named_projects(target) - {b"%d" % project_id}:
        raise Forbidden(
            f"This request names another project than {project_id}, the number of {name};"
            " call the other project by its own path, or leave projectId out."
        )


def _named_projects(target: bytes) -> set[bytes]:
    """All projects that a server might read in ``target``, in its path or in ``projectId``."""
    found: set[bytes] = set()
    path, _, query = target.partition(b"?")
    for spelling in _spellings(path):
        plain = _PARAMETERS.sub(b"", spelling.replace(b"\\", b"/").lower())
        for one in (re.sub(rb"/+", b"/", plain), posixpath.normpath(plain)):
            found.update(_NAMED_BY_PATH.findall(one))
    parts = [part for text in (query, *_spellings(query)) for part in _SEPARATOR.split(text)]
    for part in parts:
        key, _, value = part.partition(b"=")
        if any(_is_project_id(spelling) for spelling in _spellings(key)):
            found.add(_spellings(value)[-1])
    return found


def _is_project_id(key: bytes) -> bool:
    """Whether the key is ``projectId``, also as ``project_id``, ``projectId[]`` or ``filter[projectId]``."""
    return re.sub(rb"[^a-z0-9]", b"", key.lower()).endswith(b"projectid")


def _spellings(text: bytes) -> list[bytes]:
    """The text, and the results of repeated percent-decoding."""
    found = [text]
    for _ in range(_MOST_CODINGS):
        decoded = unquote_to_bytes(found[-1].replace(b"+", b" "))
        if decoded == found[-1]:
            break
        found.append(decoded)
    return found
