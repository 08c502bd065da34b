"""When the configuration is read again, and what became of it: by a signal, or because a file changed.

Hides the watching and the order of things: everything is read and validated aside, in a thread,
and only what is wholly good is applied, in one step of the event loop. Watching is a look at each
file's ``stat`` once a second: a handful of system calls, the same on every platform and file
system, while a library for it (watchfiles) costs several MiB of memory for a few files, misses
changes on network mounts, and has to be taught Kubernetes' symlink swaps. ``stat`` follows links,
so that those, atomic renames and writes in place all show as another inode, size or time; ``ctime``
shows a ``chmod``, too, which may be what made a secret file good. A change counts once it stands
still for a look, so that half a file isn't read.
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
from proxy.logs.events import OnEvent

WATCH_S = 1.0
"""Between two looks at the files."""
MOST_NEIGHBOURS = 200
"""Of files beside a watched one, in each folder."""
MOST_IN_VAIN = 3
"""Changes of a file beside that may turn out to make no difference: a log, say, isn't what was missing."""

Signature = tuple[int, ...] | None
Apply = Callable[[], Changes]


def signature(path: Path) -> Signature:
    """What changes whenever a file does; None where there is none."""
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
    """What a path was earlier: nothing, where its folder was looked at and did not hold it."""
    return earlier.get(path, None if path.parent in earlier else found)


@dataclass(slots=True)
class ReloadStatus:
    """For ``/-/status``. ``last_at`` is the last try's, UTC; ``last_faults`` are empty where it went well."""

    count: int = 0
    refused: int = 0
    last_at: dt.datetime | None = None
    last_faults: tuple[str, ...] = field(default=())


class Reloader:
    """Reads the configuration again.

    ``load`` gives new settings and ``prepare`` what makes them the running ones; both run in a thread
    and may raise ConfigError, in which case nothing changes. What ``prepare`` gives runs in the event
    loop and must not fail. ``files`` are to be watched. ``on_event`` hears ``reloaded``,
    ``reload_needs_restart`` and ``reload_refused``.
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
        self._asked = asyncio.Event()
        self._known = signatures(files())
        self._in_vain: Counter[Path] = Counter()

    def ask(self) -> None:
        """Reload soon, whether a file changed or not."""
        self._asked.set()

    async def run(self) -> None:
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
        """Reload where that is due; gives back the files as they were found. Raises `NoThread`."""
        now = await in_thread(lambda: signatures(self._watched()))
        if asked or self._is_due(now, before):
            changed, faults = _differing(now, self._known), self.status.last_faults
            earlier = await in_thread(lambda: signatures(self._files_and_neighbours()))
            await self._reload()
            self._learn(changed, faults)
            # As they were before they were read: what changed meanwhile is a change.
            fresh = await in_thread(lambda: signatures(self._watched()))
            now = {path: now.get(path, _before(path, earlier, found)) for path, found in fresh.items()}
            self._known = now
        return now

    def _is_due(self, now: Mapping[Path, Signature], before: Mapping[Path, Signature]) -> bool:
        """Whether files changed and stand still, or one beside them does: others there may never."""
        changed, moving = _differing(now, self._known), _differing(now, before)
        files = set(self._files())
        return bool(changed & files and not moving & files) or bool(changed - files - moving)

    def _learn(self, changed: set[Path], faults: tuple[str, ...]) -> None:
        """Count what has changed beside the files and made no difference to the faults of before."""
        if faults and faults == self.status.last_faults:
            self._in_vain.update(changed - set(self._files()))
        else:
            self._in_vain.clear()

    def _watched(self) -> Iterator[Path]:
        """The files; after a refusal what lies beside them, too, since a file may be what was missing."""
        return self._files_and_neighbours() if self.status.last_faults else iter(self._files())

    def _files_and_neighbours(self) -> Iterator[Path]:
        yield from self._files()
        for folder in {path.parent for path in self._files()}:
            beside = [folder]
            with contextlib.suppress(OSError):
                beside += itertools.islice(folder.iterdir(), MOST_NEIGHBOURS)
            yield from (path for path in beside if self._in_vain[path] < MOST_IN_VAIN)

    async def _pause(self) -> bool:
        """Wait for the next look; whether a reload was asked for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WATCH_S):
                await self._asked.wait()
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    async def _reload(self) -> None:
        self.status.last_at = dt.datetime.now(dt.UTC)
        try:
            apply = await in_thread(lambda: self._prepare(self._load()))
        except NoThread:
            raise
        except ConfigError as error:
            self._refuse(error.faults)
        except Exception as error:  # noqa: BLE001 - whatever it is, what runs goes on running
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
