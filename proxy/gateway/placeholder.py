"""Placeholder tokens: the proxy's answer to programs that fetch a token of their own.

A placeholder reads ``csq-proxy.PROJECT.KEY``. The key is the caller's own, or ``local`` where no callers are
defined. The project is in it because some programs ignore ``endpoint`` and send all requests to one host:
their requests would get the default project's data. It is no secret beside the key: the real token never
leaves the proxy.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from proxy.http1 import FieldLines

NO_KEY: Final = "local"
"""The key's place where no callers are defined; it is never compared."""
_START: Final = b"csq-proxy."
_FIELDS: Final = frozenset((b"authorization",))
_BEARER: Final = b"bearer "


class Placeholder(NamedTuple):
    """What a placeholder holds: the name of a project, such as ``shop`` or ``acme/42``, and a key."""

    project: bytes
    key: bytes


def placeholder(project: str, key: str | None) -> str:
    """The placeholder token for this project; ``key`` is None where no callers are defined."""
    return f"{_START.decode()}{project}.{key or NO_KEY}"


def parse(token: bytes) -> Placeholder | None:
    """Read a bearer token; None if it is no placeholder. The key may have dots, a project's name has none."""
    if not token.startswith(_START):
        return None
    project, dot, key = token[len(_START) :].partition(b".")
    return Placeholder(project, key) if dot else None


def project_in(fields: FieldLines) -> bytes | None:
    """The project that a request's bearer token names (RFC 6750, section 2.1); None where none is named."""
    if not fields.has_any(_FIELDS):
        return None
    for field in fields.among(_FIELDS):
        if field.value[: len(_BEARER)].lower() == _BEARER:
            found = parse(field.value[len(_BEARER) :].strip())
            if found is not None:
                return found.project
    return None
