"""Settings from flags, environment, secret files and TOML, and what is said of wrong ones."""

from __future__ import annotations

import datetime as dt
import os
import pickle
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import secrets
from proxy.config.files import SYSTEM_FILE, find_config_file
from proxy.config.load import load
from proxy.config.messages import dotted
from proxy.config.settings import (
    AccountSettings,
    CallerSettings,
    ContentsquareSettings,
    LogSettings,
    ProjectSettings,
    ServerSettings,
    Settings,
)
from proxy.contentsquare import Api
from proxy.errors import ConfigError
from proxy.secret import Secret

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
TOO = "client_secret is given too; keep only one of them"
BOTH = "set both or neither"
CANARY = "c4n4ry-of-a-secret"
SHOP = f'[projects.shop]\nclient_id = "id"\nclient_secret = "{CANARY}"\n'
ONE_PROJECT = {"projects": {"shop": {"client_id": "id", "client_secret": CANARY}}}
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")


class Writer:
    """Writes files that only their owner can read into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, text: str, name: str = "config.toml", mode: int = 0o600) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def faults_of(
    path: Path | None = None,
    environ: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ or {}, search=False)
    faults = list(caught.value.faults)
    text = "\n".join(faults)
    assert CANARY not in text
    assert not re.search(r"pydantic|https://errors|Traceback|input_value|type=|\(\)", text)
    return faults


# ---- where secrets come from


@pytest.mark.parametrize("name", ["$CREDENTIALS_DIRECTORY", "${CREDENTIALS_DIRECTORY}"])
def test_a_secret_file_can_be_a_credential_of_systemd(name: str, write: Writer, tmp_path: Path) -> None:
    write("of-systemd\n", "credentials/shop")
    path = write(f"[projects.shop]\nclient_id = 'id'\nclient_secret_file = '{name}/shop'\n")
    shop = load(path, environ={"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}).projects["shop"]
    assert shop.client_secret.get_secret_value() == "of-systemd"
    assert shop.client_secret_file == tmp_path / "credentials" / "shop"
    [fault] = faults_of(path)
    assert fault.startswith("projects.shop.client_secret_file: there is no file ")


@pytest.mark.parametrize("name", ["$CREDENTIALS_DIRECTORY", "${CREDENTIALS_DIRECTORY}"])
def test_without_the_variable_of_systemd_s_credentials_that_is_what_is_told(name: str, write: Writer) -> None:
    text = f"[projects.shop]\nclient_id = 'id'\nclient_secret_file = '{name}/shop'\n"
    files = f"[contentsquare]\nca_file = '{name}/ca.pem'\n"
    faults = faults_of(write(text + files))
    assert [fault.partition(":")[0] for fault in faults] == [
        "projects.shop.client_secret_file",
        "contentsquare.ca_file",
    ]
    for fault in faults:
        assert "the variable CREDENTIALS_DIRECTORY isn't set; systemd sets it" in fault


def test_secrets_of_the_environment_are_known_by_their_variables(write: Writer) -> None:
    sidecar = {"CONTENTSQUARE_CLIENT_ID": "id", "CONTENTSQUARE_CLIENT_SECRET": CANARY}
    assert load(environ=sidecar, search=False).secrets_of_environment == ("CONTENTSQUARE_CLIENT_SECRET",)
    path = write(f"{SHOP}\n[callers.bi]\nkey = 'of-the-file'\n")
    assert load(path, environ={}).secrets_of_environment == ()
    environ = {
        "CSQ_PROXY_CALLERS__BI__KEY": CANARY,
        "CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET": CANARY,
        "CSQ_PROXY_PROJECTS__SHOP__CLIENT_ID": "id",
    }
    assert load(path, environ=environ).secrets_of_environment == (
        "CSQ_PROXY_CALLERS__BI__KEY",
        "CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET",
    )
    flags = {"callers": {"bi": {"key": "of-a-flag"}}}
    assert load(path, flags, environ).secrets_of_environment == ("CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET",)


# ---- where values come from


def test_a_minimal_file_gets_every_default(write: Writer) -> None:
    settings = load(write(SHOP), environ={})
    assert (settings.server, settings.log) == (ServerSettings(), LogSettings())
    assert settings.contentsquare == ContentsquareSettings()
    assert settings.server.port == 8277
    assert settings.contentsquare.allowed_endpoints == ("*.contentsquare.com",)
    shop = settings.projects["shop"]
    assert shop.client_secret.get_secret_value() == CANARY
    assert (shop.apis, shop.port, shop.read_only, shop.standby) == (None, 0, False, None)
    assert settings.source == write.folder / "config.toml"


def test_flags_win_over_environment_over_file_over_default(write: Writer) -> None:
    path = write(f"[server]\nport = 1\ndrain_timeout = 11\nallow_quit = true\n{SHOP}")
    environ = {"CSQ_PROXY_SERVER__PORT": "2", "CSQ_PROXY_SERVER__DRAIN_TIMEOUT": "12"}
    server = load(path, {"server": {"port": 3, "host": None}}, environ).server
    assert (server.port, server.drain_timeout, server.allow_quit, server.host) == (3, 12.0, True, "127.0.0.1")


def test_a_table_may_come_from_several_places_at_once(write: Writer) -> None:
    path = write('[projects.shop]\nclient_id = "id"\n')
    settings = load(
        path, {"projects": {"shop": {"port": 9}}}, {"CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET": CANARY}
    )
    shop = settings.projects["shop"]
    assert (shop.client_id, shop.client_secret.get_secret_value(), shop.port) == ("id", CANARY, 9)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CLIENT_ID", "123", ("client_id", "123")),
        ("PROJECT_ID", "42", ("project_id", 42)),
        ("APIS", "metrics, data-export,metrics", ("apis", (Api.METRICS, Api.DATA_EXPORT))),
        ("APIS", '["surveys"]', ("apis", (Api.SURVEYS,))),
        ("DEFAULT", "true", ("default", True)),
        ("READ_ONLY", "1", ("read_only", True)),
        ("EXPIRES", "2027-01-31", ("expires", dt.date(2027, 1, 31))),
        ("PORT", "", ("port", 0)),
    ],
)
def test_a_project_s_keys_come_from_the_environment(
    variable: str, value: str, expected: tuple[str, object], write: Writer
) -> None:
    path = write(SHOP.replace("shop", "shop-fr"))
    settings = load(path, environ={f"CSQ_PROXY_PROJECTS__SHOP_FR__{variable}": value})
    key, wanted = expected
    assert getattr(settings.projects["shop-fr"], key) == wanted


def test_every_key_has_its_variable(write: Writer) -> None:
    write("secret", "s")
    write("-", "cert.pem")
    write("-", "key.pem")
    environ = {
        "SERVER__HOST": "::1",
        "SERVER__PORT": "0",
        "SERVER__ALLOWED_HOSTS": "[::1]:8277,csq-proxy:8277",
        "SERVER__TLS_CERT": str(write.folder / "cert.pem"),
        "SERVER__TLS_KEY": str(write.folder / "key.pem"),
        "SERVER__DRAIN_TIMEOUT": "1.5",
        "SERVER__ALLOW_QUIT": "yes",
        "LOG__LEVEL": "DEBUG",
        "LOG__FORMAT": "json",
        "CONTENTSQUARE__AUTH_URL": "http://127.0.0.1:8399/",
        "CONTENTSQUARE__ALLOWED_ENDPOINTS": "127.0.0.1:8399,*.contentsquare.com",
        "CONTENTSQUARE__CA_FILE": str(write.folder / "cert.pem"),
        "CONTENTSQUARE__CONNECT_TIMEOUT": "1",
        "CONTENTSQUARE__IDLE_TIMEOUT": "2",
        "CONTENTSQUARE__MAX_CONCURRENCY": "3",
        "CONTENTSQUARE__QUEUE_TIMEOUT": "4",
        "PROJECTS__SHOP__CLIENT_ID": "a",
        "PROJECTS__SHOP__CLIENT_SECRET": "b",
        "PROJECTS__SHOP__STANDBY__CLIENT_ID": "c",
        "PROJECTS__SHOP__STANDBY__CLIENT_SECRET_FILE": str(write.folder / "s"),
        "ACCOUNTS__ACME__CLIENT_ID": "d",
        "ACCOUNTS__ACME__CLIENT_SECRET_COMMAND": f'["{Path(sys.executable).as_posix()}", "-c", "print(1)"]',
        "ACCOUNTS__ACME__PROJECTS": "42,43",
        "CALLERS__POWER_BI__KEY": "k",
        "CALLERS__POWER_BI__PROJECTS": "shop,acme",
    }
    settings = load(environ={f"CSQ_PROXY_{name}": value for name, value in environ.items()}, search=False)
    assert settings.server.allowed_hosts == ("[::1]:8277", "csq-proxy:8277")
    assert settings.log == LogSettings(level="debug", format="json")
    assert settings.contentsquare.auth_url == "http://127.0.0.1:8399"
    standby = settings.projects["shop"].standby
    assert standby is not None
    assert standby.client_secret.get_secret_value() == "secret"
    assert settings.accounts["acme"].client_secret.get_secret_value() == "1"
    assert settings.accounts["acme"].projects == (42, 43)
    assert settings.callers["power-bi"].projects == ("shop", "acme")


def test_the_lone_sidecar_needs_no_file() -> None:
    environ = {
        "CONTENTSQUARE_CLIENT_ID": "id",
        "CONTENTSQUARE_CLIENT_SECRET": CANARY,
        "CONTENTSQUARE_PROJECT_ID": "42",
        "CONTENTSQUARE_INTEGRATION_ID": "7",
    }
    settings = load(environ=environ, search=False)
    project = settings.projects["default"]
    assert settings.default_project == "default"
    assert (project.client_id, project.project_id, project.integration_id) == ("id", 42, 7)


def test_the_lone_sidecar_s_secret_may_be_a_file(write: Writer) -> None:
    environ = {
        "CONTENTSQUARE_CLIENT_ID": "id",
        "CONTENTSQUARE_CLIENT_SECRET_FILE": str(write(f"{CANARY}\n", "s")),
    }
    settings = load(environ=environ, search=False)
    assert settings.projects["default"].client_secret.get_secret_value() == CANARY
    assert settings.files == (write.folder / "s",)


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        (
            {"CONTENTSQUARE_CLIENT_ID": "id"},
            f"CONTENTSQUARE_CLIENT_SECRET: missing, though CONTENTSQUARE_CLIENT_ID is set; {BOTH}",
        ),
        (
            {"CONTENTSQUARE_CLIENT_SECRET": CANARY, "CONTENTSQUARE_CLIENT_ID": ""},
            f"CONTENTSQUARE_CLIENT_ID: missing, though CONTENTSQUARE_CLIENT_SECRET is set; {BOTH}",
        ),
        (
            {
                "CONTENTSQUARE_CLIENT_ID": "id",
                "CONTENTSQUARE_CLIENT_SECRET": CANARY,
                "CONTENTSQUARE_PROJECT_ID": "x",
            },
            "projects.default.project_id (CONTENTSQUARE_PROJECT_ID): must be a whole number",
        ),
        (
            {
                "CONTENTSQUARE_CLIENT_ID": "id",
                "CONTENTSQUARE_CLIENT_SECRET": CANARY,
                "CONTENTSQUARE_CLIENT_SECRET_FILE": "x",
            },
            f"projects.default.client_secret_file (CONTENTSQUARE_CLIENT_SECRET_FILE): {TOO}",
        ),
    ],
)
def test_half_a_sidecar_is_refused(environ: dict[str, str], fault: str) -> None:
    assert faults_of(environ=environ) == [fault]


@pytest.mark.parametrize("place", ["file", "half a file", "environment", "overrides"])
def test_the_lone_sidecar_does_not_mix_with_a_project_of_its_name(place: str, write: Writer) -> None:
    environ = {
        "CONTENTSQUARE_CLIENT_ID": "id",
        "CONTENTSQUARE_CLIENT_SECRET_FILE": str(write(CANARY, "s")),
        "CONTENTSQUARE_INTEGRATION_ID": "7",
    }
    path = write(SHOP.replace("shop", "default")) if place == "file" else None
    if place == "half a file":
        path = write("[projects.default]\napis = ['enrichment']\n")
    if place == "environment":
        environ |= {"CSQ_PROXY_PROJECTS__DEFAULT__READ_ONLY": "true"}
    overrides = (
        {"projects": {"default": {"client_id": "a", "client_secret": "b"}}} if place == "overrides" else {}
    )
    (fault,) = faults_of(path, environ, overrides)
    assert fault.startswith("CONTENTSQUARE_CLIENT_ID: makes a project named default, but [projects.default]")


@pytest.mark.parametrize(
    ("variable", "fault"),
    [
        ("CSQ_PROXY_PORT", "unknown variable; did you mean CSQ_PROXY_SERVER__PORT?"),
        ("CSQ_PROXY_SERVER__PROT", "unknown variable; did you mean CSQ_PROXY_SERVER__PORT?"),
        ("CSQ_PROXY_SERVER_PORT", "unknown variable; did you mean CSQ_PROXY_SERVER__PORT?"),
        ("CSQ_PROXY_CONFG", "unknown variable; did you mean CSQ_PROXY_CONFIG?"),
        (
            "CSQ_PROXY_PROJECTS__SHOP_FR__CLIENTID",
            "unknown variable; did you mean CSQ_PROXY_PROJECTS__SHOP_FR__CLIENT_ID?",
        ),
        ("CSQ_PROXY_PROJECTS__SHOP", "unknown variable; did you mean CSQ_PROXY_PROJECTS__SHOP__PORT?"),
        ("CSQ_PROXY_", "unknown variable; did you mean CSQ_PROXY_CONFIG?"),
    ],
)
def test_an_unknown_variable_suggests_the_nearest(variable: str, fault: str) -> None:
    assert faults_of(environ={variable: CANARY}) == [f"{variable}: {fault}"]


def test_kubernetes_service_variables_are_not_ours(write: Writer) -> None:
    environ = {
        "CSQ_PROXY_SERVICE_HOST": "10.0.0.1",
        "CSQ_PROXY_SERVICE_PORT": "8277",
        "CSQ_PROXY_SERVICE_PORT_HTTP": "8277",
        "CSQ_PROXY_PORT": "tcp://10.0.0.1:8277",
        "CSQ_PROXY_PORT_8277_TCP": "tcp://10.0.0.1:8277",
        "CSQ_PROXY_PORT_8277_TCP_ADDR": "10.0.0.1",
        "CSQ_PROXY_EU_SERVICE_HOST": "10.0.0.2",
    }
    assert load(write(SHOP), environ=environ).server.port == 8277
    assert faults_of(environ={"CSQ_PROXY_SERVER__PORT": "tcp://10.0.0.1:8277"}) == [
        "server.port (CSQ_PROXY_SERVER__PORT): must be a whole number"
    ]


def test_a_wrong_value_from_the_environment_names_the_variable(write: Writer) -> None:
    path = write(f"[server]\nport = 1\n{SHOP}")
    environ = {"CSQ_PROXY_SERVER__PORT": "many", "CSQ_PROXY_PROJECTS__SHOP__APIS": "[metrics]"}
    assert faults_of(path, environ) == [
        "CSQ_PROXY_PROJECTS__SHOP__APIS: must be a JSON list, or values with commas between them",
        "server.port (CSQ_PROXY_SERVER__PORT): must be a whole number",
    ]


def test_the_process_environment_counts_only_when_none_is_given(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSQ_PROXY_SERVER__PORT", "1")
    monkeypatch.setenv("SERVER", "nonsense")  # pydantic-settings' own sources would read it
    path = write(SHOP)
    assert load(path).server.port == 1
    assert load(path, environ={}).server.port == 8277
    assert Settings().server.port == 8277


# ---- the file


def test_the_first_file_found_is_read(write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.config.files.SYSTEM_FILE", tmp_path / "etc.toml")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    home = {"HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    assert find_config_file(None, home) is None
    for name in ("etc.toml", "home/.config/csq-proxy/config.toml", "cwd/config.toml"):
        path = write(SHOP, name)
        assert find_config_file(None, home) == path
        assert load(environ=home).source == path
    assert find_config_file(None, home | {"CSQ_PROXY_CONFIG": "~/x.toml"}) == tmp_path / "home/x.toml"
    assert find_config_file(Path("y.toml"), home | {"CSQ_PROXY_CONFIG": "x"}) == tmp_path / "cwd/y.toml"
    assert load(None, ONE_PROJECT, home, search=False).source is None


def test_a_named_file_has_to_exist(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"
    for path, environ in ((missing, {}), (None, {"CSQ_PROXY_CONFIG": str(missing)})):
        with pytest.raises(ConfigError) as caught:
            load(path, environ=environ)
        assert caught.value.faults == (f"{missing}: there is no such file",)


def test_every_item_of_a_list_that_is_wrong_is_told_at_once(write: Writer) -> None:
    faults = faults_of(write(f'{SHOP}[server]\nallowed_hosts = ["a b", "good", "http://x", 5]\n'))
    assert [fault.partition(":")[0] for fault in faults] == [
        "server.allowed_hosts[0]",
        "server.allowed_hosts[2]",
        "server.allowed_hosts[3]",
    ]


@pytest.mark.parametrize("text", ["[server]\nport = " + "9" * 5000, "port = " + "[" * 100_000])
def test_what_no_parser_takes_is_one_line_too(text: str, write: Writer) -> None:
    path = write(text)
    (fault,) = faults_of(path)
    assert fault.startswith(f"{path}: not usable TOML")
    (fault,) = faults_of(write(SHOP), {"CSQ_PROXY_SERVER__ALLOWED_HOSTS": "[" * 100_000})
    assert fault.startswith("CSQ_PROXY_SERVER__ALLOWED_HOSTS: must be a JSON list")


@posix_only
def test_a_working_folder_that_was_removed_does_no_harm(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(SHOP)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert list(load(path, environ={}).projects) == ["shop"]
    assert list(load(environ={"HOME": str(tmp_path), "CSQ_PROXY_CONFIG": "~/config.toml"}).projects) == [
        "shop"
    ]
    assert find_config_file(None, {"HOME": str(tmp_path)}) in (None, SYSTEM_FILE)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("[server]\nport = = 1\n", "2:8", ""),
        ("[server\n", "1:8", ""),
        (f'[projects.shop]\nclient_secret = "{CANARY}', "2:36", ""),
        ('[server]\ntls_key = "C:\\users\\key.pem"\n', "2:", "write / for \\"),
    ],
)
def test_a_syntax_error_names_its_line_and_column(text: str, place: str, hint: str, write: Writer) -> None:
    path = write(text)
    (fault,) = faults_of(path)
    assert fault.startswith(f"{path}:{place}")
    assert "not valid TOML" in fault
    assert hint in fault


def test_a_file_that_is_not_text_is_refused(write: Writer) -> None:
    path = write("")
    path.write_bytes(b"\xff\xfe\x00")
    assert faults_of(path) == [f"{path}: isn't UTF-8 text; save it as UTF-8"]
    path.write_bytes(b"\xef\xbb\xbf" + SHOP.encode())
    assert load(path, environ={}).default_project == "shop"
    assert len(faults_of(write.folder)) == 1


def test_no_project_says_how_to_start(write: Writer) -> None:
    (fault,) = faults_of(write("[server]\nport = 1\n"))
    assert "csq-proxy init" in fault
    assert "--sandbox" in fault


def test_paths_in_the_file_are_relative_to_its_folder(write: Writer, tmp_path: Path) -> None:
    write("-", "a/ca.pem")
    path = write(f'[contentsquare]\nca_file = "ca.pem"\n[server]\nunix_socket = ""\n{SHOP}', "a/config.toml")
    settings = load(path, environ={})
    assert settings.contentsquare.ca_file == tmp_path / "a/ca.pem"
    assert settings.server.unix_socket is None
    home = {"HOME": str(tmp_path / "a"), "USERPROFILE": str(tmp_path / "a")}
    environ = {**home, "CSQ_PROXY_CONTENTSQUARE__CA_FILE": "~/ca.pem"}
    assert load(path, environ=environ).contentsquare.ca_file == tmp_path / "a/ca.pem"


# ---- faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[projects.shop]\nclientid = 1", "projects.shop.clientid: unknown key; did you mean client_id?"),
        ("[server]\nlevel = 1", "server.level: unknown key; it belongs to [log]"),
        (
            "[server]\nmax_concurency = 1",
            "server.max_concurency: unknown key; did you mean max_concurrency, in [contentsquare]?",
        ),
        ("port = 1", "port: unknown key; it belongs to [server]"),
        ("[sever]", "sever: unknown key; did you mean server?"),
        (
            "[accounts.acme]\ndefault = true",
            "accounts.acme.default: unknown key; it belongs to [projects.NAME]",
        ),
        ("[log]\nzzz = 1", "log.zzz: unknown key; known here: level, format"),
        ("source = 'x'", "source: unknown key"),
        ('[server]\n"po\\nrt" = 1', 'server."po\\nrt": unknown key; did you mean port?'),
        ("[server]\nport = 65536", "server.port: must be at most 65535"),
        ("[server]\nport = -1", "server.port: must be at least 0"),
        ("[server]\nport = true", "server.port: must be a number, not true or false"),
        ("[server]\nport = 80.5", "server.port: must be a whole number"),
        ("[server]\nhost = 'localhost:80'", "server.host: must be a name or an address without a port"),
        ("[server]\nhost = ''", "server.host: must be a name or an address"),
        ("[server]\nallowed_hosts = 'a'", "server.allowed_hosts: must be a list, in square brackets"),
        (
            "[server]\nallowed_hosts = ['a', 'http://b']",
            'server.allowed_hosts[1]: must be "host" or "host:port"',
        ),
        ("[server]\nallow_quit = 'maybe'", "server.allow_quit: must be true or false"),
        ("[server]\ndrain_timeout = 0", "server.drain_timeout: must be more than 0"),
        ("[server]\ndrain_timeout = inf", "server.drain_timeout: must be"),
        ("[server]\ndrain_timeout = 'soon'", "server.drain_timeout: must be a number of seconds"),
        ("[server]\ntls_cert = 'config.toml'", "server.tls_key: missing; server.tls_cert needs it"),
        ("[server]\ntls_key = 'config.toml'", "server.tls_cert: missing; server.tls_key needs it"),
        ("[server]\ntls_key = 3", "server.tls_key: must be a path, in quotes"),
        ("[log]\nlevel = 'inf'", "log.level: must be debug, info, warning or error; did you mean info?"),
        ("[log]\nformat = 'xml'", "log.format: must be auto, text or json"),
        ("log = 3", "log: must be a table, such as [server] or [projects.NAME]"),
        ("projects = 3", "projects: must be a table"),
        ("[contentsquare]\nca_file = 'no.pem'", "contentsquare.ca_file: there is no file"),
        (
            "[contentsquare]\nauth_url = 'http://api.contentsquare.com'",
            "contentsquare.auth_url: must start with https://",
        ),
        (
            f"[contentsquare]\nauth_url = 'https://{64 * 'a'}.example'",
            "contentsquare.auth_url: must name a host: at most 63 characters between two dots",
        ),
        ("[contentsquare]\nauth_url = 'https://a.example/v1'", "contentsquare.auth_url: must be a base URL"),
        ("[contentsquare]\nallowed_endpoints = []", "contentsquare.allowed_endpoints: must not be empty"),
        *(
            (
                f"[contentsquare]\nallowed_endpoints = ['{pattern}']",
                'contentsquare.allowed_endpoints[0]: must be "host", "host:port" or "*.domain"',
            )
            for pattern in (
                "*",
                "*.com",
                "a.*.com",
                "https://a.example",
                "a.example/",
                "a:x",
                "*.a.example:1",
                "",
            )
        ),
        ("[contentsquare]\nmax_concurrency = 0", "contentsquare.max_concurrency: must be at least 1"),
        ("[contentsquare]\nmax_concurrency = 1001", "contentsquare.max_concurrency: must be at most 1000"),
        ("[contentsquare]\nidle_timeout = -1", "contentsquare.idle_timeout: must be more than 0"),
    ],
)
def test_a_wrong_key_gets_one_line_that_names_it(text: str, fault: str, write: Writer) -> None:
    found = faults_of(write(f"{text}\n{SHOP}" if "projects" not in text and "accounts" not in text else text))
    assert [line for line in found if line.startswith(fault)], found
    if "projects" not in text and "accounts" not in text:
        assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("client_secret = ''", "client_secret: must not be empty"),
        ("client_secret = 12345678", "client_secret: must be text, in quotes"),
        ("client_secret = '...'", "client_secret: still the example's dots; put the real value there"),
        ("", "client_secret: missing; give client_secret, client_secret_file or client_secret_command"),
        ("client_secret_file = 3", "client_secret_file: must be a path"),
        (
            "client_secret_command = 'op read x'",
            "client_secret_command: must be a program and its arguments",
        ),
        ("client_secret_command = [1]", "client_secret_command: must be a program"),
        ("client_secret_command = []", "client_secret_command: must be a program and its arguments"),
        ("client_secret_file = 'no'", "client_secret_file: there is no file"),
        ("client_secret_file = 'empty'", "client_secret_file: {folder}empty is empty"),
        ("client_secret_file = 'lines'", "client_secret_file: {folder}lines holds more than one line"),
        ("client_secret_file = 'binary'", "client_secret_file: {folder}binary isn't UTF-8 text"),
        ("client_secret_file = 'long'", "client_secret_file: {folder}long is too long for a secret"),
        ("client_secret_file = '.'", "client_secret_file: "),
        (
            f"client_secret = '{CANARY}'\nclient_secret_file = 'x'",
            "client_secret_file: client_secret is given too; keep only one of them",
        ),
        (
            "client_secret_file = 'x'\nclient_secret_command = ['x']",
            "client_secret_command: client_secret_file is given too; keep only one of them",
        ),
    ],
)
def test_a_secret_that_can_not_be_had_is_one_fault(text: str, fault: str, write: Writer) -> None:
    write("\n", "empty")
    write(f"{CANARY}\n{CANARY}\n", "lines")
    write("x" * 70_000, "long")
    write("", "binary").write_bytes(b"\xff" + CANARY.encode())
    (found,) = faults_of(write(f'[projects.shop]\nclient_id = "id"\n{text}\n'))
    assert found.startswith("projects.shop." + fault.format(folder=f"{write.folder}{os.sep}"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[projects.a]\nclient_id = 3\nclient_secret = 'x'", ".client_id: must be text, in quotes"),
        ("[projects.a]\nclient_secret = 'x'", ".client_id: missing; it comes with the credentials"),
        (
            "{a}apis = ['metrics', 'metric']",
            ".apis[1]: must be data-export, metrics, enrichment, speed-analysis or surveys; did you mean",
        ),
        ("{a}apis = ['enrichment']", ".apis: enrichment needs integration_id beside it"),
        ("{a}apis = ['enrichment']\nintegration_id = 'x'", ".integration_id: must be a whole number"),
        ("{a}project_id = 0", ".project_id: must be at least 1"),
        ("{a}expires = 'soon'", ".expires: must be a date, such as 2027-01-31"),
        ("{a}expires = 2027", ".expires: must be a date, such as 2027-01-31"),
        ("{a}cache = '1.5s'", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = '-1'", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = '25h'", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = '1d'", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = 's'", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = 86401", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = 0.5", ".cache: must be a duration of at most 24h: "),
        ("{a}cache = true", ".cache: must be a duration of at most 24h: "),
        ("{a}coalesce = 3", ".coalesce: must be true or false"),
        ("{a}port = 8277", ".port: 8277 is server.port already; each listener needs its own"),
        ("{a}port = 8277\n[server]\nport = 'x'", None),
        (
            "{a}standby = {client_id = 'id-a', client_secret = 'secret-a'}",
            ".standby: the same pair as the first",
        ),
        ("{a}standby = {client_id = 'id-a'}", ".standby.client_secret: missing"),
        ("{a}standby = 'x'", ".standby: must be a table"),
        (
            "{a}standby = {client_id = 'x', client_secret_file = 'no'}",
            ".standby.client_secret_file: there is no file",
        ),
    ],
)
def test_a_project_s_fault_is_one_line(text: str, fault: str | None, write: Writer) -> None:
    a = "[projects.a]\nclient_id = 'id-a'\nclient_secret = 'secret-a'\n"
    (found,) = faults_of(write(text.replace("{a}", a)))
    if fault is None:
        assert found == "server.port: must be a whole number"
    else:
        assert found.startswith(f"projects.a{fault}")
        assert "secret-a" not in found


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("''", 0),
        ("'0s'", 0),
        ("0", 0),
        ("90", 90),
        ("'90'", 90),
        ("'60s'", 60),
        ("' 5m '", 300),
        ("'24h'", 86_400),
        ("'2 h'", 7200),
    ],
)
def test_a_duration_is_a_whole_number_with_a_unit_or_without(
    written: str, seconds: int, write: Writer
) -> None:
    settings = load(write(project("a", f"cache = {written}") + project("b", "", "accounts")), environ={})
    assert settings.projects["a"].cache == seconds
    assert settings.accounts["b"].cache == 0
    environ = {"CSQ_PROXY_PROJECTS__A__CACHE": written.strip("'"), "CSQ_PROXY_PROJECTS__A__COALESCE": "true"}
    settings = load(write(project("a")), environ=environ)
    assert (settings.projects["a"].cache, settings.projects["a"].coalesce) == (seconds, True)


def project(name: str, more: str = "", section: str = "projects") -> str:
    return f"[{section}.{name}]\nclient_id = 'id'\nclient_secret = '{CANARY}'\n{more}\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (project("a") + project("a", section="accounts"), "accounts.a: a project has this name already"),
        (project("v1"), 'projects.v1: "v1" begins Contentsquare\'s own paths; choose another name'),
        (project("v1", section="accounts"), 'accounts.v1: "v1" begins'),
        (
            project('"Shop FR"'),
            'projects."Shop FR": a name is 1 to 64 of a-z, 0-9 and -, not - first; did you mean shop-fr?',
        ),
        (project("-a"), "projects.-a: a name is 1 to 64 of"),
        (project("a" * 65), f"projects.{'a' * 65}: a name is"),
        (project('"é\\u001b"'), 'projects."\\xe9\\x1b": a name is'),
        (
            project("a", "default = true") + project("b", "default = true"),
            "projects.b.default: projects.a is the default already; only one can be",
        ),
        (
            project("a", "port = 9") + project("b", "port = 9"),
            "projects.b.port: 9 is projects.a.port already",
        ),
        (project("acme", "projects = []", "accounts"), "accounts.acme.projects: must name at least one"),
        (
            project("acme", "projects = ['x']", "accounts"),
            "accounts.acme.projects[0]: must be a whole number",
        ),
        (
            project("acme", "apis = ['enrichment']", "accounts"),
            "accounts.acme.apis: enrichment needs an integration_id",
        ),
        (
            project("shop-fr") + "[callers.x]\nkey = 'k'\nprojects = ['shop-rf']",
            "callers.x.projects[0]: no project or account is named shop-rf; did you mean shop-fr?",
        ),
        (
            project("shop") + f"[callers.x]\nkey = 'k'\nprojects = ['{CANARY.upper()}']",
            "callers.x.projects[0]: no project or account is named so; known: shop",
        ),
        (project("a") + "[callers.x]\nread_only = true", "callers.x.key: missing; give key or key_file"),
        (project("a") + "[callers.x]\nkey = 'a b'", "callers.x.key: must be printable ASCII without spaces"),
        (project("a") + "[callers.x]\nkey = '...'", "callers.x.key: still the example's dots"),
        (project("a") + "[callers.x]\nkey = 'k'\nkey_file = 'f'", "callers.x.key_file: key is given too"),
        (
            project("a") + "[callers.x]\nkey = 'k'\n[callers.y]\nkey = 'k'",
            "callers.y.key: the same key as callers.x; give each caller its own",
        ),
    ],
)
def test_what_tables_must_agree_on_is_one_line(text: str, fault: str, write: Writer) -> None:
    (found,) = faults_of(write(text))
    assert found.startswith(fault)


def test_all_faults_are_reported_at_once(write: Writer) -> None:
    path = write(
        f"""
        [server]
        port = true
        [projects.shop]
        clientid = "{CANARY}"
        client_secret = "{CANARY}"
        apis = ["enrichment"]
        [projects.other]
        client_id = "x"
        client_secret_file = "missing"
        default = "perhaps"
        [callers.x]
        projects = ["shpo"]
        """
    )
    keys = [fault.partition(":")[0] for fault in faults_of(path, {"CSQ_PROXY_LOG__LEVL": "info"})]
    assert keys == [
        "CSQ_PROXY_LOG__LEVL",
        "projects.other.client_secret_file",
        "server.port",
        "projects.shop.client_id",
        "projects.shop.clientid",
        "projects.other.default",
        "callers.x.key",
        "projects.shop.apis",
        "callers.x.projects[0]",
    ]


def test_a_unix_socket_needs_a_folder_and_a_short_path(write: Writer) -> None:
    for socket, words in (("no/s", "there is no folder"), ("x" * 120, "at most")):
        (fault,) = faults_of(write(f"[server]\nunix_socket = '{socket}'\n{SHOP}"))
        assert fault.startswith("server.unix_socket: ")
        assert words in fault or "Windows" in fault


toml_values = st.recursive(
    st.booleans() | st.integers(-3, 99_999) | st.text(max_size=8) | st.just("metrics") | st.just("127.0.0.1"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
# No client_secret_command: what hypothesis thinks of must not be run.
known_words = st.text(max_size=6) | st.sampled_from(
    """server port tls_cert log level projects accounts callers shop client_id client_secret
    client_secret_file standby key key_file apis default expires project_id""".split()  # noqa: SIM905 - one word each
)
tables = st.recursive(
    st.dictionaries(known_words, toml_values, max_size=4),
    lambda inner: st.dictionaries(known_words, inner, max_size=4),
    max_leaves=6,
)


@given(tables)
def test_anything_at_all_gives_settings_or_faults_of_one_line_each(values: dict[str, Any]) -> None:
    try:
        faults: tuple[str, ...] = () if load(None, values, {}, search=False).projects else ("an account: ",)
    except ConfigError as error:
        faults = error.faults or ("",)
    for fault in faults:
        assert ": " in fault
        assert len(fault.splitlines()) == 1


# ---- secrets


def test_a_secret_file_loses_one_final_line_break(write: Writer) -> None:
    for content, expected in (
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"\xef\xbb\xbf s3 \r\n", " s3 "),
    ):
        write("", "s").write_bytes(content)
        path = write(
            '[projects.shop]\nclient_id = "id"\nclient_secret_file = "s"\n[callers.x]\nkey_file = "k"\n'
        )
        write("key", "k")
        settings = load(path, environ={})
        assert settings.projects["shop"].client_secret.get_secret_value() == expected
        assert settings.callers["x"].key.get_secret_value() == "key"
        assert settings.files == (path, write.folder / "s", write.folder / "k")


def test_a_more_specific_secret_replaces_the_others_way_of_giving_it(write: Writer) -> None:
    path = write('[projects.shop]\nclient_id = "id"\nclient_secret_file = "not there"\n')
    settings = load(path, environ={"CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET": "from environment"})
    assert settings.projects["shop"].client_secret.get_secret_value() == "from environment"
    assert settings.projects["shop"].client_secret_file is None
    environ = {"CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET_FILE": str(write("from file", "s"))}
    assert load(write(SHOP), environ=environ).projects["shop"].client_secret.get_secret_value() == "from file"


def command(*arguments: str) -> str:
    program = Path(sys.executable).as_posix()
    listed = ", ".join(f"'''{argument}'''" for argument in (program, *arguments))
    return f'[projects.shop]\nclient_id = "id"\nclient_secret_command = [{listed}]\n'


def test_a_command_is_run_without_a_shell_in_the_file_s_folder(write: Writer) -> None:
    write("-", "marker")
    path = write(
        command("-c", "import os, sys; print(sys.argv[1] + str(os.path.exists('marker')))", "$HOME;")
    )
    settings = load(path, environ={})
    assert settings.projects["shop"].client_secret.get_secret_value() == "$HOME;True"
    assert "marker" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (command("-c", f"print('{CANARY}'); raise SystemExit(3)"), "ended with exit code 3; run it by hand"),
        (command("-c", f"import sys; sys.exit('{CANARY}')"), "ended with exit code 1"),
        (command("-c", ""), "prints is empty"),
        (command("-c", f"print('{CANARY}\\n2')"), "prints holds more than one line"),
        (command("-c", "import time; time.sleep(9)"), "took longer than 0.05 s"),
        (command("-c", "import os, time; os.close(1); time.sleep(9)"), "took longer than 0.05 s"),
        (command("-c", "while True: print('c' * 9999)"), "prints is too long for a secret"),
        (
            "[projects.shop]\nclient_id = 'id'\nclient_secret_command = ['no-such-program-here', 'x']",
            "there is no program no-such-program-here; give its full path",
        ),
    ],
)
def test_a_command_that_fails_is_a_fault_without_its_output(
    text: str, words: str, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "longer" in words:
        monkeypatch.setattr(secrets, "COMMAND_TIMEOUT_S", 0.05)
    (fault,) = faults_of(write(text))
    assert fault.startswith("projects.shop.client_secret_command: ")
    assert words in fault


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o666])
def test_a_file_that_others_can_read_must_not_hold_a_secret(mode: int, write: Writer) -> None:
    path = write(SHOP, mode=mode)
    (fault,) = faults_of(path)
    assert f"(mode {mode:04o}); run: chmod 600 {path}" in fault
    standby = "standby = {client_id = 'b', client_secret = 'c'}"
    held = write(f"[projects.shop]\nclient_id = 'a'\nclient_secret_file = 's'\n{standby}", mode=mode)
    write("x", "s")
    assert "holds a secret" in faults_of(held)[0]


@posix_only
def test_a_secret_file_that_others_can_read_is_refused(write: Writer) -> None:
    path = write('[projects.shop]\nclient_id = "id"\nclient_secret_file = "s s"\n', mode=0o644)
    write(CANARY, "s s", mode=0o640)
    (fault,) = faults_of(path)
    assert fault.startswith("projects.shop.client_secret_file: others can read or change ")
    assert fault.endswith(f"run: chmod 600 '{write.folder}/s s'")
    write(CANARY, "s s", mode=0o400)
    assert load(path, environ={}).default_project == "shop"


@posix_only
def test_a_listener_s_private_key_that_others_can_read_is_refused(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("certificate", "cert.pem", mode=0o644)
    key = write("key", "key.pem", mode=0o640)
    path = write('[server]\ntls_cert = "cert.pem"\ntls_key = "key.pem"\n' + SHOP)
    assert faults_of(path) == [
        f"server.tls_key: others can read or change {key} (mode 0640); run: chmod 600 {key}"
    ]
    key.chmod(0o400)
    assert load(path, environ={}).server.tls_key == key
    key.chmod(0o644)
    monkeypatch.setattr(secrets, "_is_in_memory", lambda *_: True)
    assert load(path, environ={}).server.tls_key == key


@posix_only
def test_memory_file_systems_are_exempt_from_modes(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(SHOP, mode=0o644)
    device = path.stat().st_dev
    line = f"36 1 {os.major(device)}:{os.minor(device)} / {write.folder.resolve()} ro - tmpfs tmpfs ro\n"
    monkeypatch.setattr(secrets, "_MOUNTINFO", write(line, "mountinfo"))
    assert load(path, environ={}).default_project == "shop"
    monkeypatch.setattr(secrets, "_MOUNTINFO", write.folder / "not there")
    assert len(faults_of(path)) == 1


@pytest.mark.parametrize(
    ("path", "device", "exempt"),
    [
        ("/etc/secrets/client", "0:50", True),
        ("/etc/secrets/with space/client", "0:51", True),
        ("/run/credentials/csq-proxy.service/secret", "0:60", True),
        ("/etc/secrets/client", "8:1", False),
        ("/etc/csq-proxy/config.toml", "8:1", False),
        ("/tmp/config.toml", "0:70", False),
        ("/home/me/config.toml", "0:99", False),
        ("/run/secrets/bound/client", "0:50", True),
        ("/etc/secretsandmore", "0:50", False),
    ],
)
def test_the_innermost_mount_decides_whether_a_file_is_in_memory(
    path: str, device: str, *, exempt: bool
) -> None:
    mounts = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
50 22 0:50 / /etc/secrets ro,relatime shared:2 master:1 - tmpfs tmpfs ro
51 22 0:51 / /etc/secrets/with\\040space ro - tmpfs tmpfs ro
60 22 0:60 / /run/credentials/csq-proxy.service ro - ramfs none ro
70 22 0:70 / /tmp rw shared:3 - tmpfs tmpfs rw
80 22 0:50 /sub /run/secrets/bound rw - tmpfs tmpfs rw
"""
    if sys.platform != "win32":
        assert secrets.is_memory_mount(mounts, device, Path(path)) is exempt


def test_no_repr_shows_a_secret(write: Writer) -> None:
    write(CANARY, "s")
    settings = load(
        write(
            SHOP
            + f"standby = {{client_id = 'b', client_secret = '{CANARY}2'}}\n"
            + "[accounts.acme]\nclient_id = 'id'\nclient_secret_file = 's'\n"
            + f"[callers.x]\nkey = '{CANARY}'\n"
        ),
        environ={},
    )
    tables = [*settings.projects.values(), *settings.accounts.values(), *settings.callers.values()]
    for shown in (settings, *tables, settings.projects):
        assert CANARY not in f"{shown!r} {shown!s}"
    with pytest.raises(TypeError):
        pickle.dumps(settings.projects["shop"])


# ---- what others rely on


def test_settings_are_frozen(write: Writer) -> None:
    settings: Any = load(write(SHOP), environ={})
    for change in (
        lambda: setattr(settings, "server", None),
        lambda: setattr(settings.server, "port", 1),
        lambda: setattr(settings.projects["shop"], "port", 1),
        lambda: settings.projects.update(x=1),
    ):
        with pytest.raises((ValueError, AttributeError)):
            change()


def test_an_unchanged_file_loads_to_equal_settings(write: Writer) -> None:
    path = write(SHOP)
    assert load(path, environ={}) == load(path, environ={})
    assert load(path, environ={}) != load(path, {"server": {"port": 1}}, environ={})


@pytest.mark.parametrize(
    ("projects", "default"),
    [
        ({"a": {}}, "a"),
        ({"a": {"default": False}}, None),
        ({"a": {}, "b": {}}, None),
        ({"a": {}, "b": {"default": True}}, "b"),
    ],
)
def test_the_default_project_is_the_marked_or_the_lone_one(
    projects: dict[str, dict[str, Any]], default: str | None
) -> None:
    overrides = {
        "projects": {
            name: {"client_id": "a", "client_secret": "b", **more} for name, more in projects.items()
        }
    }
    assert load(None, overrides, {}, search=False).default_project == default


def test_settings_can_be_built_directly() -> None:
    settings = Settings(projects={"a": ProjectSettings(client_id="a", client_secret=Secret("b"))})
    assert settings.default_project == "a"
    assert settings.files == ()
    assert Settings().default_project is None


@pytest.mark.parametrize(
    ("path", "written"),
    [(("a", "b-c"), "a.b-c"), (("a", 0), "a[0]"), (("a", "b c"), 'a."b c"'), (("",), '""')],
)
def test_keys_are_written_as_in_toml(path: tuple[str | int, ...], written: str) -> None:
    assert dotted(path) == written


# ---- the example


def test_the_example_loads_as_it_is() -> None:
    settings = load(EXAMPLE, ONE_PROJECT, {})
    assert settings.server == ServerSettings()
    assert settings.log == LogSettings()
    assert settings.contentsquare == ContentsquareSettings()


def uncommented() -> str:
    return re.sub(r"^#(?=[a-z\[])", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_example_loads_with_everything_uncommented(write: Writer) -> None:
    text = uncommented()
    for number in range(text.count('"..."')):
        text = text.replace('"..."', f'"real-{number}"', 1)
    program = Path(sys.executable).as_posix()
    text = re.sub(
        r"^(client_secret_command = ).*", rf'\1["{program}", "-c", "print(1)"]', text, flags=re.MULTILINE
    )
    for name in ("cert.pem", "key.pem", "company-ca.pem", "shop-us.secret", "powerbi.key"):
        write("content", name)
    if sys.platform == "win32":
        text = text.replace("unix_socket =", "#unix_socket =")
    else:
        text = re.sub(r'^unix_socket = ".*"', 'unix_socket = "/csq-proxy.sock"', text, flags=re.MULTILINE)
    settings = load(write(text), environ={})
    assert settings.default_project == "shop-fr"
    assert set(settings.projects) == {"shop-fr", "shop-us"}
    assert settings.contentsquare.model_copy(update={"ca_file": None}) == ContentsquareSettings()
    assert settings.log == LogSettings()


def test_the_example_untouched_but_uncommented_asks_for_the_real_values(write: Writer) -> None:
    assert "projects.shop-fr.client_id: still the example's dots; put the real value there" in faults_of(
        write(uncommented())
    )


def test_the_example_names_every_setting() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    example = tomllib.loads(uncommented())
    for section in ("server", "log", "contentsquare"):
        assert set(example[section]) == {*type(getattr(Settings(), section)).model_fields}
    for model in (ProjectSettings, AccountSettings, CallerSettings):
        for key in model.model_fields:
            assert re.search(rf"^#{key} = ", text, flags=re.MULTILINE), key
    for table in ("shop-fr", "shop-us"):
        assert table in example["projects"]
