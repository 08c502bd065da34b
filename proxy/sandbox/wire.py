"""The shape of a call and of an answer, shared by every simulated API.

Hides aiohttp's low-level server from the modules that know the vendor's answers: they get a
`Call`, and return a response or raise `Fault`. Knows no API, no token and no project rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import HttpVersion11, web

from proxy.sandbox.options import DemoProject

MAX_JSON_BYTES = 16 * 1024 * 1024

BAD_REQUEST = "BAD_REQUEST"
NOT_FOUND = "NOT_FOUND"
FORBIDDEN = "FORBIDDEN"

_LINGER = struct.Struct("hh" if sys.platform == "win32" else "ii")


class Fault(Exception):
    """Becomes an error answer: ``{"success": false, "errorMessage": ..., "errorCode": ...}``."""

    def __init__(self, status: int, code: str, message: str, *, fields: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fields = fields

    def response(self) -> web.Response:
        """The answer to send."""
        return json_answer(
            {"success": False, "errorMessage": self.message, "errorCode": self.code},
            status=self.status,
            fields=self.fields,
        )


def bad_request(message: str) -> Fault:
    """A 400: the request's parameters or body are wrong."""
    return Fault(400, BAD_REQUEST, message)


def not_found(message: str) -> Fault:
    """A 404: no such path, or no such object in this project."""
    return Fault(404, NOT_FOUND, message)


def forbidden(message: str) -> Fault:
    """A 403: the token isn't good for this."""
    return Fault(403, FORBIDDEN, message)


@dataclass(slots=True)
class Call:
    """One authorized request; ``path`` holds the path's parameters, ``query`` the query's, decoded."""

    request: web.BaseRequest
    project: DemoProject
    path: Mapping[str, str]
    reset_in_body: bool = False

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters; of a repeated one the first."""
        return self.request.query

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object, empty for an empty body, whatever its Content-Type says."""
        return await read_json(self.request)


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Router:
    """Finds handlers by method and path; in ``/v1/exports/{job_id}`` the parameter is one segment."""

    def __init__(self) -> None:
        self._routes: list[tuple[re.Pattern[str], dict[str, Handler]]] = []
        self._by_pattern: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Where two patterns fit a path, the one added first wins."""
        methods = self._by_pattern.get(pattern)
        if methods is None:
            methods = self._by_pattern[pattern] = {}
            expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
            self._routes.append((re.compile(expression), methods))
        methods[method] = handler

    def find(self, method: str, path: str) -> tuple[Handler, Mapping[str, str]]:
        """The handler and the path's parameters; Fault 404 or 405. HEAD is answered as GET."""
        for pattern, methods in self._routes:
            match = pattern.fullmatch(path)
            if not match:
                continue
            handler = methods.get("GET" if method == "HEAD" else method)
            if handler is None:
                allow = {"Allow": ", ".join(sorted(methods))}
                raise Fault(405, "METHOD_NOT_ALLOWED", f"{method} is not allowed here.", fields=allow)
            return handler, match.groupdict()
        raise not_found(f"Cannot {method} {path}")


def json_answer(
    content: object, *, status: int = 200, fields: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON response without an envelope."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return web.Response(
        body=body, status=status, headers=fields, content_type="application/json", charset="utf-8"
    )


def success(payload: object, *, status: int = 200) -> web.Response:
    """The vendor's envelope: ``{"success": true, "payload": ...}``."""
    return json_answer({"success": True, "payload": payload}, status=status)


def ask_for_body(request: web.BaseRequest) -> None:
    """Answers ``Expect: 100-continue`` (RFC 9110, section 10.1.1); to be called before the body is read."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def read_form(request: web.BaseRequest) -> dict[str, Any]:
    """The request's body as a form, of a repeated name the last value. Raises Fault 413."""
    return dict(parse_qsl((await _read(request)).decode(errors="replace")))


async def read_json(request: web.BaseRequest) -> dict[str, Any]:
    """The request's body as a JSON object, empty for an empty body. Raises Fault 400 or 413."""
    body = await _read(request)
    if not body.strip():
        return {}
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("The request body is not valid JSON.") from None
    if not isinstance(content, dict):
        raise bad_request("The request body must be a JSON object.")
    return content


async def _read(request: web.BaseRequest) -> bytearray:
    ask_for_body(request)
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise Fault(413, "PAYLOAD_TOO_LARGE", "The request body is too large.")
    return body


Pieces = Iterable[bytes | memoryview]


async def send_pieces(
    request: web.BaseRequest,
    pieces: Pieces,
    *,
    status: int = 200,
    content_type: str,
    length: int | None = None,
    fields: Mapping[str, str] | None = None,
    reset_in_body: bool = False,
    cut_after: int | None = None,
) -> web.StreamResponse:
    """Sends pieces as they come: with Content-Length if ``length`` (bytes) is given, else chunked.

    With ``reset_in_body`` the connection is reset after the first piece. With ``cut_after`` it is closed
    after that many bytes of content, where there are more.
    """
    response = web.StreamResponse(status=status, headers=fields)
    response.content_type = content_type
    if length is not None:
        response.content_length = length
    elif request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    for piece in pieces:
        if cut_after is not None and len(piece) > cut_after:
            await response.write(piece[:cut_after])
            close(request)
            return response
        await response.write(piece)
        cut_after = None if cut_after is None else cut_after - len(piece)
        # Making pieces costs time: let other requests in, also when the reader is fast.
        await asyncio.sleep(0)
        if reset_in_body:
            reset(request)
            return response
    await response.write_eof()
    return response


async def send_half_then_reset(request: web.BaseRequest, response: web.Response) -> web.StreamResponse:
    """Announces the whole body, sends half of it, resets the connection."""
    body = response.body if isinstance(response.body, bytes) else b""
    cut = web.StreamResponse(status=response.status, headers=response.headers)
    cut.content_length = len(body)
    await cut.prepare(request)
    await cut.write(body[: len(body) // 2])
    reset(request)
    return cut


def close(request: web.BaseRequest) -> None:
    """Ends the connection once all that was written is sent."""
    if request.transport is not None:
        request.transport.close()


def reset(request: web.BaseRequest) -> None:
    """Ends the connection with a TCP reset where the platform allows it, else abruptly."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        # Without lingering, close() of a socket is a RST (SO_LINGER in socket(7)).
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
    transport.abort()
