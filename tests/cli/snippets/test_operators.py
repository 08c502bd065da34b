"""The texts for operators: checked by the platforms' own schemas and programs where they are there."""

from __future__ import annotations

import datetime as dt
import os
import plistlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import kubernetes_validate
import pytest
import yaml
from support.commands import CONFIG, STARTUP_S, needs_signals, write
from support.snippets import (
    FULL,
    KEY,
    PROJECT,
    executed,
    needs,
    served,
    settings_of,
    text,
    with_and_without_callers,
)

from proxy.config.acl import exposure_in, fault_in
from proxy.config.load import load
from proxy.config.settings import Settings

TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd"])
def test_operators_have_the_default_port_where_it_is_any_free_one(what: str) -> None:
    assert text(what, settings_of(server={"port": 0})) == text(what, settings_of())


@pytest.mark.parametrize("what", ["kubernetes", "compose", "systemd", "launchd", "windows"])
def test_the_platform_waits_longer_than_a_drain_may_take(what: str) -> None:
    assert "45" in text(what, settings_of())
    shown = text(what, settings_of(server={"drain_timeout": 119.5}))
    assert re.search(
        r"(?:Seconds: |stop_grace_period: |TimeoutStopSec=|<stoptimeout>|<integer>)135s?\b", shown
    )


def mounted(folder: Path, config: str, place: str) -> Settings:
    """The settings that a configuration gives where its secrets are mounted at ``place``."""
    table = tomllib.loads(config.replace(place, str(folder)))
    for sections in (table.get("projects", {}), table.get("accounts", {}), table.get("callers", {})):
        for one in sections.values():
            for key in ("client_secret_file", "key_file"):
                if key in one:
                    Path(one[key]).touch(mode=0o600)
                    Path(one[key]).write_text("from-a-file-123")
            if "standby" in one:
                Path(one["standby"]["client_secret_file"]).touch(mode=0o600)
                Path(one["standby"]["client_secret_file"]).write_text("from-a-file-456")
    return load(None, table, {}, search=False)


def assert_same(settings: Settings) -> None:
    assert settings.projects["shop-fr"].client_id == 'id"$1'
    assert settings.projects["shop-fr"].standby is not None
    assert settings.projects["shop-fr"].expires == dt.date(2027, 1, 31)
    assert settings.accounts["acme"].projects == (43, 44)
    assert settings.callers["powerbi"].read_only
    assert (settings.server.port, settings.server.host) == (9000, "localhost")
    assert settings.log.level == "debug"


def test_the_kubernetes_snippet_fits_the_schema_and_its_configuration_is_ours(tmp_path: Path) -> None:
    config_map, deployment = yaml.safe_load_all(text("kubernetes", FULL))
    for resource in (config_map, deployment):
        kubernetes_validate.validate(resource, "1.31", strict=True)
    assert_same(mounted(tmp_path, config_map["data"]["config.toml"], "/run/secrets/csq-proxy"))
    pod = deployment["spec"]["template"]["spec"]
    [sidecar] = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    asked = {
        probe: "--ready" in sidecar[probe]["exec"]["command"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    # The app starts while Contentsquare is away.
    assert asked == {"startupProbe": False, "readinessProbe": True, "livenessProbe": False}
    secret = next(volume["secret"] for volume in pod["volumes"] if "secret" in volume)
    assert secret["defaultMode"] == 0o400
    [tmp] = [mount["name"] for mount in sidecar["volumeMounts"] if mount["mountPath"] == "/tmp"]
    assert any(volume["name"] == tmp and "emptyDir" in volume for volume in pod["volumes"])
    names = re.findall(r"--from-file=(\S+)=FILE", text("kubernetes", FULL))
    assert names == ["shop-fr", "shop-fr.standby", "own", "acme", "caller_powerbi"]


@with_and_without_callers
async def test_the_probes_of_the_kubernetes_snippet_work(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        config_map, deployment = yaml.safe_load_all(text("kubernetes", settings))
        write(tmp_path / "config.toml", config_map["data"]["config.toml"])
        [sidecar] = deployment["spec"]["template"]["spec"]["initContainers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            program, *arguments = sidecar[probe]["exec"]["command"]
            assert (program, arguments[0]) == ("csq-proxy", "health")
            # Without a key, readiness would get a 401, which says nothing of tokens.
            has_key = any(argument.startswith("--key-file=") for argument in arguments)
            assert has_key is (with_callers and probe == "readinessProbe")
            there = [
                argument.replace("/run/secrets/csq-proxy/", "./").replace("/etc/csq-proxy/", "./")
                for argument in arguments
            ]
            await executed(
                tmp_path, sys.executable, "-m", "proxy", *there, file="caller_bi", content=f"{KEY}\n"
            )


def test_systemd_asks_the_proxy_once_at_its_start_where_its_own_user_can() -> None:
    asks = "\nExecStartPost=/x/python -m proxy health --config /etc/csq-proxy/config.toml\n"
    assert asks in text("systemd", FULL, python="/x/python")
    assert "ExecStartPost" not in text("systemd", settings_of(server={"tcp": False}))  # root's socket


def test_systemd_leaves_the_metrics_of_the_process_what_they_need() -> None:
    assert "ProcSubset=" not in text(
        "systemd", FULL
    )  # prometheus_client reads the start's time from /proc/stat


def test_the_compose_snippet_is_whole_and_its_configuration_is_ours(tmp_path: Path) -> None:
    compose = yaml.safe_load(text("compose", FULL))
    service = compose["services"]["csq-proxy"]
    # An app that ends and starts again must not take the network with it.
    app, network = (compose["services"][name] for name in ("my-app", "network"))
    assert service["network_mode"] == app["network_mode"] == "service:network"
    assert (network["image"], network["healthcheck"]) == (service["image"], {"disable": True})
    assert service["tmpfs"] == ["/tmp"]  # Polars and DuckDB need the length of an export
    assert service["secrets"] == list(compose["secrets"])
    assert service["configs"][0]["source"] in compose["configs"]
    # `up` of Compose 2.40 refuses `content:` for a read-only container; `config` doesn't.
    assert service["read_only"]
    assert compose["configs"] == {"csq-proxy": {"file": "./config.toml"}}
    assert_same(mounted(tmp_path, commented(text("compose", FULL)), "/run/secrets"))


def commented(shown: str) -> str:
    """The configuration that stands in a text's comment."""
    return "\n".join(line.removeprefix("#   ") for line in shown.splitlines() if line.startswith("#   "))


def _compose() -> tuple[str, ...]:
    """Docker Compose 2 or newer, by the name that it has here; without it, nothing."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) is not None:
            asked = [*command, "version", "--short"]
            shown = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            if shown.strip().removeprefix("v")[:2] not in ("", "1."):
                return command
    return ()


COMPOSE = _compose()
IMAGE = os.environ.get("CSQ_PROXY_TEST_IMAGE", "")
"""The image to start, where DOCKER_HOST or the usual socket has it (`podman system service` will do)."""
needs_compose = pytest.mark.skipif(not COMPOSE, reason="no Docker Compose 2 here")


@needs_compose
def test_docker_compose_accepts_the_snippet(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(text("compose", FULL))
    (tmp_path / "config.toml").write_text(commented(text("compose", FULL)))
    ended = subprocess.run(
        [*COMPOSE, "config", "--quiet"],
        cwd=tmp_path,
        timeout=STARTUP_S,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@needs_compose
@pytest.mark.skipif(not IMAGE or os.geteuid() != 0, reason="not root, or CSQ_PROXY_TEST_IMAGE names no image")
def test_docker_compose_starts_the_snippet(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMPOSE, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, timeout=STARTUP_S, capture_output=True, text=True, check=False
        )

    shown = text("compose", settings_of())
    (tmp_path / "compose.yaml").write_text(shown)
    (tmp_path / "config.toml").write_text(commented(shown))
    (tmp_path / "config.toml").chmod(0o644)
    (tmp_path / "secrets").mkdir()
    os.chown(write(tmp_path / "secrets" / "shop-fr", "canary-1"), 65532, -1)
    limits = {"nofile": 1024, "nproc": 1024}
    services: dict[str, dict[str, object]] = {
        "network": {"image": IMAGE, "network_mode": "none", "ulimits": limits},
        "my-app": {"image": IMAGE, "entrypoint": ["sleep", "600"], "ulimits": limits},
        "csq-proxy": {"image": IMAGE, "ulimits": limits},
    }
    (tmp_path / "compose.override.yaml").write_text(yaml.safe_dump({"services": services}))
    started = run("up", "--detach")
    try:
        assert started.returncode == 0, started.stderr
        health = ("exec", "-T", "csq-proxy", "csq-proxy", "health")
        deadline = time.monotonic() + STARTUP_S
        while (probed := run(*health)).returncode and time.monotonic() < deadline:
            time.sleep(0.2)
        assert probed.returncode == 0, probed.stderr + run("logs", "csq-proxy").stdout
        assert "503: not ready" in run(*health, "--ready").stderr  # there is no Contentsquare
    finally:
        run("down", "--timeout", "2")


@pytest.mark.parametrize(
    "names",
    [["api.contentsquare.com"], ["api.eu-west-1.production.contentsquare.com", "api.contentsquare.com"]],
)
def test_the_hosts_snippet_fits_the_schemas_and_has_every_name(names: list[str], tmp_path: Path) -> None:
    server = {"allowed_hosts": ["csq-proxy", *names]} if len(names) > 1 else {}
    shown = text("hosts", settings_of(server=server, callers={"bi": {"key": KEY}}))
    parts = re.split(r"^--- (\S+)$", shown, flags=re.MULTILINE)
    files = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(files) == ["compose.yaml", "kubernetes.yaml", "run-my-program.sh"]
    assert "subjectAltName=" + ",".join(f"DNS:{name}" for name in names) in parts[0]

    compose = yaml.safe_load(files["compose.yaml"])
    services = compose["services"]
    [address] = [network["ipv4_address"] for network in services["csq-proxy"]["networks"].values()]
    assert services["my-program"]["extra_hosts"] == [f"{name}:{address}" for name in names]
    assert services["csq-proxy"]["secrets"] == list(compose["secrets"])

    service, deployment, program = yaml.safe_load_all(files["kubernetes.yaml"])
    for resource in (service, deployment, program):
        kubernetes_validate.validate(resource, "1.31", strict=True)
    # Kubernetes would mount a token below /run/secrets, in the volume there, which is read-only.
    assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    [alias] = program["spec"]["template"]["spec"]["hostAliases"]
    assert alias == {"ip": service["spec"]["clusterIP"], "hostnames": names}

    config = re.search(r"\[server\].*?key_file[^\n]*", parts[0].replace("#", ""), re.DOTALL)
    assert config is not None
    table = tomllib.loads(config[0].replace("/run/secrets", str(tmp_path)))
    [caller] = table["callers"].values()
    for path in (table["server"]["tls_cert"], table["server"]["tls_key"], caller["key_file"]):
        write(Path(path), "a-key-of-twenty-bytes")
    table["projects"] = {"shop": {"client_id": "id", "client_secret": "secret-of-shop"}}
    settings = load(None, table, {}, search=False)
    assert (settings.server.port, list(settings.server.allowed_hosts)) == (443, names)


def test_the_systemd_snippet_has_the_configuration_in_its_comment(tmp_path: Path) -> None:
    unit = text("systemd", FULL)
    assert_same(mounted(tmp_path, commented(unit), "${CREDENTIALS_DIRECTORY}"))
    assert unit.count("LoadCredential=") == 5


@needs_signals
@needs("sh")
@pytest.mark.parametrize("has_state", [False, True])
def test_a_configuration_can_be_tried_before_systemd_has_it(has_state: bool, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(0o700)
    unit = text(
        "systemd", settings_of(server={"port": 0, **({"state_dir": str(state)} if has_state else {})})
    )
    [line] = re.findall(r"^# (CREDENTIALS_DIRECTORY=.+)$", unit, re.MULTILINE)
    folder = tmp_path / "etc"
    folder.mkdir(0o700)
    write(folder / "shop-fr", "canary-1")
    config = write(folder / "config.toml", commented(unit))
    command = ["sh", "-c", line.replace("/etc/csq-proxy", str(folder))]

    def tried() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=STARTUP_S, check=False)

    good = tried()
    assert (good.returncode, good.stderr) == (0, "")
    write(config, f"{commented(unit)}\nlater = 1\n")
    bad = tried()
    assert (bad.returncode, "projects.shop-fr.later: unknown key" in bad.stderr) == (2, True)


def units_of(settings: Settings) -> dict[str, str]:
    """The units of the systemd snippet, by file name."""
    parts = re.split(r"^# /etc/systemd/system/(\S+)$", text("systemd", settings), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@needs("systemd-analyze")
@pytest.mark.parametrize("settings", [settings_of(), FULL], ids=["small", "full"])
def test_systemd_accepts_the_units(settings: Settings, tmp_path: Path) -> None:
    for name, unit in units_of(settings).items():
        (tmp_path / name).write_text(unit)
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=STARTUP_S,
        check=False,
    )
    complaints = [line for line in ended.stderr.splitlines() if "csq-proxy" in line]
    assert (ended.returncode, complaints) == (0, [])


def test_a_reload_refuses_what_is_no_toml_and_a_new_secret_needs_a_restart(tmp_path: Path) -> None:
    unit = text("systemd", FULL)
    before, kill = re.findall(r"^ExecReload=(.+)$", unit, re.MULTILINE)
    assert kill == "/bin/kill -HUP $MAINPID"
    config = tmp_path / "config.toml"
    command = [config if word.endswith(".toml") else word for word in shlex.split(before)]
    for content, code in (("\ufeff[server]\nport = 1\n", 0), ("[server\n", 1)):
        config.write_text(content, encoding="utf-8")
        ended = subprocess.run(command, capture_output=True, timeout=STARTUP_S, check=False)
        assert ended.returncode == code
    assert "\n# A new secret: systemctl restart csq-proxy. Most versions of systemd copy" in unit


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_the_unit_says_which_folder_its_user_cannot_pass(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "python").touch()
    (tmp_path / "linked").symlink_to(home / "python")
    for mode in (0o700, 0o750):
        home.chmod(mode)
        for python in (home / "python", tmp_path / "linked"):
            unit = text("systemd", FULL, python=str(python))
            found = re.search(r"status=203/EXEC: its user can't pass the folder (\S+) \(mode (\d+)\)", unit)
            assert found is not None
            closed = Path(found[1])
            assert closed in (home / "python").parents
            assert stat.S_IMODE(closed.stat().st_mode) == int(found[2], 8)
    for open_to_all in ("/usr/bin/env", "/nowhere/python"):
        assert "203/EXEC" not in text("systemd", FULL, python=open_to_all)


def test_every_port_has_a_socket_unit_that_names_its_project(tmp_path: Path) -> None:
    server = {"host": "localhost", "port": 9000, "unix_socket": str(tmp_path / "100%")}
    units = units_of(settings_of(server=server, projects={"shop-fr": {**PROJECT, "port": 9001}}))
    main, own = units["csq-proxy.socket"], units["csq-proxy-shop-fr.socket"]
    assert streams_of(main) == ["127.0.0.1:9000", "[::1]:9000", f"{tmp_path}/100%%"]
    assert f"ListenStream={tmp_path}/100%%\nSocketMode=0660\n" in main
    assert "\nFileDescriptorName=csq-proxy\n" in main
    assert streams_of(own) == ["127.0.0.1:9001", "[::1]:9001"]
    assert "\nFileDescriptorName=shop-fr\nService=csq-proxy.service\n" in own


@pytest.mark.parametrize(
    ("server", "streams"),
    [
        ({}, ["127.0.0.1:8277", "[::1]:8277"]),
        ({"host": "127.0.0.1"}, ["127.0.0.1:8277"]),
        ({"host": "::1"}, ["[::1]:8277"]),
        ({"tcp": False}, ["/run/csq-proxy/csq-proxy.sock"]),
        ({"tcp": False, "unix_socket": "/csq.sock"}, ["/csq.sock"]),
    ],
)
def test_systemd_opens_what_the_proxy_would(server: dict[str, object], streams: list[str]) -> None:
    assert streams_of(units_of(settings_of(server=server))["csq-proxy.socket"]) == streams


def streams_of(unit: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ListenStream=")]


def test_a_path_with_spaces_and_signs_survives() -> None:
    python = "/opt/my 100% & python"
    assert 'ExecStart="/opt/my 100%% & python" -m proxy serve' in text("systemd", FULL, python=python)
    windows = text("windows", FULL, python=r"C:\R & D\python.exe")
    task = ET.fromstring(windows.split("</Task>")[0] + "</Task>")
    assert task.findtext(f"{TASK}Actions/{TASK}Exec/{TASK}Command") == r"C:\R & D\pythonw.exe"


@needs_signals
def test_launchd_starts_it_with_the_user_s_configuration_a_log_file_and_no_variable_of_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "Library/Logs").mkdir(parents=True)
    settings = load(write(tmp_path / "R & D.toml", CONFIG))
    shown = plistlib.loads(text("launchd", settings, own=(sys.executable, "-m", "proxy")).encode())
    assert shown["Label"] == "csq-proxy"
    assert shown["KeepAlive"] == {"SuccessfulExit": False}
    assert (shown["RunAtLoad"], shown["ThrottleInterval"], shown["ExitTimeOut"]) == (True, 30, 45)
    log = tmp_path / "Library/Logs/csq-proxy.log"
    assert shown["EnvironmentVariables"] == {"CSQ_PROXY_LOG__FILE": str(log)}
    with Path(shown["StandardErrorPath"]).open("wb") as errors:
        proxy = subprocess.Popen(
            shown["ProgramArguments"],
            env={"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
            | shown["EnvironmentVariables"],
            cwd="/",
            stderr=errors,
        )
    try:
        ends = time.monotonic() + STARTUP_S
        while time.monotonic() < ends and not (log.exists() and '"listening"' in log.read_text("utf-8")):
            time.sleep(0.02)
        proxy.terminate()
        assert proxy.wait(STARTUP_S) == 0
    finally:
        proxy.kill()
        proxy.wait(STARTUP_S)
    assert '"stopped"' in log.read_text("utf-8")


def test_launchd_has_absolute_paths_and_the_configured_log(tmp_path: Path) -> None:
    settings = settings_of(log={"file": str(tmp_path / "x.log")})
    shown = plistlib.loads(text("launchd", settings, own=("/R & D/csq-proxy",)).encode())
    program, serve, flag, config = shown["ProgramArguments"]
    assert (program, serve, flag) == ("/R & D/csq-proxy", "serve", "--config")
    assert config == str(Path.home() / ".config/csq-proxy/config.toml")  # where init writes it
    assert "EnvironmentVariables" not in shown
    for line in ("launchctl bootstrap gui/$UID ", "launchctl bootout gui/$UID/csq-proxy\n"):
        assert line in text("launchd", settings)


def test_the_windows_snippet_is_two_files_of_xml() -> None:
    shown = text("windows", settings_of(), python=r"C:\venv\Scripts\python.exe")
    task, service = (
        ET.fromstring(part) for part in (shown.split("</Task>")[0] + "</Task>", shown.split("</Task>")[1])
    )
    assert task.findtext(f"{TASK}Actions/{TASK}Exec/{TASK}Command") == r"C:\venv\Scripts\pythonw.exe"
    assert '       [log]\n       file = "csq-proxy.log"\n' in shown  # without a window, no log is seen
    assert service.findtext("id") == "csq-proxy"


def test_the_windows_task_starts_at_the_logon_of_its_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows lets only an administrator make a task for the logon of any user: "Access is denied"."""
    for domain, shown in (("R&D", r"R&D\ann"), (None, r"COMPUTER\USER")):
        if domain is None:
            monkeypatch.delenv("USERDOMAIN")
        else:
            monkeypatch.setenv("USERDOMAIN", domain)
            monkeypatch.setenv("USERNAME", "ann")
        task = ET.fromstring(text("windows", settings_of()).split("</Task>")[0] + "</Task>")
        [trigger] = task.iter(f"{TASK}LogonTrigger")
        # The schema gives this order (MS-TSCH 2.5.3.7).
        assert [(one.tag.removeprefix(TASK), one.text) for one in trigger] == [
            ("Enabled", "true"),
            ("UserId", shown),
        ]


def test_a_program_of_one_file_is_started_without_python() -> None:
    unit = text("systemd", FULL, own=("/usr/local/bin/csq-proxy",))
    assert "\nExecStart=/usr/local/bin/csq-proxy serve --config /etc/csq-proxy/config.toml\n" in unit
    assert "\nNotifyAccess=all\n" in unit  # the program is a child of the one that unpacks it
    shown = text("windows", FULL, own=(r"C:\R & D\csq-proxy.exe",))
    task, service = shown.split("</Task>")
    action = ET.fromstring(f"{task}</Task>").find(f"{TASK}Actions/{TASK}Exec")
    assert action is not None
    assert action.findtext(f"{TASK}Command") == "conhost.exe"  # it has no window with --headless
    assert action.findtext(f"{TASK}Arguments") == r'--headless "C:\R & D\csq-proxy.exe" serve'
    assert ET.fromstring(service).findtext("executable") == r"%ProgramFiles%\csq-proxy\csq-proxy.exe"
    assert ET.fromstring(service).findtext("arguments", "").startswith("serve --config ")
    for one in (unit, shown):
        assert "-m proxy" not in one
        assert " -c " not in one
        assert "<<" not in one


def test_an_archive_is_started_by_its_python_and_unpacked_where_the_unit_may_write() -> None:
    unit = text("systemd", FULL, own=("/usr/bin/python3", "/opt/csq-proxy.pyz"))
    assert "\nExecStart=/usr/bin/python3 /opt/csq-proxy.pyz serve --config " in unit
    assert "\nEnvironment=SHIV_ROOT=%T\n" in unit
    assert "SHIV_ROOT" not in text("systemd", FULL)
    home = text("systemd", FULL, own=("/usr/bin/python3", "/home/ann/csq-proxy.pyz"))
    assert "\nProtectHome=read-only\n" in home


def test_the_windows_service_has_all_in_places_of_the_computer() -> None:
    shown = text("windows", settings_of(), python=r"C:\Users\ann\venv\Scripts\python.exe").split("</Task>")[1]
    assert "ann" not in shown
    service = ET.fromstring(shown)
    assert service.findtext("executable") == r"%ProgramFiles%\csq-proxy\Scripts\python.exe"
    assert r'--config "%ProgramData%\csq-proxy\config.toml"' in (service.findtext("arguments") or "")
    # WinSW 2 reads domain and user, and takes LocalSystem where there is only WinSW 3's username.
    account = {one.tag: one.text for one in service.iterfind("serviceaccount/*")}
    assert account == {
        "domain": "NT AUTHORITY",
        "user": "LocalService",
        "username": r"NT AUTHORITY\LocalService",
    }
    log = {one.get("name"): one.get("value") for one in service.iter("env")}
    assert log == {"CSQ_PROXY_LOG__FILE": r"%ProgramData%\csq-proxy\data\csq-proxy.log"}
    accounts = "*S-1-5-32-544:(OI)(CI)F", "*S-1-5-18:(OI)(CI)F", "*S-1-5-19:(OI)(CI)RX"
    assert " ".join(f'"{one}"' for one in accounts) in shown
    assert r'csq-proxy\data" /grant "*S-1-5-19:(OI)(CI)M"' in shown


def test_the_access_lists_that_the_windows_service_s_files_get_are_good() -> None:
    folder = "O:BAD:PAI(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;OICI;0x1200a9;;;LS)"
    config = "O:BAD:AI(A;ID;FA;;;BA)(A;ID;FA;;;SY)(A;ID;0x1200a9;;;LS)"
    data = "O:BAD:AI(A;OICI;0x1301bf;;;LS)(A;OICIID;FA;;;BA)(A;OICIID;FA;;;SY)(A;OICIID;0x1200a9;;;LS)"
    service, administrator = frozenset(("LS",)), frozenset(("S-1-5-21-1-2-3-1001",))
    for user in (service, administrator):  # who tries the configuration by `csq-proxy check`
        assert fault_in(folder, user, is_folder=True) is None
        assert fault_in(config, user, is_folder=False) is None
        assert exposure_in(config, user) is None
    assert fault_in(data, service, is_folder=True) is None
