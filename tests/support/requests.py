"""Requests that have ended, as the measures count them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from proxy.http1 import parse_request_head
from proxy.server.body import RequestBody
from proxy.server.request import Request


def request(status: int = 200, method: bytes = b"GET", **rest: object) -> Request:
    connection: Any = SimpleNamespace(transport=SimpleNamespace(is_closing=lambda: False))
    body = RequestBody(connection)
    body.received, body.complete = 3, True
    made = Request(parse_request_head(method + b" / HTTP/1.1\r\nHost: x"), body, connection)
    made.status, made.answer_bytes = status, 7
    for name, value in rest.items():
        setattr(made.facts, name, value)
    return made
