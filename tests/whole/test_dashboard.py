"""The calls that sharing saves a dashboard: a short run of `dashboard.tiles`."""

from __future__ import annotations

from dashboard.tiles import Load, measured

LOAD = Load(seconds=0.3, windows=3, tiles=8, distinct=5, every_s=0.05, latency_s=0.02)


async def test_without_sharing_each_tile_costs_a_call() -> None:
    seen = await measured("as it is", LOAD)
    assert seen.calls == len(seen.took_s) > LOAD.tiles
    assert not seen.wrong


async def test_windows_and_tiles_that_show_the_same_share_a_call_and_wait_for_nobody() -> None:
    seen = await measured("coalesce = true", LOAD)
    assert LOAD.distinct <= seen.calls < len(seen.took_s)
    assert not seen.wrong


async def test_stored_answers_spare_all_calls_but_the_first() -> None:
    seen = await measured('cache = "10s"', LOAD)
    assert seen.calls == LOAD.distinct
    assert not seen.wrong
