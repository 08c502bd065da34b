"""The types of the settings: defaults, bounds, and that they are frozen."""

from __future__ import annotations

from typing import Any

import pytest
from support.configurations import CANARY, SHOP, Writer, faults_of, project

from proxy.config.load import load
from proxy.config.settings import (
    ContentsquareSettings,
    LogSettings,
    ProjectSettings,
    ServerSettings,
    Settings,
)
from proxy.secret import Secret


def test_a_minimal_file_gets_every_default(write: Writer) -> None:
    settings = load(write(SHOP), environ={})
    assert (settings.server, settings.log) == (ServerSettings(), LogSettings())
    assert settings.contentsquare == ContentsquareSettings()
    assert settings.server.port == 8277
    assert settings.contentsquare.allowed_endpoints == ("*.contentsquare.com",)
    assert settings.contentsquare.allowed_downloads == (
        "*.amazonaws.com",
        "*.blob.core.windows.net",
        "*.storage.googleapis.com",
        "*.contentsquare.com",
    )
    assert settings.contentsquare.export_spool == 256 << 20
    shop = settings.projects["shop"]
    assert shop.client_secret.get_secret_value() == CANARY
    assert (shop.apis, shop.port, shop.read_only, shop.standby) == (None, 0, False, None)
    assert settings.source == write.folder / "config.toml"


def test_every_item_of_a_list_that_is_wrong_is_told_at_once(write: Writer) -> None:
    faults = faults_of(write(f'{SHOP}[server]\nallowed_hosts = ["a b", "good", "http://x", 5]\n'))
    assert [fault.partition(":")[0] for fault in faults] == [
        "server.allowed_hosts[0]",
        "server.allowed_hosts[2]",
        "server.allowed_hosts[3]",
    ]


@pytest.mark.parametrize(
    ("given", "value", "hosts"),
    [
        ("", "", ()),
        ("https://CSQ.corp/", "https://csq.corp", ("csq.corp", "csq.corp:443")),
        ("https://csq.corp:443", "https://csq.corp", ("csq.corp", "csq.corp:443")),
        ("http://[fd00::1]:8080", "http://[fd00::1]:8080", ("[fd00::1]:8080",)),
    ],
)
def test_the_public_url_is_an_origin_whose_host_is_accepted(
    given: str, value: str, hosts: tuple[str, ...], write: Writer
) -> None:
    text = f"{SHOP}[server]\nallowed_hosts = ['other']\npublic_url = '{given}'\n[callers.x]\nkey = 'k'\n"
    server = load(write(text), environ={}).server
    assert server.public_url == value
    assert set(server.host_values) == {"other", *hosts}


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
        ("[server]\nhost = '\u202e'", "server.host: must be a name or an address"),
        ("[server]\nhost = '*'", "server.host: must be a name or an address; all addresses are"),
        ("[server]\nallowed_hosts = 'a'", "server.allowed_hosts: must be a list, in square brackets"),
        (
            "[server]\nallowed_hosts = ['a', 'http://b']",
            'server.allowed_hosts[1]: must be "host" or "host:port"',
        ),
        ("[server]\npublic_url = 'csq.corp'", "server.public_url: must start with https:// (or http://)"),
        (
            "[server]\npublic_url = 'https://csq.corp/x'",
            "server.public_url: must be a base URL without a path",
        ),
        (
            "[server]\npublic_url = 'https://u:p@csq.corp'",
            "server.public_url: must not hold user information",
        ),
        ("[server]\npublic_url = 'https://csq.corp:0'", "server.public_url: must have a port between"),
        ("[server]\nallow_quit = 'maybe'", "server.allow_quit: must be true or false"),
        ("[server]\ndrain_timeout = 0", "server.drain_timeout: must be more than 0"),
        ("[server]\ndrain_timeout = inf", "server.drain_timeout: must be a number, not inf or nan"),
        ("[server]\nport = nan", "server.port: must be a number, not inf or nan"),
        ("[server]\nmin_rate = 1073741825", "server.min_rate: must be at most 1073741824"),
        ("[server]\ndrain_timeout = 86401", "server.drain_timeout: must be at most 86400"),
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
        (
            "[contentsquare]\nallowed_downloads = ['https://a.example']",
            'contentsquare.allowed_downloads[0]: must be "host", "host:port" or "*.domain"',
        ),
        ("[contentsquare]\nexport_spool = -1", "contentsquare.export_spool:"),
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
        ("[projects.a]\nclient_id = 3\nclient_secret = 'x'", ".client_id: must be text, in quotes"),
        ("[projects.a]\nclient_secret = 'x'", ".client_id: missing; it comes with the credentials"),
        (
            "{a}apis = ['metrics', 'metric']",
            ".apis[1]: must be data-export, metrics, enrichment, speed-analysis or surveys; did you mean",
        ),
        ("{a}apis = ['enrichment']", ".apis: enrichment needs integration_id beside it"),
        ("{a}apis = ['enrichment']\nintegration_id = 'x'", ".integration_id: must be a whole number"),
        ("{a}project_id = 0", ".project_id: must be at least 1"),
        ("{a}quota = 0", ".quota: must be at least 1"),
        ("{a}quota = true", ".quota: must be a number, not true or false"),
        ("{a}quota = 'many'", ".quota: must be a whole number"),
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
