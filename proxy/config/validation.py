"""Layers of nested dicts in, validated settings out: the one module that has pydantic.

Only where a configuration is read is it imported, for it takes more memory than the rest of the proxy.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.config.settings import (
    AccountSettings,
    CallerSettings,
    ContentsquareSettings,
    LogSettings,
    ProjectSettings,
    ServerSettings,
)

__all__ = ["ValidationError", "validated"]


def validated(layers: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The tables of `Settings` by name, out of layers of which the first wins. Raises ValidationError."""
    return dict(_Tables(layers=layers))  # type: ignore[call-arg]  # taken out by its sources


class _Layer(PydanticBaseSettingsSource):
    """A settings source that is a nested dict already."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """The value of one field; pydantic-settings' interface."""
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


class _Tables(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", hide_input_in_errors=True)

    server: ServerSettings = ServerSettings()
    log: LogSettings = LogSettings()
    contentsquare: ContentsquareSettings = ContentsquareSettings()
    projects: dict[str, ProjectSettings] = {}
    accounts: dict[str, AccountSettings] = {}
    callers: dict[str, CallerSettings] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' interface
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Our layers in place of pydantic-settings' own sources, whose messages aren't for people."""
        return tuple(_Layer(settings_cls, layer) for layer in init_settings()["layers"])
