"""The page about traffic: health, recent requests, the minutes of the last hour; and who can read it."""

from __future__ import annotations

import functools
import json
import shlex
import time
from types import SimpleNamespace

import pytest
from support.chromium import AXE, Browser, browser
from support.harness import Gateway, Message, Upstream, free_port, gateway, until
from support.page import drawn, needs_chromium, opened, page, put_in, text_of

from proxy.contentsquare import Api

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])
SECRET = "canary-secret-5f1c"
PROJECTS = {"shop": {"client_id": "id-1", "client_secret": SECRET, "apis": ["metrics"], "quota": 4}}
FORTY = {
    f"brand-{number:02}": {"client_id": f"id-{number}", "client_secret": SECRET, "apis": ["metrics"]}
    for number in range(40)
}
KEY = "canary-key-0123456789abcdef"
OTHER_KEY = "canary-key-of-another-one"
CALLERS = {"powerbi": {"key": KEY}}
ROWS = "[...document.querySelectorAll('[data-is=request-rows] tr:not([hidden])')].map((row) => row.innerText)"
READOUT = "document.querySelector('[data-is=readout]').textContent"
TABLE = (
    "[...document.querySelectorAll('[data-is=minutes-rows] tr')].map((row) => row.cells[1].innerText).join()"
)
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
BAD = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"


def bad_at_posts(request: Message) -> bytes:
    return BAD if request.start_line.startswith(b"POST") else FINE


async def without_token(proxy: Gateway, name: str) -> None:
    """Have Contentsquare refuse this project's credentials."""
    keeper = proxy.app._generation.projects[name].keepers[Api.METRICS]
    lease = keeper.current()
    assert lease is not None
    proxy.token.status = 403
    keeper.reject(lease)
    await until(lambda: keeper.status().state == "refused")


@needs_chromium
async def test_the_banner_names_the_worst_trouble_and_the_project_in_trouble_comes_first() -> None:
    async with gateway(projects=FORTY) as proxy:
        await without_token(proxy, "brand-27")
        async with page(proxy) as chromium:
            banner = await text_of(chromium, "#banner")
            for part in (
                "failing",
                "1 of 41 projects: no token",
                "brand-27: No token",
                "csq-proxy check --live",
            ):
                assert part in banner
            assert await text_of(chromium, "article h2") == "brand-27"
            assert "41 projects" in await text_of(chromium, "#summary")
            titled = await chromium.run("return document.title")
            assert titled == "failing: brand-27 - csq-proxy"
            await put_in(chromium, "#filter", "BRAND-3")
            assert await text_of(chromium, "#found") == "10 of 41"
            await put_in(chromium, "#filter", "failing")
            assert await text_of(chromium, "#found") == "1 of 41"
            await chromium.run("document.querySelector('#banner-show').click()")
            assert await text_of(chromium, "#found") == ""


async def test_a_poll_brings_the_open_projects_whole_and_the_others_in_short() -> None:
    async with gateway(projects=FORTY) as proxy:
        await proxy.call(b"GET /brand-07/v1/segments")
        short = await proxy.call(b"GET /-/status?detail=")
        whole = await proxy.call(b"GET /-/status?hour=1")
        opened = json.loads((await proxy.call(b"GET /-/status?detail=brand-07&detail=brand-08")).content)
    assert 2 * len(short.content) < len(whole.content)
    assert len(short.content) < 40 * 400 + 2000
    projects = json.loads(whole.content)["projects"]
    assert [name for name, project in opened["projects"].items() if "hour" in project] == [
        "brand-07",
        "brand-08",
    ]
    assert opened["projects"]["brand-07"].keys() == projects["brand-07"].keys()
    in_short = json.loads(short.content)["projects"]["brand-07"]
    assert in_short["requests"] == 1
    assert in_short["responses"] == projects["brand-07"]["responses"]


@needs_chromium
async def test_recent_requests_are_filtered_looked_at_and_copied_without_a_key() -> None:
    key = b"X-API-Key: " + KEY.encode()
    async with (
        gateway(Upstream(bad_at_posts), projects=PROJECTS, callers=CALLERS) as proxy,
        page(proxy, f"anybody:{KEY}@") as chromium,
    ):
        await chromium.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        await chromium.devtools("Emulation.setFocusEmulationEnabled", enabled=True)
        await proxy.call(b"GET /shop/v1/segments?secret=canary", key)
        await proxy.call(
            b"POST /shop/v1/<img%20src=x>/'$(id)", key, b"X-Request-Id: of-mine", b"Content-Length: 0"
        )
        await drawn(chromium, f"{ROWS}.length === 2")
        newest, oldest = await chromium.run(f"return {ROWS}")
        for part in ("GET /shop/v1/segments?...", "200", "Contentsquare", "powerbi"):
            assert part in oldest
        assert "500" in newest
        await put_in(chromium, "[data-is=which]", "slow")
        assert await chromium.run(f"return {ROWS}") == []
        await put_in(chromium, "[data-is=which]", "errors")
        assert await chromium.run(f"return {ROWS}") == [newest]
        await chromium.run("document.querySelector('tr:not([hidden]) .route').click()")
        details = await text_of(chromium, "tr.detail")
        for part in ("Contentsquare failed", "Answered by", "of-mine"):
            assert part in details
        await chromium.run("document.querySelector('tr.detail button').click()")
        await drawn(chromium, "document.querySelector('tr.detail button').innerText === 'Copied'")
        words = shlex.split(await chromium.run("return navigator.clipboard.readText()"))
        assert words[-1] == f"http://127.0.0.1:{proxy.port}/shop/v1/<img%20src=x>/'$(id)"
        assert "X-API-Key: KEY" in words
        assert await chromium.run("return document.querySelectorAll('main img').length") == 0
        assert "canary" not in await chromium.run("return document.documentElement.outerHTML")


@needs_chromium
async def test_a_request_that_reached_no_project_is_found_too() -> None:
    async with gateway(projects=PROJECTS) as proxy, page(proxy) as chromium:
        await proxy.call(b"TRACE /v1/segments")
        await drawn(chromium, "!document.querySelector('#unrouted').hidden")
        assert "PROXY_METHOD_REFUSED 1" in await text_of(chromium, "#refused")
        rows = "document.querySelector('#unrouted [data-is=request-rows]')"
        assert not await chromium.run(f"return {rows}")
        for _ in range(20):  # now they are the worst trouble
            await proxy.call(b"TRACE /v1/segments")
        await drawn(chromium, f"{rows}?.innerText.includes('TRACE /v1/segments')")
        assert "requests refused" in await text_of(chromium, "#banner")
        assert "your program" in await text_of(chromium, "#banner")


@needs_chromium
async def test_a_minutes_values_are_read_by_keyboard_and_touch_and_in_a_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    monkeypatch.setattr("proxy.admin.status.time", SimpleNamespace(time=lambda: now))  # the same minute
    async with gateway(projects=PROJECTS) as proxy:
        measures = proxy.app._generation.projects["shop"].measures
        for minutes_ago in (3, 2, 1, 0):
            measures._now = functools.partial(lambda at: at, now - 60 * minutes_ago)
            for _ in range(4 - minutes_ago):
                await proxy.call(b"GET /shop/v1/segments")
        proxy.app._gateway._own._pages._started_at -= 600  # the axis begins ten minutes ago
        async with page(proxy) as chromium:
            await drawn(chromium, f"{READOUT}.startsWith('4 requests')")
            cells = await chromium.run("return Number(document.querySelector('[data-is=minute]').max)")
            assert cells in (10, 11)
            await put_in(chromium, "[data-is=minute]", str(cells - 2))
            assert (await chromium.run(f"return {READOUT}")).startswith("2 requests, no errors; median")
            spoken = "return document.querySelector('[data-is=minute]').getAttribute('aria-valuetext')"
            assert "2 requests" in await chromium.run(spoken)
            await chromium.run(
                "const svg = document.querySelector('[data-is=slots-chart]');"
                "const box = svg.getBoundingClientRect();"
                "const at = { clientX: box.left + box.width * given[0], pointerType: 'touch' };"
                "svg.dispatchEvent(new PointerEvent('pointerdown', at));"
                "svg.dispatchEvent(new PointerEvent('pointerleave', at))",
                (cells - 0.5) / (cells + 1),
            )
            assert (await chromium.run(f"return {READOUT}")).startswith("3 requests")
            await chromium.run("document.querySelector('[data-is=minutes]').open = true")
            await drawn(chromium, f"{TABLE} === '4,3,2,1'")
            assert (await text_of(chromium, "[data-is=requests-from]")).endswith("the start")
            # The quota of 4 is reached, and the table of callers has all ten.
            assert "10 of 4" in await text_of(chromium, "[data-is=calls]")
            assert await chromium.run("return !!document.querySelector('.notices .bad')")
            assert "without a key" in await text_of(chromium, "[data-is=usage-rows]")


NODES = {"empty": "[data-is=first-call]", "busy": ".route", "failing": ".route", "stopped": ".route"}


@needs_chromium
@pytest.mark.skipif(AXE is None, reason="no axe-core in $NODE_PATH here (npm install axe-core)")
@pytest.mark.parametrize("state", NODES)
async def test_axe_finds_nothing_that_keeps_people_out(state: str) -> None:
    server = {"port": free_port(), "drain_timeout": 1}
    async with browser() as chromium:
        async with gateway(Upstream(bad_at_posts), projects=PROJECTS, server=server) as proxy:
            if state != "empty":
                await proxy.call(b"GET /shop/v1/segments")
                await proxy.call(b"POST /shop/v1/segments", b"Content-Length: 0")
            if state == "failing":
                await without_token(proxy, "shop")
            await opened(chromium, proxy)
            await drawn(chromium, f"document.querySelector('{NODES[state]}')?.textContent")
            await chromium.run("document.querySelector('tr:not([hidden]) .route')?.click()")
            await chromium.run("for (const part of document.querySelectorAll('details')) part.open = true")
            await drawn(chromium, "document.querySelectorAll('[data-is=tool] option').length")
            if state != "stopped":
                await _look(chromium)
        if state == "stopped":
            await drawn(chromium, "document.querySelector('#live').textContent === 'not live'")
            await _look(chromium)


async def _look(chromium: Browser) -> None:
    """By axe: in both colour schemes, on a phone, and at 400 % of 1280 pixels, which is as wide as 320."""
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "dark"), (320, "light")):
        await chromium.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        await chromium.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        assert await chromium.axe() == []
        assert await chromium.run("return document.documentElement.scrollWidth") <= width


@needs_chromium
async def test_a_caller_with_limits_is_told_why_its_list_is_empty_beside_counts_of_others() -> None:
    limited = {"key": KEY, "read_only": True}
    callers = {"limited": limited, "other": {"key": OTHER_KEY}}
    async with gateway(projects=PROJECTS, callers=callers) as proxy:
        await proxy.call(b"GET /shop/v1/segments", b"X-API-Key: " + OTHER_KEY.encode())
        async with page(proxy, f"anybody:{KEY}@") as chromium:
            await drawn(chromium, "document.querySelector('[data-is=no-requests]')?.offsetParent")
            shown = await text_of(chromium, "[data-is=no-requests]")
    assert shown == "No request to show. A caller with limits sees its own requests only."
