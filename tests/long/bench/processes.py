"""Servers as child processes: started on one core, waited for, accounted, and stopped by their ids.

CPU time is the kernel's own account of a process tree, so that it holds on a busy machine as well. Every
process gets SIGTERM when the bench dies (`setpriv --pdeathsig`), whatever the bench dies of. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
START_WAIT_S = 20.0
STOP_WAIT_S = 5.0
_LOOK_S = 0.001


class StartError(Exception):
    """A server isn't listening in time; the message holds the end of what it said."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """The command, on that core alone, and ended with us. Both helpers exec, so the id stays."""
    return ["taskset", "-c", str(core), "setpriv", "--pdeathsig", "TERM", *command]


def tree(pid: int) -> list[int]:
    """The ids of a process and of all below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process tree so far: utime + stime of /proc/PID/stat, but in nanoseconds.

    The clock of another process is its id's complement, shifted, and CPUCLOCK_SCHED (Linux,
    include/linux/posix-timers.h); it counts all threads, ended ones included.
    """
    return sum(time.clock_gettime((~each << 3) | 2) for each in tree(pid))


def kernel_share(pid: int) -> float:
    """The kernel's part in a process's CPU time so far, by its ticks (stime of /proc/PID/stat)."""
    utime, stime = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
    return stime / (utime + stime) if utime + stime else 0.0


def busy_s(core: int) -> float:
    """Seconds that a core has worked, for any program, since the machine was started."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def resident_mib(pid: int) -> float:
    """Resident memory of a process tree; shared pages count in each process."""
    lines = [line for each in tree(pid) for line in Path(f"/proc/{each}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


class Server:
    """A child process that listens on ``port``; ``start_s`` and ``start_cpu_s`` say what that took."""

    def __init__(
        self, command: Sequence[str], *, port: int, core: int, env: Mapping[str, str], log: Path, cwd: Path
    ) -> None:
        self._command = pinned(core, command)
        self._env = {**os.environ, **env}
        self._log = log
        self._cwd = cwd
        self.port = port
        self.start_s = self.start_cpu_s = 0.0

    def __enter__(self) -> Self:
        begun_at = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, cwd=self._cwd
            )
        try:
            self._wait(begun_at)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The id of the process at the top of the tree."""
        return self._process.pid

    def _wait(self, begun_at: float) -> None:
        while not _listens(self.port):
            if self._process.poll() is not None or time.perf_counter() - begun_at > START_WAIT_S:
                raise StartError(self._log.read_text(errors="replace")[-2000:])
            time.sleep(_LOOK_S)
        self.start_s, self.start_cpu_s = time.perf_counter() - begun_at, cpu_s(self.pid)

    def _stop(self) -> None:
        family = tree(self.pid)
        self._process.terminate()
        try:
            self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def this_process_on(core: int) -> Iterator[None]:
    """What runs in the bench itself runs on that core within."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
