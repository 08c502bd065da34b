"""Headless Firefox, driven over WebDriver BiDi (W3C), which Firefox itself speaks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from support.harness import free_port

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
NAMES = ("attacker.test", "proxy.test")
START_S = 60.0
CALL_S = 40.0
PREFERENCES: dict[str, object] = {
    "app.normandy.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.security.https_first": False,
    "dom.security.https_only_mode": False,
    "network.auth.confirmAuth.enabled": False,
    "network.auth.subresource-http-auth-allow": 0,  # no prompt of theirs, which would hold the page up
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.localDomains": ",".join(NAMES),
    "network.proxy.type": 0,
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One session with one tab. `open` doesn't tell the status: an error page is a page, too."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._tab = ""
        self._password = ""

    async def start(self) -> None:
        wanted = {"acceptInsecureCerts": True, "unhandledPromptBehavior": {"default": "dismiss"}}
        await self._call("session.new", capabilities={"alwaysMatch": wanted})
        self._tab = (await self._call("browsingContext.getTree"))["contexts"][0]["context"]
        await self._call("session.subscribe", events=["network.authRequired"])
        await self._call("network.addIntercept", phases=["authRequired"])

    async def sign_in(self, url: str, password: str) -> None:
        """Open a page that asks for a password, and type it; Firefox keeps it until it ends."""
        self._password = password
        await self.open(url)
        self._password = ""

    async def open(self, url: str) -> None:
        """In a tab of its own: the one before may still wait for something."""
        before, made = self._tab, await self._call("browsingContext.create", type="tab")
        self._tab = made["context"]
        await self._call("browsingContext.close", context=before)
        await self._call("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    async def run(self, script: str, *arguments: object) -> Any:
        """The value that an async function with this body returns, within the page that is open."""
        told = await self._call(
            "script.callFunction",
            functionDeclaration=(
                "async (text) => JSON.stringify("
                f"await (async (...given) => {{ {script} }})(...JSON.parse(text)) ?? null)"
            ),
            arguments=[{"type": "string", "value": json.dumps(arguments)}],
            target={"context": self._tab},
            awaitPromise=True,
            userActivation=True,
        )
        assert told["type"] == "success", told
        return json.loads(told["result"]["value"])

    async def _call(self, method: str, **parameters: object) -> Any:
        number = await self._send(method, parameters)
        async with asyncio.timeout(CALL_S):
            while True:
                told = await self._socket.receive_json()
                if told.get("method") == "network.authRequired":
                    await self._answer_prompt(told["params"]["request"]["request"])
                elif told.get("id") == number:
                    assert told["type"] == "success", told
                    return told["result"]

    async def _send(self, method: str, parameters: dict[str, object]) -> int:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return number

    async def _answer_prompt(self, request: str) -> None:
        """Type the password, or cancel where there is none."""
        answer: dict[str, object] = {"action": "cancel"}
        if self._password:
            pair = {"type": "password", "username": "any", "password": self._password}
            answer = {"action": "provideCredentials", "credentials": pair}
        await self._send("network.continueWithAuth", {"request": request, **answer})


@contextlib.asynccontextmanager
async def firefox() -> AsyncIterator[Firefox]:
    """A browser with an empty profile of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        lines = (
            f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()
        )
        (Path(profile) / "user.js").write_text("\n".join(lines))
        with _process(Path(profile), port) as process:
            async with aiohttp.ClientSession() as session, await _connected(session, port, process) as socket:
                browser = Firefox(socket)
                await browser.start()
                yield browser


@contextlib.contextmanager
def _process(profile: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    assert FIREFOX is not None
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environ |= {"HOME": str(profile), "MOZ_HEADLESS": "1"}
    command = [
        FIREFOX,
        "--headless",
        "--no-remote",
        "--profile",
        str(profile),
        f"--remote-debugging-port={port}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def _connected(
    session: aiohttp.ClientSession, port: int, process: subprocess.Popen[bytes]
) -> aiohttp.ClientWebSocketResponse:
    async with asyncio.timeout(START_S):
        while True:
            assert process.poll() is None, "Firefox has ended"
            with contextlib.suppress(aiohttp.ClientError):
                return await session.ws_connect(f"ws://127.0.0.1:{port}/session", max_msg_size=0)
            await asyncio.sleep(0.1)
