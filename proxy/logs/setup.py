"""Logging: structlog set up once, for the proxy's own events and for the standard library's records.

Hides structlog, how lines are rendered, and two promises: no line holds a registered secret (`redactor`
replaces secrets in each line just before it is written), and no stream stops or delays the program
(`proxy.logs.sink`; `dropped_lines` counts the lines that were lost, and an event says how many). Must not
know what else is logged.

Events are past-tense snake_case, with values as keys::

    log = get_logger(__name__)
    log.info("token_fetched", project="shop", expires_in=3600)
"""

from __future__ import annotations

import enum
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import orjson

from proxy.foreign import shown
from proxy.logs.file import LogFile
from proxy.logs.redact import Redactor
from proxy.logs.sink import Sink
from proxy.logs.terminal import ShortLines, is_routine

# structlog imports rich where it is installed, to draw tracebacks that this program doesn't draw. That takes
# 4 MiB and 50 ms of each start, so `import rich` fails meanwhile: None in `sys.modules` means "not found".
_rich = sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

_LONG_KEYS = ("exception", "stack")
_FIRST_KEYS = ("timestamp", "level", "logger", "event")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""The numbers of the levels in sd-daemon(3)."""
# Dataclasses are left to their own `repr`, which may hide a field.
_JSON_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_DATACLASS

redactor = Redactor()
"""The redactor of every line."""


def _log_dropped(count: int) -> None:
    get_logger("proxy").warning("log_lines_dropped", count=count)


_sink = Sink(redactor.redact, _log_dropped)
redactor.before_discard = _sink.flush
_level = logging.CRITICAL + 1
"""The lowest level that is written, as a number of the standard library's; none before `configure`."""
_renderers: Sequence[Processor] = ()
"""Turn an event, whose keys are in order, into a line of text."""


class _NamedSink:
    """structlog's wrapped logger: it has the name that lines carry, and a method for each level."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __getattr__(self, _level: str) -> Callable[[str], None]:
        return _sink.write


class _SinkHandler(logging.Handler):
    """Writes the standard library's records into the same sink."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a record with wrong arguments must not stop the program
            values = {"message": repr(record.msg), "fault": "its arguments are wrong"}
            log_soon(record.name, record.levelname.lower(), "library_logged", values)
        else:
            _sink.write(line)


_handler = _SinkHandler()


def configure(
    level: str,
    format: str,  # noqa: A002 - the setting's name
    out: IO[str] | Path | None = None,
) -> None:
    """Set up logging for the whole process, also a second time.

    ``level`` and ``format`` are those of the ``[log]`` table; ``format`` "auto" is text on a terminal and
    JSON lines elsewhere. ``out`` is a stream, or the path of a file (see `LogFile`); None is standard error.
    """
    global _level, _renderers  # noqa: PLW0603 - a process has one log
    if not isinstance(out, Path):
        _sink.stream = sys.stderr if out is None else out
    elif log_file() != out:
        _sink.stream = LogFile(out)
    on_terminal = is_on_terminal()
    as_text = format == "text" or (format == "auto" and on_terminal)
    _level = logging.getLevelNamesMapping()[level.upper()]
    if as_text:
        _renderers = [ShortLines(_stream(), _clean, colors=_wants_colors())] if on_terminal else [*_text()]
    else:
        _renderers = [_render_json]
    if _is_journal():
        _renderers = [*_renderers[:-1], _with_priority(_renderers[-1])]
    start: list[Processor] = [add_logger_name, add_log_level, _add_time]
    end: list[Processor] = [structlog.processors.format_exc_info, _put_first_keys_first, *_renderers]
    if as_text and on_terminal and _level > logging.DEBUG:
        start.append(_drop_routine)
    structlog.configure(
        processors=[*start, *end],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        context_class=dict,
        logger_factory=_NamedSink,
        cache_logger_on_first_use=False,  # loggers follow a later `configure`
    )
    foreign = [*start, _name_foreign]
    _handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=foreign, processors=[ProcessorFormatter.remove_processors_meta, *end]
        )
    )
    root = logging.getLogger()
    root.setLevel(_level)
    if _handler not in root.handlers:
        root.addHandler(_handler)
    logging.captureWarnings(True)


def log_ignored_exceptions() -> None:
    """Log what Python would print on standard error: exceptions of threads and of destructors."""

    def log(error: BaseException | None, where: object) -> None:
        get_logger("proxy").error("exception_ignored", where=repr(where), exc_info=error)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            log(args.exc_value, args.thread)

    threading.excepthook = of_thread
    # Since Python 3.14, the message alone names a destructor or a generator, and the object is None.
    sys.unraisablehook = lambda args: log(
        args.exc_value, args.err_msg if args.object is None else args.object
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry ``name``; it follows every later `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def is_enabled_for(level: int) -> bool:
    """Whether events of this level, a number of the standard library's, are written."""
    return level >= _level


def log_soon(logger: str, level: str, event: str, values: Mapping[str, object]) -> None:
    """Write an event, whatever its level, at the end of the event loop's turn and together with others.

    The line looks as if `get_logger` had written it. structlog's loggers copy the values four times and call
    six processors, which takes three times as long: too long for the line that each request has.
    """
    line: Any = {"timestamp": datetime.now(UTC), "level": level, "logger": logger, "event": event, **values}
    for render in _renderers:
        line = render(None, level, line)
    _sink.write_soon(line)


def dropped_lines() -> int:
    """The number of lines that couldn't be written since the process began."""
    return _sink.dropped


def is_configured() -> bool:
    """Whether `configure` was called."""
    return bool(_renderers)


def is_json() -> bool:
    """Whether lines are JSON."""
    return _renderers == [_render_json]


def _stream() -> IO[str] | None:
    return None if isinstance(_sink.stream, LogFile) else _sink.stream


def log_file() -> Path | None:
    """The file that lines go to; None: they go to a stream."""
    return _sink.stream.path if isinstance(_sink.stream, LogFile) else None


def is_on_terminal() -> bool:
    """Whether lines go to a terminal."""
    return is_terminal(_stream())


def _is_journal() -> bool:
    """Whether lines go to systemd's journal (systemd.exec(5), ``$JOURNAL_STREAM``)."""
    journal, stream = os.environ.get("JOURNAL_STREAM"), _stream()
    if not journal or stream is None:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no stream of the system's
        return False
    return journal == f"{status.st_dev}:{status.st_ino}"


def _with_priority(render: Callable[..., Any]) -> Processor:
    """Begin each line with its level as the journal takes it: ``<4>``, which the journal removes."""

    def render_with_priority(logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = _PRIORITIES.get(str(event["level"]), _PRIORITIES["info"])
        return f"<{priority}>{render(logger, method, event)!s}"

    return render_with_priority


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal; None and a closed stream are none."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _wants_colors() -> bool:
    # https://no-color.org: set and not empty. Windows' consoles may not understand the sequences.
    return sys.platform != "win32" and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _text() -> tuple[Processor, ...]:
    # The plain traceback: rich's shows local variables, and so secrets.
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    return _write_time, _escape_controls, renderer


def _drop_routine(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if is_routine(event):
        raise structlog.DropEvent
    return event


def _clean(text: str, keep: str) -> str:
    """The text without secrets, and with control characters (but for those to ``keep``) escaped."""
    return shown(redactor.redact(text), keep=keep)


def _name_foreign(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Give the records of libraries and Python's warnings one name; the text is their ``message``."""
    event["message"] = event["event"]
    event["event"] = "library_logged"
    return event


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC)
    return event


def _write_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Write the time as `_render_json` does: there orjson does it, several times as fast as ``isoformat``."""
    event["timestamp"] = event["timestamp"].isoformat().replace("+00:00", "Z")
    return event


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, so that no value moves the cursor or begins a line."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            # Redacted before it is escaped: the renderer may escape it once more.
            event[key] = _clean(value, "\n\t" if key in _LONG_KEYS else "")
    return event


def _put_first_keys_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    ordered = {key: event.pop(key) for key in _FIRST_KEYS if key in event}
    ordered.update(event)
    return ordered


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    try:
        return orjson.dumps(event, default=str, option=_JSON_OPTIONS).decode()
    except TypeError:  # lone surrogates, keys that aren't text, integers of more than 64 bits, circles
        event = _write_time(None, "", event)
    try:
        return json.dumps(event, default=_plain, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that JSON doesn't have, circles
        return json.dumps({key: _flat(value) for key, value in event.items()}, ensure_ascii=False)


def _flat(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else str(_plain(value))


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else str(value)
