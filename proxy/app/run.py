"""A proxy as a process: its event loop, its signals, and its notes to the service manager.

Started by `proxy.cli.serve` and `proxy.cli.sandbox`.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from proxy.admin.overview import Overview, PageTexts
from proxy.app import notify
from proxy.app.app import App
from proxy.app.session import on_request_to_end
from proxy.config.settings import Settings
from proxy.errors import ConfigError, ListenError
from proxy.logs import configure, log_ignored_exceptions, log_soon
from proxy.process import (
    CONSOLE_GRACE_S,
    STOP_SIGNALS,
    ignore_signals,
    leave_if_asked,
    on_console_end,
    terminal_is_gone,
)
from proxy.server.passed_sockets import PassedSocket

SUMMARY_WAIT_S = 3.0
"""How long the start-up summary waits for first tokens; requests are served meanwhile."""
HANGUP_WAIT_S = 0.05
SAME_SIGNAL_S = 0.3
"""Ctrl-C reaches all processes of a terminal: a one-file program, and then the proxy in it twice."""


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` on uvloop where it exists, else on asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    gc.freeze()  # modules stay for good: without them a full collection takes 20 ms in place of 60
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_until_its_end(work))


async def _until_its_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await work()
    finally:
        # Otherwise the loop, as it closes, would give the signals back their default meaning.
        if sys.platform != "win32":
            for number in (*STOP_SIGNALS, signal.SIGHUP):
                asyncio.get_running_loop().remove_signal_handler(number)
        ignore_signals()


class Signals:
    """SIGINT, SIGTERM, on Windows Ctrl-Break: the first signal asks for a stop, the second skips the drain.

    A second signal within `SAME_SIGNAL_S` is the first one, passed on by a wrapper that got it, too.
    SIGHUP asks for a stop if the terminal is gone that the process was started on, else it calls ``reload``.
    Must be made within `run`. Raises SystemExit where a signal came earlier.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()
        self.reload: Callable[[], None] = lambda: None
        self._repeats_until_s = 0.0
        self._loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            try:
                self._loop.add_signal_handler(number, self._on_signal)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(self._on_signal))
        if sys.platform != "win32":
            self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        for tells in (on_console_end, on_request_to_end):  # Windows
            tells(lambda: self._loop.call_soon_threadsafe(self.on_console_end))
        leave_if_asked()

    def on_console_end(self) -> None:
        """Stop, and stop without a drain before Windows ends the process."""
        self.stop.set()
        self._loop.call_later(CONSOLE_GRACE_S, self.kill.set)

    def _on_signal(self) -> None:
        now_s = self._loop.time()
        if not self.stop.is_set():
            self._repeats_until_s = now_s + SAME_SIGNAL_S
            self.stop.set()
        elif now_s >= self._repeats_until_s:
            self.kill.set()

    def _on_hangup(self) -> None:
        """Look for the terminal soon: the kernel sends SIGHUP before it takes the terminal away."""
        self._loop.call_later(HANGUP_WAIT_S, self._obey_hangup)

    def _obey_hangup(self) -> None:
        if terminal_is_gone():
            self.stop.set()  # never `kill`: a shell that ends sends the signal again
        else:
            self.reload()


async def serve(
    settings: Settings,
    signals: Signals | None = None,
    *,
    announce: Callable[[Overview], None],
    reload: Callable[[Path | None], Settings] | None = None,
    passed: Sequence[PassedSocket] = (),
    page_texts: PageTexts | None = None,
) -> None:
    """Run the proxy until a signal or a caller stops it.

    ``announce`` is called once, when the first tokens are there or took longer than `SUMMARY_WAIT_S`.
    ``reload`` reads the settings again, from the file that they came from; None: they stay.
    Raises ConfigError, ListenError, and SystemExit after a bug.
    """
    signals = signals or Signals()
    configure(settings.log.level, settings.log.format, settings.log.file)
    log_ignored_exceptions()
    app = App(settings, reload, signals.stop.set, passed)
    app.overview.page_texts = page_texts
    try:
        async with app.started():
            signals.reload = app.reload
            await app.settled(SUMMARY_WAIT_S, signals.stop)
            announce(app.overview)
            notify.ready()
            await signals.stop.wait()
            await app.drain(signals.kill)
        log_soon("proxy", "info", "stopped", {})  # at each level, like `listening`
    except (ConfigError, ListenError):
        raise
    except Exception:  # noqa: BLE001 - a bug, in a background task mostly: never a half-dead proxy
        raise SystemExit(1) from None  # it is logged
