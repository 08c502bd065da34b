"""A web page of another site can do nothing to a running proxy, shown in a real browser.

Each kind of request is also sent to a server without a guard, where it arrives. This proves that the
proxy refuses the requests, and that the test sends them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from support.chromium import CHROMEDRIVER, CHROMIUM, Browser, browser
from support.harness import WAIT_S, Gateway, RawServer, Upstream, gateway
from support.pages import EVERY_WAY, WAYS, Unguarded

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None, reason="no Chromium here (Debian: chromium chromium-driver)"
    ),
    pytest.mark.asyncio(loop_factories=["asyncio"]),  # a browser's rules don't depend on our loop
]

TELLING_WAYS = (
    *("fetch-cors", "post-cors", "post-json", "fetch-key", "delete"),
    *("image", "script", "events", "websocket"),
)
"""The ways whose outcome a page can see."""
SAME_ORIGIN = """
const ways = [['GET', undefined], ['POST', '{}'], ['DELETE', undefined]];
const statuses = [];
for (const [method, body] of ways) {
  const answer = await fetch('/v1/segments?way=' + method, { method, body });
  statuses.push(answer.status);
}
return [location.host, ...statuses];
"""

CONNECTOR = """
const [target] = given, told = { schema: [], rows: [], error: '' };
let connector;
const tableau = {
  dataTypeEnum: { datetime: 'datetime', float: 'float' },
  makeConnector: () => ({}),
  registerConnector: (made) => { connector = made; },
};
const mine = tableau.makeConnector();
mine.getSchema = (done) => done([{ id: 'visits', columns: [
  { id: 'startDate', dataType: tableau.dataTypeEnum.datetime },
  { id: 'value', dataType: tableau.dataTypeEnum.float },
] }]);
mine.getData = async (table, done) => {
  const answer = await fetch(`${target}/v1/metrics/site/visits`);
  table.appendRows((await answer.json()).payload.values);
  done();
};
tableau.registerConnector(mine);
// What Tableau does with a connector (WDC 2.x): first its schema, then its rows.
connector.getSchema((tables) => { told.schema = tables[0].columns.map((column) => column.id); });
try {
  await new Promise((done, failed) => {
    connector.getData({ appendRows: (rows) => told.rows.push(...rows) }, done).catch(failed);
  });
} catch (error) {
  told.error = error.message;
}
return told;
"""
"""A Web Data Connector for Tableau, in a page that has what it needs of Tableau's library."""
ROWS = [{"startDate": "2026-01-01T00:00:00.000Z", "value": 7}]


@dataclass
class Scene:
    """A running proxy, another site's server, a server without a guard, and a browser."""

    proxy: Gateway
    upstream: Upstream
    pages: RawServer
    echo: RawServer
    unguarded: Unguarded
    browser: Browser

    async def all_ways_arrive(self, what: str) -> None:
        """Wait, because the page can't see the end of some requests: they may still be on their way."""
        ends_at = time.monotonic() + WAIT_S
        while (ways := self.unguarded.ways()) != WAYS:
            assert time.monotonic() < ends_at, (what, WAYS ^ ways)
            await asyncio.sleep(0.02)

    async def still_serves(self) -> None:
        assert (await self.proxy.call(b"GET /v1/segments")).status == 200
        [request] = self.upstream.requests
        assert request.start_line == b"GET /v1/segments HTTP/1.1"


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    upstream, unguarded = Upstream(), Unguarded([])
    async with (
        gateway(upstream) as proxy,
        RawServer(Unguarded([])) as pages,
        RawServer(unguarded) as echo,
        browser() as chromium,
    ):
        yield Scene(proxy, upstream, pages, echo, unguarded, chromium)


PAGES = {
    "same site, another port": ("127.0.0.1", "127.0.0.1"),
    "another site": ("localhost", "127.0.0.1"),
    "another site, by our other name": ("127.0.0.1", "localhost"),
    "a page of the internet": ("attacker.test", "127.0.0.1"),
    "0.0.0.0-day": ("attacker.test", "0.0.0.0"),
}
"""The host of a page, and the host by which the page calls the proxy."""


async def test_a_web_page_of_another_origin_reaches_nothing_by_any_way_it_has() -> None:
    async with scene() as stage:
        for what, (page, target) in PAGES.items():
            stage.unguarded.requests.clear()
            await stage.browser.open(f"http://{page}:{stage.pages.port}/")
            await stage.browser.run(EVERY_WAY, f"http://{target}:{stage.echo.port}")
            if target != "0.0.0.0":  # newer browsers refuse this one themselves
                await stage.all_ways_arrive(what)
            seen = await stage.browser.run(EVERY_WAY, f"http://{target}:{stage.proxy.port}")
            assert set(seen) == WAYS
            assert {seen[way] for way in TELLING_WAYS} == {"error"}, (what, seen)
            assert not stage.upstream.requests, what
        await stage.still_serves()


async def test_dns_rebinding_reaches_nothing_though_the_browser_takes_it_for_the_same_origin() -> None:
    async with scene() as stage:
        for port, status in ((stage.echo.port, 200), (stage.proxy.port, 421)):
            await stage.browser.open(f"http://attacker.test:{port}/v1/segments?way=address-bar")
            seen = await stage.browser.run(SAME_ORIGIN)
            assert seen == [f"attacker.test:{port}", status, status, status]
        assert stage.unguarded.ways() == {"address-bar", "GET", "POST", "DELETE"}
        assert not stage.upstream.requests
        await stage.still_serves()


async def test_a_web_data_connector_for_tableau_is_a_web_page_like_any_other() -> None:
    content = json.dumps({"success": True, "payload": {"values": ROWS}}).encode()
    head = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: %d\r\n\r\n" % len(content)
    upstream = Upstream(head + content)
    async with (
        gateway(upstream) as proxy,
        RawServer(Unguarded([])) as pages,
        RawServer(Upstream(head + content)) as unguarded,
        browser() as chromium,
    ):
        await chromium.open(pages.url)
        columns = ["startDate", "value"]
        told = await chromium.run(CONNECTOR, unguarded.url)
        assert told == {"schema": columns, "rows": ROWS, "error": ""}
        told = await chromium.run(CONNECTOR, f"http://127.0.0.1:{proxy.port}")
        assert told == {"schema": columns, "rows": [], "error": "Failed to fetch"}
        assert not upstream.requests


async def test_who_types_the_address_himself_is_let_in() -> None:
    async with scene() as stage:
        await stage.browser.open(f"http://localhost:{stage.proxy.port}/v1/segments")
        assert await stage.browser.run("return document.body.textContent") == "ok"
        assert [request.start_line for request in stage.upstream.requests][:1] == [
            b"GET /v1/segments HTTP/1.1"
        ]


async def test_a_browser_that_opens_the_root_shows_the_page() -> None:
    async with scene() as stage:
        await stage.browser.open(f"http://127.0.0.1:{stage.proxy.port}")
        assert await stage.browser.run("return location.pathname") == "/-/"
        assert await stage.browser.run("return document.querySelector('h1').innerText") == "csq-proxy"
        assert not stage.upstream.requests
