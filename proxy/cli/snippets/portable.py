"""The configuration as text for another computer: without secrets, which come from files there.

Hides which keys can be copied: a path of this computer can't, and a comment stands in its place. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from proxy.config.new_file import written
from proxy.config.settings import Settings, Table
from proxy.secret import Secret

IN_CONTAINER = {
    "server.host": "left out, as the app calls 127.0.0.1",
    "server.tcp": "left out, as the app calls 127.0.0.1",
    "server.unix_socket": "give its path here, and mount its folder",
    "server.tls_cert": "give its path here, and mount the file; the app must then speak TLS",
    "server.tls_key": "give its path here, and mount the file",
    "contentsquare.ca_file": "give its path here, and mount the file",
    "log.file": "left out: the platform collects the log from standard error",
}
"""The comment in place of a key, in a container that shares its app's loopback."""
STATE_DIR = "/var/lib/csq-proxy"
"""The folder for counts there: a volume in Compose, and ``StateDirectory=csq-proxy`` under systemd."""
IN_POD = {
    **IN_CONTAINER,
    "server.state_dir": "left out, as volumes are open to groups; Prometheus keeps csq_proxy_calls_total",
}
"""The same for Kubernetes."""
UNDER_SYSTEMD = {
    "server.host": "left out, for this computer alone; give the address here, once TLS is there",
    "server.unix_socket": "give its path here, in a RuntimeDirectory=, or take csq-proxy.socket below",
    "server.tls_cert": "give its path here, or hand it over by LoadCredential",
    "server.tls_key": "give its path here, or hand it over by LoadCredential",
    "contentsquare.ca_file": "give its path here, or hand it over by LoadCredential",
    "log.file": "left out: the journal has the log",
}
"""The same for a service of systemd's."""
_OTHER_PATH = "give its path here"
_WHERE_SECRETS_WERE = ("client_secret_file", "client_secret_command", "key_file")


def config(settings: Settings, secrets: str, notes: Mapping[str, str], *, indent: int) -> str:
    """TOML, with each secret in a file of the folder ``secrets``, every line ``indent`` spaces in.

    ``notes`` is `IN_CONTAINER`, `IN_POD` or `UNDER_SYSTEMD`.
    """
    lines = []
    for section in ("server", "log", "contentsquare"):
        lines += _table(section, getattr(settings, section), notes)
    for section in ("projects", "accounts", "callers"):
        for name, table in getattr(settings, section).items():
            path = f"{secrets}/{secret_name(section, name)}"
            lines += _table(f"{section}.{name}", table, notes, path)
            if (standby := getattr(table, "standby", None)) is not None:
                path = f"{secrets}/{_standby_name(name)}"
                lines += _table(f"{section}.{name}.standby", standby, notes, path)
    return "\n".join(f"{' ' * indent}{line}" for line in lines)


def secret_name(section: str, name: str) -> str:
    """The name of the file for a project's, an account's or a caller's secret.

    Names in the configuration hold no ``_`` and no ``.``, so two files can't have the same name. Compose,
    Kubernetes and systemd accept both characters.
    """
    return f"caller_{name}" if section == "callers" else name


def secret_names(settings: Settings) -> list[str]:
    """The names of the files for the secrets."""
    names = []
    for section in ("projects", "accounts", "callers"):
        for name, table in getattr(settings, section).items():
            names.append(secret_name(section, name))
            if getattr(table, "standby", None) is not None:
                names.append(_standby_name(name))
    return names


def _standby_name(owner: str) -> str:
    return f"{owner}.standby"


def _table(title: str, table: Table, notes: Mapping[str, str], secret: str | None = None) -> list[str]:
    lines = list(_lines(title, table, notes))
    if secret is not None:
        key = "key_file" if title.startswith("callers.") else "client_secret_file"
        lines.append(f"{key} = {json.dumps(secret)}")
    return [f"[{title}]", *lines] if lines else []


def _lines(title: str, table: Table, notes: Mapping[str, str]) -> Iterator[str]:
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        key = f"{title}.{name}"
        if value in (None, field.default) or isinstance(value, (Secret, Table)):
            continue
        if name in _WHERE_SECRETS_WERE:
            continue
        if key == "server.state_dir" and key not in notes:
            yield f"{name} = {json.dumps(STATE_DIR)}"
        elif key in notes or isinstance(value, Path):
            yield f"# {key}: {notes.get(key, _OTHER_PATH)}"
        else:
            yield f"{name} = {written(value)}"
