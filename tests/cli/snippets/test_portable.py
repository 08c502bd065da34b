"""The configuration for another computer: without paths of this one and without secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from support.snippets import KEY, PROJECT, settings_of, text

from proxy.config.settings import Settings


def with_files(folder: Path) -> Settings:
    """Settings that name files of this computer wherever they can."""
    for name in ("cert.pem", "key.pem", "ca.pem", "secret", "caller"):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(f"canary-{name}")
    return settings_of(
        server={
            "host": "0.0.0.0",
            "unix_socket": str(folder / "socket"),
            "tls_cert": str(folder / "cert.pem"),
            "tls_key": str(folder / "key.pem"),
            "allowed_hosts": ["proxy.corp:8277"],
        },
        contentsquare={"ca_file": str(folder / "ca.pem")},
        projects={
            "shop-fr": {"client_id": "id-1", "client_secret_file": str(folder / "secret"), "coalesce": True}
        },
        callers={"bi": {"key_file": str(folder / "caller")}},
    )


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd"])
def test_what_cannot_be_carried_over_is_told_in_its_place(what: str, tmp_path: Path) -> None:
    shown = text(what, with_files(tmp_path))
    config = shown[shown.index("[server]") : shown.index("[projects.shop-fr]")]
    server, contentsquare = config.split("[contentsquare]")
    assert str(tmp_path) not in config
    for key in ("unix_socket", "tls_cert", "tls_key"):
        assert re.search(rf"# server\.{key}: .*its path here", server)
    assert re.search(r"# contentsquare\.ca_file: .*its path here", contentsquare)
    assert re.search(r"# server\.host: left out, \w", server)
    assert "# projects" not in shown
    assert "# callers" not in shown
    assert "# server." not in text(what, settings_of())


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd"])
def test_the_folder_for_counts_is_the_platforms(what: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(0o700)
    shown, without = text(what, settings_of(server={"state_dir": str(state)})), text(what, settings_of())
    assert str(tmp_path) not in shown
    assert "/var/lib/csq-proxy" not in without
    assert "StateDirectory" not in without
    if what == "kubernetes":
        assert "# server.state_dir: left out, " in shown
        return
    assert 'state_dir = "/var/lib/csq-proxy"' in shown
    if what == "systemd":
        assert "\nDynamicUser=yes\nStateDirectory=csq-proxy\nStateDirectoryMode=0700\n" in shown
    else:
        compose = yaml.safe_load(shown)
        assert compose["services"]["csq-proxy"]["volumes"] == ["csq-proxy-state:/var/lib/csq-proxy"]
        assert compose["volumes"] == {"csq-proxy-state": None}


def test_no_two_secrets_share_a_file() -> None:
    standby = {"client_id": "id-2", "client_secret": "canary-2"}
    settings = settings_of(
        projects={
            "shop": {**PROJECT, "standby": standby},
            "shop-standby": PROJECT,
            "caller": {**PROJECT, "standby": standby},
            "caller-x": PROJECT,
        },
        accounts={"x": {**PROJECT, "standby": standby}},
        callers={"x": {"key": KEY}, "standby": {"key": KEY + "2"}},
    )
    kubernetes, compose, systemd = (text(what, settings) for what in ("kubernetes", "compose", "systemd"))
    files = yaml.safe_load(compose)["services"]["csq-proxy"]["secrets"]
    assert len({*files}) == len(files) == 10
    assert len(re.findall(r"^  \S+:\n    file: ./secrets/", compose, re.MULTILINE)) == 10
    assert re.findall(r"--from-file=(\S+)=FILE", kubernetes) == files
    assert re.findall(r"^LoadCredential=(.+):/etc/csq-proxy/\1$", systemd, re.MULTILINE) == files
    for shown in (kubernetes, compose, systemd):
        assert re.findall(r'_file = ".+/(.+)"', shown) == files
    # Compose's schema for a secret's name, and Kubernetes' for a key.
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", name) for name in files)
