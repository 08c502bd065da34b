"""``csq-proxy status`` against a running proxy."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from support import commands
from support.certificates import CASES, openssl_verifies, tls_files
from support.harness import (
    WAIT_S,
    Message,
    RawServer,
    TokenServer,
    Upstream,
    free_port,
    gateway,
    read_message,
    until,
)
from support.terminal import PROGRAM, in_terminal

from proxy.cli.running_proxy import RunningProxy, Unreachable, find
from proxy.config import load as configuration
from proxy.config.expiry import utc_today
from proxy.errors import ConfigError

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has no loop
KEY = "a-callers-key-0123456789"
PROJECTS = {
    "shop": {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"], "expires": "2020-01-01"}
}


async def run(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of its own, without this process's variables for csq-proxy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CSQ_")}
    own = {**inherited, "HOME": str(cwd), "COLUMNS": "160", **environ}
    return await asyncio.to_thread(commands.run, "status", *arguments, environ=own, cwd=cwd)


async def test_it_shows_projects_tokens_and_errors(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        await proxy.call(b"GET /v1/segments")
        proxy.app._generation.projects["shop"].measures.count_error(
            "PROXY_QUEUE_TIMEOUT", "all slots [b]were[/] busy"
        )
        shown = await run("--url", f"http://127.0.0.1:{proxy.port}/", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in (
        f" on {socket.gethostname()} at http",
        "shop",
        "0/10",
        "degraded",
        "fresh, 60 min",
        proxy.upstream.url.partition("://")[2],
    ):
        assert text in shown.stdout
    assert "The credentials ended, on 2020-01-01." in shown.stdout
    assert "PROXY_QUEUE_TIMEOUT: all slots [b]were[/] busy" in shown.stdout


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (-1, "The credentials ended, on {}."),
        (0, "The credentials end today."),
        (14, "The credentials end in 14 days, on {}."),
        (15, "shop: credentials end on {}: renew them"),
        (30, "shop: credentials end on {}: renew them"),
    ],
)
async def test_credentials_that_end_soon_are_told_from_those_that_have_ended(
    days: int, words: str, tmp_path: Path
) -> None:
    on = str(utc_today() + dt.timedelta(days=days))
    async with gateway(projects={"shop": {**PROJECTS["shop"], "expires": on}}) as proxy:
        shown = await run("--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path)
    assert words.format(on) in shown.stdout


async def test_a_quota_that_is_nearly_used_is_told(tmp_path: Path) -> None:
    projects = {"shop": {**PROJECTS["shop"], "quota": 1}, "other": {**PROJECTS["shop"], "quota": 9}}
    accounts = {"acme": {"client_id": "id-2", "client_secret": "secret-2", "quota": 1}}
    async with gateway(projects=projects, accounts=accounts) as proxy:
        for name in (b"shop", b"other", b"acme/42"):
            await proxy.call(b"GET /%b/v1/segments" % name)
        shown = await run("--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path)
    assert "shop: 1 of 1 calls of " in shown.stdout
    assert "acme: 1 of 1 calls of " in shown.stdout
    assert " of 9 calls" not in shown.stdout


def project(number: int) -> dict[str, object]:
    return {
        "client_id": f"id-{number}",
        "client_secret": "secret-1",
        "project_id": number,
        "apis": ["metrics", "surveys"],
    }


@pytest.mark.parametrize("columns", ["50", "80", "120"])
async def test_broken_projects_come_first_with_the_three_answers(columns: str, tmp_path: Path) -> None:
    def answer(message: Message) -> bytes:
        broken = b"projectId=7" in message.start_line
        return b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (500 if broken else 200)

    many = {f"shop-{number:02}": project(number) for number in range(1, 13)}
    async with gateway(Upstream(answer), projects=many) as proxy:
        await until(lambda: all(one.is_ready for one in proxy.app.projects()))
        for _ in range(3):
            await proxy.call(b"GET /shop-07/v1/segments?projectId=7")
            await proxy.call(b"GET /shop-01/v1/segments?projectId=1")
        url = ("--url", f"http://127.0.0.1:{proxy.port}/-/?a=b#shop-07")
        shown = await run(*url, cwd=tmp_path, COLUMNS=columns)
        told = json.loads((await run(*url, "--json", cwd=tmp_path)).stdout)
        calm = await run(*url, "--exit-zero", cwd=tmp_path)
    assert (shown.returncode, calm.returncode, shown.stderr) == (1, 0, "")
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    said = " ".join(shown.stdout.split())
    assert " failing: 1 of 13 projects: errors of Contentsquare shop-07 " in said
    assert (
        "shop-07 failing: errors of Contentsquare"
        " why: Contentsquare answered 3 of 3 requests in the last 5 minutes with 500."
        " whose: Contentsquare next: Wait;" in said
    )
    rows = [line.split()[0] for line in lines if "0/10" in line]
    assert rows == ["shop-07", "shop", *sorted(set(many) - {"shop-07"})]
    assert told["health"]["project"] == "shop-07"
    assert all("hour" in one for one in told["projects"].values())


async def test_the_exit_code_is_1_only_where_a_project_cannot_work(tmp_path: Path) -> None:
    async with gateway(token=TokenServer(status=401), projects=PROJECTS) as proxy:
        url = ("--url", f"http://127.0.0.1:{proxy.port}")
        for arguments, code in (((), 1), (("--json",), 1), (("--json", "--exit-zero"), 0)):
            assert (await run(*url, *arguments, cwd=tmp_path)).returncode == code
        shown = await run(*url, cwd=tmp_path)
    assert "failing: no token" in shown.stdout
    assert "next:  Correct the credentials in the proxy's configuration" in shown.stdout


async def test_a_proxy_of_before_that_tells_no_health_is_shown(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        status = json.loads((await proxy.call(b"GET /-/status")).content)
    for one in (status, *status["projects"].values()):
        del one["health"]
    body = json.dumps(status).encode()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with RawServer(script) as server:
        shown = await run("--url", server.url, cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "unknown" in shown.stdout


async def test_it_finds_the_proxy_by_the_configuration_without_reading_a_secret(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        (tmp_path / "config.toml").write_text(
            f'[server]\nhost = "0.0.0.0"\nport = {proxy.port}\n'
            '[projects.shop]\nclient_id = "a"\nclient_secret_command = ["no-such-program"]\n'
        )
        shown = await run("--json", cwd=tmp_path)
        assert json.loads(shown.stdout)["projects"]["shop"]["slots"]["limit"] == 10
        elsewhere = await run("--json", cwd=tmp_path, CSQ_PROXY_SERVER__PORT="1")
        assert (elsewhere.returncode, elsewhere.stdout) == (1, "")


async def test_a_caller_s_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    async with gateway(projects=PROJECTS, callers={"me": {"key": KEY}}) as proxy:
        url = ("--url", f"http://127.0.0.1:{proxy.port}")
        assert (await run(*url, "--key-file", "key", cwd=tmp_path)).returncode == 0
        assert (await run(*url, cwd=tmp_path, CSQ_PROXY_KEY=KEY)).returncode == 0
        refused = await run(*url, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "give --key-file, or set CSQ_PROXY_KEY" in refused.stderr


async def test_the_key_s_variable_is_no_unknown_setting() -> None:
    environ = {
        "CSQ_PROXY_KEY": KEY,
        "CONTENTSQUARE_CLIENT_ID": "a",
        "CONTENTSQUARE_CLIENT_SECRET": "secret-1",
    }
    assert list(configuration.load(None, None, environ, search=False).projects) == ["default"]


async def test_what_can_t_be_reached_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    shown = await run("--url", url, cwd=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (1, "", 1)
    assert shown.stderr == (
        f"csq-proxy: {url}: can't be reached (Connection refused): it isn't running, or it is stopping;"
        " to start it: csq-proxy serve\n"
    )


async def test_another_server_is_not_taken_for_the_proxy_nor_followed_elsewhere(tmp_path: Path) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xff",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    ]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(answers.pop(0))

    async with RawServer(script) as server:
        for said in (
            "a program other than csq-proxy",
            "a program other than csq-proxy",
            "answered 302; is it a csq-proxy?",
            "answered 404; is it a csq-proxy?",
            "answered 503\n",
        ):
            shown = await run("--url", server.url, cwd=tmp_path)
            assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
            assert said in shown.stderr


async def test_watching_goes_on_until_it_is_ended(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        words = ("status", "--watch", "--json", "--url", f"http://127.0.0.1:{proxy.port}")
        with commands.started(*words, environ=os.environ, cwd=tmp_path) as watching:
            await asyncio.to_thread(watching.wait_for, r"\n.*\n")
            uptimes = [json.loads(line)["uptime_s"] for line in watching.printed.splitlines()]
        assert uptimes[1] > uptimes[0]


async def test_watching_without_a_terminal_is_a_table_each_time(tmp_path: Path) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        words = ("status", "--watch", "--url", f"http://127.0.0.1:{proxy.port}")
        with commands.started(*words, environ=os.environ, cwd=tmp_path) as watching:
            await asyncio.to_thread(watching.wait_for, "(?s)csq-proxy .*csq-proxy ")


async def test_watching_on_a_terminal_that_moves_no_cursor_is_a_table_each_time(tmp_path: Path) -> None:
    environ = {**os.environ, "TERM": "dumb"}
    async with gateway(projects=PROJECTS) as proxy:
        words = (*PROGRAM, "status", "--watch", "--url", f"http://127.0.0.1:{proxy.port}")
        with in_terminal("", *words, environ=environ, cwd=tmp_path) as watching:
            await asyncio.to_thread(watching.wait_for, "(?s)csq-proxy .*csq-proxy ")


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe's end is told otherwise there")
@pytest.mark.parametrize("options", [["--json"], []])
async def test_watching_ends_when_nobody_reads_it_any_longer(options: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    async with gateway(projects=PROJECTS) as proxy:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy", "status", "--watch"),
            *options,
            *("--url", f"http://127.0.0.1:{proxy.port}"),
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
        )
        os.close(writer)
        os.close(reader)
        async with asyncio.timeout(WAIT_S):
            _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8277",
        "http://",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://a b",
        "http://127.0.0.1/a b",
        "http://me@127.0.0.1",
        "http://127.0.0.1:8277/?hour=1",
        "http://ex\u00e4mple..x",
    ],
)
async def test_a_bad_url_is_told_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^--url: "):
        find(None, url, None)


async def test_the_address_of_a_project_is_not_the_proxy_s() -> None:
    with pytest.raises(
        ConfigError, match=r"^--url: must be .* without a path.*, as http://127\.0\.0\.1:8277$"
    ):
        find(None, "http://127.0.0.1:8277/shop-fr", None)
    assert find(None, "http://127.0.0.1:8277/", None).url == "http://127.0.0.1:8277"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied"), "run this as the user that runs the proxy"),
        (socket.gaierror(-2, "Name or service not known"), "correct the name"),
        (ConnectionRefusedError(111, "Connection refused"), "it isn't running, or it is stopping"),
    ],
)
async def test_the_way_out_fits_the_reason(
    error: OSError, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(Unreachable, match=f"can't be reached \\({error.strerror}\\): {says}"):
        await asyncio.to_thread(RunningProxy("http://127.0.0.1:1", None, None).status)


async def test_a_key_file_without_a_key_is_told_at_once(tmp_path: Path) -> None:
    for content in (b"", b"one\ntwo", "cl\u00e9".encode(), b"\xff"):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(ConfigError, match=r"^--key-file: "):
            find(None, "http://127.0.0.1:8277", tmp_path / "key")
    with pytest.raises(ConfigError, match=r"^--key-file: "):
        find(None, "http://127.0.0.1:8277", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("", "http://127.0.0.1:8277"),
        ('host = "[::1]"', "http://[::1]:8277"),
        ('host = "::"', "http://[::1]:8277"),
        ('port = "9000"', "http://127.0.0.1:9000"),
        ('tls_cert = "~/cert.pem"', "https://127.0.0.1:8277"),
        ("unknown = 1\n[projects]\nshop = 5", "http://127.0.0.1:8277"),
    ],
)
async def test_where_it_listens_is_read_as_serve_reads_it(
    server: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = tmp_path / "config.toml"
    path.write_text(f"[server]\n{server}\n")
    found = find(path, None, None)
    assert found.url == url
    assert found.cert == (tmp_path / "cert.pem" if "cert" in server else None)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ('host = "a b"', "server.host: "),
        ('host = ["a"]', "server.host: must be text, in quotes"),
        ('port = "abc"', "server.port: must be a whole number"),
        ("port = 70000", "server.port: must be at most 65535"),
        ("tls_cert = 5", "server.tls_cert: must be a path, in quotes"),
        ("port = ", "not valid TOML"),
        (
            "port = 0",
            "server.port: 0 is any free port, so give the --url that csq-proxy printed at its start",
        ),
    ],
)
async def test_a_faulty_place_in_the_configuration_is_told(server: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[server]\n{server}\n")
    with pytest.raises(ConfigError) as fault:
        find(path, None, None)
    assert said in str(fault.value)


@pytest.mark.parametrize(
    ("configured", "url", "trusted"),
    [
        ('host = "127.0.0.1"', "https://127.0.0.1:{port}", True),
        ('host = "127.0.0.1"', "https://localhost:{port}/", True),
        ('host = "0.0.0.0"', "https://localhost:{port}", True),
        ("port = 0", "https://localhost:{port}", True),
        ("port = 1", "https://localhost:{port}", False),
        ('host = "10.0.0.1"', "https://localhost:{port}", False),
        ("port = 99999", "https://localhost:{port}", False),
    ],
)
async def test_the_configured_certificate_is_trusted_where_the_url_is_the_configured_listener(
    configured: str, url: str, trusted: bool, tmp_path: Path
) -> None:
    async with served_over_tls(tmp_path, "localhost", "127.0.0.1") as port:
        if "port" not in configured:
            configured += f"\nport = {port}"
        (tmp_path / "config.toml").write_text(f'[server]\n{configured}\ntls_cert = "cert.pem"\n')
        shown = await run("--url", url.format(port=port), cwd=tmp_path)
        if trusted:
            assert (shown.returncode, shown.stderr) == (0, "")
        else:
            assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
            assert "its certificate isn't trusted here (" in shown.stderr
            assert "give the --config" in shown.stderr


async def test_the_configured_certificate_is_trusted_at_a_project_s_own_port(tmp_path: Path) -> None:
    async with served_over_tls(tmp_path, "localhost", "127.0.0.1") as port:
        server = '[server]\nport = 1\ntls_cert = "cert.pem"\n'
        url = f"https://127.0.0.1:{port}"
        (tmp_path / "config.toml").write_text(f"{server}[projects.shop]\nport = {port}\n[projects.odd]\n")
        shown = await run("--url", url, cwd=tmp_path)
        assert (shown.returncode, shown.stderr) == (0, "")
        (tmp_path / "config.toml").write_text(server)
        shown = await run("--url", url, cwd=tmp_path, CSQ_PROXY_PROJECTS__SHOP__PORT=str(port))
        assert (shown.returncode, shown.stderr) == (0, "")


async def test_tls_that_was_not_expected_is_told(environ: dict[str, str], tmp_path: Path) -> None:
    tls = tls_files(tmp_path, trustme.CA().issue_cert("localhost"))
    server = {**tls, "unix_socket": str(tmp_path / "p.sock")}
    async with gateway(projects=PROJECTS, server={"port": 0, **server}) as proxy:
        shown = await run("--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path)
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
        assert "it speaks TLS; begin the --url with https://" in shown.stderr
        shown = await run("--url", "unix:p.sock", cwd=tmp_path)
        assert "it speaks TLS; give the --config with its server.tls_cert" in shown.stderr
        port = {"CSQ_PROXY_SERVER__PORT": str(proxy.port)}
        shown = await asyncio.to_thread(commands.run, "health", environ={**environ, **port}, cwd=tmp_path)
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
        assert "it speaks TLS, and server.tls_cert isn't set here" in shown.stderr
        (tmp_path / "config.toml").write_text(
            f'[server]\nunix_socket = "p.sock"\ntls_cert = "{tls["tls_cert"]}"\n'
        )
        shown = await run("--url", "unix:p.sock", cwd=tmp_path)
        assert (shown.returncode, shown.stderr) == (0, "")


async def test_a_certificate_for_another_name_is_told(tmp_path: Path) -> None:
    async with served_over_tls(tmp_path, "proxy.corp") as port:
        (tmp_path / "config.toml").write_text(f'[server]\nport = {port}\ntls_cert = "cert.pem"\n')
        shown = await run("--url", f"https://127.0.0.1:{port}", cwd=tmp_path)
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert "give a --url with a host name that its certificate names" in shown.stderr


@pytest.mark.parametrize("name", ["localhost", "proxy.corp"])
async def test_the_configured_listener_needs_the_configured_certificate_under_any_name(
    name: str, tmp_path: Path
) -> None:
    async with served_over_tls(tmp_path, name) as port:
        (tmp_path / "config.toml").write_text(f'[server]\nport = {port}\ntls_cert = "cert.pem"\n')
        shown = await run(cwd=tmp_path)
        assert (shown.returncode, shown.stderr) == (0, "")
        (tmp_path / "cert.pem").write_bytes(trustme.CA().issue_cert(name).cert_chain_pems[0].bytes())
        shown = await run(cwd=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (1, "", 1)
    assert "its certificate isn't trusted here (" in shown.stderr


async def test_a_certificate_of_the_same_issuer_is_not_the_configured_one(tmp_path: Path) -> None:
    """The file may hold the issuer's certificates, too; another server can have one of the same issuer."""
    issuer = trustme.CA()
    tls = tls_files(tmp_path, issuer.issue_cert("localhost"))
    async with gateway(projects=PROJECTS, server={"port": 0, **tls}) as proxy:
        mine = issuer.issue_cert("localhost").cert_chain_pems[0].bytes()
        (tmp_path / "mine.pem").write_bytes(mine + issuer.cert_pem.bytes())
        (tmp_path / "config.toml").write_text(f'[server]\nport = {proxy.port}\ntls_cert = "mine.pem"\n')
        shown = await run(cwd=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (1, "", 1)
    assert "its certificate isn't trusted here (" in shown.stderr


@openssl_verifies
@pytest.mark.parametrize("name", CASES)
async def test_the_verdict_on_our_own_certificate_is_the_same_on_every_python(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setenv("SSL_CERT_FILE", str(case.ca_file(tmp_path)))
    async with RawServer(Upstream(), tls=case.server_side(tmp_path)) as server:
        with pytest.raises(Unreachable) as caught:  # the server is no csq-proxy
            await asyncio.to_thread(RunningProxy(f"https://localhost:{server.port}", None, None).status)
    assert ("a program other than csq-proxy" in str(caught.value)) is (not case.fault)


async def test_a_configured_certificate_that_can_t_be_read_counts_for_nothing_beside_a_url(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[server]\nport = 9000\ntls_cert = "none.pem"\n')
    assert find(path, "https://127.0.0.1:9000", None).cert is None


@contextlib.asynccontextmanager
async def served_over_tls(folder: Path, *names: str) -> AsyncIterator[int]:
    """A proxy with a certificate for these names, ``cert.pem`` in the folder; gives its port."""
    issued = trustme.CA().issue_cert(*names)
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    # openssl x509 -text writes such lines above a certificate, in UTF-8.
    (folder / "cert.pem").write_bytes(
        "Subject: O=Soci\u00e9t\u00e9\n".encode() + issued.cert_chain_pems[0].bytes()
    )
    server = {"port": 0, "tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}
    async with gateway(projects=PROJECTS, server=server) as proxy:
        yield proxy.port


HOSTILE = "\x1b[2J\x9b\r\u202eb\nforged: line"


def spoilt(value: object) -> object:
    """The same JSON, with a hostile text behind each text and name of a project."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [*map(spoilt, value)]
    return {name: spoilt(one) for name, one in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("arguments", [(), ("--json",)])
async def test_what_the_running_proxy_says_moves_no_cursor_and_forges_no_line(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    async with gateway(projects=PROJECTS) as proxy:
        proxy.app._generation.projects["shop"].measures.count_error("PROXY_QUEUE_TIMEOUT", "busy")
        status = json.loads((await proxy.call(b"GET /-/status")).content)
    status = {
        **status,
        "projects": {f"{name}{HOSTILE}": spoilt(one) for name, one in status["projects"].items()},
    }
    status["version"] += HOSTILE
    body = json.dumps(status).encode()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with RawServer(script) as server:
        shown = await run("--url", server.url, *arguments, cwd=tmp_path)
    assert shown.stderr == ""
    assert "PROXY_QUEUE_TIMEOUT" in shown.stdout
    for line in shown.stdout.splitlines():
        assert line.isprintable(), line
        assert not line.startswith("forged"), line


@pytest.mark.parametrize("status", [{"projects": {}}, {"projects": {"shop": 1}}, {"projects": None}])
async def test_a_status_that_is_not_ours_is_one_line(status: object, tmp_path: Path) -> None:
    body = json.dumps(status).encode()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with RawServer(script) as server:
        shown = await run("--url", server.url, cwd=tmp_path)
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert "a program other than csq-proxy" in shown.stderr


async def test_what_speaks_no_http_and_what_no_tls_are_one_line(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)  # else its connection is reset
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")

    async with RawServer(greet) as server:
        shown = await run("--url", server.url, cwd=tmp_path)
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
        assert "a program other than csq-proxy" in shown.stderr
        shown = await run("--url", server.url.replace("http:", "https:"), cwd=tmp_path)
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
        assert "no TLS there" in shown.stderr
        (tmp_path / "config.toml").write_text(
            f'[server]\nport = {server.port}\ntls_cert = "no.pem"\ntls_key = "no.pem"\n'
        )
        shown = await run(cwd=tmp_path)
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
        assert "server.tls_cert: " in shown.stderr


async def test_equal_troubles_of_many_projects_are_told_once(tmp_path: Path) -> None:
    ends = str(utc_today() + dt.timedelta(days=20))
    many = {f"shop-{number:03}": {**project(number), "expires": ends} for number in range(1, 41)}
    async with gateway(token=TokenServer(status=401), projects=many) as proxy:
        keepers = [keeper for one in proxy.app.projects() for keeper in one.keepers.values()]
        await until(lambda: {one.status().state for one in keepers} == {"refused"})
        for number in range(1, 41):
            await proxy.call(b"GET /shop-%03d/v1/segments" % number)
        shown = await run("--url", f"http://127.0.0.1:{proxy.port}", cwd=tmp_path, COLUMNS="40")
    said = " ".join(shown.stdout.split())
    assert "shop, shop-001, shop-002 and 38 others failing: no token why: No token: " in said
    assert said.count("next:") == 1
    assert f"shop-001, shop-002, shop-003 and 37 others: credentials end on {ends}: renew them" in said
    assert said.count("PROXY_TOKEN_UNAVAILABLE") == 1
    assert "requests, errors, tokens: in 64 columns or more" in said
    assert sum("0/10" in line for line in shown.stdout.splitlines()) == 41
