"""Parsed heads of requests and answers. Made by `proxy.http1.parser`."""

from __future__ import annotations

from typing import Any, Final

from proxy.http1.fields import NO_OPTIONS, FieldLines, FieldNames

BODYLESS: Final = (204, 304)
"""The statuses of final answers that never have content (RFC 9110, section 6.4.1)."""


class FieldSection:
    """The meaning of a request's field lines. Requests with the same field lines share one section.

    The last attributes keep results of other modules that depend on these lines alone.
    """

    __slots__ = (
        "asks_for_method",
        "caller",
        "callers",
        "chunked",
        "connection",
        "content_length",
        "expects_continue",
        "fields",
        "guard",
        "hosts",
        "keep_alive",
        "leaks_version",
        "minor",
        "named",
        "raw",
        "to_upstream",
        "wants_trailers",
    )

    def __init__(self, raw: bytes, fields: FieldLines, minor: int) -> None:
        self.raw = raw
        self.fields = fields
        self.minor = minor
        self.hosts: list[bytes] = []
        self.connection: frozenset[bytes] = NO_OPTIONS
        """The lower-case options of ``Connection`` (RFC 9110, section 7.6.1)."""
        self.content_length: int | None = None
        self.chunked = self.expects_continue = self.wants_trailers = False
        self.keep_alive = False
        self.to_upstream: bytes | None = None
        """The field lines that go upstream; None until `proxy.gateway.rewrite` has made them."""
        self.leaks_version = -1
        """The `LeakSearch.version` that has found no secret in these lines; -1: none has searched them."""
        self.asks_for_method: bool | None = None
        """Whether a field or form may ask for another method; None until `proxy.gateway.policy` looks."""
        self.guard: object = None
        """The `proxy.gateway.guard.Guard` that finds nothing to refuse in these lines."""
        self.callers: object = None
        self.caller: Any = None
        """The caller of these lines by ``callers``, a `proxy.gateway.callers.Callers`."""
        self.named: tuple[bytes | None, bytes | None, bytes | None] | None = None
        """The answer of `proxy.gateway.route.named_by_fields`."""


class RequestHead:
    """A parsed request head; ``chunked`` and ``content_length`` (None where absent) are its framing.

    All attributes but ``method`` and ``target`` are those of its `FieldSection`.
    """

    __slots__ = (
        "chunked",
        "connection",
        "content_length",
        "expects_continue",
        "fields",
        "hosts",
        "keep_alive",
        "method",
        "minor",
        "section",
        "target",
        "wants_trailers",
    )

    def __init__(self, method: bytes, target: bytes, section: FieldSection) -> None:
        self.method = method
        self.target = target
        self.section = section
        self.minor = section.minor
        self.fields = section.fields
        self.hosts = section.hosts
        self.connection = section.connection
        self.content_length = section.content_length
        self.chunked = section.chunked
        self.keep_alive = section.keep_alive
        self.expects_continue = section.expects_continue
        self.wants_trailers = section.wants_trailers

    @classmethod
    def unreadable(cls) -> RequestHead:
        """Stands for a request head that can't be parsed."""
        return cls(b"", b"", FieldSection(b"", FieldLines(FieldNames([]), []), 1))


class ResponseHead:
    """A parsed response head. ``status_line`` is the line to send on: ``HTTP/1.1 200 OK``."""

    __slots__ = (
        "chunked",
        "connection",
        "content_length",
        "fields",
        "keep_alive",
        "minor",
        "status",
        "status_line",
    )

    def __init__(self, status: int, status_line: bytes, minor: int, fields: FieldLines) -> None:
        self.status = status
        self.status_line = status_line
        self.minor = minor
        self.fields = fields
        self.connection: frozenset[bytes] = NO_OPTIONS
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = False
