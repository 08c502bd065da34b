"""Lines for a person at a terminal: what they hold, and that none is wider than the terminal."""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logs.terminal import WIDTH, ShortLines, is_routine

AT = dt.datetime(2026, 11, 29, 12, 30, tzinfo=dt.UTC)
REQUEST: dict[str, Any] = {
    "project": "shop-fr", "api": "data-export", "caller": "power-bi", "method": "GET",
    "route": "/v1/exports/{id}/runs", "status": 200, "bytes_in": 0, "bytes_out": 12345, "wait_ms": 0.0,
    "upstream_ms": 10.5, "total_ms": 11.2, "request_id": "0123456789abcdef", "trace_id": "f" * 32,
}  # fmt: skip


def shown(event: str, level: str = "info", stream: IO[str] | None = None, **values: Any) -> list[str]:
    line = {"timestamp": AT, "level": level, "logger": "proxy", "event": event, **values}
    return ShortLines(stream, lambda text, _: text, colors=False)(None, level, line).split("\n")


def test_a_request_is_one_short_line_in_local_time() -> None:
    [line] = shown("request_answered", **REQUEST)
    time = f"{AT.astimezone():%H:%M:%S}"
    assert line == (
        f"{time} request_answered shop-fr caller=power-bi GET /v1/exports/{{id}}/runs 200 11.2 ms"
    )
    assert len(line) <= 100


def test_a_request_that_failed_has_what_identifies_it() -> None:
    lines = shown("request_answered", **{**REQUEST, "status": 503}, error="PROXY_QUEUE_TIMEOUT")
    assert "error=PROXY_QUEUE_TIMEOUT" in " ".join(lines)
    assert "request_id=0123456789abcdef" in " ".join(lines)


def test_sentences_have_lines_of_their_own() -> None:
    faults = ["projects.shop.client_id: missing", "log.level: must be info or so"]
    error = "Contentsquare refuses these credentials; compare them with the console"
    assert shown("token_fetch_failed", "warning", lease="shop/metrics", error=error)[1:] == [
        f"         error: {error}"
    ]
    first, *rest = shown("reload_refused", "warning", faults=faults)
    assert first.endswith(" warning reload_refused")
    assert rest == [f"         faults: {fault}" for fault in faults]


def test_a_refresh_as_planned_is_left_out_and_the_end_of_a_failure_is_not() -> None:
    assert is_routine({"event": "token_fetched"})
    assert not is_routine({"event": "token_fetched", "after_failures": 2})
    assert not is_routine({"event": "token_fetch_failed", "is_outage": False})
    assert is_routine({"event": "token_fetch_failed", "is_outage": True})  # token_endpoint_failed says it


def test_a_traceback_keeps_its_lines() -> None:
    assert shown("stopped_by_bug", "critical", exception="Traceback\n  File\nError")[1:] == [
        "Traceback", "  File", "Error"
    ]  # fmt: skip


words = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)


@given(
    values=st.dictionaries(st.sampled_from([*REQUEST, "error", "faults", "names"]), words | st.lists(words))
)
def test_no_line_is_wider_than_the_terminal(values: dict[str, Any]) -> None:
    assert all(len(line) <= WIDTH for line in shown("request_answered", "warning", **values))


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_terminal_s_own_width_counts(columns: int) -> None:
    import termios  # noqa: PLC0415 - not on Windows

    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, columns))
    with os.fdopen(reader, "rb"), os.fdopen(writer, "w") as stream:
        lines = shown("token_fetch_failed", "warning", stream, error="word " * 100)
    assert columns - 10 < max(map(len, lines)) <= columns
    assert re.match(r" {9}error: word", lines[1])
