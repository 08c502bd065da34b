"""Files that decide where secrets go: who may have written them, and what is above them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import STARTUP_S, run
from support.configurations import SHOP, Writer, faults_of
from typer.testing import CliRunner

from proxy.cli.completion import projects
from proxy.cli.main import cli
from proxy.cli.running_proxy import find
from proxy.config import files, trust
from proxy.config.load import load
from proxy.config.secrets import Source
from proxy.config.trust import Untrusted
from proxy.errors import ConfigError

if sys.platform == "win32":
    pytest.skip("owners and modes are POSIX's", allow_module_level=True)

import grp
import pwd

STRANGER = 54321
"""The number of a user that this machine doesn't have."""
FILES = {
    "config": "config.toml",
    "client_secret_file": "folder/secret",
    "key_file": "folder/key",
    "ca_file": "folder/ca.pem",
    "tls_cert": "folder/cert.pem",
    "tls_key": "folder/key.pem",
}
CONFIG = """
[server]
tls_cert = "folder/cert.pem"
tls_key = "folder/key.pem"
[contentsquare]
ca_file = "folder/ca.pem"
[projects.shop]
client_id = "id"
client_secret_file = "folder/secret"
[callers.bi]
key_file = "folder/key"
"""
is_root = os.geteuid() == 0
only_root = pytest.mark.skipif(not is_root, reason="only root can give files to other users")


@pytest.fixture
def config(write: Writer) -> Path:
    """A configuration with a file of each kind, all of them good."""
    for kind, name in FILES.items():
        write(f"content-of-{kind}", name)
    (write.folder / "folder").chmod(0o755)
    path = write(CONFIG)
    assert load(path, environ={}).source == path
    return path


def fault_of(config: Path) -> str:
    (fault, *others) = faults_of(config)
    assert others == []
    return fault


# Each kind of file


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_others_can_write_to_is_refused_with_the_chmod(kind: str, config: Path) -> None:
    path = config.parent / FILES[kind]
    for mode in (0o666, 0o602, 0o622):
        path.chmod(mode)
        if kind == "config":
            assert any(f"(mode {mode:04o}); run: chmod 600 {path}" in fault for fault in faults_of(config))
        else:
            advice = "go-w" if kind in ("ca_file", "tls_cert") else "600"
            assert f"{kind}: others can change {path} (mode {mode:04o}); run: chmod {advice} " in fault_of(
                config
            )
    path.chmod(0o600)
    assert load(config, environ={}).source == config


@only_root
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("what", ["the file", "its folder", "a link to it", "a link to its folder"])
def test_what_belongs_to_another_user_is_refused_with_the_chown(
    what: str, kind: str, config: Path, write: Writer
) -> None:
    path = config.parent / FILES[kind]
    if what == "a link to its folder":
        away = write.folder.with_name("elsewhere") if kind == "config" else write.folder / "elsewhere"
        config.parent.rename(away) if kind == "config" else path.parent.rename(away)
        foreign = config.parent if kind == "config" else path.parent
        foreign.symlink_to(away)
    elif what == "a link to it":
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
        foreign = path
    else:
        foreign = path if what == "the file" else path.parent
    os.chown(foreign, STRANGER, 0, follow_symlinks=False)
    faults = faults_of(config)
    option = "-h " if foreign.is_symlink() else ""
    said = (
        f"{foreign} belongs to another user ({STRANGER}); use a file in a folder of your own or"
        " on a read-only mount, or, if you trust what is in it, run: chown "
    )
    assert any(f"{said}{option}root {foreign}" in fault for fault in faults)
    os.chown(foreign, 0, 0, follow_symlinks=False)
    assert load(config, environ={}).source == config


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
def test_a_folder_above_that_others_can_write_to_is_refused_unless_it_is_sticky(
    mode: int, kind: str, write: Writer, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_group(monkeypatch, members=["me", "you"])
    above = write.folder / "above"
    above.mkdir()
    for name in ("config.toml", "folder"):
        (write.folder / name).rename(above / name)
    moved = above / "config.toml"
    for folder in {above, (above / FILES[kind]).parent}:
        folder.chmod(mode)
        faults = faults_of(moved)
        said = f"others can change the folder {folder} (mode {mode:04o}); run: chmod go-w {folder}"
        assert all(said in fault for fault in faults)
        folder.chmod(0o1000 | mode)
        assert load(moved, environ={}).source == moved
        folder.chmod(0o755)


def private_group(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A group database: our group is our user's own, apart from the ``changes``."""
    found = {"primary": None, "members": [], "users": ["me"], **changes}
    gid = os.getegid()
    primary = gid if found["primary"] is None else found["primary"]
    me = SimpleNamespace(pw_name="me", pw_gid=primary, pw_uid=os.geteuid())
    everybody = [SimpleNamespace(pw_name=name, pw_gid=primary) for name in found["users"]]
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    monkeypatch.setattr(pwd, "getpwall", lambda: everybody)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_mem=found["members"]))


@pytest.mark.parametrize(
    ("changes", "is_private"),
    [
        ({}, True),
        ({"members": ["me"]}, True),
        ({"members": ["you"]}, False),
        ({"members": ["me", "you"]}, False),
        ({"users": ["me", "you"]}, False),
        ({"primary": 4711}, False),
        ({"users": []}, False),
    ],
)
def test_the_files_of_umask_002_pass_where_the_group_is_the_user_s_own(
    changes: dict[str, Any], is_private: bool, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_group(monkeypatch, **changes)
    text = config.read_text()
    folder = config.parent / "later"
    before = os.umask(0o002)
    try:
        folder.mkdir()
        shutil.copytree(config.parent / "folder", folder / "folder")
        (folder / "config.toml").write_text(text)
    finally:
        os.umask(before)
    (folder / "folder").chmod(0o775)
    os.chown(folder, -1, os.getegid())
    assert stat.S_IMODE((folder / "config.toml").stat().st_mode) == 0o664
    assert stat.S_IMODE(folder.stat().st_mode) == 0o775
    if is_private:
        assert load(folder / "config.toml", environ={}).source == folder / "config.toml"
    else:
        assert "others can change" in faults_of(folder / "config.toml")[0]
    (folder / "config.toml").chmod(0o666)
    assert "others can change" in faults_of(folder / "config.toml")[0]


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="access lists are Linux's")
def test_an_access_list_that_names_others_makes_no_group_private(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_group(monkeypatch)
    config.chmod(0o664)
    assert load(config, environ={}).source == config
    nobody = 0xFFFFFFFF
    # acl(5): owner, the user STRANGER, group, mask, others; 4 is reading, 6 reading and writing
    entries = [(1, 6, nobody), (2, 6, STRANGER), (4, 4, nobody), (16, 6, nobody), (32, 4, nobody)]
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(config, "system.posix_acl_access", content)
    except OSError:
        pytest.skip("no access lists on this file system")
    assert "others can change" in faults_of(config)[0]


# The ways of platforms


def kubernetes_volume(folder: Path, files_of: dict[str, str], group: int) -> Path:
    """A volume as the kubelet makes it: 03777, the files behind the link ``..data``, mode 0440, fsGroup."""
    data = folder / "..2026_11_29_05_00_00.123456"
    data.mkdir(parents=True)
    for name, text in files_of.items():
        (data / name).write_text(text)
        (data / name).chmod(0o440)
        os.chown(data / name, -1, group)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(data.name)
    data.chmod(0o2755)
    folder.chmod(0o3777)
    return folder


def test_the_layout_of_kubernetes_passes(tmp_path: Path) -> None:
    secret = kubernetes_volume(tmp_path / "secret", {"shop": "s3cret", "caller_bi": "k" * 20}, os.getegid())
    text = (
        f'[projects.shop]\nclient_id = "id"\nclient_secret_file = "{secret}/shop"\n'
        f'[callers.bi]\nkey_file = "{secret}/caller_bi"\n'
    )
    mounted = kubernetes_volume(tmp_path / "config", {"config.toml": text}, os.getegid())
    settings = load(mounted / "config.toml", environ={})
    assert settings.projects["shop"].client_secret.get_secret_value() == "s3cret"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, in a sticky one."""
    with tempfile.TemporaryDirectory(prefix="csq") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def is_good_for(user: int, group: int, config: Path) -> bool:
    """Whether the configuration loads for a user. In a child process: nobody gets root's rights back."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads in this process: none of them is needed in the child
        child = os.fork()
    if not child:
        said = "x"
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            said = "\n".join(verdict(config))
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as said_by_child:  # noqa: PTH123 - a descriptor
        said = said_by_child.read()
    assert said != "x"
    assert not said or "another user" in said or "others can" in said
    return not said


def verdict(config: Path) -> tuple[str, ...]:
    try:
        load(config, environ={})
    except ConfigError as error:
        return error.faults
    return ()


@only_root
def test_the_container_s_user_reads_kubernetes_files_of_root_by_its_group(open_folder: Path) -> None:
    secret = kubernetes_volume(open_folder / "secret", {"shop": "s3cret"}, 65532)
    text = f'[projects.shop]\nclient_id = "id"\nclient_secret_file = "{secret}/shop"\n'
    mounted = kubernetes_volume(open_folder / "config", {"config.toml": text}, 65532)
    assert is_good_for(65532, 65532, mounted / "config.toml")
    (secret / "shop").resolve().chmod(0o460)
    assert not is_good_for(65532, 65532, mounted / "config.toml")


@only_root
def test_the_advice_for_root_s_file_still_lets_us_read_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config.parent / FILES["client_secret_file"]
    path.chmod(0o662)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(OSError, match=r"others can change .* run: chmod g-w,o-rwx "):
        files.read(path)


@only_root
def test_the_compose_file_s_secrets_and_configuration_pass(open_folder: Path) -> None:
    """The configuration is root's, mode 0444; each secret is of the container's user, mode 0600."""
    (open_folder / "run/secrets").mkdir(parents=True)
    secret = open_folder / "run/secrets/shop"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    os.chown(secret, 65532, 65532)
    config = open_folder / "config.toml"
    config.write_text(f'[projects.shop]\nclient_id = "id"\nclient_secret_file = "{secret}"\n')
    config.chmod(0o444)
    assert is_good_for(65532, 65532, config)
    os.chown(secret, STRANGER, 65532)
    secret.chmod(0o440)
    assert not is_good_for(65532, 65532, config)


@only_root
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
@pytest.mark.parametrize(("option", "is_good"), [("ro", True), ("rw", False)])
def test_whatever_is_on_a_read_only_mount_passes(option: str, is_good: bool, open_folder: Path) -> None:
    host, mounted = open_folder / "host", open_folder / "mounted"
    for folder in (host / "deep", mounted):
        folder.mkdir(parents=True)
    config = host / "deep/config.toml"
    config.write_text(SHOP)
    (host / "config.toml").symlink_to("deep/config.toml")
    for path in (config, host / "config.toml", host / "deep", host):
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    (host / "deep").chmod(0o777)
    config.chmod(0o600)
    script = (
        f"mount --bind {host} {mounted} && mount -o remount,bind,{option} {mounted} &&"
        f" exec {sys.executable} -m proxy check --json --config {mounted}/config.toml"
    )
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=STARTUP_S,
        check=False,
    )
    if "permitted" in ended.stderr or "denied" in ended.stderr:
        pytest.skip("no mounts here")
    said = json.loads(ended.stdout)
    assert said["ok"] is is_good
    assert is_good or "belongs to another user" in said["faults"][0]


@only_root
def test_an_ordinary_user_trusts_its_own_files_and_root_s_and_no_others(open_folder: Path) -> None:
    config = open_folder / "config.toml"
    config.write_text('[projects.shop]\nclient_id = "id"\nclient_secret_command = ["echo", "s3cret"]\n')
    config.chmod(0o644)
    for owner, is_good in ((STRANGER, True), (0, True), (STRANGER + 1, False)):
        os.chown(config, owner, 0)
        assert is_good_for(STRANGER, STRANGER, config) is is_good


@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp", "/var/tmp"])
def test_shared_memory_is_no_excuse(folder: str) -> None:
    if not Path(folder).is_dir() or not os.access(folder, os.W_OK):
        pytest.skip(f"no {folder} to write to")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "secret"
        path.write_text("s3cret")
        for mode in (0o666, 0o644):
            path.chmod(mode)
            config = Path(place) / "config.toml"
            config.touch(mode=0o600)
            config.write_text('[projects.shop]\nclient_id = "id"\nclient_secret_file = "secret"\n')
            assert f"(mode {mode:04o}); run: chmod 600 {path}" in fault_of(config)


# The commands


def test_no_command_uses_a_configuration_that_others_can_write_to(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        marker = tmp_path / "was-run"
        config = tmp_path / "config.toml"
        config.write_text(
            f'[server]\nport = {port}\n[contentsquare]\nauth_url = "http://127.0.0.1:{port}"\n'
            '[projects.shop]\nclient_id = "id"\n'
            f'client_secret_command = ["touch", "{marker}"]\n[callers.x]\nkey_file = "none"\n'
        )
        config.chmod(0o666)
        given = {"CSQ_PROXY_KEY": "k" * 20, "CSQ_PROXY_PROJECTS__SHOP__CLIENT_SECRET": "s3cret"}
        said = f"others can change {config} (mode 0666); run: chmod 600 {config}"
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        for command in (["check"], ["check", "--live"], ["snippets"], ["status"]):
            ended = CliRunner().invoke(cli, command)
            assert (ended.output, type(ended.exception)) == ("", ConfigError)
            why = "the configuration holds a secret or decides where one goes"
            assert str(ended.exception) == f"{why}, and {said}"
        serving = run("serve", environ={**environ, **given}, cwd=tmp_path)
        assert (serving.returncode, serving.stdout, serving.stderr.count("\n")) == (2, "", 1)
        assert said in serving.stderr
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert not marker.exists()
    for name in given:
        monkeypatch.delenv(name)
    assert projects(config, "") == []


def test_a_key_file_of_status_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 20)
    key.chmod(0o666)
    with pytest.raises(ConfigError, match=r"^--key-file: others can change"):
        find(None, "http://127.0.0.1:1", key)


def test_init_writes_into_no_folder_that_others_can_write_to(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    ended = run("init", "--config", "config.toml", environ=environ, cwd=tmp_path / "shared")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert f"run: chmod go-w {tmp_path}/shared" in ended.stderr
    assert list((tmp_path / "shared").iterdir()) == []


# Between the look and the reading


@pytest.mark.parametrize("times", [1, 9])
def test_the_opened_file_counts_and_not_another_one_at_its_path(
    times: int, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(SHOP)
    others = [write(SHOP, f"other-{number}") for number in range(times)]
    open_file = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        file = open_file(self, *arguments, **named)
        if others:
            others.pop().replace(path)
        return file

    monkeypatch.setattr(Path, "open", opened)
    if times > 3:
        with pytest.raises(Untrusted, match="was replaced while it was read"):
            files.read(path)
    else:
        assert files.read(path).data == SHOP.encode()


def test_the_mode_is_that_of_the_opened_file(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(SHOP, mode=0o666)
    monkeypatch.setattr(trust, "_way_to", lambda _: iter(()))  # the path says nothing
    with pytest.raises(Untrusted, match="others can change"):
        files.read(path)


def test_a_secret_is_looked_at_again_each_time_that_it_is_read(write: Writer) -> None:
    path = write("s3cret", "secret")
    source = Source(path)
    assert source.read().get_secret_value() == "s3cret"
    path.chmod(0o666)
    with pytest.raises(ValueError, match="others can change"):
        source.read()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no folder of descriptors here")
def test_what_we_were_given_as_a_descriptor_passes() -> None:
    reading, writing = os.pipe()
    os.write(writing, SHOP.encode())
    os.close(writing)
    try:
        assert load(Path(f"/dev/fd/{reading}"), environ={}).projects
    finally:
        os.close(reading)
    with pytest.raises(ConfigError, match="none is configured"):
        load(Path(os.devnull), environ={})


def test_links_that_go_round_are_a_fault_and_no_hang(write: Writer) -> None:
    (write.folder / "one").symlink_to("two")
    (write.folder / "two").symlink_to("one")
    assert "symbolic links" in faults_of(write.folder / "one")[0]
    with pytest.raises(OSError, match="symbolic links"):
        trust.fault_of(write.folder / "one", "600")


def test_a_path_may_go_up_and_over_links(write: Writer) -> None:
    write(SHOP, "a/b/config.toml")
    (write.folder / "link").symlink_to("a/b")
    (write.folder / "absolute").symlink_to(write.folder / "link")
    assert load(write.folder / "absolute/../b/config.toml", environ={}).projects
    (write.folder / "a").chmod(0o777)
    assert (
        f"others can change the folder {write.folder}/a " in faults_of(write.folder / "link/config.toml")[0]
    )
