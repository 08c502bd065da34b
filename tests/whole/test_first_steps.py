"""The first steps of a new user on a terminal: `init`, `check --live`, `serve`, a snippet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest
from support.commands import STARTUP_S, get, run, started
from support.harness import free_port
from support.power_query import ended, evaluate, has_parser
from support.terminal import TERMINAL

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours and movements (ECMA-48)."""


class Terminal:
    """A command on a terminal of its own, and all its output."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self.shown = ""
        self._ends_at = time.monotonic() + STARTUP_S

    def wait_for(self, text: str) -> None:
        while text not in self.shown:
            assert self._read(), f"it ended, and had shown {self.shown!r}"

    def answer(self, question: str, answer: str) -> None:
        """Answer a question once it is asked: a hidden question drops what was typed earlier."""
        self.wait_for(question)
        self.shown = self.shown.partition(question)[2]
        self.wait_for(": ")
        os.write(self._descriptor, answer.encode() + b"\n")

    def end(self) -> int:
        """Read the output to its end; the exit code."""
        while self._read():
            pass
        return self._process.wait(STARTUP_S)

    def _read(self) -> bool:
        left_s = self._ends_at - time.monotonic()
        assert select.select([self._descriptor], [], [], max(0.0, left_s))[0], f"it hangs: {self.shown!r}"
        try:
            part = os.read(self._descriptor, 65_536)
        except OSError:  # on Linux, when the other side is closed
            part = b""
        self.shown = CONTROL.sub("", self.shown + part.decode(errors="replace")).replace("\r\n", "\n")
        return bool(part)


@contextlib.contextmanager
def terminal(*arguments: str, environ: Mapping[str, str], cwd: Path) -> Iterator[Terminal]:
    descriptor, slave = os.openpty()
    process = subprocess.Popen(  # pty.fork() warns where another thread runs
        [sys.executable, "-c", TERMINAL, "", sys.executable, "-m", "proxy", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**environ, "TERM": "xterm"},
        cwd=cwd,
    )
    os.close(slave)
    try:
        yield Terminal(process, descriptor)
    finally:
        os.close(descriptor)
        process.kill()
        process.wait(STARTUP_S)


@pytest.mark.asyncio(loop_factories=["asyncio"])  # the programs have loops of their own
async def test_from_nothing_to_rows_for_power_bi(environ: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with started("sandbox", environ=environ, cwd=tmp_path) as sandbox:
        sandbox.wait_for(r"ALLOWED_ENDPOINTS=\S+\n")
        way = dict(re.findall(r"# (CSQ_PROXY_\w+)=(\S+)\n", sandbox.printed))
        environ |= {**way, "CSQ_PROXY_SERVER__PORT": str(port)}

        with terminal("init", environ=environ, cwd=tmp_path) as init:
            init.answer("A name for the project", "shop")
            init.answer("client_id", "demo-eu-client-id")
            init.answer("client_secret (not shown)", "demo-eu-client-secret")
            init.answer("project_id", "")
            init.answer("integration_id", "")
            assert init.end() == 0
            assert "demo-eu-client-secret" not in init.shown
            assert "Contentsquare accepts these credentials for data-export, metrics," in init.shown
            assert f"Next: {sys.executable} -m proxy check --live\n" in init.shown

        with terminal("check", "--live", environ=environ, cwd=tmp_path) as check:
            assert check.end() == 0, check.shown
            assert "Asking Contentsquare ..." in check.shown  # while it waits
            assert "All is well." in check.shown
            assert f"To run it: {sys.executable} -m proxy serve\n" in check.shown

        with started("serve", environ=environ, cwd=tmp_path) as proxy:
            assert proxy.listening() == f"http://127.0.0.1:{port}"
            m = run("snippets", "--for", "powerbi", environ=environ, cwd=tmp_path).stdout
            if has_parser():
                rows, errors = await ended(await evaluate(m))
                assert errors == ""
            else:
                [(url, path)] = re.findall(r'Web\.Contents\("(\S+)", \[\s+RelativePath = "(\S+)"', m)
                query = urlencode({"startDate": "2026-03-03", "endDate": "2026-03-09", "period": "daily"})
                _, answer = await asyncio.to_thread(get, f"{url}/{path}?{query}")
                rows = answer["payload"]["values"]
            assert len(rows) == 7
            assert all(row["value"] > 0 for row in rows)


def test_a_wrong_secret_is_told_on_the_terminal_with_the_next_step(
    environ: dict[str, str], tmp_path: Path
) -> None:
    with started("sandbox", environ=environ, cwd=tmp_path) as sandbox:
        sandbox.wait_for(r"ALLOWED_ENDPOINTS=\S+\n")
        environ |= dict(re.findall(r"# (CSQ_PROXY_\w+)=(\S+)\n", sandbox.printed))
        environ |= {"CONTENTSQUARE_CLIENT_ID": "demo-eu-client-id", "CONTENTSQUARE_CLIENT_SECRET": "wrong"}
        with terminal("check", "--live", environ=environ, cwd=tmp_path) as check:
            assert check.end() == 1
            assert re.search(r"Next:.* Compare client_id and client_secret", check.shown)
            assert "1 failed." in check.shown
            assert "To run it" not in check.shown
