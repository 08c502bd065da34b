"""The file with the calls: shared, killed, damaged, full and untrusted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from proxy.projects import calls_file
from proxy.projects.calls_file import NAME, CallsFile
from proxy.projects.months import Month

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and kills of POSIX")
MONTH = "2026-11"
GOOD = '{"version": 1, "months": {"2026-11": {"since": 0, "calls": {"shop": 4}, "warned": {}}}}'


def one(count: int, name: str = "shop") -> dict[str, Month]:
    return {MONTH: Month(0.0, {name: count})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    return place


def counted(folder: Path, name: str = "shop") -> int:
    return CallsFile(folder).add({}, {}).months[MONTH].calls.get(name, 0)


def test_two_files_of_one_folder_add_up(folder: Path) -> None:
    first, second = CallsFile(folder), CallsFile(folder)
    first.add(one(1), {})
    second.add(one(10), {})
    assert first.add(one(100), {}).months[MONTH].calls == {"shop": 111}
    assert json.loads((folder / NAME).read_text())["months"][MONTH]["calls"] == {"shop": 111}


def test_many_at_once_lose_nothing(folder: Path) -> None:
    def add_often() -> None:
        mine = CallsFile(folder)
        for _ in range(25):
            mine.add(one(1), {})

    threads = [threading.Thread(target=add_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(folder) == 100


@POSIX
def test_a_process_that_is_killed_leaves_a_whole_file_and_no_lock(folder: Path) -> None:
    code = (
        "import sys, pathlib\nfrom proxy.projects.calls_file import CallsFile\n"
        "from proxy.projects.months import Month\nfile = CallsFile(pathlib.Path(sys.argv[1]))\n"
        "while True:\n    file.add({'2026-11': Month(0.0, {'shop': 1})}, {}); print(flush=True)\n"
    )
    added = 0
    for kill_after in (1, 7, 20):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd=Path.cwd()
        ) as process:
            assert process.stdout is not None
            for _ in range(kill_after):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            told = kill_after + len(process.stdout.read())
        added += told
        now = counted(folder)
        assert added <= now <= added + 1  # one may be in the file and not be told
        added = now


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 1, "months": []}',
        GOOD.replace("4", "-4"),
        GOOD.replace("4", "4.5"),
        GOOD.replace("4", "true"),
        GOOD.replace("4", "1e400"),
        GOOD.replace(": 4", ": " + "9" * 400),
        GOOD.replace('"shop": 4', '"shop": null'),
        GOOD.replace("2026-11", "2026-13"),
        GOOD.replace("2026-11", "x"),
        GOOD.replace('"since": 0', '"since": NaN'),
        GOOD.replace('"since": 0', '"since": "now"'),
        GOOD.replace('"warned": {}', '"warned": []'),
        GOOD[:40],
        "\x00" * 4096,
    ],
)
def test_a_damaged_file_is_put_aside_and_a_new_one_begun(folder: Path, content: str) -> None:
    (folder / NAME).write_bytes(content.encode())
    (folder / NAME).chmod(0o600)
    saved = CallsFile(folder).add(one(2), one(5))
    assert saved.damaged == folder / f"{NAME}.damaged"
    assert saved.damaged.read_bytes() == content.encode()
    assert saved.months[MONTH].calls == {"shop": 7}
    assert counted(folder) == 7


def test_a_file_that_is_not_utf_8_is_damaged(folder: Path) -> None:
    (folder / NAME).write_bytes(b"\xff\xfe{")
    (folder / NAME).chmod(0o600)
    assert CallsFile(folder).add({}, {}).damaged is not None


def test_a_removed_file_is_made_again_from_what_was_known(folder: Path) -> None:
    file = CallsFile(folder)
    known = file.add(one(3), {}).months
    (folder / NAME).unlink()
    assert file.add(one(1), known).months[MONTH].calls == {"shop": 4}


def test_the_file_of_another_version_is_left_alone(folder: Path) -> None:
    text = GOOD.replace('"version": 1', '"version": 2')
    (folder / NAME).write_text(text)
    (folder / NAME).chmod(0o600)
    with pytest.raises(OSError, match="another version of csq-proxy"):
        CallsFile(folder).add(one(1), {})
    assert (folder / NAME).read_text() == text


@pytest.mark.parametrize(
    ("call", "code"), [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("open", errno.EMFILE)]
)
def test_a_write_that_fails_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    file = CallsFile(folder)
    file.add(one(3), {})

    def fails(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match=os.strerror(code)):
            file.add(one(1), {})
    assert counted(folder) == 3
    assert sorted(place.name for place in folder.iterdir()) == [NAME, "calls.lock"]


def test_a_lock_that_another_process_holds_ends_the_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_file, "LOCK_WAIT_S", 0.05)
    holder = CallsFile(folder)
    with holder._locked(), pytest.raises(OSError, match="another process holds its lock"):
        CallsFile(folder).add(one(1), {})
    assert CallsFile(folder).add(one(1), {}).months[MONTH].calls == {"shop": 1}


@POSIX
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_can_write_to_is_refused(folder: Path, mode: int) -> None:
    if mode == 0o770:
        os.chown(folder, -1, 1) if os.geteuid() == 0 else pytest.skip("needs root to change the group")
    folder.chmod(mode)
    with pytest.raises(OSError, match="others can"):
        CallsFile(folder).add(one(1), {})
    assert not [*folder.iterdir()]


@POSIX
def test_a_file_that_others_can_write_to_is_refused(folder: Path) -> None:
    (folder / NAME).write_text(GOOD)
    (folder / NAME).chmod(0o666)
    with pytest.raises(OSError, match="chmod 600"):
        CallsFile(folder).add(one(1), {})


@POSIX
def test_a_link_in_the_files_place_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(GOOD)
    (folder / NAME).symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=NAME):
        CallsFile(folder).add(one(1), {})
    assert (tmp_path / "other").read_text() == GOOD


@POSIX
def test_only_the_owner_can_read_the_files(folder: Path) -> None:
    CallsFile(folder).add(one(1), {})
    assert {place.stat().st_mode & 0o777 for place in folder.iterdir()} == {0o600}


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CallsFile(tmp_path / "gone").add({}, {})
