"""Reads a cloud's answers from the bytes of its connection, and decides their framing.

Sans-I/O: hands the parts of an answer to a `ResponseSink` as they arrive. Must not know sockets, pools or
the meaning of the bytes. Source: RFC 9112 (sections 6 and 7).
"""

from __future__ import annotations

from typing import Final, Protocol

from proxy.errors import ProtocolViolation, UpstreamError
from proxy.http1 import (
    BODYLESS,
    ChunkedDecoder,
    Field,
    FieldNames,
    ResponseHead,
    check_response_start,
    parse_response_head,
)

MAX_INFORMATIONAL: Final = 32

_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_UNTIL_CLOSE: Final = 3
_STOPPED: Final = 4

_REST: Final = "bytes after the end of the answer"


class ResponseSink(Protocol):
    """Receives an answer as it arrives. The calls come from the event loop and must not block."""

    def on_informational(self, head: ResponseHead) -> None:
        """An interim answer (1xx)."""

    def on_head(self, head: ResponseHead) -> None:
        """The final answer's head."""

    def on_body(self, data: bytes) -> None:
        """Content bytes, framing removed, codings untouched."""

    def on_end(self, trailers: list[Field]) -> None:
        """The answer is complete."""

    def on_failure(self, error: UpstreamError) -> None:
        """The answer will never be complete."""

    def on_flush(self) -> None:
        """The sink has all that has arrived so far; write now."""

    def on_writable(self, *, writable: bool) -> None:
        """The connection accepts no more request bytes for now (False), or accepts them again (True)."""


class ResponseParser:
    """Reads one answer after the other; `start` comes before each."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_informational",
        "_is_head_request",
        "_left",
        "_mode",
        "_names",
        "keep_alive",
        "trailers",
    )

    def __init__(self) -> None:
        self._mode = _STOPPED
        self._buffer = b""
        self._names: FieldNames | None = None
        """The field names of the last answer: most answers of one cloud have the same names."""
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._is_head_request = False
        self._informational = 0
        self.keep_alive = False
        """Whether the cloud keeps the connection open after this answer."""
        self.trailers: list[Field] = []
        """The trailer fields of the answer, once it is complete."""

    @property
    def awaits_head(self) -> bool:
        """Whether the final answer's head has not come yet."""
        return self._mode == _HEAD

    @property
    def ends_at_close(self) -> bool:
        """Whether only the end of the connection ends the answer (RFC 9112, section 6.3, item 8)."""
        return self._mode == _UNTIL_CLOSE

    def start(self, is_head_request: bool) -> None:
        """Get ready for the answer to the next request."""
        self._mode = _HEAD
        self._is_head_request = is_head_request
        self._informational = 0

    def stop(self) -> None:
        """Hand nothing more to the sink; the rest of the answer isn't wanted."""
        self._mode = _STOPPED
        self._buffer = b""
        self._decoder = None

    def feed(self, data: bytes, sink: ResponseSink) -> bool:
        """Hand the parts of the answer in ``data`` to the sink; whether the answer is complete now.

        Raises ProtocolViolation on an answer that RFC 9112 forbids, and on bytes after its end.
        """
        while self._mode == _HEAD:
            start = 0
            if self._buffer:
                start = max(0, len(self._buffer) - 3)
                data = self._buffer + data
            end = data.find(b"\r\n\r\n", start)
            if end < 0:
                check_response_start(data, len(self._buffer))
                self._buffer = data
                return False
            self._buffer = b""
            head = parse_response_head(data[:end], self._names)
            self._names = head.fields.names
            data = data[end + 4 :]
            if head.status < 200:
                self._check_informational(head)
                sink.on_informational(head)
            else:
                self._decide_framing(head)
                sink.on_head(head)
                if not data and (self._left or self._mode != _LENGTH):
                    return False
        if self._mode == _LENGTH:
            size, left = len(data), self._left
            if size < left:
                self._left = left - size
                sink.on_body(data)
                return False
            self._left = 0
            if left:
                sink.on_body(data if size == left else data[:left])
            if size > left:
                raise ProtocolViolation(_REST)
            return True
        if self._mode == _CHUNKED:
            decoder = self._decoder
            assert decoder is not None  # noqa: S101 - set with the mode
            content = decoder.feed(data)
            if content:
                sink.on_body(content)
            self.trailers = decoder.trailers
            if decoder.rest:
                raise ProtocolViolation(_REST)
            return decoder.done
        if self._mode == _UNTIL_CLOSE:
            sink.on_body(data)
        return False

    def _check_informational(self, head: ResponseHead) -> None:
        self._informational += 1
        if head.status == 101 or self._informational > MAX_INFORMATIONAL:
            raise ProtocolViolation(
                "a switch of protocols without a request for it, or too many interim answers"
            )

    def _decide_framing(self, head: ResponseHead) -> None:
        """RFC 9112, section 6.3."""
        self.keep_alive = head.keep_alive
        self.trailers = []
        self._left = 0
        self._mode = _LENGTH
        if self._is_head_request or head.status in BODYLESS:
            return
        if head.chunked:
            self._mode, self._decoder = _CHUNKED, ChunkedDecoder()
        elif head.content_length is not None:
            self._left = head.content_length
        else:
            self._mode = _UNTIL_CLOSE
            self.keep_alive = False
