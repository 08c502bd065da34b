"""The differences that `test_differential` finds, and why they are there. Lines are as it writes them.

``+`` and ``-`` are field lines that came or went on the way to the cloud, or to the caller after ``answer``.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.upstream.loop import VIA_NAME

Table = Mapping[str, Mapping[str, str]]
"""By the row's name: each difference, and why it is there."""

TOKEN = "the caller's own credentials are replaced by the token, one line"
FOR_US = "between neighbours: it goes no further (RFC 9110, sections 11.7.1 and 11.7.2)"
TE = "TE is hop-by-hop; trailers are asked for anew, and nothing else is (RFC 9110, section 10.1.4)"
FRAMING = "Transfer-Encoding is hop-by-hop: written anew, after the fields (RFC 9112, section 6.1)"
EXPECT_1_0 = "an expectation in HTTP/1.0 is ignored (RFC 9110, section 10.1.1)"
COOKIE = "those of localhost are sent to each of its ports"
HOPS = "Max-Forwards is counted down (RFC 9110, section 7.6.2)"
VIA_1_0 = "Via names the version that came (RFC 9110, section 7.6.3)"
VERSION = "a gateway speaks its own version (RFC 9110, section 6.2)"
ORIGIN_FORM = "absolute-form of the listener itself is served as origin-form (RFC 9112, section 3.2.2)"
CLOSE = "the caller asked for its connection's end (RFC 9112, section 9.6)"
CLOSE_1_0 = "HTTP/1.0 doesn't keep connections unasked (RFC 9112, section 9.3)"
HOP = "hop-by-hop, or named by Connection (RFC 9110, section 7.6.1)"
HOST = "a Host that is not the listener's is refused: DNS rebinding (contract: 421)"
NO_HOST = "a Host that is no authority is a 400 (RFC 9112, section 3.2)"
ASTERISK = "* is who was asked, and that is the proxy (RFC 9110, section 9.3.7)"
LAST_HOP = "the last hop answers itself (RFC 9110, section 7.6.2)"
METHOD = "refused: TRACE would echo the token, CONNECT is no business of a gateway (contract: 405)"
BEYOND = "dot segments that leave the root are refused, not resolved (contract: 400)"
FOREIGN = "a foreign authority is never a target: the token would go there (contract: 400)"
TARGET = "a target that is no path is refused before a URL is made of it (contract: 400)"
VERSION_REFUSED = "another version of HTTP is told so"
CODING = "an unknown transfer coding is a 501 (RFC 9112, section 6.1)"
REFUSED = "the cloud's strict parser refuses it, and so does the proxy, in Contentsquare's shape"
NO_LENGTH = "a 204 has no Content-Length (RFC 9110, section 8.6)"
BLANK = "the blank before an empty reason stays (RFC 9112, section 4)"
NO_TRAILERS = "trailers go on only where the caller asked for them (RFC 9110, section 6.5.1)"
CHUNKED = (
    "what ends with the connection gets chunks, so that its end can be told from a cut (RFC 9112, section 8)"
)
AFTER_END = "bytes after an answer make it doubtful which are whose: refused, and the connection closed"
CUT = "an answer that ended before it began, or within its head, is a 502"
MALFORMED = "an answer that can be read in two ways is a 502 and never passed on"
N_BLANK = "nginx writes one blank after each colon"
N_NAMES = "nginx drops names with characters beyond letters, digits and hyphens"
N_LIMIT = "nginx's buffers are smaller than the field"
N_LENGTH = "nginx writes Content-Length anew"
N_TWICE = "nginx refuses a second Authorization"
N_TRAILERS = "nginx drops trailers unread"
N_CHUNKS = "nginx sends what has arrived whole with a Content-Length instead of chunks"
N_EXPECT = "nginx answers an expectation itself, and drops it"
N_FOREIGN = "nginx serves any authority"
N_TE = "nginx asks for no trailers"
N_METHOD = "nginx refuses it by itself, too"
N_LOWER = "nginx knows no methods in lower case"
N_ESCAPE = "nginx refuses targets that it can't decode"
N_HOST = "nginx refuses a malformed Host by itself, too"
N_LENIENT = "nginx passes on, as it understands it, what is malformed"
N_ORDER = "nginx moves Content-Length"
N_ACCEL = "nginx keeps these for itself"
N_HEAD = "nginx drops Transfer-Encoding from answers to HEAD"
N_PASSED = "nginx passes on, as it understands it, what is malformed or cut"
N_LATE = "nginx notices after the head went out, and cuts"

REQUESTS_HERE: Table = {
    "connection and what it names": {
        "-Connection: keep-alive, X-Gone": HOP,
        "-X-Gone: 1": HOP,
    },
    "cookies": {
        "-Cookie: a=1": COOKIE,
        "-Cookie: b=2": COOKIE,
    },
    "connection close": {
        "-Connection: close": HOP,
        "answer +Connection: close": CLOSE,
    },
    "connection names content-length": {
        "-Connection: content-length": HOP,
    },
    "connection names authorization": {
        "-Connection: Authorization, Host": HOP,
        "-Authorization: mine": TOKEN,
    },
    "keep-alive and proxy-connection": {
        "-Keep-Alive: timeout=5": HOP,
        "-Proxy-Connection: keep-alive": HOP,
    },
    "proxy-authorization": {
        "-Proxy-Authorization: Basic eDp5": FOR_US,
    },
    "te with trailers": {
        "-TE: trailers, deflate;q=0.5": TE,
        "+TE: trailers": TE,
    },
    "upgrade": {
        "-Upgrade: websocket": HOP,
        "-Connection: Upgrade": HOP,
    },
    "h2c upgrade": {
        "-Upgrade: h2c": HOP,
        "-HTTP2-Settings: AAA": HOP,
        "-Connection: Upgrade, HTTP2-Settings": HOP,
    },
    "authorization of the caller": {
        "-Authorization: Basic eDp5": TOKEN,
        "-authorization: Bearer mine": TOKEN,
    },
    "dot segments beyond the root": {
        "not forwarded": BEYOND,
        "answer 200 -> 400 PROXY_BAD_TARGET": BEYOND,
    },
    "absolute-form of the listener": {
        "GET http://@HOST@/v1/x?y HTTP/1.1 -> GET /v1/x?y HTTP/1.1": ORIGIN_FORM,
    },
    "absolute-form without a path": {
        "GET http://@HOST@ HTTP/1.1 -> GET / HTTP/1.1": ORIGIN_FORM,
    },
    "absolute-form of another host": {
        "not forwarded": FOREIGN,
        "answer 200 -> 400 PROXY_BAD_TARGET": FOREIGN,
    },
    "a target without a slash": {
        "not forwarded": TARGET,
        "answer 200 -> 400 PROXY_BAD_TARGET": TARGET,
    },
    "an authority as target": {
        "not forwarded": TARGET,
        "answer 200 -> 400 PROXY_BAD_TARGET": TARGET,
    },
    "options *": {
        "not forwarded": ASTERISK,
        "answer 200 -> 204": ASTERISK,
    },
    "options with max-forwards": {
        "-Max-Forwards: 5": HOPS,
        "+Max-Forwards: 4": HOPS,
    },
    "options with max-forwards 0": {
        "not forwarded": LAST_HOP,
        "answer 200 -> 204": LAST_HOP,
    },
    "trace": {
        "not forwarded": METHOD,
        "answer 200 -> 405 PROXY_METHOD_REFUSED": METHOD,
    },
    "connect": {
        "not forwarded": METHOD,
        "answer 200 -> 405 PROXY_METHOD_REFUSED": METHOD,
    },
    "chunked in capitals": {
        "-TRANSFER-ENCODING: CHUNKED": FRAMING,
        "+Transfer-Encoding: chunked": FRAMING,
    },
    "trailers": {
        "+Trailer: X-T": FRAMING,
        "-Trailer: X-T": FRAMING,
    },
    "a length among the trailers": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "http/1.0": {
        "GET /v1/x HTTP/1.0 -> GET /v1/x HTTP/1.1": VERSION,
        f"+Via: 1.0 {VIA_NAME.decode()}": VIA_1_0,
        "answer +Connection: close": CLOSE_1_0,
    },
    "http/1.0 without host": {
        "GET /v1/x HTTP/1.0 -> GET /v1/x HTTP/1.1": VERSION,
        f"+Via: 1.0 {VIA_NAME.decode()}": VIA_1_0,
        "answer +Connection: close": CLOSE_1_0,
    },
    "http/1.0 with keep-alive": {
        "GET /v1/x HTTP/1.0 -> GET /v1/x HTTP/1.1": VERSION,
        "-Connection: keep-alive": HOP,
        f"+Via: 1.0 {VIA_NAME.decode()}": VIA_1_0,
    },
    "http/1.0 with content": {
        "POST /v1/x HTTP/1.0 -> POST /v1/x HTTP/1.1": VERSION,
        f"+Via: 1.0 {VIA_NAME.decode()}": VIA_1_0,
        "answer +Connection: close": CLOSE_1_0,
    },
    "http/1.0 with expect": {
        "POST /v1/x HTTP/1.0 -> POST /v1/x HTTP/1.1": VERSION,
        "-Expect: 100-continue": EXPECT_1_0,
        f"+Via: 1.0 {VIA_NAME.decode()}": VIA_1_0,
        "answer +Connection: close": CLOSE_1_0,
    },
    "http/1.0 chunked": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "http/1.2": {
        "GET /v1/x HTTP/1.2 -> GET /v1/x HTTP/1.1": VERSION,
    },
    "http/2.0": {
        "answer 400 -> 505 PROXY_BAD_REQUEST": VERSION_REFUSED,
    },
    "no host": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "no host at all": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "two hosts": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "an empty host": {
        "not forwarded": NO_HOST,
        "answer 200 -> 400 PROXY_BAD_REQUEST": NO_HOST,
    },
    "a foreign host": {
        "not forwarded": HOST,
        "answer 200 -> 421 PROXY_HOST_REFUSED": HOST,
    },
    "a host with user information": {
        "not forwarded": NO_HOST,
        "answer 200 -> 400 PROXY_BAD_REQUEST": NO_HOST,
    },
    "a malformed host": {
        "not forwarded": NO_HOST,
        "answer 200 -> 400 PROXY_BAD_REQUEST": NO_HOST,
    },
    "length and coding": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "two equal lengths": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "two lengths": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a list as length": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a signed length": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a negative length": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "an empty length": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "an empty coding": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "an unknown coding": {
        "answer 400 -> 501 PROXY_BAD_REQUEST": CODING,
    },
    "identity": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "two codings": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a blank before the colon": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a blank before a name": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a folded field": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a field without a colon": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a field without a name": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a bare LF between fields": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a bare CR in a value": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "NUL in a value": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a control character in a value": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a control character in a name": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "two blanks in the request line": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a tab in the request line": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "bare LFs only": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a chunk size with a sign": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a chunk size with 0x": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a huge chunk size": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a bare LF after a chunk size": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a bare LF after a chunk": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
    "a chunk that is too long": {
        "answer 400 -> 400 PROXY_BAD_REQUEST": REFUSED,
    },
}

REQUESTS_NGINX: Table = {
    "empty value": {
        "-X-Empty:": N_BLANK,
        "+X-Empty: ": N_BLANK,
    },
    "no blank before a value": {
        "-X-Tight:a": N_BLANK,
        "+X-Tight: a": N_BLANK,
    },
    "odd characters in a name": {
        "-X!#$%&'*+.^_`|~: 1": N_NAMES,
    },
    "underscore in a name": {
        "-X_Under: 1": N_NAMES,
    },
    "a field of 8 KiB": {
        "not forwarded": N_LIMIT,
        "answer 200 -> 400": N_LIMIT,
    },
    "connection and what it names": {
        "-Connection: keep-alive, X-Gone": HOP,
    },
    "connection close": {
        "-Connection: close": HOP,
    },
    "connection names content-length": {
        "-Connection: content-length": HOP,
    },
    "connection names authorization": {
        "-Connection: Authorization, Host": HOP,
        "-Authorization: mine": TOKEN,
    },
    "keep-alive and proxy-connection": {
        "-Keep-Alive: timeout=5": HOP,
    },
    "te with trailers": {
        "-TE: trailers, deflate;q=0.5": N_TE,
        "-Connection: TE": N_TE,
    },
    "upgrade": {
        "-Upgrade: websocket": HOP,
        "-Connection: Upgrade": HOP,
    },
    "h2c upgrade": {
        "-Upgrade: h2c": HOP,
        "-Connection: Upgrade, HTTP2-Settings": HOP,
    },
    "authorization of the caller": {
        "not forwarded": N_TWICE,
        "answer 200 -> 400": N_TWICE,
    },
    "an escaped NUL": {
        "not forwarded": N_ESCAPE,
        "answer 200 -> 400": N_ESCAPE,
    },
    "a malformed escape": {
        "not forwarded": N_ESCAPE,
        "answer 200 -> 400": N_ESCAPE,
    },
    "dot segments beyond the root": {
        "not forwarded": BEYOND,
        "answer 200 -> 400": BEYOND,
    },
    "absolute-form of the listener": {
        "GET http://@HOST@/v1/x?y HTTP/1.1 -> GET /v1/x?y HTTP/1.1": ORIGIN_FORM,
    },
    "absolute-form without a path": {
        "GET http://@HOST@ HTTP/1.1 -> GET / HTTP/1.1": ORIGIN_FORM,
    },
    "absolute-form of another host": {
        "GET http://evil.example/v1/x HTTP/1.1 -> GET /v1/x HTTP/1.1": N_FOREIGN,
    },
    "a target without a slash": {
        "not forwarded": TARGET,
        "answer 200 -> 400": TARGET,
    },
    "an authority as target": {
        "not forwarded": TARGET,
        "answer 200 -> 400": TARGET,
    },
    "options *": {
        "not forwarded": N_METHOD,
        "answer 200 -> 400": N_METHOD,
    },
    "trace": {
        "not forwarded": N_METHOD,
        "answer 200 -> 405": N_METHOD,
    },
    "connect": {
        "not forwarded": N_METHOD,
        "answer 200 -> 400": N_METHOD,
    },
    "a method in lower case": {
        "not forwarded": N_LOWER,
        "answer 200 -> 400": N_LOWER,
    },
    "a length with zeros before": {
        "-Content-Length: 0002": N_LENGTH,
        "+Content-Length: 2": N_LENGTH,
    },
    "coded content": {
        "+Content-Length: 5": N_LENGTH,
        "-Content-Length: 5": N_LENGTH,
    },
    "chunked": {
        "-Transfer-Encoding: chunked": N_CHUNKS,
        "+Content-Length: 5": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
    },
    "chunked in capitals": {
        "-TRANSFER-ENCODING: CHUNKED": N_CHUNKS,
        "+Content-Length: 5": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
    },
    "chunked and empty": {
        "-Transfer-Encoding: chunked": N_CHUNKS,
        "+Content-Length: 0": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
    },
    "chunk extensions": {
        "-Transfer-Encoding: chunked": N_CHUNKS,
        "+Content-Length: 5": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
    },
    "a blank before a chunk extension": {
        "-Transfer-Encoding: chunked": N_CHUNKS,
        "+Content-Length: 5": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
    },
    "zeros before a chunk size": {
        "-Transfer-Encoding: chunked": N_CHUNKS,
        "+Content-Length: 5": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
    },
    "trailers": {
        "-Transfer-Encoding: chunked": N_CHUNKS,
        "+Content-Length: 5": N_CHUNKS,
        "framing 'chunked' -> 'length'": N_CHUNKS,
        "trailers [b'X-T: 1', b'x-t: 2'] -> []": N_TRAILERS,
    },
    "a length among the trailers": {
        "forwarded": N_TRAILERS,
        "answer 400 -> 200": N_TRAILERS,
    },
    "expect": {
        "-Expect: 100-continue": N_EXPECT,
        "interim [] -> [100]": N_EXPECT,
    },
    "expect without content": {
        "-Expect: 100-continue": N_EXPECT,
        "interim [] -> [100]": N_EXPECT,
    },
    "another expectation": {
        "-Expect: the-unexpected": N_EXPECT,
    },
    "http/1.0": {
        "GET /v1/x HTTP/1.0 -> GET /v1/x HTTP/1.1": VERSION,
    },
    "http/1.0 without host": {
        "GET /v1/x HTTP/1.0 -> GET /v1/x HTTP/1.1": VERSION,
    },
    "http/1.0 with keep-alive": {
        "GET /v1/x HTTP/1.0 -> GET /v1/x HTTP/1.1": VERSION,
        "-Connection: keep-alive": HOP,
    },
    "http/1.0 with content": {
        "POST /v1/x HTTP/1.0 -> POST /v1/x HTTP/1.1": VERSION,
    },
    "http/1.0 with expect": {
        "POST /v1/x HTTP/1.0 -> POST /v1/x HTTP/1.1": VERSION,
        "-Expect: 100-continue": EXPECT_1_0,
    },
    "http/1.2": {
        "GET /v1/x HTTP/1.2 -> GET /v1/x HTTP/1.1": VERSION,
    },
    "http/2.0": {
        "answer 400 -> 505": VERSION_REFUSED,
    },
    "an empty host": {
        "not forwarded": N_HOST,
        "answer 200 -> 400": N_HOST,
    },
    "a malformed host": {
        "not forwarded": N_HOST,
        "answer 200 -> 400": N_HOST,
    },
    "an empty coding": {
        "answer 400 -> 501": CODING,
    },
    "an unknown coding": {
        "answer 400 -> 501": CODING,
    },
    "identity": {
        "answer 400 -> 501": CODING,
    },
    "a field without a colon": {
        "forwarded": N_LENIENT,
        "answer 400 -> 200": N_LENIENT,
    },
    "a bare LF between fields": {
        "forwarded": N_LENIENT,
        "answer 400 -> 200": N_LENIENT,
    },
    "two blanks in the request line": {
        "forwarded": N_LENIENT,
        "answer 400 -> 200": N_LENIENT,
    },
    "bare LFs only": {
        "answer 400 -> 200": N_LENIENT,
    },
    "a bare LF after a chunk size": {
        "forwarded": N_LENIENT,
        "answer 400 -> 200": N_LENIENT,
    },
    "a bare LF after a chunk": {
        "forwarded": N_LENIENT,
        "answer 400 -> 200": N_LENIENT,
    },
}

ANSWERS_HERE: Table = {
    "no blank after the status": {
        "answer b'200' -> b'200 '": BLANK,
    },
    "connection and what it names": {
        "answer -Connection: X-Gone": HOP,
        "answer -X-Gone: 1": HOP,
        "answer -Keep-Alive: 5": HOP,
    },
    "connection close": {
        "answer -Connection: close": HOP,
    },
    "upgrade": {
        "answer -Upgrade: h2c": HOP,
        "answer -Connection: Upgrade": HOP,
    },
    "proxy-authenticate": {
        "answer -Proxy-Authenticate: Basic": FOR_US,
    },
    "204 with a length": {
        "answer -Content-Length: 0": NO_LENGTH,
    },
    "chunked in capitals": {
        "answer -TRANSFER-ENCODING: CHUNKED": FRAMING,
        "answer +Transfer-Encoding: chunked": FRAMING,
    },
    "trailers not asked for": {
        "answer -Trailer: X": NO_TRAILERS,
    },
    "trailers asked for": {
        "answer +Trailer: X": FRAMING,
        "answer -Trailer: X": FRAMING,
    },
    "until the end": {
        "answer +Transfer-Encoding: chunked": CHUNKED,
    },
    "http/1.0 until the end": {
        "answer +Transfer-Encoding: chunked": CHUNKED,
    },
    "switch of protocols": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "bytes after the end": {
        "answer 200 -> 502 PROXY_UPSTREAM_UNREACHABLE": AFTER_END,
    },
    "bytes after the last chunk": {
        "answer 200 -> 502 PROXY_UPSTREAM_UNREACHABLE": AFTER_END,
    },
    "content of a 204": {
        "answer 204 -> 502 PROXY_UPSTREAM_UNREACHABLE": AFTER_END,
    },
    "cut head": {
        "answer cut -> 502 PROXY_UPSTREAM_UNREACHABLE": CUT,
    },
    "nothing": {
        "answer cut -> 502 PROXY_UPSTREAM_UNREACHABLE": CUT,
    },
    "length and coding": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "two equal lengths": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "two lengths": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a malformed length": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "an unknown coding": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a malformed chunk size": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "bare LFs": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a bare LF between fields": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a folded field": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "NUL in a value": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a control character in a value": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a blank before the colon": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a field without a colon": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "a malformed status line": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "http/2.0": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
    "http/0.9": {
        "answer malformed -> 502 PROXY_UPSTREAM_UNREACHABLE": MALFORMED,
    },
}

ANSWERS_NGINX: Table = {
    "order and case of fields": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "cookies": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "empty and foreign values": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -X-Empty:": N_BLANK,
        "answer +X-Empty: ": N_BLANK,
        "answer -Content-Length: 0": N_ORDER,
    },
    "a redirect to the cloud": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "busy": {
        "answer +Content-Length: 2": N_ORDER,
        "answer -Content-Length: 2": N_ORDER,
    },
    "not authorized for that": {
        "answer +Content-Length: 2": N_ORDER,
        "answer -Content-Length: 2": N_ORDER,
    },
    "coded content": {
        "answer +Content-Length: 3": N_ORDER,
        "answer -Content-Length: 3": N_ORDER,
    },
    "an entity tag": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "caching": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "connection and what it names": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Keep-Alive: 5": HOP,
        "answer -Content-Length: 0": N_ORDER,
    },
    "upgrade": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "proxy-authenticate": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "via": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "x-accel fields": {
        "answer -X-Accel-Limit-Rate: 0": N_ACCEL,
        "answer -X-Pad: a": N_ACCEL,
    },
    "304": {
        "answer +Content-Length: 5": N_ORDER,
        "answer -Content-Length: 5": N_ORDER,
    },
    "head of chunks": {
        "answer -Transfer-Encoding: chunked": N_HEAD,
    },
    "chunked in capitals": {
        "answer -TRANSFER-ENCODING: CHUNKED": FRAMING,
        "answer +Transfer-Encoding: chunked": FRAMING,
    },
    "trailers asked for": {
        "-TE: trailers": N_TE,
        "-Connection: TE": N_TE,
    },
    "until the end": {
        "answer +Transfer-Encoding: chunked": CHUNKED,
    },
    "http/1.0 until the end": {
        "answer +Transfer-Encoding: chunked": CHUNKED,
    },
    "a field of 3 KiB": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "a field of 20 KiB": {
        "answer 200 -> 502": N_LIMIT,
    },
    "300 fields": {
        "answer +Content-Length: 0": N_ORDER,
        "answer -Content-Length: 0": N_ORDER,
    },
    "cut head": {
        "answer cut -> 502": CUT,
    },
    "nothing": {
        "answer cut -> 502": CUT,
    },
    "length and coding": {
        "answer malformed -> 200": N_PASSED,
    },
    "two equal lengths": {
        "answer malformed -> 200": N_PASSED,
    },
    "two lengths": {
        "answer malformed -> 200": N_PASSED,
    },
    "a malformed length": {
        "answer malformed -> 200": N_PASSED,
    },
    "an unknown coding": {
        "answer malformed -> 200": N_PASSED,
    },
    "a malformed chunk size": {
        "answer malformed -> cut": N_LATE,
    },
    "bare LFs": {
        "answer malformed -> 200": N_PASSED,
    },
    "a bare LF between fields": {
        "answer malformed -> 200": N_PASSED,
    },
    "a folded field": {
        "answer malformed -> 502": MALFORMED,
    },
    "NUL in a value": {
        "answer malformed -> 502": MALFORMED,
    },
    "a blank before the colon": {
        "answer malformed -> 502": MALFORMED,
    },
    "a field without a colon": {
        "answer malformed -> 200": N_PASSED,
    },
    "http/2.0": {
        "answer malformed -> 200": N_PASSED,
    },
}
