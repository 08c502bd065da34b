"""Commands as forks of a process that has loaded the program.

To start Python and to load the program takes several times as long as most commands do. A fork is a process
of its own: with its arguments, environment, folder and standard streams, and it ends as Python ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl
    import termios

START_S = 60.0
REQUEST_BYTES = 1 << 17
READ_AT_START = ("PYTHON", "LC_", "LANG")
"""How the names of variables begin that Python reads when it starts, and never again."""


def can_fork(environ: Mapping[str, str]) -> bool:
    """Whether a fork with this environment is like a new process."""
    wanted, given = (
        {name: value for name, value in one.items() if name.startswith(READ_AT_START)}
        for one in (environ, os.environ)
    )
    return sys.platform == "linux" and wanted == given


class Fork:
    """A command (or ``code``, which calls it) that was started: as much of `subprocess.Popen` as tests need.

    Its output comes by pipes, or goes to ``output``. With a ``terminal`` all three streams are that, and
    ``how`` is as for `support.terminal.in_terminal`.
    """

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str],
        cwd: Path,
        code: str | None = None,
        output: int | None = None,
        terminal: int | None = None,
        how: str = "",
    ) -> None:
        self.args = [sys.executable, "-m", "proxy", *arguments]
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        self._report, its_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if terminal is None:
            given = [os.open(os.devnull, os.O_RDONLY)]
            if output is None:
                self.stdout, its_output = _pipe()
            else:
                its_output = os.dup(output)
            self.stderr, its_errors = _pipe()
            given += [its_output, its_errors]
        else:
            given = [os.dup(terminal) for _ in range(3)]
        given.append(its_report.detach())
        request = json.dumps([arguments, dict(environ), str(cwd), code, None if terminal is None else how])
        try:
            socket.send_fds(_server(), [request.encode()], given)
        finally:
            for descriptor in given:
                os.close(descriptor)
        self._report.settimeout(START_S)
        self.pid = int(self._report.recv(32))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._report.settimeout(timeout)
            try:
                self.returncode = int(self._report.recv(32))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._report.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The output and the errors, "" for one that doesn't come by a pipe."""
        with ThreadPoolExecutor(2) as pool:
            reads = [pool.submit(stream.read if stream else str) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            shown, told = (read.result() for read in reads)
        return shown, told

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close what is left of the streams."""
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def _pipe() -> tuple[IO[str], int]:
    reader, writer = os.pipe()
    return open(reader, encoding="utf-8"), writer  # noqa: PTH123


def run(
    *arguments: str, environ: Mapping[str, str], cwd: Path, limit_s: float, output: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does."""
    fork = Fork(*arguments, environ=environ, cwd=cwd, output=output)
    try:
        shown, told = fork.communicate(limit_s)
    finally:
        fork.close()
    return subprocess.CompletedProcess(fork.args, fork.wait(), shown, told)


@functools.cache
def _server() -> socket.socket:
    """The socket of the process that forks; this process has one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # Python keeps in mind that a stream is a pipe
            pass_fds=[theirs.fileno()],
        )
    assert process.stdout is not None
    process.stdout.close()

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait()

    return ours


_codes: list[int] = []


@atexit.register  # the first function that is registered is the last one to be called
def _leave() -> None:
    """End without tidying up all that was loaded."""
    if _codes:
        gc.collect()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(_codes[0])


def _serve(requests: socket.socket) -> str | None:
    """Fork for each request; return in the forks alone, with their code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
        if not request:
            sys.exit()
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while any(os.waitpid(-1, os.WNOHANG)):
                pass
    requests.close()
    *streams, report = descriptors
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any longer
            os.write(report, b"%d" % pid)
            os.write(report, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, report + 1)
    arguments, environ, folder, code, how = json.loads(request)
    _become(arguments, environ, folder, how)
    return None if code is None else str(code)


def _become(arguments: Sequence[str], environ: Mapping[str, str], cwd: str, how: str | None) -> None:
    if how is not None:
        _open_terminal(how)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = arguments
    sys.path.insert(0, cwd)


def _open_terminal(how: str) -> None:
    """Begin a session whose terminal is standard input, and write to it as Python does."""
    os.setsid()
    if how == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if how != "setsid":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)


if __name__ == "__main__":
    import proxy

    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if module.name != "proxy.__main__":
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    code = _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        if code is None:
            runpy.run_module("proxy", run_name="__main__", alter_sys=True)
        else:
            exec(code, {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, int):
            _codes.append(end.code)
        raise
