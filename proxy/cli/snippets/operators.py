"""The values for the texts by which operators run the proxy, such as Kubernetes and systemd.

Pure, but for a look at the environment, and at the folders of the Python that a unit would run.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from proxy import __version__
from proxy.cli.snippets import gateway, portable
from proxy.cli.snippets.callers import UNIX_SOCKET
from proxy.config.files import user_files
from proxy.config.settings import LOCALHOST, ServerSettings, Settings
from proxy.origin import bracketed

_GRACE_S = 15
"""Seconds that a platform gives the proxy to stop, in addition to ``drain_timeout``."""
_CONTAINER_SECRETS = "/run/secrets"
_VENDOR = "contentsquare.com"
_ADDRESS = "172.30.43.2"
"""The proxy's address in the Compose network of a program that has Contentsquare's name built in."""
_HIDDEN = frozenset(("home", "root"))
"""The folders of the root that ``ProtectHome=`` hides (systemd.exec(5))."""


def values(platform: str, settings: Settings, own: Sequence[str]) -> dict[str, str]:
    """The values for ``platform``; ``own`` starts the proxy there (`proxy.process.own_command`)."""
    general = {
        "port": str(settings.server.port),
        "version": __version__,
        "grace_s": str(math.ceil(settings.server.drain_timeout) + _GRACE_S),
    }
    if platform == "kubernetes":
        return general | _kubernetes(settings)
    if platform == "compose":
        return general | _compose(settings)
    if platform == "systemd":
        return general | _systemd(settings, own)
    if platform == "launchd":
        return general | _launchd(settings, own)
    if platform == "gateway":
        return general | gateway.values(settings)
    if platform == "hosts":
        return general | _hosts(settings)
    return general | _windows(own)


def _kubernetes(settings: Settings) -> dict[str, str]:
    names = portable.secret_names(settings)
    return {
        "config_mounted": portable.config(
            settings, f"{_CONTAINER_SECRETS}/csq-proxy", portable.IN_POD, indent=4
        ),
        "caller_secret": next((portable.secret_name("callers", name) for name in settings.callers), ""),
        "kubectl_secrets": " ".join(f"--from-file={name}=FILE" for name in names),
    }


def _compose(settings: Settings) -> dict[str, str]:
    names = portable.secret_names(settings)
    config = portable.config(settings, _CONTAINER_SECRETS, portable.IN_CONTAINER, indent=0)
    return {
        "compose_config": _comment(config),
        "compose_secret_names": "\n".join(f"      - {name}" for name in names),
        "compose_secrets": "\n".join(f"  {name}:\n    file: ./secrets/{name}" for name in names),
    }


def _hosts(settings: Settings) -> dict[str, str]:
    """The names that lead a program to the proxy: those of Contentsquare's that the proxy already accepts."""
    names = [name for name in settings.server.allowed_hosts if name.endswith(f".{_VENDOR}")]
    names = names or [f"api.{_VENDOR}"]
    return {
        "address": _ADDRESS,
        "name": names[0],
        "names": " ".join(names),
        "quoted_names": ", ".join(f'"{name}"' for name in names),
        "alternative_names": ",".join(f"DNS:{name}" for name in names),
        "extra_hosts": "\n".join(f'      - "{name}:{_ADDRESS}"' for name in names),
    }


def _systemd(settings: Settings, own: Sequence[str]) -> dict[str, str]:
    config = portable.config(settings, "${CREDENTIALS_DIRECTORY}", portable.UNDER_SYSTEMD, indent=0)
    names = portable.secret_names(settings)
    programs = [word for word in own if word not in ("-m", "proxy")]
    places = [*programs, *map(os.path.realpath, programs)]
    ports = {name: project.port for name, project in settings.projects.items() if project.port}
    # Where root tries the configuration; the folder for counts belongs to the service's own user.
    tried = ["CREDENTIALS_DIRECTORY"]
    if settings.server.state_dir is not None:
        tried.append("CSQ_PROXY_SERVER__STATE_DIR")
    path = settings.server.unix_socket or (None if settings.server.tcp else Path(UNIX_SOCKET))
    sockets = [_socket_unit("csq-proxy", "csq-proxy", settings, settings.server.port, path)]
    sockets += [_socket_unit(f"csq-proxy-{name}", name, settings, port) for name, port in ports.items()]
    return {
        "socket_units": " ".join(("csq-proxy.socket", *(f"csq-proxy-{name}.socket" for name in ports))),
        "sockets": "\n\n".join(sockets),
        "command": " ".join(map(_quoted, own)),
        "try_environment": " ".join(f"{name}=/etc/csq-proxy" for name in tried),
        "python": _quoted(own[0]),
        "archive": "\nEnvironment=SHIV_ROOT=%T" if own[-1].endswith(".pyz") else "",
        "closed_folder": next(filter(None, map(_closed_folder, programs)), ""),
        "systemd_config": _comment(config),
        "load_credentials": "\n".join(f"LoadCredential={name}:/etc/csq-proxy/{name}" for name in names),
        "protect_home": "read-only" if any(map(_is_hidden, places)) else "yes",
    }


def _is_hidden(program: str) -> bool:
    return not _HIDDEN.isdisjoint(PurePosixPath(program).parts[1:2])


def _closed_folder(program: str) -> str:
    """Lines on a folder of ``program`` that the unit's user can't pass, such as a home folder; else empty."""
    path = Path(program)
    for folder in (*reversed(path.parents), *reversed(path.resolve().parents)):
        try:
            mode = stat.S_IMODE(folder.stat().st_mode)
        except OSError:
            continue
        if sys.platform != "win32" and not mode & stat.S_IXOTH:
            return (
                "\n# This unit would fail with status=203/EXEC: its user can't pass the folder"
                f" {folder} (mode {mode:04o}) to\n# {program}. Install csq-proxy where every user may run it,"
                " as by\n# python3 -m venv /opt/csq-proxy (a program of one file: in /usr/local/bin),"
                " and print this\n# text with the csq-proxy there."
            )
    return ""


def _comment(config: str) -> str:
    return "\n".join(f"#   {line}".rstrip() for line in config.splitlines())


def _socket_unit(unit: str, name: str, settings: Settings, port: int, path: Path | None = None) -> str:
    """The socket unit for a port, and a Unix socket beside it; ``name`` is their ``FileDescriptorName=``."""
    streams = _addresses(settings.server, port) if settings.server.tcp else []
    if path is not None:
        streams += [f"ListenStream={_percent(path)}", "SocketMode=0660", "# SocketGroup=who-may-call"]
    return "\n".join(
        (
            f"# /etc/systemd/system/{unit}.socket",
            "[Unit]",
            f"Description=A port of csq-proxy ({name})",
            "",
            "[Socket]",
            *streams,
            f"FileDescriptorName={name}",
            "Service=csq-proxy.service",
            "",
            "[Install]",
            "WantedBy=sockets.target",
        )
    )


def _addresses(server: ServerSettings, port: int) -> list[str]:
    """The lines with the addresses; a name other than localhost isn't looked up."""
    try:
        hosts: tuple[str, ...] = (str(ipaddress.ip_address(server.host)),)
    except ValueError:
        hosts = LOCALHOST if server.host == "localhost" else LOCALHOST[:1]
    lines = [f"ListenStream={bracketed(host)}:{port}" for host in hosts]
    if len(hosts) > 1:
        lines.insert(1, "# Where the machine has no ::1, leave the next line out.")
    return lines


def _quoted(path: str) -> str:
    """A path for a unit (systemd.service(5)): in quotes if it holds a space, and with %% for each %."""
    path = _percent(path)
    return f'"{path}"' if " " in path else path


def _percent(path: Path | str) -> str:
    return str(path).replace("%", "%%")


def _windows(own: Sequence[str]) -> dict[str, str]:
    windowless = re.sub(r"python(\.exe)?\Z", r"pythonw\1", own[0])
    domain, user = os.environ.get("USERDOMAIN"), os.environ.get("USERNAME")
    return {
        "windows_user": escape(rf"{domain}\{user}" if domain and user else r"COMPUTER\USER"),
        "windows_pythonw": escape(windowless),
        "windows_program": escape(own[0]),
        "windows_arguments": escape(subprocess.list2cmdline(own[1:])),
    }


def _launchd(settings: Settings, own: Sequence[str]) -> dict[str, str]:
    """The values of a property list for the user that prints it (launchd.plist(5))."""
    logs = Path.home() / "Library/Logs"
    config = settings.source or user_files(os.environ)[-1]
    log = (
        "\n  <key>EnvironmentVariables</key>\n  <dict>\n    <key>CSQ_PROXY_LOG__FILE</key>\n"
        f"    <string>{escape(str(logs / 'csq-proxy.log'))}</string>\n  </dict>"
    )
    arguments = (*own, "serve", "--config", str(config))
    return {
        "launchd_arguments": "\n".join(f"    <string>{escape(word)}</string>" for word in arguments),
        "launchd_log": log if settings.log.file is None else "",
        "launchd_errors": escape(str(logs / "csq-proxy.err")),
    }
