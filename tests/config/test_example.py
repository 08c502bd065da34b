"""config.example.toml: it loads, and it names every setting."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from support.configurations import ONE_PROJECT, Writer, faults_of

from proxy.config.load import load
from proxy.config.settings import (
    AccountSettings,
    CallerSettings,
    ContentsquareSettings,
    LogSettings,
    ProjectSettings,
    ServerSettings,
    Settings,
)

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"


def test_the_example_loads_as_it_is(write: Writer) -> None:
    settings = load(write(EXAMPLE.read_text(encoding="utf-8")), ONE_PROJECT, {})
    assert settings.server == ServerSettings()
    assert settings.log == LogSettings()
    assert settings.contentsquare == ContentsquareSettings()


def uncommented() -> str:
    return re.sub(r"^#(?=[a-z\[])", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_example_loads_with_everything_uncommented(write: Writer, tmp_path: Path) -> None:
    text = uncommented()
    for number in range(text.count('"..."')):
        text = text.replace('"..."', f'"real-{number}"', 1)
    program = Path(sys.executable).as_posix()
    text = re.sub(
        r"^(client_secret_command = ).*", rf'\1["{program}", "-c", "print(1)"]', text, flags=re.MULTILINE
    )
    for name in ("cert.pem", "key.pem", "company-ca.pem", "shop-us.secret", "powerbi.key"):
        write("content", name)
    (tmp_path / "state").mkdir(0o700)
    if sys.platform == "win32":
        text = text.replace("unix_socket =", "#unix_socket =")
    else:
        text = re.sub(r'^unix_socket = ".*"', 'unix_socket = "/csq-proxy.sock"', text, flags=re.MULTILINE)
    settings = load(write(text), environ={})
    assert settings.default_project == "shop-fr"
    assert set(settings.projects) == {"shop-fr", "shop-us"}
    assert settings.contentsquare.model_copy(update={"ca_file": None}) == ContentsquareSettings()
    assert settings.log.model_copy(update={"file": None}) == LogSettings()


def test_the_example_untouched_but_uncommented_asks_for_the_real_values(write: Writer) -> None:
    assert "projects.shop-fr.client_id: is still the example's dots; put the real value there" in faults_of(
        write(uncommented())
    )


def test_the_example_names_every_setting() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    example = tomllib.loads(uncommented())
    for section in ("server", "log", "contentsquare"):
        assert set(example[section]) == {*type(getattr(Settings(), section)).model_fields}
    for model in (ProjectSettings, AccountSettings, CallerSettings):
        for key in model.model_fields:
            assert re.search(rf"^#{key} = ", text, flags=re.MULTILINE), key
    for table in ("shop-fr", "shop-us"):
        assert table in example["projects"]
