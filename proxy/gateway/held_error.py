"""A small JSON error of the cloud, whose ``errorCode`` is wanted.

Only this module reads an answer's content, and only of 4xx and 5xx answers whose Content-Type is JSON: never
of good answers, and never more than `LIMIT_BYTES`.
"""

from __future__ import annotations

import json
import zlib

from proxy.http1 import ResponseHead

LIMIT_BYTES = 4096


class HeldError:
    """The content of one error answer, as it arrives."""

    __slots__ = ("_bytes", "_gzipped")

    def __init__(self, *, gzipped: bool) -> None:
        self._bytes = b""
        self._gzipped = gzipped

    @classmethod
    def of(cls, head: ResponseHead) -> HeldError | None:
        """For an answer that may be such an error; None if it is too long, not JSON, or has a coding."""
        if head.content_length is not None and head.content_length > LIMIT_BYTES:
            return None
        if head.content_length is None and not head.chunked:
            return None
        is_json = gzipped = False
        for name, value, _ in head.fields:
            if name == b"content-type":
                is_json = b"json" in value.lower()
            elif name == b"content-encoding":
                if value.lower() != b"gzip":
                    return None
                gzipped = True
        return cls(gzipped=gzipped) if is_json else None

    def feed(self, data: bytes) -> bool:
        """Add content; False once it is too long to be held."""
        self._bytes += data
        return len(self._bytes) <= LIMIT_BYTES

    def error_code(self) -> str | None:
        """The ``errorCode`` of the whole content, None where there is none."""
        content = self._bytes
        try:
            if self._gzipped:
                content = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, LIMIT_BYTES)
            value = json.loads(content)
        except (ValueError, RecursionError, zlib.error):
            return None
        code = value.get("errorCode") if isinstance(value, dict) else None
        return code if isinstance(code, str) else None
