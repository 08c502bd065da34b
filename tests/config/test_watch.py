"""When a configuration is read again: after a request, and after a change of a file or a neighbour."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import pytest
from support.harness import (
    until,
)

from proxy.config.changes import Changes
from proxy.config.settings import Settings
from proxy.config.watch import MOST_IN_VAIN, MOST_TRIES, Reloader, signature
from proxy.errors import ConfigError


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere ctime shows a change of the mode")
def test_another_access_list_is_a_change_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can make a file good that was refused, such as one with a secret."""
    before = signature(tmp_path)
    monkeypatch.setattr("proxy.config.acl.sddl", lambda _: "D:(A;;FA;;;SY)")
    assert signature(tmp_path) not in (None, before)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.config.watch.WATCH_S", 0.004)


async def test_what_cannot_be_read_for_reasons_nobody_foresaw_is_refused_too() -> None:
    events: list[tuple[str, Mapping[str, object]]] = []

    def bad() -> Settings:
        raise ZeroDivisionError("canary")

    def apply(_: Settings) -> Callable[[], Changes]:
        raise AssertionError

    reloader = Reloader(bad, apply, list, lambda *event: events.append(event))
    task = asyncio.create_task(reloader.watch())
    reloader.reload_soon()
    await until(lambda: events)
    task.cancel()
    assert events == [("reload_refused", {"faults": ["the configuration can't be read (ZeroDivisionError)"]})]
    assert reloader.status.last_at is not None


def test_the_signature_of_no_file_is_none(tmp_path: Path) -> None:
    assert signature(tmp_path / "nothing") is None
    assert signature(Path("a\0b")) is None
    (tmp_path / "file").write_text("x")
    assert signature(tmp_path / "file") is not None
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


async def test_a_file_that_comes_while_the_configuration_is_refused_for_the_lack_of_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.config.watch.WATCH_S", 0.005)
    config = tmp_path / "config.toml"
    config.write_text("1")
    loads = 0

    def load() -> Settings:
        nonlocal loads
        loads += 1
        (tmp_path / "secret").write_text("comes just too late")
        raise ConfigError("a secret file is missing")

    reloader = Reloader(load, lambda _: list, lambda: [config], lambda *_: None)  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(reloader.watch())
    reloader.reload_soon()
    await until(lambda: loads == 2)
    task.cancel()


async def test_a_log_beside_a_refused_configuration_is_not_taken_for_what_was_missing(tmp_path: Path) -> None:
    config, written = tmp_path / "config.toml", tmp_path / "csq-proxy.log"
    config.write_text("1")
    loads = looks = 0
    events: list[str] = []

    def load() -> Settings:
        nonlocal loads
        loads += 1
        with written.open("a") as file:
            file.write("reload_refused\n")
        raise ConfigError("still the same")

    def files() -> list[Path]:
        nonlocal looks
        looks += 1
        return [config]

    reloader = Reloader(load, lambda _: list, files, lambda event, _: events.append(event))  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(reloader.watch())
    reloader.reload_soon()
    await until(lambda: loads >= 1 + MOST_IN_VAIN)
    begun = looks
    await until(lambda: looks > begun + 100)
    assert loads <= 2 + MOST_IN_VAIN  # and the folder, once, for the log was new in it
    loads_before = loads
    (tmp_path / "secret").write_text("comes late")
    await until(lambda: loads > loads_before)
    assert (events, reloader.status.refused) == (["reload_refused"], 1)
    config.write_text("22")
    await until(lambda: events == ["reload_refused"] * 2)
    task.cancel()


async def test_a_file_beside_that_never_stands_still_hides_no_change(tmp_path: Path) -> None:
    config, busy = tmp_path / "config.toml", tmp_path / "busy.log"
    config.write_text("faulty")
    loads: list[str] = []

    def load() -> Settings:
        loads.append(config.read_text())
        raise ConfigError("whatever it is")

    def files() -> list[Path]:
        with busy.open("a") as file:
            file.write("a line between any two looks\n")
        return [config]

    reloader = Reloader(load, lambda _: list, files, lambda *_: None)  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(reloader.watch())
    reloader.reload_soon()
    await until(lambda: bool(loads))
    config.write_text("mended by now")
    await until(lambda: "mended by now" in loads)
    task.cancel()


class _Loads:
    """A `Reloader` that runs, with the texts of its files at each load, and what it reported."""

    def __init__(self, *files: Path) -> None:
        self.texts: list[tuple[str, ...]] = []
        self.events: list[str] = []
        self.before_look: Callable[[], object] = lambda: None
        self.fault: Callable[[], bool] = lambda: False
        self._paths = files
        self.reloader = Reloader(self._load, lambda _: Changes, self._files, self._on_event)

    def _load(self) -> Settings:
        self.texts.append(tuple(path.read_text() for path in self._paths))
        if self.fault():
            raise ConfigError("half a file")
        return None  # type: ignore[return-value]

    def _files(self) -> list[Path]:
        self.before_look()
        return list(self._paths)

    def _on_event(self, event: str, _values: Mapping[str, object]) -> None:
        self.events.append(event)


async def test_a_watched_file_that_never_stands_still_holds_up_no_other(tmp_path: Path) -> None:
    config, busy = tmp_path / "config.toml", tmp_path / "secret"
    config.write_text("1")
    busy.write_text("x")
    loads = _Loads(config, busy)
    loads.before_look = lambda: busy.write_text(busy.read_text() + "x")
    task = asyncio.create_task(loads.reloader.watch())
    await asyncio.sleep(0.1)
    assert not loads.texts  # half of it may be there
    config.write_text("2")
    await until(lambda: loads.texts)
    assert loads.texts[0][0] == "2"
    count = len(loads.texts)
    await asyncio.sleep(0.1)
    assert len(loads.texts) == count
    task.cancel()


async def test_a_load_that_met_half_a_file_is_tried_again(tmp_path: Path) -> None:
    config, busy = tmp_path / "config.toml", tmp_path / "secret"
    config.write_text("1")
    busy.write_text("x")
    loads = _Loads(config, busy)
    loads.before_look = lambda: busy.write_text(busy.read_text() + "x")
    loads.fault = lambda: len(loads.texts) < MOST_TRIES
    task = asyncio.create_task(loads.reloader.watch())
    config.write_text("another length, since times are coarse")
    await until(lambda: "reloaded" in loads.events)
    loads.fault = lambda: True
    count = len(loads.texts)
    config.write_text("a fault that stays")
    await until(lambda: len(loads.texts) >= count + MOST_TRIES)
    loads.before_look = lambda: None
    await asyncio.sleep(0.1)
    assert len(loads.texts) <= count + MOST_TRIES + 1  # and the last change of the busy file
    task.cancel()


async def test_many_requests_in_a_moment_are_two_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.config.watch.WATCH_S", 0.5)
    (tmp_path / "config.toml").write_text("1")
    loads = _Loads(tmp_path / "config.toml")
    task = asyncio.create_task(loads.reloader.watch())
    for number in range(50):
        loads.reloader.reload_soon()
        if number % 10 == 0:
            await asyncio.sleep(0.01)
    await until(lambda: len(loads.texts) >= 2)
    await asyncio.sleep(1.1)
    assert len(loads.texts) == 2
    task.cancel()


def _refused(code: int, way: str) -> Exception:
    """An error of a load in which a system call failed: as a cause, as a text, or as it is."""
    error = OSError(code, os.strerror(code))
    if way == "bare":
        return error
    refused = ConfigError(f"config.toml: can't read it{f': {error.strerror}' if way == 'text' else ''}")
    refused.__cause__ = error if way == "cause" else None
    return refused


@pytest.mark.parametrize("way", ["cause", "text", "bare"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO])
async def test_a_change_that_cant_be_read_for_now_is_refused_once_and_the_reload_follows(
    code: int, way: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("1")
    loads: list[str] = []
    events: list[str] = []

    def load() -> Settings:
        loads.append(file.read_text())
        if len(loads) < 4:
            raise _refused(code, way)
        return cast(Settings, None)

    reloader = Reloader(load, lambda _: Changes, lambda: [file], lambda event, _: events.append(event))
    task = asyncio.create_task(reloader.watch())
    file.write_text("22")
    await until(lambda: "reloaded" in events)
    task.cancel()
    assert (loads[-1], events) == ("22", ["reload_refused", "reloaded"])


@pytest.mark.parametrize(("where", "limit"), [("look", "LOOK_TIMEOUT_S"), ("load", "LOAD_TIMEOUT_S")])
async def test_files_that_hang_are_a_refused_reload_and_the_reload_follows(
    where: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"proxy.config.watch.{limit}", 0.05)
    (tmp_path / "config.toml").write_text("1")
    loads = _Loads(tmp_path / "config.toml")
    answers, hung = threading.Event(), []

    def hang() -> bool:
        hung.append(threading.current_thread())
        return not answers.wait(15)

    task = asyncio.create_task(loads.reloader.watch())
    if where == "look":
        monkeypatch.setattr("proxy.config.watch.signature", lambda _: hang())
    else:
        loads.fault = hang
    loads.reloader.reload_soon()
    await until(lambda: loads.events == ["reload_refused"])
    loads.reloader.reload_soon()
    await until(lambda: loads.events == ["reload_refused"] * 2)
    await until(lambda: len(hung) == 1)
    await asyncio.sleep(0.05)
    assert (len(hung), len(loads.events)) == (1, 2)  # told once, and once for each request
    monkeypatch.setattr(f"proxy.config.watch.{limit}", 10)
    answers.set()
    await until(lambda: "reloaded" in loads.events)
    assert loads.reloader.status.last_faults == ()
    task.cancel()
