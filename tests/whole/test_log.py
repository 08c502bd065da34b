"""A day of troubles, staged: every line of the log can be read by a program, in a pipe and in a file."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.commands import STARTUP_S, Running, get, needs_signals, started, write
from support.documents import events_in_readme
from support.harness import free_port

FULL_DISK = """
import os
from proxy.__main__ import main
from proxy.logs.file import LogFile
written = LogFile.write
def write(self, data):
    if os.path.exists("full"):
        raise OSError(28, "No space left on device")
    return written(self, data)
LogFile.write = write
main()
"""
"""The program, whose disk is full while there is a file ``full``."""
WEIRD = (
    b"GET /\xff\xfe%00\x1b[2J/v1/x HTTP/1.1\r\nHost: localhost:PORT\r\nX-Request-Id: \x07\xe2\x28\r\n\r\n",
    b'GET /demo-eu/v1/\xed\xa0\x80 HTTP/1.1\r\nHost: localhost:PORT\r\nX-Request-Id: \xe9"\\\r\n\r\n',
    b"\x16\x03\x01\x02\x00PORT\x01\x00",
    b'G\x00T / HTTP/9.9\r\nHost: "\xff\n:PORT\r\n\r\n',
    b"POST /demo-eu/v1/x HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: 99\r\n\r\ncut",
)
TEXT = """
[server]
port = {port}
[log]
level = "debug"
{log}
{sandbox}
[projects.broken]
client_id = "id"
client_secret = "canary-wrong-secret"
apis = ["metrics"]
"""


def until(is_true: Callable[[], object]) -> None:
    ends_at = time.monotonic() + STARTUP_S
    while not is_true():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def reload(proxy: Running, config: Path, text: str, base: str, counter: str) -> None:
    """Write the configuration and wait until the counter of `/-/status` has grown."""

    def counted() -> int:
        return int(get(f"{base}/-/status")[1]["reload"][counter])

    before = counted()
    write(config, text)
    proxy.process.send_signal(signal.SIGHUP)
    until(lambda: counted() > before)


def stage(proxy: Running, sandbox: Running, config: Path, base: str) -> None:
    """What goes wrong on a bad day."""
    port = urlsplit(base).port or 0
    for path in (
        "demo-eu/v1/segments",
        "demo-eu/v1/nothing",
        "broken/v1/segments",
        "nobody/v1/x",
        "acme/9/v1/x",
    ):
        get(f"{base}/{path}")
    for weird in WEIRD:
        with socket.create_connection(("127.0.0.1", port), timeout=STARTUP_S) as caller:
            caller.sendall(weird.replace(b"PORT", b"%d" % port))
            caller.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                caller.recv(65_536)
    full = config.parent / "full"
    full.touch()
    for _ in range(3):
        get(f"{base}/demo-eu/v1/segments")
    full.unlink()
    get(f"{base}/demo-eu/v1/segments")
    good = config.read_text()
    for bad in ('["a\\u001b[2J\\n"]\nx = 1\n', good + 'clientid = "é\\n"\n', "\x00not toml"):
        reload(proxy, config, bad, base, "refused")
    reload(proxy, config, good, base, "count")
    sandbox.process.kill()
    sandbox.process.wait(STARTUP_S)
    assert get(f"{base}/demo-eu/v1/segments")[0] in (502, 503)
    assert get(f"{base}/-/refresh/demo-eu", method="POST")[0] < 500
    until(lambda: get(f"{base}/-/status")[1]["projects"]["demo-eu"]["apis"]["metrics"]["last_error"])


@needs_signals
@pytest.mark.parametrize("place", ["pipe", "file"])
def test_every_line_of_a_bad_day_can_be_read_by_a_program(
    place: str, environ: dict[str, str], tmp_path: Path
) -> None:
    config, path, port = tmp_path / "config.toml", tmp_path / "a.log", free_port()
    with started("sandbox", environ=environ, cwd=tmp_path) as sandbox:
        sandbox.wait_for(r"\[accounts\.acme\](?s:.*)projects = \[42, 43\]\n")
        log = f'file = "{path}"' if place == "file" else ""
        write(config, TEXT.format(port=port, log=log, sandbox=sandbox.printed))
        with started("serve", environ=environ, cwd=tmp_path, code=FULL_DISK) as proxy:
            if place == "pipe":
                proxy.listening()
            else:
                until(lambda: path.exists() and '"listening"' in path.read_text("utf-8"))
            stage(proxy, sandbox, config, f"http://127.0.0.1:{port}")
            proxy.process.terminate()
            code, errors = proxy.end()
    assert (code, proxy.printed) == (0, "")
    text = errors if place == "pipe" else path.read_text("utf-8")
    assert errors == "" or place == "pipe"
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)
    seen = {line["event"] for line in lines}
    assert seen <= {*events_in_readme()}
    assert seen >= {
        "listening", "token_fetched", "token_fetch_failed", "token_endpoint_failed", "request_answered",
        "request_failed", "reload_refused", "reloaded", "stop_requested", "stopped",
    }  # fmt: skip
    assert ("log_lines_dropped" in seen) is (place == "file")
    assert "canary" not in text
    if shutil.which("jq") is not None:
        jq = subprocess.run(["jq", "-e", ".event"], input=text.encode(), capture_output=True, check=True)
        assert jq.stdout.count(b"\n") == len(lines)
