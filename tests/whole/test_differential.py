"""The same bytes sent straight to a cloud, through this proxy, and through nginx: each difference is listed.

`differences` holds, by a row's name, how each way's outcome differs from the straight one, and why. What
always differs is left out: the proxy (and nginx, told to) writes Host and Authorization, the proxy appends
Via, Date where there is none, and how long it keeps the connection, nginx writes Date, Server and Connection
into each answer. A difference that is not listed fails, and so does a listed one that is gone. nginx is a
second opinion, not a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog
from support.differences import ANSWERS_HERE, ANSWERS_NGINX, REQUESTS_HERE, REQUESTS_NGINX
from support.harness import KEPT, WAIT_S, free_port, gateway
from support.strict import Malformed, Parsed, parse_request, parse_response

from proxy.upstream.loop import VIA_NAME

HERE = re.compile(rf"\+Via: 1\.1 {VIA_NAME.decode()}|\+Authorization: Bearer token-\d+")
"""Lines that always differ behind this proxy; Host and nginx's own fields are left out by name.

An answer that breaks off makes the proxy fetch a new token: it may be another one in the rows that follow.
"""
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
KNOWN_NGINX = "nginx/1.22."
"""The nginx (Debian 12) whose differences are listed; another version is not compared."""

CONFIG = """
daemon off; master_process off; pid {tmp}/nginx.pid; error_log stderr crit;
events {{ worker_connections 128; }}
http {{
  access_log off;
  client_body_temp_path {tmp}/body; proxy_temp_path {tmp}/proxy; fastcgi_temp_path {tmp}/fastcgi;
  uwsgi_temp_path {tmp}/uwsgi; scgi_temp_path {tmp}/scgi;
  upstream cloud {{ server 127.0.0.1:{cloud}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    lingering_close off;
    location / {{
      proxy_pass http://cloud;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host "127.0.0.1:{cloud}";
      proxy_set_header Authorization "Bearer token-1";
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_next_upstream off;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Row:
    """One exchange. ``answer`` is what the cloud says; ``ends`` means that it closes after that."""

    name: str
    request: bytes
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    ends: bool = False
    half_close: bool = False


def asks(name: str, start: bytes, *lines: bytes, body: bytes = b"", half_close: bool = False) -> Row:
    """A request; ``start`` gets a version and Host where it has none."""
    start = start if b" HTTP/" in start else start + b" HTTP/1.1"
    if not any(line.lower().startswith(b"host") for line in lines):
        lines = (b"Host: @HOST@", *lines)
    return Row(name, b"\r\n".join((start, *lines, b"", body)), half_close=half_close)


def says(name: str, answer: bytes, *, ends: bool = False, method: bytes = b"GET", lines: bytes = b"") -> Row:
    """An answer to a plain request."""
    request = b"%b /v1/x HTTP/1.1\r\nHost: @HOST@\r\n%b\r\n" % (method, lines)
    return Row(name, request, answer.replace(b"\n", b"\r\n") if b"\r" not in answer else answer, ends=ends)


CHUNKED = b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

REQUESTS = [
    asks("plain", b"GET /v1/x"),
    asks(
        "order and case of fields",
        b"GET /v1/x",
        b"X-b: 1",
        b"x-A: 2",
        b"X-B: 3",
        b"Accept: */*",
        b"ACCEPT: x",
    ),
    asks("empty value", b"GET /v1/x", b"X-Empty:", b"X-Blank: "),
    asks("blanks around a value", b"GET /v1/x", b"X-Blanks: \t a  b \t"),
    asks("no blank before a value", b"GET /v1/x", b"X-Tight:a"),
    asks("bytes above 0x7f in a value", b"GET /v1/x", b"X-Latin: \xe9\xff", "X-Utf8: ü".encode()),
    asks("odd characters in a name", b"GET /v1/x", b"X!#$%&'*+.^_`|~: 1"),
    asks("underscore in a name", b"GET /v1/x", b"X_Under: 1"),
    asks("a field of 8 KiB", b"GET /v1/x", b"X-Long: " + b"a" * 8192),
    asks("100 fields", b"GET /v1/x", *(b"X-%d: %d" % (n, n) for n in range(100))),
    asks("cookies", b"GET /v1/x", b"Cookie: a=1", b"Cookie: b=2"),
    asks(
        "connection and what it names",
        b"GET /v1/x",
        b"Connection: keep-alive, X-Gone",
        b"X-Gone: 1",
        b"X-Stays: 1",
    ),
    asks("connection close", b"GET /v1/x", b"Connection: close"),
    asks(
        "connection names content-length",
        b"POST /v1/x",
        b"Connection: content-length",
        b"Content-Length: 2",
        body=b"hi",
    ),
    asks(
        "connection names authorization",
        b"GET /v1/x",
        b"Connection: Authorization, Host",
        b"Authorization: mine",
    ),
    asks(
        "keep-alive and proxy-connection",
        b"GET /v1/x",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
    ),
    asks("proxy-authorization", b"GET /v1/x", b"Proxy-Authorization: Basic eDp5"),
    asks("te with trailers", b"GET /v1/x", b"TE: trailers, deflate;q=0.5", b"Connection: TE"),
    asks(
        "upgrade", b"GET /v1/x", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"
    ),
    asks(
        "h2c upgrade",
        b"GET /v1/x",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAA",
        b"Connection: Upgrade, HTTP2-Settings",
    ),
    asks("via of another gateway", b"GET /v1/x", b"Via: 1.1 before"),
    asks(
        "authorization of the caller",
        b"GET /v1/x",
        b"Authorization: Basic eDp5",
        b"authorization: Bearer mine",
    ),
    asks("forwarded fields", b"GET /v1/x", b"X-Forwarded-For: 1.2.3.4", b"Forwarded: for=1.2.3.4"),
    asks("conditional and range", b"GET /v1/x", b'If-None-Match: "a"', b"Range: bytes=0-1", b"If-Range: x"),
    asks("codings asked for", b"GET /v1/x", b"Accept-Encoding: br;q=0, zstd", b"Accept-Charset: x"),
    asks("escapes in both cases", b"GET /v1/%7e%7E%2f%2F%c3%a9?x=%7e&y=%2f"),
    asks("a lone question mark", b"GET /v1/x?"),
    asks("question marks and slashes in the query", b"GET /v1/x?a=?b/../c&&=//"),
    asks("double slashes", b"GET /v1//x///y"),
    asks("brackets, braces and bars", b"GET /v1/[x]{y}|z?q[]={}|^`\\"),
    asks("plus and semicolons", b"GET /v1/a+b;p=1;q?c+d;e"),
    asks("an escaped NUL", b"GET /v1/%00"),
    asks("an escaped percent sign", b"GET /v1/%25%32%66"),
    asks("a malformed escape", b"GET /v1/%zz%"),
    asks("bytes above 0x7f in the target", b"GET /v1/\xc3\xa9?\xff"),
    asks("a fragment", b"GET /v1/x#frag"),
    asks("a target of 6 KiB", b"GET /v1/x?" + b"a" * 6144),
    asks("dot segments within", b"GET /v1/a/./b/../c"),
    asks("escaped dot segments within", b"GET /v1/a/%2e%2e/c"),
    asks("dot segments to the root", b"GET /v1/../x"),
    asks("dot segments beyond the root", b"GET /../../x"),
    asks("absolute-form of the listener", b"GET http://@HOST@/v1/x?y"),
    asks("absolute-form without a path", b"GET http://@HOST@"),
    asks("absolute-form of another host", b"GET http://evil.example/v1/x"),
    asks("a target without a slash", b"GET v1/x"),
    asks("an authority as target", b"GET @evil.example/v1"),
    asks("options *", b"OPTIONS *"),
    asks("options", b"OPTIONS /v1/x", b"Access-Control-Request-Method: PUT"),
    asks("options with max-forwards", b"OPTIONS /v1/x", b"Max-Forwards: 5"),
    asks("options with max-forwards 0", b"OPTIONS /v1/x", b"Max-Forwards: 0"),
    asks("trace", b"TRACE /v1/x"),
    asks("connect", b"CONNECT evil.example:443"),
    asks("head", b"HEAD /v1/x"),
    asks("an unknown method", b"X-CUSTOM /v1/x"),
    asks("query", b"QUERY /v1/x", b"Content-Length: 2", body=b"{}"),
    asks("a method in lower case", b"get /v1/x"),
    asks("get with content", b"GET /v1/x", b"Content-Length: 5", body=b"hello"),
    asks("delete with content", b"DELETE /v1/x", b"Content-Length: 5", body=b"hello"),
    asks("post without framing", b"POST /v1/x"),
    asks("post of length 0", b"POST /v1/x", b"Content-Length: 0"),
    asks("a length with zeros before", b"POST /v1/x", b"Content-Length: 0002", body=b"hi"),
    asks(
        "coded content", b"POST /v1/x", b"Content-Encoding: gzip", b"Content-Length: 5", body=b"\x1f\x8bxyz"
    ),
    asks("chunked", b"POST /v1/x", CHUNKED, body=HELLO),
    asks("chunked in capitals", b"POST /v1/x", b"TRANSFER-ENCODING: CHUNKED", body=HELLO),
    asks("chunked and empty", b"POST /v1/x", CHUNKED, body=b"0\r\n\r\n"),
    asks("chunk extensions", b"POST /v1/x", CHUNKED, body=b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n'),
    asks("a blank before a chunk extension", b"POST /v1/x", CHUNKED, body=b"5 ;a\r\nhello\r\n0\r\n\r\n"),
    asks("zeros before a chunk size", b"POST /v1/x", CHUNKED, body=b"0005\r\nhello\r\n000\r\n\r\n"),
    asks(
        "trailers",
        b"POST /v1/x",
        CHUNKED,
        b"Trailer: X-T",
        body=b"5\r\nhello\r\n0\r\nX-T: 1\r\nx-t: 2\r\n\r\n",
    ),
    asks("a length among the trailers", b"POST /v1/x", CHUNKED, body=b"0\r\nContent-Length: 9\r\n\r\n"),
    asks("expect", b"POST /v1/x", b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
    asks("expect without content", b"GET /v1/x", b"Expect: 100-continue"),
    asks("another expectation", b"GET /v1/x", b"Expect: the-unexpected"),
    asks("http/1.0", b"GET /v1/x HTTP/1.0"),
    asks("http/1.0 without host", b"GET /v1/x HTTP/1.0", b"Hostage: 1"),
    asks("http/1.0 with keep-alive", b"GET /v1/x HTTP/1.0", b"Connection: keep-alive"),
    asks("http/1.0 with content", b"POST /v1/x HTTP/1.0", b"Content-Length: 2", body=b"hi"),
    asks(
        "http/1.0 with expect",
        b"POST /v1/x HTTP/1.0",
        b"Expect: 100-continue",
        b"Content-Length: 2",
        body=b"hi",
    ),
    asks("http/1.0 chunked", b"POST /v1/x HTTP/1.0", CHUNKED, body=HELLO),
    asks("http/1.2", b"GET /v1/x HTTP/1.2"),
    asks("http/2.0", b"GET /v1/x HTTP/2.0"),
    asks("empty lines first", b"\r\n\r\nGET /v1/x"),
    asks("half-closed", b"GET /v1/x", half_close=True),
    asks("cut content", b"POST /v1/x", b"Content-Length: 9", body=b"hello", half_close=True),
    asks("cut chunks", b"POST /v1/x", CHUNKED, body=b"5\r\nhel", half_close=True),
    asks("no host", b"GET /v1/x", b"Hosts: x", b"x-not-host: 1"),
    Row("no host at all", b"GET /v1/x HTTP/1.1\r\n\r\n"),
    asks("two hosts", b"GET /v1/x", b"Host: @HOST@", b"Host: @HOST@"),
    asks("an empty host", b"GET /v1/x", b"Host:"),
    asks("a foreign host", b"GET /v1/x", b"Host: evil.example"),
    asks("a host with user information", b"GET /v1/x", b"Host: x@@HOST@"),
    asks("a malformed host", b"GET /v1/x", b"Host: a b"),
    asks("length and coding", b"POST /v1/x", b"Content-Length: 5", CHUNKED, body=HELLO),
    asks("two equal lengths", b"POST /v1/x", b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    asks("two lengths", b"POST /v1/x", b"Content-Length: 5", b"Content-Length: 6", body=b"hello!"),
    asks("a list as length", b"POST /v1/x", b"Content-Length: 5, 5", body=b"hello"),
    asks("a signed length", b"POST /v1/x", b"Content-Length: +5", body=b"hello"),
    asks("a negative length", b"POST /v1/x", b"Content-Length: -5", body=b"hello"),
    asks("an empty length", b"POST /v1/x", b"Content-Length:"),
    asks("an empty coding", b"POST /v1/x", b"Transfer-Encoding:", b"Content-Length: 5", body=b"hello"),
    asks("an unknown coding", b"POST /v1/x", b"Transfer-Encoding: gzip, chunked", body=HELLO),
    asks("identity", b"POST /v1/x", b"Transfer-Encoding: identity", b"Content-Length: 5", body=b"hello"),
    asks("two codings", b"POST /v1/x", CHUNKED, CHUNKED, body=HELLO),
    asks("a blank before the colon", b"POST /v1/x", b"Content-Length : 5", body=b"hello"),
    asks("a blank before a name", b"GET /v1/x", b" X-Y: 1"),
    asks("a folded field", b"GET /v1/x", b"X-Fold: a\r\n b"),
    asks("a field without a colon", b"GET /v1/x", b"nonsense"),
    asks("a field without a name", b"GET /v1/x", b": x"),
    asks("a bare LF between fields", b"GET /v1/x", b"X-A: 1\nX-B: 2"),
    asks("a bare CR in a value", b"GET /v1/x", b"X-A: 1\rX-B: 2"),
    asks("NUL in a value", b"GET /v1/x", b"X-A: 1\x002"),
    asks("a control character in a value", b"GET /v1/x", b"X-A: 1\x012"),
    asks("a control character in a name", b"GET /v1/x", b"X\x01A: 1"),
    asks("two blanks in the request line", b"GET  /v1/x"),
    asks("a tab in the request line", b"GET\t/v1/x HTTP/1.1"),
    Row("bare LFs only", b"GET /v1/x HTTP/1.1\nHost: @HOST@\n\n"),
    asks("a chunk size with a sign", b"POST /v1/x", CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n"),
    asks("a chunk size with 0x", b"POST /v1/x", CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"),
    asks("a huge chunk size", b"POST /v1/x", CHUNKED, body=b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    asks("a bare LF after a chunk size", b"POST /v1/x", CHUNKED, body=b"5\nhello\r\n0\r\n\r\n"),
    asks("a bare LF after a chunk", b"POST /v1/x", CHUNKED, body=b"5\r\nhello\n0\r\n\r\n"),
    asks("a chunk that is too long", b"POST /v1/x", CHUNKED, body=b"5\r\nhello!\r\n0\r\n\r\n"),
]

TRAILERS_ONLY = asks("trailers without content", b"POST /v1/x", CHUNKED, body=b"0\r\nX-T: 1\r\n\r\n")

ANSWERS = [
    says("plain", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    says("order and case of fields", b"HTTP/1.1 200 OK\nx-b: 1\nX-A: 2\nX-B: 3\nContent-Length: 0\n\n"),
    says("date and server", b"HTTP/1.1 200 OK\nDate: then\nServer: cloud\nContent-Length: 0\n\n"),
    says("cookies", b"HTTP/1.1 200 OK\nSet-Cookie: a=1; Path=/\nset-cookie: b=2\nContent-Length: 0\n\n"),
    says("empty and foreign values", b"HTTP/1.1 200 OK\nX-Empty:\nX-Latin: \xe9\nContent-Length: 0\n\n"),
    says("another reason", b"HTTP/1.1 200 Fine, thanks\nContent-Length: 0\n\n"),
    says("no reason", b"HTTP/1.1 200 \nContent-Length: 0\n\n"),
    says("no blank after the status", b"HTTP/1.1 200\nContent-Length: 0\n\n"),
    says("status 299", b"HTTP/1.1 299 X\nContent-Length: 2\n\nok"),
    says("status 999", b"HTTP/1.1 999 X\nContent-Length: 2\n\nok"),
    says(
        "a redirect to the cloud",
        b"HTTP/1.1 302 Found\nLocation: http://127.0.0.1:@CLOUD@/v1/y\nContent-Length: 0\n\n",
    ),
    says("busy", b"HTTP/1.1 503 Busy\nRetry-After: 7\nContent-Length: 2\n\nno"),
    says("not authorized for that", b"HTTP/1.1 403 No\nWWW-Authenticate: Bearer\nContent-Length: 2\n\nno"),
    says("coded content", b"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 3\n\nabc"),
    says(
        "an entity tag",
        b'HTTP/1.1 200 OK\nETag: W/"a"\nLast-Modified: x\nAccept-Ranges: bytes\nContent-Length: 0\n\n',
    ),
    says(
        "caching",
        b"HTTP/1.1 200 OK\nExpires: 0\nCache-Control: no-store\nAge: 1\nVary: x\nContent-Length: 0\n\n",
    ),
    says(
        "connection and what it names",
        b"HTTP/1.1 200 OK\nConnection: X-Gone\nX-Gone: 1\nKeep-Alive: 5\nContent-Length: 0\n\n",
    ),
    says("connection close", b"HTTP/1.1 200 OK\nConnection: close\nContent-Length: 2\n\nok", ends=True),
    says("upgrade", b"HTTP/1.1 426 No\nUpgrade: h2c\nConnection: Upgrade\nContent-Length: 0\n\n"),
    says("proxy-authenticate", b"HTTP/1.1 407 No\nProxy-Authenticate: Basic\nContent-Length: 0\n\n"),
    says("via", b"HTTP/1.1 200 OK\nVia: 1.1 before\nContent-Length: 0\n\n"),
    says("x-accel fields", b"HTTP/1.1 200 OK\nX-Accel-Limit-Rate: 0\nX-Pad: a\nContent-Length: 0\n\n"),
    says("204", b"HTTP/1.1 204 No Content\nX: 1\n\n"),
    says("204 with a length", b"HTTP/1.1 204 No Content\nContent-Length: 0\n\n"),
    says("205", b"HTTP/1.1 205 Reset Content\nContent-Length: 0\n\n"),
    says("304", b'HTTP/1.1 304 Not Modified\nETag: "a"\nContent-Length: 5\n\n'),
    says("head", b"HTTP/1.1 200 OK\nContent-Length: 5\n\n", method=b"HEAD"),
    says("head of chunks", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", method=b"HEAD"),
    says("head without framing", b"HTTP/1.1 200 OK\nX: 1\n\n", method=b"HEAD"),
    says("chunked", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n"),
    says("chunked in capitals", b"HTTP/1.1 200 OK\nTRANSFER-ENCODING: CHUNKED\n\n5\nhello\n0\n\n"),
    says("chunk extensions", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5;a=b\nhello\n0;c\n\n"),
    says(
        "trailers not asked for",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X\n\n1\na\n0\nX: 1\n\n",
    ),
    says(
        "trailers asked for",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X\n\n1\na\n0\nX: 1\n\n",
        lines=b"TE: trailers\r\nConnection: TE\r\n",
    ),
    says("until the end", b"HTTP/1.1 200 OK\nX: 1\n\nuntil the end", ends=True),
    says("http/1.0 until the end", b"HTTP/1.0 200 OK\nX: 1\n\nuntil the end", ends=True),
    says("http/1.0 with a length", b"HTTP/1.0 200 OK\nContent-Length: 2\n\nok", ends=True),
    says("continue", b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    says("early hints", b"HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    says("switch of protocols", b"HTTP/1.1 101 Switching\nUpgrade: x\nConnection: Upgrade\n\n", ends=True),
    says("a field of 3 KiB", b"HTTP/1.1 200 OK\nX-Long: " + b"a" * 3072 + b"\nContent-Length: 0\n\n"),
    says("a field of 20 KiB", b"HTTP/1.1 200 OK\nX-Long: " + b"a" * 20480 + b"\nContent-Length: 0\n\n"),
    says(
        "300 fields",
        b"HTTP/1.1 200 OK\n" + b"".join(b"X-%d: a\n" % n for n in range(300)) + b"Content-Length: 0\n\n",
    ),
    says(
        "bytes after the end",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nokHTTP/1.1 200 OK\nContent-Length: 2\n\nno",
    ),
    says("bytes after the last chunk", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n0\n\nmore"),
    says("content of a 204", b"HTTP/1.1 204 No Content\nContent-Length: 2\n\nno"),
    says("cut length", b"HTTP/1.1 200 OK\nContent-Length: 5\n\nok", ends=True),
    says("cut chunks", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nok", ends=True),
    says("no last chunk", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nok\n", ends=True),
    says("cut head", b"HTTP/1.1 200 OK\nContent-Le", ends=True),
    says("nothing", b"", ends=True),
    says(
        "length and coding",
        b"HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n",
        ends=True,
    ),
    says("two equal lengths", b"HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 2\n\nok", ends=True),
    says("two lengths", b"HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 3\n\nok!", ends=True),
    says("a malformed length", b"HTTP/1.1 200 OK\nContent-Length: 2x\n\nok", ends=True),
    says(
        "an unknown coding",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n5\nhello\n0\n\n",
        ends=True,
    ),
    says(
        "a malformed chunk size", b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\nx\nhello\n0\n\n", ends=True
    ),
    says("bare LFs", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r", ends=True),
    says(
        "a bare LF between fields", b"HTTP/1.1 200 OK\r\nX: 1\nY: 2\r\nContent-Length: 2\r\n\r\nok", ends=True
    ),
    says("a folded field", b"HTTP/1.1 200 OK\nX: a\n b\nContent-Length: 2\n\nok", ends=True),
    says("NUL in a value", b"HTTP/1.1 200 OK\nX: a\0b\nContent-Length: 2\n\nok", ends=True),
    says("a control character in a value", b"HTTP/1.1 200 OK\nX: a\x01b\nContent-Length: 2\n\nok", ends=True),
    says("a blank before the colon", b"HTTP/1.1 200 OK\nContent-Length : 2\n\nok", ends=True),
    says("a field without a colon", b"HTTP/1.1 200 OK\nnonsense\nContent-Length: 2\n\nok", ends=True),
    says("a malformed status line", b"HTTP/1.1 20 OK\nContent-Length: 2\n\nok", ends=True),
    says("http/2.0", b"HTTP/2.0 200 OK\nContent-Length: 2\n\nok", ends=True),
    says("http/0.9", b"hello\n\n", ends=True),
]


@dataclass
class Cloud:
    """Keeps each request that it can read, answers the others with an error, and answers as the row says."""

    row: Row = field(default_factory=lambda: REQUESTS[0])
    port: int = 0
    requests: dict[bytes, list[Parsed]] = field(default_factory=dict)
    """By the value of X-Tag, which is removed here: a late request must not count for the next row."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, continued = b"", False
        while True:
            try:
                request = parse_request(buffer)
            except Malformed:
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                return
            if request is None:
                if not continued and b"\r\n\r\n" in buffer and b"expect: 100-continue" in buffer.lower():
                    continued = True
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                piece = await reader.read(1 << 16)
                if not piece:
                    return
                buffer += piece
                continue
            buffer, continued = buffer[request.size :], False
            tag = b"".join(request.values(b"x-tag"))
            request.lines = [line for line in request.lines if not line.startswith(b"X-Tag:")]
            self.requests.setdefault(tag, []).append(request)
            answer = self.row.answer.replace(b"@CLOUD@", b"%d" % self.port)
            if request.method == b"HEAD":
                answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            writer.write(answer)
            await writer.drain()
            if self.row.ends:
                return


@dataclass
class Outcome:
    """The outcome of one exchange: what the cloud received, and what the caller received."""

    requests: list[Parsed]
    interim: list[int] = field(default_factory=list)
    answer: Parsed | None = None
    is_malformed: bool = False

    @property
    def verdict(self) -> str:
        if self.answer is not None:
            found = re.search(rb'"errorCode": "(\w+)"', self.answer.content)
            return f"{self.answer.status}{' ' + found[1].decode() if found else ''}"
        return "malformed" if self.is_malformed else "cut"


async def exchange(port: int, cloud: Cloud, row: Row, tag: bytes) -> Outcome:
    """Send the request of ``row`` to ``port``, and wait for the answer or the end."""
    cloud.row = row
    raw = row.request.replace(b"@HOST@", b"127.0.0.1:%d" % port)
    raw = re.sub(rb"^((?:\r\n)*[^\r\n]+\r\n)", rb"\1X-Tag: " + tag + rb"\r\n", raw)
    method = raw.strip().split(b" ", 1)[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    outcome = Outcome([])
    received, ended = b"", False
    try:
        writer.write(raw)
        if row.half_close:
            writer.write_eof()
        async with asyncio.timeout(WAIT_S):
            while outcome.answer is None and not outcome.is_malformed:
                try:
                    parsed = parse_response(received, method, closed=ended)
                except Malformed:
                    outcome.is_malformed = True
                    break
                if parsed is None:
                    if ended:
                        break
                    try:
                        piece = await reader.read(1 << 16)
                    except ConnectionError:
                        break
                    received, ended = received + piece, not piece
                    continue
                received = received[parsed.size :]
                if parsed.status < 200:
                    outcome.interim.append(parsed.status)
                else:
                    outcome.answer = parsed
    finally:
        writer.transport.abort()
    outcome.requests = cloud.requests.get(tag, [])
    return outcome


def line_changes(before: list[bytes], after: list[bytes], always: set[bytes]) -> list[str]:
    """The lines of the request and the answer, in order; long and momentary values are shortened."""
    old = [short(line) for line in before if line.partition(b":")[0].lower() not in always]
    new = [short(line) for line in after if line.partition(b":")[0].lower() not in always]
    return [line[0] + line[2:] for line in difflib.ndiff(old, new) if line[0] in "+-"]


def short(line: bytes) -> str:
    text = re.sub(r"127\.0\.0\.1:[0-9]+", "@HOST@", line.decode("latin-1"))
    return text if len(text) < 90 else f"{text[:20]}...({len(text)})"


def without_kept(lines: list[bytes]) -> list[bytes]:
    """Without the lines with which the proxy says that it keeps the connection; these stand together."""
    kept = KEPT.split(b"\r\n")
    places = [place for place in range(len(lines)) if lines[place : place + 2] == kept]
    return lines[: places[-1]] + lines[places[-1] + 2 :] if places else lines


Found = dict[str, list[str]]


def differences(straight: Outcome, other: Outcome, answer_own: set[bytes]) -> list[str]:
    """How ``other`` differs from ``straight``, one line each, without what always differs."""
    found: list[str] = []
    if len(straight.requests) != len(other.requests):
        found.append("forwarded" if other.requests else "not forwarded")
    for before, after in zip(straight.requests, other.requests, strict=False):
        if before.start != after.start:
            found.append(f"{short(before.start)} -> {short(after.start)}")
        changes = line_changes(before.lines, after.lines, {b"host"})
        found += [line for line in changes if not HERE.fullmatch(line)]
        for what in ("framing", "content", "trailers"):
            if getattr(before, what) != getattr(after, what):
                found.append(f"{what} {getattr(before, what)!r} -> {getattr(after, what)!r}")
    if straight.interim != other.interim:
        found.append(f"interim {straight.interim} -> {other.interim}")
    if straight.verdict != other.verdict:
        found.append(f"answer {straight.verdict} -> {other.verdict}")
    elif straight.answer and other.answer and (straight.requests or other.requests):
        if straight.answer.start[9:] != other.answer.start[9:]:
            found.append(f"answer {straight.answer.start[9:]!r} -> {other.answer.start[9:]!r}")
        found += [
            f"answer {change}"
            for change in line_changes(straight.answer.lines, without_kept(other.answer.lines), answer_own)
        ]
        if straight.answer.content != other.answer.content:
            found.append(f"answer content {short(straight.answer.content)} -> {short(other.answer.content)}")
    return found


@contextlib.asynccontextmanager
async def nginx(cloud: int, tmp: Path) -> AsyncIterator[int]:
    """A running nginx before the cloud at that port; the port that it listens on."""
    assert NGINX is not None
    port = free_port()
    (tmp / "nginx.conf").write_text(CONFIG.format(tmp=tmp, cloud=cloud, port=port))
    with (tmp / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            NGINX, "-p", str(tmp), "-e", "stderr", "-c", str(tmp / "nginx.conf"), stderr=stderr
        )
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                assert process.returncode is None, (tmp / "stderr").read_text()
                with contextlib.suppress(ConnectionError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.01)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def nginx_version() -> str:
    assert NGINX is not None
    shown = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True)
    return shown.stderr.partition("version: ")[2].strip()


async def found_differences(rows: list[Row], tmp: Path | None) -> tuple[Found, Found]:
    """By the rows' names: how the proxy's outcome differs from the straight one, and how nginx's does."""
    cloud = Cloud()
    ours: Found = {}
    theirs: Found = {}
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(structlog.testing.capture_logs())
        proxy = await stack.enter_async_context(gateway(cloud))
        cloud.port = proxy.upstream.port
        port = None if tmp is None else await stack.enter_async_context(nginx(cloud.port, tmp))
        for number, row in enumerate(rows):
            straight = await exchange(cloud.port, cloud, row, b"%d-straight" % number)
            through = await exchange(proxy.port, cloud, row, b"%d-proxy" % number)
            dated = straight.answer is not None and straight.answer.values(b"date")
            ours[row.name] = differences(straight, through, set() if dated else {b"date"})
            if (
                port is not None and not row.half_close
            ):  # nginx gives up this request at an unforeseeable moment
                through = await exchange(port, cloud, row, b"%d-nginx" % number)
                theirs[row.name] = differences(straight, through, {b"date", b"server", b"connection"})
    return ours, theirs


def listed(table: Mapping[str, Mapping[str, str]], rows: list[Row]) -> Found:
    """The listed differences of these rows."""
    assert not table.keys() - {row.name for row in rows}, "a row that there is not"
    assert all(why for row in table.values() for why in row.values()), "a difference without its explanation"
    return {row.name: list(table.get(row.name, ())) for row in rows}


@pytest.mark.parametrize(
    ("rows", "here"), [(REQUESTS, REQUESTS_HERE), (ANSWERS, ANSWERS_HERE)], ids=["requests", "answers"]
)
async def test_what_differs_from_talking_to_the_cloud_itself_is_listed_and_explained(
    rows: list[Row], here: Mapping[str, Mapping[str, str]]
) -> None:
    found, _ = await found_differences(rows, None)
    assert found == listed(here, rows)


async def test_trailers_arrive_where_there_is_no_content() -> None:
    found, _ = await found_differences([TRAILERS_ONLY], None)
    assert found == {TRAILERS_ONLY.name: []}


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: nginx-light)")
@pytest.mark.parametrize(
    ("rows", "there"), [(REQUESTS, REQUESTS_NGINX), (ANSWERS, ANSWERS_NGINX)], ids=["requests", "answers"]
)
async def test_a_second_opinion_differs_as_listed(
    rows: list[Row], there: Mapping[str, Mapping[str, str]], tmp_path: Path
) -> None:
    _, found = await found_differences(rows, tmp_path)
    if nginx_version().startswith(KNOWN_NGINX):
        assert found == {name: changes for name, changes in listed(there, rows).items() if name in found}
