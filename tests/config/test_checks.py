"""Rules that span several keys."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.configurations import CANARY, SHOP, Writer, faults_of, project

from proxy.config.load import load


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
        (
            project("shop") + "[callers.x]\nkey = 'k'\nprojects = ['*']",
            "callers.x.projects[0]: no project or account is named so; leave projects out to allow all",
        ),
        (project("a") + "[callers.x]\nread_only = true", "callers.x.key: missing; give key or key_file"),
        (project("a") + "[callers.x]\nkey = 'a b'", "callers.x.key: must be printable ASCII without spaces"),
        (project("a") + "[callers.x]\nkey = '...'", "callers.x.key: is still the example's dots"),
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


def test_a_unix_socket_needs_a_folder_and_a_short_path(write: Writer) -> None:
    for socket, words in (("no/s", "there is no folder"), ("x" * 120, "at most")):
        (fault,) = faults_of(write(f"[server]\nunix_socket = '{socket}'\n{SHOP}"))
        assert fault.startswith("server.unix_socket: ")
        assert words in fault or "Windows" in fault


@pytest.mark.parametrize(
    "key", ["server.tls_cert", "server.unix_socket", "log.file", "contentsquare.ca_file"]
)
def test_a_file_in_a_folder_that_this_user_can_not_enter_is_one_fault(
    key: str, write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of /etc/letsencrypt/live, which is root's alone."""
    closed = tmp_path / "closed"
    (closed / "in").mkdir(parents=True)
    (closed / "in/it.pem").touch()

    def guarded(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(path: Path, *rest: Any, **options: Any) -> Any:
            if closed in Path(path).parents:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return look(path, *rest, **options)

        return looked

    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: closed not in Path(path).parents and access(path, mode)
    )
    for name in ("stat", "lstat"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))
    section, name = key.split(".")
    config = write(f"[{section}]\n{name} = 'closed/in/it.pem'\n{SHOP}")
    fault = next(one for one in faults_of(config) if one.startswith(f"{key}: "))
    if sys.platform == "win32" and name == "unix_socket":
        return
    assert fault.startswith((f"{key}: can't read {closed}", f"{key}: can't look at {closed}"))
    assert fault.endswith(os.strerror(errno.EACCES))


def test_a_key_or_certificate_in_the_place_of_its_path_is_not_shown(write: Writer) -> None:
    pem = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n"
    for key in ("TLS_KEY", "TLS_CERT", "UNIX_SOCKET", "STATE_DIR"):
        for text in (pem, pem.replace("\n", ""), pem.replace("\n", " ") * 50):
            faults = faults_of(write(SHOP), {f"CSQ_PROXY_SERVER__{key}": text})
            assert "must be a path" in faults[0]
            assert faults[0].endswith("put the text into a file, and the path of that file here")


@pytest.mark.parametrize("name", ["config.toml", "secret", "folder/../secret"])
def test_the_log_is_written_into_no_file_that_is_read(name: str, write: Writer, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write("s3cret-of-a-file", "secret")
    text = "[projects.shop]\nclient_id = 'id'\nclient_secret_file = 'secret'\n"
    [fault] = faults_of(write(f"[log]\nfile = '{name}'\n{text}"))
    assert fault == f"log.file: {tmp_path / name} is read by the proxy; name a file for the log alone"


def test_a_dot_is_the_folder_of_the_file(write: Writer, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert load(write(f"[server]\nstate_dir = '.'\n{SHOP}"), environ={}).server.state_dir == tmp_path
    [fault] = faults_of(write(f"[log]\nfile = '.'\n{SHOP}"))
    assert fault.startswith(f"log.file: {tmp_path} is not a file")


def test_the_folder_for_counts_must_be_there_and_be_a_folder(write: Writer, tmp_path: Path) -> None:
    config = f"[server]\nstate_dir = 'state'\n{SHOP}"
    [fault] = faults_of(write(config))
    assert fault.startswith(
        f"server.state_dir: there is no folder {tmp_path / 'state'}; make it first: mkdir"
    )
    state = write("", "state")
    [fault] = faults_of(write(config))
    assert fault == f"server.state_dir: {state} is no folder; name one that only you can write to"
    state.unlink()
    state.mkdir(0o700)
    assert load(write(config), environ={}).server.state_dir == state


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_for_counts_that_others_can_write_to_is_refused(
    mode: int, write: Writer, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    [fault] = faults_of(write(f"[server]\nstate_dir = 'state'\n{SHOP}"))
    assert fault.startswith("server.state_dir: others can ")


@pytest.mark.parametrize(
    "name", ["proxy.corp", "proxy.corp:8277", "192.168.1.5", "[fd00::1]:80", "localhost.corp"]
)
def test_another_name_over_plain_http_needs_callers_or_tls(name: str, write: Writer) -> None:
    names = f"[server]\nallowed_hosts = ['localhost:9', '{name}', 'second.corp']\n"
    [fault] = faults_of(write(SHOP + names))
    assert fault == (
        "server.allowed_hosts[1]: any web page that knows this name can send requests to it over plain http;"
        " define [callers] with a key for each, or set server.tls_cert and server.tls_key"
    )
    assert load(write(SHOP + names + "[callers.x]\nkey = 'k'\n"), environ={}).server.allowed_hosts
    write("certificate", "cert.pem")
    write("key", "key.pem")
    tls = "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\n"
    assert load(write(SHOP + names + tls), environ={}).server.allowed_hosts
    [fault] = faults_of(write(SHOP + names + tls.partition("\n")[0]))
    assert fault.startswith("server.tls_key: missing")


def test_a_public_url_needs_callers_or_tls(write: Writer) -> None:
    public = "[server]\npublic_url = 'https://csq.corp'\n"
    [fault] = faults_of(write(SHOP + public))
    assert fault.startswith(
        "server.public_url: any web page that knows this name can send requests to it over"
    )
    assert load(write(f"{SHOP}{public}[callers.x]\nkey = 'k'\n"), environ={}).server.public_url
    assert load(write(SHOP + public.replace("csq.corp", "localhost:8443")), environ={}).server.public_url


@pytest.mark.parametrize("name", ["localhost:9", "127.0.0.2", "[::1]:80"])
def test_browsers_mark_requests_to_a_loopback_name_so_it_needs_neither(name: str, write: Writer) -> None:
    text = f"{SHOP}[server]\nallowed_hosts = ['{name}']\n"
    assert load(write(text), environ={}).server.allowed_hosts == (name,)
