"""The status page in a real browser: what it shows, and that its console stays empty."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import socket
import time
from pathlib import Path

import pytest
from support.chromium import browser
from support.harness import WAIT_S, Gateway, RawServer, TokenServer, Upstream, free_port, gateway
from support.page import CONFIG, drawn, needs_chromium, opened, page, text_of
from support.snippets import executed

from proxy.admin.admin import PAGE_FILES
from proxy.app.app import App
from proxy.config.load import load
from proxy.config.settings import DEFAULT_PORT, Settings
from proxy.contentsquare import Api
from proxy.sandbox import Sandbox, SandboxOptions

pytestmark = pytest.mark.asyncio(
    loop_factories=["asyncio"]
)  # the page can't tell one event loop from another, and browsers are slow
PROJECTS = {
    "shop": {"client_id": "id-1", "client_secret": "canary-secret-5f1c", "apis": ["metrics", "surveys"]},
    "ro": {"client_id": "id-2", "client_secret": "canary-secret-5f1c", "apis": [], "read_only": True},
}
CALLERS = {"powerbi": {"key": "canary-key-0123456789abcdef"}}
VISITS = b"GET /%b/v1/metrics/site/visits?startDate=2026-01-01&endDate=2026-01-07&period=daily"
SLOW = b"GET /%b/v1/x-sandbox/slow?seconds=30"
CHOOSE = """
    const tool = document.querySelector('[data-is=tool]');
    tool.value = given[0];
    tool.dispatchEvent(new Event('change'));
    document.querySelector('[data-copies=snippet]').click();
    await new Promise((done) => setTimeout(done, 50));
    return navigator.clipboard.readText();
"""
TEXT = "return document.querySelector('main').innerText"


def snippet(proxy: Gateway, tool: str) -> str:
    overview = proxy.app.overview
    assert overview.page_texts is not None
    return overview.page_texts.tools(overview.settings_in_use, "shop")[tool].rstrip("\n")


async def test_the_page_has_a_strict_policy_and_brings_nothing_from_elsewhere() -> None:
    async with gateway() as proxy:
        for target in PAGE_FILES:
            answer = await proxy.call(b"GET " + target)
            assert answer.status == 200
            assert answer.values(b"content-security-policy")[0].startswith(
                b"default-src 'none'; script-src 'self'"
            )
            assert answer.values(b"referrer-policy") == [b"no-referrer"]
            assert answer.values(b"x-content-type-options") == [b"nosniff"]
            assert b"https://" not in answer.content
            assert answer.content.replace(b"http://www.w3.org/2000/svg", b"").count(b"http://") == 0
        for line in (b"Sec-Fetch-Site: cross-site", b"Origin: http://evil.example"):
            assert (await proxy.call(b"GET /-/", line)).error_code == "PROXY_ORIGIN_REFUSED"


@needs_chromium
async def test_it_shows_each_project_and_no_secret() -> None:
    async with gateway(projects=PROJECTS) as proxy, page(proxy) as chromium:
        text = await chromium.run(TEXT)
        for shown in (f"http://127.0.0.1:{proxy.port}/shop", "0 of 10", "read-only", "all 2 fresh", "60 min"):
            assert shown in text
        assert "surveys" not in text  # the tokens are one line unless something is wrong
        everything = await chromium.run("return document.documentElement.outerHTML")
        for hidden in ("canary", "id-1", "token-1"):
            assert hidden not in everything


@needs_chromium
async def test_it_follows_what_happens_without_a_reload_and_leaves_the_focus_where_it_is() -> None:
    async with gateway(projects=PROJECTS) as proxy, page(proxy) as chromium:
        await chromium.run("window.kept = 1; document.querySelector('[data-copies=url]').focus()")
        assert "1 request, no errors" not in await chromium.run(TEXT)
        await proxy.call(b"GET /shop/v1/segments")
        await drawn(chromium, "document.querySelector('main').innerText.includes('1 request, no errors')")
        label = "return document.querySelector('[data-is=requests-chart]').getAttribute('aria-label')"
        assert await chromium.run(label) == (
            "Requests per minute: 1 request, no errors in the last hour, at most 1 in a minute"
        )
        assert await chromium.run("return [window.kept, document.activeElement.dataset.copies]") == [1, "url"]


@needs_chromium
async def test_it_says_which_token_fails_and_what_to_do() -> None:
    token = TokenServer()
    async with gateway(token=token, projects=PROJECTS) as proxy, page(proxy) as chromium:
        token.status = 403
        keeper = proxy.app._generation.projects["shop"].keepers[Api.METRICS]
        lease = keeper.current()
        assert lease is not None
        keeper.reject(lease)
        await drawn(chromium, "document.querySelector('article .pill').textContent.startsWith('no token')")
        assert (await proxy.call(b"GET /shop/v1/segments")).error_code == "PROXY_TOKEN_UNAVAILABLE"
        await drawn(chromium, "document.querySelector('.errors li')")
        text = await chromium.run(TEXT)
        assert "credentials refused" in text
        assert "PROXY_TOKEN_UNAVAILABLE" in text
        assert "ask your Contentsquare administrator" in text
        assert (await text_of(chromium, "#news")).startswith("degraded: ")  # what a screen reader says


@needs_chromium
async def test_what_it_gives_to_copy_is_copied(tmp_path: Path) -> None:
    cloud = Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
    async with gateway(cloud, projects=PROJECTS) as proxy, page(proxy) as chromium:
        await chromium.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        await chromium.devtools("Emulation.setFocusEmulationEnabled", enabled=True)
        await chromium.run("document.querySelector('[data-copies=url]').click()")
        await drawn(chromium, "document.querySelector('[data-copies=url]').innerText.startsWith('Copied')")
        url = f"http://127.0.0.1:{proxy.port}/shop"
        assert await chromium.run("return navigator.clipboard.readText()") == url
        await chromium.run("document.querySelector('[data-is=use]').open = true")
        await drawn(chromium, "document.querySelector('[data-is=tool]').length")
        assert await chromium.run(CHOOSE, "curl") == snippet(proxy, "curl")
        for tool, part in (
            ("powerbi", f'Web.Contents("{url}"'),
            ("export", "/-/exports/shop/JOB_ID/latest.csv"),
        ):
            assert part in await chromium.run(CHOOSE, tool)
        script = await chromium.run(CHOOSE, "python")
        assert script == snippet(proxy, "python")
        first = await text_of(chromium, "[data-is=first-call]")
        assert first in await chromium.run(CHOOSE, "curl")
        assert len(first.splitlines()) == 1
        printed = await executed(tmp_path, "sh", "it.sh", file="it.sh", content=first)
        assert printed == "[]"


@needs_chromium
async def test_where_callers_are_defined_the_browser_asks_for_the_key_and_the_snippets_name_it() -> None:
    async with gateway(projects=PROJECTS, callers=CALLERS) as proxy:
        assert (await proxy.call(b"GET /-/")).status == 401
        async with page(proxy, "anybody:canary-key-0123456789abcdef@") as chromium:
            await proxy.call(b"GET /shop/v1/segments", b"X-API-Key: canary-key-0123456789abcdef")
            await drawn(chromium, "document.querySelector('main').innerText.includes('1 request, ')")
            await chromium.run("document.querySelector('[data-is=use]').open = true")
            await drawn(
                chromium, "document.querySelector('[data-is=snippet]').textContent.includes('$CSQ_KEY')"
            )
            assert "canary" not in await chromium.run("return document.documentElement.outerHTML")


@needs_chromium
async def test_the_texts_for_tools_name_the_address_by_which_the_browser_came() -> None:
    async with gateway(projects=PROJECTS) as proxy, page(proxy) as chromium:
        await chromium.open(f"http://localhost:{proxy.port}/-/")
        first = "document.querySelector('[data-is=first-call]')?.textContent"
        await drawn(chromium, f"{first}?.includes('//localhost:{proxy.port}/')")
        assert "127.0.0.1" not in await chromium.run(f"return {first}")


@needs_chromium
async def test_it_names_the_public_url_and_the_computer() -> None:
    server = {"public_url": "http://localhost:9"}
    accounts = {"acme": {"client_id": "id-3", "client_secret": "canary-3"}}
    async with gateway(projects=PROJECTS, server=server, accounts=accounts) as proxy, page(proxy) as chromium:
        first = "document.querySelector('[data-is=first-call]')?.textContent"
        await drawn(chromium, f"{first}?.includes('http://localhost:9/shop/')")
        assert await text_of(chromium, "[data-is=url]") == "http://localhost:9/shop"
        assert "http://localhost:9/acme/PROJECT_ID/" in await text_of(chromium, "#accounts")
        assert f" on {socket.gethostname()}, up " in await text_of(chromium, "#about")
        assert str(proxy.port) not in await chromium.run("return document.body.innerText")


@needs_chromium
async def test_it_says_how_many_slow_callers_were_cut_off_and_why() -> None:
    async with gateway(projects=PROJECTS) as proxy:
        [shop] = [project for project in proxy.app.projects() if project.name == "shop"]
        shop.measures.slow_callers = 2
        shop.measures.count_error("PROXY_ANSWER_CUT", "The answer was cut: its caller took too little.")
        async with page(proxy) as chromium:
            waiting = "document.querySelector('[data-is=waiting]').textContent"
            await drawn(chromium, f"{waiting} === 'none waiting; 2 slow callers cut off'")
            await proxy.call(b"GET /shop/v1/segments")
            errors = "document.querySelector('[data-is=error-rows]').innerText"
            await drawn(chromium, f"{errors}.includes('its caller took too little')")


@needs_chromium
async def test_it_says_when_the_proxy_is_gone_and_how_to_start_it() -> None:
    # Not an ephemeral port: another test could get it while the page still sends requests to it.
    server = {"port": free_port(), "drain_timeout": 1}
    async with browser() as chromium:
        async with gateway(server=server) as proxy:
            await opened(chromium, proxy)
            assert await text_of(chromium, "#live") == "live"
            assert "csq-proxy serve" not in await text_of(chromium, "#banner")
        await drawn(chromium, "document.querySelector('#live').textContent === 'not live'")
        banner = await text_of(chromium, "#banner")
        assert "csq-proxy does not answer" in banner
        assert f"csq-proxy serve --config '{CONFIG}'" in banner


@needs_chromium
async def test_it_fits_a_phone_and_its_parts_have_names(tmp_path: Path) -> None:
    names = """
        const label = (node) => node.labels?.[0]?.textContent || node.getAttribute('aria-label');
        const name = (node) => label(node) || node.textContent;
        const all = [...document.querySelectorAll('button, select, input, svg, a')];
        const shown = all.filter((node) => node.getClientRects().length);
        return shown.filter((node) => !name(node).trim()).map((node) => node.outerHTML);
    """
    async with gateway(projects=PROJECTS) as proxy, page(proxy) as chromium:
        assert await chromium.run(names) == []
        await chromium.screenshot(tmp_path / "phone.png", width=390, height=844, dark=True)
        assert await chromium.run("return document.documentElement.scrollWidth") <= 390
        assert (tmp_path / "phone.png").stat().st_size > 10_000


@needs_chromium
async def test_a_picture_of_it_is_made(tmp_path: Path) -> None:
    """`PAGE_SCREENSHOT=.github/page.png` makes README's picture: an hour of traffic, on the usual port."""
    wanted = os.environ.get("PAGE_SCREENSHOT")
    picture, minutes, port = (Path(wanted), 60, DEFAULT_PORT) if wanted else (tmp_path / "page.png", 2, 0)
    options = SandboxOptions(latency_s=0.03, failure_rate=0.02)
    async with Sandbox(options) as sandbox:
        app = App(_settings_of(sandbox, port))
        async with app.started():
            await app.settled(WAIT_S)
            proxy = Gateway(app, TokenServer(), RawServer(Upstream()))
            await _fill_hour(proxy, minutes)
            async with page(proxy) as chromium:
                in_flight = [asyncio.create_task(proxy.call(SLOW % b"demo-eu")) for _ in range(3)]
                await drawn(
                    chromium, "document.querySelector('[data-is=slots]').innerText.startsWith('3 of')"
                )
                await chromium.run("document.querySelector('article + article > details').open = false")
                await chromium.screenshot(picture, width=1200, height=980)
                for call in in_flight:
                    call.cancel()
                await asyncio.wait(in_flight)
            await proxy.aclose()
    assert 10_000 < picture.stat().st_size < 200 * 1024


def _settings_of(sandbox: Sandbox, port: int) -> Settings:
    projects = {
        project.name: {
            "client_id": project.client_id,
            "client_secret": project.client_secret,
            "apis": ["metrics", "surveys"],
            "read_only": project.name == "demo-us",
        }
        for project in sandbox.projects.values()
    }
    contentsquare = {"auth_url": sandbox.auth_url, "allowed_endpoints": sandbox.hosts}
    values = {"server": {"port": port}, "contentsquare": contentsquare, "projects": projects}
    return load(None, values, {}, search=False)


async def _fill_hour(proxy: Gateway, minutes: int) -> None:
    """Some requests in each of the last minutes, by the clocks of the projects' measures."""

    def now(minutes_ago: int) -> float:
        return time.time() - 60 * minutes_ago

    for minute in range(minutes):
        for name, project in proxy.app._generation.projects.items():
            project.measures._now = functools.partial(now, minutes - 1 - minute)
            count = round((9 if name == "demo-eu" else 5) * (1.2 + math.sin(minute / 7)))
            await asyncio.gather(*(proxy.call(VISITS % name.encode()) for _ in range(count)))
            project.slots.minutes.end(int(now(minutes - 1 - minute) // 60) * 60, 0, 0)
    proxy.app._gateway._own._pages._started_at -= 60 * minutes
    with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
        await proxy.call(b"GET /demo-eu/v1/x-sandbox/truncated?size=900&sent=5")
