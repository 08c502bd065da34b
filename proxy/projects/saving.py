"""Saves the counts of calls now and then, in a thread of its own, and at the stop.

A fault is logged and shown, and stops nothing: the counts stay in memory, and the next try saves them.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Final

from proxy.blocking import in_thread
from proxy.logs import OnEvent
from proxy.projects.calls import MonthlyCalls
from proxy.projects.calls_file import CallsFile, Saved
from proxy.projects.months import Months

LOOK_S: Final = 1.0
"""Seconds between two looks at the calls and the clock."""
SAVE_S: Final = 10.0
"""The least time between two writes, in seconds: a process that is killed loses no more than its calls."""
HANGS_S: Final = 30.0
"""A write that takes longer, in seconds, is told as a fault; the next one begins once it has ended."""
LAST_SAVE_S: Final = 3.0
"""The longest time, in seconds, that a stop waits for the last write."""


class Saving:
    """The file of ``calls``; None: they last as long as the process.

    ``on_event`` gets ``counts_not_saved``, ``counts_saved`` after that, and ``counts_damaged``.
    """

    def __init__(
        self,
        calls: MonthlyCalls,
        file: CallsFile | None,
        on_event: OnEvent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file = file
        self.is_kept = False
        """Whether the last try was good, so that the counts outlast the process."""
        self.error: str | None = None
        """Why the last try failed, for people."""
        self.calls = calls
        self._on_event = on_event
        self._clock = clock
        self._due = clock()
        self._running: asyncio.Future[Saved] | None = None
        self._began_at = 0.0

    async def run(self) -> None:
        """Look and save until the task is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Look at the calls and the clock, and begin to save the changes if that is due."""
        self.calls.look()
        if self._clock() >= self._due:
            self.begin()

    async def close(self) -> None:
        """Save what is left. Waits `LAST_SAVE_S` for a write that is under way, and for the last one."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=LAST_SAVE_S)
        if self._running is not None:  # the disk hangs
            return
        self.begin()
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=LAST_SAVE_S)

    def begin(self) -> None:
        """Save the changes, unless there are none or they are being saved."""
        if self.file is None:
            return
        if self._running is not None:
            if self.error is None and self._clock() - self._began_at >= HANGS_S:
                self._on_fault(self.file, f"no answer of the disk for {HANGS_S:.0f} s")
            return
        self.calls.look()
        if not self.calls.is_changed and self.error is None:
            return
        changes, self._began_at = self.calls.unsaved(), self._clock()
        self._running = in_thread(functools.partial(self.file.add, changes, self.calls.saved))
        self._running.add_done_callback(functools.partial(self._on_done, self.file, changes))

    def _on_done(self, file: CallsFile, changes: Months, done: asyncio.Future[Saved]) -> None:
        is_idle = not done.exception() and not any(month.calls for month in changes.values())
        self._running, self._due = None, self._clock() + (0.0 if is_idle else SAVE_S)
        if (fault := done.exception()) is not None:
            text = fault.strerror if isinstance(fault, OSError) else str(fault)
            self._on_fault(file, text or type(fault).__name__)
            return
        saved = done.result()
        had_error, self.is_kept, self.error = self.error is not None, True, None
        if saved.damaged is not None:
            self._on_event("counts_damaged", {"file": str(file.path), "kept_as": str(saved.damaged)})
        if had_error:
            self._on_event("counts_saved", {"file": str(file.path)})
        self.calls.on_saved(changes, saved.months)

    def _on_fault(self, file: CallsFile, fault: str) -> None:
        self.is_kept = False
        self.error = f"the counts of calls can't be saved, and last as long as the process: {fault}"
        self._on_event("counts_not_saved", {"file": str(file.path), "error": fault})
