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


def run(
    *arguments: str, environ: Mapping[str, str], cwd: Path, limit_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does."""
    report, its_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (output, its_output), (errors, its_errors) = os.pipe(), os.pipe()
    given = (its_output, its_errors, its_report.detach())
    request = json.dumps([arguments, dict(environ), str(cwd)]).encode()
    with report, open(output, encoding="utf-8") as stdout, open(errors, encoding="utf-8") as stderr:  # noqa: PTH123
        try:
            socket.send_fds(_server(), [request], given)
        finally:
            for descriptor in given:
                os.close(descriptor)
        report.settimeout(limit_s)
        pid = int(report.recv(32))
        with ThreadPoolExecutor(2) as pool:
            reads = [pool.submit(stream.read) for stream in (stdout, stderr)]
            try:
                code = int(report.recv(32))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise
            shown, told = (read.result() for read in reads)
    command = [sys.executable, "-m", "proxy", *arguments]
    return subprocess.CompletedProcess(command, code, shown, told)


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


def _serve(requests: socket.socket) -> None:
    """Fork for each request; return in the forks alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
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
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    os.closerange(3, report + 1)
    _become(*json.loads(request))


def _become(arguments: Sequence[str], environ: Mapping[str, str], cwd: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = arguments
    sys.path.insert(0, cwd)


if __name__ == "__main__":
    import proxy

    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if module.name != "proxy.__main__":
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        runpy.run_module("proxy", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int):
            _codes.append(end.code)
        raise
