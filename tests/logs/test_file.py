"""`proxy.logs.file.LogFile`, and the log in a file: rotation, modes, troubles of a disk and of a folder."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import CONFIG, STARTUP_S, faults_in, get, needs_signals, run, started, write
from support.harness import free_port

from proxy.config.load import load
from proxy.errors import ConfigError
from proxy.logs import setup as log
from proxy.logs.file import KEPT, LOOK_S, MOST_BYTES, RETRY_S, LogFile
from proxy.logs.sink import Sink

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="an open file can't be moved there")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "csq-proxy.log"


@pytest.fixture
def file(path: Path, clock: Clock) -> Iterator[LogFile]:
    file = LogFile(path, clock)
    yield file
    file.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def older(path: Path) -> list[str]:
    return sorted(one.name.removeprefix(path.name) for one in path.parent.iterdir() if one != path)


# ---- rotation

LINE = b"x" * (MOST_BYTES // 2 - 1) + b"\n"


def test_lines_are_added_to_the_file_that_is_there(file: LogFile, path: Path) -> None:
    path.write_bytes(b"before\n")
    assert file.write(b"after\n") == 6
    assert path.read_bytes() == b"before\nafter\n"


def test_it_is_rotated_by_its_size_and_only_some_old_files_stay(file: LogFile, path: Path) -> None:
    for number in range(2 * (KEPT + 3)):
        file.write(b"%06d" % number + LINE[6:])
        assert path.stat().st_size <= MOST_BYTES
    assert older(path) == [f".{number + 1}" for number in range(KEPT)]
    first = [one.read_bytes()[:6] for one in (path, *(Path(f"{path}.{n + 1}") for n in range(KEPT)))]
    assert first == [b"%06d" % (2 * (KEPT + 2 - back)) for back in range(KEPT + 1)]


def test_a_line_is_never_divided_between_two_files(file: LogFile, path: Path) -> None:
    file.write(LINE[:-1])
    file.write(LINE)  # the rest of that line, and another
    assert older(path) == []
    file.write(LINE)
    assert older(path) == [".1"]


@on_posix
def test_only_this_user_can_read_it_and_the_rotated_ones(file: LogFile, path: Path) -> None:
    before = os.umask(0)
    try:
        for _ in range(3):
            file.write(LINE)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("held", ["", ".1"])
def test_a_rotation_that_fails_is_tried_again_later_and_loses_nothing(
    file: LogFile, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """Such as while a viewer on Windows holds one of the files open, however long that is."""
    for number in range(2 * (KEPT + 1)):
        file.write(b"%06d" % number + LINE[6:])
    tries, replace = [], os.replace

    def unless_held(source: str, target: str) -> None:
        if source == f"{path.resolve()}{held}":
            tries.append(1)
            raise PermissionError(13, "another program has the file open")
        replace(source, target)

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, unless_held)
        for _ in range(KEPT):
            for _ in range(2):
                file.write(LINE)
            clock.now += RETRY_S
    assert (len(tries), path.stat().st_size) == (KEPT, (2 + 2 * KEPT) * len(LINE))
    file.write(b"%06d" % 999_999 + LINE[6:])
    assert older(path) == [f".{number + 1}" for number in range(KEPT)]
    first = [one.read_bytes()[:6] for one in (path, *(Path(f"{path}.{n + 1}") for n in range(KEPT)))]
    assert first == [b"999999", *(b"%06d" % (2 * (KEPT - back)) for back in range(KEPT))]


@on_posix
def test_two_writers_of_one_file_follow_each_other_s_rotation(
    file: LogFile, path: Path, clock: Clock
) -> None:
    other = LogFile(path, clock)
    other.write(b"other\n")
    for _ in range(2):
        file.write(LINE)
    assert older(path) == [".1"]
    clock.now += LOOK_S
    other.write(b"other\n")
    assert path.read_bytes()[-6:] == b"other\n"
    other.close()


# ---- troubles


@on_posix
@pytest.mark.parametrize("how", ["moved", "removed", "folder removed"])
def test_it_is_made_again_where_it_was_taken_away(how: str, tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    file = LogFile(path, clock)
    sink = Sink(lambda text: text, lambda count: sink.write(f"{count} lost"))
    sink.stream = file
    sink.write("first")
    if how == "moved":
        path.rename(tmp_path / "moved")
    else:
        path.unlink()
    if how == "folder removed":
        path.parent.rmdir()
    clock.now += LOOK_S
    sink.write("second")
    if how == "folder removed":
        sink.write("third")
        assert sink.dropped == 2
        path.parent.mkdir()
        sink.write("fourth")
        assert path.read_text() == "fourth\n2 lost\n"
    else:
        assert path.read_text() == "second\n"
    file.close()


@on_posix
def test_a_pipe_or_a_link_in_its_place_neither_stops_the_program_nor_is_followed(
    tmp_path: Path, clock: Clock
) -> None:
    path, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
    file = LogFile(path, clock)
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"."):
        file.write(b"line\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a file"):
        file.write(b"line\n")
    os.close(reader)
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"."):
        file.write(b"line\n")
    assert not elsewhere.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that is full")
def test_a_full_disk_costs_lines_that_are_counted_and_each_line_that_is_there_is_whole(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes a part of a line, and then nothing, for a while."""
    file = LogFile(path, clock)
    sink = Sink(lambda text: text, lambda count: sink.write(json.dumps({"lost": count})))
    sink.stream = file
    written = file.write
    sink.write(json.dumps({"line": 0}))
    rooms = iter([5])

    def full(data: bytes) -> int:
        if room := next(rooms, 0):
            return written(data[:room])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file, "write", full)
        sink.write(json.dumps({"line": 1}))
        sink.write(json.dumps({"line": 2}))
    sink.write(json.dumps({"line": 3}))
    first, cut, *rest = path.read_text().splitlines()
    assert (json.loads(first), cut) == ({"line": 0}, '{"lin')
    assert [json.loads(line) for line in rest] == [{"line": 3}, {"lost": 2}]
    file.close()


def test_lines_are_redacted_and_json_and_a_later_configure_keeps_the_file_or_leaves_it(
    path: Path, tmp_path: Path
) -> None:
    log.redactor.add("hush-hush-secret")
    try:
        log.configure("info", "auto", path)
        log.get_logger("proxy").info("happened", value="a hush-hush-secret")
        kept = log._sink.stream
        log.configure("error", "auto", path)
        assert log._sink.stream is kept
        log.configure("info", "text", tmp_path / "other")
        log.get_logger("proxy").info("happened", value="b")
        assert log.log_file() == tmp_path / "other"
    finally:
        log.redactor.discard("hush-hush-secret")
        log.configure("info", "auto")
    [line] = lines_of(path)
    assert line["value"] == "a [redacted]"
    assert (tmp_path / "other").read_text().count("\n") == 1
    assert log.log_file() is None


def test_lines_of_many_threads_are_whole(path: Path) -> None:
    log.configure("info", "json", path)
    try:
        threads = [
            threading.Thread(target=lambda: [log.get_logger("proxy").info("happened") for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        log.configure("info", "auto")
    assert len(lines_of(path)) == 200


# ---- the setting


def settings(path: object, **project: object) -> dict[str, object]:
    return {
        "log": {"file": str(path)},
        "projects": {"shop": {"client_id": "id", "client_secret": "secret-1", **project}},
    }


def test_a_path_is_relative_to_the_configuration_s_folder(environ: dict[str, str], config: Path) -> None:
    write(config, CONFIG + '[log]\nfile = "a.log"\n')
    assert load(config, environ=environ).log.file == config.parent / "a.log"
    assert config.parent / "a.log" not in load(config, environ=environ).files  # no change of it is a reload


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("nowhere/log", "log.file: there is no folder "),
        (".", "log.file: "),
    ],
)
def test_a_place_where_no_file_can_be_is_a_fault(place: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, settings(tmp_path / place), {}, search=False)
    [told] = refused.value.faults
    assert told.startswith(fault)


@on_posix
def test_a_place_that_others_can_change_is_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    for place, file in ((folder, folder / "log"), (tmp_path / "log", tmp_path / "log")):
        if place == file:
            file.touch()
        place.chmod(0o777)
        with pytest.raises(ConfigError, match=r"log\.file: others can change") as refused:
            load(None, settings(file), {}, search=False)
        assert "chmod go-w" in refused.value.faults[0]
        place.chmod(0o700)
        assert load(None, settings(file), {}, search=False).log.file == file


@needs_signals
def test_with_a_file_standard_error_stays_empty(environ: dict[str, str], config: Path, path: Path) -> None:
    port = free_port()
    write(config, CONFIG.replace("port = 0", f"port = {port}") + f"[log]\nfile = {json.dumps(str(path))}\n")
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        until_it_says("listening", path)
        assert get(f"http://127.0.0.1:{port}/-/status")[0] == 200
        taken = run("serve", "--config", str(config), environ=environ, cwd=config.parent)
        proxy.process.terminate()
        assert proxy.end() == (0, "")
    assert proxy.printed == ""
    events = [line["event"] for line in lines_of(path)]
    assert events[-2:] == ["stop_requested", "stopped"]
    assert events.count("start_failed") == 1  # of the other one, which says it on standard error, too
    assert (taken.returncode, len(faults_in(taken.stderr))) == (1, 1)


def until_it_says(event: str, path: Path) -> None:
    ends_at = time.monotonic() + STARTUP_S
    while not path.exists() or f'"event":"{event}"' not in path.read_text("utf-8"):
        assert time.monotonic() < ends_at
        time.sleep(0.02)
