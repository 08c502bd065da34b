"""Secrets from files and commands, and files that other users can read."""

from __future__ import annotations

import contextlib
import os
import pickle
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.configurations import CANARY, SHOP, Writer, faults_of, give_to_a_foreign_group, posix_only

from proxy.config import files, secrets
from proxy.config.load import load


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


@pytest.mark.parametrize("secret", [CANARY, f"kQ7/{CANARY}", f"{CANARY}\n", CANARY * 20])
def test_a_secret_in_the_place_of_its_path_is_not_shown(secret: str, write: Writer, tmp_path: Path) -> None:
    project = {"CSQ_PROXY_PROJECTS__SHOP__CLIENT_ID": "id"}
    for key in ("PROJECTS__SHOP__CLIENT_SECRET_FILE", "CALLERS__BI__KEY_FILE"):
        [fault] = faults_of(write(SHOP if "KEY" in key else ""), {**project, f"CSQ_PROXY_{key}": secret})
        assert "it isn't shown here, since it may be the secret itself" in fault
    [fault] = faults_of(environ={"CONTENTSQUARE_CLIENT_ID": "id", "CONTENTSQUARE_CLIENT_SECRET_FILE": secret})
    assert "it isn't shown" in fault


def test_the_name_of_a_secret_s_file_is_shown_where_it_is_a_name(write: Writer, tmp_path: Path) -> None:
    for name in ("no", "shop.secret", "run/secrets/csq_client_secret", "/run/secrets/csq-proxy-shop-42"):
        [fault] = faults_of(write(f"[projects.shop]\nclient_id = 'id'\nclient_secret_file = '{name}'\n"))
        assert fault.endswith(f"there is no file {tmp_path / name}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("client_secret = ''", "client_secret: is empty; put a value there"),
        ("client_secret = 12345678", "client_secret: must be text, in quotes"),
        ("client_secret = '...'", "client_secret: is still the example's dots; put the real value there"),
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


def test_a_secret_file_loses_one_final_line_break(write: Writer) -> None:
    for content, expected in (
        (b"s3cret", "s3cret"),
        (b"s3cret\n", "s3cret"),
        (b"\xef\xbb\xbfs 3\r\n", "s 3"),
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


PROGRAM = shlex.quote(Path(sys.executable).as_posix())


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
        (command("-c", ""), f"the output of {PROGRAM} is empty"),
        (command("-c", f"print('{CANARY}\\n2')"), f"the output of {PROGRAM} holds more than one line"),
        (command("-c", "import time; time.sleep(9)"), "took longer than 0.05 s"),
        (command("-c", "import os, time; os.close(1); time.sleep(9)"), "took longer than 0.05 s"),
        (command("-c", "while True: print('c' * 9999)"), f"the output of {PROGRAM} is too long for a secret"),
        (
            "[projects.shop]\nclient_id = 'id'\nclient_secret_command = ['no-such-program-here', 'x']",
            "there is no program no-such-program-here; give its full path",
        ),
        (
            f"[projects.shop]\nclient_id = 'id'\nclient_secret_command = ['op read {CANARY}']",
            'must be a program and its arguments, each a word of its own: ["op", "read", "..."]',
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
    path = give_to_a_foreign_group(write(SHOP, mode=mode))
    (fault,) = faults_of(path)
    assert f"(mode {mode:04o}); run: chmod 600 {path}" in fault
    standby = "standby = {client_id = 'b', client_secret = 'c'}"
    held = write(f"[projects.shop]\nclient_id = 'a'\nclient_secret_file = 's'\n{standby}", mode=mode)
    write("x", "s")
    assert faults_of(held)[0].startswith("the configuration holds a secret")


@posix_only
def test_a_secret_file_that_others_can_read_is_refused(write: Writer) -> None:
    path = write('[projects.shop]\nclient_id = "id"\nclient_secret_file = "s s"\n', mode=0o644)
    give_to_a_foreign_group(write(CANARY, "s s", mode=0o640))
    (fault,) = faults_of(path)
    assert fault.startswith("projects.shop.client_secret_file: others can read or change ")
    assert fault.endswith(f"run: chmod 600 '{write.folder}/s s'")
    write(CANARY, "s s", mode=0o400)
    assert load(path, environ={}).default_project == "shop"


ME, MINE, OTHER = 1000, 2000, 3000
"""A user, its group, and another user or group."""


@posix_only
@pytest.mark.parametrize(
    ("process", "owned_by", "mode", "advice"),
    [
        (ME, (0, MINE), 0o440, None),  # root's, for the group of the process
        (ME, (0, MINE), 0o640, None),
        (0, (0, 0), 0o440, None),  # the process is root
        (0, (0, MINE), 0o440, None),
        (0, (0, OTHER), 0o440, "600"),
        (ME, (ME, MINE), 0o440, "600"),  # a group of ours may hold every user, as staff on macOS
        (ME, (0, MINE), 0o444, "g-w,o-rwx"),  # 600 would shut us out
        (ME, (0, MINE), 0o460, "g-w,o-rwx"),
        (0, (0, 0), 0o460, "600"),
        (0, (0, 0), 0o444, "600"),
        (ME, (ME, MINE), 0o604, "600"),
    ],
)
def test_root_s_secret_for_the_group_of_the_process_is_accepted(
    process: int, owned_by: tuple[int, int], mode: int, advice: str | None, write: Writer
) -> None:
    path = write(CANARY, "secret")
    _, inode, device, links, _, _, *rest = path.stat()
    status = os.stat_result((stat.S_IFREG | mode, inode, device, links, *owned_by, *rest))
    with pytest.MonkeyPatch.context() as patch:  # pytest itself asks for the user
        patch.setattr(os, "geteuid", lambda: process)
        patch.setattr(os, "getegid", lambda: process)
        patch.setattr(os, "getgroups", lambda: [MINE])
        fault = secrets.exposure(path, status)
    said = f"others can read or change {path} (mode {mode:04o}); run: chmod {advice} {path}"
    assert fault == (said if advice else None)


@posix_only
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root makes root's files")
@pytest.mark.parametrize("what", ["client_secret_file", "the configuration"])
def test_root_reads_a_secret_of_its_own_group(what: str, write: Writer) -> None:
    held, config = write(CANARY, "s"), write(SHOP)
    if what == "client_secret_file":
        config = write("[projects.shop]\nclient_id = 'id'\nclient_secret_file = 's'\n")
    path = held if what == "client_secret_file" else config
    os.chown(path, 0, os.getegid())
    path.chmod(0o440)
    assert load(config, environ={}).projects["shop"].client_secret.get_secret_value() == CANARY


@posix_only
def test_a_listener_s_private_key_that_others_can_read_is_refused(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("certificate", "cert.pem", mode=0o644)
    key = give_to_a_foreign_group(write("key", "key.pem", mode=0o640))
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


# Commands and files that take their time

GRANDCHILD = """
import socket, subprocess, sys, time
ours = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 15)
subprocess.Popen((sys.executable, "-c", "import time; time.sleep(60)"), pass_fds=[ours.fileno()])
ours.sendall(b"x")
time.sleep(60)
"""


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(15)
        yield server


def ends(server: socket.socket) -> bool:
    """Whether a command and its child, which hold a connection, end soon."""
    connection, _ = server.accept()
    with connection:
        connection.settimeout(15)
        return connection.recv(1) + connection.recv(1) == b"x"


@pytest.mark.skipif(sys.platform == "win32", reason="the child inherits a descriptor")
def test_a_command_s_children_end_with_it_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "COMMAND_TIMEOUT_S", 2)
    with listening() as server:
        with pytest.raises(secrets.SecretUnusable, match="took longer than 2 s"):
            secrets.run_command((sys.executable, "-c", GRANDCHILD, str(server.getsockname()[1])))
        assert ends(server)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no sessions")
def test_a_command_has_no_terminal_to_ask_on() -> None:
    program = "import os, sys; print('session', os.getsid(0) == os.getpid(), repr(sys.stdin.read()))"
    # The leader of a new session has no terminal (setsid(2)).
    assert secrets.run_command((sys.executable, "-c", program)) == "session True ''"


@pytest.mark.skipif(sys.platform != "win32", reason="an operating system runs .cmd files")
@pytest.mark.parametrize(
    "word", ["secret-tool", "secret-tool.cmd", "./secret-tool", "sub/../secret-tool.cmd"]
)
def test_a_command_may_be_a_script_of_windows(
    word: str, write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of Azure and Google Cloud are; a relative path begins in the file's folder, as elsewhere."""
    write(f"@echo off\necho {CANARY}-%1\n", "secret-tool.cmd")
    (tmp_path / "sub").mkdir()
    path = write(f"[projects.shop]\nclient_id = 'id'\nclient_secret_command = ['{word}', 'x']")
    if "/" not in word:
        monkeypatch.setenv("PATH", f"{os.environ['PATH']};{tmp_path}")
    assert load(path, environ={}).projects["shop"].client_secret.get_secret_value() == f"{CANARY}-x"


def test_a_command_opens_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, from a proxy without a console: each look would take the keyboard from its user."""
    flags = []

    def popen(*_: object, creationflags: int, **__: object) -> None:
        flags.append(creationflags)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(secrets.SecretUnusable, match="there is no program"):
        secrets.run_command(("tool",))
    assert flags == [0x08000000]


LATE = """
import contextlib, subprocess, sys, threading
from proxy.config import secrets

class Late(subprocess.Popen):
    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        begun.set()
        secrets._no_more.wait(15)

begun = threading.Event()
subprocess.Popen = Late
call = f"import socket, time; held = socket.create_connection(('127.0.0.1', {sys.argv[1]})); time.sleep(60)"

def run():
    with contextlib.suppress(secrets.SecretUnusable):  # to print it would meet the interpreter's own end
        secrets.run_command((sys.executable, "-c", call))

threading.Thread(target=run, daemon=True).start()
begun.wait(15)
"""


def test_a_command_that_starts_as_the_proxy_ends_is_ended_too() -> None:
    with listening() as server:
        subprocess.run([sys.executable, "-c", LATE, str(server.getsockname()[1])], timeout=60, check=True)
        server.settimeout(2)
        try:
            connection, _ = server.accept()
        except TimeoutError:  # the command was ended before its call
            return
        with connection:
            connection.settimeout(15)
            assert connection.recv(1) == b""


@pytest.mark.skipif(sys.platform == "win32", reason="the child inherits a descriptor")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_s_children_end_with_the_proxy(number: signal.Signals, write: Writer) -> None:
    with listening() as server:
        path = write(command("-c", GRANDCHILD, str(server.getsockname()[1])))
        program = (sys.executable, "-m", "proxy", "serve", "--config", str(path))
        with subprocess.Popen(program, stderr=subprocess.DEVNULL) as proxy:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(15)
                assert connection.recv(1) == b"x"
                proxy.send_signal(number)
                assert connection.recv(1) == b""


def test_commands_run_side_by_side_and_an_equal_one_runs_once(write: Writer) -> None:
    meets = (
        "import os, sys, time; open('ran-' + sys.argv[1], 'a').write('x')\n"
        "while not all(os.path.exists('ran-' + name) for name in 'ab'): time.sleep(.01)\n"
        "print('secret-' + sys.argv[1])"
    )
    text = "".join(
        command("-c", meets, argument).replace("shop", name)
        for name, argument in (("one", "a"), ("two", "b"), ("three", "b"))
    )
    projects = load(write(text), environ={}).projects
    assert [project.client_secret.get_secret_value() for project in projects.values()] == [
        "secret-a",
        "secret-b",
        "secret-b",
    ]
    assert (write.folder / "ran-b").read_text() == "x"


def test_only_so_many_commands_run_at_once_and_all_their_faults_are_told(write: Writer) -> None:
    counts = (
        "import os, sys, time; open('run-' + sys.argv[1], 'x')\n"
        "running = sum(name.startswith('run-') for name in os.listdir())\n"
        "open('seen-' + sys.argv[1], 'w').write(str(running))\n"
        "time.sleep(.05); os.remove('run-' + sys.argv[1]); sys.exit(3)"
    )
    names = [f"p{number}" for number in range(2 * secrets.AT_ONCE)]
    faults = faults_of(write("".join(command("-c", counts, name).replace("shop", name) for name in names)))
    assert [fault.split(".")[1] for fault in faults] == names
    assert all("ended with exit code 3" in fault for fault in faults)
    seen = [int((write.folder / f"seen-{name}").read_text()) for name in names]
    assert max(seen) <= secrets.AT_ONCE


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are in no folder there")
@pytest.mark.parametrize("which", ["config.toml", "secret"])
def test_a_named_pipe_that_gives_nothing_is_a_fault_that_names_it(
    which: str, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('[projects.shop]\nclient_id = "id"\nclient_secret_file = "secret"\n')
    write("s3cret", "secret")
    pipe = write.folder / (path.name if which == "config.toml" else which)
    good = pipe.read_text()
    pipe.unlink()
    os.mkfifo(pipe, 0o600)
    with monkeypatch.context() as patch:
        patch.setattr(files, "READ_TIMEOUT_S", 0.1)
        (fault, *_) = faults_of(path)
    assert str(pipe) in fault
    assert "no answer within 0.1 s" in fault
    pipe.rename(write.folder / "hung")  # its reader waits for ever
    write(good, pipe.name)
    assert load(path, environ={}).projects["shop"].client_secret.get_secret_value() == "s3cret"


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are in no folder there")
def test_a_named_pipe_with_a_writer_gives_a_secret_once(write: Writer) -> None:
    path = write('[projects.shop]\nclient_id = "id"\nclient_secret_file = "pipe"\n')
    os.mkfifo(write.folder / "pipe", 0o600)
    threading.Thread(target=(write.folder / "pipe").write_text, args=("s3cret\n",), daemon=True).start()
    assert load(path, environ={}).projects["shop"].client_secret.get_secret_value() == "s3cret"
