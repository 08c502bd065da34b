"""The reload of a configuration, after a signal or after a change of one of its files.

A thread reads and validates everything; only a configuration without a fault is applied, in one step of the
event loop. To watch, the thread calls ``stat`` for each file once a second: a few system calls, the same on
every platform and file system. A library for it (watchfiles) takes several MiB of memory, misses changes on
network mounts, and must be told of Kubernetes' symlink swaps. ``stat`` follows links, so a swap, an atomic
rename and a write in place all show as another inode, size or time; ``ctime`` shows a ``chmod``, too, which
can make a secret file good. A change counts when the next look finds it unchanged: half a file isn't read.
A file that never stands still holds the others up for `LOOKS_HELD_UP` looks at most.

Each piece of work in the thread has a time limit. While a piece hangs (a dead network drive), no other
begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from proxy.blocking import NoThread, in_thread
from proxy.config.changes import Changes
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.logs import OnEvent
from proxy.machine import passes

if sys.platform == "win32":
    from proxy.config import acl

WATCH_S = 1.0
"""Seconds between two looks at the files, and from one requested reload to the next."""
LOOK_TIMEOUT_S = 10.0
"""How long one look at the files may take."""
LOAD_TIMEOUT_S = 120.0
"""How long one load may take: each command and each file has a limit of its own, which is reported first."""
LOOKS_HELD_UP = 2
"""Looks for which a changed file waits while another file is being written."""
MOST_TRIES = 3
"""Loads for one change, if they are refused while another file is being written: half a file may be read."""
MOST_NEIGHBOURS = 200
"""Files in the folder of a watched file that are watched, too, after a refused reload."""
MOST_IN_VAIN = 3
"""Changes of such a neighbour without an effect on the faults; after them, the neighbour (a log, say) isn't
watched any longer."""

_HANGS = (
    "the configuration's files can't be read: no answer yet; is one of them a named pipe,"
    " or on a network drive that hangs?"
)
T = TypeVar("T")
Signature = tuple[int, ...] | None
Apply = Callable[[], Changes]


def signature(path: Path) -> Signature:
    """A value that changes whenever the file does; None where the file doesn't exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    seen = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if sys.platform == "win32":  # where ctime is of the file's making, and does not show `icacls`
        return *seen, hash(acl.sddl(path))
    return seen


def signatures(paths: Iterable[Path]) -> dict[Path, Signature]:
    """The `signature` of each file."""
    return {path: signature(path) for path in paths}


def _differing(one: Mapping[Path, Signature], other: Mapping[Path, Signature]) -> set[Path]:
    return {path for path in {*one, *other} if one.get(path) != other.get(path)}


def _before(path: Path, earlier: Mapping[Path, Signature], found: Signature) -> Signature:
    """The signature of a path before the reload; None where its folder was read and did not hold it."""
    return earlier.get(path, None if path.parent in earlier else found)


class _NotNow(Exception):
    """The files can't be read for now: reading takes longer than its limit, or the system can't for now."""

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults


@dataclass(slots=True)
class ReloadStatus:
    """For ``/-/status``. ``last_at`` is the time of the last reload (UTC), and ``last_faults`` its faults."""

    count: int = 0
    refused: int = 0
    last_at: dt.datetime | None = None
    last_faults: tuple[str, ...] = ()


class Reloader:
    """Reads the configuration again.

    ``load`` gives new settings, and ``prepare`` a function that makes them the running ones. Both run in a
    thread and may raise ConfigError: then nothing changes. The function runs in the event loop and must not
    fail. ``files`` gives the files to watch. ``on_event`` gets ``reloaded``, ``reload_needs_restart`` and
    ``reload_refused``.
    """

    def __init__(
        self,
        load: Callable[[], Settings],
        prepare: Callable[[Settings], Apply],
        files: Callable[[], Iterable[Path]],
        on_event: OnEvent,
    ) -> None:
        self.status = ReloadStatus()
        self._load = load
        self._prepare = prepare
        self._files = files
        self._on_event = on_event
        self._reload_asked = asyncio.Event()
        self._known = signatures(files())
        self._in_vain: Counter[Path] = Counter()
        self._hanging: asyncio.Future[Any] | None = None
        self._held_up = 0  # looks
        self._tries = 0
        self._next_asked_at = 0.0  # of the event loop's clock

    def reload_soon(self) -> None:
        """Reload at the next look, with or without a change of a file."""
        self._reload_asked.set()

    async def watch(self) -> None:
        """Watch, until cancelled."""
        before, asked, told = self._known, False, False
        while True:
            if await self._pause():
                asked, told = True, False
            try:
                before = await self._look(before, asked=asked)
            except NoThread:  # the next look makes up for this one
                continue
            except _NotNow as fault:
                if not told:
                    self._refuse(fault.faults)
                asked = told = True  # a reload follows once the files can be read
                continue
            asked = told = False

    async def _look(self, before: Mapping[Path, Signature], *, asked: bool) -> dict[Path, Signature]:
        """Reload if a reload is due. Returns the signatures that were found. Raises `NoThread`."""
        now = await self._aside(lambda: signatures(self._watched()))
        if asked or self._is_due(now, before):
            changed, faults = _differing(now, self._known), self.status.last_faults
            earlier = await self._aside(lambda: signatures(self._files_and_neighbours()))
            await self._reload(is_known=not asked and not changed & set(self._files()))
            self._count_in_vain(changed, faults)
            if self._is_worth_another_try(now, before):
                return now
            self._held_up = self._tries = 0
            # The signatures from before the reload: a change during the reload must show at the next look.
            fresh = await self._aside(lambda: signatures(self._watched()))
            now = {path: now.get(path, _before(path, earlier, found)) for path, found in fresh.items()}
            self._known = now
        return now

    def _is_due(self, now: Mapping[Path, Signature], before: Mapping[Path, Signature]) -> bool:
        """Whether a change is complete: all files stand still, or one neighbour does; others may never.

        A change of several files takes a moment, so one that stands still waits for the others, but not for
        longer than `LOOKS_HELD_UP`.
        """
        changed, moving = _differing(now, self._known), _differing(now, before)
        files = set(self._files())
        if changed & files - moving and moving & files:
            self._held_up += 1
            if self._held_up > LOOKS_HELD_UP:
                return True
        return bool(changed & files and not moving & files) or bool(changed - files - moving)

    def _is_worth_another_try(self, now: Mapping[Path, Signature], before: Mapping[Path, Signature]) -> bool:
        """Whether a load was refused while a file was being written, so that the same change may be good."""
        self._tries += 1
        moving = _differing(now, before) & set(self._files())
        return bool(self.status.last_faults and moving and self._tries < MOST_TRIES)

    def _count_in_vain(self, changed: set[Path], faults: tuple[str, ...]) -> None:
        """Count the changes of neighbours that had no effect on the ``faults`` of the reload before."""
        if faults and faults == self.status.last_faults:
            self._in_vain.update(changed - set(self._files()))
        else:
            self._in_vain.clear()

    def _watched(self) -> Iterator[Path]:
        """The files; after a refused reload their neighbours, too, since one may be the missing file."""
        return self._files_and_neighbours() if self.status.last_faults else iter(self._files())

    def _files_and_neighbours(self) -> Iterator[Path]:
        yield from self._files()
        for folder in {path.parent for path in self._files()}:
            beside = [folder]
            with contextlib.suppress(OSError):
                beside += itertools.islice(folder.iterdir(), MOST_NEIGHBOURS)
            yield from (path for path in beside if self._in_vain[path] < MOST_IN_VAIN)

    async def _pause(self) -> bool:
        """Wait for the next look. Returns whether `reload_soon` was called."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S):
                await self._reload_asked.wait()
        asked = self._reload_asked.is_set()
        if asked:  # many signals in a moment are one reload at once and one a second later
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._next_asked_at - loop.time())
            self._next_asked_at = loop.time() + WATCH_S
        self._reload_asked.clear()
        return asked

    async def _aside(self, work: Callable[[], T], limit_s: float | None = None) -> T:
        """The result of ``work``, in a thread. Raises `_NotNow` after the limit (None: `LOOK_TIMEOUT_S`)."""
        if self._hanging is not None and not self._hanging.done():
            raise _NotNow(_HANGS)
        future = in_thread(work)
        await asyncio.wait((future,), timeout=LOOK_TIMEOUT_S if limit_s is None else limit_s)
        if future.done():
            self._hanging = None
            return future.result()
        self._hanging = future
        future.add_done_callback(lambda done: done.exception())  # nobody waits for it any more
        raise _NotNow(_HANGS)

    async def _reload(self, *, is_known: bool) -> None:
        """Load and apply; ``is_known``: no file has changed, so the same faults aren't told again."""
        self.status.last_at = dt.datetime.now(dt.UTC)
        try:
            apply = await self._aside(lambda: self._prepare(self._load()), LOAD_TIMEOUT_S)
        except (NoThread, _NotNow):
            raise
        except ConfigError as error:
            if passes(error, error.faults):
                raise _NotNow(*error.faults) from None
            if not (is_known and error.faults == self.status.last_faults):
                self._refuse(error.faults)
        except Exception as error:  # noqa: BLE001 - a bug, perhaps; the running configuration stays
            reason = getattr(error, "strerror", None) or type(error).__name__
            fault = f"the configuration can't be read ({reason})"
            if passes(error):
                raise _NotNow(fault) from None
            self._refuse((fault,))
        else:
            changes = apply()
            self.status.count += 1
            self.status.last_faults = ()
            self._tell(changes)

    def _refuse(self, faults: tuple[str, ...]) -> None:
        self.status.refused += 1
        self.status.last_faults = faults
        self._on_event("reload_refused", {"faults": list(faults)})

    def _tell(self, changes: Changes) -> None:
        if changes.needs_restart:
            self._on_event("reload_needs_restart", {"keys": list(changes.needs_restart)})
        self._on_event(
            "reloaded",
            {
                "added": list(changes.added),
                "removed": list(changes.removed),
                "changed": list(changes.changed),
            },
        )
