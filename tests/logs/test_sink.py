"""`proxy.logs.sink.Sink`: batches, readers that don't read, streams that fail, the program's end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

import pytest
from support.commands import STARTUP_S
from support.harness import WAIT_S

from proxy.logs.sink import MOST_LINES, MOST_UNWRITTEN_BYTES, Sink

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="neither terminals nor pipes as there")


def unchanged(text: str) -> str:
    return text


class Counting(io.StringIO):
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def pipe() -> AbstractContextManager[tuple[int, IO[str]]]:
    """Its reading end, which nobody reads unless told to, and its writing end."""
    return _ends(*os.pipe())


def terminal() -> AbstractContextManager[tuple[int, IO[str]]]:
    """Its other end, which nobody reads unless told to, and the one that programs have."""
    import pty  # noqa: PLC0415 - not on Windows

    return _ends(*pty.openpty())


@contextlib.contextmanager
def _ends(reader: int, writer: int) -> Iterator[tuple[int, IO[str]]]:
    if sys.platform != "win32":
        os.set_blocking(reader, False)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        try:
            yield reader, stream
        finally:
            os.close(reader)


@pytest.fixture(params=["poll", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How writes that block are kept away: as on POSIX, and as on Windows."""
    if request.param == "thread":
        monkeypatch.delattr(select, "poll", raising=False)
    elif sys.platform == "win32":
        pytest.skip("no poll there")
    return str(request.param)


async def eventually(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_true():
            await asyncio.sleep(0.01)


async def test_the_lines_of_one_turn_are_one_write() -> None:
    stream, one = Counting(), Sink(unchanged)
    one.stream = stream
    for number in range(5):
        one.write_soon(f"line {number}")
    assert stream.writes == 0
    await asyncio.sleep(0)
    assert (stream.writes, stream.getvalue()) == (1, "line 0\nline 1\nline 2\nline 3\nline 4\n")


async def test_a_very_long_turn_does_not_pile_lines_up() -> None:
    stream, one = Counting(), Sink(unchanged)
    one.stream = stream
    for _ in range(MOST_LINES):
        one.write_soon("line")
    assert stream.getvalue().count("\n") == MOST_LINES


def test_without_an_event_loop_lines_are_written_at_once() -> None:
    stream, one = io.StringIO(), Sink(unchanged)
    one.stream = stream
    one.write_soon("line")
    assert stream.getvalue() == "line\n"


def test_a_loop_that_ended_before_its_turn_did_keeps_no_line_back() -> None:
    stream, one = io.StringIO(), Sink(unchanged)
    one.stream = stream

    async def log(line: str) -> None:
        one.write_soon(line)

    for line in ("first", "second"):
        loop = asyncio.new_event_loop()
        task = loop.create_task(log(line))
        task.add_done_callback(lambda _, loop=loop: loop.stop())  # type: ignore[misc]
        loop.run_forever()
        loop.close()
    one.flush()
    assert stream.getvalue() == "first\nsecond\n"


def test_nothing_is_written_that_was_not_redacted() -> None:
    stream, one = io.StringIO(), Sink(lambda text: text.replace("secret", "***"))
    one.stream = stream
    one.write("a secret")
    assert stream.getvalue() == "a ***\n"


def test_lines_of_many_threads_and_of_destructors_are_all_written() -> None:
    stream = io.StringIO()

    def redact(text: str) -> str:
        if "line" in text:  # as a destructor that logs, in the midst of it
            one.write("destroyed")
        return text

    one = Sink(redact)
    one.stream = stream

    def log() -> None:
        for number in range(200):
            one.write_soon(f"line {number}")

    threads = [threading.Thread(target=log) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    one.flush()
    assert stream.getvalue().count("line") == 800
    assert "destroyed" in stream.getvalue()
    assert one.dropped == 0


class Full(io.RawIOBase):
    """A raw stream on a disk that is full while ``left`` bytes are none."""

    left = 0

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        piece = bytes(content[: self.left])
        self.left -= len(piece)
        self.taken += piece
        return len(piece)


def test_what_is_left_of_a_line_that_was_cut_spoils_no_other() -> None:
    disk, one = Full(), Sink(unchanged)
    one.stream = io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8")
    for left in (100, 3, 0, 2, 100, 100, 0, 100):
        disk.left = left
        one.write("line")
    assert disk.taken == b"line\nlin\nl\nline\nline\nline\n"
    assert one.dropped == 4


def test_dropped_lines_are_told_once_when_lines_can_be_written_again() -> None:
    disk, told = Full(), []

    def tell(count: int) -> None:
        told.append(count)
        one.write("told")

    one = Sink(unchanged, tell)
    one.stream = io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8")
    for left in (100, 0, 0, 5, 100, 100):  # the third has room for the line, and none for what is told of it
        disk.left = left
        one.write("line")
    assert told == [2, 1]
    assert disk.taken == b"line\nline\nline\ntold\nline\n"


@on_posix
@pytest.mark.usefixtures("way")
async def test_a_reader_that_does_not_read_holds_nothing_up_and_gets_it_all_later() -> None:
    one = Sink(unchanged)
    with pipe() as (reader, stream):
        one.stream = stream
        lines = [f"{number} {'x' * 100}" for number in range(3000)]  # several times what a pipe holds
        for line in lines:
            one.write_soon(line)
        await asyncio.sleep(0)
        wanted, got = ("\n".join(lines) + "\n").encode(), b""

        def read_more() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += os.read(reader, 1 << 16)
            return len(got) >= len(wanted)

        await eventually(read_more)
        assert got == wanted
        assert one.dropped == 0


@on_posix
def test_a_terminal_that_nobody_reads_holds_nothing_up_and_shows_it_all_later() -> None:
    one = Sink(unchanged)
    lines = [f"line {number:04d} of a long log" for number in range(4000)]

    def write_all() -> None:
        for line in lines:
            one.write(line)

    with terminal() as (reader, stream):
        one.stream = stream
        writing = threading.Thread(target=write_all, daemon=True)
        writing.start()
        writing.join(WAIT_S / 3)
        assert not writing.is_alive()
        assert one._unwritten
        seen = b""
        for _ in range(1000):
            with contextlib.suppress(BlockingIOError):
                seen += os.read(reader, 1 << 16)
            one.flush()
            if not one._unwritten and seen.endswith(lines[-1].encode() + b"\r\n"):
                break
        assert seen.decode().split("\r\n") == [*lines, ""]
        assert one.dropped == 0
        assert os.get_blocking(stream.fileno())  # it is the shell's as well
        one.stream = None


@on_posix
def test_a_terminal_that_cannot_be_opened_again_is_written_to_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    one = Sink(unchanged)
    with terminal() as (reader, stream):
        monkeypatch.setattr(os, "open", refuse)
        one.stream = stream
        one.write("a line")
        assert os.read(reader, 100) == b"a line\r\n"


@pytest.mark.usefixtures("way")
async def test_what_waits_for_a_reader_is_bounded_and_the_rest_is_counted() -> None:
    one = Sink(unchanged)
    with pipe() as (_, stream):
        one.stream = stream
        line, count = "x" * 1023, 8 * MOST_UNWRITTEN_BYTES // 1024
        for _ in range(count):
            one.write(line)
        assert len(one._unwritten) <= MOST_UNWRITTEN_BYTES
        assert count // 2 < one.dropped < count
        kept = one._unwritten.count(b"\n")
        before = one.dropped
        one.stream = io.StringIO()
        assert one.dropped - before == kept


@on_posix
def test_however_many_lines_wait_one_timer_looks_whether_they_can_go(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Callable[[], object]] = []

    class Loop:
        def call_later(self, _delay_s: float, callback: Callable[[], object]) -> None:
            timers.append(callback)

    loop, one = Loop(), Sink(unchanged)
    with pipe() as (_, stream):
        one.stream = stream
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
        for _ in range(100):
            one.write("x" * 4096)  # more than a pipe holds
        assert len(timers) == 1
        timers.pop()()
        assert len(timers) == 1  # it still can't
        one.stream = None


@on_posix
@pytest.mark.usefixtures("way")
async def test_who_reads_again_gets_whole_lines() -> None:
    one = Sink(unchanged)
    with pipe() as (reader, stream):
        one.stream = stream
        for number in range(100):
            one.write(f"{number} {'x' * 8000}")  # longer than what can be written at once
        got = b""

        def read_more() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += os.read(reader, 1 << 16)
            return got.count(b"\n") == 100

        await eventually(read_more)
        assert [int(line.split()[0]) for line in got.splitlines()] == [*range(100)]
        assert {len(line.split()[1]) for line in got.splitlines()} == {8000}


def test_at_the_end_a_reader_that_does_not_read_is_not_waited_for_long() -> None:
    code = """
import os, sys
from proxy.logs import setup as log
log.configure("info", "json")
for _ in range(2000):
    log.get_logger("proxy.test").info("happened", text="x" * 100)
print("here", flush=True)
"""
    with pipe() as (_, stream):
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=stream,
            timeout=STARTUP_S,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert (done.returncode, done.stdout.strip()) == (0, b"here")


def test_a_line_of_the_last_turn_is_written_at_the_program_s_end() -> None:
    code = """
import asyncio, sys
from proxy.logs import setup as log
log.configure("info", "json")
loop = asyncio.new_event_loop()
async def last():
    log.log_soon("proxy.test", "info", "answered", {"status": 200})
    loop.stop()
loop.create_task(last())
loop.run_forever()
raise SystemExit("a traceback's place")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1
    assert '"event":"answered"' in done.stderr
