"""Configurations for tests: files that only their owner can read, and the faults of wrong ones."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.config.load import load
from proxy.errors import ConfigError

CANARY = "c4n4ry-of-a-secret"


SHOP = f'[projects.shop]\nclient_id = "id"\nclient_secret = "{CANARY}"\n'


ONE_PROJECT = {"projects": {"shop": {"client_id": "id", "client_secret": CANARY}}}


posix_only = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")


def give_to_a_foreign_group(path: Path) -> Path:
    """Give root's file a group that this process isn't in, as an ordinary user's other group would be."""
    if sys.platform != "win32" and os.geteuid() == 0:
        os.chown(path, -1, 54_321)
    return path


class Writer:
    """Writes files that only their owner can read into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, text: str, name: str = "config.toml", mode: int = 0o600) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path


def faults_of(
    path: Path | None = None,
    environ: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ or {}, search=False)
    faults = list(caught.value.faults)
    text = "\n".join(faults)
    assert CANARY not in text
    assert not re.search(r"pydantic|https://errors|Traceback|input_value|type=|\(\)", text)
    return faults


def project(name: str, more: str = "", section: str = "projects") -> str:
    return f"[{section}.{name}]\nclient_id = 'id'\nclient_secret = '{CANARY}'\n{more}\n"
