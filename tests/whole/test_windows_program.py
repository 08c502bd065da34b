"""The program on Windows: a request to the sandbox, its console's events, its files and commands."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import wintypes
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

from proxy.app.session import WM_CLOSE, WM_ENDSESSION

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


def has_windows() -> bool:
    """Not in the session of services, and not under Wine without a screen."""
    session = wintypes.DWORD()
    ctypes.windll.kernel32.ProcessIdToSessionId(os.getpid(), ctypes.byref(session))
    user32 = ctypes.windll.user32
    window = user32.CreateWindowExW(0, "STATIC", None, 0, 0, 0, 0, 0, None, None, None, None)
    return bool(session.value and window and user32.DestroyWindow(window))


def send_to_window(process_id: int, message: int) -> None:
    """Send it to the proxy's window in that process, once there is one."""
    user32 = ctypes.WinDLL("user32")
    user32.FindWindowExW.restype = wintypes.HWND
    of, window, ends = wintypes.DWORD(), None, time.monotonic() + STARTUP_S
    while of.value != process_id:
        assert time.monotonic() < ends
        window = user32.FindWindowExW(None, wintypes.HWND(window), None, "csq-proxy")
        user32.GetWindowThreadProcessId(wintypes.HWND(window), ctypes.byref(of))
    assert user32.SendNotifyMessageW(wintypes.HWND(window), message, wintypes.WPARAM(1), wintypes.LPARAM(0))


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


@pytest.mark.skipif(not has_windows(), reason="a program can have no windows here")
@pytest.mark.parametrize("message", [WM_CLOSE, WM_ENDSESSION], ids=["taskkill", "logoff"])
def test_a_request_under_way_is_answered_when_windows_asks_a_program_without_a_console_to_end(
    environ: dict[str, str], tmp_path: Path, message: int
) -> None:
    arguments = ("serve", "--sandbox", "--port", "0")
    with started(*arguments, environ=environ, cwd=tmp_path, flags=subprocess.DETACHED_PROCESS) as proxy:
        base = urlsplit(proxy.listening())._replace(path="").geturl()
        with ThreadPoolExecutor(1) as caller:
            answer = caller.submit(get, f"{base}/demo-eu/v1/x-sandbox/slow?seconds=1")
            while not get(f"{base}/-/status")[1]["projects"]["demo-eu"]["slots"]["in_use"]:
                assert not answer.done()
            send_to_window(proxy.process.pid, message)
            assert answer.result(STARTUP_S)[0] == 200
        code, logged = proxy.end()
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
