"""Sockets that a service manager passes to us: what is taken, what is refused, and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support.commands import STARTUP_S, Running, faults_in, get, started
from support.harness import Message, free_port, gateway, read_message, settings_for

from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.server import passed_sockets as activation
from proxy.server.listeners import Listeners
from proxy.server.passed_sockets import PassedSocket, take

if sys.platform == "win32":
    pytest.skip("no socket activation on Windows", allow_module_level=True)

import fcntl

CALLERS = {"powerbi": {"key": "a-long-enough-key"}}
HIGH = 300
"""Descriptors from here on are free in a test's process."""

AS_THE_MANAGER_DOES = """
import fcntl, os, sys
kept = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for place, descriptor in enumerate(kept):
    os.dup2(descriptor, 3 + place)
    os.close(descriptor)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "proxy", *sys.argv[2:]])
"""


def listening(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def listening_at(path: Path | str, mode: int = 0o600) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    if isinstance(path, Path):
        path.chmod(mode)
    sock.listen()
    return sock


# What is handed over


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts files where a service manager puts them, but higher."""
    taken = []

    def put(*files: object) -> None:
        first = fcntl.fcntl(files[0], fcntl.F_DUPFD, HIGH)  # type: ignore[call-overload]
        monkeypatch.setattr(activation, "FIRST_DESCRIPTOR", first)
        taken.append(first)
        for place, file in enumerate(files[1:], first + 1):
            os.dup2(file.fileno(), place)  # type: ignore[attr-defined]
            taken.append(place)

    yield put
    for descriptor in taken:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def variables(count: object, names: str = "", pid: object = None) -> dict[str, str]:
    environ = {"LISTEN_PID": str(os.getpid() if pid is None else pid), "LISTEN_FDS": str(count), "LANG": "C"}
    return {**environ, "LISTEN_FDNAMES": names} if names else environ


def test_sockets_are_taken_with_their_names_and_kept_from_children(descriptors: Callable[..., None]) -> None:
    with listening() as one, listening() as other:
        descriptors(one, other)
        environ = variables(2, "csq-proxy:shop")
        passed = take(environ)
        try:
            assert [(item.name, item.sock.getsockname()) for item in passed] == [
                ("csq-proxy", one.getsockname()),
                ("shop", other.getsockname()),
            ]
            assert not any(item.sock.get_inheritable() for item in passed)
            assert environ == {"LANG": "C"}
        finally:
            for item in passed:
                item.sock.close()


@pytest.mark.parametrize("pid", [0, ""])
def test_what_another_process_was_passed_is_left_alone(pid: object) -> None:
    environ = variables(1, "csq-proxy", pid)
    assert take(environ) == []
    assert environ == {"LANG": "C"}


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        (variables(1, pid="me"), "LISTEN_PID"),
        (variables("one"), "LISTEN_FDS"),
        (variables(-1), "LISTEN_FDS"),
        (variables("9" * 20), "LISTEN_FDS"),
        (variables(2, "csq-proxy"), "LISTEN_FDNAMES"),
    ],
)
def test_nonsense_is_an_error_that_names_the_variable(environ: dict[str, str], variable: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: "):
        take(environ)


def test_what_is_no_listening_socket_is_an_error(descriptors: Callable[..., None], tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        listening() as good,
        (tmp_path / "file").open("w") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        ours,
        theirs,
    ):
        for bad, complaint in (
            (file, "is not an open socket"),
            (datagrams, "does not listen for streams"),
            (ours, "leave Accept=no"),
        ):
            descriptors(good, bad)
            with pytest.raises(ConfigError, match=complaint):
                take(variables(2))


# What is served on them


async def call_unix(path: Path) -> Message:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        return await read_message(reader)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("name", ["", "csq-proxy", "unknown", "gateway.socket"])
async def test_the_port_is_the_passed_sockets(name: str) -> None:
    sock = listening()
    port = sock.getsockname()[1]
    async with gateway(passed=[PassedSocket(name, sock)], server={"port": free_port()}) as proxy:
        assert [listener.url for listener in proxy.app.listeners] == [f"http://127.0.0.1:{port}"]
        assert (await proxy.call(b"GET /v1/x")).status == 200
        wrong_port = await proxy.send(b"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
        assert wrong_port.error_code == "PROXY_HOST_REFUSED"


async def test_a_projects_own_port_goes_by_its_name_and_others_are_bound_as_ever() -> None:
    async with gateway(passed=[PassedSocket("shop", listening())]) as proxy:
        own, project = proxy.app.listeners
        assert (own.project, project.project) == (None, "shop")
        assert proxy.app.overview.project_url("shop") == project.url
        reader, writer = await asyncio.open_connection("127.0.0.1", project.port)
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % project.port)
        assert (await read_message(reader)).status == 200
        writer.close()
        await writer.wait_closed()


async def test_a_unix_socket_is_known_by_its_kind_and_its_path_outlives_us(tmp_path: Path) -> None:
    path = tmp_path / "passed"
    with listening_at(path) as manager:
        passed = PassedSocket("csq-proxy", manager.dup())
        async with gateway(passed=[passed], server={"unix_socket": str(tmp_path / "own")}) as proxy:
            assert proxy.app.listeners[-1].url == f"unix:{path}"
            assert (await call_unix(path)).status == 200
        assert os.listdir(tmp_path) == ["passed"]  # noqa: PTH208 - in an async test


def settings(**sections: Mapping[str, object]) -> Settings:
    return settings_for("http://127.0.0.1:1", "http://127.0.0.1:1", **sections)


def bind(sock: socket.socket, name: str = "", **sections: Mapping[str, object]) -> Listeners:
    listeners = Listeners()
    listeners.bind(settings(**sections), [PassedSocket(name, sock)])
    return listeners


@pytest.mark.parametrize("kind", ["wildcard", "open to all", "abstract"])
def test_a_socket_that_others_can_reach_needs_callers(kind: str, tmp_path: Path) -> None:
    if kind == "abstract" and sys.platform != "linux":
        pytest.skip("Linux only")

    def make() -> socket.socket:
        if kind == "wildcard":
            return listening("0.0.0.0")
        path = tmp_path / "socket"
        path.unlink(missing_ok=True)
        return (
            listening_at(f"\0csq-proxy-test-{os.getpid()}")
            if kind == "abstract"
            else listening_at(path, 0o666)
        )

    refused = make()
    with pytest.raises(ConfigError, match=r"^LISTEN_FDS: .* define \[callers\]"):
        bind(refused)
    assert refused.fileno() < 0
    listeners = bind(make(), callers=CALLERS)
    try:
        with pytest.raises(ConfigError, match="LISTEN_FDS"):  # as a reload would have it
            listeners.refuse_exposed(settings())
    finally:
        asyncio.run(listeners.close())


async def test_a_reload_that_would_open_a_passed_socket_to_all_is_refused() -> None:
    passed = [PassedSocket("", listening("0.0.0.0"))]
    async with gateway(passed=passed, callers=CALLERS) as proxy:
        with pytest.raises(ConfigError, match="LISTEN_FDS"):
            proxy.app._prepare(settings())


def test_a_name_that_is_no_projects_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r'"shpo" is no project; .* csq-proxy or one of shop'):
        bind(listening(), "shpo")


# The real program


def answer_on(connection: socket.socket) -> bytes:
    connection.settimeout(STARTUP_S)
    return b"".join(iter(lambda: connection.recv(1000), b""))


@contextlib.contextmanager
def passed_to_proxy(manager: socket.socket, environ: dict[str, str], config: Path) -> Iterator[Running]:
    """The program, started by a service manager that holds this socket."""
    with started(
        str(manager.fileno()),
        "serve",
        "--config",
        str(config),
        environ={**environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "csq-proxy"},
        cwd=config.parent,
        code=AS_THE_MANAGER_DOES,
        descriptors=[manager.fileno()],
    ) as proxy:
        yield proxy


def test_who_calls_while_it_restarts_is_answered(environ: dict[str, str], config: Path) -> None:
    with listening() as manager:
        address = manager.getsockname()
        with passed_to_proxy(manager, environ, config) as before:
            assert before.listening() == f"http://127.0.0.1:{address[1]}"
            assert get(f"http://127.0.0.1:{address[1]}/-/status")[0] == 200
            before.process.send_signal(signal.SIGTERM)
            assert before.end()[0] == 0
        with socket.create_connection(address) as waiting:
            waiting.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost:%d\r\n" % address[1])
            waiting.sendall(b"Connection: close\r\n\r\n")
            with passed_to_proxy(manager, environ, config):
                assert answer_on(waiting).startswith(b"HTTP/1.1 200 ")


def test_a_socket_that_is_refused_ends_it_with_a_line_that_says_why(
    environ: dict[str, str], config: Path
) -> None:
    with listening("0.0.0.0") as manager, passed_to_proxy(manager, environ, config) as proxy:
        code, errors = proxy.end()
        port = manager.getsockname()[1]
    assert code == 2
    [fault] = faults_in(errors)
    assert fault.startswith(f"LISTEN_FDS: 0.0.0.0:{port} is not a loopback address")


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate here")
def test_systemd_itself_starts_it_at_the_first_connection(environ: dict[str, str], config: Path) -> None:
    port = free_port()
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=csq-proxy"]
    kept = [f"--setenv={name}={environ[name]}" for name in ("HOME", "PATH", "PYTHONPATH") if name in environ]
    process = subprocess.Popen(
        [*command, *kept, sys.executable, "-m", "proxy", "serve", "--config", str(config)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=config.parent,
        env=environ,
    )
    try:
        assert process.stderr is not None
        assert f":{port}" in process.stderr.readline()
        status, _ = get(f"http://127.0.0.1:{port}/-/status")
        assert status == 200
        process.terminate()
        _, errors = process.communicate(timeout=STARTUP_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert f'"event":"listening","urls":["http://127.0.0.1:{port}"]' in errors
