"""``/-/metrics``, and the counts in ``/-/status``, over the wire."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.commands import STARTUP_S
from support.harness import WAIT_S, Gateway, Message, TokenServer, Upstream, gateway, read_message
from support.requests import request

from proxy.contentsquare import Api

LABELS = ("project", "api", "source", "class", "code", "method", "reason", "cause", "le")
README = Path(__file__).parents[2] / "README.md"
PROMTOOL = shutil.which("promtool")
UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
CROWDED = json.dumps({"errorCode": "CONCURRENT_API_CALL"}).encode()


async def metrics(proxy: Gateway) -> dict[tuple[str, ...], float]:
    """All samples by name and the values of `LABELS`."""
    answer = await proxy.call(b"GET /-/metrics")
    assert answer.values(b"content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
    return {
        (
            sample.name.removeprefix("csq_proxy_"),
            *(sample.labels[label] for label in LABELS if label in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


async def status(proxy: Gateway, query: bytes = b"") -> Any:
    return json.loads((await proxy.call(b"GET /-/status" + query)).content)


async def test_requests_are_counted_by_project_api_and_class() -> None:
    def answer(message: Message) -> bytes:
        code = message.start_line.partition(b"code=")[2][:3]
        return b"HTTP/1.1 %b X\r\nContent-Length: 5\r\n\r\nhello" % code

    async with gateway(Upstream(answer)) as proxy:
        for code in (b"200", b"204", b"404", b"500"):
            if code != b"204":
                await proxy.call(b"GET /shop/v1/segments?code=" + code)
        await proxy.call(b"POST /v1/exports?code=200", b"Content-Length: 3", body=b"abc")
        await proxy.call(b"GET /nobody/v1/segments", b"Sec-Fetch-Site: cross-site")
        seen = await metrics(proxy)
    for kind in ("2xx", "4xx", "5xx"):
        assert seen["requests_total", "shop", "metrics", kind, "read"] == 1
    assert seen["requests_total", "shop", "data-export", "2xx", "write"] == 1
    assert seen["received_bytes_total", "shop", "data-export"] == 3
    assert seen["sent_bytes_total", "shop", "metrics"] == 15
    assert seen["request_duration_seconds_count", "shop", "metrics"] == 3
    assert 0 < seen["request_duration_seconds_sum", "shop", "metrics"] < WAIT_S
    assert seen["slot_wait_seconds_count", "shop"] == seen["slot_wait_seconds_bucket", "shop", "0.005"] == 4
    assert seen["requests_refused_total", "PROXY_ORIGIN_REFUSED"] == 1
    assert seen["slots_limit", "shop"] == seen["slots_allowance", "shop"] == 10
    assert 3500 < seen["token_seconds_left", "shop", "metrics"] <= 3600
    assert seen["token_refreshes_total", "shop", "metrics"] == 1


async def test_a_token_that_no_request_needs_any_more_ends_without_an_alert() -> None:
    async with gateway() as proxy:
        await proxy.call(b"GET /v1/segments")
        [project] = proxy.app.projects()
        [keeper] = project.keepers.values()
        assert ("token_seconds_left", "shop", "metrics") in await metrics(proxy)
        keeper._is_wanted = False  # as after two of its lifetimes without a request
        assert ("token_seconds_left", "shop", "metrics") not in await metrics(proxy)


async def test_replays_are_counted_by_reason() -> None:
    answers = [
        UNAUTHORIZED,
        b"HTTP/1.1 429 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(CROWDED)
        + CROWDED,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ]
    async with gateway(Upstream(lambda _: answers.pop(0))) as proxy:
        assert (await proxy.call(b"GET /v1/segments")).status == 200
        seen = await metrics(proxy)
    assert [seen["replays_total", "shop", r] for r in ("token", "concurrency", "stale")] == [1, 1, 0]
    assert seen["requests_total", "shop", "metrics", "2xx", "read"] == 1


async def test_a_connection_that_had_gone_stale_is_counted() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await read_message(reader)  # and closes instead of an answer

    async with gateway(script) as proxy:
        for _ in range(2):
            assert (await proxy.call(b"GET /v1/segments")).status == 200
        assert (await metrics(proxy))["replays_total", "shop", "stale"] == 1


async def test_who_waits_for_a_slot_is_seen_and_so_is_how_long() -> None:
    go_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            await go_on.wait()
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with gateway(script, contentsquare={"max_concurrency": 1}) as proxy:
        calls = [asyncio.create_task(proxy.call(b"GET /v1/segments")) for _ in range(3)]
        [project] = proxy.app.projects()
        async with asyncio.timeout(WAIT_S):
            while project.slots.waiting < 2:
                await asyncio.sleep(0.002)
        go_on.set()
        await asyncio.gather(*calls)
        seen = await metrics(proxy)
    assert seen["slot_wait_seconds_count", "shop"] == 3
    assert seen["slot_wait_seconds_bucket", "shop", "0.005"] == 1
    assert seen["slot_wait_seconds_sum", "shop"] > 0.03


async def test_token_failures_are_counted_by_cause_and_errors_say_what_to_do() -> None:
    projects = {"shop": {"client_id": "id-1", "client_secret": "secret-1", "expires": "2020-01-01"}}
    async with gateway(token=TokenServer(status=403), projects=projects) as proxy:
        assert (await proxy.call(b"GET /v1/segments")).status == 503
        seen = await metrics(proxy)
        assert seen["token_failures_total", "shop", "metrics", "credentials_refused"] == 1
        assert seen["token_seconds_left", "shop", "metrics"] == 0
        assert seen["errors_total", "shop", "PROXY_TOKEN_UNAVAILABLE"] == 1
        assert seen["credential_days_left", "shop"] < 0
        [error] = (await status(proxy))["projects"]["shop"]["last_errors"]
        assert (error["code"], error["at"][-6:]) == ("PROXY_TOKEN_UNAVAILABLE", "+00:00")
        assert "answered 403" in error["message"]


@pytest.mark.parametrize("status", [401, 500])
async def test_a_project_whose_apis_are_not_known_yet_has_no_token(status: int) -> None:
    projects = {"shop": {"client_id": "id-1", "client_secret": "secret-1"}}
    async with gateway(token=TokenServer(status=status), projects=projects) as proxy:
        assert (await metrics(proxy))["token_seconds_left", "shop", ""] == 0
        assert (await proxy.call(b"GET /-/ready")).status == 503


async def test_the_hours_minutes_are_shown_where_they_are_asked_for() -> None:
    async with gateway() as proxy:
        await proxy.call(b"GET /v1/segments")
        assert "hour" not in (await status(proxy))["projects"]["shop"]
        minutes = (await status(proxy, b"?x&hour=1"))["projects"]["shop"]["hour"]
        assert [minute["requests"] for minute in minutes if minute["requests"]] == [1]
        assert set(minutes[0]) == {
            *("at", "requests", "errors", "errors_contentsquare", "errors_proxy", "p50_ms", "p95_ms"),
            *("slots_in_use", "waiting", "refused"),
        }
        assert max(minute["slots_in_use"] for minute in minutes) == 1


async def test_an_account_project_takes_its_measures_along_when_it_goes() -> None:
    accounts: Mapping[str, object] = {"acme": {"client_id": "id-2", "client_secret": "s-2"}}
    async with gateway(accounts=accounts) as proxy:
        await proxy.call(b"GET /acme/42/v1/segments")
        assert (await metrics(proxy))["requests_total", "acme/42", "metrics", "2xx", "read"] == 1
        proxy.app._generations.accounts._drop("acme/42")
        assert not any("acme/42" in labels for labels in await metrics(proxy))
        assert (await status(proxy))["accounts"] == {"acme": f"http://127.0.0.1:{proxy.port}/acme"}


async def test_a_thousand_projects_do_not_hold_up_the_loop() -> None:
    ids = list(range(1, 1000))
    accounts: Mapping[str, object] = {"acme": {"client_id": "id-2", "client_secret": "s-2", "projects": ids}}
    async with gateway(accounts=accounts) as proxy:
        await metrics(proxy)  # loads the library
        route_to = proxy.app._generation.router.route
        for number in range(1, 1000):
            project, _, _ = route_to(b"/acme/%d/v1/segments" % number)
            project.measures.count_request(Api.METRICS, request(), 0.02)
        longest_s, done = 0.0, False

        async def watch() -> None:
            nonlocal longest_s
            while not done:
                began_at = time.thread_time()  # of this thread alone, however busy the machine is
                await asyncio.sleep(0)
                longest_s = max(longest_s, time.thread_time() - began_at)

        watching = asyncio.create_task(watch())
        for target in (b"/-/status", b"/-/status?hour=1", b"/-/metrics"):
            answer = await proxy.call(b"GET " + target)
            assert answer.status == 200
            assert answer.content.count(b"acme/") > 999
        done = True
        await watching
        assert (
            longest_s < 0.25
        )  # 6 ms on a machine of 2024, or 50 with a garbage collection of the whole suite


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (Debian: prometheus)")
async def test_promtool_finds_nothing_to_complain_about() -> None:
    async with gateway(token=TokenServer()) as proxy:
        await proxy.call(b"GET /v1/segments")
        await proxy.call(b"GET /nobody/v1/segments", b"Sec-Fetch-Site: cross-site")
        text = (await proxy.call(b"GET /-/metrics")).content
    assert PROMTOOL is not None
    ours = text[text.index(b"# HELP csq_proxy_") :]
    checked = await asyncio.to_thread(
        subprocess.run,
        [PROMTOOL, "check", "metrics"],
        input=ours,
        capture_output=True,
        timeout=STARTUP_S,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


STORM = (
    ('csq_proxy_responses_total{project="shop", source="contentsquare", class="2xx"}', "0+540x30"),
    ('csq_proxy_responses_total{project="shop", source="contentsquare", class="5xx"}', "0+60x30"),
)
STRAY = (STORM[0], (STORM[1][0], "0 0 0 0 0 1x25"))
OURS = (STORM[0], ('csq_proxy_responses_total{project="shop", source="proxy", class="5xx"}', "0+60x30"))


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here (Debian: prometheus)")
@pytest.mark.parametrize(
    ("series", "firing"),
    [
        (STORM, ["errors"]),
        (OURS, ["errors"]),
        (STRAY, []),
        ((STORM[0], (STORM[1][0], "0+3x30")), []),  # one in 180
        ((("csq_proxy_token_seconds_left{project='shop'}", "1499x30"),), ["token"]),
        ((("csq_proxy_token_seconds_left{project='shop'}", "0x30"),), ["token"]),
        ((("csq_proxy_token_seconds_left{project='shop'}", "1500x30"),), []),
        # One low value between two looks: the next token came.
        ((("csq_proxy_token_seconds_left{project='shop'}", "1600x18 1400 1400 3600x10"),), []),
        # No request needs it any more, so its series ends (1800 s before its end, most often).
        ((("csq_proxy_token_seconds_left{project='shop'}", "3600-60x15 1440 stale"),), []),
        ((("csq_proxy_credential_days_left{project='shop'}", "13x30"),), ["credentials"]),
        ((("csq_proxy_credential_days_left{project='shop'}", "14x30"),), []),
        ((("up{job='csq-proxy'}", "1x10 0x20"),), ["down"]),
        ((("up{job='csq-proxy'}", "1x18 0 0 1x10"),), []),  # a restart
        ((("up{job='another'}", "0x30"),), []),
        ((("csq_proxy_configuration_faults", "0x2 1x28"),), ["reload"]),  # until it is mended
        ((("csq_proxy_configuration_faults", "0x18 2 0x11"),), []),  # a file that was half saved
    ],
    ids=[
        *(
            "their-storm",
            "our-storm",
            "stray",
            "few",
            "token",
            "no-token",
            "good-token",
            "low-for-a-minute",
            "unused-token",
        ),
        *("ending", "not-ending", "down", "restart", "another-down", "refused-reload", "half-saved"),
    ],
)
@pytest.mark.asyncio(loop_factories=["asyncio"])  # promtool alone runs
async def test_the_readmes_alerts_fire_in_a_storm_and_not_for_a_stray_error(
    series: tuple[tuple[str, str], ...], firing: list[str], tmp_path: Path
) -> None:
    assert PROMTOOL is not None
    [alerts] = re.findall(
        r"^\*\*Useful alerts\*\*.*?\n\n", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    names = ("token", "credentials", "down", "reload", "errors")
    expressions = dict(zip(names, re.findall(r"`(.+?)`", alerts), strict=True))
    waits = {"token": "2m", "down": "2m", "reload": "2m"}
    assert {name for name in names if f"`{expressions[name]}` for 2 minutes" in alerts} == waits.keys()
    rules = [
        {"alert": name, "expr": expression, "for": waits.get(name, "0s")}
        for name, expression in expressions.items()
    ]
    tests = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [
            {
                "expr": "count by (alertname) (ALERTS{alertstate='firing'})",
                "eval_time": "20m",
                "exp_samples": [{"labels": f"{{alertname='{name}'}}", "value": 1} for name in firing],
            }
        ],
    }
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "csq", "rules": rules}]}))
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [tests]})
    )
    checked = await asyncio.to_thread(
        subprocess.run,
        [PROMTOOL, "test", "rules", "test.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=STARTUP_S,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_answers_are_counted_by_source_and_errors_mean_the_same_everywhere() -> None:
    statuses = iter((200, 404, 500, 503, 204))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_message(reader)
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % next(statuses))

    projects = {"shop": {"client_id": "id-1", "client_secret": "secret-1", "read_only": True}}
    async with gateway(script, projects=projects) as proxy:
        for _ in range(5):
            await proxy.call(b"GET /v1/segments")
        assert (await proxy.call(b"POST /v1/exports")).status == 403
        seen = await metrics(proxy)
        shop = (await status(proxy, b"?hour=1"))["projects"]["shop"]
    assert shop["responses"] == {
        "contentsquare": {"2xx": 2, "3xx": 0, "4xx": 1, "5xx": 2},
        "proxy": {"4xx": 1, "5xx": 0},
    }
    for source, by_class in shop["responses"].items():
        for kind, count in by_class.items():
            assert seen["responses_total", "shop", source, kind] == count
    for key, count in (("errors", 4), ("errors_contentsquare", 3), ("errors_proxy", 1)):
        assert sum(minute[key] for minute in shop["hour"]) == count


def test_the_library_is_not_loaded_before_the_first_scrape() -> None:
    code = "import sys, proxy.app.app, proxy.cli.main; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=STARTUP_S, check=False).returncode == 0


async def test_accounts_have_few_series_and_the_other_projects_are_summed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from proxy.admin import metrics as module  # noqa: PLC0415

    monkeypatch.setattr(module, "MOST_OF_ACCOUNTS", 2)
    accounts = {"acme": {"client_id": "id-2", "client_secret": "secret-2-of-acme"}}
    async with gateway(Upstream(), accounts=accounts) as proxy:
        for number in (b"8", b"9"):
            assert (await proxy.call(b"GET /acme/%b/v1/segments" % number)).status == 200
        await metrics(proxy)
        for number in (b"1", b"2", b"3", b"3"):  # these come later, and take no series from the first ones
            assert (await proxy.call(b"GET /acme/%b/v1/segments" % number)).status == 200
        seen = await metrics(proxy)
    requests = {key[1]: value for key, value in seen.items() if key[0] == "requests_total" and value}
    assert requests == {"acme/8": 1, "acme/9": 1, "acme/other": 4}
    assert seen["request_duration_seconds_count", "acme/other", "metrics"] == 4
    assert seen["request_duration_seconds_bucket", "acme/other", "metrics", "+Inf"] == 4
    assert seen["slots_limit", "acme/other"] == 30
    assert ("token_seconds_left", "acme/other", "metrics") not in seen
    assert {key[1] for key in seen if len(key) > 1 and "/" in key[1]} == set(requests)
