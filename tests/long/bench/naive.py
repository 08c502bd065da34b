"""A proxy with aiohttp and uvloop as one first writes it: the peer to be measured against, not a model.

Run as a program: `naive.py PORT UPSTREAM TOKEN [--ca FILE] [--slots N] [--log]`.
"""

from __future__ import annotations

import argparse
import logging
import ssl
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, TCPConnector, web

HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class Proxy:
    """One upstream and one token."""

    def __init__(self, upstream: str, token: str, ca_file: str | None, slots: int) -> None:
        self._upstream = upstream
        self._token = token
        self._slots = slots
        self._tls = ssl.create_default_context(cafile=ca_file)

    async def session(self, _app: web.Application) -> AsyncIterator[None]:
        """The session lives as long as the application."""
        async with ClientSession(connector=TCPConnector(ssl=self._tls, limit=self._slots)) as self._session:
            yield

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on and its answer back."""
        headers = request.headers.copy()
        for name in {*HOP_BY_HOP, "host", "authorization"}:
            headers.popall(name, None)
        headers["Authorization"] = f"Bearer {self._token}"
        async with self._session.request(
            request.method,
            self._upstream + request.path_qs,
            headers=headers,
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
        ) as upstream:
            response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for name, value in upstream.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("upstream")
    parser.add_argument("token")
    parser.add_argument("--ca", default=None)
    parser.add_argument("--slots", type=int, default=100, help="requests at once; the others wait")
    parser.add_argument("--log", action="store_true", help="an access log on standard error")
    options = parser.parse_args()
    if options.log:
        logging.basicConfig(level=logging.INFO)
    proxy = Proxy(options.upstream, options.token, options.ca, options.slots)
    app = web.Application()
    app.cleanup_ctx.append(proxy.session)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    web.run_app(
        app,
        host="127.0.0.1",
        port=options.port,
        print=None,
        access_log=logging.getLogger("aiohttp.access") if options.log else None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
