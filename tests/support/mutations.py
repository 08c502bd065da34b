"""A grammar of requests and answers, and random mutations of them."""

from __future__ import annotations

import random
import re


def request(start: bytes, *lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join((start + b" HTTP/" + version, b"Host: @HOST@", *lines, b"", body))


def answer(status: bytes, *lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join((b"HTTP/" + version + b" " + status, *lines, b"", body))


FALSE = answer(b"200 OK", b"Content-Length: 5", body=b"false")
CHUNKED = b"Transfer-Encoding: chunked"
SMUGGLED = b"GET /zz-other/v1/smuggled HTTP/1.1\r\nHost: @HOST@\r\n\r\n"
REQUESTS = [
    request(b"GET /shop/v1/segments?a=%7e&b="),
    request(b"GET /shop/v1/a;p=1/%2f//b?x=[]{}|&y=+", b"Accept: */*", b"X-Empty:", b"X-Latin: \xe9"),
    request(b"HEAD /shop/v1/segments", b"Cookie: a=1", b"cookie: b=2"),
    request(b"OPTIONS /shop/v1/segments", b"Max-Forwards: 3"),
    request(b"OPTIONS *"),
    request(b"DELETE /shop/v1/exports/1", b"Connection: close, X-Gone", b"X-Gone: 1"),
    request(b"PURGE /shop/v1/x", b"Connection: keep-alive", b"Keep-Alive: timeout=5", version=b"1.0"),
    request(b"GET /v1/segments", b"X-CSQ-Project: shop", b"X-CSQ-Api: metrics"),
    request(b"GET /shop/v1/segments", b"X-CSQ-Project: zz-other", b"Authorization: Bearer mine"),
    request(b"GET http://@HOST@/shop/v1/segments?x"),
    request(b"GET /shop/../zz-other/v1/segments"),
    request(b"GET /shop/%2e%2e/zz-other/v1/segments"),
    request(b"GET /shop/..%5czz-other/v1/a/../segments"),
    request(
        b"POST /shop/v1/exports", b"Content-Length: 11", b"Content-Type: text/plain", body=b"hello world"
    ),
    request(b"POST /shop/v1/exports", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
    request(b"POST /shop/v1/exports", b"Content-Length: 0"),
    request(b"PUT /shop/v1/exports", CHUNKED, body=b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n"),
    request(
        b"POST /shop/v1/x", CHUNKED, b"TE: trailers", body=b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"
    ),
    request(b"POST /shop/v1/x", CHUNKED, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    request(b"POST /shop/v1/x", b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
    request(b"POST /shop/v1/x", b"Content-Length: 4000", body=b"0123456789" * 400),
    request(b"TRACE /shop/v1/x", b"Max-Forwards: 0"),
    request(b"GET /shop/v1/x", b"Upgrade: websocket", b"Connection: Upgrade, TE", b"TE: trailers, gzip"),
    request(b"GET /shop/v1/x", b"Via: 1.1 before", b"X-Same: 1", b"X-Same: 2", b"x-same: 3"),
]
WORDS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\n ",
    b"0\r\n\r\n",
    b"0",
    b"ffffffffffffffff",
    b"-1",
    b"+5",
    b"0x5",
    b"1e1",
    b"5, 5",
    b"chunked",
    b"identity",
    b"gzip, chunked",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 5000\r\n",
    b"Content-Length : 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: x, chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: Content-Length, Host, Authorization\r\n",
    b"Connection: transfer-encoding\r\n",
    b"Host: evil\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"..",
    b"/../",
    b"%2e%2e%2f",
    b"\\..\\",
    b"/",
    b"//",
    b"?",
    b"#",
    b"@",
    b"http://evil/",
    b"zz-other/",
    b"GET ",
    b"HEAD ",
    b"CONNECT ",
    b"Expect: 100-continue\r\n",
    b"TE: trailers\r\n",
    b"Trailer: X\r\n",
    b"Authorization: Bearer x\r\n",
]
ANSWERS = [
    answer(b"200 OK", b"Content-Length: 5", body=b"hello"),
    answer(
        b"200 OK", b"Date: x", b"Set-Cookie: a=1", b"set-cookie: b=2", b"X-Latin: \xe9", b"Content-Length: 0"
    ),
    answer(b"200 OK", CHUNKED, body=b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n"),
    answer(b"200 OK", CHUNKED, b"Trailer: X", body=b"3\r\nabc\r\n0\r\nX: 1\r\nX-More: 2\r\n\r\n"),
    answer(b"200 OK", b"Content-Type: text/plain", body=b"until the end"),
    answer(b"200 OK", b"Connection: keep-alive", b"Content-Length: 3", body=b"abc", version=b"1.0"),
    answer(b"200", body=b"old and until the end", version=b"1.0"),
    answer(b"204 No Content", b"X: y"),
    answer(b"304 Not Modified", b"Content-Length: 100", b"ETag: x"),
    answer(b"404 Not Found", b"Connection: close", b"Content-Length: 2", body=b"no"),
    answer(b"100 Continue")
    + answer(b"103 Hints", b"Link: x")
    + answer(b"200 OK", b"Content-Length: 1", body=b"x"),
    answer(b"503 Busy", b"Connection: X-Gone", b"X-Gone: 1", b"Content-Length: %d" % len(FALSE), body=FALSE),
    answer(b"408 Slow", b"Connection: close", b"Content-Length: 0"),
    answer(b"200 OK", b"Content-Length: 3000", body=b"0123456789" * 300),
]
ANSWER_WORDS = [
    *(word for word in WORDS if not word.startswith((b"GET", b"HEAD", b"CONNECT", b"zz", b"%"))),
    FALSE,
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switch\r\n\r\n",
    b"HTTP/1.1 999 Odd\r\n",
    b" 204 ",
    b" 304 ",
    b" 000 ",
    b" 1000 ",
    b"\r\n folded\r\n",
    b"Proxy-Status: x\r\n",
    b"Set-Cookie: x=y\r\n",
]


def mutate(rng: random.Random, raw: bytes, words: list[bytes], corpus: list[bytes]) -> bytes:
    """``raw`` with up to eight random changes, near its delimiters more often than elsewhere."""
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 2, 3, 8))):
        marks = [found.start() for found in re.finditer(rb"[\r\n: /]", raw)]
        at = rng.choice(marks) if marks and rng.random() < 0.6 else rng.randrange(len(raw) + 1)
        end = min(len(raw), at + rng.choice((1, 1, 2, 4, 16, 64)))
        kind = rng.randrange(12)
        if kind == 0 and at < len(raw):
            middle = bytes((raw[at] ^ (1 << rng.randrange(8)),))
            end = at + 1
        elif kind == 1:
            middle = bytes((rng.randrange(256),)) * rng.choice((1, 1, 1, 3, 200))
            end = at
        elif kind == 2:
            middle = b""
        elif kind == 3:
            middle = raw[at:end] * 2
        elif kind in (4, 5):
            middle = rng.choice(words)
            end = at
        elif kind == 6:
            middle = rng.choice(words)
        elif kind in (7, 8, 9):
            middle = rng.choice(b"0123456789abcXYZ-.%;=,").to_bytes(1, "big")
            end = at + rng.randrange(2)
        elif kind == 10 and rng.random() < 0.3:
            return raw[:at]
        else:
            source = rng.choice(corpus)
            start = rng.randrange(len(source))
            middle = source[start : start + rng.choice((4, 16, 64))]
        raw = raw[:at] + middle + raw[end:]
    return raw


def pieces(rng: random.Random, raw: bytes) -> list[bytes]:
    """``raw`` in one to four parts."""
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]
