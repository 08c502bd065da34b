"""Both event loops for async tests, and quiet, deterministic surroundings."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none
from support.commands import CONFIG, write

# Each test module is prepared once, not by every worker anew, and programs that tests start compile nothing.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("PYTHONUNBUFFERED", None)  # they print as they do for their users

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None  # type: ignore[assignment]

# A shell's background job ignores Ctrl-C, and so would each program that a test starts.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,  # what a run finds is not a matter of luck
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(  # pytest --hypothesis-profile=explore
    "explore", settings.get_profile("suite"), derandomize=False, max_examples=1000
)
settings.load_profile("suite")


# fmt: off
ABOVE_SOCKETS = (
    "admin/", "cli/", "config/", "projects/", "sandbox/",
    "gateway/exports/test_exports.py", "gateway/exports/test_rules.py", "gateway/exports/test_runs.py",
    "gateway/exports/test_text.py",
    "gateway/test_callers.py", "gateway/test_oauth.py", "gateway/test_oauth_project.py",
    "gateway/test_placeholder.py", "gateway/test_policy.py", "gateway/test_proxy_loop.py",
    "gateway/test_recent.py", "gateway/test_request_log.py",
    "tokens/test_clock.py", "tokens/test_keeper.py", "tokens/test_standby.py",
)
# fmt: on
"""Tests of code that uses connections by other modules alone run on one event loop, the program's own.

Connections are different things on the two loops: tests of these, and of whole requests, run on both.
"""


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is None:
        return factories
    uv: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    marker = item.get_closest_marker("asyncio")
    chooses = marker is not None and "loop_factories" in marker.kwargs
    place = item.path.relative_to(Path(__file__).parent).as_posix()
    return uv if place.startswith(ABOVE_SOCKETS) and not chooses else factories | uv


@given(none())
def _try_hypothesis(_: None) -> None:
    """At its first use Hypothesis looks for what refers to its random numbers; what is frozen isn't found."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The thousands of collected tests stay: the garbage collector doesn't look at them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        _try_hypothesis()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests: with some short ones at their end, all workers end at the same time."""
    items.sort(key=lambda item: item.path.parent.name != "whole")


@pytest.fixture(autouse=True, scope="session")
def _surroundings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        # To read the system's certificates takes longer than the rest of most tests.
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.setenv(name, os.devnull)
        monkeypatch.setattr("proxy.app.app._POLL_S", 0.001)
        # Connections opened ahead would make the clouds' count of them a matter of luck.
        monkeypatch.setattr("proxy.upstream.pool.WARM_S", -1.0)
        yield


@pytest.fixture(autouse=True)
def _left_as_found() -> Iterator[None]:
    was_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    yield
    assert was_ignored or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, "see support.signals"
    structlog.reset_defaults()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which no configuration of this machine is found."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CSQ_", "CONTENTSQUARE_"))
    }
    home = dict.fromkeys(("HOME", "USERPROFILE", "APPDATA"), str(tmp_path))
    return {**kept, **home, "COLUMNS": "120", "NO_PROXY": "*"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "config.toml", CONFIG)
