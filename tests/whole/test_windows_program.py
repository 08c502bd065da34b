"""The program on Windows: a request to the sandbox, its console's events, its files and commands."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.commands import CONFIG, STARTUP_S, Running, get, run, started, write
from support.harness import WAIT_S
from support.signals import handlers_put_back
from support.windows import not_on_wine

from proxy import process
from proxy.app.run import Signals

if sys.platform != "win32":
    pytest.skip("Windows alone", allow_module_level=True)

VISITS = "/demo-eu/v1/metrics/site/visits?startDate=2026-01-01&endDate=2026-01-03"
SEND = """
import ctypes, sys
console = ctypes.WinDLL("kernel32")
console.FreeConsole()
assert console.AttachConsole(int(sys.argv[1])), "no console"
console.SetConsoleCtrlHandler(None, True)
assert console.GenerateConsoleCtrlEvent(int(sys.argv[2]), 0), "not sent"
"""
CTRL_C, CTRL_BREAK, CTRL_LOGOFF = 0, 1, 5


@pytest.fixture
def sandbox(environ: dict[str, str], tmp_path: Path) -> Iterator[Running]:
    """``serve --sandbox`` on a console of its own."""
    arguments = ("serve", "--sandbox", "--port", "0")
    with started(*arguments, environ=environ, cwd=tmp_path, flags=subprocess.CREATE_NO_WINDOW) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(CTRL_C, id="Ctrl-C"),
        pytest.param(CTRL_BREAK, id="Ctrl-Break", marks=not_on_wine("consoles know Ctrl-C alone")),
    ],
)
def test_a_request_to_the_sandbox_and_the_console_s_stop(sandbox: Running, event: int) -> None:
    url = sandbox.listening()
    status, answer = get(urlsplit(url)._replace(path="").geturl() + VISITS)
    assert (status, answer["success"]) == (200, True)
    subprocess.run(
        [sys.executable, "-c", SEND, str(sandbox.process.pid), str(event)], timeout=STARTUP_S, check=True
    )
    code, logged = sandbox.end()
    assert (code, '"event":"stopped"' in logged) == (0, True)


async def test_ctrl_break_and_a_closed_console_ask_for_a_stop() -> None:
    with handlers_put_back():
        for end in (
            lambda: signal.raise_signal(signal.SIGBREAK),
            lambda: threading.Thread(target=process._console_handlers[-1], args=(2,), daemon=True).start(),
        ):
            signals = Signals()
            end()
            async with asyncio.timeout(WAIT_S):
                await signals.stop.wait()
            assert not signals.kill.is_set()


async def test_the_logoff_of_any_user_does_not_end_a_service() -> None:
    with handlers_put_back():
        signals = Signals()
        handler: Any = process._console_handlers[-1]
        assert handler(CTRL_LOGOFF)
        assert not signals.stop.is_set()


def test_a_changed_file_is_read_and_a_secret_comes_from_a_command(
    environ: dict[str, str], tmp_path: Path
) -> None:
    secret = [sys.executable, "-c", "print('a secret of a command')"]
    text = CONFIG.replace('client_secret = "canary-secret"', f"client_secret_command = {secret!r}")
    config = write(tmp_path / "config.toml", text)
    with started("serve", "--config", str(config), environ=environ, cwd=tmp_path) as proxy:
        url = proxy.listening()
        write(config, text.replace("[projects.shop]", "[projects.other]"))
        proxy.wait_for_event("reloaded")
        status, answer = get(urlsplit(url)._replace(path="").geturl() + "/shop/v1/x")
        assert (status, answer["errorCode"]) == (404, "PROXY_UNKNOWN_PROJECT")


def test_init_writes_a_file_that_serve_reads(environ: dict[str, str], tmp_path: Path) -> None:
    answers = b"\xef\xbb\xbfshop\r\nid-1\r\na-secret\r\n\r\n\r\n"  # as PowerShell may send them
    made = subprocess.run(
        [sys.executable, "-m", "proxy", "init", "--no-check"],
        input=answers,
        capture_output=True,
        env=environ,
        cwd=tmp_path,
        timeout=STARTUP_S,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert run("check", environ=environ, cwd=tmp_path).returncode in (0, 1)
