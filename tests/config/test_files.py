"""The configuration file: where it is found, its paths, and TOML that can't be read."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from support.configurations import CANARY, ONE_PROJECT, SHOP, Writer, faults_of, posix_only

from proxy.config.files import SYSTEM_FILE, find_config_file
from proxy.config.load import load
from proxy.errors import ConfigError


def test_the_first_file_found_is_read(write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.config.files.SYSTEM_FILE", tmp_path / "etc.toml")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    home = {"HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    assert find_config_file(None, home).path is None
    for name in ("etc.toml", "home/.config/csq-proxy/config.toml", "cwd/config.toml"):
        path = write(SHOP, name)
        assert find_config_file(None, home).path == path
        assert load(environ=home).source == path
    assert find_config_file(None, home | {"CSQ_PROXY_CONFIG": "~/x.toml"}).path == tmp_path / "home/x.toml"
    assert find_config_file(Path("y.toml"), home | {"CSQ_PROXY_CONFIG": "x"}).path == tmp_path / "cwd/y.toml"
    assert load(None, ONE_PROJECT, home, search=False).source is None


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere a tab in a path is only rare")
@pytest.mark.parametrize("key", ["client_secret_file", "log.file"])
@pytest.mark.parametrize("path", [r"C:\tokens\new", "C:/bob/\\new"])
def test_a_path_of_windows_whose_backslashes_toml_took_is_told_as_such(
    key: str, path: str, write: Writer
) -> None:
    table = "[projects.shop]\nclient_id = 'id'" if "." not in key else f"{SHOP}[log]"
    [fault] = faults_of(write(f'{table}\n{key.rpartition(".")[2]} = "{path}"\n'))
    assert fault.endswith(f"{key}: a \\ began an escape in it; write / for \\, or put it in single quotes")


def test_windows_has_a_place_for_a_user_s_programs_before_that_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.chdir(tmp_path)
    home = {"USERPROFILE": str(tmp_path / "home"), "APPDATA": str(tmp_path / "roaming")}
    for name in ("home/.config/csq-proxy/config.toml", "roaming/csq-proxy/config.toml", "config.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert find_config_file(None, home).path == path


@pytest.mark.skipif(sys.platform == "win32", reason="links are for administrators")
def test_a_link_to_nothing_is_passed_over_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").symlink_to("away.toml")
    assert find_config_file(None, {}).passed_over[:1] == (f"{tmp_path / 'config.toml'} (a link to nothing)",)


@pytest.mark.parametrize("text", ["", "[server]\nport = 1", "[tool]", "theme = 'x'"])
def test_a_file_of_another_program_is_named_in_the_fault(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(environ={})
    [fault] = caught.value.faults
    assert str(file) in fault


def test_a_place_that_was_passed_over_is_named_with_the_reason(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc, user = tmp_path / "etc.toml", tmp_path / "home/.config/csq-proxy/config.toml"
    monkeypatch.setattr("proxy.config.files.SYSTEM_FILE", etc)
    (tmp_path / "cwd/config.toml").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    home = {"HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    look, is_closed = Path.stat, True

    def stat(path: Path, **more: bool) -> os.stat_result:
        if path == user and is_closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    others = (
        f"{tmp_path / 'cwd/config.toml'} (a directory)",
        f"{user} (can't look at it: Permission denied)",
    )
    assert find_config_file(None, home) == (None, others)
    with pytest.raises(ConfigError) as caught:
        load(environ=home)
    [fault] = caught.value.faults
    assert fault.endswith(f"; passed over: {', '.join(others)}")
    write(SHOP, "etc.toml")
    assert find_config_file(None, home) == (etc, others)
    is_closed = False
    assert find_config_file(None, home) == (etc, others[:1])
    for named in (find_config_file(etc, home), find_config_file(None, home | {"CSQ_PROXY_CONFIG": str(etc)})):
        assert named == (etc, ())


def test_a_named_file_has_to_exist(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"
    for path, environ in ((missing, {}), (None, {"CSQ_PROXY_CONFIG": str(missing)})):
        with pytest.raises(ConfigError) as caught:
            load(path, environ=environ)
        assert caught.value.faults == (f"{missing}: there is no such file",)


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
    assert find_config_file(None, {"HOME": str(tmp_path)}).path in (None, SYSTEM_FILE)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("[server]\nport = = 1\n", "2:8", ""),
        ("[server\n", "1:8", ""),
        (f'[projects.shop]\nclient_secret = "{CANARY}', "2:36", ""),
        (f'[projects.shop]\nclient_secret = "{CANARY}\n', "2:36", "; is a quote missing at its end?"),
        (f"[projects.shop]\nclient_secret = {CANARY}\n", "2:17", "; text needs quotes around it"),
        ("[server]\nport = 1\nport = 2\n", "3:9", "; this key is there twice"),
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


def test_paths_in_the_file_are_relative_to_its_folder(write: Writer, tmp_path: Path) -> None:
    write("-", "a/ca.pem")
    path = write(f'[contentsquare]\nca_file = "ca.pem"\n[server]\nunix_socket = ""\n{SHOP}', "a/config.toml")
    settings = load(path, environ={})
    assert settings.contentsquare.ca_file == tmp_path / "a/ca.pem"
    assert settings.server.unix_socket is None
    home = {"HOME": str(tmp_path / "a"), "USERPROFILE": str(tmp_path / "a")}
    environ = {**home, "CSQ_PROXY_CONTENTSQUARE__CA_FILE": "~/ca.pem"}
    assert load(path, environ=environ).contentsquare.ca_file == tmp_path / "a/ca.pem"


def test_a_folder_in_a_files_place_is_told_as_such_on_each_system(tmp_path: Path) -> None:
    assert faults_of(tmp_path) == [f"{tmp_path}: can't read it: {os.strerror(errno.EISDIR)}"]
