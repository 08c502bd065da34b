"""Logging: `setup` configures it, `redact` hides secrets, `sink` writes, `events` counts repeats."""

from proxy.logs.events import EventLog, OnEvent, ignore_event
from proxy.logs.setup import (
    configure,
    dropped_lines,
    get_logger,
    is_configured,
    is_enabled_for,
    is_json,
    is_on_terminal,
    is_terminal,
    log_file,
    log_ignored_exceptions,
    log_soon,
    redactor,
)

__all__ = [
    "EventLog",
    "OnEvent",
    "configure",
    "dropped_lines",
    "get_logger",
    "ignore_event",
    "is_configured",
    "is_enabled_for",
    "is_json",
    "is_on_terminal",
    "is_terminal",
    "log_file",
    "log_ignored_exceptions",
    "log_soon",
    "redactor",
]
