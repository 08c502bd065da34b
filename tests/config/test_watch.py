"""When a configuration is read again: after a request, and after a change of a file or a neighbour."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from support.harness import (
    until,
)

from proxy.config.changes import Changes
from proxy.config.settings import Settings
from proxy.config.watch import MOST_IN_VAIN, Reloader, signature
from proxy.errors import ConfigError


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

    reloader = Reloader(load, lambda _: list, files, lambda *_: None)  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(reloader.watch())
    reloader.reload_soon()
    await until(lambda: loads >= 1 + MOST_IN_VAIN)
    begun = looks
    await until(lambda: looks > begun + 100)
    assert loads <= 2 + MOST_IN_VAIN  # and the folder, once, for the log was new in it
    loads_before = loads
    (tmp_path / "secret").write_text("comes late")
    await until(lambda: loads > loads_before)
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
