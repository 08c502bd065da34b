"""Which run an export's URL means, and the errors before the first byte: never a 200."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from support.harness import Message, TokenServer, free_port
from support.storage import CLOSE, Exporting, Stored, days_ago, error, exporting, json_answer

from proxy.gateway.exports.calls import MOST_BYTES, OwnCalls, _Collector
from proxy.server.request import Listener

CSV = b"session_id,country\n1,FR\n2,DE\n"
NEW = b"session_id,country\n9,FR\n"
EXPIRED = error(403, "AccessDenied", text="Request has expired")
CROWDED = (
    b"HTTP/1.1 403 X\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n"
    b'{"errorCode": "CONCURRENT_API_CALL"}'
)
DENIED = error(403, "AccessDenied", text="Access Denied")
JOB, RUNS, RUN = (f"/v1/exports/1001{rest}" for rest in ("", "/runs", "/runs/100001"))


def told(answer: Message) -> tuple[int, str, int | None]:
    """The status, the code, and the seconds of Retry-After."""
    after = answer.values(b"retry-after")
    assert answer.values(b"content-type") == [b"application/json"]
    assert answer.values(b"cache-control") == [b"no-store"]
    return answer.status, answer.error_code, int(after[0]) if after else None


# The newest successful run


@pytest.mark.parametrize(
    "members",
    [
        [{"createdAt": days_ago(2)}, {"createdAt": days_ago(1)}],
        [{"createdAt": None, "endDate": days_ago(2)}, {"createdAt": None, "endDate": days_ago(1)}],
        [{"createdAt": None}, {"createdAt": None}],
        [{"createdAt": days_ago(1)}, {"createdAt": days_ago(1)}],
        [{"createdAt": "no date"}, {"createdAt": "no date"}],
    ],
)
@pytest.mark.parametrize("is_sorted", [True, False])
async def test_the_newest_successful_run_is_read(members: list[dict[str, object]], is_sorted: bool) -> None:
    async with exporting() as run:
        for run_id, content, more in zip((9, 10), (CSV, NEW), members, strict=True):
            run.storage.objects[f"/{run_id}.csv"] = Stored(content)
            run.cloud.add_run(run_id, f"/{run_id}.csv", **more)  # type: ignore[arg-type]
        run.cloud.add_run(11, state="running")
        run.cloud.add_run(12, state="failed")
        if not is_sorted:
            run.cloud.runs.reverse()
        answer = await run.get()
        assert (answer.status, answer.content) == (200, NEW)
        assert b"1001-10.csv" in answer.values(b"content-disposition")[0]
        assert (await run.get("latest.csv?run=9")).content == CSV


def without_envelope(run: Exporting) -> None:
    content = json.dumps(run.cloud.runs[0]).encode()
    run.cloud.answers[RUN] = b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)


def with_another_name(run: Exporting) -> None:
    [one] = run.cloud.runs
    run.cloud.answers[RUNS] = json_answer({"items": [{"runId": "100001", "status": "SUCCESS"}]})
    run.cloud.answers[RUN] = json_answer({**one, "state": "SUCCESS"})


def lower_format(run: Exporting) -> None:
    run.cloud.answers[JOB] = json_answer({"format": "csv"})


def without_parts(run: Exporting) -> None:
    for file in run.cloud.runs[0]["files"]:
        del file["partId"]


@pytest.mark.parametrize("shape", [without_envelope, with_another_name, lower_format, without_parts])
async def test_other_shapes_of_contentsquares_answers_are_read(shape: Callable[[Exporting], None]) -> None:
    async with exporting(CSV) as run:
        shape(run)
        assert (await run.get()).content == CSV


# Not ready


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "no run yet"),
        (["scheduled"], "its last run is scheduled"),
        (["failed", "running"], "its last run is running"),
        (["failed"], "its last run is failed"),
        (["<script>"], "its last run is not finished"),
    ],
)
async def test_without_a_finished_run_the_answer_names_the_state(states: list[str], words: str) -> None:
    async with exporting() as run:
        for number, state in enumerate(states, 1):
            run.cloud.add_run(number, state=state)
        for method in ("GET", "HEAD"):
            answer = await run.get(method=method)
            assert answer.status == 404
            assert answer.values(b"retry-after") == [b"30"]
        answer = await run.get()
        assert told(answer) == (404, "PROXY_EXPORT_NOT_READY", 30)
        assert words in answer.content.decode()


async def test_a_run_that_is_named_must_be_finished() -> None:
    async with exporting(CSV) as run:
        run.cloud.add_run(7, state="running", completionRate=40)
        answer = await run.get("latest.csv?run=7")
        assert told(answer) == (404, "PROXY_EXPORT_NOT_READY", 30)
        assert "its run 7 is running (40 % done)" in answer.content.decode()
        assert (await run.get()).content == CSV
        unknown = await run.get("latest.csv?run=8")
        assert (unknown.status, unknown.error_code) == (404, "NOT_FOUND")


async def test_a_run_becomes_ready() -> None:
    async with exporting() as run:
        assert (await run.get()).status == 404
        run.storage.objects["/new.csv"] = Stored(CSV)
        run.cloud.add_run(1, "/new.csv")
        assert (await run.get()).content == CSV


async def test_each_further_question_for_an_unfinished_run_is_one_call() -> None:
    async with exporting() as run:

        async def ask(name: str = "latest.csv") -> tuple[int, list[str]]:
            before = len(run.cloud.calls)
            answer = await run.get(name)
            return answer.status, [call.partition("?")[0] for call in run.cloud.calls[before:]]

        assert await ask() == (404, [JOB, RUNS])
        assert await ask() == (404, [RUNS])
        run.cloud.add_run(100_001, state="scheduled")
        assert await ask() == (404, [RUNS])
        run.cloud.runs[0]["state"] = "running"
        assert await ask() == (404, [RUN])
        assert await ask("latest.jsonl") == (404, [])
        assert await ask("latest.csv?run=100001") == (404, [JOB, RUN])
        assert await ask("latest.csv?run=100001") == (404, [RUN])
        run.cloud.runs[0]["state"] = "failed"
        assert await ask() == (404, [RUN, RUNS])
        assert await ask() == (404, [RUNS])
        run.cloud.runs[0]["state"] = "running"
        assert await ask() == (404, [RUNS])
        run.cloud.runs.clear()
        assert await ask() == (404, [RUN, RUNS])
        run.storage.objects["/new.csv"] = Stored(CSV)
        run.cloud.add_run(100_001, state="running")
        assert await ask() == (404, [RUNS])
        run.cloud.runs.clear()
        run.cloud.add_run(100_001, "/new.csv")
        assert await ask() == (200, [RUN])
        assert await ask() == (200, [])


async def test_an_older_success_counts_where_the_list_shows_newer_runs_alone() -> None:
    async with exporting(CSV) as run:
        run.cloud.answers[RUNS] = json_answer([{"jobRunId": n, "state": "failed"} for n in (3, 2)])
        assert (await run.get()).status == 404
        assert [call for call in run.cloud.calls if "/runs" in call] == [
            f"{RUNS}?order=desc&limit=20",
            f"{RUNS}?order=desc&limit=20&state=success",
        ]


async def test_a_success_without_files_is_not_an_empty_table() -> None:
    async with exporting() as run:
        run.cloud.add_run(1)
        assert told(await run.get()) == (404, "PROXY_EXPORT_NOT_READY", 30)


# Expired


@pytest.mark.parametrize(
    ("answer", "members"),
    [
        (EXPIRED, {}),
        (error(404, "NoSuchKey"), {}),
        (error(410, "Gone"), {}),
        (error(400, "ExpiredToken", text="The token has expired"), {}),
        (DENIED, {"createdAt": days_ago(8)}),
        (None, {"createdAt": days_ago(8), "files": []}),
    ],
)
async def test_files_whose_days_are_over_are_gone(answer: bytes | None, members: dict[str, object]) -> None:
    async with exporting(CSV) as run:
        run.cloud.runs[0].update(members)
        for stored in run.storage.objects.values():
            stored.answer = answer or b""
        found = await run.get()
        assert told(found) == (410, "PROXY_EXPORT_EXPIRED", None)
        assert "7 days" in found.content.decode()


async def test_a_date_of_expiry_counts() -> None:
    async with exporting(CSV) as run:
        run.cloud.runs[0]["files"][0]["expirationDate"] = days_ago(0.1)
        for stored in run.storage.objects.values():
            stored.answer = DENIED
        assert told(await run.get()) == (410, "PROXY_EXPORT_EXPIRED", None)


async def test_an_older_file_that_is_still_there_is_read() -> None:
    async with exporting(CSV) as run:
        run.cloud.runs[0]["createdAt"] = days_ago(8)
        assert (await run.get()).content == CSV


# Trouble


@pytest.mark.parametrize(
    "answer",
    [
        DENIED,
        error(503, "SlowDown"),
        error(500, "InternalError"),
        b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 X\r\nLocation: /exports/1001/part-00000.csv\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 206 X\r\nContent-Length: 5\r\n\r\nab" + CLOSE,
        CLOSE,
    ],
)
async def test_trouble_of_the_storage_asks_for_another_try(answer: bytes) -> None:
    async with exporting(CSV) as run:
        [stored] = run.storage.objects.values()
        stored.answer = answer
        assert told(await run.get()) == (502, "PROXY_UPSTREAM_UNREACHABLE", 5)
        assert len(run.storage.requests) == 1
        stored.answer = b""
        assert (await run.get()).content == CSV


async def test_a_storage_that_refuses_connections() -> None:
    port = free_port()
    async with exporting(CSV, contentsquare={"allowed_downloads": [f"127.0.0.1:{port}"]}) as run:
        run.cloud.runs[0]["files"][0]["url"] = f"http://127.0.0.1:{port}/x"
        answer = await run.get()
        assert told(answer) == (502, "PROXY_UPSTREAM_UNREACHABLE", 5)
        assert "refused the connection" in answer.content.decode()


@pytest.mark.parametrize(
    ("path", "answer", "expected"),
    [
        (JOB, error(500, "x"), (502, "PROXY_UPSTREAM_UNREACHABLE", 5)),
        (RUNS, error(503, "x"), (502, "PROXY_UPSTREAM_UNREACHABLE", 5)),
        (RUN, b"HTTP/1.1 429 X\r\nRetry-After: 17\r\nContent-Length: 0\r\n\r\n", (502, None, 17)),
        (JOB, b"HTTP/1.1 302 X\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", (502, None, 5)),
        (JOB, b"HTTP/1.1 204 X\r\n\r\n", (502, None, 5)),
        (JOB, json_answer([]), (502, None, 5)),
        (JOB, json_answer({"format": "XML"}), (502, None, 5)),
        (RUNS, json_answer({"a": 1}), (502, None, 5)),
        (RUN, b"HTTP/1.1 200 X\r\nContent-Length: 3\r\n\r\n{{{", (502, None, 5)),
        (RUN, json_answer("x" * (9 << 20)), (502, None, 5)),
    ],
)
async def test_trouble_of_contentsquare(path: str, answer: bytes, expected: tuple[object, ...]) -> None:
    async with exporting(CSV) as run:
        run.cloud.answers[path] = answer
        status, code, after = told(await run.get())
        assert (status, code if expected[1] else None, after) == expected
        [project] = run.proxy.app.projects()
        assert (project.slots.in_use, project.running) == (0, 0)


async def test_what_comes_behind_too_long_an_answer_is_no_error() -> None:
    loop, errors = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, told: errors.append(told))
    collector = _Collector(Listener(0, "http://127.0.0.1:1", 1, None))

    async def call() -> None:
        async with asyncio.timeout(None) as collector.limit:
            for _ in range(3):
                loop.call_soon(collector.write, bytes(MOST_BYTES + 1))
                await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await call()
    assert not errors


async def test_a_refused_token_is_replaced_and_a_crowd_is_waited_for() -> None:
    answers = iter(
        [
            b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n",
            CROWDED,
            json_answer({"format": "CSV"}),
        ]
    )
    async with exporting(CSV) as run:
        normal = run.cloud._answer

        def answer(target: str) -> bytes:
            return next(answers) if target == JOB else normal(target)

        run.cloud._answer = answer  # type: ignore[method-assign]
        assert (await run.get()).content == CSV


@pytest.mark.parametrize("path", [b"/v1/oauth/token", b"/v1/oauth/me", b"/v1/x/..//oauth/%74oken?a=b"])
async def test_no_call_for_an_export_goes_to_a_path_of_oauth(
    path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that are looked at form no such path; this is the second lock."""
    get = OwnCalls.get
    monkeypatch.setattr(OwnCalls, "get", lambda calls, api, _: get(calls, api, path))
    async with exporting(CSV) as run:
        answer = await run.get()
        assert (answer.status, answer.error_code) == (400, "PROXY_BAD_TARGET")
        assert not run.cloud.requests


async def test_without_a_token_there_is_no_look_up() -> None:
    token = TokenServer(status=401)
    async with exporting(CSV, token=token) as run:
        answer = await run.get()
        assert (answer.status, answer.error_code) == (503, "PROXY_TOKEN_UNAVAILABLE")


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/file.csv",
        "https://amazonaws.com/file.csv",
        "https://s3.amazonaws.com.evil.example/file.csv",
        "https://user@s3.amazonaws.com/file.csv",
        "https://s3.amazonaws.com:8443/file.csv",
        "http://s3.amazonaws.com/file.csv",
        "http://127.0.0.1/file.csv",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/file.csv",
        "ftp://s3.amazonaws.com/file.csv",
        "https://s3.amazonaws.com",
        "https://s3.amazonaws.com/a b",
        "https://s3.amazonaws.com/a\r\nX: y",
        "//s3.amazonaws.com/file.csv",
        None,
        7,
    ],
)
async def test_a_file_elsewhere_is_not_fetched(url: object) -> None:
    async with exporting(CSV, contentsquare={"allowed_downloads": ["*.amazonaws.com", "127.0.0.1"]}) as run:
        run.cloud.runs[0]["files"][0]["url"] = url
        answer = await run.get()
        assert told(answer) == (502, "PROXY_UPSTREAM_UNREACHABLE", None)
        assert b"file.csv" not in answer.content
