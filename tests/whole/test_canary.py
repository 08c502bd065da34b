"""The real program, as a process, through many failures; then all its output is searched for its secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.canary import Canaries
from support.harness import WAIT_S, Message, RawServer, Upstream, close, read_message

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="reads /proc, sends signals")

START_S = 60.0
SECRETS = {
    "client_secret": "Canary-of-the-first-pair/+%7",
    "standby": "Canary-of-the-standby-pair_8",
    "key": "Canary-of-a-caller:key&1",
    "key of the environment": "Canary-of-the-environment-9",
    "reloaded secret": "Canary-that-came-by-a-reload-3",
    "token": "eyJhbGciOiJub25lIn0.Canary-of-an-access-token",
}
BUG = """
from proxy.admin.admin import Admin

async def fail(self, *_):
    settings = self._overview.settings
    secret = settings.projects["shop"].client_secret.get_secret_value()
    tokens = [keeper.current() for p in self._overview.projects() for keeper in p.keepers.values()]
    raise RuntimeError(f"a bug that shows {secret!r} and {[t and t.access_token for t in tokens]}")

Admin._healthy = fail
"""
"""Loaded by the interpreter before the program: a bug that puts secrets into its exception's text."""


class Endpoint:
    """A token endpoint that answers with the secrets that it was sent, as an error or as part of a token."""

    def __init__(self) -> None:
        self.url = ""
        self.is_failing = False
        self.requests = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        self.requests += 1
        sent: dict[str, Any] = json.loads(request.body)
        if self.is_failing or sent["client_secret"] == SECRETS["client_secret"]:
            said = f"no such pair: {sent['client_secret']} ({request.body!r})"
            status, answer = 401, {"error": said, "error_description": said, "errorMessage": said}
        else:
            status = 200
            answer = {"access_token": f"{SECRETS['token']}-{self.requests}", "endpoint": self.url}
        content = json.dumps(answer).encode()
        head = b"HTTP/1.1 %d %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        writer.write(head % (status, quoted(sent["client_secret"]), len(content)) + content)
        await writer.drain()


def quoted(text: str) -> bytes:
    return text.encode().replace(b"\n", b" ")


class Session:
    """The running program and all its output."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
        self.process = process
        self.folder = folder
        self.port = port
        self.answers: list[bytes] = []

    async def send(self, raw: bytes) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            answer = await read_message(reader)
            self.answers += [answer.head, answer.body]
            return answer
        finally:
            await close(writer)

    async def call(
        self, start: str, *lines: str, key: str | None = SECRETS["key"], body: str = ""
    ) -> Message:
        fields = [f"Host: 127.0.0.1:{self.port}", *lines, f"Content-Length: {len(body)}"]
        if key is not None:
            fields.append(f"X-API-Key: {key}")
        return await self.send("\r\n".join((f"{start} HTTP/1.1", *fields, "", body)).encode())

    def outputs(self) -> list[bytes]:
        proc = Path(f"/proc/{self.process.pid}")
        seen = [(self.folder / name).read_bytes() for name in ("out", "err")]
        return [*seen, *self.answers, *((proc / "cmdline").read_bytes() for _ in range(proc.exists()))]


def write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def config_text(token_url: str, cloud: str, secret: str) -> str:
    return f"""
[log]
level = "debug"
format = "json"
[server]
port = 0
[contentsquare]
auth_url = "{token_url}"
allowed_endpoints = ["{cloud.partition("://")[2]}"]
[projects.shop]
client_id = "id-1"
client_secret = {json.dumps(secret)}
apis = ["metrics"]
standby = {{ client_id = "id-2", client_secret_file = "standby" }}
[callers.bi]
key = {json.dumps(SECRETS["key"])}
"""


@contextmanager
def process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program, with a bug in it, and a secret in its environment."""
    (folder / "sitecustomize.py").write_text(BUG)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CSQ_", "CONTENT"))}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environ["CSQ_PROXY_CALLERS__OTHER__KEY"] = SECRETS["key of the environment"]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--config", str(folder / "config.toml")],
            stdout=out,
            stderr=err,
            env=environ,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)


def text_of(path: Path) -> str:
    return path.read_text()


async def appears(pattern: str, path: Path, *, times: int = 1) -> str:
    """Wait until a file holds ``pattern`` that many times; the last match."""
    ends_at = time.monotonic() + START_S
    while len(found := re.findall(pattern, text := text_of(path))) < times:
        assert time.monotonic() < ends_at, (pattern, text[-2000:])
        await asyncio.sleep(0.02)
    return str(found[-1])


@asynccontextmanager
async def session(folder: Path) -> AsyncIterator[tuple[Session, Endpoint, str]]:
    endpoint = Endpoint()
    async with RawServer(Upstream(answer=refusing)) as cloud, RawServer(endpoint) as token:
        endpoint.url = cloud.url
        write(folder / "standby", SECRETS["standby"])
        write(folder / "config.toml", config_text(token.url, cloud.url, SECRETS["client_secret"]))
        with process(folder) as running:
            url = await appears(r'"event":"listening","urls":\["([^"]+)"', folder / "err")
            yield Session(running, folder, int(url.rpartition(":")[2])), endpoint, token.url


def refusing(request: Message) -> bytes:
    """A cloud that refuses some tokens, and never echoes a request."""
    if b"/v1/refused" in request.start_line:
        return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
    if b"/v1/cut" in request.start_line:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\ncut"
    return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def bad_day(seen: Session, endpoint: Endpoint, token_url: str) -> None:
    """Good calls among wrong keys, refused tokens, malformed requests, reloads and a bug."""
    secret, key, token = SECRETS["client_secret"], SECRETS["key"], SECRETS["token"]
    basic = base64.b64encode(f"anyone:{key}".encode()).decode()
    assert (await seen.call("GET /shop/v1/segments?a=1")).status == 200
    assert (
        await seen.call(f"GET /v1/segments?csq_key={quoted(key).decode().replace('&', '%26')}")
    ).status == 200
    assert (await seen.call("GET /v1/x", f"Authorization: Basic {basic}", key=None)).status == 200
    assert (await seen.call("GET /v1/x", f"Authorization: Bearer {key}", key=None)).status == 200
    for wrong in (key[:-1], f"{key}{key}", token, secret):
        assert (await seen.call("GET /v1/x", key=wrong)).status == 401
        assert (await seen.call(f"GET /{key}/v1/x?csq_key={wrong[:-1]}", key=None)).status == 401
    for start in (
        "GET /v1/refused",
        "GET /v1/cut",
        "POST /shop/v1/refused",
        "TRACE /v1/x",
        "GET /nobody/v1/x",
    ):
        assert (await seen.call(start)).status >= 400
    for malformed in (
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX-API-Key : %b\r\n\r\n" % key.encode(),
        b"GET http://u:%b@127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (key.encode(), seen.port),
        b"GET /v1/x?csq_key=%b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nA\0: b\r\n\r\n" % (key.encode(), seen.port),
        b"%b /v1 HTTP/1.1\r\n\r\n" % key.encode(),
        b"\x16\x03\x01 %b\r\n\r\n" % key.encode(),
        b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX-API-Key: %b\r\n" % (seen.port, key.encode())
        + b"Transfer-Encoding: chunked\r\n\r\n%b\r\n" % key.encode(),
    ):
        assert (await seen.send(malformed)).status >= 400
    assert (await seen.call("GET /-/healthy")).status == 500  # the bug
    config, err = seen.folder / "config.toml", seen.folder / "err"
    for bad in (
        f"client_secret = [{SECRETS['reloaded secret']!r}",
        f"[log]\nlevel = {key!r}\nsecrte = {key!r}\n",
    ):
        write(config, config.read_text() + bad)
        refused = len(re.findall("reload_refused", err.read_text()))
        seen.process.send_signal(signal.SIGHUP)
        await appears("reload_refused", err, times=refused + 1)
        write(config, config_text(token_url, endpoint.url, SECRETS["client_secret"]))
    write(config, config_text(token_url, endpoint.url, SECRETS["reloaded secret"]))
    seen.process.send_signal(signal.SIGHUP)
    await appears('"reloaded"', err)
    endpoint.is_failing = True
    assert (await seen.call("POST /-/refresh/shop")).status == 202
    failed = len(re.findall("token_fetch_failed|token_failed|_failed", err.read_text()))
    await seen.call("GET /v1/refused")
    await appears("_failed", err, times=failed + 1)
    for page in ("status", "ready", "", "metrics", "requests", "snippets?project=shop", "nothing"):
        await seen.call(f"GET /-/{page}")


async def test_a_bad_day_leaves_no_secret_in_logs_errors_tracebacks_answers_status_or_argv(
    tmp_path: Path,
) -> None:
    canaries = Canaries(SECRETS)
    async with session(tmp_path) as (seen, endpoint, token_url):
        await bad_day(seen, endpoint, token_url)
        outputs = seen.outputs()
        seen.process.terminate()
        assert await asyncio.to_thread(seen.process.wait, START_S) == 0
        outputs += seen.outputs()
    log = (tmp_path / "err").read_text()
    for event in (
        "secret_in_environment",
        "credentials_switched",
        "request_failed_by_bug",
        "a bug that shows",
        "reload_refused",
    ):
        assert event in log
    assert {n: f for n, o in enumerate(outputs) if (f := canaries.search(o))} == {}


@pytest.mark.parametrize("spelling", ["plain", "in the middle", "quoted", "base64", "half", "json", "lower"])
def test_the_search_finds_every_canary(spelling: str) -> None:
    for name, secret in SECRETS.items():
        text = {
            "plain": secret,
            "in the middle": f"xx{secret}yy",
            "quoted": "".join(
                f"%{byte:02X}" if not chr(byte).isalnum() else chr(byte) for byte in secret.encode()
            ),
            "base64": base64.b64encode(f"any:{secret}".encode()).decode(),
            "half": secret[: len(secret) // 2 + 1],
            "json": json.dumps({"a": secret}),
            "lower": secret.lower(),
        }[spelling]
        assert name in Canaries(SECRETS).search(b"before " + text.encode() + b" after")
    assert Canaries(SECRETS).search(b"nothing of a canary is here, not even an access token") == {}


async def test_the_same_session_without_redaction_is_full_of_canaries(tmp_path: Path) -> None:
    bug = BUG + "\nfrom proxy.logs import setup as log\nlog._sink._redact = lambda text: text\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "BUG", bug)
        async with session(tmp_path) as (seen, _, _):
            assert (await seen.call("GET /-/healthy")).status == 500
            await appears("request_failed_by_bug", tmp_path / "err")
            found = Canaries(SECRETS).search(b"\n".join(seen.outputs()))
            assert {"client_secret", "token"} <= set(found)
