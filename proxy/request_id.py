"""Which request is which, in the logs of several programs: ``X-Request-Id`` and ``traceparent``.

A caller's own are taken where they are sane, and go upstream as they came like any other field.
Source: W3C Trace Context, section 3.2.
"""

from __future__ import annotations

import itertools
import re
import secrets

from proxy.http1 import RequestHead
from proxy.request import Request

_SANE = re.compile(rb"[!#-&(-\[\]-~]{1,128}\Z")
"""Visible ASCII without quotes and backslash: it goes into logs, JSON and a field of ours."""
# What may follow is for later versions than 00 to say.
_TRACEPARENT = re.compile(
    rb"(?!ff)(?:00|(?!00)([0-9a-f]{2}))-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?(1)(?:-.*)?)\Z"
)
_process = secrets.token_hex(4)
_numbers = itertools.count(1)


def request_id(request: Request) -> str:
    """The caller's where it is sane, else one of ours, unique over restarts; the same at every call."""
    if request.request_id is None:
        given = request.head.fields.values(b"x-request-id")
        if len(given) == 1 and _SANE.match(given[0]):
            request.request_id = given[0].decode("ascii")
        else:
            request.request_id = f"{_process}-{next(_numbers)}"
    return request.request_id


def trace_id(head: RequestHead) -> str | None:
    """The caller's trace, None where there is none or ``traceparent`` isn't valid."""
    given = head.fields.values(b"traceparent")
    if len(given) != 1:
        return None
    match = _TRACEPARENT.match(given[0])
    return match[2].decode("ascii") if match else None
