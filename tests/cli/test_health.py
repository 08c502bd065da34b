"""``csq-proxy health`` against running proxies, and what it costs and loads."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from support.certificates import tls_files
from support.commands import run, write
from support.harness import RawServer, Upstream, free_port, gateway

from proxy.cli.health import DEFAULTS, find_listener
from proxy.config.load import load_listener
from proxy.config.settings import ServerSettings
from proxy.errors import ConfigError

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has no loop
KEY = "a-key-of-16-bytes-or-more"
LIBRARIES = ("pydantic", "aiohttp", "typer", "rich", "structlog", "asyncio")


async def health(
    *arguments: str, cwd: Path, environ: dict[str, str], **server: object
) -> subprocess.CompletedProcess[str]:
    given = {f"CSQ_PROXY_SERVER__{name.upper()}": str(value) for name, value in server.items()}
    return await asyncio.to_thread(run, "health", *arguments, environ={**environ, **given}, cwd=cwd)


async def test_it_has_the_defaults_of_the_settings() -> None:
    defaults = ServerSettings()
    assert {key: getattr(defaults, key) for key in DEFAULTS} == DEFAULTS


async def test_variables_win_over_the_file_and_a_path_belongs_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = write(
        tmp_path / "there" / "x.toml",
        '[server]\nhost = "[::]"\nport = 9000\ntls_cert = "c.pem"\n',
    )
    found = find_listener(file, {})
    assert (found.host, found.port, found.tls_cert) == ("::1", 9000, tmp_path / "there" / "c.pem")
    found = find_listener(
        file,
        {
            "CSQ_PROXY_SERVER__PORT": "9001",
            "CSQ_PROXY_SERVER__HOST": "",
            "CSQ_PROXY_SERVER__TLS_CERT": "d.pem",
        },
    )
    assert (found.host, found.port, found.tls_cert) == ("::1", 9001, tmp_path / "here" / "d.pem")
    found = find_listener(file, {"CSQ_PROXY_SERVER__TCP": "off", "CSQ_PROXY_SERVER__UNIX_SOCKET": "/run/s"})
    assert (found.name, found.tls_cert) == (f"unix:{Path('/run/s')}", tmp_path / "there" / "c.pem")
    assert find_listener(file, {"CSQ_PROXY_CONFIG": "none"}).name == "[::1]:9000"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"CSQ_PROXY_SERVER__PORT": "0"}, "any free port"),
        ({"CSQ_PROXY_SERVER__PORT": "x"}, "server.port"),
        ({"CSQ_PROXY_SERVER__TCP": "x"}, "server.tcp"),
        ({"CSQ_PROXY_SERVER__TCP": "false"}, "server.unix_socket isn't set"),
    ],
)
async def test_a_listener_that_cannot_be_known_is_a_fault_of_the_configuration(
    environ: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        find_listener(write(tmp_path / "x.toml", ""), environ)


@pytest.mark.parametrize("port", ["8278.0", "'+8278'", "'8_278'", "' 8278 '", "'8278.0'"])
async def test_a_port_is_read_as_the_settings_read_it(port: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.toml", f"[server]\nport = {port}\n")
    assert find_listener(file, {}).port == load_listener(file, {}).port == 8278


async def test_a_file_that_became_wrong_does_not_make_a_proxy_unhealthy(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path / "config.toml", "[server")
    async with gateway() as proxy:
        ended = await health(cwd=tmp_path, environ=environ, port=proxy.port)
        assert ended.returncode == 0
        assert "not valid TOML" in ended.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.0.0.2", "localhost"])
@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
async def test_each_address_is_asked_and_a_401_counts_as_alive(
    host: str, with_tls: bool, environ: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    tls = tls_files(tmp_path, trustme.CA().issue_cert("localhost")) if with_tls else {}
    callers = {"bi": {"key": KEY}}
    server = {"host": host, "port": port, **tls}
    try:
        socket.create_server(("127.0.0.1" if host == "localhost" else host, 0), family=_family(host)).close()
    except OSError:
        pytest.skip(f"{host} isn't an address here")
    async with gateway(server=server, callers=callers):
        ended = await health(cwd=tmp_path, environ=environ, **server)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        ended = await health("--ready", cwd=tmp_path, environ=environ, **server)
        assert ended.returncode == 1
        assert "a caller's key is needed" in ended.stderr
        ended = await health(
            "--ready", cwd=tmp_path, environ={**environ, "CSQ_PROXY_KEY": "x" * 16}, **server
        )
        assert ended.returncode == 1
        assert "this key is not a caller's" in ended.stderr
        key = write(tmp_path / "key", f"{KEY}\n")
        ended = await health("--ready", "--key-file", str(key), cwd=tmp_path, environ=environ, **server)
        assert (ended.returncode, ended.stderr) == (0, "")
    ended = await health(cwd=tmp_path, environ=environ, **server)
    assert ended.returncode == 1
    assert "can't be reached" in ended.stderr


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets in Python for Windows")
async def test_a_unix_socket_is_asked(environ: dict[str, str], tmp_path: Path) -> None:
    server = {"tcp": False, "unix_socket": str(tmp_path / "s")}
    async with gateway(server=server):
        ended = await health(cwd=tmp_path, environ=environ, **server)
        assert (ended.returncode, ended.stderr) == (0, "")
    ended = await health(cwd=tmp_path, environ=environ, **server)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"csq-proxy: unix:{tmp_path / 's'}: can't be reached (")


async def test_a_key_is_sent_to_the_configured_certificate_only(
    environ: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    issuer = trustme.CA()
    mine = tls_files(tmp_path, issuer.issue_cert("localhost"))
    file = tmp_path / "cert.pem"
    # Another server can have a certificate of the same issuer.
    file.write_bytes(file.read_bytes() + issuer.cert_pem.bytes())
    foreign = tls_files(other, issuer.issue_cert("localhost"))
    write(tmp_path / "key", KEY)
    server = {"host": "127.0.0.1", "port": free_port(), **foreign}
    async with gateway(server=server, callers={"bi": {"key": KEY}}):
        asked = {"host": "127.0.0.1", "port": server["port"], "tls_cert": mine["tls_cert"]}
        ended = await health("--ready", "--key-file", "key", cwd=tmp_path, environ=environ, **asked)
        assert ended.returncode == 1
        assert "no TLS that server.tls_cert fits" in ended.stderr


@pytest.mark.parametrize("key", ["one\ntwo", "cl\u00e9", "\u200b", f'"{KEY}"', f"Bearer {KEY}"])
async def test_a_key_that_cannot_be_sent_is_told_in_one_line_without_it(
    key: str, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(key, encoding="utf-8")
    for place, arguments, given in (
        ("CSQ_PROXY_KEY", (), {"CSQ_PROXY_KEY": key}),
        ("--key-file", ("--key-file", "key"), {}),
    ):
        ended = await health("--ready", *arguments, cwd=tmp_path, environ={**environ, **given})
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"csq-proxy: {place}: ")
        assert ended.stderr.count("\n") == 1
        assert KEY not in ended.stderr


async def test_a_key_file_may_have_what_editors_on_windows_add(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(f"\ufeff{KEY}\r\n".encode())
    async with gateway(callers={"bi": {"key": KEY}}) as proxy:
        ended = await health("--ready", "--key-file", "key", cwd=tmp_path, environ=environ, port=proxy.port)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (421, 0), (500, 1), (503, 1)])
async def test_an_answer_of_500_or_more_is_unhealthy(
    status: int, code: int, environ: dict[str, str], tmp_path: Path
) -> None:
    head = b"HTTP/1.1 %d X\r\nProxy-Status: csq-proxy\r\nContent-Length: 0\r\n\r\n" % status
    async with RawServer(Upstream(lambda _: head)) as server:
        ended = await health(cwd=tmp_path, environ=environ, port=server.url.rpartition(":")[2])
        assert ended.returncode == code


@pytest.mark.parametrize("status", [200, 302, 401, 404])
@pytest.mark.parametrize("flags", [(), ("--ready",)], ids=["alive", "ready"])
async def test_another_web_server_at_the_port_is_not_taken_for_the_proxy(
    status: int, flags: tuple[str, ...], environ: dict[str, str], tmp_path: Path
) -> None:
    head = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
    async with RawServer(Upstream(lambda _: head)) as server:
        ended = await health(*flags, cwd=tmp_path, environ=environ, port=server.url.rpartition(":")[2])
        assert ended.returncode == 1
        assert f"a program other than csq-proxy answers there (status {status})" in ended.stderr


async def test_an_answer_that_comes_a_byte_at_a_time_does_not_hold_it_up(
    environ: dict[str, str], tmp_path: Path
) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"H")
            await asyncio.sleep(0.1)

    async with RawServer(drip) as server:
        ended = await health(cwd=tmp_path, environ=environ, port=server.url.rpartition(":")[2])
    assert ended.returncode == 1
    assert "can't be reached (no answer within 4 s)" in ended.stderr


async def test_it_loads_no_library_and_runs_no_command(environ: dict[str, str], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    write(
        tmp_path / "config.toml",
        f"[projects.x]\nclient_id = 'i'\nclient_secret_command = ['touch', '{ran.as_posix()}']\n",
    )
    code = (
        "import sys; sys.argv = ['csq-proxy', 'health']\nfrom proxy.__main__ import main\ntry: main()\n"
        f"finally: print(sorted(set(sys.modules) & set({LIBRARIES!r})))"
    )
    async with gateway() as proxy:
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code],
            env={
                **environ,
                "CSQ_PROXY_SERVER__PORT": str(proxy.port),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[]\n", "")
    assert not ran.exists()


@pytest.mark.parametrize("arguments", [("-h",), ("--help",)])
async def test_it_has_help_and_one_line_for_wrong_usage(
    arguments: tuple[str], environ: dict[str, str], tmp_path: Path
) -> None:
    ended = await health(*arguments, cwd=tmp_path, environ=environ)
    assert ended.returncode == 0
    assert "--ready" in ended.stdout
    ended = await health("--odd", cwd=tmp_path, environ=environ)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
