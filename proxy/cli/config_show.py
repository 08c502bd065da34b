"""``csq-proxy config show``: the effective settings, as TOML without secrets.

``check`` reads this TOML, too; its only faults are then the masked secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.cli.console import say
from proxy.foreign import shown

if TYPE_CHECKING:
    from proxy.config.settings import Settings, Table

Origin = Callable[[tuple[str, ...]], str]
"""Tells where the value of a key came from; empty text: that isn't shown."""
app = typer.Typer(help="Look at the configuration.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Keep ``show`` a word of its own: Typer makes a lone command the group."""


@app.command(short_help="Print the settings that serve would use, as TOML.")
def show(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="The configuration file (TOML).", show_default=False
        ),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Tell where each value came from: flag, variable, file.")
    ] = False,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="The option of serve.")] = None,
    port: Annotated[str | None, typer.Option(metavar="PORT", help="The option of serve.")] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="The option of serve.")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="FORMAT", help="The option of serve.")] = None,
) -> None:
    """Print the settings that serve would use, as TOML; each secret is ***."""
    from proxy.config.load import load_with_origins  # noqa: PLC0415

    flags = {"server": {"host": host, "port": port}, "log": {"level": log_level, "format": log_format}}
    settings, origin = load_with_origins(config, flags, os.environ)
    say(f"# File: {shown(str(settings.source)) if settings.source else 'none'}")
    for place in settings.passed_over:
        say(f"# Passed over: {shown(place)}")
    say("\n".join(text_of(settings, origin if sources else lambda _: "")))


def text_of(settings: Settings, origin: Origin) -> Iterator[str]:
    """The lines of the TOML. A key without a value is left out, since TOML has no word for none."""
    for section in ("server", "log", "contentsquare"):
        yield from _table((section,), getattr(settings, section), origin)
    for section in ("projects", "accounts", "callers"):
        for name, table in getattr(settings, section).items():
            yield from _table((section, name), table, origin)
            if (standby := getattr(table, "standby", None)) is not None:
                yield from _table((section, name, "standby"), standby, origin)


def _table(path: tuple[str, ...], table: Table, origin: Origin) -> Iterator[str]:
    from proxy.config.new_file import written  # noqa: PLC0415
    from proxy.config.settings import Table  # noqa: PLC0415
    from proxy.secret import Secret  # noqa: PLC0415

    yield f"\n[{'.'.join(path)}]"
    for key in type(table).model_fields:
        value = getattr(table, key)
        if value is None or isinstance(value, Table):
            continue
        source = origin((*path, key))
        if isinstance(value, Secret):
            if getattr(table, f"{key}_file", None) is not None:
                continue  # the file's path stands there
            if getattr(table, f"{key}_command", None):
                source = source and f"{origin((*path, f'{key}_command'))}, {key}_command"
            value = "***"
        elif key == "client_secret_command":  # its arguments may be secrets
            continue
        text = written(str(value) if isinstance(value, Path) else value)
        yield f"{key} = {text}{f'  # {shown(source)}' if source else ''}"
