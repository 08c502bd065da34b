"""``csq-proxy export`` through a running proxy: before the sandbox, and before scripted clouds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import commands
from support.cuts import reset
from support.demo import JOB, sandboxed
from support.harness import Message, RawServer, Upstream, gateway, read_message

from proxy.cli.export import export
from proxy.cli.running_proxy import RunningProxy
from proxy.errors import ConfigError

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has no loop


async def run(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CSQ_")}
    own = {**inherited, "HOME": str(cwd), "NO_PROXY": "*", **environ}
    how = commands.run_anew if "new/out" in arguments else commands.run
    return await asyncio.to_thread(how, "export", *arguments, environ=own, cwd=cwd)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("with_callers", [False, True])
async def test_a_new_job_is_made_waited_for_and_downloaded(with_callers: bool, tmp_path: Path) -> None:
    callers = {"callers": {"bi": {"key": "caller-key-12345"}}} if with_callers else {}
    environ = {"CSQ_PROXY_KEY": "caller-key-12345"} if with_callers else {}
    (tmp_path / "job.json").write_text(json.dumps(JOB), encoding="utf-8-sig")
    async with sandboxed(**callers) as (url, _, _):
        shown = await run(
            "shop", "--job", "job.json", "--out", "new/out", "--url", url, cwd=tmp_path, **environ
        )
        assert (shown.returncode, shown.stderr) == (0, "")
        names = files_of(tmp_path / "new" / "out")
        assert names
        assert all(f"{name}  " in shown.stdout for name in names)
        job_id = names[0].partition("-")[0]
        again = await run(
            "shop", "--id", job_id, "--out", "b", "--json", "--url", url, cwd=tmp_path, **environ
        )
        told = json.loads(again.stdout)
        assert (told["job_id"], told["state"]) == (job_id, "success")
        assert files_of(tmp_path / "b") == names
        for file in told["files"]:
            stored = tmp_path / file["path"]
            assert stored.stat().st_size == file["bytes"]
            assert stored.read_bytes() == (tmp_path / "new" / "out" / stored.name).read_bytes()


async def test_the_job_in_the_help_is_one(tmp_path: Path) -> None:
    told = await run("--help", cwd=tmp_path)
    [job] = re.findall(r"\{\"name.*\}(?=\n)", told.stdout, re.DOTALL)
    (tmp_path / "job.json").write_text(job)
    async with sandboxed() as (url, _, _):
        shown = await run("shop", "--job", "job.json", "--url", url, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")


def json_answer(members: object, status: int = 200) -> bytes:
    body = json.dumps(members).encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class Cloud(Upstream):
    """A cloud with job 7; ``run`` are the members of its only run, None where there is none yet."""

    def __init__(self, run: dict[str, Any] | None, status: int = 200) -> None:
        super().__init__()
        self.answer = self.answered
        self.run, self.status = run, status

    def answered(self, request: Message) -> bytes:
        if self.status != 200:
            return json_answer({"success": False, "errorMessage": "not \x1b[31m today"}, self.status)
        if b"/file" in request.start_line:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\nb\n"
        if b"/runs?" in request.start_line:
            payload: object = [] if self.run is None else [{"jobRunId": 9, **self.run}]
        else:
            payload = {"jobRunId": 9, **(self.run or {})}
        return json_answer({"success": True, "payload": payload})


@pytest.mark.parametrize(
    ("run_of_job", "status", "said"),
    [
        ({"state": "failed"}, 200, "its run 9 ended as failed"),
        ({"state": "success", "files": []}, 200, "has no files"),
        ({"state": "success", "files": [{"name": "x"}]}, 200, "no URL of a file"),
        ({"state": "success", "files": [{"url": "http://storage.example/x"}]}, 200, "no TLS"),
        ({}, 404, "answered 404: not \\x1b[31m today"),
        ({}, 403, "answered 403"),
    ],
)
async def test_a_failure_is_one_line_and_exit_code_1(
    run_of_job: dict[str, Any], status: int, said: str, tmp_path: Path
) -> None:
    async with gateway(Cloud(run_of_job, status)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        shown = await run("shop", "--id", "7", "--out", "out", "--url", url, cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    [line] = shown.stderr.splitlines()
    assert line.startswith("csq-proxy: ")
    assert said in line
    assert not files_of(tmp_path / "out")


async def test_names_of_files_are_made_plain(tmp_path: Path) -> None:
    cloud = Cloud({"state": "success"})
    async with gateway(cloud) as proxy:
        url = f"{proxy.upstream.url}/file?signature=x"
        names = [
            "../../etc/passwd",
            "a\x1b[31mb.csv",
            "..",
            "",
            "C:\\x\\y.csv",
            "x" * 300,
            "one.csv",
            "one.csv",
        ]
        cloud.run = {"state": "success", "files": [{"name": name, "url": url} for name in names]}
        shown = await run(
            "shop", "--id", "7", "--out", "out", "--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path
        )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert files_of(tmp_path / "out") == [
        "7-9-000-passwd",
        "7-9-001-a_31mb.csv",
        "7-9-002",
        "7-9-003-file",
        "7-9-004-y.csv",
        f"7-9-005-{'x' * 100}",
        "7-9-006-one.csv",
        "7-9-007-one.csv",
    ]
    assert files_of(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop"], "--id"),
        (["shop", "--id", "1", "--job", "x"], "--id"),
        (["shop", "--id", "1/../2"], "--id"),
        (["../x", "--id", "1"], "project's name"),
        (["a" * 65, "--id", "1"], "1 to 64 of"),
        (["acme/042", "--id", "1"], "a project's number"),
        (["shop", "--id", "1", "--out", "bad.json"], "--out: the folder bad.json can't be made"),
        (["shop", "--job", "none.json"], "can't be read"),
        (["shop", "--job", "bad.json"], "JSON object"),
    ],
)
async def test_bad_arguments_end_with_2_before_anything_is_sent(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.json").write_text("[]")
    shown = await run(*arguments, "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert said in shown.stderr


async def test_a_folder_that_cannot_be_written_to_is_told_before_a_job_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps(JOB))
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    nowhere = RunningProxy("http://127.0.0.1:1", None, None)
    with pytest.raises(ConfigError, match="isn't yours to write to"):
        export(nowhere, "shop", job_id=None, job=job, out=tmp_path, as_json=True)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16"]
)  # on Windows, > of PowerShell writes the last
async def test_a_job_that_was_made_is_named_where_the_rest_fails(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(JOB), encoding)
    sent = []

    def answered(request: Message) -> bytes:
        if request.start_line.startswith(b"POST"):
            sent.append(request.body)
            return json_answer({"success": True, "payload": {"jobId": 7}}, 201)
        return json_answer({"success": False, "errorMessage": "no"}, 404)

    async with gateway(Upstream(answer=answered)) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        shown = await run("shop", "--job", "job.json", "--url", url, cwd=tmp_path)
    assert shown.returncode == 1
    assert "job 7 is made: to go on, give --id 7 in place of --job" in shown.stderr
    assert sent == [json.dumps(JOB).encode()]


async def test_a_proxy_that_does_not_run_is_told(tmp_path: Path) -> None:
    shown = await run("shop", "--id", "7", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert shown.returncode == 1
    assert "csq-proxy serve" in shown.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe is no terminal there, whatever the variables")
@pytest.mark.parametrize("columns", [50, 80])
async def test_the_progress_fits_the_terminal(columns: int, tmp_path: Path) -> None:
    cloud = Cloud({"state": "success"})
    async with gateway(cloud) as proxy:
        url = f"{proxy.upstream.url}/file?signature=x"
        cloud.run = {
            "state": "success",
            "files": [{"name": f"{n}-{'x' * 70}", "url": url} for n in range(12)],
        }
        terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}
        place = f"http://127.0.0.1:{proxy.port}"
        shown = await run("shop", "--id", "7", "--url", place, cwd=tmp_path, **terminal)
        quiet = await run("shop", "--id", "7", "--url", place, "--json", cwd=tmp_path, **terminal)
    assert (shown.returncode, shown.stdout.count(" bytes\n")) == (0, 12)
    frames = re.split(r"\x1b\[[0-9]*[AK]", shown.stderr)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", line) for frame in frames for line in frame.split("\n")]
    assert any(line.startswith("011-") and "4/4 bytes" in line for line in lines)
    assert not [line for line in lines if len(line) > columns]
    assert ("━" in shown.stderr) == (columns == 80)
    assert max(frame.count("bytes") for frame in frames) <= 10
    assert quiet.stderr == ""


@pytest.mark.parametrize("state", ["success", "SUCCEEDED"])
async def test_a_run_that_is_known_is_asked_for_alone(state: str, tmp_path: Path) -> None:
    cloud = Cloud({"status": "running"})
    calls: list[bytes] = []

    def answered(request: Message) -> bytes:
        calls.append(request.start_line.split(b" ")[1].partition(b"?")[0])
        if len(calls) == 3:
            cloud.run = {"status": state, "files": [{"url": f"{proxy.upstream.url}/file"}]}
        return cloud.answered(request)

    cloud.answer = answered
    async with gateway(cloud) as proxy:
        shown = await run("shop", "--id", "7", "--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    one = b"/v1/exports/7/runs/9"
    assert calls == [b"/v1/exports/7/runs", one, one, b"/file", *calls[4:]]


@pytest.mark.parametrize(
    ("key", "said"), [("", "a caller's key is needed"), ("wrong-key-12345", "not a caller's")]
)
async def test_a_key_that_is_missing_or_wrong_is_told_at_once(key: str, said: str, tmp_path: Path) -> None:
    async with gateway(Cloud(None), callers={"bi": {"key": "caller-key-12345"}}) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        shown = await run("shop", "--id", "7", "--url", url, cwd=tmp_path, CSQ_PROXY_KEY=key)
    assert shown.returncode == 1
    assert f"{said}; give --key-file" in shown.stderr


@pytest.mark.parametrize("is_reset", [True, False])
async def test_a_cut_answer_about_the_run_is_asked_for_again(is_reset: bool, tmp_path: Path) -> None:
    """A server in front of the proxy may end a cut answer without a reset."""
    asked: list[Message] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_message(reader))
        if len(asked) == 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
            await writer.drain()
            if is_reset:
                reset(writer)
            return
        run = {"jobRunId": 9, "state": "success", "files": [{"url": f"{server.url}/file"}]}
        payload: object = [run] if b"/runs?" in asked[-1].start_line else run
        writer.write(json_answer({"success": True, "payload": payload}))
        await writer.drain()

    async with RawServer(answer) as server:
        shown = await run("shop", "--id", "7", "--out", "out", "--url", server.url, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert len(files_of(tmp_path / "out")) == 1
