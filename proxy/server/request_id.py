"""The ids by which several programs' logs name one request: ``X-Request-Id`` and ``traceparent``.

A caller's id is used if it is valid. Both fields are forwarded unchanged, like any other field.
Source: W3C Trace Context, section 3.2.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Final

from proxy.http1 import RequestHead
from proxy.server.request import Request

_LONGEST_ID: Final = 128
_SANE: Final = bytes(code for code in range(0x21, 0x7F) if chr(code) not in "\"'\\")
"""Visible ASCII without quotes and backslash, since an id stands in logs, in JSON and in a field."""
_TRACEPARENT_LENGTH: Final = 55
_HEXADECIMAL: Final = b"0123456789abcdef"
_DASH: Final = ord("-")
_NO_TRACE: Final = b"0" * 32
_NO_PARENT: Final = b"0" * 16
_process = secrets.token_hex(4)
_numbers = itertools.count(1)


def request_id(request: Request) -> str:
    """The caller's id if it is valid, else an id of the proxy's, unique over restarts; made once."""
    facts = request.facts
    if facts.request_id is None:
        facts.request_id = sent_id(request) or f"{_process}-{next(_numbers)}"
    return facts.request_id


def sent_id(request: Request) -> str | None:
    """The caller's id; None where it sent no valid one."""
    given = request.head.fields.only(b"x-request-id")
    if given is None or not 0 < len(given) <= _LONGEST_ID or given.translate(None, _SANE):
        return None
    return given.decode("ascii")


def trace_id(head: RequestHead) -> str | None:
    """The id of the caller's trace; None without a valid ``traceparent``."""
    value = head.fields.only(b"traceparent")
    if value is None:
        return None
    known = value[:_TRACEPARENT_LENGTH]
    if len(known) < _TRACEPARENT_LENGTH or known.translate(None, _HEXADECIMAL) != b"---":
        return None
    if not known[2] == known[35] == known[52] == _DASH:
        return None
    version, trace = known[:2], known[3:35]
    if version == b"ff" or trace == _NO_TRACE or known[36:52] == _NO_PARENT:
        return None
    if len(value) > _TRACEPARENT_LENGTH and (version == b"00" or value[_TRACEPARENT_LENGTH] != _DASH):
        return None  # only later versions allow more after it
    return trace.decode("ascii")
