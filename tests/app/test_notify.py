"""What the service manager hears of the real program, and the way to stop it by a request."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import CONFIG, STARTUP_S, get, needs_signals, started, write
from support.harness import gateway

from proxy.app import notify

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
ABSTRACT = pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))


@contextlib.contextmanager
def manager(folder: Path, *, abstract: bool = False) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's socket, and its name as $NOTIFY_SOCKET has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        name = f"csq-proxy-test-{id(heard)}" if abstract else str(folder / "notify")
        heard.bind("\0" + name if abstract else name)
        heard.settimeout(STARTUP_S)
        yield ("@" + name if abstract else name), heard


@needs_signals
@pytest.mark.parametrize("abstract", [False, ABSTRACT])
def test_a_service_manager_hears_of_start_reload_and_stop(
    abstract: bool, environ: dict[str, str], config: Path
) -> None:
    with manager(config.parent, abstract=abstract) as (name, heard):
        arguments = ("serve", "--config", str(config))
        with started(*arguments, environ={**environ, "NOTIFY_SOCKET": name}, cwd=config.parent) as proxy:
            assert heard.recv(100) == b"READY=1"
            for text in (CONFIG.replace("read_only = true", ""), CONFIG + "nonsense = 1\n"):
                write(config, text)
                proxy.process.send_signal(signal.SIGHUP)
                state, clock = heard.recv(100).split(b"\n")
                assert state == b"RELOADING=1"
                assert int(clock.removeprefix(b"MONOTONIC_USEC=")) > 0
                assert heard.recv(100) == b"READY=1"
            proxy.process.send_signal(signal.SIGTERM)
            assert heard.recv(100) == b"STOPPING=1"
            assert proxy.end()[0] == 0


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-here", "x" * 500])
def test_where_nobody_listens_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.ready()
    notify.reloading()
    notify.stopping()


# POST /-/quit


def test_a_request_stops_it_cleanly_where_that_is_allowed(environ: dict[str, str], config: Path) -> None:
    write(config, CONFIG.replace("[server]", "[server]\nallow_quit = true"))
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        base = proxy.listening()
        status, told = get(f"{base}/-/quit")
        assert (status, told["errorCode"]) == (405, "PROXY_METHOD_REFUSED")
        assert get(f"{base}/-/quit", method="POST") == (202, {"stopping": True})
        code, errors = proxy.end()
    assert code == 0
    assert json.loads(errors.splitlines()[-1])["event"] == "stopped"


async def test_nobody_can_stop_it_by_default() -> None:
    async with gateway() as proxy:
        answer = await proxy.call(b"POST /-/quit", b"Content-Length: 0")
        assert (answer.status, answer.error_code) == (404, "PROXY_NOT_FOUND")


async def test_a_caller_with_limits_cannot_stop_it_for_all() -> None:
    callers = {
        "reader": {"key": "reader-key-12345", "read_only": True},
        "shop": {"key": "shop-key-1234567", "projects": ["shop"]},
    }
    async with gateway(server={"allow_quit": True}, callers=callers) as proxy:
        proxy.app._gateway._own._quit = lambda: pytest.fail("it stops")
        for key in (b"reader-key-12345", b"shop-key-1234567"):
            answer = await proxy.call(b"POST /-/quit", b"Content-Length: 0", b"X-API-Key: " + key)
            assert (answer.status, answer.error_code) == (403, "PROXY_FORBIDDEN")
