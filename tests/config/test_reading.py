"""The configuration comes from a process of its own: what it says, how it fails, what it leaves behind."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import CONFIG, STARTUP_S, get, needs_signals, started, write
from typer.testing import CliRunner

from proxy.cli import serve as start
from proxy.cli.main import cli
from proxy.config import reading
from proxy.config.load import load
from proxy.config.reading import Reading, read
from proxy.errors import ConfigError
from proxy.secret import Secret

MUCH = """
[server]
tls_cert = "cert.pem"
tls_key = "cert.pem"
[projects.shop]
client_id = "id-1"
client_secret_file = "secret"
apis = ["metrics", "data-export"]
expires = 2027-01-31
standby = { client_id = "id-2", client_secret = "canary-2" }
[accounts.acme]
client_id = "id-3"
client_secret = "canary-3"
projects = [42, 43]
[callers.bi]
key = "canary-key"
"""
PORT: dict[str, Any] = {"server": {"host": None, "port": 9000}}


@pytest.fixture
def much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith(("CSQ_", "CONTENTSQUARE_")):
            monkeypatch.delenv(name)
    write(tmp_path / "secret", "canary-1\n")
    write(tmp_path / "cert.pem", "any")
    return write(tmp_path / "much.toml", MUCH)


def fault_of(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read(path, {})
    [fault] = refused.value.faults
    return fault


def test_it_is_what_reading_it_here_gives(much: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSQ_PROXY_PROJECTS__OTHER__CLIENT_ID", "id-4")
    monkeypatch.setenv("CSQ_PROXY_PROJECTS__OTHER__CLIENT_SECRET", "canary-4")
    got = read(much, PORT)
    assert got == load(much, PORT)
    assert got.server.port == 9000
    assert got.projects["shop"].client_secret == Secret("canary-1")
    assert got.secrets_of_environment == ("CSQ_PROXY_PROJECTS__OTHER__CLIENT_SECRET",)
    with pytest.raises(TypeError):
        got.projects["more"] = got.projects["shop"]  # type: ignore[index]


def test_faults_are_those_of_reading_it_here(much: Path) -> None:
    write(much, MUCH + 'kye = "x"\n[log]\nlevel = "loud"\n')
    with pytest.raises(ConfigError) as expected:
        load(much)
    with pytest.raises(ConfigError) as got:
        read(much, {})
    assert got.value.faults == expected.value.faults
    assert len(got.value.faults) == 2


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit", "exit code 0"),
        ("print('good morning')", "exit code 0"),
        ("import pickle, sys; sys.stdout.buffer.write(pickle.dumps([1]))", "exit code 0"),
        ("import sys; sys.path = []; import proxy.config.reading", "exit code 1"),
    ],
)
def test_a_child_that_gives_no_answer_is_a_fault_that_says_what_to_do(
    code: str, told: str, much: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_CHILD", code)
    fault = fault_of(much)
    assert told in fault
    assert "csq-proxy check" in fault


def test_a_child_that_hangs_is_ended(much: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHILD", "import time; time.sleep(600)")
    monkeypatch.setattr(reading, "LIMIT_S", 0.05)
    monkeypatch.setattr(reading, "_LEAVE_S", 0.05)
    children = []

    def remembered(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        children.append(popen(*arguments, **options))
        return children[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", remembered)
    assert "took more than 0.05 s" in fault_of(much)
    [child] = children
    assert child.wait(STARTUP_S) != 0


def test_where_no_process_can_be_started_it_is_read_here(much: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(subprocess, "Popen", refused)
    assert read(much, PORT) == load(much, PORT)


def test_arguments_and_environment_of_the_child_hold_nothing_of_ours(
    much: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def noted(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        seen.append((arguments, options))
        return popen(arguments, **options)

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", noted)
    read(much, {"projects": {"shop": {"client_secret": "canary-of-an-override"}}})
    [(arguments, options)] = seen
    assert arguments == [sys.executable, "-P", "-c", reading._CHILD]
    assert "canary" not in reading._CHILD
    assert "env" not in options


def test_modules_of_the_working_directory_are_not_taken(much: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(much.parent / "tomllib.py", "raise SystemExit('not this one')")
    monkeypatch.chdir(much.parent)
    assert read(much, {}).source == much


def test_secrets_are_not_pickled_by_anybody_else(much: Path) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(read(much, {}))
    assert "canary" not in repr(read(much, {}))


# ---- what is left behind


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(STARTUP_S)
        yield listener


def slow_secret(listener: socket.socket) -> str:
    """A configuration whose secret comes from a command that calls us and then takes a minute."""
    port = listener.getsockname()[1]
    code = f"import socket, time; held = socket.create_connection(('127.0.0.1', {port})); time.sleep(60)"
    command = json.dumps([sys.executable, "-c", code])
    return CONFIG.replace('client_secret = "canary-secret"', f"client_secret_command = {command}")


def has_ended(command: socket.socket) -> bool:
    """Whether the command closes its call, sooner than its own limit (`secret.COMMAND_TIMEOUT_S`)."""
    command.settimeout(8)
    try:
        return command.recv(1) == b""
    except ConnectionError:
        return True


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_while_it_reads_leaves_no_process_behind(
    number: signal.Signals, environ: dict[str, str], config: Path, listener: socket.socket
) -> None:
    write(config, slow_secret(listener))
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        command, _ = listener.accept()
        with command:
            proxy.process.send_signal(number)
            code, errors = proxy.end()
            assert (code, errors) == (-number if number == signal.SIGKILL else 0, "")
            assert has_ended(command)


@needs_signals
def test_ctrl_c_reaches_all_of_it_and_is_a_clean_stop(
    environ: dict[str, str], config: Path, listener: socket.socket
) -> None:
    write(config, slow_secret(listener))
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "serve", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        cwd=config.parent,
        start_new_session=True,
    )
    try:
        command, _ = listener.accept()
        with command:
            os.killpg(process.pid, signal.SIGINT)
            assert process.communicate(timeout=STARTUP_S) == (b"", b"")
            assert process.returncode == 0
            assert has_ended(command)
    finally:
        process.kill()
        process.communicate(timeout=STARTUP_S)


@needs_signals
def test_a_reading_that_is_given_up_ends_its_process(much: Path, listener: socket.socket) -> None:
    write(much, slow_secret(listener))
    with Reading(much, {}):
        command, _ = listener.accept()
    with command:
        assert has_ended(command)


@needs_signals
def test_what_asks_the_proxy_to_reload_does_not_end_a_reading(much: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    code = f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1); print('told')"
    command = json.dumps([sys.executable, "-c", code])
    write(much, CONFIG.replace('client_secret = "canary-secret"', f"client_secret_command = {command}"))
    with Reading(much, {}) as under_way:
        held, _ = listener.accept()
        assert under_way._child is not None
        under_way._child.send_signal(signal.SIGHUP)  # as to all of a service, or of a terminal
        with held:
            held.sendall(b"x")
        assert under_way.settings().projects["shop"].client_secret == Secret("told")


# ---- the process that serves

WITNESS = """
import sys
from proxy.__main__ import main
try:
    main()
finally:
    import aiohttp.connector
    heavy = {name.partition(".")[0] for name in sys.modules} & {"pydantic", "pydantic_core", "typer", "rich"}
    surplus = aiohttp.connector._SSL_CONTEXT_VERIFIED.get_ca_certs()
    print("heavy:", *sorted(heavy), *surplus[:1], file=sys.stderr)
"""


@needs_signals
def test_the_process_that_serves_never_has_what_validates_its_configuration(
    environ: dict[str, str], config: Path
) -> None:
    arguments = ("serve", "--config", str(config))
    with started(*arguments, environ=environ, cwd=config.parent, code=WITNESS) as proxy:
        base = proxy.wait_for(r"listens on (http://127\.0\.0\.1:\d+)\n")
        proxy.wait_for(r"Stop: Ctrl-C\n")
        proxy.process.send_signal(signal.SIGHUP)
        wait_for_reload(proxy.process)
        assert get(f"{base}/-/status")[1]["reload"]["count"] == 1
        proxy.process.send_signal(signal.SIGTERM)
        code, errors = proxy.end()
    assert code == 0
    assert errors.splitlines()[-1] == "heavy:"


BROKEN_LATER = """
from proxy.config import reading
from proxy.app import run as serving
from proxy.__main__ import main
run = serving.run
def run_broken(work):
    reading._CHILD = "import os; os._exit(9)"
    run(work)
serving.run = run_broken
main()
"""


@needs_signals
def test_a_child_that_fails_at_a_reload_leaves_the_running_configuration(
    environ: dict[str, str], config: Path
) -> None:
    arguments = ("serve", "--config", str(config))
    with started(*arguments, environ=environ, cwd=config.parent, code=BROKEN_LATER) as proxy:
        base = proxy.wait_for(r"listens on (http://127\.0\.0\.1:\d+)\n")
        proxy.wait_for(r"Stop: Ctrl-C\n")
        proxy.process.send_signal(signal.SIGHUP)
        told = wait_for_reload(proxy.process)
        assert told["event"] == "reload_refused"
        assert "exit code 9" in told["faults"][0]
        assert "shop" in get(f"{base}/-/status")[1]["projects"]


def wait_for_reload(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        told: dict[str, Any] = json.loads(line)
        if told["event"] in ("reloaded", "reload_refused"):
            return told
    raise AssertionError("it ended")


# ---- its command line


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "a.toml"],
        ["--config=a b.toml", "--port", "0", "--host", "::1"],
        ["--port=65535", "--port", "1"],
        ["--host=a=b"],
    ],
)
def test_the_usual_command_line_means_what_it_means_to_typer(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meant: list[start.Options] = []
    monkeypatch.setattr(start, "serve", meant.append)
    assert CliRunner().invoke(cli, ["serve", *arguments]).exit_code == 0
    assert meant == [start.usual(["serve", *arguments])]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check"],
        ["--version"],
        ["serve", "--help"],
        ["serve", "--sandbox"],
        ["serve", "--confi", "x"],
        ["serve", "--config"],
        ["serve", "--config="],
        ["serve", "--config=", "x"],
        ["serve", "--config", "--port", "1"],
        ["serve", "--port", "65536"],
        ["serve", "--port", "1" * 5000],  # more than Python makes a number of
        ["serve", "--port", "-1"],
        ["serve", "--port", "²"],
        ["serve", "surplus"],
        ["serve", "--", "--port"],
    ],
)
def test_any_other_command_line_is_left_to_typer(arguments: list[str]) -> None:
    assert start.usual(arguments) is None
