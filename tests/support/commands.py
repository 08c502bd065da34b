"""Commands as processes: run to their end, or started and observed."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support import forked

STARTUP_S = 60.0
"""The bound of every wait; only a failing test gets there."""

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")

CONFIG = """
[server]
port = 0
[contentsquare]
auth_url = "http://127.0.0.1:1"
[projects.shop]
client_id = "id-1"
client_secret = "canary-secret"
apis = ["metrics"]
read_only = true
"""


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def run(
    *arguments: str, environ: Mapping[str, str], cwd: Path, output: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, where possible as a fork, which is sooner; ``output``: instead of a pipe."""
    if forked.can_fork(environ):
        return forked.run(*arguments, environ=environ, cwd=cwd, limit_s=STARTUP_S, output=output)
    return run_anew(*arguments, environ=environ, cwd=cwd, output=output)


def run_anew(
    *arguments: str, environ: Mapping[str, str], cwd: Path, output: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a new process, which loads what this command needs, and nothing else."""
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        timeout=STARTUP_S,
        env=environ,
        cwd=cwd,
        check=False,
    )


def faults_in(errors: str) -> list[str]:
    """The faults on standard error, one a line: those of ``serve`` in JSON, of other commands as text."""
    faults = []
    for line in errors.splitlines():
        if line.startswith("{"):
            values = json.loads(line)
            assert (values["event"], values["level"]) == ("start_failed", "error")
            faults.append(str(values["fault"]))
        else:
            assert line.startswith("csq-proxy: ")
            faults.append(line.removeprefix("csq-proxy: "))
    return faults


class Running:
    """A command that runs until it is stopped."""

    def __init__(self, process: subprocess.Popen[str] | forked.Fork) -> None:
        self.process = process
        self.printed = ""
        self.logged = ""

    def wait_for(self, pattern: str) -> str:
        """Read the output until it matches ``pattern``; the first group of the match."""
        assert self.process.stdout is not None
        while (match := re.search(pattern, self.printed)) is None:
            line = self.process.stdout.readline()
            assert line, f"it ended, and printed {self.printed!r}"
            self.printed += line
        return match[1] if match.groups() else match[0]

    def wait_for_event(self, event: str) -> dict[str, Any]:
        """Read the log until this event's next line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.logged += line
            if (values := json.loads(line))["event"] == event:
                return dict(values)
        pytest.fail(f"it ended, and logged {self.logged!r}")

    def listening(self) -> str:
        """Wait until it serves; its first URL."""
        return str(self.wait_for_event("listening")["urls"][0])

    def end(self) -> tuple[int, str]:
        """The exit code and the standard error output."""
        assert self.process.stderr is not None
        self.logged += self.process.stderr.read()  # `communicate` passes over what the stream holds already
        output, _ = self.process.communicate(timeout=STARTUP_S)
        self.printed += output
        return self.process.wait(), self.logged


@contextlib.contextmanager
def started(
    *arguments: str,
    environ: Mapping[str, str],
    cwd: Path,
    code: str | None = None,
    anew: bool = False,
    descriptors: Sequence[int] = (),
    flags: int = 0,
) -> Iterator[Running]:
    """A command (or ``code``, which calls it), killed at the end if it still runs.

    Where possible it is a fork; with ``anew`` a new process, which loads what it needs, and unloads it.
    It inherits the ``descriptors``; the ``flags`` are Windows' alone.
    """
    process: subprocess.Popen[str] | forked.Fork
    if not anew and not descriptors and forked.can_fork(environ):
        process = forked.Fork(*arguments, environ=environ, cwd=cwd, code=code)
    else:
        process = subprocess.Popen(
            [sys.executable, *(["-m", "proxy"] if code is None else ["-c", code]), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environ,
            cwd=cwd,
            pass_fds=descriptors,
            creationflags=flags,
        )
    watchdog = threading.Timer(STARTUP_S, process.kill)  # ends every wait for output
    watchdog.start()
    try:
        yield Running(process)
    finally:
        watchdog.cancel()
        process.kill()
        with contextlib.suppress(ValueError):  # closed by the test
            process.communicate(timeout=STARTUP_S)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def get(url: str, *, method: str = "GET", body: str | None = None, content_type: str = "") -> tuple[int, Any]:
    """One call, as curl would make it: its status and its JSON."""
    headers = {"Content-Type": content_type} if content_type else {}
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=STARTUP_S)
    try:
        connection.request(method, url.removeprefix(f"{parts.scheme}://{parts.netloc}"), body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
