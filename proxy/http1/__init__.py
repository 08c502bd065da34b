"""HTTP/1.1 message syntax (RFC 9112), without sockets.

`fields` are the lines of a head, `heads` the parsed heads, `parser` makes them, `chunked` is the framing,
`dates` are HTTP's dates.
"""

from proxy.http1.chunked import ChunkedDecoder, chunk, last_chunk
from proxy.http1.dates import date_now, parse_date
from proxy.http1.fields import METHOD_OVERRIDES, TARGET_OVERRIDES, Field, FieldLines, FieldNames
from proxy.http1.heads import BODYLESS, FieldSection, RequestHead, ResponseHead
from proxy.http1.parser import (
    MAX_HEAD_BYTES,
    check_request_start,
    check_response_start,
    parse_request_head,
    parse_response_head,
)

__all__ = [
    "BODYLESS",
    "MAX_HEAD_BYTES",
    "METHOD_OVERRIDES",
    "TARGET_OVERRIDES",
    "ChunkedDecoder",
    "Field",
    "FieldLines",
    "FieldNames",
    "FieldSection",
    "RequestHead",
    "ResponseHead",
    "check_request_start",
    "check_response_start",
    "chunk",
    "date_now",
    "last_chunk",
    "parse_date",
    "parse_request_head",
    "parse_response_head",
]
