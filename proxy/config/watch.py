"""The reload of a configuration, after a signal or after a change of one of its files.

A thread reads and validates everything; only a configuration without a fault is applied, in one step of the
event loop. To watch, the thread calls ``stat`` for each file once a second: a few system calls, the same on
every platform and file system. A library for it (watchfiles) takes several MiB of memory, misses changes on
network mounts, and must be told of Kubernetes' symlink swaps. ``stat`` follows links, so a swap, an atomic
rename and a write in place all show as another inode, size or time; ``ctime`` shows a ``chmod``, too, which
can make a secret file good. A change counts when the next look finds it unchanged: half a file isn't read.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxy.blocking import NoThread, in_thread
from proxy.config.changes import Changes
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.logs import OnEvent

WATCH_S = 1.0
"""Seconds between two looks at the files."""
MOST_NEIGHBOURS = 200
"""Files in the folder of a watched file that are watched, too, after a refused reload."""
MOST_IN_VAIN = 3
"""Changes of such a neighbour without an effect on the faults; after them, the neighbour (a log, say) isn't
watched any longer."""

Signature = tuple[int, ...] | None
Apply = Callable[[], Changes]


def signature(path: Path) -> Signature:
    """A value that changes whenever the file does; None where the file doesn't exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def signatures(paths: Iterable[Path]) -> dict[Path, Signature]:
    """The `signature` of each file."""
    return {path: signature(path) for path in paths}


def _differing(one: Mapping[Path, Signature], other: Mapping[Path, Signature]) -> set[Path]:
    return {path for path in {*one, *other} if one.get(path) != other.get(path)}


def _before(path: Path, earlier: Mapping[Path, Signature], found: Signature) -> Signature:
    """The signature of a path before the reload; None where its folder was read and did not hold it."""
    return earlier.get(path, None if path.parent in earlier else found)


@dataclass(slots=True)
class ReloadStatus:
    """For ``/-/status``. ``last_at`` is the time of the last reload (UTC), and ``last_faults`` its faults."""

    count: int = 0
    refused: int = 0
    last_at: dt.datetime | None = None
    last_faults: tuple[str, ...] = field(default=())


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

    def reload_soon(self) -> None:
        """Reload at the next look, with or without a change of a file."""
        self._reload_asked.set()

    async def watch(self) -> None:
        """Watch, until cancelled."""
        before, asked = self._known, False
        while True:
            asked = await self._pause() or asked
            try:
                before = await self._look(before, asked=asked)
            except NoThread:  # the next look makes up for this one
                continue
            asked = False

    async def _look(self, before: Mapping[Path, Signature], *, asked: bool) -> dict[Path, Signature]:
        """Reload if a reload is due. Returns the signatures that were found. Raises `NoThread`."""
        now = await in_thread(lambda: signatures(self._watched()))
        if asked or self._is_due(now, before):
            changed, faults = _differing(now, self._known), self.status.last_faults
            earlier = await in_thread(lambda: signatures(self._files_and_neighbours()))
            await self._reload()
            self._count_in_vain(changed, faults)
            # The signatures from before the reload: a change during the reload must show at the next look.
            fresh = await in_thread(lambda: signatures(self._watched()))
            now = {path: now.get(path, _before(path, earlier, found)) for path, found in fresh.items()}
            self._known = now
        return now

    def _is_due(self, now: Mapping[Path, Signature], before: Mapping[Path, Signature]) -> bool:
        """Whether a change is complete: all files stand still, or one neighbour does; others may never."""
        changed, moving = _differing(now, self._known), _differing(now, before)
        files = set(self._files())
        return bool(changed & files and not moving & files) or bool(changed - files - moving)

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
        self._reload_asked.clear()
        return asked

    async def _reload(self) -> None:
        self.status.last_at = dt.datetime.now(dt.UTC)
        try:
            apply = await in_thread(lambda: self._prepare(self._load()))
        except NoThread:
            raise
        except ConfigError as error:
            self._refuse(error.faults)
        except Exception as error:  # noqa: BLE001 - a bug, perhaps; the running configuration stays
            self._refuse((f"the configuration can't be read ({type(error).__name__})",))
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
