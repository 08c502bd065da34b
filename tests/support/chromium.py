"""Headless Chromium, driven over WebDriver (W3C) with nothing but an HTTP client."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import functools
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
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
    """One tab. `open` doesn't tell the status: an error page is a page, too."""

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
    """A tab of its own in the browser that all tests of this process share."""
    url, path = await asyncio.to_thread(_started)
    timeout = aiohttp.ClientTimeout(total=START_S + SCRIPT_S)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        first = await _call(session, "GET", f"{path}/window")
        new = await _call(session, "POST", f"{path}/window/new", {"type": "tab"})
        await _call(session, "POST", f"{path}/window", {"handle": new["handle"]})
        chromium = Browser(session, path)
        await chromium.complaints()  # those of earlier tests
        try:
            yield chromium
        finally:
            await _call(session, "DELETE", f"{path}/window")
            await _call(session, "POST", f"{path}/window", {"handle": first})


@functools.cache
def _started() -> tuple[str, str]:
    """Start Chromium with an empty profile, until this process ends; its driver's URL, the session's path."""
    assert CHROMEDRIVER is not None
    # Not port 0: the driver takes a free IPv6 port, and fails where the same IPv4 port is taken.
    port = free_port()
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    said = Path(folder.name) / "driver.log"
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with said.open("wb") as log:
        driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=log, stderr=log, env=environ)
    path = ""

    @atexit.register
    def end() -> None:
        if path:
            _ask(port, "DELETE", path)
        driver.terminate()
        driver.wait(START_S)
        folder.cleanup()

    ends_at = time.monotonic() + START_S
    while "started successfully on port" not in said.read_text():
        assert driver.poll() is None, said.read_text()
        assert time.monotonic() < ends_at, "chromedriver did not start"
        time.sleep(0.02)
    options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder.name}/user"]}
    wanted = {
        "browserName": "chrome",
        "acceptInsecureCerts": True,
        "timeouts": {"script": SCRIPT_S * 1000, "pageLoad": SCRIPT_S * 1000},
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    made = _ask(port, "POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
    path = f"/session/{made['sessionId']}"
    return f"http://127.0.0.1:{port}", path


def _ask(port: int, method: str, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        value = json.loads(answer.read())["value"]
        assert answer.status == 200, value
        return value
