"""Callers and their keys: who is calling, and what this caller may do.

Keys are held as SHA-256 digests and compared in constant time. A key comes as a bearer token,
as Basic (any user name, the key as password), as X-API-Key, or as the query parameter
``csq_key``; whichever way, it goes no further than here.
Sources: RFC 6750, section 2; RFC 7617.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from proxy.errors import CallerUnknown
from proxy.http1 import RequestHead
from proxy.settings import CallerSettings

_QUERY_KEY = b"csq_key="
_CHALLENGE = ((b"WWW-Authenticate", b'Basic realm="csq-proxy", charset="UTF-8"'),)


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may call. ``projects`` None: all projects and accounts, by their names."""

    name: str
    projects: frozenset[str] | None
    read_only: bool

    def may_use(self, project: str) -> bool:
        """Whether a project (or, for ``acme/42``, its account) is this caller's to use."""
        return self.projects is None or project in self.projects or project.partition("/")[0] in self.projects


class Callers:
    """The configured callers; without any, everybody who reaches the port may call."""

    def __init__(self, configured: Mapping[str, CallerSettings]) -> None:
        self._by_digest = [
            (_digest(caller.key.get_secret_value().encode()), _caller(name, caller))
            for name, caller in configured.items()
        ]

    def identify(self, head: RequestHead, target: bytes) -> tuple[Caller | None, bytes]:
        """Who calls (None where no callers are defined), and the target without a key in it.

        Raises CallerUnknown where callers are defined and no key of theirs was sent.
        """
        query_keys: list[bytes] = []
        if b"csq_key=" in target:
            query_keys, target = _take_query_keys(target)
        if not self._by_digest:
            return None, target
        for key in (*_field_keys(head), *query_keys):
            caller = self._find(key)
            if caller is not None:
                return caller, target
        raise CallerUnknown(
            "A key is needed: as the password (any user name), as a bearer token, as X-API-Key,"
            " or as the query parameter csq_key. Whoever runs the proxy has it, in [callers].",
            fields=_CHALLENGE,
        )

    def _find(self, key: bytes) -> Caller | None:
        digest = _digest(key)
        found = None
        for known, caller in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def _caller(name: str, configured: CallerSettings) -> Caller:
    projects = None if configured.projects is None else frozenset(configured.projects)
    return Caller(name, projects, configured.read_only)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _field_keys(head: RequestHead) -> Iterator[bytes]:
    for field in head.fields:
        if field.name == b"x-api-key":
            yield field.value
        elif field.name == b"authorization":
            scheme, _, credentials = field.value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield credentials.strip()
            elif scheme.lower() == b"basic":
                try:
                    pair = base64.b64decode(credentials.strip(), validate=True)
                except binascii.Error:
                    continue
                yield pair.partition(b":")[2]


def _take_query_keys(target: bytes) -> tuple[list[bytes], bytes]:
    """The keys in the query, and the target without them; nothing else of it changes."""
    path, _, query = target.partition(b"?")
    parts = query.split(b"&")
    left = [part for part in parts if not part.startswith(_QUERY_KEY)]
    keys = [
        unquote_to_bytes(part[len(_QUERY_KEY) :].replace(b"+", b" "))
        for part in parts
        if part.startswith(_QUERY_KEY)
    ]
    if not keys:
        return keys, target
    return keys, path + b"?" + b"&".join(left) if left else path
