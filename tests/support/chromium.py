"""Headless Chromium, driven over WebDriver (W3C) with nothing but an HTTP client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from support.harness import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
AXE = next(
    (
        file
        for folder in os.environ.get("NODE_PATH", "").split(os.pathsep)
        if folder and (file := Path(folder) / "axe-core" / "axe.min.js").is_file()
    ),
    None,
)
"""Deque's axe, which finds what keeps people with a screen reader or a keyboard out of a page."""
START_S = 30.0
SCRIPT_S = 20.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
)


_VIOLATIONS = """
    const { violations } = await window.axe.run(document, { resultTypes: ['violations'] });
    const told = ({ target, html }) => `${target}: ${html.slice(0, 200)}`;
    return violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 5).map(told).join('; ')}`);
"""


class Browser:
    """One session. `open` doesn't tell the status: an error page is a page, too."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def open(self, url: str) -> None:
        await _call(self._session, "POST", f"{self._url}/url", {"url": url})

    async def sign_in(self, url: str, password: str) -> None:
        """Open a page that asks for a password, and give it; Chromium keeps it until it ends."""
        await self.open(url.replace("://", f"://any:{password}@", 1))
        await self.open(url)

    async def run(self, script: str, *arguments: object) -> Any:
        """The value that an async function with this body returns, within the page that is open."""
        body = (
            "const done = arguments[arguments.length - 1];"
            f"(async (...given) => {{ {script} }})(...arguments).then(done, e => done('failed: ' + e));"
        )
        return await _call(
            self._session, "POST", f"{self._url}/execute/async", {"script": body, "args": list(arguments)}
        )

    async def devtools(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol, such as ``Emulation.setEmulatedMedia``."""
        body = {"cmd": command, "params": parameters}
        return await _call(self._session, "POST", f"{self._url}/goog/cdp/execute", body)

    async def complaints(self) -> list[str]:
        """The console's messages since the last call: errors, refused content, error statuses."""
        lines = await _call(self._session, "POST", f"{self._url}/se/log", {"type": "browser"})
        return [line["message"] for line in lines]

    async def axe(self) -> list[str]:
        """The violations that axe finds in the page, each with the nodes in question; `AXE` must be there."""
        assert AXE is not None
        # By the tools' way: the page's own policy allows no foreign script.
        await self.devtools("Runtime.evaluate", expression=await asyncio.to_thread(AXE.read_text))
        found: list[str] = await self.run(_VIOLATIONS)
        return found

    async def screenshot(self, path: Path, *, width: int, height: int, dark: bool = False) -> None:
        """The page as a PNG in a window of this size; ``height`` 0: the height of the page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.devtools("Emulation.setDeviceMetricsOverride", height=height or 800, **size)
        if not height:
            height = await self.run("return document.documentElement.scrollHeight")
            await self.devtools("Emulation.setDeviceMetricsOverride", height=height, **size)
        made = await _call(self._session, "GET", f"{self._url}/screenshot")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(made))


async def _call(session: aiohttp.ClientSession, method: str, url: str, body: object = None) -> Any:
    async with session.request(method, url, json=body) as answer:
        value = (await answer.json())["value"]
        assert answer.status == 200, value
        return value


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser with an empty profile of its own."""
    # Not port 0: the driver takes a free IPv6 port, and fails where the same IPv4 port is taken.
    port = free_port()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        _driver(Path(profile), port) as driver,
    ):
        await _started(Path(profile) / "driver.log", driver)
        timeout = aiohttp.ClientTimeout(total=START_S + SCRIPT_S)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout) as session:
            options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}/user"]}
            wanted = {
                "browserName": "chrome",
                "acceptInsecureCerts": True,
                "timeouts": {"script": SCRIPT_S * 1000, "pageLoad": SCRIPT_S * 1000},
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            made = await _call(session, "POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            url = f"/session/{made['sessionId']}"
            try:
                yield Browser(session, url)
            finally:
                await _call(session, "DELETE", url)


@contextlib.contextmanager
def _driver(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    assert CHROMEDRIVER is not None
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=log, stderr=log, env=environ)
    try:
        yield driver
    finally:
        driver.terminate()
        driver.wait(30)


async def _started(log: Path, driver: subprocess.Popen[bytes]) -> None:
    for _ in range(int(START_S / 0.05)):
        said = await asyncio.to_thread(log.read_text)
        if "started successfully on port" in said:
            return
        assert driver.poll() is None, said
        await asyncio.sleep(0.05)
    raise AssertionError("chromedriver did not start")
