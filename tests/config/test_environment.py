"""Settings from environment variables: every key, the lone sidecar, and unknown variables."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pytest
from support.configurations import CANARY, SHOP, Writer, faults_of

from proxy.config.load import load
from proxy.config.settings import (
    LogSettings,
    Settings,
)
from proxy.contentsquare import Api

TOO = "client_secret is given too; keep only one of them"


BOTH = "set both or neither"


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
        ("CSQ_PROXY_PROJECTS__SHOP", "unknown variable; did you mean CSQ_PROXY_PROJECTS__NAME__PORT?"),
        (
            "CSQ_PROXY_PROJECTS__CLIENT_ID",
            "unknown variable; did you mean CSQ_PROXY_PROJECTS__NAME__CLIENT_ID?",
        ),
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
    environ["CSQ_PROXY_CONTENTSQUARE__ALLOWED_ENDPOINTS"] = "[a"
    assert faults_of(path, environ) == [
        "CSQ_PROXY_CONTENTSQUARE__ALLOWED_ENDPOINTS: must be a JSON list, or values with commas between them",
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
