"""Which events are warnings, and how equal failures become few lines."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.documents import events_in_readme
from support.harness import WAIT_S, TokenServer, Upstream, gateway

import proxy
from proxy.logs import events
from proxy.logs.events import INTERVALS_S, MOST_KINDS, QUIET_S, EventLog
from proxy.logs.setup import configure

if TYPE_CHECKING:
    import pytest


class Told:
    """A logger and a clock: what was told, and when it is."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.events = EventLog(self, lambda: self.now)

    def info(self, event: str, **values: Any) -> None:
        self.lines.append(("info", event, values))

    def warning(self, event: str, **values: Any) -> None:
        self.lines.append(("warning", event, values))

    def error(self, event: str, **values: Any) -> None:
        self.lines.append(("error", event, values))

    def fail(self, lease: str = "shop/metrics", cause: str = "timeout", **values: object) -> None:
        self.events("token_fetch_failed", {"lease": lease, "cause": cause, **values})

    @property
    def said(self) -> Mapping[str, Any]:
        """The values of the last line."""
        return self.lines[-1][2]


def test_an_event_is_logged_at_its_level_with_its_values() -> None:
    told = Told()
    told.events("token_fetched", {"lease": "shop/metrics"})
    told.events("reload_refused", {"faults": ["a"]})
    told.events("request_failed_by_bug", {"cause": "KeyError at x.py:1"})
    assert [(level, event) for level, event, _ in told.lines] == [
        ("info", "token_fetched"),
        ("warning", "reload_refused"),
        ("error", "request_failed_by_bug"),
    ]
    assert told.lines[0][2] == {"lease": "shop/metrics"}


def test_the_first_failure_is_told_at_once_and_equal_ones_at_growing_intervals() -> None:
    told, began_at, times = Told(), 1000.0, []
    while told.now < began_at + 12_000:
        before = len(told.lines)
        told.fail(next_try_in_s=told.now)
        times += [told.now - began_at] * (len(told.lines) - before)
        told.now += 10
    assert times == [0, 60, 360, 1260, 4860, 8460]
    assert [values.get("repeated") for *_, values in told.lines] == [None, 6, 30, 90, 360, 360]
    assert [values.get("since_s") for *_, values in told.lines] == [None, 60, 360, 1260, 4860, 8460]
    assert told.said["next_try_in_s"] == began_at + 8460


def test_failures_that_differ_in_what_matters_are_told_apart() -> None:
    told = Told()
    for lease, cause in (("a", "timeout"), ("b", "timeout"), ("a", "malformed"), ("a", "timeout")):
        told.fail(lease, cause, error="number 1")
        told.fail(lease, cause, error="number 2")
    assert [(values["lease"], values["cause"]) for *_, values in told.lines] == [
        ("a", "timeout"),
        ("b", "timeout"),
        ("a", "malformed"),
    ]


def test_what_people_did_is_told_each_time() -> None:
    told = Told()
    for fault in ("one", "one", "two"):
        told.events("reload_refused", {"faults": [fault]})
    assert len(told.lines) == 3


def test_a_success_says_how_many_failures_it_ended_and_the_next_one_is_new_again() -> None:
    told = Told()
    for cause in ("timeout", "malformed", "timeout"):
        told.fail("a", cause)
        told.now += 30
    told.fail("b")
    told.events("token_fetched", {"lease": "a"})
    assert told.said == {"lease": "a", "after_failures": 3, "failed_for_s": 90}
    told.events("token_fetched", {"lease": "a"})
    assert told.said == {"lease": "a"}
    told.fail("a")
    assert told.lines[-1][:2] == ("warning", "token_fetch_failed")
    assert "repeated" not in told.said


def test_a_sweep_tells_what_was_counted_when_it_is_due_and_what_is_over() -> None:
    told = Told()
    told.fail()
    told.fail()
    told.events.sweep()
    assert len(told.lines) == 1
    told.now += INTERVALS_S[0]
    told.events.sweep()
    assert (told.said["repeated"], told.said["since_s"]) == (1, 60)
    told.now += QUIET_S - INTERVALS_S[0]
    told.events.sweep()
    assert told.lines[-1] == (
        "info",
        "failure_ceased",
        {
            "failure": "token_fetch_failed",
            "lease": "shop/metrics",
            "cause": "timeout",
            "failures": 2,
            "failed_for_s": 0,
        },
    )
    told.events.sweep()
    assert len(told.lines) == 3


def test_a_failure_that_came_once_ends_without_a_word() -> None:
    told = Told()
    told.fail()
    told.now += QUIET_S
    told.events.sweep()
    told.fail()
    assert [event for _, event, _ in told.lines] == ["token_fetch_failed"] * 2


def test_what_is_kept_is_bounded_and_holds_no_traceback() -> None:
    told = Told()
    for number in range(3 * MOST_KINDS):
        told.fail(f"lease-{number}")
        told.fail("the same")
    told.events("request_failed_by_bug", {"cause": "x", "exc_info": ValueError()})
    assert isinstance(told.said["exc_info"], ValueError)
    assert len(told.events._series) == MOST_KINDS
    assert [values.get("lease") for *_, values in told.lines].count("the same") == 1
    assert not [one for one in told.events._series.values() if "exc_info" in one.values]


async def test_a_cloud_that_fails_is_one_warning_and_a_line_each_request() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    async with gateway(Upstream(b"no HTTP at all\r\n\r\n")) as proxy:
        for _ in range(3):
            assert (await proxy.call(b"GET /v1/x")).status == 502
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (warning,) = [line for line in lines if line["event"] == "request_failed"]
    assert (warning["level"], warning["project"], warning["api"], warning["cause"]) == (
        "warning",
        "shop",
        "metrics",
        "PROXY_UPSTREAM_UNREACHABLE",
    )
    assert "malformed status line" in warning["error"]
    assert [line["error"] for line in lines if line["event"] == "request_answered"] == [warning["cause"]] * 3


async def test_a_caller_s_own_mistakes_are_no_warnings() -> None:
    stream = io.StringIO()
    configure("warning", "json", stream)
    async with gateway(
        projects={"shop": {"client_id": "a", "client_secret": "b", "read_only": True}}
    ) as proxy:
        assert (await proxy.call(b"DELETE /v1/x")).status == 403
        assert (await proxy.call(b"GET /v1/x", b"X-CSQ-Api: none")).status == 400
    assert "request_failed" not in stream.getvalue()


async def test_a_token_endpoint_that_fails_is_one_warning_until_it_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("proxy.tokens.schedule.BACKOFF_S", (0.01, 0.01, 0.01))
    configure("info", "json", stream)
    token = TokenServer(status=503)
    async with gateway(token=token) as proxy:
        async with asyncio.timeout(WAIT_S):
            while len(token.requests) < 4:
                await asyncio.sleep(0.01)
        token.status = 200
        assert (await proxy.call(b"GET /v1/x")).status == 200
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line for line in lines if line["event"].startswith("token_fetch")]
    assert [line["event"] for line in told] == ["token_fetch_failed", "token_fetched"]
    assert told[1]["after_failures"] >= 4


# ---- README's table

PACKAGE = Path(proxy.__file__).parent
WRITERS = {"_emit", "_log_event", "_on_event", "on_event", "log_soon"}
LEVELS = {"debug", "info", "warning", "error", "critical"}
NAMED_ELSEWHERE = {
    ("logs/events.py", "event"),  # this one and the next two pass an event on
    ("projects/project.py", "event"),
    ("tokens/keeper.py", "event"),
    ("gateway/request_log.py", "_event(request)"),
}
"""Names of events that aren't constants where they are logged."""


def names_in(expression: ast.expr) -> set[str]:
    """The constants that an expression can be; none where it is no constant."""
    if isinstance(expression, ast.IfExp):
        return names_in(expression.body) | names_in(expression.orelse)
    return {str(expression.value)} if isinstance(expression, ast.Constant) else set()


def names_in_the_code() -> set[str]:
    names, elsewhere = {"library_logged"}, set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file.startswith("sandbox/"):
            continue  # it logs as a library does
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and (file, node.name) == (
                "gateway/request_log.py",
                "_event",
            ):
                returns = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
                names |= {name for value in returns if value is not None for name in names_in(value)}
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called, _, writer = ast.unparse(node.func).rpartition(".")
            if writer not in WRITERS and not (writer in LEVELS and "log" in called.lower()):
                continue
            event = node.args[2 if writer == "log_soon" else 0]
            found = names_in(event)
            names |= found
            if not found:
                elsewhere.add((file, ast.unparse(event)))
    assert elsewhere == NAMED_ELSEWHERE
    return names | {"failure_ceased"}


def test_readme_lists_every_event_once() -> None:
    names = events_in_readme()
    assert len(names) == len(set(names))
    assert set(names) == names_in_the_code()
    assert all(re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", name) for name in names)


def test_events_with_a_level_or_a_count_are_logged_somewhere() -> None:
    known = events._WARNINGS | events._ERRORS | events._REPEATED | events._FREQUENT | {*events._ENDS}
    assert known <= names_in_the_code()
