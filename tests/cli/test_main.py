"""The commands, as processes: what they print, and the codes that they end with."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.commands import CONFIG, STARTUP_S, Running, faults_in, get, needs_signals, run, started, write
from support.harness import free_port
from support.signals import handlers_put_back
from support.terminal import in_terminal
from typer.testing import CliRunner

import proxy
from proxy import __version__
from proxy.app.run import SAME_SIGNAL_S
from proxy.cli.main import cli
from proxy.errors import ConfigError
from proxy.sandbox.files import GROUPS, ROWS_PER_GROUP


def serves_and_stops(proxy: Running, port: int) -> None:
    """Wait until it answers, whatever it can print, and end it."""
    for _ in range(1000):
        with contextlib.suppress(ConnectionError):
            if get(f"http://127.0.0.1:{port}/-/status")[0] == 200:
                break
        time.sleep(0.02)
    time.sleep(0.05)
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(STARTUP_S) == 0


@needs_signals
def test_off_a_terminal_all_is_json_on_standard_error(environ: dict[str, str], tmp_path: Path) -> None:
    with started("serve", "--sandbox", "--port", "0", environ=environ, cwd=tmp_path) as proxy:
        listening = proxy.wait_for_event("listening")
        [base] = listening["urls"]
        assert listening["version"] == __version__
        status, answer = get(f"{base}/demo-eu/v1/segments")
        assert (status, answer["success"]) == (200, True)
        assert get(f"{base}/demo-us/v1/exportable-fields")[0] == 200
        assert get(f"{base}/-/status")[1]["projects"]["demo-eu"]["apis"]["metrics"]["requests"] == 1
        assert get(f"{base}/demo-xx/v1/segments")[1]["errorCode"] == "PROXY_UNKNOWN_PROJECT"
        proxy.process.send_signal(signal.SIGTERM)
        code, errors = proxy.end()
    assert (code, proxy.printed) == (0, "")
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "event"] for line in lines)
    assert [line["event"] for line in lines][-2:] == ["stop_requested", "stopped"]
    assert "client-secret" not in errors


def test_a_sandbox_takes_callers_from_the_environment_so_that_other_computers_can_try_it(
    environ: dict[str, str], tmp_path: Path
) -> None:
    arguments = ("serve", "--sandbox", "--host", "0.0.0.0", "--port", "0")
    refused = run(*arguments, environ=environ, cwd=tmp_path)
    assert refused.returncode == 2
    assert (
        "define [callers] with a key for each (without a file: CSQ_PROXY_CALLERS__NAME__KEY)"
        in refused.stderr
    )
    environ["CSQ_PROXY_CALLERS__ME__KEY"] = "a-key-of-16-bytes-or-more"
    with started(*arguments, environ=environ, cwd=tmp_path) as proxy:
        assert get(f"{proxy.listening()}/demo-eu/v1/segments")[1]["errorCode"] == "PROXY_CALLER_UNKNOWN"


@needs_signals
def test_a_program_that_waits_for_listening_gets_it_at_each_level(
    environ: dict[str, str], config: Path
) -> None:
    arguments = ("serve", "--config", str(config), "--log-level", "error", "--log-format", "json")
    with started(*arguments, environ=environ, cwd=config.parent) as proxy:
        proxy.listening()
        proxy.process.terminate()
        code, errors = proxy.end()
    assert code == 0
    assert [json.loads(line)["event"] for line in errors.splitlines()] == ["listening", "stopped"]


@needs_signals
def test_on_a_terminal_its_summary_says_what_to_try(environ: dict[str, str], tmp_path: Path) -> None:
    program = (sys.executable, "-m", "proxy", "serve", "--sandbox", "--port", "0")
    with in_terminal("", *program, environ=environ, cwd=tmp_path) as terminal:
        terminal.wait_for(r"Stop: Ctrl-C\n")
        base = terminal.wait_for(r"listens on (http://127\.0\.0\.1:\d+)\n")
        for project in ("demo-eu", "demo-us"):
            tokens = r"    5 APIs, tokens until \d\d:\d\d(?: to \d\d:\d\d)?\n"
            assert re.search(rf"  {project}  {base}/{project}\n{tokens}", terminal.shown)
        line = terminal.wait_for(r"Try:  (curl.*)\n")
        [tried] = re.findall(r'\Acurl --noproxy "\*" "(.*)"\Z', line)
        status, answer = get(tried)
        assert (status, answer["success"]) == (200, True)
        if shutil.which("curl") is not None:  # past a company's proxy
            nowhere = f"http://127.0.0.1:{free_port()}"
            variables = {**environ, "NO_PROXY": "", "http_proxy": nowhere, "ALL_PROXY": nowhere}
            command = f"{line} -sS"
            ended = subprocess.run(
                command, shell=True, capture_output=True, env=variables, timeout=STARTUP_S, check=False
            )
            assert json.loads(ended.stdout)["success"] is True, ended.stderr
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 0
    assert "listening" not in terminal.shown  # the summary says it
    assert "client-secret" not in terminal.shown


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(number: signal.Signals, environ: dict[str, str], tmp_path: Path) -> None:
    with started("serve", "--sandbox", "--port", "0", environ=environ, cwd=tmp_path) as proxy:
        proxy.listening()
        proxy.process.send_signal(number)
        code, errors = proxy.end()
        assert code == 0
        assert "Traceback" not in errors
        events = [json.loads(line)["event"] for line in errors.splitlines()]
        assert events[-2:] == ["stop_requested", "stopped"]


@needs_signals
def test_a_second_signal_stops_it_at_once(environ: dict[str, str], tmp_path: Path) -> None:
    with started("sandbox", "--latency", "60", environ=environ, cwd=tmp_path) as sandbox:
        path = write(tmp_path / "slow.toml", sandbox_config(sandbox) + "\n[server]\nport = 0\n")
        with started("serve", "--config", str(path), environ=environ, cwd=tmp_path) as proxy:
            base = proxy.listening()
            parts = urlsplit(base)
            with socket.create_connection(
                (parts.hostname or "", parts.port or 0), timeout=STARTUP_S
            ) as caller:
                caller.sendall(f"GET /demo-eu/v1/segments HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
                while not get(f"{base}/-/status")[1]["projects"]["demo-eu"]["slots"]["in_use"]:
                    time.sleep(0.01)
                proxy.process.send_signal(signal.SIGTERM)
                assert proxy.process.stderr is not None
                while "stop_requested" not in proxy.process.stderr.readline():
                    pass
                time.sleep(0.05)
                assert proxy.process.poll() is None
                time.sleep(SAME_SIGNAL_S)
                proxy.process.send_signal(signal.SIGTERM)
                assert proxy.process.wait(STARTUP_S) == 0
                answer = b""
                with contextlib.suppress(ConnectionError):
                    while part := caller.recv(4096):
                        answer += part
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"PROXY_STOPPING"' in answer


@needs_signals
def test_a_signal_is_obeyed_while_first_tokens_are_waited_for(
    environ: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        text = CONFIG.replace("127.0.0.1:1", f"127.0.0.1:{silent.getsockname()[1]}")
        path = write(tmp_path / "config.toml", text)
        patient = """
import proxy.app.run
from proxy.__main__ import main
proxy.app.run.SUMMARY_WAIT_S = 600.0
main()
"""
        with started("serve", "--config", str(path), environ=environ, cwd=tmp_path, code=patient) as proxy:
            connection, _ = silent.accept()
            proxy.process.send_signal(signal.SIGTERM)
            assert proxy.end()[0] == 0  # long before the ten minutes
            connection.close()


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_it_is_still_starting_is_a_clean_stop_too(
    number: signal.Signals, environ: dict[str, str], config: Path
) -> None:
    early = f"""
import os
from proxy.__main__ import main
from proxy.cli import serve
def load(*_):
    os.kill(os.getpid(), {number.value})
    raise AssertionError("it goes on")
serve.load = load
main()
"""
    with started("serve", environ=environ, cwd=config.parent, code=early) as proxy:
        assert proxy.end() == (0, "")


UNHEARD = """
import asyncio, os, sys
from proxy.__main__ import main
class Kills:
    def __del__(self, number={number}):
        os.kill(os.getpid(), number)  # Python ignores what is raised in here, as in importlib's callbacks
class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == "proxy.app.run" and "{moment}" == "while importing":
            Kills()
sys.meta_path.insert(0, Finder)
class Runner(asyncio.Runner):
    def __enter__(self):
        if "{moment}" == "before the loop runs":
            Kills()
        return super().__enter__()
asyncio.Runner = Runner
main()
"""


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["while importing", "before the loop runs"])
def test_a_signal_that_comes_where_python_swallows_what_it_raises_is_a_clean_stop_too(
    moment: str, number: signal.Signals, environ: dict[str, str], config: Path
) -> None:
    code = UNHEARD.format(number=number.value, moment=moment)
    anew = moment == "while importing"
    with started("serve", environ=environ, cwd=config.parent, code=code, anew=anew) as proxy:
        assert proxy.end() == (0, "")
        assert proxy.printed == ""


LATE = """
import asyncio, atexit, os, sys
from proxy.__main__ import main
again = int(sys.argv.pop())
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, again)
sys.modules["last"] = Last()  # goes when hardly anything is left
close = asyncio.Runner.close
def closing(self):
    os.kill(os.getpid(), again)
    close(self)
    os.kill(os.getpid(), again)
asyncio.Runner.close = closing
atexit.register(os.kill, os.getpid(), again)
main()
"""


@needs_signals
@pytest.mark.parametrize("again", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signals_that_come_while_it_is_leaving_change_nothing(
    again: str, environ: dict[str, str], config: Path
) -> None:
    number = str(getattr(signal, again).value)
    with started("serve", number, environ=environ, cwd=config.parent, code=LATE, anew=True) as proxy:
        proxy.listening()
        proxy.process.send_signal(signal.SIGTERM)
        code, errors = proxy.end()
        assert code == 0
        assert "Traceback" not in errors


@needs_signals
@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_come_while_it_leaves_before_it_served_change_nothing(
    again: signal.Signals, environ: dict[str, str], config: Path
) -> None:
    early = f"""
import os, sys
from proxy.__main__ import main
from proxy.cli import serve
def end(*_, kill=os.kill, pid=os.getpid()):
    kill(pid, {again.value})
class Last:
    __del__ = end
sys.modules["last"] = Last()
serve.load = end
main()
"""
    with started("serve", environ=environ, cwd=config.parent, code=early, anew=True) as proxy:
        assert proxy.end() == (0, "")


@needs_signals
def test_it_runs_and_stops_with_closed_standard_streams(environ: dict[str, str], config: Path) -> None:
    closed = """
import os
for descriptor in (0, 2):
    os.close(descriptor)
from proxy.__main__ import main
main()
"""
    port = free_port()
    with started("serve", "--port", str(port), environ=environ, cwd=config.parent, code=closed) as proxy:
        serves_and_stops(proxy, port)
        assert proxy.end() == (0, "")


@needs_signals
def test_a_name_server_that_does_not_answer_holds_no_stop_up(environ: dict[str, str], tmp_path: Path) -> None:
    silent = """
import socket, sys, time
from proxy.__main__ import main
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    if not flags & socket.AI_NUMERICHOST:
        print("asked", flush=True)
        time.sleep(600)
    return look_up(host, *args, flags=flags, **options)
socket.getaddrinfo = getaddrinfo
main()
"""
    path = write(tmp_path / "config.toml", CONFIG.replace("http://127.0.0.1:1", "https://tokens.example"))
    with started("serve", "--config", str(path), environ=environ, cwd=tmp_path, code=silent) as proxy:
        proxy.wait_for("asked\n")
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.end()[0] == 0


@needs_signals
def test_it_goes_on_when_nobody_reads_its_log(environ: dict[str, str], config: Path) -> None:
    port = free_port()
    write(config, CONFIG.replace("port = 0", f"port = {port}"))
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        assert proxy.process.stderr is not None
        proxy.process.stderr.close()
        serves_and_stops(proxy, port)


BUG = """
from proxy.upstream.pool import Upstreams
from proxy.__main__ import main
async def run(self):
    raise ZeroDivisionError("the bug, with canary-secret in its words")
Upstreams.run = run
main()
"""


def test_a_bug_in_a_background_task_ends_the_process_with_1_and_a_logged_traceback(
    environ: dict[str, str], config: Path
) -> None:
    arguments = ("serve", "--config", str(config))
    with started(*arguments, environ=environ, cwd=config.parent, code=BUG) as proxy:
        code, errors = proxy.end()
    assert code == 1
    line = json.loads(errors.splitlines()[-1])
    assert (line["event"], line["level"]) == ("stopped_by_bug", "critical")
    assert "ZeroDivisionError: the bug, with [redacted] in its words" in line["exception"]
    assert "canary" not in errors


# Wrong usage and configuration


def test_faults_of_the_configuration_are_a_line_each_and_end_it_with_2(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "wrong.toml", CONFIG + 'clientid = "x"\n[server2]\n[log]\nlevel = "loud"\n')
    for command in ("serve", "check"):
        ended = run(command, "--config", str(path), environ=environ, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert len(faults_in(ended.stderr)) == 3
        assert ended.stderr.startswith("{" if command == "serve" else "csq-proxy: ")
        assert "did you mean client_id?" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["serve", "--port", "x"], "--port: must be a whole number from 0 to 65535"),
        (["serve", "--port", "70000"], "--port: must be a whole number from 0 to 65535"),
        (["sandbox", "--port", "-1"], "--port: must be a whole number from 0 to 65535"),
        (["sandbox", "--latency", "inf"], "--latency: must be a number of at least 0"),
        (["sandbox", "--failure-rate", "nan"], "--failure-rate: must be a number from 0 to 1"),
        (["sreve"], "No such command 'sreve'"),
        (["snippets", "a", "b\nc"], "Got unexpected extra argument"),
        (["serve", "--nope"], "No such option: --nope. See: "),
        (["snippets", "--for"], "Option '--for' requires an argument. See: csq-proxy snippets --help"),
        (["--version=1"], "Option '--version' does not take a value. See: csq-proxy --help"),
        (["export"], "project: is missing; see: csq-proxy export --help"),
        (["check", "--config", ""], "--config: must be the path of a file, not empty and not a folder"),
        (["serve", "--config", ""], "--config: must be the path of a file, not empty and not a folder"),
    ],
)
def test_wrong_usage_is_one_line_and_ends_it_with_2(
    arguments: list[str], fault: str, environ: dict[str, str], tmp_path: Path
) -> None:
    ended = run(*arguments, environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    [told] = faults_in(ended.stderr)
    assert told.startswith(fault)


@needs_signals
@pytest.mark.parametrize("command", ["health", "wait", "status", "stop", "requests", "snippets"])
def test_ctrl_c_ends_a_command_that_waits_without_a_word_and_not_with_0(
    command: str, environ: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(STARTUP_S)
        environ["CSQ_PROXY_SERVER__PORT"] = str(silent.getsockname()[1])
        with started(command, environ=environ, cwd=tmp_path) as waiting:
            connection, _ = silent.accept()
            with connection:
                connection.settimeout(STARTUP_S)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                _until_asleep(waiting.process.pid)
                waiting.process.send_signal(signal.SIGINT)
                assert waiting.end() == (130, "")


def _until_asleep(pid: int) -> None:
    """Wait until a process does nothing but wait; where there is no /proc, this can't be known."""
    end = time.monotonic() + STARTUP_S
    state = Path(f"/proc/{pid}/stat")
    while state.exists() and state.read_text().rpartition(") ")[2][0] != "S":
        assert time.monotonic() < end
        time.sleep(0.005)


def test_ctrl_c_shows_nothing_of_an_object_that_was_half_made(
    environ: dict[str, str], tmp_path: Path
) -> None:
    interrupted = """
from proxy.__main__ import main
from proxy.cli import health
class HalfMade:
    def __init__(self):
        raise KeyboardInterrupt
    def __del__(self):  # as those of open files and answers, since Python 3.14
        raise AttributeError("it has no socket yet")
health.main = lambda _: HalfMade()
main()
"""
    with started("health", environ=environ, cwd=tmp_path, code=interrupted) as ended:
        assert ended.end() == (130, "")


def test_without_a_command_it_shows_which_there_are(environ: dict[str, str], tmp_path: Path) -> None:
    ended = run(environ=environ, cwd=tmp_path)
    assert "snippets  Print ready text" in ended.stderr + ended.stdout


def test_a_named_file_that_is_not_readable_is_a_fault_of_ours(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # what Typer would ask, for four lines of its own

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    error = CliRunner().invoke(cli, ["check", "--config", str(config)]).exception
    assert isinstance(error, ConfigError)
    assert error.faults == (f"{config}: can't read it: Permission denied",)


def test_without_any_project_it_says_what_to_do(environ: dict[str, str], tmp_path: Path) -> None:
    ended = run("serve", environ=environ, cwd=tmp_path)
    assert ended.returncode == 2
    assert "csq-proxy serve --sandbox" in ended.stderr


def test_sandbox_and_a_configuration_exclude_each_other(environ: dict[str, str], config: Path) -> None:
    ended = run("serve", "--sandbox", "--config", str(config), environ=environ, cwd=config.parent)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize("command", [["serve", "--sandbox"], ["sandbox"]])
def test_a_taken_port_is_one_line_and_ends_it_with_1(
    command: list[str], environ: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run(*command, "--port", str(taken.getsockname()[1]), environ=environ, cwd=tmp_path)
    assert ended.returncode == 1
    [fault] = faults_in(ended.stderr)
    assert "--port" in fault


def test_a_ca_file_without_certificates_is_found_by_check_as_by_serve(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "ca.pem", "no certificate")
    path = write(tmp_path / "ca.toml", CONFIG.replace("auth_url", 'ca_file = "ca.pem"\nauth_url'))
    for command in ("serve", "check"):
        ended = run(command, "--config", str(path), environ=environ, cwd=tmp_path)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
        assert "contentsquare.ca_file" in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are in no folder there")
@pytest.mark.parametrize("key", ["contentsquare.ca_file", "server.tls_cert"])
def test_a_certificate_file_that_hangs_is_found_by_check_as_by_serve(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    section, _, name = key.partition(".")
    more = f'{name} = "pipe"\n' + ('tls_key = "pipe"\n' if name == "tls_cert" else "")
    path = write(tmp_path / "config.toml", CONFIG.replace(f"[{section}]\n", f"[{section}]\n{more}"))
    monkeypatch.setattr("proxy.gateway.outward.READ_TIMEOUT_S", 0.1)
    result = CliRunner().invoke(cli, ["check", "--config", str(path)])
    assert isinstance(result.exception, ConfigError)
    [fault] = result.exception.faults
    assert key in fault
    assert "took longer than 0.1 s" in fault


def test_the_sandboxs_certificate_and_key_come_together(environ: dict[str, str], tmp_path: Path) -> None:
    ended = run("sandbox", "--tls-cert", "cert.pem", environ=environ, cwd=tmp_path)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "name", ["a b", "a/b", "a:80", "http://a", "[::1", "[::1]:80", "[a]", "me@a", "a..b", "-"]
)
def test_a_public_host_of_the_sandbox_that_is_none_is_refused(name: str) -> None:
    with handlers_put_back():
        result = CliRunner().invoke(cli, ["sandbox", f"--public-host={name}"])
    assert isinstance(result.exception, ConfigError)
    assert result.stdout == ""
    [fault] = result.exception.faults
    assert fault.startswith("--public-host: must be a host name")
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("name", "host"), [("::1", r"\[::1\]"), ("[::1]", r"\[::1\]"), ("LocalHost", "localhost")]
)
def test_a_public_host_of_the_sandbox_stands_in_its_urls(
    name: str, host: str, environ: dict[str, str], tmp_path: Path
) -> None:
    with started("sandbox", "--public-host", name, environ=environ, cwd=tmp_path) as sandbox:
        sandbox.wait_for(rf'auth_url = "http://{host}:\d+"\n')


def test_the_version_is_told(environ: dict[str, str], tmp_path: Path) -> None:
    ended = run("--version", environ=environ, cwd=tmp_path)
    assert ended.returncode == 0
    assert re.fullmatch(r"csq-proxy \d+\.\d+\.\d+\S*\n", ended.stdout)


# check


def test_check_shows_what_the_configuration_means(environ: dict[str, str], config: Path) -> None:
    ended = run("check", environ=environ, cwd=config.parent)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "good" in ended.stdout
    assert re.search(r"shop \(default\) +- +metrics +/shop/v1/\.\.\.", ended.stdout)
    assert "canary" not in ended.stdout


def test_check_for_programs_is_json(environ: dict[str, str], config: Path) -> None:
    accounts = '[accounts.acme]\nclient_id = "id-2"\nclient_secret = "canary-2"\nprojects = [42]\n'
    write(config, CONFIG + accounts)
    ended = run("check", "--json", "--config", str(config), environ=environ, cwd=config.parent)
    assert ended.returncode == 0
    told = json.loads(ended.stdout)
    assert told["ok"] is True
    assert told["file"] == str(config)
    assert told["projects"] == {
        "shop": {"project_id": None, "apis": ["metrics"], "port": None, "read_only": True, "expires": None}
    }
    assert told["accounts"]["acme"]["projects"] == [42]
    assert "canary" not in ended.stdout


def test_check_for_programs_tells_faults_as_json_too(environ: dict[str, str], tmp_path: Path) -> None:
    path = write(tmp_path / "wrong.toml", CONFIG + "[log]\nlevl = 1\n")
    ended = run("check", "--json", "--config", str(path), environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "")
    told = json.loads(ended.stdout)
    assert told["ok"] is False
    [fault] = told["faults"]
    assert "did you mean level?" in fault


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe's end is told otherwise there")
@pytest.mark.parametrize(("key", "code"), [("client_id", 0), ("clientid", 2)])
def test_who_reads_only_some_of_what_is_printed_sees_the_same_exit_code(
    key: str, code: int, environ: dict[str, str], tmp_path: Path
) -> None:
    text = CONFIG.replace("client_id", key) + "".join(
        f'[projects.shop-{number}]\n{key} = "id"\nclient_secret = "canary-secret"\n' for number in range(99)
    )
    config = write(tmp_path / "config.toml", text)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "proxy", "check", "--config", str(config)],
            stdout=writer,
            stderr=writer,
            timeout=STARTUP_S,
            env=environ,
            check=False,
        )
    finally:
        os.close(writer)
    assert ended.returncode == code


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is full")
@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        ("check", False),
        ("check --json", False),
        ("check --live", True),
        ("snippets", True),
        ("--version", False),
        ("--help", True),
        ("init", False),
        ("sandbox", False),
    ],
)
def test_what_is_printed_and_can_not_be_written_is_one_line_and_ends_it_with_1(
    command: str, unbuffered: bool, environ: dict[str, str], config: Path
) -> None:
    if command == "init":
        config.unlink()
    variables = {**environ, "PYTHONUNBUFFERED": "1"} if unbuffered else environ
    with Path("/dev/full").open("w") as full:
        ended = run(*command.split(), environ=variables, cwd=config.parent, output=full.fileno())
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("csq-proxy: standard output: ")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is full")
@pytest.mark.parametrize("stream", ["/dev/full", ""], ids=["full", "closed"])
def test_a_fault_that_standard_error_does_not_take_is_not_printed_on_standard_output(
    stream: str, environ: dict[str, str], tmp_path: Path
) -> None:
    to_stream = f'os.dup2(os.open("{stream}", os.O_WRONLY), 2)' if stream else "os.close(2)"
    code = f"import os, sys; {to_stream}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    ended = subprocess.run(
        [sys.executable, "-c", code, "-m", "proxy", "snippets"],
        stdout=subprocess.PIPE,
        timeout=STARTUP_S,
        env={**environ, "CSQ_PROXY_SERVER__PORT": str(free_port())},
        cwd=tmp_path,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is full")
def test_it_serves_on_where_its_log_can_not_be_written(environ: dict[str, str], config: Path) -> None:
    full = """
import os
from proxy.__main__ import main
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
main()
"""
    port = free_port()
    with started("serve", "--port", str(port), environ=environ, cwd=config.parent, code=full) as proxy:
        serves_and_stops(proxy, port)


def test_names_that_are_too_long_for_the_terminal_are_shown_whole(
    environ: dict[str, str], tmp_path: Path
) -> None:
    name = "q" * 64
    config = write(tmp_path / "config.toml", CONFIG.replace("projects.shop", f"projects.{name}"))
    for width, times in (("60", 1), ("80", 2)):  # a narrow terminal has no room for the path beside the name
        ended = run("check", "--config", str(config), environ={**environ, "COLUMNS": width}, cwd=tmp_path)
        assert ended.returncode == 0
        assert "…" not in ended.stdout
        assert ended.stdout.count("q") >= times * 64


def test_an_ipv6_listener_is_shown_in_brackets(environ: dict[str, str], tmp_path: Path) -> None:
    config = write(tmp_path / "config.toml", CONFIG.replace("port = 0", 'host = "::1"\nport = 9000'))
    assert "[::1]:9000\n" in run("check", "--config", str(config), environ=environ, cwd=tmp_path).stdout
    ended = run("check", "--json", "--config", str(config), environ=environ, cwd=tmp_path)
    assert json.loads(ended.stdout)["listener"] == "[::1]:9000"


def test_a_command_to_go_on_with_can_be_pasted(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    config = write(tmp_path / "my files" / "shop's.toml", CONFIG)
    ended = run("check", "--config", str(config), environ=environ, cwd=tmp_path)
    said = ended.stdout.splitlines()[-1].partition(": ")[2]
    if sys.platform != "win32":
        assert shlex.split(said)[-1] == str(config)
    assert said.endswith(('"', "'"))


@pytest.mark.parametrize("is_on_path", [True, False])
def test_the_program_s_path_is_a_part_of_such_a_command_where_the_shell_needs_it(
    is_on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ("csq-proxy.exe" if sys.platform == "win32" else "csq-proxy")
    program.touch(0o755)
    config = write(tmp_path / "config.toml", CONFIG)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(tmp_path) if is_on_path else "")
    monkeypatch.chdir(Path(tmp_path.anchor))  # a folder without a name
    said = CliRunner().invoke(cli, ["check", "--config", str(config)]).output.splitlines()[-1]
    assert said.partition(": ")[2].startswith("csq-proxy check" if is_on_path else str(program))


def test_characters_that_the_terminal_lacks_are_escaped(environ: dict[str, str], tmp_path: Path) -> None:
    config = write(tmp_path / "\u65e5\u672c.toml", CONFIG)
    environ = {**environ, "PYTHONIOENCODING": "cp1252"}
    ended = run("check", "--config", str(config), environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"\u65e5\u672c.toml: good" in ended.stdout


def test_a_path_with_brackets_is_shown_as_it_is(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "[x] [").mkdir()
    path = write(tmp_path / "[x] [" / "config.toml", CONFIG)
    ended = run("check", "--config", str(path), environ=environ, cwd=tmp_path)
    assert ended.returncode == 0
    assert f"Configuration: {path}: good" in ended.stdout


# sandbox


def sandbox_config(sandbox: Running) -> str:
    """The configuration that the command ``sandbox`` prints."""
    sandbox.wait_for(r"\[accounts\.acme\](?s:.*)projects = \[42, 43\]\n")
    return sandbox.printed


def test_the_sandbox_prints_a_configuration_that_serve_accepts(
    environ: dict[str, str], tmp_path: Path
) -> None:
    with started("sandbox", environ=environ, cwd=tmp_path) as sandbox:
        path = write(tmp_path / "printed.toml", sandbox_config(sandbox))
        with started("serve", "--config", str(path), "--port", "0", environ=environ, cwd=tmp_path) as proxy:
            base = proxy.listening()
            assert get(f"{base}/-/ready")[0] == 200
            status, answer = get(f"{base}/demo-eu/v1/segments")
            assert (status, answer["success"]) == (200, True)
            for number in (42, 43):
                status, answer = get(f"{base}/acme/{number}/v1/segments")
                assert (status, answer["success"]) == (200, True)
            status, answer = get(f"{base}/demo-us/v1/enrichments", method="POST", body="{}")
            assert status == 400
            assert not str(answer["errorCode"]).startswith("PROXY_")


def test_the_sandboxs_help_says_what_it_adds_to_contentsquares_parameters() -> None:
    shown = CliRunner().invoke(cli, ["sandbox", "--help"]).output
    for name in ("rows", "files", "compression", "cutAfter", "--lenient", "--seed", "sandbox/schemas"):
        assert name in shown
    assert f"than {GROUPS * ROWS_PER_GROUP} rows" in " ".join(shown.split())


def test_a_lenient_sandbox_takes_a_form(environ: dict[str, str], tmp_path: Path) -> None:
    with started("sandbox", "--lenient", environ=environ, cwd=tmp_path) as sandbox:
        url = re.findall(r'auth_url = "(.+)"', sandbox_config(sandbox))[0] + "/v1/oauth/token"
        pair = "client_id=demo-eu-client-id&client_secret=demo-eu-client-secret"
        form = f"grant_type=client_credentials&{pair}"
        content_type = "application/x-www-form-urlencoded"
        status, answer = get(url, method="POST", body=form, content_type=content_type)
        assert (status, answer["api_base_url"]) == (200, answer["endpoint"])


@needs_signals
def test_accounts_alone_have_a_summary_too(environ: dict[str, str], tmp_path: Path) -> None:
    text = CONFIG.replace("[projects.shop]", "[accounts.acme]")
    path = write(tmp_path / "accounts.toml", text)
    program = (sys.executable, "-m", "proxy", "serve", "--config", str(path))
    with in_terminal("", *program, environ=environ, cwd=tmp_path) as terminal:
        terminal.wait_for(r"Stop: Ctrl-C\n")
        base = terminal.wait_for(r"listens on (http://127\.0\.0\.1:\d+)\n")
        assert f"  acme  {base}/acme/PROJECT_ID\n" in terminal.shown
        assert f' --noproxy "*" "{base}/acme/PROJECT_ID/v1/segments"\n' in terminal.shown
        assert get(f"{base}/-/ready")[0] == 200


@needs_signals
def test_a_reason_of_many_projects_stands_once_in_the_summary(
    environ: dict[str, str], tmp_path: Path
) -> None:
    project = '[projects.shop-{}]\nclient_id = "id"\nclient_secret = "secret-{}"\n{}\n'
    projects = [project.format(n, n, 'apis = ["metrics"]' if n % 2 else "") for n in range(6)]
    url = f"http://127.0.0.1:{free_port()}"
    text = f'[contentsquare]\nauth_url = "{url}"\n[server]\nport = 0\n[log]\nlevel = "error"\n'
    path = write(tmp_path / "many.toml", text + "".join(projects))
    program = (sys.executable, "-m", "proxy", "serve", "--config", str(path))
    with in_terminal("", *program, environ=environ, cwd=tmp_path) as terminal:
        terminal.wait_for(r"Stop: Ctrl-C\n")
        assert terminal.shown.count(f"the token endpoint {url}") == 1
        assert terminal.shown.count("no token, for the same reason as shop-0\n") == 5


def test_the_commands_print_at_one_place_only() -> None:
    """`say`, `say_json`, `fail` and `Terminal` escape what a terminal would obey."""
    printing = re.compile(
        r"(?<!terminal\.)\bprint\(|\.s?echo\(|\bConsole\(\w*\)|\.std(?:out|err)\.(?:write|buffer)"
    )
    folder = Path(proxy.__file__).parent / "cli"
    found = {path.name for path in folder.rglob("*.py") if printing.search(path.read_text("utf-8"))}
    assert found <= {"console.py", "tables.py"}, found


@pytest.mark.parametrize("arguments", [("check",), ("check", "--json"), ("serve",)])
def test_what_a_configuration_says_moves_no_cursor(
    arguments: tuple[str, ...], tmp_path: Path, environ: dict[str, str]
) -> None:
    config = write(tmp_path / "config.toml", '["a\\u001b[2J\\u009b\\u202e\\u007f\\nforged"]\nx = 1\n')
    shown = run(*arguments, "--config", str(config), environ=environ, cwd=tmp_path)
    assert shown.returncode == 2
    assert "forged" in shown.stdout + shown.stderr
    for line in (shown.stdout + shown.stderr).splitlines():
        assert line.isprintable(), line
        assert not line.startswith("forged")


@pytest.mark.parametrize(
    "name", ["", *(one.name or one.callback.__name__ for one in cli.registered_commands if one.callback)]
)
def test_each_command_has_a_short_option_for_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*([name] if name else []), "-h"]
    monkeypatch.setattr(sys, "argv", ["csq-proxy", *arguments])
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert "usage:" in result.output.lower()
    assert "..." not in result.output.partition("Commands:")[2]  # each line of the list is whole
