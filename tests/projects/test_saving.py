"""When the counts are saved, and that a fault loses none."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.harness import until

from proxy.projects import saving
from proxy.projects.calls import MonthlyCalls
from proxy.projects.calls_file import CallsFile, Saved
from proxy.projects.months import Month, Months, start_of
from proxy.projects.saving import SAVE_S, Saving

NOW = start_of("2026-11") + 86_400


class Disk(CallsFile):
    """A file that fails or hangs when tests say so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fault: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.writes = 0

    def add(self, changes: Mapping[str, Month], known: Months) -> Saved:
        self.go_on.wait(30)
        if self.fault is not None:
            raise self.fault
        self.writes += 1
        return super().add(changes, known)


class Kept:
    """Counts that are saved, with clocks that tests turn."""

    def __init__(self, folder: Path, **quotas: int) -> None:
        self.s = 0.0
        self.wall_s = NOW
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.disk = Disk(folder)
        self.calls = MonthlyCalls(self.told, wall_clock=lambda: self.wall_s)
        self.calls.set_quotas(quotas)
        self.saving = Saving(self.calls, self.disk, self.told, lambda: self.s)

    def told(self, event: str, values: Mapping[str, object]) -> None:
        self.events.append((event, values))

    def names(self) -> list[str]:
        return [event for event, _ in self.events]

    def make(self, count: int, name: str = "shop") -> None:
        one = self.calls.of(name)
        for _ in range(count):
            one.add()

    def count(self, name: str = "shop") -> int:
        return self.calls.count(name).calls

    async def save(self) -> None:
        """One try, to its end."""
        self.saving.begin()
        await until(lambda: self.saving._running is None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    return place


async def test_another_process_goes_on_where_the_first_ended(folder: Path) -> None:
    first = Kept(folder)
    await first.save()
    first.make(3)
    await first.saving.close()
    second = Kept(folder)
    await second.save()
    second.make(4)
    assert (second.count(), second.calls.count("shop").since) == (7, NOW)
    assert second.saving.is_kept


async def test_two_processes_of_one_folder_count_together(folder: Path) -> None:
    first, second = Kept(folder), Kept(folder)
    for round_ in range(1, 4):
        first.make(1)
        second.make(10)
        await first.save()
        await second.save()
        assert second.count() == 11 * round_
    first.make(1)
    await first.save()
    assert first.count() == 34


async def test_calls_during_a_write_are_in_the_next_one(folder: Path) -> None:
    kept = Kept(folder)
    kept.make(1)
    kept.disk.go_on.clear()
    kept.saving.begin()
    kept.make(2)
    assert kept.count() == 3
    kept.saving.begin()  # one at a time
    kept.disk.go_on.set()
    await until(lambda: kept.saving.is_kept)
    assert kept.count() == 3
    await kept.save()
    other = Kept(folder)
    await other.save()
    assert other.count() == 3


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only"), MemoryError()],
)
async def test_a_fault_is_told_and_loses_nothing(folder: Path, fault: Exception) -> None:
    kept = Kept(folder)
    kept.disk.fault = fault
    for _ in range(3):
        kept.make(2)
        await kept.save()
    assert (kept.count(), kept.saving.is_kept) == (6, False)
    assert "last as long as the process" in (kept.saving.error or "")
    kept.disk.fault = None
    await kept.save()
    assert kept.names() == ["counts_not_saved"] * 3 + ["counts_saved"]
    assert (kept.count(), kept.saving.is_kept, kept.saving.error) == (6, True, None)
    other = Kept(folder)
    await other.save()
    assert other.count() == 6


async def test_a_damaged_file_is_told_and_what_is_known_is_kept(folder: Path) -> None:
    kept = Kept(folder)
    kept.make(5)
    await kept.save()
    kept.disk.path.write_text("{")
    kept.make(1)
    await kept.save()
    assert kept.names() == ["counts_damaged"]
    assert kept.count() == 6
    other = Kept(folder)
    await other.save()
    assert other.count() == 6


async def test_writes_are_at_least_ten_seconds_apart_and_only_after_a_change(folder: Path) -> None:
    kept = Kept(folder)
    for second in range(100):
        kept.s = second
        kept.make(1 if second >= 40 else 0)
        kept.saving.look()
        await until(lambda: kept.saving._running is None)
    assert kept.disk.writes == 1 + 60 // SAVE_S
    assert kept.count() == 60


async def test_a_disk_that_hangs_delays_the_stop_a_little_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LAST_SAVE_S", 0.01)
    kept = Kept(folder)
    kept.make(1)
    kept.disk.go_on.clear()
    kept.saving.begin()
    await kept.saving.close()
    kept.disk.go_on.set()
    await until(lambda: kept.saving.is_kept)


async def test_a_disk_that_hangs_is_told_once_and_loses_nothing(folder: Path) -> None:
    kept = Kept(folder)
    await kept.save()
    kept.make(1)
    kept.disk.go_on.clear()
    for kept.s in range(200):
        kept.saving.look()
        kept.make(1)
    assert kept.names() == ["counts_not_saved"]
    assert (kept.saving.is_kept, "no answer of the disk" in (kept.saving.error or "")) == (False, True)
    kept.disk.go_on.set()
    await until(lambda: kept.saving.is_kept)
    await kept.save()
    assert (kept.names(), kept.count()) == (["counts_not_saved", "counts_saved"], 201)
    other = Kept(folder)
    await other.save()
    assert other.count() == 201


async def test_warnings_are_once_a_month_also_after_a_restart(folder: Path) -> None:
    first = Kept(folder, shop=10)
    await first.save()
    first.make(8)
    await first.saving.close()
    assert first.names() == ["quota_nearly_reached"]
    second = Kept(folder, shop=10)
    await second.save()
    second.make(1)
    second.calls.look()
    assert second.names() == []
    second.make(1)
    await second.saving.close()
    assert second.names() == ["quota_reached"]
    third = Kept(folder, shop=9)
    await third.save()
    assert third.names() == []


async def test_a_quota_that_a_restart_brings_is_held_against_the_saved_calls(folder: Path) -> None:
    first = Kept(folder)
    first.make(9)
    await first.saving.close()
    second = Kept(folder, shop=10)
    await second.save()
    assert second.names() == ["quota_nearly_reached"]


async def test_a_month_that_turns_while_a_write_is_under_way_loses_nothing(folder: Path) -> None:
    kept = Kept(folder)
    kept.make(1)
    kept.disk.go_on.clear()
    kept.saving.begin()
    kept.make(2)
    kept.calls.look()
    kept.wall_s = start_of("2026-12") + 1
    kept.calls.look()
    kept.make(4)
    kept.disk.go_on.set()
    await until(lambda: kept.saving.is_kept)
    assert kept.count() == 4
    await kept.save()
    saved = kept.disk.add({}, {}).months
    assert {name: month.calls for name, month in saved.items()} == {
        "2026-11": {"shop": 3},
        "2026-12": {"shop": 4},
    }
    kept.wall_s = NOW
    assert kept.count() == 3


async def test_a_clock_that_is_wrong_at_the_start_finds_the_months_calls_later(folder: Path) -> None:
    first = Kept(folder)
    first.make(5)
    await first.saving.close()
    second = Kept(folder)
    second.wall_s = 100.0  # 1970
    await second.save()
    second.make(1)
    assert second.count() == 1
    second.wall_s = NOW
    await second.save()
    assert second.count() == 5
    third = Kept(folder)
    await third.save()
    assert third.count() == 5


async def test_without_a_folder_nothing_is_saved(folder: Path) -> None:
    kept = Kept(folder)
    kept.saving.file = None
    kept.make(1)
    await kept.saving.close()
    assert (kept.count(), kept.saving.is_kept, kept.disk.writes) == (1, False, 0)
