"""A proxy as a process: its event loop, what signals do to it, and what it says of itself.

Started by `proxy.cli.serve`. Typer and pydantic stay out, for they would stay in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from proxy import __version__
from proxy.app import notify
from proxy.app.app import App
from proxy.cli.console import say
from proxy.config.settings import WILDCARDS, Settings
from proxy.errors import ConfigError, ListenError, OutputLost
from proxy.logs.setup import configure
from proxy.process import ignore_signals, leave_if_asked
from proxy.projects.project import Project
from proxy.server.passed_sockets import PassedSocket

SUMMARY_WAIT_S = 3.0
"""How long the start-up summary waits for first tokens; requests are served meanwhile."""


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` on uvloop where it exists, else on asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_until_its_end(work))


async def _until_its_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await work()
    finally:
        # Else the loop would give them back their default meaning as it closes.
        if sys.platform != "win32":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().remove_signal_handler(number)
        ignore_signals()


class StopSignals:
    """SIGINT and SIGTERM: the first asks to stop, the second to stop at once.

    Made within `run`. Raises SystemExit where the first came before it was made.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._on_signal)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._on_signal))
        leave_if_asked()

    def _on_signal(self) -> None:
        (self.kill if self.stop.is_set() else self.stop).set()


async def serve(
    settings: Settings,
    signals: StopSignals | None = None,
    *,
    reload: Callable[[Path | None], Settings] | None = None,
    passed: Sequence[PassedSocket] = (),
) -> None:
    """Be the proxy until it is told to stop.

    ``reload`` reads the settings again, from the file that they came from; None: they stay.
    Raises ConfigError, ListenError, and SystemExit after a bug.
    """
    signals = signals or StopSignals()
    configure(settings.log.level, settings.log.format)
    app = App(settings, reload, signals.stop.set, passed)
    try:
        async with app.started():
            if reload is not None and sys.platform != "win32":
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload)
            await app.settled(SUMMARY_WAIT_S, signals.stop)
            with contextlib.suppress(OutputLost):  # the disk is full, say: no reason to end what serves
                say(_summary(app, settings))
            notify.ready()
            await signals.stop.wait()
            await app.drain(signals.kill)
    except (ConfigError, ListenError):
        raise
    except Exception:  # noqa: BLE001 - a bug, in a background task mostly: never a half-dead proxy
        raise SystemExit(1) from None  # it is logged


def _summary(app: App, settings: Settings) -> str:
    """The start-up summary: where we listen, each project, a line to try, and the page."""
    where = " (and every address of this computer)" if settings.server.host in WILDCARDS else ""
    key = '-H "X-API-Key: YOUR-KEY" ' if settings.callers else ""
    urls = [listener.url for listener in app.listeners]
    lines = [f"csq-proxy {__version__} listens on {', '.join(urls)}{where}", ""]
    calls = []
    for project in app.projects():
        url = app.project_url(project.name)
        query = f"?projectId={project.grant.project_id}" if project.grant.project_id else ""
        calls.append(f"{url}/v1/segments{query}")
        lines += [f"  {project.name}  {url}", *_leases(project)]
    for name in settings.accounts:
        url = app.project_url(name)
        calls.append(f"{url}/PROJECT_ID/v1/segments")
        lines += [
            f"  {name}  {url}/PROJECT_ID",
            "    any project of the account, tokens are fetched on first use",
        ]
    lines += ["", *(f'Try:  curl {key}"{call}"' for call in calls[:1])]
    lines += [
        f"See:  {urls[0]}/-/ in a browser: how it is doing, and text for your tools",
        "Stop: Ctrl-C",
        "",
    ]
    return "\n".join(lines)


def _leases(project: Project) -> list[str]:
    lines = []
    for api, keeper in project.keepers.items():
        status = keeper.status()
        if status.expires_at is not None:
            what = f"{status.endpoint}, token until {status.expires_at.astimezone():%H:%M:%S}"
        else:
            what = status.last_error or "token on its way"
        lines.append(f"    {api.value:<15} {what}")
    return lines or [f"    {why}" for why in project.missing()] or ["    tokens are fetched on first use"]
