"""What a web page of another site can send to each kind of name, by raw requests with browsers' fields.

`tests/whole/test_browser.py` and `tests/long/browsers/run.py` show the same in browsers.
"""

from __future__ import annotations

import base64
import itertools

import pytest
from support.harness import Upstream, free_port, gateway

KEY = "the-key-of-a-dashboard"
BASIC = b"Authorization: Basic " + base64.b64encode(f"any:{KEY}".encode())
WAYS = {
    "image": (b"GET", b"no-cors", b"image", b""),
    "script": (b"GET", b"no-cors", b"script", b""),
    "fetch-no-cors": (b"GET", b"no-cors", b"empty", b""),
    "fetch-cors": (b"GET", b"cors", b"empty", b"http://wiki.corp"),
    "iframe": (b"GET", b"navigate", b"iframe", b""),
    "link": (b"GET", b"navigate", b"document", b""),
    "form-post": (b"POST", b"navigate", b"document", b"http://wiki.corp"),
    "form-post, no referrer": (b"POST", b"navigate", b"document", b"null"),
    "post-no-cors": (b"POST", b"no-cors", b"empty", b"http://wiki.corp"),
    "preflight": (b"OPTIONS", b"cors", b"empty", b"http://wiki.corp"),
    "websocket": (b"GET", b"websocket", b"empty", b"http://wiki.corp"),
}
"""The method, the mode and the destination (W3C, Fetch Metadata), and the Origin ("": none)."""


def fields(way: str, *, trusted: bool, referrer: bool, key: bool) -> list[bytes]:
    """The fields of a browser. ``trusted`` names are those by https, and loopback names."""
    _, mode, kind, origin = WAYS[way]
    found = [b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: " + mode, b"Sec-Fetch-Dest: " + kind]
    return [
        *(found if trusted else ()),
        *([b"Origin: " + origin] if origin else ()),
        *([b"Referer: http://wiki.corp/"] if referrer else ()),
        *([BASIC] if key else ()),
    ]


@pytest.mark.parametrize("callers", [False, True])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "proxy.corp"])
async def test_a_page_of_another_site_makes_no_call(name: str, callers: bool) -> None:
    port, upstream = free_port(), Upstream()
    trusted = name != "proxy.corp"
    if not trusted and not callers:
        return  # such a configuration is refused: tests/config/test_checks.py
    names = [] if trusted else [f"{name}:{port}"]
    known = {"dashboard": {"key": KEY}} if callers else {}
    unseen = set()
    async with gateway(upstream, server={"port": port, "allowed_hosts": names}, callers=known) as proxy:
        host = f"{name}:{port}".encode()
        for way, referrer, key in itertools.product(WAYS, (True, False), (True, False)):
            lines = fields(way, trusted=trusted, referrer=referrer, key=key)
            start = WAYS[way][0] + b" /v1/segments HTTP/1.1"
            head = b"\r\n".join((start, b"Host: " + host, *lines, b"Content-Length: 0", b"", b""))
            answer = await proxy.send(head)
            if answer.status == 200:
                unseen.add((way, referrer, key))
            else:
                assert answer.status in (401, 403), (way, referrer, key)
        assert len(upstream.requests) == len(unseen)
        # A GET without any mark can't be told from a program's. It needs the key, which a browser has only
        # where a person typed it for a call: the page has a realm of its own.
        gets = {way for way, (method, _, _, origin) in WAYS.items() if method == b"GET" and not origin}
        assert unseen == (set() if trusted else {(way, False, True) for way in gets})


@pytest.mark.parametrize("name", ["127.0.0.1", "proxy.corp"])
async def test_a_link_of_another_site_opens_the_page_and_no_frame_does(name: str) -> None:
    port = free_port()
    trusted = name != "proxy.corp"
    server = {"port": port, "allowed_hosts": [f"proxy.corp:{port}"]}
    async with gateway(server=server, callers={"dashboard": {"key": KEY}}) as proxy:
        for way, referrer in itertools.product(("link", "iframe"), (True, False)):
            lines = fields(way, trusted=trusted, referrer=referrer, key=True)
            head = b"\r\n".join((b"GET /-/ HTTP/1.1", f"Host: {name}:{port}".encode(), *lines, b"", b""))
            answer = await proxy.send(head)
            assert answer.status == (403 if trusted and way == "iframe" else 200)
            if answer.status == 200:
                assert b"frame-ancestors 'none'" in answer.values(b"content-security-policy")[0]


async def test_the_icon_that_a_browser_asks_for_beside_a_refusal_goes_nowhere() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        marks = (b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Mode: no-cors", b"Sec-Fetch-Dest: image")
        answer = await proxy.call(b"GET /favicon.ico", *marks)
        assert answer.status == 204
        assert not upstream.requests
