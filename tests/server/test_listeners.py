"""Where the proxy listens: the addresses of ``localhost`` on one port, and no port at all."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.commands import CONFIG, STARTUP_S, needs_signals, run, write
from support.harness import close, free_port, gateway, read_message, settings_for
from support.terminal import in_terminal
from typer.testing import CliRunner

from proxy.cli.main import cli
from proxy.cli.running_proxy import Unreachable, find
from proxy.cli.snippets import portable
from proxy.config.changes import differences
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.errors import ConfigError, ListenError
from proxy.server.listeners import Listeners
from proxy.server.passed_sockets import PassedSocket

ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


def settings(**sections: Mapping[str, object]) -> Settings:
    return settings_for("http://127.0.0.1:1", "http://127.0.0.1:1", **sections)


def bound(settings: Settings, *passed: PassedSocket) -> list[list[tuple[Any, ...]]]:
    """The addresses of each listener, which is closed again."""
    listeners = Listeners()
    listeners.bind(settings, passed)
    asyncio.run(listeners.close())
    return [list(one.addresses) for one in listeners.all]


async def status_of(host: str, port: int, authority: str, target: str) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
    try:
        return (await read_message(reader)).status
    finally:
        await close(writer)


# localhost


@needs_ipv6
@pytest.mark.parametrize("server", [{}, {"host": "localhost"}, {"host": "LocalHost"}])
async def test_localhost_is_both_its_addresses_on_one_port_for_projects_of_their_own_too(
    server: dict[str, str],
) -> None:
    own_port = free_port()
    projects = {"shop": ONE, "own": {**ONE, "client_id": "id-2", "port": own_port}}
    async with gateway(server={"port": 0, **server}, projects=projects) as proxy:
        main, own = proxy.app.listeners
        assert (main.url, own.url) == (f"http://127.0.0.1:{main.port}", f"http://127.0.0.1:{own_port}")
        for listener, project in ((main, "/shop"), (own, "")):
            assert listener.addresses == (("127.0.0.1", listener.port), ("::1", listener.port))
            for host in ("127.0.0.1", "::1"):
                for name in ("localhost", "127.0.0.1", "[::1]"):
                    authority = f"{name}:{listener.port}"
                    assert await status_of(host, listener.port, authority, f"{project}/v1/x") == 200


@needs_ipv6
@pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
async def test_an_address_that_is_written_out_means_it_alone(host: str, other: str) -> None:
    # Not port 0: a port that the system chooses for one address can be another test's on the other address.
    async with gateway(server={"port": free_port(), "host": host}) as proxy:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(other, proxy.port)


@needs_ipv6
async def test_connections_to_both_addresses_count_together() -> None:
    async with gateway() as proxy:
        pairs = [await asyncio.open_connection(host, proxy.port) for host in ("127.0.0.1", "::1")]
        for _, writer in pairs:
            writer.write(b"GET /v1/x HTTP/1.1\r\nHost: " + proxy.host + b"\r\n\r\n")
        for reader, _ in pairs:
            assert (await read_message(reader)).status == 200
        [site] = proxy.app._listeners.sites
        assert site.server.open == 2
        for _, writer in pairs:
            await close(writer)


@needs_ipv6
@pytest.mark.parametrize("key", ["server.port", "projects.shop.port"])
def test_an_ipv6_port_that_another_program_has_is_told_and_the_other_address_is_left(key: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        where: dict[str, Any] = {"server": {"port": port}}
        if key != "server.port":
            where = {"projects": {"shop": {**ONE, "port": port}}}
        with pytest.raises(ConfigError, match=rf"^{key}: can't listen on \[::1\]:{port} .*another port"):
            Listeners().bind(settings(**where))
        socket.create_server(("127.0.0.1", port)).close()


@needs_ipv6
def test_an_ipv6_port_that_another_program_has_ends_the_command_with_2(
    environ: dict[str, str], config: Path
) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        ended = run("serve", "--port", str(port), environ=environ, cwd=config.parent)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert f"can't listen on [::1]:{port}" in ended.stderr


@needs_ipv6
def test_any_free_port_is_one_that_is_free_at_both_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Busy(socket.socket):
        def bind(self, address: Any, /) -> None:
            if address[0] == "::1" and address[1]:
                tried.append(address[1])
                if len(tried) < 3:
                    raise OSError(errno.EADDRINUSE, "Address already in use")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Busy)
    [[ipv4, ipv6]] = bound(settings())
    assert (ipv4[1], ipv6[1], len(tried)) == (tried[2], tried[2], 3)


@pytest.mark.parametrize(("where", "code"), [("socket", errno.EAFNOSUPPORT), ("bind", errno.EADDRNOTAVAIL)])
def test_a_machine_without_ipv6_is_no_fault_and_is_told_at_debug_only(
    where: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnlyIpv4(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *arguments: Any, **named: Any) -> None:
            if where == "socket" and family == socket.AF_INET6:
                raise OSError(code, "no IPv6 here")
            super().__init__(family, *arguments, **named)

        def bind(self, address: Any, /) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(code, "no IPv6 here")
            super().bind(address)

    class Log:
        def debug(self, event: str, **values: object) -> None:
            told.append((event, values))

    told: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(socket, "socket", OnlyIpv4)
    monkeypatch.setattr("proxy.server.listeners.get_logger", lambda _: Log())
    [[(host, _)]] = bound(settings())
    assert host == "127.0.0.1"
    assert told == [("no_ipv6_loopback", {"key": "server.port", "error": "no IPv6 here"})]


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EMFILE])
def test_an_address_for_which_there_is_no_socket_is_told(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIpv6(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *arguments: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(code, "no socket")
            super().__init__(family, *arguments, **named)

    monkeypatch.setattr(socket, "socket", NoIpv6)
    with pytest.raises(ListenError, match=r"can't listen on \[::1\].*no socket"):
        bound(settings(server={"host": "::1"}))


# No port


@needs_unix
async def test_without_tcp_it_listens_on_the_unix_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with gateway(server={"tcp": False, "port": free_port(), "unix_socket": str(path)}) as proxy:
        [listener] = proxy.app.listeners
        assert (listener.url, listener.addresses) == (f"unix:{path}", ())
        assert proxy.app.overview.project_url("shop") == "http://localhost/shop"
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /shop/v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await read_message(reader)).status == 200
        await close(writer)


@needs_unix
def test_without_tcp_the_passed_sockets_are_served(tmp_path: Path) -> None:
    port = socket.create_server(("127.0.0.1", 0))
    address = port.getsockname()
    assert bound(settings(server={"tcp": False}), PassedSocket("", port)) == [[address]]
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    (tmp_path / "s").chmod(0o600)
    unix.listen()
    assert bound(settings(server={"tcp": False}), PassedSocket("", unix)) == [[]]


@needs_unix
def test_without_tcp_and_without_a_socket_there_is_nothing_to_serve() -> None:
    with pytest.raises(ConfigError, match=r"^server.tcp: false, .* set server.unix_socket to a path"):
        bound(settings(server={"tcp": False}))


def test_without_tcp_a_project_has_no_port() -> None:
    with pytest.raises(ConfigError, match=r"^projects.shop.port: server.tcp is false"):
        settings(server={"tcp": False}, projects={"shop": {**ONE, "port": 9001}})


def test_windows_has_nothing_but_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match=r"^server.tcp: must be true on Windows"):
        settings(server={"tcp": False})


@needs_ipv6
def test_all_addresses_of_ipv6_are_those_of_ipv4_too_on_each_system() -> None:
    listeners = Listeners()
    listeners.bind(settings(server={"host": "::"}, callers={"bi": {"key": "a-key-of-16-bytes"}}))
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, listeners.all[0].port), 10).close()
    asyncio.run(listeners.close())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "access"),
            "excludedportrange protocol=tcp); choose another port with",
        ),
        (
            OSError(errno.EADDRINUSE, "in use"),
            "after one that was killed, Windows may hold the port for minutes",
        ),
    ],
)
def test_why_windows_gives_a_port_to_nobody_is_told(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> socket.socket:
        raise error

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("proxy.server.listeners._listen", refused)
    with pytest.raises(ListenError, match=re.escape(words)):
        bound(settings(server={"port": 8277}))


@needs_unix
def test_a_reload_says_that_the_change_needs_a_restart() -> None:
    before, after = settings(), settings(server={"tcp": False})
    assert differences(before, after, before).needs_restart == ("server.tcp",)


@needs_unix
@needs_signals
@pytest.mark.parametrize("has_tls", [False, True])
def test_status_snippets_and_the_summary_use_the_socket(
    has_tls: bool, environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a s"
    server = f'tcp = false\nunix_socket = "{path}"\n'
    if has_tls:
        issued = trustme.CA().issue_cert("proxy.corp")
        write(tmp_path / "key.pem", issued.private_key_pem.bytes().decode())
        write(tmp_path / "cert.pem", issued.cert_chain_pems[0].bytes().decode())
        server += 'tls_cert = "cert.pem"\ntls_key = "key.pem"\n'
    write(tmp_path / "config.toml", CONFIG.replace("port = 0\n", server))
    program = (sys.executable, "-m", "proxy", "serve")
    with in_terminal("", *program, environ=environ, cwd=tmp_path) as terminal:
        told = terminal.wait_for("Stop: Ctrl-C") and terminal.shown
        assert f"listens on unix:{path}\n" in told
        assert f"  shop  {'https' if has_tls else 'http'}://localhost/shop\n" in told
        assert f"curl --unix-socket {shlex.quote(str(path))} " in told
        assert "in a browser" not in told
        for url in (None, f"unix:{path}"):
            assert list(find(tmp_path / "config.toml", url, None).status()["projects"]) == ["shop"]
        if not has_tls and shutil.which("curl"):
            [line] = [line for line in told.splitlines() if line.startswith("Try:  ")]
            words = shlex.split(line.removeprefix("Try:  ").replace("shop/v1/segments", "-/status"))
            said = subprocess.run([*words, "-s"], capture_output=True, timeout=STARTUP_S, check=True)
            assert "shop" in json.loads(said.stdout)["projects"]
    with pytest.raises(Unreachable, match=f"^unix:{path}: can't be reached"):
        find(tmp_path / "config.toml", None, None).status()


@needs_unix
def test_check_and_snippets_know_that_there_is_no_port(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    server = f'tcp = false\nport = 9000\nunix_socket = "{path}"\n'
    write(tmp_path / "config.toml", CONFIG.replace("port = 0\n", server))
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> str:
        return str(CliRunner().invoke(cli, words).output)

    assert json.loads(said("check", "--json"))["listener"] == f"unix:{path}"
    curl = said("snippets", "--for", "curl")
    assert curl.startswith(f'curl --unix-socket {path} "http://localhost/shop/v1/')
    assert said("snippets").startswith(f"--- curl\n\n{curl}")
    refused = CliRunner().invoke(cli, ["snippets", "--for", "powerbi"]).exception
    assert isinstance(refused, ConfigError)
    assert str(refused).startswith("--for powerbi: server.tcp is false")
    ended = run("serve", "--port=9000", environ=environ, cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "--port: server.tcp is false" in ended.stderr


@needs_unix
def test_no_port_is_copied_into_containers_which_share_their_app_s_loopback(tmp_path: Path) -> None:
    made = load(
        None,
        {"server": {"tcp": False, "unix_socket": str(tmp_path / "s")}, "projects": {"shop": ONE}},
        {},
        search=False,
    )
    assert "# server.tcp: left out" in portable.config(made, "/run", portable.IN_CONTAINER, indent=0)
    assert "tcp = false" in portable.config(made, "/run", portable.UNDER_SYSTEMD, indent=0)
