"""The page of a running proxy, open in Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.chromium import CHROMEDRIVER, CHROMIUM, Browser, browser
from support.harness import WAIT_S, Gateway

from proxy.cli.page_texts import page_texts

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="no Chromium here (Debian: chromium chromium-driver)"
)
CONFIG = "/etc/csq-proxy/my config.toml"


@asynccontextmanager
async def page(proxy: Gateway, user: str = "") -> AsyncIterator[Browser]:
    """The page once it is drawn; at the end its console must hold no error and no refused content."""
    async with browser() as chromium:
        await opened(chromium, proxy, user)
        yield chromium
        complaints = await chromium.complaints()
        # The console also reports the 401 after which a browser asks for the key.
        assert not [text for text in complaints if "401" not in text or not user], complaints


async def opened(chromium: Browser, proxy: Gateway, user: str = "") -> None:
    """Open the page, and wait until its first project is drawn."""
    proxy.app.overview.page_texts = page_texts(["--config", CONFIG], None)
    await chromium.open(f"http://{user}127.0.0.1:{proxy.port}/-/")
    await drawn(chromium, "document.querySelector('[data-is=url]')?.textContent")


async def drawn(chromium: Browser, condition: str) -> None:
    """Wait until an expression of JavaScript holds in the page."""
    async with asyncio.timeout(WAIT_S):
        while not await chromium.run(f"return !!({condition})"):
            await asyncio.sleep(0.02)


async def text_of(chromium: Browser, selector: str) -> Any:
    """The text of the first node, as a reader sees it."""
    return await chromium.run("return document.querySelector(given[0]).innerText", selector)


async def put_in(chromium: Browser, selector: str, value: str) -> None:
    """Give a control a value, as its user does."""
    await chromium.run(
        "const control = document.querySelector(given[0]); control.value = given[1];"
        " for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind))",
        selector,
        value,
    )
