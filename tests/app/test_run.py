"""The real program and its signals: SIGHUP with a terminal, without one, and from one that closed."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import STARTUP_S, get, needs_signals, started
from support.harness import WAIT_S
from support.signals import handlers_put_back
from support.terminal import in_terminal

from proxy.app.run import Signals

pytestmark = needs_signals

WITHOUT = ("nohup", "setsid")

SERVE = (sys.executable, "-m", "proxy", "serve")
READY = r"(Stop): Ctrl-C"
LISTENS = r"listens on (http://127\.0\.0\.1:\d+)"


def until_reloads_are(count: int, base: str) -> None:
    ends = time.monotonic() + WAIT_S
    while get(f"{base}/-/status")[1]["reload"]["count"] < count:
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_terminal_that_closes_is_a_clean_stop(environ: dict[str, str], config: Path) -> None:
    with in_terminal("", *SERVE, environ=environ, cwd=config.parent) as terminal:
        base = terminal.wait_for(LISTENS)
        terminal.wait_for(READY)
        terminal.close()
        until_gone(base)
        terminal.process.send_signal(signal.SIGHUP)  # as a shell does that ends
        assert terminal.process.wait(STARTUP_S) == 0


async def test_the_hangups_of_a_terminal_and_its_shell_skip_no_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.app.run.terminal_is_gone", lambda: True)
    with handlers_put_back():
        signals = Signals()
        for _ in range(2):  # SIGTERM twice would end the requests
            signals._obey_hangup()
        assert (signals.stop.is_set(), signals.kill.is_set()) == (True, False)


async def test_a_signal_that_a_wrapper_passes_on_is_not_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with handlers_put_back():
        monkeypatch.setattr("proxy.app.run.SAME_SIGNAL_S", 3600)
        signals = Signals()
        for _ in range(3):
            signals._on_signal()
        assert (signals.stop.is_set(), signals.kill.is_set()) == (True, False)
        monkeypatch.setattr("proxy.app.run.SAME_SIGNAL_S", 0)
        signals = Signals()
        signals._on_signal()
        assert (signals.stop.is_set(), signals.kill.is_set()) == (True, False)
        signals._on_signal()
        assert signals.kill.is_set()


async def test_a_console_that_closes_is_a_stop_and_soon_one_without_a_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # as on Windows
    monkeypatch.setattr("proxy.app.run.CONSOLE_GRACE_S", 0.01)
    with handlers_put_back():
        signals = Signals()
        signals.on_console_end()
        assert (signals.stop.is_set(), signals.kill.is_set()) == (True, False)
        async with asyncio.timeout(WAIT_S):
            await signals.kill.wait()


def test_a_shell_that_is_killed_with_its_terminal_stops_its_proxy(
    environ: dict[str, str], config: Path
) -> None:
    """The kernel sends SIGHUP to the foreground's processes before it takes the terminal away."""
    shell = ("/bin/sh", "-c", f"{shlex.join(SERVE)}; true")
    with in_terminal("", *shell, environ=environ, cwd=config.parent) as terminal:
        base = terminal.wait_for(LISTENS)
        terminal.wait_for(READY)
        terminal.process.kill()
        until_gone(base)


def until_gone(base: str) -> None:
    ends = time.monotonic() + STARTUP_S
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        while time.monotonic() < ends:
            get(f"{base}/-/status")
            time.sleep(0.02)
        pytest.fail("it lives on")


@pytest.mark.parametrize("how", WITHOUT)
def test_a_terminal_that_it_does_not_have_or_not_obey_may_close(
    how: str, environ: dict[str, str], config: Path
) -> None:
    with in_terminal(how, *SERVE, environ=environ, cwd=config.parent) as terminal:
        base = terminal.wait_for(LISTENS)
        terminal.wait_for(READY)
        terminal.close()
        if how == "setsid":  # the kernel sends nothing
            terminal.process.send_signal(signal.SIGHUP)
        until_reloads_are(1, base)
        terminal.process.send_signal(signal.SIGHUP)
        until_reloads_are(2, base)
        terminal.process.terminate()
        assert terminal.process.wait(STARTUP_S) == 0


def test_sighup_reloads_while_the_terminal_stays(environ: dict[str, str], config: Path) -> None:
    with in_terminal("", *SERVE, environ=environ, cwd=config.parent) as terminal:
        base = terminal.wait_for(LISTENS)
        terminal.wait_for(READY)
        terminal.process.send_signal(signal.SIGHUP)
        until_reloads_are(1, base)
        terminal.close()
        assert terminal.process.wait(STARTUP_S) == 0


@pytest.mark.parametrize("command", [("serve", "--sandbox", "--port", "0"), ("sandbox", "--port", "0")])
def test_a_sandbox_outlives_sighup_and_stops_with_its_terminal(
    command: tuple[str, ...], environ: dict[str, str], tmp_path: Path
) -> None:
    program = (*SERVE[:-1], *command)
    with in_terminal("", *program, environ=environ, cwd=tmp_path) as terminal:
        terminal.wait_for("(Ctrl-C)")
        terminal.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            terminal.process.wait(0.5)
        terminal.close()
        assert terminal.process.wait(STARTUP_S) == 0


SLOW_START = """
import os, sys
from proxy.__main__ import main
from proxy.cli import serve
read = serve.load
def load(*arguments):
    print("reads", flush=True)
    try:
        sys.stdin.read()
    except OSError:  # the terminal is gone
        pass
    return read(*arguments)
serve.load = load
main()
"""


def test_a_terminal_that_closes_while_it_starts_is_a_clean_stop(
    environ: dict[str, str], config: Path
) -> None:
    program = (sys.executable, "-c", SLOW_START, "serve")
    with in_terminal("", *program, environ=environ, cwd=config.parent) as terminal:
        terminal.wait_for("(reads)")
        terminal.close()
        assert terminal.process.wait(STARTUP_S) == 0


EARLY = """
import os, signal, sys
from proxy.__main__ import main
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == "proxy.cli.console":
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                os.kill(os.getpid(), number)
            print("was sent early signals", flush=True)
sys.meta_path.insert(0, Sender())
main()
"""


@pytest.mark.parametrize(
    "command",
    [("serve",), ("serve", "--sandbox", "--port", "0"), ("sandbox", "--port", "0")],
    ids=["serve", "serve-sandbox", "sandbox"],
)
def test_signals_without_a_meaning_end_nothing(
    command: tuple[str, ...], environ: dict[str, str], config: Path
) -> None:
    with started(*command, environ=environ, cwd=config.parent, code=EARLY, anew=True) as proxy:
        proxy.wait_for("was sent early signals")
        proxy.wait_for("Ctrl-C") if command[0] == "sandbox" else proxy.listening()
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            proxy.process.send_signal(number)
        proxy.process.terminate()
        assert proxy.end()[0] == 0
