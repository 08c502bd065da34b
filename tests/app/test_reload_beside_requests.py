"""A reload reads the configuration in a thread: neither requests nor a stop wait for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from support.commands import CONFIG, STARTUP_S, get, needs_signals, started, write

SLOWEST_S = 0.25
"""The goal is 0.1 s; the machine that runs the tests may be slow and busy."""
TRIES = 5


def many(queue_timeout: int) -> str:
    projects = "".join(
        f'[projects.shop-{number}]\nclient_id = "id"\nclient_secret = "canary-{number}"\napis = []\n'
        for number in range(1000)
    )
    return CONFIG.replace("[contentsquare]", f"[contentsquare]\nqueue_timeout = {queue_timeout}") + projects


def slowest_answer(base: str, reloads: int) -> float:
    """The seconds that the slowest of many answers took, until the status counts so many reloads."""
    slowest, ends_at = 0.0, time.monotonic() + STARTUP_S
    with contextlib.closing(
        http.client.HTTPConnection(urlsplit(base).netloc, timeout=STARTUP_S)
    ) as connection:
        while time.monotonic() < ends_at:
            for _ in range(100):
                began_at = time.perf_counter()
                connection.request("GET", "/-/healthy")
                connection.getresponse().read()
                slowest = max(slowest, time.perf_counter() - began_at)
            if get(f"{base}/-/status")[1]["reload"]["count"] >= reloads:
                return slowest
    raise AssertionError("there was no reload")


@needs_signals
def test_no_answer_waits_for_the_reload_of_a_thousand_projects(environ: dict[str, str], config: Path) -> None:
    write(config, many(60))
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        base = proxy.listening()
        slowest = []
        for number in range(1, TRIES + 1):
            write(config, many(60 + number))
            proxy.process.send_signal(signal.SIGHUP)
            slowest.append(slowest_answer(base, number))
        assert min(slowest) < SLOWEST_S, slowest


@needs_signals
def test_a_stop_within_a_reload_ends_the_secret_command(environ: dict[str, str], config: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy,
    ):
        listener.settimeout(STARTUP_S)
        proxy.listening()
        port = listener.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"
        command = json.dumps([sys.executable, "-c", code])
        write(config, CONFIG.replace('client_secret = "canary-secret"', f"client_secret_command = {command}"))
        proxy.process.send_signal(signal.SIGHUP)
        held, _ = listener.accept()
        with held:
            proxy.process.send_signal(signal.SIGTERM)
            assert proxy.end()[0] == 0
            held.settimeout(8)  # less than the command's own limit
            assert held.recv(1) == b""
