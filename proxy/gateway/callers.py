"""Callers and their keys: which caller sent a request, and the caller's rights.

Keys are held as SHA-256 digests and compared in constant time. A key comes as a bearer token (also within
a placeholder token), as Basic (any user name, the key as password), as X-API-Key, or as the query parameter
``csq_key``; no key is forwarded.
Sources: RFC 6750, section 2; RFC 7617.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus, unquote_to_bytes

from proxy.admin.admin import PREFIX
from proxy.config.settings import CallerSettings
from proxy.errors import BadRequest, CallerUnknown
from proxy.gateway.placeholder import parse
from proxy.http1 import Field, RequestHead
from proxy.server.answer import Fields

FREE_TRIES = 10
"""Wrong keys that are answered without a delay; the same number is forgiven in ``FORGIVEN_S``."""
FORGIVEN_S = 60.0
DELAY_STEP_S = 0.2
LONGEST_DELAY_S = 2.0
MOST_PEERS = 1024
MOST_CREDENTIALS = 8
"""In one request: more of them would let a request without a key cost much CPU time."""

_QUERY_KEY = b"csq_key="
_KEY_FIELDS = (b"authorization", b"x-api-key")
_CHALLENGE = ((b"WWW-Authenticate", b'Basic realm="csq-proxy", charset="UTF-8"'),)
_PAGE_CHALLENGE = ((b"WWW-Authenticate", b'Basic realm="csq-proxy page", charset="UTF-8"'),)
"""A realm of its own: a browser keeps the key that was typed for the page, and a link of another site over
plain http must not send that key with a call (RFC 7617, section 2.2)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller and its rights. ``projects``: names of projects and accounts; None: all of them."""

    name: str
    projects: frozenset[str] | None
    read_only: bool

    @property
    def is_limited(self) -> bool:
        """Whether this caller may not do all that there is."""
        return self.read_only or self.projects is not None

    def may_use(self, project: str) -> bool:
        """Whether this caller may use a project (or, for ``acme/42``, its account)."""
        return self.projects is None or project in self.projects or project.partition("/")[0] in self.projects


class WrongKey(CallerUnknown):
    """The key of the request belongs to no caller."""


class WrongKeys:
    """Delays for answers to wrong keys, so that keys can't be guessed fast.

    Each peer's wrong keys are counted, and forgiven over time. A right key never waits, so that one peer
    can't lock out others with the same address. A request without a key doesn't wait, either: browsers and
    BI tools send one first, to learn that a key is needed.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many, and when; latest last

    def __len__(self) -> int:
        return len(self._counts)

    def delay_s(self, peer: str) -> float:
        """Count a wrong key of this address ("" for none); the seconds that its answer has to wait."""
        peer, now = _network(peer), self._now()
        count, at = self._counts.pop(peer, (0.0, now))
        count = max(0.0, count - (now - at) * FREE_TRIES / FORGIVEN_S) + 1
        delay_s = min(LONGEST_DELAY_S, DELAY_STEP_S * (count - FREE_TRIES))
        self._counts[peer] = min(count, FREE_TRIES + LONGEST_DELAY_S / DELAY_STEP_S), now
        if len(self._counts) > MOST_PEERS:
            self._counts.popitem(last=False)
        return max(0.0, delay_s)


def _network(peer: str) -> str:
    """The address; for IPv6 its /64, in which one host may use all addresses (RFC 4291, section 2.5.4)."""
    if ":" not in peer:
        return peer
    try:
        return str(ipaddress.ip_network((peer.partition("%")[0], 64), strict=False))
    except ValueError:
        return peer


class Callers:
    """The configured callers; if there are none, every request is accepted."""

    def __init__(self, configured: Mapping[str, CallerSettings]) -> None:
        self._by_digest = [
            (_digest(caller.key.get_secret_value().encode()), _caller(name, caller))
            for name, caller in configured.items()
        ]

    def identify(self, head: RequestHead, target: bytes) -> tuple[Caller | None, bytes]:
        """The caller (None where no callers are defined), and the target without a key in it.

        Raises BadRequest for too many keys, and CallerUnknown where callers are defined and no key of
        theirs was sent.
        """
        section, has_key = head.section, target.partition(_QUERY_KEY)[1]  # `find` takes twice as long
        if not has_key:
            if section.callers is self:
                return section.caller, target
            if not self._by_digest:
                return None, target
        keys, target = sent_keys(head, target)
        challenge = _PAGE_CHALLENGE if target.startswith(PREFIX) else _CHALLENGE
        caller = self.of_keys(keys, challenge)[0]
        if not has_key:
            section.callers, section.caller = self, caller
        return caller, target

    def of_keys(
        self, keys: Iterable[bytes], challenge: Fields = _CHALLENGE
    ) -> tuple[Caller | None, str | None]:
        """The caller with one of these keys, and that key; None, None where no callers are defined.

        Raises CallerUnknown as `identify` does.
        """
        if not self._by_digest:
            return None, None
        keys = [key for key in dict.fromkeys(keys) if key]  # each is compared once
        for key in keys:
            caller = self._find(key)
            if caller is not None:
                return caller, key.decode()
        if keys:
            raise WrongKey(
                "The request's key is none of [callers] in the proxy's configuration: send the whole key of a"
                " caller, as it stands there or in its key_file.",
                fields=challenge,
            )
        raise CallerUnknown(
            "A key is needed: as the password (any user name), as a bearer token, as X-API-Key,"
            " or as the query parameter csq_key. The keys are in [callers] of the proxy's configuration.",
            fields=challenge,
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


def sent_keys(head: RequestHead, target: bytes) -> tuple[list[bytes], bytes]:
    """All keys of a request, from its fields and its query, and its target without a key.

    Raises BadRequest where the request has more than `MOST_CREDENTIALS`.
    """
    in_query, fields = target.count(_QUERY_KEY), head.fields.among(_KEY_FIELDS)
    if in_query + len(fields) > MOST_CREDENTIALS:
        raise BadRequest(f"The request has more than {MOST_CREDENTIALS} credentials; send one key.")
    query_keys, target = _take_query_keys(target) if in_query else ([], target)
    return [*_field_keys(fields), *query_keys], target


def _field_keys(fields: Iterable[Field]) -> Iterator[bytes]:
    for field in fields:
        if field.name == b"x-api-key":
            yield field.value
        else:
            scheme, _, credentials = field.value.partition(b" ")
            if scheme.lower() == b"bearer":
                token = credentials.strip()
                yield token
                if (placeholder := parse(token)) is not None:
                    yield placeholder.key
            elif scheme.lower() == b"basic" and (pair := _pair(credentials)) is not None:
                password = pair[1]
                yield password
                if b"%" in password or b"+" in password:  # OAuth clients encode it (RFC 6749, section 2.3.1)
                    yield unquote_to_bytes(password.replace(b"+", b" "))


def _pair(credentials: bytes) -> tuple[bytes, bytes] | None:
    """The user name and the password of Basic (RFC 7617, section 2); None where they can't be read."""
    try:
        user, _, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except binascii.Error:
        return None
    return user, password


def client_id_of_basic(head: RequestHead) -> str | None:
    """The client of HTTP Basic, decoded as RFC 6749, section 2.3.1 says; None if there is none."""
    for value in head.fields.values(b"authorization"):
        scheme, _, credentials = value.partition(b" ")
        if scheme.lower() == b"basic" and (pair := _pair(credentials)) is not None:
            return unquote_plus(pair[0].decode("latin-1"))
    return None


def _spellings(value: bytes) -> Iterable[bytes]:
    """The keys that a parameter's value may be: as it should be coded, or with a raw ``+`` or ``%``."""
    return dict.fromkeys((unquote_to_bytes(value.replace(b"+", b" ")), unquote_to_bytes(value), value))


def _take_query_keys(target: bytes) -> tuple[list[bytes], bytes]:
    """The keys in the query, and the target without them, otherwise unchanged."""
    path, _, query = target.partition(b"?")
    parts = query.split(b"&")
    left = [part for part in parts if not part.startswith(_QUERY_KEY)]
    keys = [
        key for part in parts if part.startswith(_QUERY_KEY) for key in _spellings(part[len(_QUERY_KEY) :])
    ]
    if not keys:
        return keys, target
    return keys, path + b"?" + b"&".join(left) if left else path
