"""What `csq-proxy init` writes: a private file, or one table more in a file that loses nothing by it."""

from __future__ import annotations

import errno
import os
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configurations import posix_only
from support.texts import texts

from proxy import process
from proxy.config import new_file
from proxy.config.new_file import Answers, check_place, text_of, write, written
from proxy.errors import ConfigError

TEXT = texts(min_size=1)
SHOP = Answers("projects", "shop", "id", "secret")
ACME = Answers("accounts", "acme", "id", "secret", projects=(42, 43))
FILES = {
    "comments": b'# top\n[server]\nport = 9000   # mine\n\n[callers.bi]\nkey_file = "k"\n# the end\n',
    "no line end": b"[server]\nport = 9000 # mine",
    "Windows": b"# top\r\n[server]\r\nport = 9000\r\n",
    "byte order mark": b"\xef\xbb\xbf[server]\nport = 9000\n",
    "dotted keys": b'projects.a.client_id = "x"\nserver.port = 9000\n',
    "inline project": b'[projects]\na = { client_id = "x" }\n[server]\nport = 9000\n',
    "in two places": b'[projects.a]\nclient_id = "x"\n[server]\nport = 9000\n[projects.b]\nclient_id = "y"\n',
    "empty": b"",
}


@given(TEXT, TEXT)
def test_any_credentials_survive_the_file(client_id: str, secret: str) -> None:
    answers = Answers("projects", "shop", client_id, secret, 42, 7)
    project = {"client_id": client_id, "client_secret": secret, "project_id": 42, "integration_id": 7}
    assert tomllib.loads(text_of(answers)) == {"projects": {"shop": project}}


@given(st.recursive(TEXT | st.booleans() | st.dates(), lambda values: st.lists(values, max_size=3)))
def test_each_value_is_the_same_when_it_is_read_as_toml(value: object) -> None:
    assert tomllib.loads(f"key = {written(value)}") == {"key": value}


@pytest.mark.parametrize("answers", [SHOP, ACME])
@pytest.mark.parametrize("name", FILES)
def test_every_byte_of_a_file_stays_and_one_table_is_added(
    name: str, answers: Answers, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(FILES[name])
    if sys.platform != "win32":
        path.chmod(0o600)
    old = tomllib.loads(FILES[name].decode("utf-8-sig"))
    check_place(path, answers.section)
    write(path, answers)
    data = path.read_bytes()
    assert data.startswith(FILES[name])
    assert (b"\r" in data) == (name == "Windows")
    assert data.count(b"\r\n") == (data.count(b"\n") if name == "Windows" else 0)
    new = tomllib.loads(data.decode("utf-8-sig"))
    assert new[answers.section].pop(answers.name) == answers.table
    assert {**old, answers.section: old.get(answers.section, {})} == new
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]


def test_no_repr_shows_the_secret() -> None:
    assert "a-secret" not in repr(Answers("projects", "shop", "id", "a-secret"))


def test_the_names_of_a_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert check_place(path, "projects") == {"projects": {}, "accounts": {}}
    for answers in (SHOP, ACME):
        write(path, answers)
    found = check_place(path, "projects")
    assert (list(found["projects"]), list(found["accounts"])) == (["shop"], ["acme"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[server]\nport = 9000\nhost =\n", "config.toml:3:"),
        (b"[server]\nport = \xff\n", "isn't UTF-8 text"),
        (
            b'projects = { a = { client_id = "x" } }\n',
            "projects can't be added to: write each as [projects.NAME]",
        ),
        (b'[[projects]]\nclient_id = "x"\n', "projects can't be added to"),
        (b"projects = 3\n", "projects can't be added to"),
    ],
)
def test_a_file_that_cannot_be_added_to_is_told_before_the_questions_and_left_alone(
    text: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text)
    if sys.platform != "win32":
        path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        check_place(path, "projects")
    assert words in caught.value.faults[0]
    assert path.read_bytes() == text


@posix_only
@pytest.mark.parametrize("place", ["config.toml", "dotfiles/config.toml"])
def test_a_link_to_nothing_is_told_before_the_questions(place: str, tmp_path: Path) -> None:
    link = tmp_path / place.partition("/")[0]
    link.symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigError, match=rf"can't be written \({link} is a link to nothing\)"):
        check_place(tmp_path / place, "projects")
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(ConfigError, match="is a link to nothing"):
        check_place(tmp_path / place, "projects")


def test_a_file_that_a_virus_scanner_has_open_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tries, take = tmp_path / "config.toml", [], new_file._take_place
    path.write_bytes(FILES["comments"])
    path.chmod(0o600)

    def refused_at_first(part: Path, place: Path) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "Access is denied")
        take(part, place)

    monkeypatch.setattr(process, "REPLACE_WAIT_S", 30.0)
    monkeypatch.setattr(new_file, "_take_place", refused_at_first)
    write(path, SHOP)
    assert tomllib.loads(path.read_text("utf-8"))["projects"].keys() == {"shop"}


def test_a_name_that_another_program_added_meanwhile_is_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    check_place(path, "projects")
    write(path, SHOP)
    data = path.read_bytes()
    with pytest.raises(ConfigError, match="shop is there"):
        write(path, SHOP)
    assert path.read_bytes() == data


@posix_only
def test_a_new_file_and_its_folders_are_the_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "config.toml"
    old = os.umask(0)
    try:
        write(path, SHOP)
    finally:
        os.umask(old)
    assert [one.stat().st_mode & 0o777 for one in (path, path.parent, path.parent.parent)] == [
        0o600,
        0o700,
        0o700,
    ]


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_a_file_keeps_its_mode_and_a_link_to_it_stays_a_link(mode: int, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    path, file = tmp_path / "config.toml", tmp_path / "dotfiles" / "csq.toml"
    file.write_bytes(FILES["comments"])
    file.chmod(mode)
    path.symlink_to(file)
    check_place(path, "projects")
    write(path, SHOP)
    assert path.is_symlink()
    assert file.read_bytes().startswith(FILES["comments"] + b"\n[projects.shop]\n")
    assert file.stat().st_mode & 0o777 == mode
    assert [one.name for one in file.parent.iterdir()] == ["csq.toml"]


@posix_only
@pytest.mark.skipif(getattr(os, "geteuid", int)() != 0, reason="needs root, who may give files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"")
    path.chmod(0o600)
    os.chown(path, 0, 64_210)
    write(path, SHOP)
    assert (path.stat().st_uid, path.stat().st_gid) == (0, 64_210)


@posix_only
def test_a_file_that_others_can_read_is_told_before_a_secret_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.config.files.READ_TIMEOUT_S", 0.1)
    path = tmp_path / "config.toml"
    path.write_bytes(FILES["comments"])
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=rf"will hold a secret, and others can .*; run: chmod 600 {path}"):
        check_place(path, "projects")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError):
        check_place(path, "projects")


def test_where_the_new_content_cannot_take_its_place_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    write(path, SHOP)
    old = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(ConfigError, match="No space left"):
        write(path, ACME)
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk that is full")
def test_what_can_t_be_written_is_told_and_not_left_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="written"):
        write(tmp_path / "file" / "config.toml", SHOP)
    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: [opened(path, *rest), opened("/dev/full", os.O_WRONLY)][1]
    )
    with pytest.raises(ConfigError, match="written"):
        write(tmp_path / "config.toml", SHOP)
    assert not (tmp_path / "config.toml").exists()
