"""The URL by which a tool reaches a project."""

from __future__ import annotations

import re

import pytest
from support.snippets import FULL, KEY, PROJECT, settings_of, text

from proxy.cli.snippets.text import FOR_CALLERS
from proxy.errors import ConfigError


@pytest.mark.parametrize(
    ("project", "url"),
    [
        (
            None,
            "http://csq-proxy:9000/shop-fr/v1/metrics/site/visits?startDate=2026-03-03&endDate=2026-03-09&period=daily&projectId=42",
        ),
        ("own", "http://localhost:9001/v1/metrics/site/visits?"),
        ("acme", "http://csq-proxy:9000/acme/43/v1/metrics/site/visits?"),
        ("acme/44", "http://csq-proxy:9000/acme/44/v1/"),
    ],
)
def test_a_project_has_its_own_url(project: str | None, url: str) -> None:
    assert url in text("curl", FULL, project)


@pytest.mark.parametrize(
    ("project", "url"),
    [
        (None, "http://csq-proxy:9000/-/exports/shop-fr"),
        ("own", "http://localhost:9001/-/exports/own"),
        ("acme", "http://csq-proxy:9000/-/exports/acme/43"),
        ("acme/44", "http://csq-proxy:9000/-/exports/acme/44"),
    ],
)
@pytest.mark.parametrize("what", ["export", "duckdb", "pandas", "polars", "r", "calc", "wget"])
def test_an_export_has_one_url_beside_a_project_and_an_account(
    what: str, project: str | None, url: str
) -> None:
    shown = text(what, FULL, project)
    found = re.findall(r"http[^\s\"']*/-/exports/[^\s\"']*", shown)
    assert {one.partition("?")[0] for one in found} == {f"{url}/JOB_ID/latest.csv"}


def test_a_project_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="there are shop-fr, own, acme"):
        text("curl", FULL, "shop")
    with pytest.raises(ConfigError, match="acme/42"):
        text("curl", settings_of(accounts={"acme": {"client_id": "a", "client_secret": "b"}}), "acme")


@pytest.mark.parametrize("name", ["acme/45", "acme/0", "acme/043", "acme/4x"])
def test_an_account_s_project_that_would_be_refused_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        text("curl", FULL, name)


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.1.2.3", "http://csq-proxy:9000/shop-fr"), ("127.0.0.1", "http://127.0.0.1:9000/shop-fr")],
)
def test_callers_from_elsewhere_use_a_name_that_is_accepted(host: str, url: str) -> None:
    server = {"host": host, "port": 9000, "allowed_hosts": ["csq-proxy:9000"]}
    assert url in text("curl", settings_of(server=server, callers={"bi": {"key": KEY}}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("own_port", [0, 9001])
def test_a_vendor_s_cloud_calls_an_accepted_name_by_https(host: str, own_port: int) -> None:
    settings = settings_of(
        server={"host": host, "allowed_hosts": ["proxy.corp", "other.corp"]},
        projects={"shop-us": {**PROJECT, "port": own_port}},
        accounts={"acme": {"client_id": "id-3", "client_secret": "canary-3"}},
        callers={"looker": {"key": KEY}},
    )
    assert "const URL_OF_PROXY = 'https://proxy.corp/shop-us';\n" in text("looker", settings)
    assert "'https://proxy.corp/acme/42'" in text("looker", settings, "acme/42")


@pytest.mark.parametrize("what", FOR_CALLERS)
def test_callers_behind_a_server_that_ends_tls_use_the_public_url(what: str) -> None:
    for listens in ({}, {"port": 0}, {"tcp": False}, {"allowed_hosts": ["other.corp"], "host": "0.0.0.0"}):
        settings = settings_of(
            server={**listens, "public_url": "https://csq.corp"},
            projects={
                "shop-fr": PROJECT,
                **({"own": {**PROJECT, "port": 9001}} if "tcp" not in listens else {}),
            },
            callers={"bi": {"key": KEY}},
        )
        for project in settings.projects:
            shown = text(what, settings, project)
            assert re.search(rf"https://csq\.corp/(-/exports/)?{project}\b", shown)
            assert not re.search(r"//(127\.0\.0\.1|localhost)|PORT:|other\.corp|--unix-socket", shown)


@pytest.mark.parametrize("what", FOR_CALLERS)
def test_a_port_that_is_any_free_one_is_left_to_the_reader(what: str) -> None:
    settings = settings_of(
        server={"port": 0}, projects={"shop-fr": PROJECT, "own": {**PROJECT, "port": 9001}}
    )
    first, _, rest = text(what, settings).partition("\n")
    mark = "//" if what in ("powerbi", "powerbi-pages", "excel", "looker", "javascript") else "#"
    mark = "--" if what == "duckdb" else mark
    assert first == f"{mark} PORT: server.port is 0, any free one; csq-proxy prints it at its start."
    assert re.search(r"http://127\.0\.0\.1:PORT/(-/exports/)?shop-fr", rest)
    assert "8277" not in rest
    assert "PORT:" not in text(what, settings, "own")
    assert "http://127.0.0.1:9001" in text(what, settings, "own")


@pytest.mark.parametrize("what", FOR_CALLERS)
def test_a_name_has_its_own_port_whatever_ours_is(what: str) -> None:
    server = {"port": 0, "host": "0.0.0.0", "allowed_hosts": ["proxy.corp"]}
    shown = text(what, settings_of(server=server, callers={"bi": {"key": KEY}}))
    assert re.search(r"https?://proxy\.corp/(-/exports/)?shop-fr", shown)
    assert "PORT:" not in shown
