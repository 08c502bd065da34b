"""What a web page of another site reaches, in Chromium and Firefox, by each kind of name.

For each browser, name (loopback, http, https), key (none; one that a person typed for the page) and referrer
policy, a page tries each way that it has, also links and windows. Prints one line a cell, and ends with 1
where a call reached the cloud, a link did not open the page, or a way does not arrive at a server without
checks either (then the grid would show nothing):

    python tests/long/browsers/run.py [chromium|firefox ...]
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import trustme

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.certificates import tls_files
from support.chromium import CHROMEDRIVER, CHROMIUM, browser
from support.firefox import FIREFOX, firefox
from support.harness import OK, RawServer, Upstream, free_port, gateway
from support.pages import EVERY_WAY, WAYS, Unguarded

KEY = "the-key-of-a-dashboard"
NAMES = {"loopback": "http://127.0.0.1", "localhost": "http://localhost",
         "http name": "http://proxy.test", "https name": "https://proxy.test"}  # fmt: skip
NO_REFERRER = """
const policy = document.createElement('meta');
Object.assign(policy, { name: 'referrer', content: 'no-referrer' });
document.head.append(policy);
"""
LINK = """
const link = document.createElement('a');
link.href = given[0];
document.body.append(link);
link.click();
"""
WAYS_OUT = {
    "location": "location.href = given[0];",
    "window": "window.open(given[0], '_blank');",
    "window, noopener": "window.open(given[0], '_blank', 'noopener');",
    "link": LINK,
    "form": """
const form = document.createElement('form');
Object.assign(form, { action: given[0], method: 'post' });
document.body.append(form);
form.submit();
""",
}
"""The ways that leave the page or open a window: a browser sends its key with them most readily."""
PAUSE_S = 0.4


class Cloud(Upstream):
    """A connection to it may be idle for longer than a test waits for a request."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError):
            await super().__call__(reader, writer)


class Driven(Protocol):
    """A browser that `support` drives."""

    async def open(self, url: str) -> None: ...

    async def sign_in(self, url: str, password: str) -> None: ...

    async def run(self, script: str, *arguments: object) -> Any: ...


def browsers() -> Mapping[str, Callable[[], AbstractAsyncContextManager[Driven]]]:
    """Those that are installed here."""
    found: dict[str, Callable[[], AbstractAsyncContextManager[Driven]]] = {}
    if CHROMIUM and CHROMEDRIVER:
        found["chromium"] = browser
    if FIREFOX:
        found["firefox"] = firefox
    return found


def certificate(folder: Path) -> dict[str, object]:
    """The settings of a certificate for the https name."""
    return {**tls_files(folder, trustme.CA().issue_cert("proxy.test"))}


@contextlib.asynccontextmanager
async def proxy(base: str, upstream: Upstream, *, with_callers: bool) -> AsyncIterator[str]:
    """A running proxy that is called by ``base``; its base URL with the port."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        server: dict[str, object] = {"port": port, "drain_timeout": 1}
        if base.endswith(".test"):
            server["allowed_hosts"] = [f"proxy.test:{port}"]
        if base.startswith("https:"):
            server |= certificate(Path(folder))
        callers = {"dashboard": {"key": KEY}} if with_callers else {}
        async with gateway(upstream, server=server, callers=callers):
            yield f"{base}:{port}"


async def try_all(browser: Driven, page: str, base: str, prelude: str) -> None:
    """Let a page of another site try each way."""
    await browser.open(page)
    seen = await browser.run(prelude + EVERY_WAY, base)
    if waiting := [way for way, what in seen.items() if what == "nothing"]:
        print("  without an end:", *waiting)
    for way, script in WAYS_OUT.items():
        await browser.open(page)
        await browser.run(prelude + script, f"{base}/v1/segments?way={way.replace(', ', '-')}")
        await asyncio.sleep(PAUSE_S)
    await browser.open(page)


async def opens(browser: Driven, page: str, base: str, prelude: str) -> bool:
    """Whether a link of a page of another site opens the proxy's page."""
    await browser.open(page)
    # The link may open while the script still runs: its end is then an error of the driver.
    await browser.run(prelude + f"setTimeout(() => {{ {LINK} }}, 50);", f"{base}/-/")
    for _ in range(50):
        await asyncio.sleep(0.1)
        with contextlib.suppress(AssertionError):
            if await browser.run("return [location.href, document.title]") == [f"{base}/-/", "csq-proxy"]:
                return True
    return False


async def grid(name: str, driven: Callable[[], AbstractAsyncContextManager[Driven]]) -> bool:
    """Print each cell of a browser; whether all are well."""
    upstream, unchecked = Cloud(OK), Unguarded([])
    async with RawServer(Unguarded([])) as server, RawServer(unchecked) as open_server, driven() as browser:
        page = f"http://attacker.test:{server.port}/"
        await try_all(browser, page, f"http://127.0.0.1:{open_server.port}", "")
        missing = {*WAYS, *(way.replace(", ", "-") for way in WAYS_OUT)} - unchecked.ways()
        print(f"{name:9} without checks, these ways do not arrive:", *missing or ["none"], flush=True)
        well = not missing
        for (kind, base), keyed in itertools.product(NAMES.items(), (False, True)):
            with_callers = keyed or kind == "http name"  # else such a name is refused at the start
            async with proxy(base, upstream, with_callers=with_callers) as url:
                if keyed:
                    await browser.sign_in(f"{url}/-/", KEY)
                for policy, prelude in (("default", ""), ("no-referrer", NO_REFERRER)):
                    upstream.requests.clear()
                    await try_all(browser, page, url, prelude)
                    calls = [request.start_line for request in upstream.requests]
                    link = not with_callers or keyed
                    opened = not link or await opens(browser, page, url, prelude)
                    well = well and opened and not calls
                    told = f"{name:9} {kind:11} {'key' if keyed else 'no key':7} {policy:12}"
                    by_link = ("opens" if opened else "FAILS") if link else "-"
                    print(told, f"calls: {len(calls)}  link: {by_link}", *calls, flush=True)
                    await browser.open(page)
    return well


def main() -> int:
    found = browsers()
    wanted = sys.argv[1:] or [*found]
    for name in ("chromium", "firefox"):
        if name not in found:
            print(f"{name} is not installed here (Debian: chromium chromium-driver firefox-esr)")
    verdicts = [asyncio.run(grid(name, found[name])) for name in wanted if name in found]
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
