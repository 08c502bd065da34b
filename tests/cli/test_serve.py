"""``csq-proxy serve``: its arguments, signals while it starts, and what it leaves out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import CONFIG, STARTUP_S, faults_in, get, needs_signals, run, started, write

from proxy.cli import serve
from proxy.logs import configure

# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "config", "host", "port"),
    [
        ([], None, None, None),
        (["--config", "a.toml"], "a.toml", None, None),
        (["--config=a b.toml", "--port", "0", "--host", "::1"], "a b.toml", "::1", 0),
        (["--port=65535", "--port", "1"], None, None, 1),
        (["--host=a=b"], None, "a=b", None),
    ],
)
def test_options_are_given_with_a_space_or_an_equals_sign(
    arguments: list[str],
    config: str | None,
    host: str | None,
    port: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meant: list[Any] = []
    monkeypatch.setattr(serve, "_serve", lambda *given: meant.append(given[:2]))
    serve.main(arguments)
    [(file, flags)] = meant
    assert file == (Path(config) if config else None)
    assert flags["server"] == {"host": host, "port": port}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--confi", "x"], "No such option: --confi; did you mean --config? See: csq-proxy serve --help"),
        (["--prot=1"], "No such option: --prot; did you mean --port? See: csq-proxy serve --help"),
        (["--config"], "--config: expected one argument. See: csq-proxy serve --help"),
        (["--config", "--port", "1"], "--config: expected one argument. See: csq-proxy serve --help"),
        (["--port", "65536"], "--port: must be a whole number from 0 to 65535"),
        (["--port", "1" * 5000], "--port: must be a whole number from 0 to 65535"),
        (["--port", "-1"], "--port: must be a whole number from 0 to 65535"),
        (["--port", "²"], "--port: must be a whole number from 0 to 65535"),
        (["surplus"], "Got unexpected extra argument ('surplus')"),
        (["a\nb"], "Got unexpected extra argument ('a\\nb')"),
    ],
)
def test_wrong_arguments_are_one_line_and_end_it_with_2(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json")
    with pytest.raises(SystemExit) as ended:
        serve.main(arguments)
    assert ended.value.code == 2
    [told] = faults_in(capsys.readouterr().err)
    assert told.startswith(fault)


def test_its_help_names_every_option(environ: dict[str, str], tmp_path: Path) -> None:
    ended = run("serve", "--help", environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    for option in ("--config FILE", "--sandbox", "--host HOST", "--port PORT", "--log-level LEVEL"):
        assert f"  {option} " in ended.stdout


# ---- signals while it starts


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(STARTUP_S)
        yield listener


def with_command(listener: socket.socket, then: str) -> str:
    """A configuration whose secret comes from a command that calls us, and goes on as ``then`` says."""
    port = listener.getsockname()[1]
    code = f"import socket, time; held = socket.create_connection(('127.0.0.1', {port})); {then}"
    command = json.dumps([sys.executable, "-c", code])
    return CONFIG.replace('client_secret = "canary-secret"', f"client_secret_command = {command}")


def has_ended(command: socket.socket) -> bool:
    """Whether the command closes its call, sooner than its own limit of 10 s."""
    command.settimeout(8)
    try:
        return command.recv(1) == b""
    except ConnectionError:
        return True


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_it_reads_ends_the_secret_command_too(
    number: signal.Signals, environ: dict[str, str], config: Path, listener: socket.socket
) -> None:
    write(config, with_command(listener, "time.sleep(60)"))
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        command, _ = listener.accept()
        with command:
            proxy.process.send_signal(number)
            assert proxy.end() == (0, "")
            assert has_ended(command)


@needs_signals
def test_ctrl_c_reaches_the_command_too_and_is_a_clean_stop(
    environ: dict[str, str], config: Path, listener: socket.socket
) -> None:
    write(config, with_command(listener, "time.sleep(60)"))
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
def test_a_reload_asked_for_while_it_reads_does_not_end_it(
    environ: dict[str, str], config: Path, listener: socket.socket
) -> None:
    write(config, with_command(listener, "held.recv(1); print('told')"))
    with started("serve", "--config", str(config), environ=environ, cwd=config.parent) as proxy:
        command, _ = listener.accept()
        proxy.process.send_signal(signal.SIGHUP)
        with command:
            command.sendall(b"x")
        proxy.listening()


# ---- what it leaves out

WITNESS = """
import sys
from proxy.__main__ import main
try:
    main()
finally:
    names = {"typer", "rich", "proxy.sandbox", "proxy.cli.main", "prometheus_client"}
    print("needless:", *sorted(names & {*sys.modules}), file=sys.stderr)
"""


@needs_signals
def test_it_imports_neither_typer_nor_rich_nor_the_sandbox(environ: dict[str, str], config: Path) -> None:
    arguments = ("serve", "--config", str(config))
    with started(*arguments, environ=environ, cwd=config.parent, code=WITNESS, anew=True) as proxy:
        base = proxy.listening()
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_for_event("reloaded")
        assert get(f"{base}/-/status")[1]["reload"]["count"] == 1
        proxy.process.send_signal(signal.SIGTERM)
        code, errors = proxy.end()
    assert code == 0
    assert errors.splitlines()[-1] == "needless:"
